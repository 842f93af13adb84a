"""
Refuse viruses: each message goes to ClamAV's daemon over its socket, by its INSTREAM command.

The body is sent in pieces, as fast as the daemon takes them. While the daemon is away mail is put
off. Messages above 25 MB, which clamd of any version takes by default, pass without a look.

    python clamav.py [ENDPOINT [CLAMD]]         # default: unix:/run/clamav/clamd.ctl
"""

import struct
import sys

from twisted.internet import endpoints, reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.protocols.basic import FileSender

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters


def framed(piece):
    """
    Put its length before a piece; a piece of length nought is the last.
    """
    return struct.pack("!L", len(piece)) + piece


class Clamd(Protocol):
    """
    One scan.

    :ivar answer: A Deferred of what the daemon says.
    """

    def __init__(self):
        self.answer = Deferred()
        self.received = b""

    async def scan(self, file):
        self.transport.write(b"zINSTREAM\0")
        await FileSender().beginFileTransfer(file, self.transport, framed)
        self.transport.write(framed(b""))

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        # It closes the connection after its answer.
        self.answer.callback(self.received.rstrip(b"\0").decode("utf-8", "replace"))


class VirusScanner(MessageMilter):
    """
    Have each message scanned.
    """

    may_edit = ()
    max_size = 25_000_000

    async def message(self, msg):
        with msg.open_bytes() as message:
            said = await self.factory.scan(message)
        if said.endswith(" FOUND"):
            name = said.removesuffix(" FOUND").partition(": ")[2]
            return msg.reject(550, "5.7.1", f"refused: it contains {name}")
        if not said.endswith(": OK"):
            return msg.tempfail(451, "4.7.1", "cannot scan for viruses now, try again later")
        return None


class VirusScannerFactory(MilterFactory):
    """
    Know where the daemon is, and for how many seconds to wait for it.
    """

    def __init__(self, clamd, clock=reactor, patience=120):
        super().__init__(VirusScanner)
        self.clamd, self.clock, self.patience = clamd, clock, patience

    async def scan(self, file):
        """
        Give the daemon's answer, or nothing where there is none.
        """
        try:
            daemon = await endpoints.connectProtocol(self.clamd, Clamd())
        except ConnectError:
            return ""
        late = self.clock.callLater(self.patience, daemon.transport.abortConnection)
        # Not awaited: it may answer before it has read everything.
        sending = Deferred.fromCoroutine(daemon.scan(file))
        sending.addErrback(lambda failure: None)
        answer = await daemon.answer
        await sending
        if late.active():
            late.cancel()
        return answer


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    clamd = argv[1] if argv[1:] else "unix:/run/clamav/clamd.ctl"
    scanners = VirusScannerFactory(endpoints.clientFromString(reactor, clamd))
    factory = MilterProtocolFactory(scanners)
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
