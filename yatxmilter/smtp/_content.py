"""
A message's content on its way through an SMTP server: taken in line by line, shown to milters,
edited, and given out line by line.

The header is kept in memory and the body spooled, so that neither a large message nor a slow milter
holds memory. What is a header, and what an edit does to it, is decided by the models of Postfix.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Final

from twisted.logger import Logger

from yatxmilter import constants as c
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.bounds import MAX_HEADER_BYTES
from yatxmilter._mail.delivery import Delivery
from yatxmilter._mail.header_models import HeaderModel
from yatxmilter._mail.rfc5322 import Field, split_mail

__all__ = ["Content"]

_log = Logger()

# What a mailbox file has between messages.
_MAILBOX_LINE: Final = re.compile(rb">*From ")


class Content:
    """
    The content of one message.

    :param memory: How many bytes of the body are kept in memory.
    :param most: How many bytes it may have.
    :param most_header: How many bytes its header may have.
    :ivar fault: The SMTP reply with which it has to be refused, whatever milters say.
    """

    def __init__(self, memory: int, most: int, most_header: int = MAX_HEADER_BYTES) -> None:
        self.fault: bytes | None = None
        self.body = BodySpool(memory, "postfix")
        self._most = most
        self._most_header = most_header
        self._fields: list[Field] = []
        # The field that is coming: its name, and its value's lines.
        self._name = b""
        self._value: list[bytes] = []
        self._size = self._header_size = 0
        self._in_header = True
        # Whether all lines of the header so far are such as a mailbox file has between messages.
        self._between_messages = True
        self._separated = False
        self._model: HeaderModel | None = None

    # ---- taking it in

    def add_line(self, line: bytes) -> None:
        """
        Take one line of the message, as it came but for its CR LF.

        A lone LF ends a line too, as in Postfix: what leaves this server has no LF for the next
        one to take for a line's end, where milters and this server saw none.
        """
        try:
            for part in line.split(b"\n"):
                if self.fault is None:
                    self._add(part)
        except OSError:
            self._no_room()

    def _no_room(self) -> None:
        _log.failure("A message's body cannot be written to a temporary file")
        self.refuse(b"452 4.3.1 Insufficient system storage")

    def refuse(self, reply: bytes) -> None:
        """
        Keep no more of the message, which is refused at its end.

        :param reply: What the client will be told, unless there is a reason already.
        """
        self.fault = self.fault or reply
        self._fields.clear()
        self._value.clear()
        self.close()

    def _add(self, line: bytes) -> None:
        self._size += len(line) + 2
        if self._size > self._most:
            self.refuse(b"552 5.3.4 Message too large")
            return
        if self._in_header and self._add_to_header(line):
            if self._header_size > self._most_header:
                self.refuse(b"552 5.3.4 Message header too large")
            return
        if self._in_header:
            self._in_header = False
            self._separated = not line
            if self._separated:
                return
        self.body.write(line + b"\r\n")

    def _add_to_header(self, line: bytes) -> bool:
        """
        Take a line of the header.

        :return: Whether it is one.
        """
        if line[:1] in (b" ", b"\t"):
            if not self._value:
                return False
            self._between_messages = False
            self._value.append(line)
            self._header_size += len(line) + 2
            return True
        if not _MAILBOX_LINE.match(line):
            self._between_messages = False
        elif self._between_messages:
            line = b"X-Mailbox-Line: " + line
        fields = split_mail(line).fields
        if not fields:
            return False
        self._end_field()
        self._name = fields[0].name
        self._value = [fields[0].value]
        # As it stands in the message: very many names without values take memory, too.
        self._header_size += len(line) + 2
        return True

    def _end_field(self) -> None:
        if self._value:
            self._fields.append(Field(self._name, b"\n".join(self._value)))
            self._value = []

    # ---- showing and editing it

    @property
    def fields(self) -> list[Field]:
        """
        The header, as it came.
        """
        self._end_field()
        return self._fields

    def edit(self, delivery: Delivery, *, leading_space: bool) -> Generator[None, None, None]:
        """
        Make the edits of the header and the body; the others leave the content alone.

        It is work in pieces: a client may have sent very many header fields.

        :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed.
        """
        if delivery.header:
            self._model = yield from delivery.header_work(
                self.fields, leading_space=leading_space, flavour="postfix"
            )
        if delivery.body is not None:
            try:
                self.body.replace(delivery.body)
            except OSError:
                self._no_room()

    # ---- giving it out

    def lines(self) -> Iterator[bytes | None]:
        """
        Give the lines as they are delivered, with ``None`` for the server's own Received.

        Milters are not shown that one, and what they put on top of the header stands above it.
        """
        for field in self._delivered_fields():
            if field is None:
                yield None
            else:
                yield from (field.name + b":" + field.value).split(b"\n")
        if self._separated or self.body.size:
            yield b""
        # What is joined once costs no more however long a line is; each ends in CR LF.
        pieces: list[bytes] = []
        for chunk in self.body.chunks(c.MILTER_MDS_64K):
            pieces.append(chunk)
            if b"\n" in chunk:
                *lines, rest = b"".join(pieces).split(b"\r\n")
                pieces = [rest]
                yield from lines

    def _delivered_fields(self) -> Iterator[Field | None]:
        if self._model is None:
            # Most messages are not edited.
            yield None
            yield from self.fields
            return
        for slot in self._model.slots:
            yield Field(slot.name, slot.value or b"") if slot.shown else None

    def close(self) -> None:
        """
        Give the memory, or the file, back.
        """
        # What could not be written to a full disk is tried once more by some.
        with suppress(OSError):
            self.body.close()
