"""
Tests with callbacks that end their own connection, or say more on it, in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure

from tests.conversation_helpers import (
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    RCPT,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    names,
    packet,
    started,
)
from yatxmilter import DISCONNECT, MilterFactory
from yatxmilter import constants as c

TOGETHER = ("first", "strictest")


def lose(protocol: Any) -> None:
    """
    Have a protocol lose its connection at once.
    """
    protocol.transport.connected = False
    protocol.connectionLost(Failure(ConnectionAborted()))


def losing(result: Any = None) -> Callable[..., Any]:
    """
    Make a callback that loses its connection, and returns something.
    """

    def callback(self: Any, *_: Any) -> Any:
        lose(self.protocol)
        return result() if callable(result) else result

    return callback


class LostInACallbackTests(ConversationTestCase):
    """
    The connection is lost while a callback runs.
    """

    def _assert_over(self, conversation: Conversation, *classes: Any) -> None:
        self.assertEqual(self.failures(), [])
        self.assertEqual(conversation.factory.connections, set())
        for cls in classes:
            called = names(cls.calls)
            self.assertEqual(called.count("close"), 1)
            # Nothing is called behind it.
            self.assertEqual(called[-1], "close")

    def test_others_are_not_called(self) -> None:
        """
        The milters behind it are not called for that step any more, whatever it returns.
        """

        async def coroutine() -> None:
            return None

        for merge in TOGETHER:
            for result in (None, c.SMFIS_CONTINUE, c.SMFIS_REJECT, c.SMFIS_DISCARD, coroutine):
                one, other = full("One", envrcpt=losing(result)), full("Other")
                conversation = started(one, other, merge=merge)
                conversation.send(MAIL, RCPT)
                self.assertEqual(names(other.calls).count("envrcpt"), 0, (merge, result))
                self._assert_over(conversation, one, other)

    def test_what_was_asked_is_cancelled(self) -> None:
        """
        A Deferred of a milter before it is cancelled, and so is one that it returns itself.
        """
        for merge in TOGETHER:
            for result in (None, c.SMFIS_REJECT):
                waiting = Waiting()
                slow, one = full("Slow", envrcpt=waiting), full("One", envrcpt=losing(result))
                conversation = started(slow, one, merge=merge)
                conversation.send(MAIL, RCPT)
                self.assertEqual(waiting.cancelled, 1, (merge, result))
                self._assert_over(conversation, slow, one)
            waiting = Waiting()
            one = full("One", envrcpt=losing(waiting))
            conversation = started(one, merge=merge)
            conversation.send(MAIL, RCPT)
            self.assertEqual(waiting.cancelled, 1, merge)
            self._assert_over(conversation, one)

    def test_rest_of_the_read(self) -> None:
        """
        What came behind the command in the same read is not looked at.
        """
        one = full(envfrom=losing())
        conversation = started(one)
        conversation.send(MAIL + RCPT + DATA + packet("Z"))
        self.assertEqual(names(one.calls)[-3:], ["envfrom", "abort", "close"])
        self._assert_over(conversation, one)

    def test_lost_by_a_canceller(self) -> None:
        """
        A canceller that loses the connection, called for another milter's verdict, ends all: there
        is no error, and nothing is written.
        """
        for code in (c.SMFIS_REJECT, c.SMFIS_DISCARD):
            protocols: list[Any] = []

            def slow(self: Any, *_: Any, protocols: list[Any] = protocols) -> Any:
                protocols.append(self.protocol)
                return Deferred(lambda _: lose(protocols[0]))

            for verdict in (code, Waiting()):
                first, second = full("Slow", envrcpt=slow), full("Quick", envrcpt=verdict)
                conversation = started(first, second)
                conversation.send(MAIL)
                written = conversation.send(RCPT)
                if isinstance(verdict, Waiting):
                    verdict.fire(code)
                    written += conversation.written()
                self.assertEqual(written, b"")
                self._assert_over(conversation, first, second)
                protocols.clear()

    def test_disconnect_beside_a_discard(self) -> None:
        """
        A milter whose failure closes the connection does so though another one discards.
        """
        for later in (False, True):
            fails = Waiting()

            def broken(*_: Any, fails: Waiting = fails, later: bool = later) -> Any:
                if later:
                    return fails()
                raise ValueError("broken")

            one = full("One", envrcpt=c.SMFIS_DISCARD)
            other = MilterFactory(full("Other", envrcpt=broken), on_error=DISCONNECT)
            conversation = started(one, other, merge="strictest")
            conversation.send(MAIL)
            written = conversation.send(RCPT)
            if later:
                fails.deferreds.pop().errback(ValueError("broken"))
                written += conversation.written()
            self.assertEqual((written, conversation.closed), (b"", True))
            (failure,) = self.failures()
            failure.trap(ValueError)
            self.events.clear()

    def test_disconnect_of_what_was_waited_for(self) -> None:
        """
        A failure that is waited for and closes the connection leaves nothing to be answered.
        """
        for merge in TOGETHER:
            waiting = Waiting()
            one = MilterFactory(full("One", envrcpt=waiting), on_error=DISCONNECT)
            other = full("Other")
            conversation = started(one, other, merge=merge)
            conversation.send(MAIL, RCPT)
            conversation.written()
            waiting.deferreds.pop().errback(ValueError("broken"))
            self.assertEqual((conversation.written(), conversation.closed), (b"", True))
            self.assertEqual(names(other.calls)[-2:], ["abort", "close"])
            self.assertEqual(len(self.failures()), 1)
            self.events.clear()


class SaidInACallbackTests(ConversationTestCase):
    """
    Bytes arrive while a callback runs.
    """

    def test_commands_said_in_a_callback_come_behind_what_was_read(self) -> None:
        """
        They come behind what was read already, cut or whole, and are answered with it.
        """
        stream = MAIL + RCPT + DATA + HEADER
        for cut in range(len(stream) + 1):
            one = full(
                helo=lambda self, _, rest=stream[cut:]: self.protocol.dataReceived(rest + EOH)
            )
            conversation = started(one)
            self.assertEqual(conversation.letters(CONNECT + HELO + stream[:cut]), "ccccccc")
            self.assertEqual(
                names(one.calls), ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh"]
            )

    def test_while_it_is_waited_for(self) -> None:
        """
        When a command of a read is waited for, the rest comes before what arrives later, and each
        command can be waited for once more.
        """
        waiting = Waiting()
        one = full(envfrom=waiting, envrcpt=waiting, data=waiting, header=waiting)
        conversation = started(one)
        stream = MAIL + RCPT + DATA + HEADER
        self.assertEqual(conversation.letters(stream[:30], stream[30:55], stream[55:] + EOH), "")
        for number in range(1, 5):
            self.assertEqual(len(one.calls), number)
            waiting.fire()
        self.assertEqual(names(one.calls), ["envfrom", "envrcpt", "data", "header", "eoh"])
        self.assertEqual(conversation.letters(EOM), "cccccc")


class OddLengthTests(ConversationTestCase):
    """
    Packets in one read whose lengths are unusual.
    """

    def test_length_of_0_is_packet_without_payload_also_in_middle_of_read(self) -> None:
        """
        A length of 0 is a packet without payload, also in the middle of a read.
        """
        one = full()
        conversation = started(one)
        self.assertEqual(conversation.letters(MAIL + RCPT + b"\0\0\0\0T" + HEADER + EOH), "ccccc")

    def test_too_long_behind_others(self) -> None:
        """
        What came before a length that is too long is answered first.
        """
        one = full()
        conversation = started(one)
        written = conversation.letters(MAIL + RCPT + b"\0\x7f\0\0B")
        self.assertEqual((written, conversation.closed), ("cc", True))
