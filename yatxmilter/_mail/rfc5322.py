"""
Taking a message file apart as an MTA does before it talks to a milter, and putting it together.

Lines may end in LF or CR LF; inside, header fields have LF alone between their lines, as on the
milter wire. The header ends at the first empty line, or in front of the first line that is neither
a field nor the continuation of one. A leading ``From `` line is a mailbox's and left out.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Field", "Mail", "split_mail", "wire_body", "with_line_ends"]

_LINE_END: Final = re.compile(rb"\r?\n")
_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)


class Field(NamedTuple):
    """
    One header field.

    :ivar value: All that follows the colon, the lines of a folded field separated by LF.
    """

    name: bytes
    value: bytes

    def bare_value(self) -> bytes:
        """
        Give the value as milters see it without SMFIP_HDR_LEADSPC: one space less, no tab less.
        """
        return self.value[1:] if self.value.startswith(b" ") else self.value


class Mail(NamedTuple):
    """
    A message in its parts.

    :ivar separated: Whether an empty line ended the header.
    :ivar body: The body as it was in the file.
    :ivar line_end: What the file's first line ends in.
    """

    fields: list[Field]
    separated: bool
    body: bytes
    line_end: bytes

    def join(self) -> bytes:
        """
        Put the parts together, in the file's own line ends.
        """
        lines = [field.name + b":" + field.value for field in self.fields]
        if self.separated or self.body:
            lines.append(b"")
        header = b"".join(line + b"\n" for line in lines)
        return header.replace(b"\n", self.line_end) + with_line_ends(self.body, self.line_end)


def split_mail(message: bytes) -> Mail:
    """
    Take a message apart: header fields, and the body as it is.
    """
    first = _LINE_END.search(message)
    line_end = first[0] if first else b"\n"
    position = first.end() if first and message.startswith(b"From ") else 0
    # Each field's lines, joined once: one may be folded into very many.
    lines: list[list[bytes]] = []
    separated = False
    while position < len(message):
        found = _LINE_END.search(message, position)
        end, following = found.span() if found else (len(message), len(message))
        line = message[position:end]
        if not line:
            separated = True
            position = following
            break
        if line[:1] in b" \t" and lines:
            lines[-1].append(line)
        elif _FIELD.fullmatch(line):
            lines.append([line])
        else:
            break
        position = following
    return Mail(
        [_field(b"\n".join(parts)) for parts in lines], separated, message[position:], line_end
    )


def _field(line: bytes) -> Field:
    name, _, value = line.partition(b":")
    return Field(name.rstrip(b" \t"), value)


def wire_body(body: bytes) -> bytes:
    """
    Give a body the line ends it has on the wire: CR LF everywhere, and at the end.
    """
    if body and not body.endswith(b"\n"):
        # Of its own, even after a CR.
        body += b"\r\n"
    return with_line_ends(body)


def with_line_ends(data: bytes, line_end: bytes = b"\r\n") -> bytes:
    """
    Give bytes with other line ends in the place of LF and CR LF.
    """
    # Not by a regular expression, which makes an object for each line: it would take sixty times
    # the memory of a body of short lines, and ten times the time.
    return data.replace(b"\r\n", b"\n").replace(b"\n", line_end)
