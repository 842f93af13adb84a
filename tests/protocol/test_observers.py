"""
Tests of observers: what they are told of connections, messages, callbacks, answers and faults.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import skipIf

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.conversation_helpers import EOM, MAIL, RCPT, Conversation, full, offer, parse
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter import constants as c
from yatxmilter._engine.connection import COMPILED
from yatxmilter.client import MilterClient
from yatxmilter.client._in_memory import InMemoryConnection, connect_in_memory
from yatxmilter.defaults import MilterObserver
from yatxmilter.errors import (
    LimitExceeded,
    MilterError,
    NegotiationError,
    PeerError,
    ProtocolError,
    ReturnCodeError,
)
from yatxmilter.interfaces import IMilterObserver

MESSAGE = b"Subject: x\n\nbody\n"
EVENTS = sorted(IMilterObserver.names())
NOT_TOLD = ("bytes_received", "bytes_sent")


def recorder(*names: str, without: tuple[str, ...] = ()) -> Any:
    """
    Make an observer that keeps what it is told by methods of these names, by default by all.
    """

    class Recorder(MilterObserver):
        def __init__(self) -> None:
            self.told: list[tuple[Any, ...]] = []

        def of(self, *events: str) -> list[tuple[Any, ...]]:
            return [event for event in self.told if event[0] in events]

    def method(name: str) -> Callable[..., None]:
        def tell(self: Any, *details: Any) -> None:
            self.told.append((name, *details))

        return tell

    for name in names or EVENTS:
        if name not in without:
            setattr(Recorder, name, method(name))
    return Recorder()


class Server:
    """
    A factory with observers, and an MTA in memory.
    """

    def __init__(self, milters: Any, *observers: Any, **options: Any) -> None:
        self.clock = Clock()
        self.factory = MilterProtocolFactory(
            milters, reactor=self.clock, observers=observers, **options
        )
        self.connections: list[InMemoryConnection] = []

    def connect(self) -> MilterClient:
        """
        Connect an MTA.
        """
        client = MilterClient(clock=self.clock, timeout=None)
        peer = IPv4Address("TCP", "192.0.2.9", 9)
        self.connections.append(connect_in_memory(client, self.factory, mta_address=peer))
        return client

    def talk(self) -> MilterClient:
        """
        Connect an MTA that says what comes before a message.
        """
        client = self.connect()
        client.negotiate()
        client.connect("h.example.org", IPv4Address("TCP", "192.0.2.1", 25))
        client.helo("h.example.org")
        self.flush()
        return client

    def send(self, client: MilterClient) -> None:
        """
        Send a message.
        """
        client.send_message(MESSAGE, "<a@example.org>", ["<b@example.net>"])
        self.flush()

    def flush(self) -> None:
        """
        Carry what is on its way.
        """
        for connection in self.connections:
            connection.flush()


class Senders(Milter):
    """
    Looks at senders alone.
    """

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        """
        See `Milter`.
        """


def without_connection(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """
    Leave the connection out of what was told.
    """
    return [(event[0], *event[2:]) for event in events]


class OrderTests(SynchronousTestCase):
    """
    What is told, and in which order.
    """

    def test_connection_with_one_message_is_told_from_its_beginning_to_its_end(self) -> None:
        """
        A connection with one message is told from its beginning to its end, in the order of things.
        """

        class Tagger(Milter):
            def xxfi_envrcpt(self, argv: list[str]) -> Any:
                return None

            def xxfi_eom(self) -> Any:
                self.smfi_addheader("X-Tag", "1")
                self.smfi_setreply("550", "5.7.1", "no")
                return c.SMFIS_REJECT if self.smfi_getsymval("no") else None

            def xxfi_close(self) -> None:
                pass

        for merge in ("first", "strictest", "chain"):
            with self.subTest(merge=merge):
                observer = recorder(without=NOT_TOLD)
                server = Server(MilterFactory(Tagger), observer, merge=merge)
                client = server.talk()
                (connection,) = server.factory.connections
                server.send(client)
                client.quit()
                server.flush()
                self.assertTrue(all(event[1] is connection for event in observer.told))
                told = without_connection(observer.told)
                begins = told.index(("message_began",))
                self.assertEqual(
                    told[:begins],
                    [
                        ("connection_taken",),
                        ("connection_made",),
                        ("answer_sent", "xxfi_negotiate", "negotiated", None),
                    ],
                )
                self.assertEqual(
                    [event for event in told[begins:-1] if event[-2:] != ("continue", None)],
                    [
                        ("message_began",),
                        ("callback_called", "Tagger", "xxfi_envrcpt"),
                        ("callback_answered", "Tagger", "xxfi_envrcpt", "continue", 0.0),
                        ("callback_called", "Tagger", "xxfi_eom"),
                        ("callback_answered", "Tagger", "xxfi_eom", "continue", 0.0),
                        ("edit_sent", "smfi_addheader", ("X-Tag", "1")),
                        ("message_ended", "continue"),
                        ("callback_called", "Tagger", "xxfi_close"),
                        ("callback_answered", "Tagger", "xxfi_close", "done", 0.0),
                    ],
                )
                answers = [event[1] for event in told if event[-2:] == ("continue", None)]
                self.assertEqual(answers, ["xxfi_envrcpt", "xxfi_eom"])
                self.assertEqual(told[-1][0], "connection_lost")

    def test_every_answer_is_told_in_a_word(self) -> None:
        """
        Every answer is told in a word, with its text where it has one.
        """
        answers = {
            "accept": c.SMFIS_ACCEPT,
            "reject": c.SMFIS_REJECT,
            "tempfail": c.SMFIS_TEMPFAIL,
            "discard": c.SMFIS_DISCARD,
        }
        for word, code in answers.items():
            for said in (None, "4.7.1", "5.7.1"):

                class Judge(Milter):
                    verdict, text = code, said

                    def xxfi_envfrom(self, argv: list[str]) -> Any:
                        if self.text is not None:
                            self.smfi_setreply(self.text[0] + "50", self.text, "words")
                        return self.verdict

                observer = recorder("answer_sent", "message_ended", "callback_answered")
                server = Server(MilterFactory(Judge), observer)
                server.talk().mail("<a@example.org>")
                server.flush()
                fits = {"reject": "5.7.1", "tempfail": "4.7.1"}.get(word) == said
                reply = f"{said[0]}50 {said} words" if fits and said is not None else None
                self.assertEqual(
                    without_connection(observer.told)[1:],
                    [
                        ("callback_answered", "Judge", "xxfi_envfrom", word, 0.0),
                        ("answer_sent", "xxfi_envfrom", word, reply),
                        ("message_ended", word),
                    ],
                )

    def test_time_of_waiting_callbacks(self) -> None:
        """
        The time of a callback ends with its answer, be it a Deferred's, a coroutine's, or both.
        """
        waiting: list[Deferred[Any]] = []

        class Slow(Milter):
            def xxfi_envfrom(self, argv: list[str]) -> Any:
                waiting.append(Deferred())
                return waiting[-1]

            async def xxfi_envrcpt(self, argv: list[str]) -> Any:
                waiting.append(Deferred())
                return await waiting[-1]

            async def xxfi_data(self) -> Any:
                return succeed(c.SMFIS_CONTINUE)

            async def xxfi_eom(self) -> Any:
                waiting.append(Deferred())
                await waiting[-1]
                raise RuntimeError("a fault")

        observer = recorder("callback_answered", "message_ended")
        server = Server(MilterFactory(Slow), observer)
        server.send(server.talk())
        for seconds in (1, 2, 3):
            server.clock.advance(seconds)
            waiting.pop().callback(None)
            server.flush()
        self.assertEqual(
            [event[-3:] for event in observer.told],
            [
                ("xxfi_envfrom", "continue", 1.0),
                ("xxfi_envrcpt", "continue", 2.0),
                ("xxfi_data", "continue", 0.0),
                ("xxfi_eom", "error", 3.0),
                ("message_ended", *observer.told[-1][1:]),
            ],
        )
        self.assertEqual(observer.told[-1][-1], "tempfail")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_observer_of_calls_alone_is_told_of_each(self) -> None:
        """
        An observer of calls alone is told of each, whatever way the callback answers in.
        """

        class Ways(Milter):
            async def xxfi_helo(self, helohost: str) -> Any:
                return c.SMFIS_CONTINUE

            def xxfi_envfrom(self, argv: list[str]) -> Any:
                return succeed(None)

            def xxfi_eom(self) -> Any:
                return c.SMFIS_ACCEPT

        observer = recorder("callback_called")
        server = Server(MilterFactory(Ways), observer)
        server.send(server.talk())
        called = [event[-1] for event in observer.told]
        self.assertEqual(called, ["xxfi_helo", "xxfi_envfrom", "xxfi_eom"])

    def test_failures_alone_are_not_told(self) -> None:
        """
        Where nobody asks for failures they are logged all the same.
        """

        class Failing(Milter):
            def xxfi_helo(self, helohost: str) -> Any:
                raise RuntimeError("a fault")

            def xxfi_close(self) -> Any:
                return c.SMFIS_REJECT

        observer = recorder("callback_answered", "edit_sent")
        server = Server(MilterFactory(Failing), observer)
        server.talk().quit()
        server.flush()
        told = [event[3:5] for event in observer.told]
        self.assertEqual(told, [("xxfi_helo", "error"), ("xxfi_close", "done")])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_progress_and_skip(self) -> None:
        """
        SMFIR_PROGRESS and SMFIR_SKIP are told as answers.
        """
        waiting: Deferred[Any] = Deferred()

        class Skipping(Milter):
            def xxfi_body(self, bodyp: bytes) -> Any:
                return c.SMFIS_SKIP

            def xxfi_eom(self) -> Any:
                return waiting

        observer = recorder("answer_sent", "message_ended")
        server = Server(MilterFactory(Skipping), observer, progress_interval=5)
        server.send(server.talk())
        server.clock.advance(5)
        waiting.callback(c.SMFIS_DISCARD)
        server.flush()
        told = [event[2:4] for event in observer.told]
        self.assertIn(("xxfi_body", "skip"), told)
        self.assertEqual(
            told[-3:], [("xxfi_eom", "progress"), ("xxfi_eom", "discard"), ("discard",)]
        )

    def test_message_that_mta_aborts_quits_or_vanishes_in_is_aborted_once(self) -> None:
        """
        A message that the MTA aborts, leaves by QUIT_NC, quits in or vanishes in is aborted, once.
        """
        for end in ("abort", "quit_nc", "quit", "vanish"):
            observer = recorder("message_began", "message_ended")
            server = Server(MilterFactory(Senders), observer)
            client = server.talk()
            client.mail("<a@example.org>")
            server.flush()
            if end == "vanish":
                server.connections[-1].mta.abortConnection()
            else:
                getattr(client, end)()
            server.flush()
            self.assertEqual(
                without_connection(observer.told),
                [("message_began",), ("message_ended", "aborted")],
                end,
            )

    def test_bytes_told_are_those_that_went_over_the_wire_both_ways(self) -> None:
        """
        The bytes told are those that went over the wire, both ways.
        """
        for milter in (Milter, full()):
            observer = recorder(*NOT_TOLD)
            server = Server(MilterFactory(milter), observer)
            client = server.connect()
            ends = server.connections[0]
            written = {"bytes_received": 0, "bytes_sent": 0}
            for name, end in (("bytes_received", ends.mta), ("bytes_sent", ends.milter)):

                def write(
                    data: bytes, name: str = name, write: Any = end.write, to: Any = written
                ) -> None:
                    to[name] += len(data)
                    write(data)

                self.patch(end, "write", write)
            client.negotiate()
            client.helo("h.example.org")
            server.send(client)
            counted = {name: sum(event[2] for event in observer.of(name)) for name in NOT_TOLD}
            self.assertEqual(counted, written)

    def test_bytes_are_counted_where_there_are_observers(self) -> None:
        """
        Bytes are counted where there are observers, whether these are told of them or not.
        """

        def moved(*observers: Any) -> tuple[int, int]:
            server = Server(MilterFactory(full()), *observers)
            server.talk()
            (protocol,) = server.factory.connections
            traffic: tuple[int, int] = protocol.traffic
            return traffic

        heard = recorder(*NOT_TOLD)
        counted = moved(heard)
        told = [sum(event[2] for event in heard.of(name)) for name in NOT_TOLD]
        self.assertEqual([*counted], told)
        self.assertEqual([moved(recorder("message_ended")), moved()], [counted, (0, 0)])

    def test_edits_are_sent_once_though_who_hears_of_them_ends_the_connection(self) -> None:
        """
        What a message is answered with is sent once, and its bytes are told once, few edits or
        many, also where the observer that is told of them ends the connection.
        """

        class Ender(MilterObserver):
            ending = ""

            def bytes_sent(self, connection: Any, size: int) -> None:
                sizes.append(size)
                if talk.clock.seconds():
                    getattr(connection, self.ending)()

        for edits, ending in itertools.product((1, 9), ("drain", "give_up")):
            Ender.ending = ending

            def edit(milter: Any, edits: int = edits) -> None:
                for _ in range(edits):
                    milter.smfi_addheader("X-Tag", "seen")

            sizes: list[int] = []
            talk = Conversation(full(eom=edit), observers=[Ender()])
            written = talk.send(offer(), MAIL, RCPT)
            talk.clock.advance(1)
            sent = talk.send(EOM)
            self.assertEqual([letter for letter, _ in parse(sent)], [*"h" * edits, "c"])
            self.assertEqual((sum(sizes), talk.closed), (len(written + sent), True))

    def test_answers_are_told_without_the_edits_before_them(self) -> None:
        """
        An observer that only wants answers gets them, though the milter edits the message too.
        """

        class Tagger(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Tag", "seen")

        observer = recorder("answer_sent")
        server = Server(MilterFactory(Tagger), observer)
        server.send(server.talk())
        self.assertEqual(
            without_connection(observer.told)[-1], ("answer_sent", "xxfi_eom", "continue", None)
        )

    def test_message_that_a_shadow_was_too_late_for_is_told_as_cut_off(self) -> None:
        """
        If a milter in shadow is too far behind, what is told of its message is that it was cut off.
        """

        class Late(Milter):
            def xxfi_eom(self) -> Any:
                return Deferred()

        observer = recorder("shadow_message_ended")
        milters = MilterFactory(Late, shadow=True, name="tried")
        assert milters.shadow is not None
        milters.shadow.backlog = 150
        server = Server(milters, observer)
        client = server.talk()
        server.send(client)
        self.assertEqual(observer.told, [])
        for _ in range(2):
            server.clock.pump([0, 0, 0])
            server.send(client)
        server.clock.pump([0, 0, 0])
        self.assertEqual(
            without_connection(observer.told), [("shadow_message_ended", "tried", "cut_off")]
        )
        self.flushLoggedErrors()

    def test_milter_in_shadow_is_told_of_by_its_own_event_alone(self) -> None:
        """
        A milter in shadow is told of by its own event alone.
        """

        class Judge(Milter):
            def xxfi_eom(self) -> Any:
                return c.SMFIS_REJECT

        observer = recorder("callback_called", "shadow_message_ended", "message_ended")
        server = Server(MilterFactory(Judge, shadow=True, name="tried"), observer)
        server.send(server.talk())
        server.clock.pump([0, 0, 0])
        self.assertEqual(
            without_connection(observer.told),
            [("message_ended", "continue"), ("shadow_message_ended", "tried", "reject")],
        )


class FaultTests(SynchronousTestCase):
    """
    Faults of MTAs, of milters and of observers.
    """

    def test_kinds_of_mta_faults(self) -> None:
        """
        What an MTA does wrong has a kind of its own, whatever the text of the error says.
        """
        observer = recorder("mta_failed")
        server = Server(MilterFactory(Milter), observer, timeout=10, max_macros=1)
        for data in (b"\xff\xff\xff\xffM", b"\0\0\0\x0aDCa\0b\0c\0d\0", b"\0\0\0\1?"):
            server.connect()
            server.connections[-1].mta.write(data)
        server.connect()
        server.flush()
        server.clock.advance(11)
        self.assertEqual(
            sorted(event[2] for event in observer.told),
            ["macros", "protocol", "protocol", "silent"],
        )
        self.assertTrue(all(event[3] for event in observer.told))

    def test_kinds_of_milter_failures(self) -> None:
        """
        A failure is told once, with its kind: time-out, wrong answer, negotiation, any other.
        """

        class Failing(Milter):
            def xxfi_helo(self, helohost: str) -> Any:
                return "nonsense"

            def xxfi_envfrom(self, argv: list[str]) -> Any:
                raise RuntimeError("a fault")

            def xxfi_eom(self) -> Any:
                return Deferred()

            def xxfi_close(self) -> None:
                raise ValueError("another fault")

        observer = recorder("milter_failed")
        factory = MilterFactory(Failing, timeout=2, on_error=c.SMFIS_CONTINUE)
        server = Server(factory, observer)
        client = server.talk()
        server.send(client)
        server.clock.advance(2)
        server.flush()
        client.quit()
        server.flush()
        self.assertEqual(
            [event[2:5] for event in observer.told],
            [
                ("Failing", "xxfi_helo", "return_code"),
                ("Failing", "xxfi_envfrom", "error"),
                ("Failing", "xxfi_eom", "timeout"),
                ("Failing", "xxfi_close", "error"),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors()), 4)

    def test_negotiation_and_building(self) -> None:
        """
        A milter whose request cannot be met, and one that cannot be built, have failed too.
        """

        class Demanding(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> Any:
                return c.SMFIS_CONTINUE, 1 << 30, 0

        def broken(factory: Any, protocol: Any) -> Any:
            raise RuntimeError("a fault")

        observer = recorder("milter_failed", "connection_taken")
        server = Server([MilterFactory(Demanding), MilterFactory(broken, name="broken")], observer)
        offered = server.connect().negotiate()
        server.flush()
        self.failureResultOf(offered, PeerError)
        self.assertEqual(
            [event[2:5] for event in observer.told],
            [
                ("broken", "build_milter", "error"),
                (),
                ("Demanding", "xxfi_negotiate", "negotiation"),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_connection_that_is_not_taken_is_told_with_its_reason(self) -> None:
        """
        A connection that is not taken is told with its reason.
        """
        observer = recorder("connection_refused", "connection_taken")
        server = Server(MilterFactory(Milter), observer, max_connections=1)
        server.connect()
        server.connect()
        ((event, _), (refused, address, reason)) = observer.told
        self.assertEqual((event, refused), ("connection_taken", "connection_refused"))
        self.assertEqual(address.host, "192.0.2.9")
        self.assertEqual(reason, "there are 1 connections already")

    def test_observer_that_raises_costs_no_answer(self) -> None:
        """
        An observer that raises costs no answer, and each of its methods is logged once.
        """

        class Tagger(Milter):
            def xxfi_header(self, headerf: str, headerv: str) -> Any:
                return None

            def xxfi_eom(self) -> Any:
                self.smfi_addheader("X-Tag", "1")
                return c.SMFIS_ACCEPT

        def fail(self: Any, *details: Any) -> None:
            raise SystemExit("a fault")

        class Failing(MilterObserver):
            pass

        for name in EVENTS:
            setattr(Failing, name, fail)
        heard = recorder("message_ended")
        for observers in ([Failing()], [Failing(), heard]):
            server = Server(MilterFactory(Tagger), *observers)
            client = server.talk()
            results = [
                client.send_message(MESSAGE, "<a@example.org>", ["<b@example.net>"])
                for _ in range(3)
            ]
            server.flush()
            for result in results:
                self.assertIs(self.successResultOf(result).verdict, c.SMFIS_ACCEPT)
            client.quit()
            server.flush()
            logged = self.flushLoggedErrors(SystemExit)
            self.assertEqual(len(logged), len(EVENTS) - 4)
        self.assertEqual([event[2] for event in heard.told], ["accept"] * 3)

    def test_what_is_no_answer_is_an_error_for_observers_too(self) -> None:
        """
        What is no answer, or does not let itself be looked at, is an error for observers too.
        """

        class Odd(int):
            __slots__ = ()
            __hash__ = None  # type: ignore[assignment]

        class Hidden:
            @property
            def __class__(self) -> Any:
                raise RuntimeError("do not look")

        # To a compiled engine a number is what it counts.
        for answer in (*([] if COMPILED else [Odd(3)]), Hidden(), True, 99, "x"):

            class Answering(Milter):
                result = answer

                def xxfi_helo(self, helohost: str) -> Any:
                    return self.result

            observer = recorder("callback_answered", "milter_failed")
            server = Server(MilterFactory(Answering), observer)
            server.talk()
            self.assertEqual(
                [event[:1] + event[3:5] for event in observer.told],
                [
                    ("callback_answered", "xxfi_helo", "error"),
                    ("milter_failed", "xxfi_helo", observer.told[1][4]),
                ],
            )
            self.flushLoggedErrors()


class FactoryTests(SynchronousTestCase):
    """
    Giving observers to a factory.
    """

    def test_what_does_not_provide_the_interface_is_refused_with_what_to_do(self) -> None:
        """
        What does not provide the interface is refused with what to do.
        """
        factory = MilterProtocolFactory(MilterFactory(Milter), reactor=Clock())
        error = self.assertRaises(TypeError, factory.addObserver, 5)
        self.assertIn("MilterObserver", str(error))
        self.assertEqual(factory.observers, [])
        verifyObject(IMilterObserver, MilterObserver())

    def test_base_does_nothing(self) -> None:
        """
        The class to subclass has each method of the interface, and each does nothing.
        """
        base = MilterObserver()
        for name in EVENTS:
            method = getattr(base, name)
            count = method.__code__.co_argcount - 1
            self.assertIs(method(*[None] * count), None)

    def test_later_connections_only(self) -> None:
        """
        An observer is told of connections that come after it, and in the order of adding.
        """
        server = Server(MilterFactory(Milter))
        client = server.talk()
        order: list[str] = []

        class Ordered(MilterObserver):
            def __init__(self, name: str) -> None:
                self.name = name

            def connection_made(self, connection: object) -> None:
                order.append(self.name)

        observer = recorder("message_began")
        for one in (Ordered("a"), Ordered("b"), observer):
            server.factory.addObserver(one)
        server.send(client)
        self.assertEqual((order, observer.told), ([], []))
        server.send(server.talk())
        self.assertEqual(order, ["a", "b"])
        self.assertEqual(len(observer.told), 1)

    def test_observer_need_not_be_a_milterobserver(self) -> None:
        """
        An observer need be no MilterObserver; a method that it has not is not missed.
        """

        @implementer(IMilterObserver)
        class Own:
            def __init__(self) -> None:
                self.ended: list[str] = []

            def message_ended(self, connection: object, outcome: str) -> None:
                self.ended.append(outcome)

        own = Own()
        server = Server(MilterFactory(Milter), own)
        server.send(server.talk())
        self.assertEqual(own.ended, ["continue"])

    @skipIf(COMPILED, "a compiled engine has no frames of Python's")
    def test_clock_is_not_asked_for_others(self) -> None:
        """
        Where no callback is observed the milter's own methods are called, without a look at the
        clock.
        """
        callers: list[str] = []

        class Watching(Milter):
            def xxfi_helo(self, helohost: str) -> Any:
                import sys

                callers.append(sys._getframe(1).f_code.co_name)

        for observers in ([], [recorder("message_ended")]):
            Server(MilterFactory(Watching), *observers).talk()
        self.assertEqual(callers, ["handle", "handle"])


class KindTests(SynchronousTestCase):
    """
    Errors have kinds.
    """

    def test_each_error_says_in_a_word_what_kind_it_is(self) -> None:
        """
        Each error says in a word what kind it is.
        """
        kinds = {
            MilterError(): "error",
            ProtocolError("macros, says a stranger"): "protocol",
            ProtocolError("too many", "macros"): "macros",
            NegotiationError(): "negotiation",
            LimitExceeded(): "limit",
            ReturnCodeError(): "return_code",
        }
        self.assertEqual({error: error.kind for error in kinds}, kinds)


class CountingTests(SynchronousTestCase):
    """
    Observers that only count.
    """

    def counting(self, fails: bool = False) -> Any:
        class Counting(MilterObserver):
            def __init__(self) -> None:
                self.usual: list[tuple[str, str]] = []
                self.other: list[tuple[str, str]] = []

            def usual_answers(self, milter: str, stage: str) -> Callable[[float], None]:
                def count(seconds: float) -> None:
                    self.usual.append((milter, stage))
                    if fails:
                        raise ZeroDivisionError

                return count

            def callback_answered(self, connection: Any, milter: str, stage: str, *_: Any) -> None:
                self.other.append((milter, stage))

        return Counting()

    class Helo(Milter):
        """
        Has two callbacks, one of which answers otherwise than usual.
        """

        def xxfi_helo(self, helohost: str) -> None:
            """
            Go on.
            """

        def xxfi_envfrom(self, argv: list[str]) -> Any:
            """
            Refuse.
            """
            return c.SMFIS_REJECT

    def talk(self, *observers: Any, name: str = "Helo") -> None:
        server = Server(MilterFactory(self.Helo, name=name), *observers)
        client = server.connect()
        client.negotiate()
        client.helo("h.example.org")
        client.mail("<a@example.org>")
        server.connections[0].flush()

    def test_one_that_counts_usual_answers_is_told_of_the_others_by_themselves(self) -> None:
        """
        One that counts usual answers is told of the others by themselves.
        """
        counting = self.counting()
        self.talk(counting)
        self.assertEqual(
            (counting.usual, counting.other), ([("Helo", "xxfi_helo")], [("Helo", "xxfi_envfrom")])
        )

    def test_other_observers_are_told_of_each_beside_it(self) -> None:
        """
        Beside it others are told of each; what it raises is logged and does no harm, alone or not.
        """
        counting, other = self.counting(fails=True), recorder("callback_answered")
        self.talk(counting, other)
        self.talk(counting)
        self.assertEqual(counting.usual, [("Helo", "xxfi_helo")] * 2)
        self.assertEqual(counting.other, [("Helo", "xxfi_envfrom")] * 2)
        self.assertEqual([event[3] for event in other.told], ["xxfi_helo", "xxfi_envfrom"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_server_whose_milters_all_have_names_of_their_own_tells_of_each(self) -> None:
        """
        A server whose milters all have names of their own tells of each.
        """
        other = recorder("callback_answered")
        server = Server((), other)
        for number in range(300):
            server.factory.milter_factories[:] = [MilterFactory(self.Helo, name=f"m{number}")]
            client = server.connect()
            client.negotiate()
            client.helo("h.example.org")
            server.connections.pop().flush()
        self.assertEqual([event[2] for event in other.told], [f"m{n}" for n in range(300)])
