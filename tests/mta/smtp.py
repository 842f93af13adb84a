"""
An SMTP client that shows each reply whole, and that can misbehave.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from .processes import LOOPBACK, PATIENCE


@dataclass(frozen=True)
class Reply:
    """
    One SMTP reply: its code and the text of its lines.
    """

    code: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code} " + " | ".join(self.lines)


class Disconnected(Exception):
    """
    The MTA has closed the connection.
    """


class Dialogue:
    """
    A dialogue with an MTA over any pair of streams.  The banner is kept as ``banner``.
    """

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader = reader
        self._writer = writer
        self.banner = self.reply()

    def reply(self) -> Reply:
        """
        Read one reply, all its lines.
        """
        lines = []
        while True:
            try:
                line = self._reader.readline()
            except ConnectionError as error:
                raise Disconnected(str(error)) from error
            if not line:
                raise Disconnected("end of file")
            lines.append(line[4:].rstrip(b"\r\n").decode("utf-8", "surrogateescape"))
            if line[3:4] != b"-":
                return Reply(int(line[:3]), tuple(lines))

    def send(self, data: bytes) -> None:
        """
        Send bytes as they are.
        """
        self._writer.write(data)
        self._writer.flush()

    def command(self, line: str | bytes) -> Reply:
        """
        Send a command line and read the reply.
        """
        if isinstance(line, str):
            line = line.encode("utf-8", "surrogateescape")
        self.send(line + b"\r\n")
        return self.reply()

    def ehlo(self) -> Reply:
        """
        Say EHLO under the name that all tests use.
        """
        return self.command("EHLO client.example.test")

    def come_from(self, name: str, address: str) -> Reply:
        """
        Have Postfix take us for another client, and say EHLO as that one.
        """
        self.command(f"XCLIENT NAME={name} ADDR={address}")
        return self.ehlo()

    def content(self, message: bytes) -> Reply:
        """
        Send the text of a message and its end, after DATA was accepted.
        """
        stuffed = message.replace(b"\r\n.", b"\r\n..")
        self.send(stuffed + b".\r\n")
        return self.reply()

    def message(
        self,
        message: bytes,
        sender: str = "<sender@client.example>",
        recipients: Iterable[str] = ("<rcpt@sink.example>",),
    ) -> Reply:
        """
        Send a message up to the first refusal, and give the last reply.

        :param sender: as after ``MAIL FROM:``, with ESMTP arguments
        """
        reply = self.command(f"MAIL FROM:{sender}")
        for recipient in recipients:
            if reply.code == 250:
                reply = self.command(f"RCPT TO:{recipient}")
        if reply.code == 250:
            reply = self.command("DATA")
        return self.content(message) if reply.code == 354 else reply

    def quit(self) -> Reply:
        """
        Say QUIT and close.
        """
        reply = self.command("QUIT")
        self.close()
        return reply

    def close(self) -> None:
        """
        Close both streams without a word.
        """
        self._writer.close()
        self._reader.close()


class SmtpClient(Dialogue):
    """
    An SMTP connection to an MTA.
    """

    def __init__(self, port: int, host: str = LOOPBACK) -> None:
        self._socket = socket.create_connection((host, port), PATIENCE)
        super().__init__(self._socket.makefile("rb"), self._socket.makefile("wb"))

    def vanish(self) -> None:
        """
        Go as a crashed client does: reset the connection.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """
        Close the connection without a word, and without a fuss if it is closed.
        """
        with contextlib.suppress(OSError):
            super().close()
        self._socket.close()
