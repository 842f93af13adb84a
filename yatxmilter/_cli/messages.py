"""
Messages from files, mailboxes and folders, one after the other, and whom they are from and for.

What a path is shows by itself: a folder with ``cur`` and ``new`` in it is a Maildir, another folder
holds message files, a file that begins with a ``From `` line is an mbox, and everything else is one
message. One message at a time is in memory. What cannot be read, or is not a message, is given too,
as an error: the messages behind it are still there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from yatxmilter._mail.addresses import Group, read_addresses
from yatxmilter._mail.controls import has_controls
from yatxmilter._mail.rfc5322 import Field, split_mail
from yatxmilter._wire.payloads import from_text, to_text

__all__ = ["Source", "read_messages"]

_POSTMASTER: Final = "<postmaster>"

# The first of them that a message has counts.
_SENDER_FIELDS: Final = (b"return-path", b"sender", b"from")
_RECIPIENT_FIELDS: Final = ((b"delivered-to",), (b"to", b"cc", b"bcc"))

# The first line of an mbox is believed whatever follows; later ones have a time of day, which tells
# them from a sentence that begins with "From" and was not quoted.
_POSTMARK: Final = re.compile(rb"From \S+ .*[0-9]:[0-9][0-9]")
_QUOTED: Final = re.compile(rb">+From ")


class Source(NamedTuple):
    """
    A message, or what stands in its place.

    :ivar name: The path, and in an mbox the number of the message: ``inbox:3``.
    :ivar data: The message file.
    :ivar postmark: The ``From `` line in front of it in an mbox.
    :ivar error: Why there is no message; empty when there is one.
    """

    name: str
    data: bytes = b""
    postmark: bytes = b""
    error: str = ""

    def field(self, name: bytes) -> str:
        """
        Give the value of the first field of a name, given in lower case; empty without one.
        """
        values = [each.value for each in self._header() if each.name.lower() == name]
        # A NUL would end the value for the milter, and there are none in real ones.
        return to_text(values[0]).replace("\0", "") if values else ""

    def _header(self) -> list[Field]:
        return split_mail(self.data).fields

    def sender(self) -> str:
        """
        Tell whom it is from: the mbox's ``From `` line, or the Return-Path, Sender or From field.
        """
        words = self.postmark.split(maxsplit=2)
        if len(words) > 1 and words[1] != b"-" and not has_controls(words[1]):
            # A bounce has no sender; mboxes have a name there all the same.
            return "<>" if words[1].upper() == b"MAILER-DAEMON" else bracketed(to_text(words[1]))
        for name in _SENDER_FIELDS:
            for field in self._header():
                if field.name.lower() == name:
                    return next(_addresses([field]), "<>")
        return "<>"

    def recipients(self) -> list[str]:
        """
        Tell whom it is for: the Delivered-To fields, or else To, Cc and Bcc, or the postmaster.
        """
        for names in _RECIPIENT_FIELDS:
            addresses = _addresses([one for one in self._header() if one.name.lower() in names])
            found = list(dict.fromkeys(addresses))
            if found:
                return found
        return [_POSTMASTER]


def bracketed(address: str) -> str:
    """
    Write an address as SMTP does, in angle brackets.
    """
    address = address.strip()
    return address if address.startswith("<") else f"<{address}>"


def _addresses(fields: Iterable[Field]) -> Iterator[str]:
    for field in fields:
        found, _ = read_addresses(to_text(field.value).replace("\n", " ").replace("\0", ""))
        for one in found:
            for each in one.addresses if isinstance(one, Group) else (one,):
                address = each.addr_spec
                if not each.domain and address != each.username:
                    # Words that are none, as in ``To: Undisclosed recipients``.
                    continue
                # An MTA gives milters no address with a control character in it.
                if address and not has_controls(from_text(address)):
                    yield bracketed(address)


def read_messages(paths: Iterable[str]) -> Iterator[Source]:
    """
    Read what is found at each path; ``-`` is standard input.
    """
    for path in paths:
        try:
            yield from _read_path(path)
        except OSError as error:
            yield Source(path, error=f"cannot be read: {error.strerror or error}")


def _read_path(path: str) -> Iterator[Source]:
    if path == "-" and sys.stdin is None:
        yield Source("-", error="cannot be read: standard input is closed")
    elif path == "-":
        yield from _read_file("-", sys.stdin.buffer)
    # Not by a Path: that of no text, as of a script's empty variable, is the working directory.
    elif os.path.isdir(path):
        yield from _read_folder(Path(path))
    else:
        with open(path, "rb") as file:
            yield from _read_file(path, file)


def _read_folder(folder: Path) -> Iterator[Source]:
    parts = [folder / "new", folder / "cur"]
    if not all(part.is_dir() for part in parts):
        parts = [folder]
    files = [
        file
        for part in parts
        for file in sorted(part.iterdir())
        if file.is_file() and not file.name.startswith(".")
    ]
    if not files:
        yield Source(str(folder), error="is a folder without messages in it")
    yield from read_messages(map(str, files))


def _read_file(name: str, file: BinaryIO) -> Iterator[Source]:
    first = file.readline()
    if not first.startswith(b"From "):
        yield _checked(Source(name, first + file.read()))
        return
    for number, (postmark, data) in enumerate(_split_mbox(first, file), 1):
        yield _checked(Source(f"{name}:{number}", data, postmark))


def _split_mbox(postmark: bytes, lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    # A message begins at the beginning of the file, or at a From line behind an empty line; that
    # empty line is the mbox's, and so is one ">" in front of "From ".
    message: list[bytes] = []
    for line in lines:
        if _POSTMARK.match(line) and message and not message[-1].strip(b"\r\n"):
            yield postmark, b"".join(message[:-1])
            postmark, message = line, []
        else:
            message.append(line[1:] if _QUOTED.match(line) else line)
    if len(message) > 1 and not message[-1].strip(b"\r\n"):
        message.pop()
    yield postmark, b"".join(message)


def _checked(source: Source) -> Source:
    if split_mail(source.data).fields:
        return source
    return source._replace(error="is not a message: it does not begin with a header field")
