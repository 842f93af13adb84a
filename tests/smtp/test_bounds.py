"""
Twisted's SMTP server with milters: what strangers send to stop it, to fool it, or to fill memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.mail.imap4 import LOGINCredentials, PLAINCredentials
from twisted.mail.smtp import AddressError, SMTPBadRcpt, SMTPBadSender, SMTPServerError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from tests.growth import assert_linear
from tests.smtp.test_failures import Anonymous, Realm, TlsTransport
from tests.smtp_session import (
    MESSAGE,
    OTHER,
    RECEIVED_LINES,
    RECIPIENT,
    SENDER,
    Mailbox,
    Session,
    recorder,
)
from yatxmilter import Milter
from yatxmilter._mail import bounds
from yatxmilter.smtp import MilterESMTP, MilterSMTPFactory, SMTPMilters

Calls = list[tuple[Any, ...]]

#: What ends a line for somebody, moves a cursor, or turns text around.
CONTROLS = [
    *(b"\n", b"\r", b"\0", b"\x1b", b"\x7f", b"\x0b", b"\x0c", b"\x1c", b"\x08"),
    *("\x80".encode(), "\x85".encode(), "\x9b".encode(), "\u2028".encode(), "\u2029".encode()),
    *("\u202e".encode(), "\u2066".encode(), "\u200f".encode(), "\u061c".encode()),
]
LOCAL_ERROR = "451 Requested action aborted: local error in processing"
BAD_SYNTAX = "500 Error: bad syntax"


class Quits(BaseException):
    """
    What is no `Exception`.
    """


class CommandTests(SynchronousTestCase):
    """
    Line ends and control characters inside a command.
    """

    def test_nothing_is_kept(self) -> None:
        """
        A command with a line end or a control character in it is refused; nobody sees any of it.
        """
        for control in CONTROLS:
            for command in (
                b"HELO x%sFrom: ceo@bank.example",
                b"EHLO x%s",
                b'MAIL FROM:<"a%sb"@c.example>',
                b'MAIL FROM:<"a\\%s"@c.example>',
                b"MAIL FROM:<a@c.example> SIZE=1%sX=2",
                b"MAIL FROM:<a@c.example>%sRCPT TO:<b@c.example>",
                b'RCPT TO:<"a%s"@c.example>',
                b"RCPT TO:<a@c.example> NOTIFY=%s",
                b"NO%sOP",
                b"FOO %s",
                b"RS%sET\nNOOP\n",
            ):
                calls: Calls = []
                session = Session(recorder(calls))
                session.replies()
                said = session.say(command % control)
                self.assertEqual(said, [BAD_SYNTAX], (command, control))
                self.assertEqual([call[0] for call in calls], ["connect"])
                self.assertEqual(session.send(), ["250 Delivery in progress"])
                self.assertEqual(session.mailbox.kept[0].lines, [*RECEIVED_LINES, *MESSAGE])
                session.vanish()

    def test_tab_is_blank_between_words_and_not_part_of_address(self) -> None:
        """
        A tab is a blank between words, and not part of an address.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.replies()
        said = session.say(
            "HELO\tclient\t.example ", 'MAIL FROM:<"a\tb"@c.example>', f"MAIL\tFROM:{SENDER}\tX=1"
        )
        expected = ["250", "501", "250"]
        self.assertEqual([reply[:3] for reply in said], expected)
        said = session.say('RCPT TO:<"a\tb"@c.example>')
        self.assertEqual(said, ["501 5.1.3 Bad recipient address syntax"])
        self.assertEqual(calls[1:], [("helo", "client .example"), ("envfrom", [SENDER, "X=1"])])
        self.assertEqual(session.server._helo[0], b"client .example")

    def test_address_is_ascii_or_utf_8_and_not_endless(self) -> None:
        """
        An address is ASCII or UTF-8, and not endless; the reply to another one is short.
        """
        session = Session(recorder([]))
        session.replies()
        for path in (b'<"\xff"@c.example>', b'<"\x85"@c.example>', b"<@@c.example>"):
            self.assertEqual(
                session.say(b"MAIL FROM:" + path), ["501 5.1.7 Bad sender address syntax"], path
            )
        long = b"<" + b"a." * 5000 + b"a@c.example>"
        self.assertEqual(session.say(b"MAIL FROM:" + long), ["501 5.1.7 Bad sender address syntax"])
        # Twisted cannot write such an address as text, and so can the helper not.
        session.mailbox.validateFrom = lambda helo, origin: origin  # type: ignore[method-assign]
        said = session.say(
            'MAIL FROM:<"gr\xfc\xdf"@c.example>', "RCPT TO:<" + "a" * 900 + "@c.example>"
        )
        self.assertEqual([reply[:3] for reply in said], ["250", "250"])

    def test_esmtp_arguments_end_at_blanks(self) -> None:
        """
        ESMTP arguments end at blanks, not at what is a blank in other scripts.
        """
        calls: Calls = []
        session = Session(recorder(calls))
        session.say(f"MAIL FROM:{SENDER} X=a\xa0b\u3000c Y=2")
        self.assertEqual(calls[-1], ("envfrom", [SENDER, "X=a\xa0b\u3000c", "Y=2"]))

    def test_address_that_milter_gives_has_no_control_characters_either(self) -> None:
        """
        An address that a milter gives has no control characters either: the message is put off.
        """
        for address in (
            '<"a\u2028b"@c.example>',
            '<"a\x85"@c.example>',
            f"<{'a' * 2000}@b.example>",
        ):

            def add(milter: Milter, address: str = address) -> None:
                milter.smfi_addrcpt(address)

            session = Session(recorder([], eom=add))
            self.assertEqual(session.send(), [LOCAL_ERROR])
            self.assertEqual(session.delivered, [])
        self.assertEqual(len(self.flushLoggedErrors(AddressError)), 3)

    def test_client_name_that_is_odd_or_cannot_be_had_is_unknown(self) -> None:
        """
        A name from the DNS with other octets in it, or one that cannot be had, is unknown.
        """
        for name in ("a\nb", "a\x85b", "", b"name", None, "\udcff", Quits(), CancelledError()):

            class LooksUp(MilterESMTP):
                def clientName(self) -> Any:
                    if isinstance(self.name, BaseException):
                        return fail(self.name)
                    return self.name

            LooksUp.name = name  # type: ignore[attr-defined]
            calls: Calls = []
            session = Session(recorder(calls), server=LooksUp)
            self.assertEqual(session.replies()[0][:3], "220")
            self.assertEqual(calls[0][1], "unknown")
        self.assertEqual(len(self.flushLoggedErrors(Quits, CancelledError)), 2)

    def test_client_goes_while_looked_up(self) -> None:
        """
        A client that goes while its name is looked up is no error.
        """

        class LooksUp(MilterESMTP):
            def clientName(self) -> Deferred[str]:
                return Deferred()

        calls: Calls = []
        session = Session(recorder(calls), server=LooksUp)
        session.vanish()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertNotIn("connect", [call[0] for call in calls])


class ReceivedTests(SynchronousTestCase):
    """
    The server's own field.
    """

    def received(self, value: Any) -> tuple[list[str], list[bytes]]:
        """
        Deliver a message under such a field; give the reply, and what was delivered.
        """
        session = Session(recorder([]))
        session.mailbox.receivedHeader = lambda *_: value  # type: ignore[method-assign]
        said = session.send()
        return said, session.mailbox.kept[0].lines if session.delivered else []

    def test_whatever_is_in_it_it_is_one_field(self) -> None:
        """
        Whatever is in it, it is one field: its lines are given one by one, and fold.
        """
        for value, lines in (
            (b"Received: a\r\nFrom: b\n\n\r\nbody\rX: y", [b"\tFrom: b", b"\tbody", b"\tX: y"]),
            (b"Received: a\n b\r\n\tc\n \t\n", [b" b", b"\tc"]),
            (b"Received: a\n.\n", [b"\t."]),
            (b"Received: a\n\x1b[2J\0\xc2\x85\xe2\x80\xa8\tb", [b"\t?[2J???\tb"]),
        ):
            said, delivered = self.received(value)
            self.assertEqual(said, ["250 Delivery in progress"])
            self.assertEqual(delivered, [b"Received: a", *lines, *MESSAGE])

    def test_there_may_be_no_received_field(self) -> None:
        """
        There may be none.
        """
        for value in (b"", None):
            self.assertEqual(self.received(value)[1], MESSAGE)

    def test_what_is_not_a_field_is_not_delivered(self) -> None:
        """
        What is not a field is not delivered, and the error says what was given.
        """
        for value in (b"\n", b" \r\n", b"no field", b"\n Received: a b", "Received: text"):
            self.assertEqual(self.received(value), ([LOCAL_ERROR], []))
        errors = self.flushLoggedErrors(ValueError, TypeError)
        self.assertEqual(len(errors), 5)
        self.assertIn("expected one field", str(errors[2].value))


class SizeTests(SynchronousTestCase):
    """
    How much of a message there may be.
    """

    def test_size_of_message_is_announced_50_mib_unless_server_is_told_otherwise(self) -> None:
        """
        The size of a message is announced, 50 MiB unless the server is told otherwise.
        """
        for options, line in (
            ({}, "250 SIZE 52428800"),
            ({"max_size": 1000}, "250 SIZE 1000"),
            ({"max_size": None}, "250 SIZE"),
        ):
            session = Session(recorder([]), **options)
            session.replies()
            self.assertEqual(session.say("EHLO x")[-1], line)

    def test_message_that_says_it_is_larger_is_refused_at_mail(self) -> None:
        """
        A message that says that it is larger is refused at MAIL, before anybody is asked.
        """
        calls: Calls = []
        session = Session(recorder(calls), max_size=1000)
        session.replies()
        for argument, reply in (
            ("SIZE=1001", "552 5.3.4 Message size exceeds fixed limit"),
            ("X=1 size=99999999999999999999", "552 5.3.4 Message size exceeds fixed limit"),
            ("SIZE=" + "9" * 10_000, "501 5.5.4 Bad message size syntax"),
            ("SIZE=", "501 5.5.4 Bad message size syntax"),
            ("SIZE", "501 5.5.4 Bad message size syntax"),
            ("SIZE=-1", "501 5.5.4 Bad message size syntax"),
            ("SIZE=1x", "501 5.5.4 Bad message size syntax"),
        ):
            self.assertEqual(session.say(f"MAIL FROM:{SENDER} {argument}"), [reply], argument[:20])
        self.assertEqual((calls[1:], session.mailbox.senders), ([], []))
        said = session.say(f"MAIL FROM:{SENDER} SIZES=1001 SIZE=1000")
        self.assertEqual(said, ["250 Sender address accepted"])
        session = Session(recorder([]), max_size=None)
        session.replies()
        said = session.say(f"MAIL FROM:{SENDER} SIZE=99999999999999999999")
        self.assertEqual(said, ["250 Sender address accepted"])

    def test_while_it_comes(self) -> None:
        """
        A message that is larger all the same is refused at its end, and nothing of it is kept.
        """
        calls: Calls = []
        session = Session(recorder(calls), max_size=1000)
        line = b"x" * 98
        self.assertEqual(session.send(lines=[b""] + [line] * 9)[0], "250 Delivery in progress")
        calls.clear()
        said = session.send(lines=[b"X: y", b""] + [line] * 10_000)
        self.assertEqual(said, ["552 5.3.4 Message too large"])
        self.assertNotIn("header", [call[0] for call in calls])
        self.assertEqual(calls[-1], ("abort",))
        self.assertEqual(session.send(), ["250 Delivery in progress"])

    def test_header_may_have_so_many_bytes_line_ends_included(self) -> None:
        """
        The header may have so many bytes, line ends included, and not one more.
        """
        lines = [b"Ab:cd", b"E:f", b"\tg"]
        for most, reply in (
            (16, "250 Delivery in progress"),
            (15, "552 5.3.4 Message header too large"),
        ):
            session = Session(recorder([]), max_header_bytes=most)
            self.assertEqual(session.send(lines=[*lines, b"", b"text" * 10]), [reply])
        session = Session(recorder([]))
        field = b"X: " + b"y" * 995
        many = [field] * (bounds.MAX_HEADER_BYTES // 1000)
        self.assertEqual(session.send(lines=many), ["250 Delivery in progress"])
        # Fields without a value are fields, too.
        for lines in ([*many, *many], [b"a:"] * (bounds.MAX_HEADER_BYTES // 4 + 1)):
            said = session.send(lines=lines)
            self.assertEqual(said, ["552 5.3.4 Message header too large"])

    def test_recipients_above_the_most_are_put_off_for_another_message(self) -> None:
        """
        Recipients above the most are put off for another message; the others get theirs.
        """
        calls: Calls = []
        session = Session(recorder(calls), max_recipients=2)
        said = session.begin(RECIPIENT, OTHER, RECIPIENT, RECIPIENT)
        late = "452 4.5.3 Too many recipients"
        self.assertEqual(
            said[2:], [*["250 Recipient address accepted"] * 2, late, late, "354 Continue"]
        )
        self.assertEqual(session.say(*MESSAGE, "."), ["250 Delivery in progress"])
        self.assertEqual(len(session.mailbox.kept), 2)
        self.assertEqual([call[0] for call in calls].count("envrcpt"), 2)
        said = session.begin(*[RECIPIENT] * 3)
        self.assertEqual([reply[:3] for reply in said[2:]], ["250", "250", "452", "354"])

    def test_recipients_by_default(self) -> None:
        """
        A thousand recipients are taken unless the server is told otherwise.
        """
        for options, taken in (({}, bounds.SMTP_MAX_RECIPIENTS), ({"max_recipients": None}, 1100)):
            session = Session(**options)
            said = session.begin(*[RECIPIENT] * 1100)
            self.assertEqual(said.count("250 Recipient address accepted"), taken)

    def test_where_body_cannot_be_written_client_is_told_to_come_back(self) -> None:
        """
        Where a body cannot be written the client is told to come back, and the connection stays.
        """
        session = Session(spool_memory=1000)
        body = [b"X: y", b"", *[b"x" * 100] * 100]
        self.patch(tempfile, "tempdir", "/nowhere/at/all")
        self.assertEqual(session.send(lines=body), ["452 4.3.1 Insufficient system storage"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(session.send(), ["250 Delivery in progress"])

        def replace(milter: Milter) -> None:
            milter.smfi_replacebody(b"x" * 10_000)

        edited = Session(recorder([], eom=replace), spool_memory=1000, merge="first")
        self.assertEqual(edited.send(), ["452 4.3.1 Insufficient system storage"])
        self.assertEqual(edited.mailbox.kept, [])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.patch(tempfile, "tempdir", None)
        self.assertEqual(session.send(lines=body), ["250 Delivery in progress"])

    def test_bounds_that_are_none_are_refused_by_name(self) -> None:
        """
        Bounds that are none are refused by name.
        """
        for name in ("max_size", "max_recipients", "max_header_bytes"):
            with self.assertRaises(ValueError) as caught:
                SMTPMilters((), **{name: 0})  # type: ignore[arg-type]
            self.assertIn(f"{name} is 0", str(caught.exception))


class Unread(StringTransport):
    """
    A transport to a client that reads nothing from some time on.

    :ivar room: How many bytes there is room for.
    :ivar reader: Whose next turn it is in which all is read, if any.
    :ivar read: How much has been read.
    :ivar aborted: Whether the connection was cut off.
    """

    room = 64 * 1024
    aborted = False
    reader: Clock | None = None
    read = 0

    def write(self, data: bytes) -> None:
        """
        Keep what is written, and tell the producer when there is no more room.
        """
        super().write(data)
        if self.producer is not None and len(self.value()) > self.room:
            self.producer.pauseProducing()
            if self.reader is not None:
                self.reader.callLater(0, self.drain)

    def drain(self) -> None:
        """
        Have all read.
        """
        self.read += len(self.value())
        self.clear()
        if self.producer is not None:
            self.producer.resumeProducing()

    def writeSequence(self, data: Any) -> None:
        """
        Keep several pieces.
        """
        self.write(b"".join(data))

    def abortConnection(self) -> None:
        """
        Note that the connection was cut off.
        """
        self.aborted = True


class UnreadTests(SynchronousTestCase):
    """
    Replies that a client does not read.
    """

    def session(self) -> tuple[Session, Unread]:
        """
        Begin a session.
        """
        transport = Unread()
        return Session(recorder([]), transport=transport), transport

    def test_client_that_reads_none_is_cut_off(self) -> None:
        """
        A client that reads none is cut off, when so many bytes wait for it.
        """
        session, transport = self.session()
        for _ in range(100):
            session.server.dataReceived(b"EHLO x\r\n" * 1000)
            session.settle()
        self.assertTrue(transport.aborted)
        most = transport.room + bounds.MAX_UNREAD_REPLIES + 1000
        self.assertLess(len(transport.value()), most)
        self.assertGreater(len(transport.value()), bounds.MAX_UNREAD_REPLIES)
        session.vanish()
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_reads_in_time(self) -> None:
        """
        A client that reads late is not, however much it is told.
        """
        session, transport = self.session()
        transport.reader = session.clock
        session.server.dataReceived(b"EHLO x\r\n" * 8000)
        session.settle()
        self.assertIsNone(transport.producer)
        self.assertFalse(transport.aborted)
        self.assertGreater(transport.read, 2 * bounds.MAX_UNREAD_REPLIES)

    def test_full_for_a_while(self) -> None:
        """
        While the buffer is full the connection has a producer, and none behind that.
        """
        session, transport = self.session()
        transport.room = 0
        session.server.dataReceived(b"NOOP\r\n")
        session.settle()
        producer: Any = transport.producer
        self.assertIsNotNone(producer)
        session.server.dataReceived(b"NOOP\r\n")
        session.settle()
        self.assertIs(transport.producer, producer)
        producer.resumeProducing()
        self.assertIsNone(transport.producer)

    def test_full_in_the_same_turn(self) -> None:
        """
        A buffer that is full a little later, in the same turn, is noticed as well.
        """
        session, transport = self.session()
        transport.clear()
        transport.room = 10
        session.server.dataReceived(b"NOOP\r\nNOOP\r\n")
        session.settle()
        self.assertIsNotNone(transport.producer)
        transport.drain()
        self.assertIsNone(transport.producer)

    def test_read_in_the_same_turn(self) -> None:
        """
        So is one that is read in that very turn.
        """
        session, transport = self.session()
        transport.clear()
        transport.room = 10
        session.server.dataReceived(b"NOOP\r\nNOOP\r\n")
        transport.drain()
        session.settle()
        self.assertIsNone(transport.producer)

    def test_gone_in_the_middle(self) -> None:
        """
        A client that goes while the rest of its commands waits for the next turn leaves nothing.
        """
        session, _ = self.session()
        session.server.dataReceived(b"NOOP\r\n" * 10_000)
        session.vanish()
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_transport_that_has_a_producer_of_somebody_elses_keeps_it(self) -> None:
        """
        A transport that has a producer of somebody else's keeps it.
        """
        session = Session(recorder([]))
        session.replies()
        other = object()
        session.transport.registerProducer(other, True)  # type: ignore[arg-type]
        self.assertEqual(session.say("NOOP"), ["250 Ok"])
        self.assertIs(session.transport.producer, other)

    def test_gone_at_once(self) -> None:
        """
        A client that has gone before the reply is no error.
        """
        session = Session(recorder([]))
        session.server.dataReceived(b"NOOP\r\n")
        session.vanish()
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_does_not_go(self) -> None:
        """
        A client that was sent away, and does not let it be closed, is cut off in the end.
        """
        for line in (b"QUIT\r\n", b""):
            transport = Unread()
            session = Session(recorder([]), transport=transport)
            transport.loseConnection = lambda: None  # type: ignore[method-assign]
            session.server.dataReceived(line)
            session.settle()
            session.clock.advance(601)
            session.clock.advance(601)
            self.assertTrue(transport.aborted)
            session.vanish()
            self.assertEqual(session.clock.getDelayedCalls(), [])


class ConnectionTests(SynchronousTestCase):
    """
    How many clients there may be.
    """

    def connect(self, factory: MilterSMTPFactory, host: str, secure: bool = False) -> Any:
        """
        Let a client come from an address.
        """
        address = IPv4Address("TCP", host, 1234)
        server: Any = factory.buildProtocol(address)
        server.callLater = self.clock.callLater
        server.noisy = False
        transport = Unread(peerAddress=address)
        if secure:
            directlyProvides(transport, ISSLTransport)
        server.makeConnection(transport)
        self.clock.advance(0)
        return server

    def factory(self, **options: Any) -> MilterSMTPFactory:
        """
        Make a factory.
        """
        self.clock = Clock()
        milters = SMTPMilters((), reactor=self.clock)
        return MilterSMTPFactory(milters, Mailbox(), domain=b"mx.example.com", **options)

    def test_clients_above_the_most_are_told_to_come_back(self) -> None:
        """
        Clients above the most are told to come back, and let in when others have gone.
        """
        for options, host in (
            ({"max_connections": 2}, "192.0.2.9"),
            ({"max_connections_per_peer": 2}, "192.0.2.1"),
        ):
            factory = self.factory(**options)
            first = self.connect(factory, "192.0.2.1")
            self.connect(factory, "192.0.2.1")
            late = self.connect(factory, host)
            said = late.transport.value()
            self.assertEqual(said, b"421 4.3.2 mx.example.com has too many connections\r\n")
            self.assertTrue(late.transport.disconnecting)
            late.connectionLost(None)
            first.connectionLost(None)
            self.assertEqual(self.connect(factory, host).transport.value()[:3], b"220")
            self.assertEqual(self.connect(factory, host).transport.value()[:3], b"421")

    def test_most_of_one_address_is_not_another_ones(self) -> None:
        """
        The most of one address is not another one's.
        """
        factory = self.factory(max_connections_per_peer=1)
        for host in ("192.0.2.1", "192.0.2.2"):
            self.assertEqual(self.connect(factory, host).transport.value()[:3], b"220")

    def test_one_too_many_over_tls_is_cut_off_without_handshake(self) -> None:
        """
        One too many over TLS is cut off, and no handshake waited for.
        """
        factory = self.factory(max_connections=1)
        self.connect(factory, "192.0.2.1")
        late = self.connect(factory, "192.0.2.1", secure=True)
        self.assertTrue(late.transport.aborted)
        self.assertEqual(late.transport.value(), b"")

    def test_connection_whose_end_fails_is_not_counted_for_ever(self) -> None:
        """
        A connection whose end fails in somebody's hands is not counted for ever.
        """
        factory = self.factory(max_connections=1)
        for _ in range(3):
            server = self.connect(factory, "192.0.2.1")
            self.assertEqual(server.transport.value()[:3], b"220")

            def log_out() -> None:
                raise Quits

            server._onLogout = log_out
            server.connectionLost(None)
            self.assertEqual(factory.milters.sessions, set())
        self.assertEqual(len(self.flushLoggedErrors(Quits)), 3)

    def test_what_is_no_number_of_connections_is_refused_by_name(self) -> None:
        """
        What is no number of connections is refused by name.
        """
        for name in ("max_connections", "max_connections_per_peer"):
            self.assertRaisesRegex(ValueError, name, self.factory, **{name: 0})


class FailureTests(SynchronousTestCase):
    """
    Deliveries, portals and subclasses that raise anything at all.
    """

    def test_what_is_no_exception_is_answered_as_what_is_one(self) -> None:
        """
        What is no `Exception` is answered as what is one, and all message objects are told.
        """
        for error in (SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Quits()):
            for occasion in ("from", "to", "make", "line", "eom", "lost"):
                session = Session(recorder([]))
                session.mailbox.faults[occasion] = error  # type: ignore[assignment]
                if occasion == "lost":
                    session.mailbox.faults["line"] = SMTPServerError(452, "full")
                said = session.begin(RECIPIENT, OTHER)
                if said[-1] == "354 Continue":
                    said = session.say(*MESSAGE, ".")
                self.assertIn(said[-1][:3], ("451", "452", "503", "550"), (error, occasion))
                ends = [kept.end for kept in session.mailbox.kept]
                self.assertNotIn("", ends)
                session.mailbox.faults.clear()
                session.say("RSET")
                self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertGreater(len(self.flushLoggedErrors(type(error), SystemExit)), 2)
        self.flushLoggedErrors(KeyboardInterrupt, GeneratorExit)

    def test_refusals_of_any_kind(self) -> None:
        """
        Whatever text a refusal has, the client hears it, or else that something went wrong.
        """
        rows: list[tuple[Callable[[Any, Any], Exception], Any, str]] = [
            (SMTPServerError, "nicht f\xfcr Sie", "550 nicht f\xc3\xbcr Sie"),
            (SMTPServerError, b"raw \xff", "550 raw \xff"),
            (SMTPServerError, None, LOCAL_ERROR),
        ]
        for occasion in ("from", "to"):
            for make, text, reply in rows:
                session = Session(recorder([]))
                session.mailbox.faults[occasion] = make(550, text)
                said = session.begin()
                self.assertEqual(said[1 if occasion == "from" else 2], reply)
        session = Session(recorder([]))
        session.mailbox.faults["from"] = SMTPBadSender(SENDER, resp=b"\xfc")
        said = session.begin()
        self.assertEqual(
            said[1], "550 Cannot receive from specified address <sender@client.example>: \xfc"
        )
        refused = SMTPBadSender(SENDER, resp="no")
        refused.addr = "<\xfc@c.example>"
        session.mailbox.faults["from"] = refused
        self.assertEqual(session.begin()[1], "550 no")
        session.mailbox.faults = {"to": SMTPBadRcpt(RECIPIENT, resp="f\xfcr")}
        self.assertEqual(session.begin()[2], "550 f\xc3\xbcr")
        session.mailbox.faults = {"eom": SMTPServerError("550", "x")}
        self.assertEqual(session.send(), [LOCAL_ERROR])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 3)

    def test_command_of_a_subclass_that_raises_is_answered(self) -> None:
        """
        A command of a subclass that raises is answered; a message of which it lost a line is not
        delivered.
        """

        class Broken(MilterESMTP):
            def do_HELP(self, rest: bytes) -> None:
                raise Quits

            def do_HELO(self, rest: bytes) -> None:
                self.sendCode(250, b"hello")
                raise Quits

            def state_DATA(self, line: bytes) -> None:
                if line == b"bad":
                    raise SMTPServerError(552, "no such lines")
                super().state_DATA(line)

        session = Session(recorder([]), server=Broken)
        session.replies()
        self.assertEqual(session.say("HELP", "NOOP"), [LOCAL_ERROR, "250 Ok"])
        self.assertEqual(session.say("HELO x", "NOOP"), ["250 hello", "250 Ok"])
        said = session.send(lines=[b"X: y", b"", b"bad", b"good"])
        self.assertEqual(said, ["451 4.3.0 Requested action aborted: local error in processing"])
        self.assertEqual(session.delivered, [])
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(len(self.flushLoggedErrors(Quits, SMTPServerError)), 3)


class LoginTests(SynchronousTestCase):
    """
    Logging in, in other ways than one should.
    """

    def session(self, **options: Any) -> Session:
        """
        Begin a session with a server where one can.
        """
        self.seen: list[str | None] = []
        self.logged_out: list[str] = []
        users = InMemoryUsernamePasswordDatabaseDontUse()
        users.addUser(b"alice", b"secret")
        users.addUser(b"a\nb\0".replace(b"\0", b""), b"secret")
        session = Session(
            recorder([], envfrom=lambda m: self.seen.append(m.smfi_getsymval("{auth_authen}"))),
            portal=Portal(Realm(Mailbox()), [users, Anonymous()]),
            challengers={b"PLAIN": PLAINCredentials, b"LOGIN": LOGINCredentials},
            **options,
        )
        session.replies()
        return session

    def test_response_that_is_none_ends_the_exchange_alone(self) -> None:
        """
        A response that is none ends the exchange, not the connection, and is not taken for a
        command.
        """
        for lines, codes in (
            (["AUTH PLAIN AGFsaWNl", "NOOP"], ["501", "250"]),
            (["AUTH PLAIN", "AGFsaWNl", "NOOP"], ["334", "501", "250"]),
            (["AUTH PLAIN", "AGFsaWNlAHNlY3JldA==\nNOOP", "NOOP"], ["334", "501", "250"]),
            (["AUTH PLAIN", "A" * 20_000, "NOOP"], ["334", "500", "250"]),
            (["AUTH PLAIN " + "A" * 20_000, "NOOP"], ["500", "250"]),
            (["AUTH PLAIN", "*", "NOOP"], ["334", "501", "250"]),
        ):
            said = self.session().say(*lines)
            self.assertEqual([reply[:3] for reply in said], codes, lines[-2][:40])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_mechanism_that_raises_is_answered_and_the_exchange_is_over(self) -> None:
        """
        A mechanism that raises is answered, and the exchange is over.
        """

        class Broken:
            def getChallenge(self) -> bytes:
                raise Quits

        session = self.session()
        session.server.challengers = {b"X": Broken}
        said = session.say("AUTH X", "NOOP")
        self.assertEqual(said, [LOCAL_ERROR, "250 Ok"])
        self.assertEqual(len(self.flushLoggedErrors(Quits)), 1)

    def test_while_a_message_is_open(self) -> None:
        """
        Nobody logs in in the middle of a message.
        """
        session = self.session()
        said = session.say(f"MAIL FROM:{SENDER}", "AUTH PLAIN AGFsaWNlAHNlY3JldA==", "RSET")
        self.assertEqual([reply[:3] for reply in said], ["250", "503", "250"])

    def test_name_with_line_end(self) -> None:
        """
        The macro with the user's name has no control characters.
        """
        session = self.session()
        said = session.say("AUTH PLAIN AGEKYgBzZWNyZXQ=", f"MAIL FROM:{SENDER}")
        self.assertEqual([reply[:3] for reply in said], ["235", "250"])
        self.assertEqual(self.seen, ["a?b"])

    def test_forgotten_at_starttls(self) -> None:
        """
        What was said in the clear is forgotten with STARTTLS: HELO, and who has logged in.
        """
        session = self.session(transport=TlsTransport())
        session.server.ctx = object()
        session.server.canStartTLS = True
        logged_out: list[str] = []
        said = session.say("EHLO forged", "AUTH PLAIN AGFsaWNlAHNlY3JldA==")
        self.assertEqual(said[-1][:3], "235")
        session.server._onLogout = lambda: logged_out.append("yes")
        session.say(f"MAIL FROM:{SENDER}", "RSET", "STARTTLS")
        self.assertEqual(logged_out, ["yes"])
        self.assertEqual(session.server._helo[0], b"")
        session.say(f"MAIL FROM:{SENDER}")
        self.assertEqual(self.seen, ["alice", None])


class GrowthTests(SynchronousTestCase):
    """
    Work that grows with what is sent, and not with its square.
    """

    def content(self, lines: Callable[[int], list[bytes]], size: int = 2000) -> None:
        """
        Send a message with so many such lines, in pieces, and take it.
        """

        def prepare(size: int) -> Callable[[], None]:
            data = b"\r\n".join([*lines(size), b".", b""])

            def work() -> None:
                session = Session(max_header_bytes=None, max_size=None)
                session.begin()
                for start in range(0, len(data), 4000):
                    session.server.dataReceived(data[start : start + 4000])
                session.settle()
                self.assertEqual(session.replies(), ["250 Delivery in progress"])

            return work

        assert_linear(prepare, size)

    def test_header_lines_of_any_kind_take_linear_time(self) -> None:
        """
        Lines of a mailbox, fields, and lines of one folded field.
        """
        for line in (b">From x", b"X: y", b"\ty"):
            self.content(lambda size, line=line: [line] * size)  # type: ignore[misc]
        self.content(lambda size: [b"X: y", *[b" "] * size])

    def test_empty_lines_dots_and_bare_line_ends_take_linear_time(self) -> None:
        """
        Empty lines, dots, and bare line ends.
        """
        for line in (b"", b"..", b"x\ny\n" * 10, b"x\ry" * 10):
            self.content(lambda size, line=line: [b"", *[line] * size])  # type: ignore[misc]

    def test_one_long_line(self) -> None:
        """
        A line that comes in very many pieces.
        """

        class Patient(MilterESMTP):
            MAX_LENGTH = 1 << 30

        for piece in (b"x" * 20, b"\r" * 20):

            def prepare(size: int, piece: bytes = piece) -> Any:
                def work() -> None:
                    session = Session(server=Patient)
                    for _ in range(size):
                        session.server.dataReceived(piece)

                return work

            assert_linear(prepare, 5000)

    def test_addresses_that_twisted_parses_slowly_take_linear_time(self) -> None:
        """
        Addresses that Twisted takes long to parse.
        """
        for path in ("a.", '""'):

            def prepare(size: int, path: str = path) -> Any:
                class Patient(MilterESMTP):
                    MAX_LENGTH = 1 << 30

                def work() -> None:
                    session = Session(server=Patient)
                    session.say("MAIL FROM:<" + path * size + "@b.example>", f"MAIL FROM:{SENDER}")
                    session.say("RCPT TO:<" + path * size + "@b.example>")

                return work

            assert_linear(prepare, 2000)

    def test_recipients_that_milters_edit_take_linear_time(self) -> None:
        """
        Recipients that milters add and delete.
        """

        def prepare(size: int) -> Callable[[], None]:
            def edit(milter: Milter) -> None:
                for number in range(size):
                    milter.smfi_addrcpt(f"<a{number}@b.example>")
                for number in range(size):
                    milter.smfi_delrcpt(f"<a{number}@B.example>")
                milter.smfi_chgfrom("<b@b.example>")

            def work() -> None:
                session = Session(recorder([], eom=edit), merge="first")
                self.assertEqual(session.send(), ["250 Delivery in progress"])
                self.assertEqual(len(session.mailbox.kept), 1)

            return work

        assert_linear(prepare, 200)


class TurnTests(SynchronousTestCase):
    """
    Other connections have their turn while a large message is at work.
    """

    def turns(self, lines: list[bytes], *recipients: str, milters: Any = ()) -> int:
        """
        Send a message, and count the turns of the reactor that its end takes.
        """
        turns: list[float] = []

        class Counting(Clock):
            def callLater(self, delay: float, *rest: Any, **options: Any) -> Any:
                if delay == 0:
                    turns.append(delay)
                return super().callLater(delay, *rest, **options)

        session = Session(*milters, max_size=None, clock=Counting())
        session.begin(*recipients)
        turns.clear()
        self.assertEqual(session.say(*lines, b"."), ["250 Delivery in progress"])
        return len(turns)

    def test_header_of_very_many_fields_is_shown_in_several_turns(self) -> None:
        """
        A header of very many fields is shown in several turns.
        """
        self.assertGreater(self.turns([b"X: y"] * 10_000, milters=[recorder([])]), 50)

    def test_large_header_that_no_milter_is_shown_is_edited_in_several_turns(self) -> None:
        """
        A header of very many fields that no milter is shown is edited in several turns.
        """

        class Edits(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_chgheader("X", 9_999, "last")
                self.smfi_insheader(1, "Y", "first")

        few = self.turns([b"X: y"] * 10, milters=[Edits])
        header = [b"X: y"] * 10_000
        self.assertGreater(self.turns(header, milters=[Edits]), few + 15)

    def test_body_of_empty_lines_is_delivered_in_several_turns(self) -> None:
        """
        So is a body of empty lines delivered, and one for many recipients.
        """
        few = self.turns([b""] * 50_000)
        self.assertGreater(few, 2)
        self.assertGreater(self.turns([b""] * 50_000, *[RECIPIENT] * 10), 5 * few)


class LineTests(SynchronousTestCase):
    """
    Lines of just the longest length.
    """

    def test_line_may_have_max_length_bytes_wherever_it_is_cut(self) -> None:
        """
        A line may have MAX_LENGTH bytes, wherever it is cut; one byte more is too long.
        """

        class Short(MilterESMTP):
            MAX_LENGTH = 20

        for extra, reply in ((0, "250 Ok"), (1, "500 Line too long")):
            line = b"NOOP ".ljust(20 + extra, b"x") + b"\r\n"
            for cut in range(len(line) + 1):
                session = Session(server=Short)
                session.replies()
                said = session.write(line[:cut]) + session.write(line[cut:]) + session.say("NOOP")
                self.assertEqual(said, [reply, "250 Ok"], cut)

    def test_longest_of_a_message(self) -> None:
        """
        So it is for a line of a message.
        """
        line = b"x" * MilterESMTP.MAX_LENGTH
        session = Session()
        session.begin()
        session.write(b"\r\n" + line + b"\r")
        self.assertEqual(session.write(b"\n.\r\n"), ["250 Delivery in progress"])
        self.assertEqual(session.delivered, [[b"", line]])
        said = session.send(lines=[b"", line + b"x"])
        self.assertEqual(said, ["500 5.5.2 Line too long"])

    def test_lone_cr_or_lf_before_the_end_is_not_part_of_it(self) -> None:
        """
        A lone CR or LF in front of a message's end is not part of it: no other end is seen.
        """
        for end in (b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b"\n.\r"):
            session = Session()
            session.begin()
            self.assertEqual(session.write(b"X: y\r\n\r\na" + end + b"NOOP\r\n"), [], end)
            self.assertEqual(session.write(b"\r\n.\r\n"), ["250 Delivery in progress"])
            self.assertEqual(session.write(b"NOOP\r\n"), ["250 Ok"])


class ErrorTests(SynchronousTestCase):
    """
    A client whose commands all fail: it guesses at passwords or addresses.
    """

    def test_after_so_many_errors_next_command_is_answered_with_421(self) -> None:
        """
        After so many errors the next command is answered with 421, and the connection ends.
        """
        for line, code in (("FOO", "500"), ("DATA", "503"), ("MAIL FROM:<@@>", "501")):
            session = Session(recorder([]))
            session.replies()
            said = session.say(*[line] * (bounds.SMTP_MAX_ERRORS + 50))
            self.assertEqual([one[:3] for one in said[:-1]], [code] * bounds.SMTP_MAX_ERRORS)
            self.assertEqual(said[-1], "421 4.7.0 mx.example.com Too many errors")
            self.assertTrue(session.gone)

    def test_logins_that_fail_are_errors_too(self) -> None:
        """
        Logins that fail are errors, too.
        """
        portal = Portal(Realm(None), [InMemoryUsernamePasswordDatabaseDontUse(a=b"b")])
        session = Session(
            recorder([]), portal=portal, challengers={b"PLAIN": PLAINCredentials}, max_errors=3
        )
        session.replies()
        for _ in range(3):
            session.say("AUTH PLAIN")
            self.assertEqual(session.say("AGEAYwo=")[0][:3], "535")
        self.assertEqual(session.say("AUTH PLAIN")[0][:3], "421")
        self.assertTrue(session.gone)

    def test_errors_are_counted_anew_behind_a_message_that_was_taken(self) -> None:
        """
        Errors are counted anew behind a message that was taken; the lines of one are no commands.
        """
        session = Session(recorder([]), max_errors=3)
        for _ in range(4):
            session.replies()
            self.assertEqual(session.say("FOO", "FOO")[1][:3], "500")
            self.assertEqual(session.send(), ["250 Delivery in progress"])
        session.say("FOO", "FOO", "EHLO x", f"MAIL FROM:{SENDER}", f"RCPT TO:{SENDER}", "DATA")
        self.assertEqual(session.say("x" * 20000, *MESSAGE, ".")[-1][:3], "500")
        self.assertEqual(session.say("NOOP")[0][:3], "421")

    def test_recipients_above_the_limit(self) -> None:
        """
        A list's recipients above the limit are no errors, nor is anything with no limit.
        """
        session = Session(recorder([]), max_errors=2, max_recipients=1)
        self.assertEqual(
            [one[:3] for one in session.begin(*[SENDER] * 5)],
            ["250", "250", "250", "452", "452", "452", "452", "354"],
        )
        self.assertEqual(session.say(*MESSAGE, "."), ["250 Delivery in progress"])
        session = Session(recorder([]), max_errors=None)
        session.replies()
        self.assertEqual({one[:3] for one in session.say(*["FOO"] * 1000)}, {"500"})


class UnixSocketTests(SynchronousTestCase):
    """
    Clients that have no IP address.
    """

    def test_helo_and_ehlo_are_answered_and_a_message_is_taken(self) -> None:
        """
        HELO and EHLO are answered, and a message is taken.
        """
        for peer in (UNIXAddress("/run/a" + "b" * 90), UNIXAddress(None)):
            for hello in ("HELO", "EHLO"):
                mta = StringTransport(peerAddress=peer)  # type: ignore[arg-type]
                session = Session(recorder([]), transport=mta)
                session.replies()
                said = session.say(f"{hello} client.example")
                self.assertEqual(said[0][4:], "mx.example.com Hello unknown, nice to meet you")
                self.assertEqual(session.send(), ["250 Delivery in progress"])
