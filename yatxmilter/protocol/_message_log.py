"""
One line of the log for each message: who sent it to whom, what became of it, and who decided.

It is an observer like any other, and costs nothing where it is not. What the commands say is kept
as it came (`Watch`); it is read when the line is written.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._engine.observing import Watch
from yatxmilter._escaping import printable
from yatxmilter._wire.payloads import decode_connect, decode_strings
from yatxmilter.defaults import MilterObserver
from yatxmilter.errors import ProtocolError

__all__ = ["MessageLog"]

_log = Logger()

_UNKNOWN: Final = "unknown"
_RCPT: Final = "xxfi_envrcpt"


class _Connection:
    """
    What is known of a connection and of the message that is open on it.
    """

    def __init__(self) -> None:
        self.begin(0.0)

    def begin(self, now: float) -> None:
        self.began = now
        self.reply: str | None = None
        self.edits: dict[str, int] = {}
        # Of the recipients, how many were answered so.
        self.recipients = {"reject": 0, "tempfail": 0}


def _client(watch: Watch) -> str:
    try:
        info = None if watch.client is None else decode_connect(watch.client)
    except ProtocolError:
        info = None
    if info is None:
        return watch.macros.get("_") or watch.macros.get("{client_addr}") or _UNKNOWN
    return f"{info.hostname} [{info.address}]" if info.address else info.hostname


def _sender(watch: Watch) -> str:
    if watch.sender is not None:
        return decode_strings(watch.sender)[0][0]
    return watch.macros.get("{mail_addr}") or _UNKNOWN


class MessageLog(MilterObserver):
    """
    Log each message at its end, at level info.
    """

    #: What the MTA is told as always is not worth a word.
    only_unusual = True
    #: Each message is told with the time for which milters were at work on it.
    reads_work = True

    def __init__(self) -> None:
        self._connections: dict[object, _Connection] = {}

    def connection_made(self, connection: Any) -> None:
        """
        Have a place for what happens on it.
        """
        self._connections[connection] = _Connection()

    def connection_lost(self, connection: object, reason: Failure) -> None:
        """
        Forget the connection.
        """
        self._connections.pop(connection, None)

    def message_began(self, connection: Any) -> None:
        """
        Begin to count.
        """
        self._connections[connection].begin(connection.factory.clock.seconds())

    def answer_sent(self, connection: Any, stage: str, answer: str, reply: str | None) -> None:
        """
        Take note of what the MTA is told.
        """
        one = self._connections[connection]
        if stage == _RCPT and answer in one.recipients:
            if not connection.watch.refuses_recipient:
                one.recipients[answer] += 1
        elif answer not in ("continue", "progress"):
            one.reply = reply

    def edit_sent(self, connection: object, function: str, arguments: tuple[object, ...]) -> None:
        """
        Count an edit.
        """
        edits = self._connections[connection].edits
        edits[function] = edits.get(function, 0) + 1

    def message_ended(self, connection: Any, outcome: str) -> None:
        """
        Write the line.
        """
        one, watch = self._connections[connection], connection.watch
        refused = watch.refused + one.recipients["reject"]
        deferred = one.recipients["tempfail"]
        accepted = watch.recipients - refused - deferred
        if outcome == "aborted" and not accepted and refused + deferred:
            # There was nobody left whom it could go to.
            outcome = "tempfail" if deferred else "reject"
        now = connection.factory.clock.seconds()
        edits = {name.removeprefix("smfi_"): count for name, count in sorted(one.edits.items())}
        _log.info(
            "Message {queue_id} on connection {connection}: {verdict}; client {client}, sender"
            " {sender}, recipients {accepted} accepted, {refused} refused, {deferred} deferred;"
            " decided by {milter}; reply {reply}; edits {edits}; {milliseconds:.1f} ms,"
            " {callback_milliseconds:.1f} ms in callbacks",
            queue_id=printable(watch.macros.get("i") or _UNKNOWN),
            connection=connection.number,
            verdict=outcome,
            client=printable(_client(watch)),
            sender=printable(_sender(watch)),
            accepted=accepted,
            refused=refused,
            deferred=deferred,
            milter=watch.decider or "nobody",
            reply="none" if one.reply is None else printable(one.reply),
            edits=", ".join(f"{count} {name}" for name, count in edits.items()) or "none",
            edit_counts=edits,
            milliseconds=1000 * (now - one.began),
            callback_milliseconds=1000 * watch.worked,
        )
