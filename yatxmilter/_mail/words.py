"""
Header text and encoded words (RFC 2047): raw values to what is shown, and back.

Text is ``str`` whose octets that are no UTF-8 are surrogates (``surrogateescape``), as everywhere
on the milter wire. Reading takes time linear in the length and never fails. What is read can be
written: line ends and NUL, which no field can carry, are shown as a blank and as U+FFFD. Writing
folds at blanks that are there already, and encodes only what cannot stand as it is.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64, a2b_qp
from collections.abc import Iterable, Iterator
from encodings.aliases import aliases
from typing import Final, NamedTuple

__all__ = [
    "ENCODED_WORD",
    "Piece",
    "charset_codec",
    "charset_text",
    "decode_text",
    "encode_text",
    "fold",
    "has_octets",
    "raw_words",
    "unfold",
]

#: An encoded word: charset, encoding, encoded text. It is found where no blank is around it, too:
#: mail programs do so.
ENCODED_WORD: Final = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?\s]*)\?=")

_FOLD: Final = re.compile(r"\r?\n(?=[ \t])")
_LINE_ENDS: Final = re.compile(r"[\r\n]+")
# No character at all: what `surrogateescape` makes of octets is left alone outside encoded words.
_NO_CHARACTER: Final = re.compile("[\0\ud800-\udfff]")
_OCTET: Final = re.compile("[\udc80-\udcff]")
_TOKEN: Final = re.compile(r"[ \t]+|[^ \t]+")

#: The longest encoded word, and the longest line that one stands in (RFC 2047, section 2).
_MAX_WORD: Final = 75
_MAX_WORD_LINE: Final = 76
#: Lines are folded at this length where they can be, and never longer than the second if so.
_LINE: Final = 78
_MAX_LINE: Final = 998

# What people can read in part may be so much longer than what they cannot.
_READABLE: Final = 5

_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64: Final = bytes(set(range(256)) - set(_BASE64))
# What stands for itself in every place where a word may be (RFC 2047, section 5).
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_Q: Final = tuple(
    "_" if octet == 0x20 else chr(octet) if octet in _PLAIN else f"={octet:02X}"
    for octet in range(256)
)
_Q_ASCII: Final = {chr(octet): _Q[octet] for octet in range(128)}


_list: Final = str.split


def _charsets() -> dict[str, str]:
    """
    List the charsets that are decoded, by all of their names.
    """
    # Python looks for a module for each name it does not know, and remembers the name: both are
    # not for strangers to ask for. Some of its codecs are not charsets, or take quadratic time.
    known = {*aliases, *aliases.values()}
    known.update(
        _list(
            "utf_8_sig cp720 cp737 cp856 cp874 cp875 cp1006 koi8_r koi8_u koi8_t kz1048 "
            "ptcp154 mac_arabic mac_croatian mac_farsi mac_romanian big5hkscs euc_jis_2004 "
            "euc_jisx0213"
        )
    )
    codecs = {name: aliases.get(name, name) for name in known}
    no_charset = (
        "base64_codec bz2_codec hex_codec quopri_codec rot_13 uu_codec zlib_codec mbcs tactis"
        " idna punycode unicode_escape raw_unicode_escape undefined"
    )
    for name in [name for name, codec in codecs.items() if codec in no_charset.split()]:
        del codecs[name]
    codecs["x_sjis"] = "shift_jis"
    codecs["x_gbk"] = "gbk"
    codecs["x_euc_jp"] = "euc_jp"
    codecs["windows_874"] = "cp874"
    codecs["windows_949"] = "cp949"
    codecs["iso_8859_8_i"] = codecs["iso_8859_8_e"] = "iso8859_8"
    codecs["iso_8859_6_i"] = codecs["iso_8859_6_e"] = "iso8859_6"
    return codecs


_CHARSETS: Final = _charsets()


def charset_codec(charset: str) -> str | None:
    """
    Give Python's codec for a charset that mail names; ``None`` for one that it does not know.
    """
    name = charset.partition("*")[0].lower()
    return _CHARSETS.get(name.replace("-", "_").replace(".", "_").replace(" ", "_"))


def charset_text(octets: bytes, charset: str, errors: str = "replace") -> str:
    """
    Decode octets by the charset that mail names for them; one that is not known counts as UTF-8.

    :param errors: What is done with octets that are not what the charset says, as for
        ``bytes.decode``.
    """
    return octets.decode(charset_codec(charset.strip()) or "utf-8", errors)


def has_octets(text: str) -> bool:
    """
    Tell whether there are octets in a text that are no UTF-8.
    """
    return not text.isascii() and _OCTET.search(text) is not None


def unfold(raw: str) -> str:
    """
    Take the folds out of a raw value. A line end that folds nothing counts as a blank.
    """
    if "\n" in raw or "\r" in raw:
        raw = _LINE_ENDS.sub(" ", _FOLD.sub("", raw))
    return raw.replace("\0", "\ufffd")


# ---- reading


def decode_text(text: str, defects: list[str] | None = None) -> str:
    """
    Show an unfolded text: decode its encoded words. Blanks between two of them are not text.

    :param defects: Gets what was wrong with them.
    """
    if "=?" not in text:
        return text
    return "".join(shown for shown, _ in decode_runs(text, [] if defects is None else defects))


def decode_runs(text: str, defects: list[str]) -> Iterator[tuple[str, bool]]:
    """
    Yield the pieces of an unfolded text as they are shown, and of each whether it was encoded.
    """
    end = 0
    run: list[tuple[str, bytes]] = []
    for match in ENCODED_WORD.finditer(text):
        start = match.start()
        gap = text[end:start]
        if run and gap.strip(" \t"):
            yield _decode_run(run, defects), True
            run = []
        if not run and gap:
            yield gap, False
        if (start and text[start - 1] not in " \t") or text[match.end() : match.end() + 1].strip(
            " \t"
        ):
            _note(defects, "an encoded word has no blank beside it")
        charset, encoding, data = match.groups()
        run.append((charset, _decode_octets(encoding, data, defects)))
        end = match.end()
    if run:
        yield _decode_run(run, defects), True
    if end < len(text):
        yield text[end:], False


def _note(defects: list[str], defect: str) -> None:
    # Each once: a stranger chooses how often.
    if defect not in defects:
        defects.append(defect)


def _decode_octets(encoding: str, data: str, defects: list[str]) -> bytes:
    octets = data.encode("utf-8", "surrogateescape")
    if encoding in "qQ":
        return a2b_qp(octets, header=True)
    digits = octets.translate(None, _NOT_BASE64)
    if len(octets.rstrip(b"=")) != len(digits):
        _note(defects, "an encoded word is not base64 throughout")
    if len(digits) % 4 == 1:
        digits = digits[:-1]
        _note(defects, "an encoded word is cut in its base64 text")
    return a2b_base64(digits + b"=" * (-len(digits) % 4))


def _decode_run(run: list[tuple[str, bytes]], defects: list[str]) -> str:
    """
    Decode words that stand together. Those of one charset may have cut a character in two.
    """
    texts: list[str] = []
    start = 0
    while start < len(run):
        charset = run[start][0].lower()
        end = start + 1
        while end < len(run) and run[end][0].lower() == charset:
            end += 1
        texts.append(_decode_charset(charset, [octets for _, octets in run[start:end]], defects))
        start = end
    text = "".join(texts)
    if "\n" in text or "\r" in text:
        _note(defects, "an encoded word has a line end in it")
        text = _LINE_ENDS.sub(" ", text.rstrip("\r\n"))
    if not text.isascii() or "\0" in text:
        shown = _NO_CHARACTER.sub("\ufffd", text)
        if shown != text:
            _note(defects, "an encoded word has no character in it, but NUL or a surrogate")
        text = shown
    return text


def _decode_charset(charset: str, words: list[bytes], defects: list[str]) -> str:
    codec = charset_codec(charset)
    if codec is None:
        _note(defects, "an encoded word has an unknown charset")
        return b"".join(words).decode("ascii", "replace")
    try:
        return "".join(word.decode(codec) for word in words)
    except UnicodeError:
        _note(defects, "an encoded word is not what its charset says")
    return b"".join(words).decode(codec, "replace")


# ---- writing


class Piece(NamedTuple):
    """
    A word of a value that is written.

    :ivar blank: The blanks before it. It may be folded there.
    :ivar source: How it is written, if it can stand as it is.
    :ivar shown: What it shows, if it has to be encoded.
    """

    blank: str
    source: str
    shown: str | None = None


def raw_words(raw: str | None) -> frozenset[str]:
    """
    Give the words of a raw value that are not ASCII: these may go out again as they came.
    """
    if raw is None or raw.isascii():
        return frozenset()
    return frozenset(word for word in unfold(raw).split() if not word.isascii())


def must_encode(word: str, kept: frozenset[str]) -> bool:
    """
    Tell whether a word of text would not be shown as it is.

    :param kept: Words that are not ASCII and may stay so.
    """
    if word.isascii():
        return "=?" in word and ENCODED_WORD.search(word) is not None
    return word not in kept and not has_octets(word)


def encode_text(text: str, column: int, kept: frozenset[str] = frozenset()) -> str:
    """
    Write a text without structure: what has to be is encoded, and it is folded at its blanks.

    :param column: How much of the first line the field's name takes.
    :param kept: Words that are not ASCII and may stay so.
    """
    if len(text) + column <= _LINE and text.isascii() and "=?" not in text:
        return text
    return fold(_text_pieces(text, kept), column)


def _text_pieces(text: str, kept: frozenset[str]) -> Iterator[Piece]:
    blank = ""
    for token in _TOKEN.findall(text):
        if token[0] in " \t":
            blank = token
            continue
        yield Piece(blank, token, token if must_encode(token, kept) else None)
        blank = ""
    if blank:
        yield Piece(blank, "")


def fold(pieces: Iterable[Piece], column: int) -> str:
    """
    Write pieces in lines.

    Words to encode that stand together are encoded together with the blanks between them, since
    what separates two encoded words is not shown.
    """
    lines = _Lines(column)
    region: list[str] = []
    before = ""
    for piece in pieces:
        if piece.shown is not None:
            if region:
                region += (piece.blank, piece.shown)
            else:
                before, region = piece.blank, [piece.shown]
                if lines.empty:
                    # Blanks at either end of a value get lost on the way: no blanks, but text.
                    before, region = "", [piece.blank, piece.shown]
        elif region and not piece.source:
            region.append(piece.blank)
        else:
            if region:
                lines.encode(before, "".join(region))
                region = []
            lines.add(piece.blank, piece.source)
    if region:
        lines.encode(before, "".join(region))
    return "".join(lines.parts)


class _Lines:
    """
    The lines of a folded value, filled one after the other.
    """

    def __init__(self, column: int) -> None:
        self.parts: list[str] = []
        self.empty = True
        self._column = column

    def add(self, blank: str, source: str, line: int = _LINE) -> None:
        size = _octets(source)
        if not source or self.empty or not blank:
            # A line of blanks alone would end the header for some.
            self.parts += (blank, source)
            self._column += len(blank) + size
        elif self._column + len(blank) + size <= line:
            self.parts += (blank, source)
            self._column += len(blank) + size
        else:
            # A long row of blanks is cut in two.
            room = _MAX_LINE - self._column
            here = min(len(blank) - 1, room) if len(blank) + size > _MAX_LINE and room > 0 else 0
            self.parts += (blank[:here], "\n", blank[here:], source)
            self._column = len(blank) - here + size
        self.empty = self.empty and not source

    def encode(self, blank: str, text: str) -> None:
        for word in _encoded_words(text, _MAX_WORD_LINE - self._column - len(blank)):
            self.add(blank, word, _MAX_WORD_LINE)
            blank = " "


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def _encoded_words(text: str, room: int) -> list[str]:
    """
    Write a text as encoded words, in the shorter of the two encodings, or nearly so.

    :param room: For the first one, on the line that there is.
    """
    octets = text.encode("utf-8", "surrogateescape")
    quoted = sum(map(len, map(_Q.__getitem__, octets)))
    overhead = len("=?utf-8?q??=")
    most = _MAX_WORD - overhead
    first = most if room < overhead + 12 else min(most, room - overhead)
    if quoted < (len(octets) + 2) // 3 * 4 + _READABLE:
        return [f"=?utf-8?q?{word}?=" for word in _quoted_words(text, first, most)]
    return [f"=?utf-8?b?{word}?=" for word in _base64_words(text, first // 4 * 3, most // 4 * 3)]


def _quoted_words(text: str, room: int, most: int) -> Iterator[str]:
    word: list[str] = []
    for character in text:
        coded = _Q_ASCII.get(character)
        if coded is None:
            octets = character.encode("utf-8", "surrogateescape")
            coded = "".join(map(_Q.__getitem__, octets))
        room -= len(coded)
        if room < 0 and word:
            yield "".join(word)
            word = []
            room = most - len(coded)
        word.append(coded)
    yield "".join(word)


def _base64_words(text: str, room: int, most: int) -> Iterator[str]:
    word: list[bytes] = []
    for character in text:
        octets = character.encode("utf-8", "surrogateescape")
        room -= len(octets)
        if room < 0 and word:
            yield b64encode(b"".join(word)).decode("ascii")
            word = []
            room = most - len(octets)
        word.append(octets)
    yield b64encode(b"".join(word)).decode("ascii")
