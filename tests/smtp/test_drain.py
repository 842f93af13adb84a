"""
Twisted's SMTP server with milters coming to an end: no message is lost, and no client waited for
that has none.
"""

from __future__ import annotations

from typing import Any

from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.mail.imap4 import LOGINCredentials
from twisted.trial.unittest import SynchronousTestCase

from tests.smtp.test_server import GREETING
from tests.smtp_session import HELLO, MESSAGE, RECIPIENT, SENDER, Session, recorder
from yatxmilter import Milter
from yatxmilter.smtp import MilterSMTPFactory

GOODBYE = "421 4.3.2 mx.example.com is shutting down"
OK = "250 Delivery in progress"


def answers(*names: str) -> tuple[dict[str, Deferred[Any]], dict[str, Any]]:
    """
    Make a milter wait in these callbacks: what it waits for, and the answers for `recorder`.
    """
    awaited: dict[str, Deferred[Any]] = {name: Deferred() for name in names}
    return awaited, {name: lambda _, name=name: awaited[name] for name in names}


class DrainTests(SynchronousTestCase):
    """
    `SMTPMilters.drain`.
    """

    def start(self, *milters: type[Milter]) -> Session:
        """
        Begin a session of which the greeting has been read.
        """
        self.calls: list[tuple[Any, ...]] = []
        session = Session(*milters or (recorder(self.calls),))
        session.replies()
        return session

    def drain(self, session: Session, timeout: float | None = None) -> Deferred[None]:
        """
        Bring the server of a session to its end.
        """
        drained: Deferred[None] = session.server.milters.drain(timeout)
        session.settle()
        return drained

    def test_without_a_connection_there_is_nothing_to_wait_for(self) -> None:
        """
        Without a connection there is nothing to wait for.
        """
        session = self.start()
        session.vanish()
        self.successResultOf(self.drain(session))
        self.assertEqual(session.server.milters.sessions, set())

    def test_client_with_no_message_open_is_told_421(self) -> None:
        """
        A client with no message open is told 421; its milters are told that it has gone.
        """
        for line in ("XYZZY", "EHLO client.example", f"MAIL FROM:{SENDER}\r\nRSET", "AUTH"):
            session = self.start()
            session.say(line)
            drained = self.drain(session)
            self.assertEqual(session.replies(), [GOODBYE], line)
            self.successResultOf(drained)
            self.assertEqual(self.calls[-1], ("close",))
            self.assertEqual(session.clock.getDelayedCalls(), [])

    def test_client_that_has_been_asked_for_its_password_has_no_message_open(self) -> None:
        """
        A client that has been asked for its password has no message open.
        """
        session = Session(
            recorder([]), portal=Portal(None), challengers={b"LOGIN": LOGINCredentials}
        )
        session.say("EHLO client.example")
        self.assertEqual(session.say("AUTH LOGIN"), ["334 VXNlciBOYW1lAA=="])
        drained = self.drain(session)
        self.assertEqual(session.replies(), [GOODBYE])
        self.successResultOf(drained)

    def test_message_that_is_open_is_finished_wherever_it_is(self) -> None:
        """
        A message that is open is finished, wherever it is; what comes behind it is not begun.
        """
        lines = [f"MAIL FROM:{SENDER}", f"RCPT TO:{RECIPIENT}", "DATA", "Subject: x", "", "."]
        for place in range(1, len(lines)):
            session = self.start()
            session.say(*lines[:place])
            drained = self.drain(session)
            self.assertNoResult(drained)
            said = session.say(*lines[place:], f"MAIL FROM:{SENDER}", "QUIT")
            self.assertEqual(said[-2:], [OK, GOODBYE], place)
            self.successResultOf(drained)
            self.assertEqual(session.delivered, [[b"Subject: x", b""]])
            self.assertEqual([call[0] for call in self.calls].count("envfrom"), 1)

    def test_client_that_gives_its_message_up_is_told_421_behind_answer(self) -> None:
        """
        A client that gives its message up is told 421 behind the answer; one that quits is not.
        """
        for line, said in (
            ("RSET", ["250 I remember nothing.", GOODBYE]),
            ("QUIT", ["221 See you later"]),
        ):
            session = self.start()
            session.say(f"MAIL FROM:{SENDER}")
            drained = self.drain(session)
            self.assertEqual(session.say(line), said)
            self.successResultOf(drained)

    def test_what_milters_are_at_when_no_message_is_open_is_answered_first(self) -> None:
        """
        What milters are at when no message is open is answered first: the greeting is not.
        """
        for name, line, said in (("connect", None, []), ("helo", "HELO x", [HELLO])):
            awaited, answer = answers(name)
            session = self.start(recorder([], **answer))
            if line is not None:
                session.say(line)
            drained = self.drain(session)
            self.assertEqual(session.replies(), [])
            self.assertNoResult(drained)
            awaited[name].callback(None)
            session.settle()
            self.assertEqual(session.replies(), [*said, GOODBYE])
            self.successResultOf(drained)

    def test_new_client_is_greeted_with_421_and_milters_are_not_asked(self) -> None:
        """
        A new client is greeted with 421, and the milters are not asked.
        """
        session = self.start()
        session.say(f"MAIL FROM:{SENDER}")
        drained = self.drain(session)
        milters, calls = session.server.milters, len(self.calls)
        factory = MilterSMTPFactory(milters, session.mailbox, domain=b"mx.example.com")
        server: Any = factory.buildProtocol(None)
        transport = StringTransport()
        server.makeConnection(transport)
        self.assertEqual(transport.value().decode(), GOODBYE + "\r\n")
        self.assertTrue(transport.disconnecting)
        server.dataReceived(b"EHLO client.example\r\n")
        server.connectionLost(None)
        self.assertEqual(len(self.calls), calls)
        self.assertNoResult(drained)
        session.vanish()
        self.successResultOf(drained)

    def test_message_that_is_not_finished_in_time_is_given_up_with_421(self) -> None:
        """
        A message that is not finished in time is given up with 421: in the middle of its text, and
        while a milter is at it, which is cancelled.
        """
        cancelled: list[Deferred[Any]] = []
        waiting = recorder([], eom=lambda _: Deferred(cancelled.append))
        for milter, lines in ((recorder([]), ()), (waiting, (*MESSAGE, "."))):
            session = self.start(milter)
            session.begin()
            session.say(*lines)
            drained = self.drain(session, 10)
            session.clock.advance(9)
            self.assertEqual(session.replies(), [])
            session.clock.advance(1)
            session.settle()
            self.assertEqual(session.replies(), [GOODBYE])
            self.successResultOf(drained)
            self.assertEqual(session.delivered, [])
            self.assertEqual(session.clock.getDelayedCalls(), [])
        self.assertEqual(len(cancelled), 1)

    def test_client_that_has_been_told_goodbye_is_not_told_again(self) -> None:
        """
        A client that has been told goodbye is not told again, and is cut off if it does not go.
        """
        session = self.start()
        session.server.dataReceived(b"QUIT\r\n")
        drained = session.server.milters.drain(10)
        session.clock.advance(10)
        session.clock.advance(5)
        self.assertEqual(session.replies(), ["221 See you later"])
        self.assertTrue(session.transport.disconnected)
        self.assertNoResult(drained)
        session.vanish()
        self.successResultOf(drained)

    def test_what_is_no_time_is_refused_and_nothing_is_drained(self) -> None:
        """
        What is no time is refused, and nothing is drained.
        """
        session = self.start()
        milters = session.server.milters
        self.assertRaises(ValueError, milters.drain, -1)
        self.assertRaises(TypeError, milters.drain, "soon")
        self.assertEqual(session.say(f"MAIL FROM:{SENDER}"), ["250 Sender address accepted"])

    def test_sessions_of_server_that_is_not_leaving_are_greeted_as_ever(self) -> None:
        """
        Sessions of a server that is not leaving are greeted as ever.
        """
        self.assertEqual(Session(recorder([])).replies(), [GREETING])
