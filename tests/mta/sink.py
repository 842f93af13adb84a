"""
The SMTP server to which the MTAs deliver: it accepts all mail and keeps it as it came.

It runs in threads of the test's own process, so a test just looks at the ``deliveries``.
"""

from __future__ import annotations

import re
import socketserver
import threading
from dataclasses import dataclass, field

from .processes import LOOPBACK, PATIENCE

_EXTENSIONS = (b"sink.example.test", b"8BITMIME", b"SIZE", b"DSN", b"SMTPUTF8")


@dataclass(frozen=True)
class Path:
    """
    An address as it stands in MAIL or RCPT, and the ESMTP arguments after it.
    """

    address: str
    args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: bytes) -> Path:
        """
        Read what follows ``MAIL FROM:`` or ``RCPT TO:``.
        """
        address, *args = line.decode("utf-8", "surrogateescape").split()
        return cls(address, tuple(args))


@dataclass
class Delivery:
    """
    One message as it was delivered, dot-stuffing undone.
    """

    sender: Path
    recipients: list[Path] = field(default_factory=list)
    data: bytes = b""

    @property
    def fields(self) -> list[tuple[str, bytes]]:
        """
        The header fields as name and raw value (with its blanks and folds, without the last CRLF).
        """
        header = self.data.partition(b"\r\n\r\n")[0]
        lines = re.split(rb"\r\n(?![ \t])", header)
        pairs = (line.partition(b":") for line in lines)
        return [(name.decode("latin-1"), value) for name, _, value in pairs]

    @property
    def body(self) -> bytes:
        """
        What follows the empty line after the header.
        """
        return self.data.partition(b"\r\n\r\n")[2]

    def values(self, name: str) -> list[bytes]:
        """
        The values of all header fields of one name, one blank after the colon removed.
        """
        return [v.removeprefix(b" ") for n, v in self.fields if n.lower() == name.lower()]

    def names(self) -> list[str]:
        """
        The names of the header fields in order, without the MTA's trace.
        """
        return [name for name, _ in self.fields if name != "Received"]

    def without_trace(self) -> bytes:
        """
        The message without the ``Received`` fields at its top.
        """
        return re.sub(rb"\A(Received:.*\r\n([ \t].*\r\n)*)+", b"", self.data)


class _Session(socketserver.StreamRequestHandler):
    """
    One SMTP session with an MTA.
    """

    server: Sink
    delivery: Delivery | None = None

    def handle(self) -> None:
        """
        Answer the MTA's commands until it goes.
        """
        self._say(b"220 sink.example.test ESMTP")
        for line in self.rfile:
            verb, _, rest = line.strip().partition(b" ")
            verb = verb.upper()
            if verb == b"QUIT":
                self._say(b"221 2.0.0 bye")
                return
            self._answer(verb, rest)

    def _answer(self, verb: bytes, rest: bytes) -> None:
        if verb == b"EHLO":
            for extension in _EXTENSIONS[:-1]:
                self._say(b"250-" + extension)
            self._say(b"250 " + _EXTENSIONS[-1])
        elif verb == b"DATA":
            assert self.delivery is not None
            self._say(b"354 go on")
            self.delivery.data = self._read_data()
            self.server.keep(self.delivery)
            self._say(b"250 2.0.0 kept")
        else:
            path = rest.partition(b":")[2]
            if verb == b"MAIL":
                self.delivery = Delivery(Path.parse(path))
            elif verb == b"RCPT" and self.delivery is not None:
                self.delivery.recipients.append(Path.parse(path))
            self._say(b"250 2.0.0 ok")

    def _read_data(self) -> bytes:
        lines: list[bytes] = []
        for line in self.rfile:
            if line == b".\r\n":
                return b"".join(lines)
            lines.append(line.removeprefix(b"."))
        raise AssertionError("the MTA left in the middle of a message")

    def _say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")


class Sink(socketserver.ThreadingTCPServer):
    """
    Listens on a free loopback port and keeps what is delivered.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Session)
        self.port: int = self.server_address[1]
        self.deliveries: list[Delivery] = []
        self._news = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def keep(self, delivery: Delivery) -> None:
        """
        Take a delivered message.
        """
        with self._news:
            self.deliveries.append(delivery)
            self._news.notify_all()

    def clear(self) -> None:
        """
        Forget all deliveries.
        """
        with self._news:
            self.deliveries.clear()

    def wait(self, count: int = 1) -> list[Delivery]:
        """
        Wait for that many deliveries, and give them in the order in which they came.
        """
        with self._news:
            if not self._news.wait_for(lambda: len(self.deliveries) >= count, PATIENCE):
                raise AssertionError(f"{len(self.deliveries)} of {count} messages delivered")
            return list(self.deliveries)

    def stop(self) -> None:
        """
        Stop listening.
        """
        self.shutdown()
        self.server_close()
