"""
The content of a message on its way down a chain of milters.

It is taken in piece by piece, within bounds, and kept as each milter leaves it for the next.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.chain_edits import ChainEdits
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.bounds import Limits
from yatxmilter._mail.header_models import HeaderModel
from yatxmilter._wire.actions import OfHeader, Quarantine, ReplaceBody, read_edit
from yatxmilter._wire.commands import BODY_ROW, HEADER_ROW, Command
from yatxmilter.errors import LimitExceeded

__all__ = ["ChainContent"]


class ChainContent:
    """
    Header and body of the message that is open, as the milters so far have left them.

    :param header: The header that is to come; ``None`` when it is of no milter's interest.
    :ivar header: The header; ``None`` when it is not known: it is not shown, or was too long to be
        kept.
    :ivar lost: Why header or body cannot be shown to milters any more, by the commands that it
        came with.
    """

    def __init__(
        self, header: HeaderModel | None, body: BodySpool, limits: Limits, *, stops_when_held: bool
    ) -> None:
        self.header = header
        self.body = body
        self.lost: dict[Command, Failure] = {}
        self._limits = limits
        # How many bytes of the header may come, and where its fields are put.
        self._room = limits.max_header_bytes
        self._fields = [] if header is None else header.came
        self._edits: ChainEdits | None = None
        self._stops_when_held = stops_when_held

    # ---- what the MTA sends

    def take_field(self, field: tuple[str, str], size: int) -> None:
        """
        Keep a header field.

        :param field: Its name and value.
        :param size: The bytes of both.
        """
        # As it stands in a message, with colon, blank and line end.
        self._room = room = self._room - size - 4
        if room >= 0:
            self._fields.append(field)
        elif self.header is not None:
            self.header = None
            limit = self._limits.max_header_bytes
            self._lose(HEADER_ROW, f"header fields of more than {limit} bytes (max_header_bytes)")

    def take_chunk(self, chunk: bytes) -> None:
        """
        Keep a piece of the body.
        """
        if BODY_ROW in self.lost:
            return
        limit = self._limits.max_body
        if self.body.size + len(chunk) > limit:
            self._lose_body(f"a body of more than {limit} bytes (max_body)")
            return
        try:
            self.body.write(chunk)
        except OSError as error:
            self._lose_body(error)

    def _lose_body(self, why: str | OSError) -> None:
        self.body.close()
        self._lose(BODY_ROW, why)

    def _lose(self, command: Command, why: str | OSError) -> None:
        # A milter that wants to be shown it fails when its turn has come.
        error = LimitExceeded(f"{why} are not kept") if isinstance(why, str) else why
        self.lost[command] = Failure(error)

    # ---- what milters make of it

    def edit(self, packets: list[bytes]) -> Generator[None, None, bool]:
        """
        Make a milter's edits, one after the other.

        It yields between them, so that other connections can have their turns.

        :return: Whether no further filter would be shown the message: Postfix holds one that is
            quarantined.
        """
        body: list[bytes] = []
        held = False
        header = self.header
        if self._edits is None:
            self._edits = ChainEdits()
        for number, packet in enumerate(packets):
            if number:
                yield
            edit = read_edit(packet[4], packet[5:], c.SMFI_CURR_ACTS)
            if isinstance(edit, ReplaceBody):
                body.append(packet)
                continue
            if header is not None and isinstance(edit, OfHeader):
                yield from header.prepare(edit)
            self._edits.add(edit, packet, header)
            if header is not None:
                header.apply(edit)
            held = held or isinstance(edit, Quarantine)
        if body:
            self._edits.replace_body(body)
            self._replace(map(_payload_of, body))
        return held and self._stops_when_held

    def _replace(self, chunks: Iterable[bytes]) -> None:
        # The new body is as good as the old one, which may not have been kept.
        if self.lost.pop(BODY_ROW, None) is not None:
            self.body = self.body.another()
        try:
            self.body.replace(chunks)
        except OSError as error:
            self._lose_body(error)

    def edits(self) -> Generator[None, None, list[bytes]]:
        """
        Give what the milters have made of it as packets.
        """
        return [] if self._edits is None else (yield from self._edits.work(self.header))


def _payload_of(packet: bytes) -> bytes:
    return packet[5:]
