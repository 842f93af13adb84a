"""
An independent reader of header text, written from RFC 2047 and from nothing else: what it shows is
what any mail program may show.
"""

from __future__ import annotations

import base64
import re

#: Section 2: at most 75 characters, none of them a blank, the tokens of printable ASCII.
_WORD = re.compile(r"=\?([!#$%&'*+\-0-9A-Z^_`a-z{|}~]+)\?([BbQq])\?([!->@-~]*)\?=")


def shown(raw: str) -> str:
    """
    Show a text without structure (section 6.1, 1): words that blanks delimit are looked at.
    """
    text = ""
    encoded = False
    blank = ""
    for piece in re.findall(r"[ \t]+|[^ \t]+", unfolded(raw)):
        if piece[0] in " \t":
            blank = piece
            continue
        decoded = decoded_word(piece)
        # Section 6.2: what separates two encoded words is not shown.
        if not (encoded and decoded is not None):
            text += blank
        text += piece if decoded is None else decoded
        encoded, blank = decoded is not None, ""
    return text + blank


def unfolded(raw: str) -> str:
    """
    Take the folds out.
    """
    return re.sub(r"\r?\n(?=[ \t])", "", raw)


def decoded_word(word: str) -> str | None:
    """
    Decode an encoded word; ``None`` for what is none.
    """
    match = _WORD.fullmatch(word)
    if match is None or len(word) > 75:
        return None
    charset, encoding, text = match.groups()
    if encoding in "Bb":
        octets = base64.b64decode(text, validate=True)
    else:
        octets = bytearray()
        place = 0
        while place < len(text):
            if text[place] == "=":
                octets.append(int(text[place + 1 : place + 3], 16))
                place += 3
            else:
                octets.append(0x20 if text[place] == "_" else ord(text[place]))
                place += 1
    return bytes(octets).decode(charset)


def shown_names(raw: str) -> str:
    """
    Show a list of addresses (section 6.1, 2 and 3): encoded words in names and comments are
    decoded, those in quotes are none.
    """
    text = unfolded(raw)
    pieces = re.findall(r'"(?:\\.|[^"\\])*"|[()<>,:;]|[ \t]+|[^()<>,:;" \t]+', text)
    result = ""
    encoded = False
    blank = ""
    for piece in pieces:
        if piece[0] in " \t":
            blank = piece
            continue
        decoded = decoded_word(piece)
        if not (encoded and decoded is not None):
            result += blank
        result += piece if decoded is None else decoded
        encoded, blank = decoded is not None, ""
    return result + blank
