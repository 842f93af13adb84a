"""
A real Sendmail between an SMTP client of ours and the milter, with a sink behind it.

Everything but the milter shares one core; the time of a message is the client's, from MAIL to the
reply to the end of data.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

from tests.mta.mta import Addresses
from tests.mta.sendmail import Sendmail
from tests.mta.sink import Sink
from tests.mta.smtp import SmtpClient
from tests.ports import free_ports

from .build import Unavailable
from .generator import Wrong


class Mail:
    """
    Mail that goes through Sendmail.

    :ivar milter_port: Where the milter has to listen.
    """

    def __init__(self, mta: Sendmail, sink: Sink) -> None:
        self._mta = mta
        self._sink = sink
        self.milter_port = mta.addresses.milter_port

    def send(self, headers: int, seconds: float) -> list[float]:
        """
        Send messages for some time, and give the seconds of each.

        :raises Wrong: when one was refused, or came without the milter's header field.
        """
        fields = (b"X-Field-%d: some value or other\r\n" % number for number in range(headers))
        message = b"".join(fields) + b"\r\n" + b"some line of a body\r\n" * 200
        times: list[float] = []
        self._sink.clear()
        client = SmtpClient(self._mta.ports["inet"])
        client.ehlo()
        until = time.monotonic() + seconds
        while time.monotonic() < until or not times:
            began = time.monotonic()
            reply = client.message(message)
            times.append(time.monotonic() - began)
            if reply.code != 250:
                raise Wrong(f"Sendmail answered {reply}")
        client.quit()
        for delivery in self._sink.wait(len(times)):
            if delivery.values("X-Bench") != [b"seen"]:
                raise Wrong("a message came without X-Bench: seen")
        return times


@contextlib.contextmanager
def sendmail() -> Iterator[Mail]:
    """
    Run a Sendmail.

    :raises Unavailable: when there is none.
    """
    try:
        Sendmail.require_installed()
    except (unittest.SkipTest, AssertionError) as reason:
        raise Unavailable(str(reason)) from reason
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as name:
        folder = Path(name)
        # The daemon's own user has to pass.
        folder.chmod(0o755)
        sink = Sink()
        milter_port, example_port = free_ports(2)
        addresses = Addresses(folder / "milter.sock", milter_port, sink.port, example_port)
        mta = Sendmail(folder, addresses)
        try:
            mta.start()
            yield Mail(mta, sink)
        finally:
            mta.stop()
            sink.stop()
