"""
A real OpenDKIM as a member of the list of milters, behind a real Postfix and a real Sendmail.

OpenDKIM signs with a key made for the test. What the MTA delivers is verified by dkimpy, which is
given the public half of the key in the place of DNS: a signature holds only if OpenDKIM was shown
exactly the message that was delivered. The MTA's door "example" leads to a process of ours in which
OpenDKIM's stand-in is; the example program is one such process.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from tests.ports import free_ports

from .control import ROOT
from .hosting import HostCase, connections_to
from .mta import Mta
from .postfix import Postfix
from .processes import (
    LOOPBACK,
    is_listening,
    require,
    require_program,
    start,
    stop,
    wait_until,
)
from .sendmail import Sendmail
from .sink import Delivery

EXAMPLE = ROOT / "examples" / "remote_milter.py"

MESSAGE = (
    b"From: Sender <sender@client.example>\r\n"
    b"To: Reader <rcpt@sink.example>\r\n"
    b"Subject: A test of\r\n signatures\r\n"
    b"Date: Thu, 02 Jan 2025 03:04:05 +0000\r\n"
    b"Message-Id: <1@client.example>\r\n"
    b"\r\n"
    b"First line\r\n"
    b"..dots \r\n"
    b"\r\n"
    b"last line\r\n"
)

_CONFIGURATION = """\
Domain client.example
Selector test
KeyFile {folder}/test.private
Socket {socket}
Mode {mode}
Canonicalization simple/simple
OversignHeaders From
InternalHosts 127.0.0.0/8
RequireSafeKeys no
Background no
Syslog no
TestPublicKeys {folder}/keys
"""


def require_opendkim() -> Any:
    """
    Skip the test without OpenDKIM, or without dkimpy, which is given.
    """
    require_program("opendkim")
    require_program("opendkim-genkey")
    try:
        return importlib.import_module("dkim")
    except ImportError:
        require(False, "dkimpy is not installed")


#: A milter of ours, whose edit has to be under the signature.
TAGGING = """
from yatxmilter import Milter

class Tag(Milter):
    def __init__(self, factory, protocol, tag):
        super().__init__(factory, protocol)
        self.tag = tag

    def xxfi_eom(self):
        self.smfi_chgheader("Subject", 1, self.tag)
"""

#: A file of serve that needs no Python for OpenDKIM.
SERVE = """
listen = ["inet:127.0.0.1:{port}"]
merge = "chain"

[[milter]]
object = "tagging:Tag"
options = {{ tag = "ours" }}

[[milter]]
remote = "{remote}"
name = "OpenDKIM"
timeout = 20
{more}
"""


class OpenDkim:
    """
    An OpenDKIM that signs, and its key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        genkey = require_program("opendkim-genkey")
        command = [genkey, "-b", "2048", "-D", folder, "-d", "client.example", "-s", "test"]
        subprocess.run(command, check=True)
        # The record of a zone file, in pieces: ( "v=DKIM1; ..." "p=..." ).
        record = "".join(re.findall(r'"([^"]*)"', (folder / "test.txt").read_text()))
        self.public_key = record.encode("ascii")
        (folder / "keys").write_text(f"test._domainkey.client.example {record}\n")

    @property
    def address(self) -> str:
        """
        Where it listens.
        """
        return f"inet:{self.port}@{LOOPBACK}"

    def start(self, mode: str = "s") -> None:
        """
        Start it.

        :param mode: ``s`` signs, ``v`` verifies.
        """
        configuration = self.folder / "opendkim.conf"
        configuration.write_text(
            _CONFIGURATION.format(folder=self.folder, socket=self.address, mode=mode)
        )
        log = self.folder / "opendkim.log"
        self._process = process = start(
            [require_program("opendkim"), "-f", "-x", configuration], log
        )
        wait_until(
            lambda: is_listening(self.port) or process.poll() is not None, "OpenDKIM to listen"
        )
        if process.poll() is not None:
            raise AssertionError(f"OpenDKIM did not start: {log.read_text()}")

    def stop(self) -> None:
        """
        Stop it at once: asked to end, libmilter takes five seconds.
        """
        if self._process is not None:
            stop(self._process, patience=0)
            self._process = None


class OpenDkimCase(HostCase):
    """
    A test with OpenDKIM.
    """

    def setUp(self) -> None:
        """
        Start OpenDKIM.
        """
        self._dkim = require_opendkim()
        super().setUp()
        self.opendkim = OpenDkim(self.folder)
        self.addCleanup(self.opendkim.stop)
        self.opendkim.start()

    def run_alone(self, **options: Any) -> None:
        """
        Run OpenDKIM's stand-in alone.
        """
        self.run_remote(self.opendkim.address, name="OpenDKIM", **options)

    def run_serve(self, **options: str) -> None:
        """
        Run ``serve`` with a file that has a milter of ours, and OpenDKIM behind it.
        """
        port = self.mta.addresses.example_port
        (self.folder / "tagging.py").write_text(TAGGING)
        lines = [f"{name} = {value}" for name, value in options.items()]
        configuration = self.folder / "serve.toml"
        configuration.write_text(
            SERVE.format(port=port, remote=self.opendkim.address, more="\n".join(lines))
        )
        # The folder has the milter's module.
        path = f"import sys; sys.path.insert(0, {str(self.folder)!r})"
        main = "from yatxmilter.__main__ import main; sys.exit(main())"
        self.run_program("-c", f"{path}; {main}", "serve", "--config", configuration)

    def run_example(self) -> None:
        """
        Run the example: two milters that edit, and then OpenDKIM.
        """
        port = self.mta.addresses.example_port
        endpoint = f"tcp:{port}:interface={LOOPBACK}"
        self.run_program(EXAMPLE, endpoint, self.opendkim.address)

    def sent(self) -> Delivery:
        """
        Send the message, and give it as delivered.
        """
        self.sink.clear()
        return self.deliver(MESSAGE, door="example")

    def verifies(self, data: bytes) -> bool:
        """
        Tell whether a message has a signature, and whether that holds.
        """

        def look_up(name: bytes, timeout: int = 5) -> bytes | None:
            return {b"test._domainkey.client.example.": self.opendkim.public_key}.get(name)

        self.assertEqual(data.count(b"DKIM-Signature:"), 1, data)
        return bool(self._dkim.verify(data, dnsfunc=look_up))

    def assert_signed(self, delivery: Delivery) -> None:
        """
        Check that the signature of a delivery holds, and would not if a letter were another.
        """
        self.assertTrue(self.verifies(delivery.data), delivery.data)
        self.assertFalse(self.verifies(delivery.data.replace(b"last line", b"last link")))
        self.assertFalse(self.verifies(delivery.data.replace(b"A test", b"A text")))


class _OpenDkimTests:
    """
    What holds behind either MTA.
    """

    def test_what_opendkim_signs_as_only_member_is_what_is_delivered(self: Any) -> None:
        """
        What OpenDKIM signs as the only member is what is delivered.
        """
        self.run_alone()
        delivery = self.sent()
        self.assert_signed(delivery)
        self.assertEqual(delivery.body, MESSAGE.partition(b"\r\n\r\n")[2])

    def test_signs_what_others_made(self: Any) -> None:
        """
        In a chain OpenDKIM signs the message as the milters before it have edited it: the example
        keeps what it promises.
        """
        self.run_example()
        delivery = self.sent()
        self.assert_signed(delivery)
        (subject,) = delivery.values("Subject")
        self.assertTrue(subject.startswith(b"[friends] A test of"), subject)
        self.assertEqual(delivery.values("List-Id"), [b"<friends.lists.example.com>"])
        self.assertTrue(
            delivery.body.endswith(
                b"last line\r\n-- \r\nThe list of friends, https://lists.example.com/friends\r\n"
            )
        )
        # Nothing went wrong; each message has a line.
        ready, *messages = self.log.read_text().splitlines()
        self.assertIn("Ready, listening on", ready)
        self.assertEqual([line for line in messages if "#info" not in line], [])

    def test_file_of_serve_puts_opendkim_behind_a_milter_of_ours(self: Any) -> None:
        """
        A file of ``serve`` puts OpenDKIM behind a milter of ours: it signs what that has edited.
        """
        self.run_serve()
        delivery = self.sent()
        self.assertTrue(self.verifies(delivery.data), delivery.data)
        self.assertEqual(delivery.values("Subject"), [b"ours"])
        self.assertFalse(self.verifies(delivery.data.replace(b"Subject: ours", b"Subject: oars")))

    def test_serve_with_a_condition(self: Any) -> None:
        """
        Which mail OpenDKIM is for, and what is answered without it, is said in the file.
        """
        self.run_serve(when="{ sender_matches = 'other.example' }")
        self.assertNotIn(b"DKIM-Signature", self.sent().data)
        self.opendkim.stop()
        self.assertNotIn(b"DKIM-Signature", self.sent().data)

    def test_several_messages_in_one_smtp_connection_are_each_signed(self: Any) -> None:
        """
        Several messages in one SMTP connection are each signed; one that was given up between them
        does no harm.
        """
        self.run_alone()
        client = self.connect("example")
        self.assertReply(client.message(MESSAGE), 250)
        client.command("MAIL FROM:<sender@client.example>")
        client.command("RCPT TO:<rcpt@sink.example>")
        self.assertReply(client.command("RSET"), 250)
        self.assertReply(client.message(MESSAGE), 250)
        client.quit()
        for delivery in self.sink.wait(2):
            self.assert_signed(delivery)

    def test_away_and_back(self: Any) -> None:
        """
        Without OpenDKIM ``on_error`` answers; when it is back, it signs again.
        """
        self.run_alone()
        self.opendkim.stop()
        self.assertReply(self.send(MESSAGE, door="example"), 451)
        self.assertIn("Milter OpenDKIM failed in xxfi_negotiate", self.log.read_text())
        self.opendkim.start()
        self.assert_signed(self.sent())

    def test_goes_on_without(self: Any) -> None:
        """
        With SMFIS_CONTINUE for ``on_error`` mail goes on unsigned, whenever OpenDKIM goes away.
        """
        self.run_alone(on_error=0)
        client = self.connect("example")
        self.assertReply(client.message(MESSAGE), 250)
        self.opendkim.stop()
        self.assertReply(client.message(MESSAGE), 250)
        self.assertReply(client.message(MESSAGE), 250)
        client.quit()
        signed = [b"DKIM-Signature" in delivery.data for delivery in self.sink.wait(3)]
        self.assertEqual(sorted(signed), [False, False, True])
        self.assertEqual(self.log.read_text().count("Milter OpenDKIM failed"), 1)

    def test_reuse_is_safe(self: Any) -> None:
        """
        OpenDKIM answers the end of a message ACCEPT, behind which libmilter drops QUIT_NC: it is
        given a connection for each SMTP connection, even if it was said that one may do for all.
        """
        self.run_alone(reuse=True)
        for _ in range(3):
            self.assert_signed(self.sent())
        wait_until(lambda: connections_to(self.opendkim.port) == 0, "connections to be closed")


class PostfixTests(_OpenDkimTests, OpenDkimCase):
    """
    Behind Postfix.
    """

    mta_class: ClassVar[type[Mta]] = Postfix


class SendmailTests(_OpenDkimTests, OpenDkimCase):
    """
    Behind Sendmail.
    """

    mta_class: ClassVar[type[Mta]] = Sendmail
