"""
Recorded sessions: what `trace` keeps and `replay` reads.

A record is lines of JSON, of which docs/tools.md has the full description. Each recording begins
with a line that names the format and ends with one that counts what there is, so that a record that
was cut can be told from a whole one; `trace --append` puts recordings one behind the other.
Payloads are text in UTF-8, and bytes that are none stand as lone surrogates, as everywhere in this
package: readable, and exact.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, BinaryIO, Final, NamedTuple, TextIO

from yatxmilter._records.decoding import decode_packet
from yatxmilter._records.record_redaction import KINDS, Redactor
from yatxmilter._wire.payloads import from_text, to_text

__all__ = [
    "VERSION",
    "Packet",
    "RecordError",
    "Recorder",
    "Session",
    "is_end",
    "iso_time",
    "record_lines",
    "read_sessions",
]

#: The version of the format.
VERSION: Final = 1

_FORMAT: Final = "yatxmilter-record"
# The longest packet takes six characters for each byte, where none of them is text.
_LONGEST_LINE: Final = 16 * 1024 * 1024
# What is in memory of open connections at most; for each packet this is added to its payload.
_MOST_KEPT: Final = 256 * 1024 * 1024
_PACKET_SIZE: Final = 200

_SIDES: Final = {"mta": True, "milter": False}


class RecordError(Exception):
    """
    A record that cannot be used.
    """


class Packet(NamedTuple):
    """
    A recorded packet.

    :ivar line: Where it stands in the record.
    """

    line: int
    from_mta: bool
    letter: int
    payload: bytes


@dataclass
class Session:
    """
    What went over one connection.

    :ivar connection: Its number in its recording.
    :ivar line: Where it begins in the record.
    :ivar closed_by: ``"mta"``, ``"milter"`` or ``"trace"``; empty when the record ends before.
    :ivar undecoded: Why what followed is not there, if something did.
    :ivar redacted: What was left out, of `KINDS`.
    :ivar size: About how much memory its packets take.
    """

    connection: int
    line: int
    redacted: frozenset[str] = frozenset()
    packets: list[Packet] = field(default_factory=list)
    closed_by: str = ""
    undecoded: str = ""
    size: int = 0


def iso_time(seconds: float) -> str:
    """
    Write seconds since 1970 as date and time, in UTC.
    """
    when = datetime.fromtimestamp(seconds, timezone.utc)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


# ---- writing


class Recorder:
    """
    Write a record.

    :param stream: Where to; it has to be line-buffered for others to see what there is.
    :param redact: What to leave out, of `KINDS`.
    :ivar failure: Why the record is not complete; empty while it is.
    """

    def __init__(self, stream: TextIO, redact: Collection[str] = ()) -> None:
        self._stream = stream
        self._redactor = Redactor(redact)
        self._connections = self._packets = 0
        self.failure = ""

    def begin(self, time: float) -> None:
        """
        Write the line that names the format.
        """
        redacted = list(self._redactor.kinds)
        self._write("record", time, format=_FORMAT, version=VERSION, redacted=redacted)

    def open(self, connection: int, time: float) -> None:
        """
        Note a new connection.
        """
        self._connections += 1
        self._write("open", time, connection=connection)

    def packet(
        self, connection: int, time: float, from_mta: bool, letter: int, payload: bytes
    ) -> None:
        """
        Write a packet down, redacted if that is asked for.
        """
        self._packets += 1
        kept = self._redactor.redact(from_mta, letter, payload)
        self._write(
            "packet",
            time,
            connection=connection,
            **{"from": "mta" if from_mta else "milter"},
            letter=chr(letter),
            name=decode_packet(from_mta, letter, b"").name,
            payload=to_text(kept),
        )

    def undecoded(self, connection: int, time: float, from_mta: bool, reason: str) -> None:
        """
        Note that what follows from this side is not the milter protocol.
        """
        side = "mta" if from_mta else "milter"
        self._write("undecoded", time, connection=connection, **{"from": side}, reason=reason)

    def close(self, connection: int, time: float, by: str) -> None:
        """
        Note the end of a connection.
        """
        self._write("close", time, connection=connection, by=by)

    def end(self, time: float) -> None:
        """
        Write the line that counts, and close the file.
        """
        self._write("end", time, connections=self._connections, packets=self._packets)
        try:
            self._stream.close()
        except OSError as error:
            self.failure = self.failure or str(error)

    def _write(self, kind: str, time: float, **fields: Any) -> None:
        if self.failure:
            return
        try:
            line = {"type": kind, "time": iso_time(time), **fields}
            self._stream.write(json.dumps(line) + "\n")
        except OSError as error:
            # A full disk must not hold up mail.
            self.failure = error.strerror or str(error)


# ---- reading


def is_end(line: bytes) -> bool:
    """
    Tell whether this is the line that ends a recording.
    """
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and item.get("type") == "end" and line.endswith(b"\n")


def record_lines(file: BinaryIO) -> Iterator[bytes]:
    """
    Read the lines of a record; of one that is too long only its beginning, without a line end.
    """
    # Not by the file's own iterator: it would read a line of any length.
    return iter(lambda: file.readline(_LONGEST_LINE + 1), b"")


def read_sessions(lines: Iterable[bytes], *, partial: bool = False) -> Iterator[Session]:
    """
    Read the sessions of a record, each when its connection has been closed.

    What is in memory is the connections that are open at one time; they may have 256 MiB together.

    :param lines: As `record_lines` gives them.
    :param partial: Take a record that was cut for what there is of it.
    :raises RecordError: for anything that is not a record, with the number of the line.
    """
    reader = _Reader(partial)
    number = 0
    for number, line in enumerate(lines, 1):
        if partial and not line.endswith(b"\n") and len(line) <= _LONGEST_LINE:
            break
        yield from reader.read(number, line)
    yield from reader.finish(number)


class _Reader:
    def __init__(self, partial: bool) -> None:
        self._partial = partial
        self._line = 0
        self._open: dict[int, Session] = {}
        self._redacted: frozenset[str] | None = None
        self._seen: set[int] = set()
        self._packets = 0
        self._kept = 0

    def read(self, number: int, line: bytes) -> Iterator[Session]:
        self._line = number
        if len(line) > _LONGEST_LINE:
            raise self._wrong(f"has more than {_LONGEST_LINE} bytes: is it a record at all?")
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = "" if line.endswith(b"\n") else "; the record was cut here"
            raise self._wrong(f"is not JSON: {error}{cut}") from None
        if not isinstance(item, dict):
            raise self._wrong(f"is {item!r:.60}, expected an object")
        kind = item.get("type")
        if kind == "record":
            yield from self._begin(item)
        elif self._redacted is None:
            raise self._wrong(f'is of type {kind!r:.60}, expected "record": is it a record at all?')
        elif kind == "open":
            self._open_session(item)
        elif kind == "packet":
            self._packets += 1
            self._keep(self._session(item), self._packet(item))
        elif kind == "undecoded":
            reason = self._value(item, "reason", str)
            self._session(item).undecoded = f"line {number}: {reason}"
        elif kind == "close":
            session = self._session(item)
            session.closed_by = self._one_of(item, "by", ("mta", "milter", "trace"))
            self._kept -= session.size
            yield self._open.pop(session.connection)
        elif kind == "end":
            self._end(item)
        else:
            raise self._wrong(f"is of an unknown type, {kind!r:.60}")

    def finish(self, number: int) -> Iterator[Session]:
        self._line = number
        if not number:
            raise RecordError("the record is empty")
        yield from self._cut("ends without a line of type end")

    def _begin(self, item: dict[str, Any]) -> Iterator[Session]:
        yield from self._cut("begins a new recording before the end of the last one")
        if self._value(item, "format", str) != _FORMAT:
            raise self._wrong(f"has the format {item['format']!r:.60}, expected {_FORMAT!r}")
        version = self._value(item, "version", int)
        if version != VERSION:
            raise self._wrong(f"has version {version}, expected {VERSION}")
        redacted = self._value(item, "redacted", list)
        if not all(kind in KINDS for kind in redacted):
            raise self._wrong(f"has redacted {redacted!r:.60}, expected some of {', '.join(KINDS)}")
        self._redacted = frozenset(redacted)
        self._seen.clear()
        self._packets = 0

    def _cut(self, how: str) -> Iterator[Session]:
        if self._redacted is None:
            return
        if not self._partial:
            raise self._wrong(f"{how}: it was cut, or is still being written (see --partial)")
        yield from self._open.values()
        self._open.clear()
        self._kept = 0

    def _end(self, item: dict[str, Any]) -> None:
        there = {"connections": len(self._seen), "packets": self._packets}
        for what, count in there.items():
            if self._value(item, what, int) != count:
                raise self._wrong(f"counts {item[what]} {what}, but {count} are there")
        if self._open:
            raise self._wrong(f"ends the recording, but connection {min(self._open)} is open")
        self._redacted = None

    def _open_session(self, item: dict[str, Any]) -> None:
        number = self._value(item, "connection", int)
        if number in self._seen:
            raise self._wrong(f"opens connection {number} a second time")
        self._seen.add(number)
        self._open[number] = Session(number, self._line, self._redacted or frozenset())

    def _session(self, item: dict[str, Any]) -> Session:
        number = self._value(item, "connection", int)
        if number not in self._open:
            raise self._wrong(f"is of connection {number}, which is not open")
        return self._open[number]

    def _keep(self, session: Session, packet: Packet) -> None:
        size = len(packet.payload) + _PACKET_SIZE
        session.packets.append(packet)
        session.size += size
        self._kept += size
        if self._kept > _MOST_KEPT:
            raise self._wrong(
                f"brings what is kept of open connections to more than {_MOST_KEPT} bytes: a"
                " session is played when it is whole, so record fewer, or shorter, ones"
            )

    def _packet(self, item: dict[str, Any]) -> Packet:
        side = self._one_of(item, "from", _SIDES)
        letter = self._value(item, "letter", str)
        if len(letter) != 1 or ord(letter) > 255:
            raise self._wrong(f"has the letter {letter!r:.60}, expected one character")
        try:
            payload = from_text(self._value(item, "payload", str))
        except UnicodeEncodeError as error:
            raise self._wrong(f"has a payload that is not bytes: {error}") from None
        return Packet(self._line, _SIDES[side], ord(letter), payload)

    def _one_of(self, item: dict[str, Any], key: str, values: Iterable[str]) -> str:
        value: str = self._value(item, key, str)
        if value not in values:
            raise self._wrong(f"has {key} {value!r:.60}, expected {' or '.join(values)}")
        return value

    def _value(self, item: dict[str, Any], key: str, kind: type) -> Any:
        value = item.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = f"is {value!r:.60}" if key in item else "is missing"
            raise self._wrong(f"needs {key}, {_KIND_NAMES[kind]}, which {found}")
        return value

    def _wrong(self, what: str) -> RecordError:
        return RecordError(f"line {self._line} {what}")


_KIND_NAMES: Final = {str: "a text", int: "a number", list: "a list"}
