"""
Twisted's SMTP server with milters: what goes wrong, and clients that go.
"""

from __future__ import annotations

from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IAnonymous
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.mail.imap4 import LOGINCredentials, PLAINCredentials
from twisted.mail.interfaces import IMessageDelivery
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.smtp_session import MESSAGE, RECIPIENT, SENDER, Mailbox, Session, recorder
from yatxmilter import Milter, MilterFactory
from yatxmilter import constants as c
from yatxmilter.remote import RemoteMilterFactory
from yatxmilter.smtp import MilterESMTP, MilterSMTPFactory, SMTPMilters
from yatxmilter.smtp._values import auth_values, connect_values, tls_values

Calls = list[tuple[Any, ...]]

TEMPFAIL = "451 4.7.1 Service unavailable - try again later"


def broken(_: Milter) -> None:
    """
    Be a milter with a bug.
    """
    raise ZeroDivisionError


class MilterFailureTests(SynchronousTestCase):
    """
    Milters that fail.
    """

    def test_callback_that_raises_is_answered_with_its_factorys_on_error(self) -> None:
        """
        A callback that raises is answered with its factory's ``on_error``.
        """
        for name in ("envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"):
            for on_error, expected in (
                (c.SMFIS_TEMPFAIL, "451"),
                (c.SMFIS_REJECT, "550"),
                (c.SMFIS_CONTINUE, "250"),
            ):
                milter = recorder([], **{name: broken})
                session = Session(factories=[MilterFactory(milter, on_error=on_error)])
                session.begin()
                last = session.say(*MESSAGE, ".")[-1:] if session.server.mode == "DATA" else []
                if name in ("header", "eoh", "body", "eom") or expected == "250":
                    self.assertEqual(last[0][:3], expected, name)
                else:
                    self.assertEqual(last, [])
                self.assertEqual(len(session.mailbox.kept), expected == "250", name)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 22)

    def test_when_milters_cannot_be_asked_at_all_servers_on_error_answers(self) -> None:
        """
        When the milters cannot be asked at all, the server's ``on_error`` answers.
        """

        class Unwilling(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> int:
                return c.SMFIS_REJECT

        session = Session(Unwilling)
        said = session.say("EHLO x", "FOO", *[f"MAIL FROM:{SENDER}"] * 2)
        self.assertEqual(said[0][:3], "220")
        self.assertEqual(said[-3:], ["500 Command not implemented", TEMPFAIL, TEMPFAIL])
        session = Session(Unwilling, on_error=c.SMFIS_REJECT)
        self.assertEqual(
            session.say(f"MAIL FROM:{SENDER}"),
            ["554 mx.example.com ESMTP not accepting connections", "550 5.7.1 Command rejected"],
        )
        session = Session(Unwilling, on_error=c.SMFIS_CONTINUE)
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(session.delivered, [MESSAGE])

    def test_milters_that_are_silent_for_too_long_cannot_be_asked_any_more(self) -> None:
        """
        Milters that are silent for too long cannot be asked any more; the client is told.
        """
        for name in ("connect", "envfrom", "data", "header"):
            calls: Calls = []
            session = Session(recorder(calls, **{name: lambda _: Deferred()}), timeout=60)
            session.begin()
            session.say(*MESSAGE, ".")
            session.clock.advance(61)
            session.settle()
            self.assertIn(TEMPFAIL, session.replies(), name)
            self.assertEqual(session.mailbox.kept, [])
            names = [call[0] for call in calls]
            self.assertEqual(names[-1], "close", name)

    def test_remote_milter_that_is_not_there_keeps_mail_waiting(self) -> None:
        """
        A remote milter that is not there keeps mail waiting, by its own ``on_error``.
        """

        @implementer(IStreamClientEndpoint)
        class Away:
            def connect(self, factory: Any) -> Deferred[Any]:
                return fail(ConnectionRefusedError("nobody there"))

        for on_error, expected in (
            (c.SMFIS_TEMPFAIL, TEMPFAIL),
            (c.SMFIS_CONTINUE, "250 Sender address accepted"),
        ):
            clock = Clock()
            remote = RemoteMilterFactory(Away(), on_error=on_error, reactor=clock)
            session = Session(factories=[remote], clock=clock)
            session.replies()
            self.assertEqual(session.say(f"MAIL FROM:{SENDER}"), [expected])


class DisconnectTests(SynchronousTestCase):
    """
    Clients that go, at every point.
    """

    def test_whenever_client_goes_its_milters_are_told_once(self) -> None:
        """
        Whenever the client goes, its milters are told, once, and nothing is left behind.
        """
        stream = (
            f"EHLO client.example\r\nMAIL FROM:{SENDER}\r\nRCPT TO:{RECIPIENT}\r\nDATA\r\n"
            "Subject: x\r\n\r\ntext\r\n.\r\nMAIL FROM:<>\r\n"
        ).encode()
        for place in range(len(stream) + 1):
            calls: Calls = []
            session = Session(recorder(calls))
            session.write(stream[:place])
            session.vanish()
            names = [call[0] for call in calls]
            self.assertEqual(names.count("close"), 1)
            self.assertLessEqual(names.count("abort"), 1)
            self.assertEqual(session.clock.getDelayedCalls(), [], place)
            self.assertEqual(session.server.milters._factory.connections, set())
            ends = [kept.end for kept in session.mailbox.kept]
            self.assertEqual(ends, ["eom"] if "eom" in names else [])

    def test_what_milter_is_doing_for_client_that_has_gone_is_cancelled(self) -> None:
        """
        What a milter is doing for a client that has gone is cancelled.
        """
        for name in ("connect", "helo", "envfrom", "envrcpt", "data", "unknown", "header", "eom"):
            cancelled: list[str] = []

            def wait(_: Milter, cancelled: list[str] = cancelled) -> Deferred[int]:
                return Deferred(lambda _: cancelled.append("yes"))

            calls: Calls = []
            session = Session(recorder(calls, **{name: wait}))
            session.say("EHLO x", "FOO", f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA")
            session.say(*MESSAGE, ".")
            session.replies()
            session.vanish()
            self.assertEqual(cancelled, ["yes"], name)
            self.assertEqual(calls[-1], ("close",), name)
            self.assertEqual(session.mailbox.kept, [])
            self.assertEqual(session.clock.getDelayedCalls(), [], name)
            self.assertEqual(session.replies(), [])

    def test_delivery_that_is_still_asked_is_cancelled(self) -> None:
        """
        A delivery that is still asked is cancelled; one that has the message is not.
        """
        asked: list[Deferred[Any]] = [Deferred()]
        session = Session(recorder([]))
        session.mailbox.validateFrom = lambda helo, origin: asked[0]  # type: ignore[method-assign]
        session.say(f"MAIL FROM:{SENDER}")
        session.vanish()
        self.assertEqual(session.clock.getDelayedCalls(), [])
        answer: Deferred[None] = Deferred()
        session = Session(recorder([]))
        session.mailbox.answer = lambda: answer
        session.send()
        session.vanish()
        self.assertNoResult(answer)
        answer.callback(None)
        self.assertEqual(session.clock.getDelayedCalls(), [])
        self.assertEqual(session.delivered, [MESSAGE])

    def test_while_handed_over(self) -> None:
        """
        A client that goes while a large message is handed over has it given up: it will come again.
        """
        session = Session(recorder([]))

        def line(occasion: str) -> None:
            if occasion == "line" and len(session.mailbox.kept[0].lines) == 1000:
                session.clock.callLater(0, session.vanish)

        session.mailbox.check = line  # type: ignore[method-assign]
        session.begin()
        lines = b"".join([b"\r\n", *[b"x" * 998 + b"\r\n"] * 3000])
        session.server.dataReceived(lines + b".\r\n")
        session.settle()
        self.assertLess(1000, len(session.mailbox.kept[0].lines))
        self.assertLess(len(session.mailbox.kept[0].lines), 2000)
        self.assertEqual([kept.end for kept in session.mailbox.kept], ["lost"])
        self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_fails_behind_the_client(self) -> None:
        """
        What fails when the client is gone is logged.
        """
        session = Session(recorder([]))
        asked: Deferred[Any] = Deferred(lambda d: d.errback(OSError("on cancel")))
        session.mailbox.validateFrom = lambda helo, origin: asked  # type: ignore[method-assign]
        session.say(f"MAIL FROM:{SENDER}")
        session.vanish()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.flushLoggedErrors(CancelledError), [])

    def test_reading_is_paused(self) -> None:
        """
        A client that sends on and on while a milter is at work is not read any more.
        """
        waiting: Deferred[int] = Deferred()
        session = Session(recorder([], envfrom=lambda _: waiting))
        session.say(f"MAIL FROM:{SENDER}")
        for _ in range(5):
            session.server.dataReceived(b"RSET\r\n" * 10_000)
        self.assertEqual(session.transport.producerState, "paused")
        waiting.callback(0)
        session.settle()
        self.assertEqual(session.transport.producerState, "producing")
        self.assertEqual(len(session.replies()), 50_001)


@implementer(IRealm)
class Realm:
    """
    Everyone who has logged in has the same delivery.
    """

    def __init__(self, delivery: Any) -> None:
        self.delivery = delivery

    def requestAvatar(self, avatarId: object, mind: object, *interfaces: Any) -> Any:
        """
        Give the delivery.
        """
        return IMessageDelivery, self.delivery, lambda: None


class Anonymous:
    """
    Let everyone in who does not log in.
    """

    credentialInterfaces = (IAnonymous,)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes]:
        """
        Let in.
        """
        return succeed(b"anonymous")


class LoginTests(SynchronousTestCase):
    """
    Clients that log in.
    """

    def session(self, *checkers: Any) -> Session:
        """
        Start a session with a milter that looks at who it is.
        """
        self.seen: list[tuple[str | None, str | None]] = []

        def look(milter: Milter) -> None:
            names = "{auth_type}", "{auth_authen}"
            self.seen.append((milter.smfi_getsymval(names[0]), milter.smfi_getsymval(names[1])))

        users = InMemoryUsernamePasswordDatabaseDontUse(alice=b"secret")
        self.mailbox = Mailbox()
        self.calls: Calls = []
        session = Session(
            recorder(self.calls, envfrom=look),
            portal=Portal(Realm(self.mailbox), [users, *checkers]),
            challengers={b"PLAIN": PLAINCredentials, b"LOGIN": LOGINCredentials},
        )
        session.replies()
        return session

    def test_users_name_and_mechanism_are_macros(self) -> None:
        """
        The user's name and the mechanism are macros.
        """
        session = self.session()
        self.assertIn("250 AUTH PLAIN LOGIN", session.say("EHLO x"))
        self.assertEqual(
            session.say("AUTH plain AGFsaWNlAHNlY3JldA=="), ["235 Authentication successful."]
        )
        self.assertEqual(session.say("AUTH PLAIN"), ["503 Already authenticated"])
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(self.seen, [("PLAIN", "alice")])
        self.assertEqual(len(self.mailbox.kept), 1)

    def test_challenges_are_answered_one_by_one_though_client_sends_all_at_once(self) -> None:
        """
        Challenges are answered one by one, though the client sends all at once.
        """
        session = self.session()
        said = session.say("AUTH LOGIN", "YWxpY2U=", "c2VjcmV0", f"MAIL FROM:{SENDER}")
        self.assertEqual([reply[:3] for reply in said], ["334", "334", "235", "250"])
        self.assertEqual(self.seen, [("LOGIN", "alice")])

    def test_client_that_has_not_logged_in_has_no_name(self) -> None:
        """
        Who has not logged in has no name, and milters are not asked about what needs one.
        """
        session = self.session()
        said = session.say("AUTH PLAIN AGFsaWNlAHdyb25n", f"MAIL FROM:{SENDER}")
        self.assertEqual([reply[:3] for reply in said], ["535", "550"])
        self.assertEqual(self.seen, [])
        self.assertEqual(self.flushLoggedErrors(UnauthorizedLogin), [])

    def test_where_anonymous_clients_are_let_in_milters_hear_of_their_mail_once(self) -> None:
        """
        Where anonymous clients are let in milters hear of their mail, once.
        """
        session = self.session(Anonymous())
        self.assertEqual(session.send(), ["250 Delivery in progress"])
        self.assertEqual(self.seen, [(None, None)])
        self.assertEqual([call[0] for call in self.calls].count("envfrom"), 1)


class TlsTransport(StringTransport):
    """
    A transport that can be told to use TLS, of which nothing is seen here.
    """

    def startTLS(self, context: object) -> None:
        """
        Note that TLS begins.
        """
        self.tls = context


class Handle:
    """
    What pyOpenSSL's connections say of themselves.
    """

    def get_protocol_version_name(self) -> str:
        """
        Name the version.
        """
        return "TLSv1.3"

    def get_cipher_name(self) -> str | None:
        """
        Name the cipher.
        """
        return "TLS_AES_256_GCM_SHA384"

    def get_cipher_bits(self) -> int | None:
        """
        Count the cipher's bits.
        """
        return 256


class Layer:
    """
    A transport that has TLS.
    """

    def getHandle(self) -> Handle:
        """
        Give pyOpenSSL's connection.
        """
        return Handle()


class TlsTests(SynchronousTestCase):
    """
    STARTTLS.
    """

    def start(self, line: str, behind: str = "") -> tuple[Session, list[str]]:
        """
        Begin a message in the clear, and then TLS.
        """
        self.calls: Calls = []
        session = Session(recorder(self.calls), transport=TlsTransport())
        session.replies()
        session.server.ctx = object()
        session.server.canStartTLS = True
        said = session.write(f"EHLO x\r\nMAIL FROM:{SENDER}\r\n{line}\r\n{behind}".encode())
        return session, said

    def test_what_has_come_in_clear_behind_starttls_is_dropped(self) -> None:
        """
        What has come in the clear behind STARTTLS is dropped, and the message before it given up.
        """
        session, said = self.start("STARTTLS", f"MAIL FROM:{SENDER}\r\nRC")
        self.assertEqual(said[-1], "220 Begin TLS negotiation now")
        self.assertEqual(self.calls[-1], ("abort",))
        self.assertEqual(
            session.say(f"RCPT TO:{RECIPIENT}"), ["503 Must have sender before recipient"]
        )
        self.assertEqual(
            session.say("STARTTLS", "RSET"),
            ["503 TLS already negotiated", "250 I remember nothing."],
        )

    def test_where_there_is_no_tls_nothing_is_given_up(self) -> None:
        """
        Where there is no TLS nothing is given up.
        """
        session, _ = self.start("RSET")
        session.server.canStartTLS = False
        said = session.say(f"MAIL FROM:{SENDER}", "STARTTLS", f"RCPT TO:{RECIPIENT}")
        self.assertEqual([reply[:3] for reply in said], ["250", "454", "250"])

    def test_tls_has_macros_whichever_layer_it_is_what_is_not_known_has_none(self) -> None:
        """
        TLS has macros, whichever layer it is; what is not known has none.
        """
        expected = {
            "tls_version": "TLSv1.3",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "cipher_bits": "256",
        }
        self.assertEqual(tls_values(Layer()), expected)
        transport = StringTransport()
        self.assertEqual(tls_values(transport), {})
        transport.protocol = Layer()  # type: ignore[attr-defined]
        self.assertEqual(tls_values(transport), expected)

    def test_no_user_name(self) -> None:
        """
        Credentials without a name leave their macro out.
        """
        self.assertEqual(auth_values(b"xoauth", object()), {"auth_type": "XOAUTH"})

    def test_client_at_unix_socket_has_no_address(self) -> None:
        """
        A client at a UNIX socket has no address.
        """
        transport = StringTransport(hostAddress=object(), peerAddress=object())  # type: ignore[arg-type]
        values = connect_values(transport, "mx.example.com", "unknown", "smtpd")
        self.assertEqual(values["_"], "unknown [unknown]")
        self.assertNotIn("client_port", values)


class OptionTests(SynchronousTestCase):
    """
    Options.
    """

    def test_bad_options_are_refused_where_they_are_given_by_name_and_value(self) -> None:
        """
        Bad options are refused where they are given, by name and value.
        """
        for options, error in (
            ({"milter_factories": 1}, TypeError),
            ({"merge": "all"}, ValueError),
            ({"on_error": 99}, ValueError),
            ({"timeout": -1}, ValueError),
            ({"quarantine": "hold"}, TypeError),
            ({"daemon_name": 1}, TypeError),
            ({"spool_memory": 0}, ValueError),
            ({"max_size": "1"}, TypeError),
        ):
            with self.assertRaises(error) as caught:
                SMTPMilters(**{"milter_factories": (), **options})  # type: ignore[arg-type]
            value = next(iter(options.values()))
            self.assertIn(repr(value), str(caught.exception))

    def test_factory_wants_milters_and_a_delivery_or_a_factory_of_such(self) -> None:
        """
        The factory wants milters, and a delivery or a factory of such.
        """
        milters = SMTPMilters((), reactor=Clock())
        self.assertRaises(TypeError, MilterSMTPFactory, MilterFactory())
        self.assertRaises(TypeError, MilterSMTPFactory, milters, object())
        context = object()
        factory = MilterSMTPFactory(milters, Mailbox(), contextFactory=context)
        server = factory.buildProtocol(None)
        self.assertIs(server.ctx, context)
        self.assertIs(server.milters, milters)
        self.assertNotEqual(server.host, b"")

    def test_server_that_was_given_no_milters_is_twisteds(self) -> None:
        """
        A server that was given no milters is Twisted's; queue ids are different all the same.
        """
        clock = Clock()
        server = MilterESMTP()
        server.callLater = clock.callLater
        server.delivery = Mailbox()
        transport = StringTransport()
        server.makeConnection(transport)
        self.addCleanup(server.setTimeout, None)
        milters = SMTPMilters((), reactor=clock)
        self.assertNotEqual(milters.next_queue_id(), milters.next_queue_id())
