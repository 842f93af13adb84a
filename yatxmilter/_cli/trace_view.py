"""
What a trace shows: each packet a line, and what happens to connections.

Bytes are cut into packets for each direction by itself. One that turns out to be no milter protocol
is said to be so, once, and not looked at any more; the relay passes it on all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from time import time
from typing import Any, Final

from twisted.internet.error import ConnectError
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._cli.decoding import Decoded, QueueId, body_of, decode_packet
from yatxmilter._cli.record import Recorder, iso_time
from yatxmilter._cli.terminal import Page
from yatxmilter._wire.packets import PacketSplitter
from yatxmilter._wire.payloads import to_text
from yatxmilter.errors import ProtocolError

__all__ = ["TraceView"]

# The longest packet that the protocol knows; what has arrived of one is kept until it is whole.
_LIMIT: Final = c.MILTER_MDS_1M

_KINDS: Final = {
    c.SMFIR_ACCEPT: "good",
    c.SMFIR_REJECT: "bad",
    c.SMFIR_DISCARD: "bad",
    c.SMFIR_SHUTDOWN: "bad",
    c.SMFIR_CONN_FAIL: "bad",
    c.SMFIR_TEMPFAIL: "soft",
    c.SMFIR_REPLYCODE: "bad",
    c.SMFIR_CONTINUE: "dim",
    c.SMFIR_PROGRESS: "dim",
}


class _Connection:
    """
    What is known of a connection.

    :ivar splitters: Bytes from the milter, bytes from the MTA; ``None`` once they make no sense.
    """

    def __init__(self) -> None:
        self.queue_id = QueueId()
        self.splitters: list[PacketSplitter | None] = [
            PacketSplitter(_LIMIT, strict=True) for _ in range(2)
        ]


class TraceView:
    """
    Print what a `Relay` tells, and record it.

    :param page: Where lines for people go, if anywhere.
    :param write: What takes lines of JSON, if anything.
    :param bodies: Show the text of bodies.
    """

    def __init__(
        self,
        page: Page | None,
        write: Callable[[str], object] | None = None,
        *,
        bodies: bool = False,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._page = page
        self._write = write
        self._bodies = bodies
        self._recorder = recorder
        self._clock = clock
        self._connections: dict[int, _Connection] = {}

    # ---- what the relay tells

    def opened(self, number: int) -> None:
        """
        An MTA has connected.
        """
        self._connections[number] = _Connection()
        if self._recorder is not None:
            self._recorder.open(number, self._clock())
        self._tell_event(number, "open", "connected", mta=True)

    def passed(self, number: int, from_mta: bool, data: bytes) -> None:
        """
        Bytes were passed on.
        """
        splitter = self._connections[number].splitters[from_mta]
        if splitter is None:
            return
        splitter.feed(data)
        try:
            while (packet := splitter.next_packet()) is not None:
                self._take(number, from_mta, *packet)
        except ProtocolError as error:
            self._give_up(number, from_mta, f"{error}; bytes are passed on, and not decoded")

    def unreachable(self, number: int, reason: Failure) -> None:
        """
        The milter could not be connected to.
        """
        error: Any = reason.value
        text = str(error.args[-1] if isinstance(error, ConnectError) and error.args else error)
        self._tell_event(number, "unreachable", f"cannot be reached: {text}", mta=False)

    def ended(self, number: int, from_mta: bool, how: str) -> None:
        """
        One side has ended its direction, or all of the connection.
        """
        splitter = self._connections[number].splitters[from_mta]
        if splitter is not None and splitter.partial:
            self._give_up(number, from_mta, f"{splitter.buffered} bytes of a packet, then the end")
        self._tell_event(number, how, {"ended": "sends no more"}.get(how, how), mta=from_mta)

    def closed(self, number: int, by: str) -> None:
        """
        Nothing more will come.
        """
        if self._recorder is not None:
            self._recorder.close(number, self._clock(), by)
        del self._connections[number]

    # ---- printing

    def _take(self, number: int, from_mta: bool, letter: int, payload: bytes) -> None:
        now = self._clock()
        connection = self._connections[number]
        if self._recorder is not None:
            self._recorder.packet(number, now, from_mta, letter, payload)
        if from_mta:
            connection.queue_id.follow(letter, payload)
        self._show(number, now, from_mta, letter, payload)
        if from_mta and letter in (c.SMFIC_ABORT, c.SMFIC_QUIT_NC):
            connection.queue_id.value = None

    def _show(self, number: int, now: float, from_mta: bool, letter: int, payload: bytes) -> None:
        if self._page is None and self._write is None:
            return
        decoded = decode_packet(from_mta, letter, payload)
        body = body_of(from_mta, letter, payload) if self._bodies else None
        if body is not None:
            decoded.fields["text"] = to_text(body)
        packet = {"name": decoded.name, "letter": chr(letter), "arguments": decoded.fields}
        self._tell_json(number, now, from_mta, {**packet, "error": decoded.error})
        self._tell_packet(number, now, from_mta, letter, decoded)
        if self._page is not None:
            for line in to_text(body or b"").splitlines():
                self._page.line(f"    | {line}", "dim")

    def _tell_packet(
        self, number: int, now: float, from_mta: bool, letter: int, decoded: Decoded
    ) -> None:
        kind = "" if from_mta else _KINDS.get(letter, "place")
        if from_mta and letter == c.SMFIC_MACRO:
            kind = "dim"
        error = f"  ({decoded.error})" if decoded.error else ""
        text = f"{decoded.name:<11} {decoded.text}{error}"
        self._tell_line(number, now, from_mta, text, "bad" if error else kind)

    def _tell_event(self, number: int, event: str, text: str, *, mta: bool) -> None:
        now = self._clock()
        who = "the MTA" if mta else "the milter"
        self._tell_json(number, now, mta, {"event": event, "text": text})
        self._tell_line(number, now, mta, f"({who} {text})", "head")

    def _give_up(self, number: int, from_mta: bool, why: str) -> None:
        self._connections[number].splitters[from_mta] = None
        if self._recorder is not None:
            self._recorder.undecoded(number, self._clock(), from_mta, why)
        self._tell_event(
            number, "undecoded", f"sent bytes that are not milter protocol: {why}", mta=from_mta
        )

    def _tell_line(self, number: int, now: float, from_mta: bool, text: str, kind: str) -> None:
        if self._page is None:
            return
        when = datetime.fromtimestamp(now).strftime("%H:%M:%S.%f")[:-3]
        queue_id = self._connections[number].queue_id.value or "-"
        arrow = "->" if from_mta else "<-"
        self._page.line(f"{when} #{number} {queue_id:<12} {arrow} {text}", kind)

    def _tell_json(self, number: int, now: float, from_mta: bool, what: dict[str, Any]) -> None:
        if self._write is None:
            return
        line = {
            "time": iso_time(now),
            "connection": number,
            "queue_id": self._connections[number].queue_id.value,
            "from": "mta" if from_mta else "milter",
        }
        self._write(json.dumps({**line, **what}) + "\n")
