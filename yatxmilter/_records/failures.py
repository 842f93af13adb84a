"""
The sessions in which a milter has failed, kept for ``yatxmilter replay``.

Of each connection there is in memory what the MTA said before its messages, and the message that is
open. When a milter fails that is written at the message's end, without bodies and addresses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._escaping import printable
from yatxmilter._records.private import open_private
from yatxmilter._records.record import Recorder
from yatxmilter._records.record_redaction import KINDS
from yatxmilter._wire.commands import COMMANDS
from yatxmilter.defaults import MilterObserver

__all__ = ["MOST_FILES", "FailureRecorder"]

_log = Logger()

#: So many records a folder may have; then no more are written.
MOST_FILES: Final = 100
#: Bytes of payloads that are kept of a connection. What is longer is not recorded.
MOST_BYTES: Final = 4 * 1024 * 1024

# Of the files of this process: a reload has another recorder.
_NUMBERS: Final = count(1)

_Packet = tuple[bool, int, bytes]


class _Session:
    """
    What was said on a connection, as far as it may be needed.
    """

    def __init__(self, write: Callable[[_Session], None]) -> None:
        self._write = write
        self._size = 0
        # Where the open message begins; None where none is open.
        self._begin: int | None = None
        self._over = False
        self.packets: list[_Packet] = []
        self.failed: tuple[str, str] | None = None

    @property
    def too_long(self) -> bool:
        return self._size > MOST_BYTES

    def take(self, packet: tuple[int, bytes]) -> None:
        letter, payload = packet
        command = COMMANDS.get(letter)
        if self._begin is None and command is not None and command.in_message:
            begin = len(self.packets)
            # The macros before a command are its own.
            while begin and self.packets[begin - 1][:2] == (True, c.SMFIC_MACRO):
                begin -= 1
            self._begin = begin
        self._keep((True, letter, payload))

    def said(self, packets: list[bytes]) -> None:
        for packet in packets:
            self._keep((False, packet[4], packet[5:]))
        if self._over:
            self.finish()

    def _keep(self, packet: _Packet) -> None:
        self._size += len(packet[2])
        if not self.too_long:
            self.packets.append(packet)

    def end_message(self) -> None:
        # Its answer is still to be written.
        self._over = True

    def finish(self) -> None:
        """
        Write what is to be written, and forget the message.
        """
        if self.failed is not None:
            self._write(self)
            self.failed = None
        if self._begin is not None:
            del self.packets[self._begin :]
            self._size = sum(len(packet[2]) for packet in self.packets)
        self._begin, self._over = None, False


class FailureRecorder(MilterObserver):
    """
    Write the session in which a milter fails into a folder, one file each.

    :param folder: It has to be there.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._sessions: dict[object, _Session] = {}
        self._told = False

    def connection_made(self, connection: Any) -> None:
        """
        Keep what is said on it from now on.
        """
        session = self._sessions[connection] = _Session(self._write)
        connection._conversation.session.show(session.take)
        send = connection.send_packets

        def send_packets(packets: list[bytes]) -> None:
            session.said(packets)
            send(packets)

        connection.send_packets = send_packets

    def milter_failed(
        self, connection: object, milter: str, stage: str, kind: str, failure: Failure
    ) -> None:
        """
        Have the session written when the message has ended.
        """
        # There is none where a milter could not be built.
        session = self._sessions.get(connection)
        if session is not None and session.failed is None:
            session.failed = milter, stage

    def message_ended(self, connection: object, outcome: str) -> None:
        """
        Take note that a message is over.
        """
        self._sessions[connection].end_message()

    def connection_lost(self, connection: object, reason: Failure) -> None:
        """
        Write what has not been written yet.
        """
        session = self._sessions.pop(connection, None)
        if session is not None:
            session.finish()

    def _write(self, session: _Session) -> None:
        assert session.failed is not None
        milter, stage = session.failed
        if session.too_long:
            _log.warn(
                "The session in which milter {milter} failed in {stage} is not kept: it has more"
                " than {most} bytes",
                milter=milter,
                stage=stage,
                most=MOST_BYTES,
            )
            return
        try:
            if len(os.listdir(self._folder)) >= MOST_FILES:
                self._complain(f"there are {MOST_FILES} files already")
                return
            name = f"failure-{int(time.time())}-{os.getpid()}-{next(_NUMBERS)}.jsonl"
            path = self._folder / name
            stream = os.fdopen(open_private(path, "x"), "w", encoding="utf-8")
        except OSError as error:
            self._complain(error.strerror or str(error))
            return
        failure = _record(Recorder(stream, KINDS), session)
        if failure:
            self._complain(failure)
            return
        _log.info(
            "The session in which milter {milter} failed in {stage} is kept for yatxmilter replay:"
            " {path}",
            milter=milter,
            stage=stage,
            path=printable(str(path)),
        )

    def _complain(self, reason: str) -> None:
        # Once: there may be a failure for each message.
        if not self._told:
            self._told = True
            _log.warn(
                "Sessions in which milters fail are not kept in {path}: {reason}",
                path=printable(str(self._folder)),
                reason=reason,
            )


def _record(recorder: Recorder, session: _Session) -> str:
    now = time.time()
    recorder.begin(now)
    recorder.open(1, now)
    for from_mta, letter, payload in session.packets:
        recorder.packet(1, now, from_mta, letter, payload)
    recorder.close(1, now, "mta")
    recorder.end(now)
    return recorder.failure
