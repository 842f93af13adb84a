"""
Twisted's SMTP server with milters over TLS: a real handshake with Python's own clients, which check
the certificate.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tests.smtp_session import MESSAGE, RECEIVED_LINES, RECIPIENT, SENDER, Mailbox, recorder
from yatxmilter import Milter, MilterFactory
from yatxmilter.smtp import MilterSMTPFactory, SMTPMilters

#: Seconds after which a client gives up.
PATIENCE = 60


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """
    Make a key, and a certificate for the loopback address that is its own authority.
    """
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=mx.example.com", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


def session(port: int, certificate: Path) -> tuple[Any, ...]:
    """
    Send a message as a careful client does; runs in a thread.

    :return: The extensions before and after the handshake, and the version of TLS.
    """
    with smtplib.SMTP("127.0.0.1", port, "client.example", PATIENCE) as client:
        client.ehlo()
        before = set(client.esmtp_features)
        client.starttls(context=ssl.create_default_context(cafile=str(certificate)))
        client.ehlo()
        after = set(client.esmtp_features)
        assert isinstance(client.sock, ssl.SSLSocket)
        version, cipher = client.sock.version(), client.sock.cipher()
        client.sendmail(SENDER, RECIPIENT, b"\r\n".join(MESSAGE))
        return before, after, version, cipher


def smuggling(port: int, certificate: Path) -> list[bytes]:
    """
    Send commands in the clear right behind STARTTLS, then talk over TLS; runs in a thread.

    :return: What is answered over TLS.
    """
    context = ssl.create_default_context(cafile=str(certificate))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as clear:
        answers = clear.makefile("rb", buffering=0)
        clear.sendall(b"EHLO client.example\r\n")
        while not answers.readline().startswith(b"250 "):
            pass
        clear.sendall(f"STARTTLS\r\nMAIL FROM:{SENDER}\r\n".encode())
        assert answers.readline().startswith(b"220 ")
        with context.wrap_socket(clear, server_hostname="127.0.0.1") as secure:
            secure.sendall(f"RCPT TO:{RECIPIENT}\r\nQUIT\r\n".encode())
            return secure.makefile("rb").read().splitlines()


class StartTlsTests(TestCase):
    """
    A server with a certificate.
    """

    def setUp(self) -> None:
        """
        Start the server on a free port.
        """
        try:
            from twisted.internet.ssl import PrivateCertificate
        except ImportError:
            raise SkipTest("there is no TLS: pyOpenSSL is not installed") from None
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        key, self.certificate = make_certificate(Path(folder.name))
        own = PrivateCertificate.loadPEM(key.read_bytes() + self.certificate.read_bytes())
        self.calls: list[tuple[Any, ...]] = []
        self.macros: list[dict[str, str | None]] = []
        self.mailbox = Mailbox()
        self.milters = SMTPMilters(MilterFactory(recorder(self.calls, envfrom=self.look)))
        factory = MilterSMTPFactory(
            self.milters, self.mailbox, contextFactory=own.options(), domain=b"mx.example.com"
        )
        self.port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(self.milters.drain, PATIENCE)
        self.addCleanup(self.port.stopListening)

    def look(self, milter: Milter) -> None:
        """
        Note what the milter is told of TLS.
        """
        names = ("{tls_version}", "{cipher}", "{cipher_bits}")
        self.macros.append({name: milter.smfi_getsymval(name) for name in names})

    @inlineCallbacks
    def test_client_that_verifies_certificate_gets_its_message_through(self) -> Any:
        """
        A client that verifies the certificate gets its message through; the milter knows of TLS.
        """
        talk = deferToThread(session, self.port.getHost().port, self.certificate)
        before, after, version, cipher = yield talk
        self.assertIn("starttls", before)
        self.assertNotIn("starttls", after)
        name, _, bits = cipher
        self.assertEqual(
            self.macros, [{"{tls_version}": version, "{cipher}": name, "{cipher_bits}": str(bits)}]
        )
        # Before the handshake and behind it.
        self.assertEqual([call[0] for call in self.calls].count("helo"), 2)
        [kept] = self.mailbox.kept
        self.assertEqual((kept.end, kept.lines[len(RECEIVED_LINES) :]), ("eom", MESSAGE))

    @inlineCallbacks
    def test_clear_text_behind_starttls_is_not_taken_as_said_over_tls(self) -> Any:
        """
        What came in the clear behind STARTTLS is not taken for something said over TLS.
        """
        answers = yield deferToThread(smuggling, self.port.getHost().port, self.certificate)
        self.assertEqual(answers, [b"503 Must have sender before recipient", b"221 See you later"])
        self.assertEqual(self.macros, [])

    @inlineCallbacks
    def test_client_that_says_nothing_over_tls_is_told_that_server_is_leaving(self) -> Any:
        """
        A client that says nothing over TLS is told that the server is leaving, over TLS.
        """

        def wait(port: int) -> list[bytes]:
            context = ssl.create_default_context(cafile=str(self.certificate))
            with smtplib.SMTP("127.0.0.1", port, "client.example", PATIENCE) as client:
                client.starttls(context=context)
                client.ehlo()
                reactor.callFromThread(self.milters.drain)
                assert client.file is not None
                said: list[bytes] = client.file.read().splitlines()
                client.close()
                return said

        said = yield deferToThread(wait, self.port.getHost().port)
        self.assertEqual(said, [b"421 4.3.2 mx.example.com is shutting down"])
