"""
Octets that have no business in a command, an address or a name: what ends lines, or moves cursors.

These are the control characters of ASCII, and in UTF-8 those of Latin-1, the line and paragraph
separators, and what changes the direction of writing.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CONTROLS", "has_controls", "is_clean_text"]

#: One of them. A tab is one, too.
CONTROLS: Final = re.compile(
    rb"[\x00-\x1f\x7f]"
    rb"|\xc2[\x80-\x9f]"
    rb"|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)


def has_controls(text: bytes) -> bool:
    """
    Tell whether there is one in it.
    """
    return CONTROLS.search(text) is not None


def is_clean_text(text: bytes) -> bool:
    """
    Tell whether it is UTF-8 and has none of them.
    """
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return not has_controls(text)
