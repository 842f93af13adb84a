"""
The lexical parts of a field with structure (RFC 5322, section 3.2): words, quoted strings,
comments.

A quoted string or a comment that is not closed goes to the end of the field. So each character is
looked at once, whatever comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["comment_end", "quote", "rough_tokens", "tokens", "unquote", "without_comments"]

#: Blanks; a quoted string; brackets that are closed; a word; anything else by itself.
_TOKEN: Final = re.compile(
    r"""[ \t]+|"[^"\\]*(?:\\.[^"\\]*)*"?|\[[^\[\]]*\]|[^ \t"(),:;<>@\[\]\\.]+|.""",
    re.DOTALL,
)
# The same, with words, blanks, dots and @ in one.
_ROUGH: Final = re.compile(
    r"""[^"(),:;<>\[\]\\]+|"[^"\\]*(?:\\.[^"\\]*)*"?|\[[^\[\]]*\]|.""", re.DOTALL
)
_COMMENT_MARK: Final = re.compile(r"[()\\]")
_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def tokens(text: str) -> Iterator[str]:
    """
    Yield the parts of an unfolded value; joined they are the value. The first character of each
    tells what it is: a blank, ``"`` for a quoted string, ``(`` for a comment, and so on.
    """
    return _split(_TOKEN, text)


def rough_tokens(text: str) -> Iterator[str]:
    """
    Yield the parts of an unfolded value as `tokens`, but words, blanks, dots and @ in one.
    """
    return _split(_ROUGH, text)


def _split(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    if "(" not in text:
        yield from pattern.findall(text)
        return
    position = 0
    while position < len(text):
        if text[position] == "(":
            end = comment_end(text, position)
            yield text[position:end]
            position = end
            continue
        for match in pattern.finditer(text, position):
            if match[0] == "(":
                break
            yield match[0]
            position = match.end()


def comment_end(text: str, start: int) -> int:
    """
    Find the end of the comment that begins at a place, those inside it included.
    """
    depth = 0
    position = start
    while (match := _COMMENT_MARK.search(text, position)) is not None:
        position = match.end()
        if match[0] == "\\":
            position += 1
        elif match[0] == "(":
            depth += 1
        else:
            depth -= 1
            if not depth:
                return position
    return len(text)


def without_comments(text: str) -> str:
    """
    Replace each comment by a blank.
    """
    if "(" not in text:
        return text
    return "".join(" " if token[0] == "(" else token for token in tokens(text))


def unquote(token: str) -> str:
    """
    Give what a quoted string, or one without its end, says.
    """
    inner = token[1:-1] if len(token) > 1 and token.endswith('"') else token[1:]
    return _PAIR.sub(r"\1", inner) if "\\" in inner else inner


def quote(text: str) -> str:
    """
    Write a text as a quoted string, in which nothing looks like an encoded word.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("=?", "=\\?")
    return f'"{escaped}"'
