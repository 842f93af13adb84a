"""
TLS for tests: a certificate, and an MTA that speaks TLS, in memory.

The MTA's side is that of Python's own ``ssl``, so that two implementations meet.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest
from zope.interface import implementer

from .conversation_helpers import PEER
from .remotes import Remote

NAME = "milter.example.com"


@lru_cache
def certificate() -> tuple[Any, Any]:
    """
    Make a certificate that is its own authority.

    :return: Its key, and itself, as pyOpenSSL has them.
    :raises SkipTest: where there is no TLS.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from OpenSSL import crypto
    except ImportError:
        raise SkipTest("there is no TLS: pyOpenSSL is not installed") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now, day = datetime.now(timezone.utc), timedelta(days=1)
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=now - day,
        not_valid_after=now + day,
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), False)
    own = builder.sign(key, hashes.SHA256())
    return crypto.PKey.from_cryptography_key(key), crypto.X509.from_cryptography(own)


def serving_tls(factory: Any, clock: Any) -> Any:
    """
    Put TLS in front of a factory.
    """
    key, own = certificate()
    from twisted.internet.ssl import CertificateOptions
    from twisted.protocols.tls import TLSMemoryBIOFactory

    options = CertificateOptions(privateKey=key, certificate=own)
    wrapping: Any = TLSMemoryBIOFactory(options, False, factory)
    # It gathers small writes for a turn.
    wrapping._clock = clock
    return wrapping


@implementer(IStreamClientEndpoint)
class SecureRemote:
    """
    A remote milter that is connected to over TLS; trusted is the certificate of `certificate`.

    :param remote: The milter, which may be behind `serving_tls`.
    :param clock: What gathers small writes, there and here.
    :param name: What it is called.
    :param trusting: Whether the certificate is trusted.
    """

    def __init__(
        self, remote: Remote, clock: Clock, *, name: str = NAME, trusting: bool = True
    ) -> None:
        own = certificate()[1]
        from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

        self._remote = remote
        self._clock = clock
        roots = trustRootFromCertificates([Certificate(own)] if trusting else [])
        self._options = optionsForClientTLS(name, trustRoot=roots)

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """
        Connect.
        """
        from twisted.protocols.tls import TLSMemoryBIOFactory

        wrapping: Any = TLSMemoryBIOFactory(self._options, True, protocolFactory)
        wrapping._clock = self._clock
        # What it wraps is forgotten when the connection is over, which it may be at once.
        wrapped: list[Any] = []
        build = protocolFactory.buildProtocol
        protocolFactory.buildProtocol = lambda address: wrapped.append(build(address)) or wrapped[0]
        return self._remote.connect(wrapping).addCallback(lambda _: wrapped[0])

    def pump(self) -> bool:
        """
        Carry bytes; tell whether there were any.
        """
        self._clock.advance(0)
        return self._remote.pump()


class _Wire(StringTransport):
    """
    The milter's TCP connection.
    """

    def __init__(self) -> None:
        super().__init__(peerAddress=PEER, lenient=True)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Do nothing.
        """

    def stopReading(self) -> None:
        """
        Do what the reactor's transports do.
        """
        self.pauseProducing()


class SecureMta:
    """
    An MTA that connects to a factory over TLS.

    :param factory: A `MilterProtocolFactory`, or what wraps it.
    :ivar transport: The milter's TCP connection: it is read from while it is not paused.
    :ivar tls: The MTA's side.
    :ivar received: What came.
    """

    def __init__(self, factory: Any, clock: Clock) -> None:
        self._clock = clock
        self.protocol = serving_tls(factory, clock).buildProtocol(PEER)
        self.transport = _Wire()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._from_milter, self._to_milter = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._from_milter, self._to_milter)
        self.received = b""
        self.protocol.makeConnection(self.transport)

    @property
    def closed(self) -> bool:
        """
        Whether the milter has closed the TCP connection.
        """
        return self.transport.disconnecting

    def shake_hands(self) -> None:
        """
        Do the handshake.
        """
        for _ in range(3):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.carry()
        self.carry()

    def send(self, data: bytes) -> None:
        """
        Send something, and read what there is.
        """
        self.tls.write(data)
        self.carry()

    def agree_to_close(self) -> None:
        """
        Answer the milter's wish to close.
        """
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.carry()

    def carry(self) -> None:
        """
        Carry bytes both ways.
        """
        if self.transport.producerState == "producing" and self._to_milter.pending:
            self.protocol.dataReceived(self._to_milter.read())
        self._clock.advance(0)
        self._from_milter.write(self.transport.value())
        self.transport.clear()
        # There is no more, or no handshake yet.
        with suppress(ssl.SSLError):
            while data := self.tls.read(1 << 16):
                self.received += data

    def lose(self, reason: Exception | None = None) -> None:
        """
        Lose the TCP connection.
        """
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))
