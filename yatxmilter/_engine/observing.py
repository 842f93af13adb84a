"""
Telling observers (`IMilterObserver`) what happens on connections.

An `Audience` is a factory's observers, made into one function for each event; the function is
``None`` where nobody listens to it. A `Watch` is that for one connection. A connection that nobody
observes has none: what it would be told through is chosen when the connection is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._describing import type_name
from yatxmilter._engine.awaitables import outcome_of
from yatxmilter._engine.return_codes import word_of
from yatxmilter._engine.slow_callbacks import SlowCallbacks
from yatxmilter._wire.commands import (
    ACTIONS,
    ALL_COMMANDS,
    MAIL_ROW,
    MTA_CLOSE_ROW,
    MTA_CONNECT_ROW,
    Command,
)
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.payloads import to_text
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import MilterError
from yatxmilter.interfaces import IMilterObserver

if TYPE_CHECKING:
    from yatxmilter._engine.member import Callback, Member

__all__ = ["EVENTS", "Audience", "Watch"]

_log = Logger(__name__)

#: The names of the events: the methods of `IMilterObserver`.
EVENTS: Final = tuple(sorted(IMilterObserver.names()))

#: What each callback is called for, by its name.
_ROWS: Final = {row.callback: row for row in (*ALL_COMMANDS, MTA_CONNECT_ROW, MTA_CLOSE_ROW)}

#: What an answer of the MTA's connection says, by its letter.
_WORDS: Final = {
    c.SMFIR_CONTINUE: "continue",
    c.SMFIR_ACCEPT: "accept",
    c.SMFIR_REJECT: "reject",
    c.SMFIR_TEMPFAIL: "tempfail",
    c.SMFIR_DISCARD: "discard",
    c.SMFIR_SKIP: "skip",
    c.SMFIR_PROGRESS: "progress",
    c.SMFIC_OPTNEG: "negotiated",
}


_MOST_TELLERS: Final = 256


class Audience:
    """
    The observers of a factory.

    It has an attribute for each event: a function that tells all who listen to it, or ``None``.

    Nearly all that is told is that a callback has answered with a continue. An observer that only
    counts may have a method ``usual_answers(milter, stage)``, which gives a function: it is called
    with the seconds of each such answer, and ``callback_answered`` is not called for it then. One
    that has an attribute ``only_unusual`` which is true is told of no continue, be it a callback's
    or one that the MTA gets, where that saves telling it.

    :param base: The class whose methods do nothing, so that they need not be called.
    :param slow: What is told of callbacks that block the process.
    :ivar observers: They, in the order in which they are told.
    :ivar answer_listeners: Of ``callback_answered`` those who listen to continues, too, and their
        methods.
    :ivar hears_of_callbacks: Whether somebody listens to callbacks.
    :ivar times_work: Whether somebody reads for how long milters are at work (`Watch.worked`).
    :ivar tells_usual_answers: Whether somebody listens to each continue that the MTA gets.
    """

    connection_taken: Callable[..., None] | None
    connection_made: Callable[..., None] | None
    connection_lost: Callable[..., None] | None
    connection_refused: Callable[..., None] | None
    message_began: Callable[..., None] | None
    message_ended: Callable[..., None] | None
    callback_called: Callable[..., None] | None
    callback_answered: Callable[..., None] | None
    answer_sent: Callable[..., None] | None
    edit_sent: Callable[..., None] | None
    milter_failed: Callable[..., None] | None
    mta_failed: Callable[..., None] | None
    bytes_received: Callable[..., None] | None
    bytes_sent: Callable[..., None] | None
    shadow_message_ended: Callable[..., None] | None

    def __init__(self, base: type, slow: SlowCallbacks) -> None:
        self.observers: list[Any] = []
        self.slow = slow
        self._base = base
        self._failed: set[tuple[int, str]] = set()
        self._tellers: dict[str, dict[int, Callable[..., object]]] = {}
        self._compile()

    def add(self, observer: Any) -> None:
        """
        Add an observer behind those that are there.
        """
        self.observers.append(observer)
        self._compile()

    def _compile(self) -> None:
        self._tellers.clear()
        for event in EVENTS:
            listeners = [
                (observer, getattr(observer, event))
                for observer in self.observers
                if getattr(type(observer), event, None) is not getattr(self._base, event)
                and hasattr(observer, event)
            ]
            setattr(self, event, self._teller(event, listeners) if listeners else None)
            usual = [one for one in listeners if not getattr(one[0], "only_unusual", False)]
            if event == "callback_answered":
                self.answer_listeners = usual
            elif event == "answer_sent":
                self.tells_usual_answers = bool(usual)
        self.hears_of_callbacks = bool(self.callback_called or self.callback_answered)
        self.times_work = any(getattr(one, "reads_work", False) for one in self.observers)

    def _teller(
        self, event: str, listeners: list[tuple[Any, Callable[..., object]]]
    ) -> Callable[..., None]:
        def tell(*arguments: object) -> None:
            for observer, method in listeners:
                try:
                    method(*arguments)
                except BaseException:
                    self.log_failure(observer, event)

        return tell

    def tellers_of(self, label: str) -> dict[int, Callable[..., object]]:
        """
        Give what calls the callbacks of milters of that name and tells of them, by
        `Command.index`. Connections share them.

        Each is called with the `Member` and the callback's arguments.
        """
        tellers = self._tellers.get(label)
        if tellers is None:
            if len(self._tellers) >= _MOST_TELLERS:
                # Names are the milters' own, who may have made one for each connection.
                self._tellers.clear()
            tellers = {row.index: self.make_teller(label, row) for row in _ROWS.values()}
            self._tellers[label] = tellers
        return tellers

    def make_teller(self, label: str, command: Command) -> Callable[..., object]:
        """
        Make the function that calls a callback, times it and tells of it.

        :param label: The milter's name.
        """
        called, name, slow = self.callback_called, command.callback, self.slow
        seconds, limit = slow.seconds, slow.limit
        usual = self._usual_teller(label, command) if self.answer_listeners else None
        count = self._only_counter(label, name)
        observer = self.answer_listeners[0][0] if self.answer_listeners else None

        def call(member: Member, *arguments: object) -> object:
            watch: Watch = member.watch
            if called is not None:
                called(watch.connection, label, name)
            start = seconds()
            try:
                result: object = getattr(member.milter, name)(*arguments)
                if result is not None and result is not c.SMFIS_CONTINUE:
                    return watch.over(label, command, start, result)
            except BaseException:
                watch.answered(label, command, start, Failure())
                watch.look_back(label, name, start)
                raise
            taken = seconds() - start
            if taken > limit:
                watch.look_back(label, name, start)
            if count is None:
                if usual is not None:
                    usual(watch, taken)
                return result
            # `usual`, without a call.
            try:
                count(taken)
            except BaseException:
                self.log_failure(observer, "usual_answers")
            return result

        return call

    def _only_counter(self, label: str, name: str) -> Callable[[float], object] | None:
        """
        Give what counts usual answers, where that is all that is to be done.
        """
        if len(self.answer_listeners) != 1:
            return None
        return _counter(self.answer_listeners[0][0], label, name)

    def _usual_teller(self, label: str, command: Command) -> Callable[[Watch, float], None]:
        """
        Make the function that tells of a callback which has answered as most do.
        """
        name, word = command.callback, "continue" if command.codes else "done"
        listeners = [
            (observer, method, _counter(observer, label, name))
            for observer, method in self.answer_listeners
        ]

        def tell(watch: Watch, taken: float) -> None:
            for observer, method, count in listeners:
                try:
                    if count is None:
                        method(watch.connection, label, name, word, taken)
                    else:
                        count(taken)
                except BaseException:
                    self.log_failure(observer, "callback_answered")

        return tell

    def log_failure(self, observer: object, event: str) -> None:
        """
        Log what an observer has raised, unless its method has failed before.
        """
        # Once: what fails at one packet fails at each.
        if (id(observer), event) not in self._failed:
            self._failed.add((id(observer), event))
            _log.failure(
                "The observer {observer} failed in {event}(); the connection goes on, and further"
                " failures of this method are not logged",
                observer=type_name(observer),
                event=event,
            )


def _counter(observer: Any, label: str, name: str) -> Callable[[float], object] | None:
    """
    Give what an observer has for usual answers of a callback, if it has something.
    """
    count_of = getattr(observer, "usual_answers", None)
    return None if count_of is None else cast("Callable[[float], object]", count_of(label, name))


class Watch:
    """
    What is told of one connection.

    :param connection: The `MilterProtocol`.
    :param seconds: Tells the time, for how long callbacks take.
    :param times: Whether callbacks are timed, and told of.
    :ivar times: The same.
    :ivar stage: The callback of the command that is being answered.
    :ivar last: The last answer, in a word.
    :ivar received: How many bytes have been read from the MTA; ``sent``: written for it.
    :ivar tells_bytes: Whether somebody listens to the bytes that move.
    :ivar times_work: Whether somebody reads `worked`.
    :ivar only_counts: Whether nobody does: of bytes that move nothing is known but how many.
    :ivar worked: For how many seconds the milters have been at work on the message: while what was
        read was dealt with, and waited for; see `count_work`.
    :ivar since: From when on the milters' work is not counted yet.
    :ivar decider: The milter by which the message, or its connection, was last decided.
    :ivar macros: The connection's.
    :ivar client: What CONNECT said, as it came; ``sender``: what the message's MAIL said.
    :ivar recipients: How many the MTA has named; ``refused``: that it has refused itself.
    :ivar refuses_recipient: Whether the last one is such a one.
    :ivar discards: Whether the message was discarded with a recipient, and goes on for libmilter.
    """

    __slots__ = (
        "_seconds",
        "audience",
        "client",
        "connection",
        "decider",
        "discards",
        "last",
        "macros",
        "only_counts",
        "received",
        "recipients",
        "refused",
        "refuses_recipient",
        "sender",
        "sent",
        "since",
        "stage",
        "tells_bytes",
        "times",
        "times_work",
        "worked",
    )

    macros: MacroStore

    def __init__(
        self, audience: Audience, connection: Any, seconds: Callable[[], float], *, times: bool
    ) -> None:
        self.audience = audience
        self.times = times
        self.tells_bytes = bool(audience.bytes_received or audience.bytes_sent)
        self.times_work = audience.times_work
        self.only_counts = not (self.tells_bytes or self.times_work)
        self.connection = connection
        self.stage = ""
        self.last = ""
        self.received = self.sent = self.recipients = self.refused = 0
        self.refuses_recipient = self.discards = False
        self.worked = 0.0
        self.decider: str | None = None
        self.since = 0.0
        self.client: bytes | None = None
        self.sender: bytes | None = None
        self._seconds = seconds

    # ---- whose message it is

    def hear(self, command: Command, payload: bytes) -> None:
        """
        Keep what a command says of whose message it is.
        """
        if command is MAIL_ROW:
            self.sender = payload
        else:
            self.client = payload

    def hear_recipient(self, *, refused: bool) -> None:
        """
        Count a recipient.

        :param refused: Whether the MTA has refused it already.
        """
        self.recipients += 1
        self.refused += refused
        self.refuses_recipient = refused

    def end_message(self) -> None:
        """
        Forget whose message it was.
        """
        self.sender = None
        self.recipients = self.refused = 0
        self.discards = False

    # ---- how long it takes

    def begin_message(self) -> None:
        """
        Begin to count for how long the milters are at work on a message.
        """
        self.decider = None
        self.worked = 0.0
        self.count_anew()

    def count_work(self, *, now: bool) -> None:
        """
        Bring `worked` up to date.

        :param now: Whether the milters are at work; else they were until the last read was over.
        """
        until = self._seconds() if now else self.connection.moved
        # In a read that breaks the protocol nobody is at work.
        self.worked += max(0.0, until - self.since)
        self.since = until

    def count_read(self, size: int, moved: float | None, began: float) -> None:
        """
        Count what was read; what the last read took counts as the milters' work.

        :param size: How many bytes were read.
        :param moved: When the last read was over; ``None`` if the milters are at work since, as
            the connection is busy.
        :param began: When this one began.
        """
        self.received += size
        if self.tells_bytes:
            self.tell("bytes_received", size)
        if self.times_work and moved is not None:
            self.worked += moved - self.since
            self.since = began

    def count_sent(self, size: int) -> None:
        """
        Count bytes that are written.
        """
        self.sent += size
        if self.tells_bytes:
            self.tell("bytes_sent", size)

    def count_anew(self) -> None:
        """
        Go on to count the milters' work, from now on.
        """
        self.since = self._seconds()

    # ---- callbacks

    def around(self, member: Member, name: str) -> Callback:
        """
        Put what is told of a milter's callback around it.
        """
        if not self.times:
            return cast("Callback", getattr(member.milter, name))
        return partial(self.audience.tellers_of(member.name)[_ROWS[name].index], member)

    def look_back(self, label: str, name: str, start: float) -> None:
        """
        See whether a callback has blocked the process.

        :param label: The milter's name, and ``name``: the callback's.
        :param start: When it was called.
        """
        # If the reactor has gone on without the callback, nothing was blocked till then.
        taken = self._seconds() - max(start, self.connection.resumed)
        if taken > self.audience.slow.limit:
            self.audience.slow.callback(label, name, self.connection, taken)

    def over(self, label: str, command: Command, start: float, result: object) -> object:
        """
        Tell of a callback that has not answered as usual, when it has answered.

        :param label: The milter's name.
        :param start: When it was called.
        """
        over = partial(self.answered, label, command, start)
        # A coroutine begins only here.
        result = outcome_of(result)
        self.look_back(label, command.callback, start)
        return result.addBoth(over) if isinstance(result, Deferred) else over(result)

    def answered(self, label: str, command: Command, start: float, result: object) -> object:
        """
        Tell of an answer.

        :param result: What the callback has returned, or a Failure.
        """
        taken = self._seconds() - start
        answered = self.audience.callback_answered
        if answered is not None:
            answered(self.connection, label, command.callback, _answer(command, result), taken)
        return result

    def output(self, packet: bytes) -> None:
        """
        Tell of a packet for the MTA: an answer or an edit.
        """
        letter, reply = packet[4], None
        action = ACTIONS.get(letter)
        if action is not None and letter != c.SMFIR_PROGRESS:
            edited = self.audience.edit_sent
            if edited is not None:
                edited(self.connection, action.function, action.decode(packet[5:]))
            return
        word = _WORDS.get(letter)
        if word is None:
            # A reply with a text of its own, which starts with its code.
            reply = to_text(packet[5:-1])
            word = "reject" if reply.startswith("5") else "tempfail"
        if letter != c.SMFIR_PROGRESS:
            self.last = word
            self.discards |= letter == c.SMFIR_DISCARD
        if self.audience.answer_sent is not None:
            self.audience.answer_sent(self.connection, self.stage, word, reply)

    def milter_failed(self, milter: str, stage: str, failure: Failure) -> None:
        """
        Tell of a milter that has failed.
        """
        if self.audience.milter_failed is not None:
            self.audience.milter_failed(self.connection, milter, stage, _kind_of(failure), failure)

    def tell(self, event: str, *details: object) -> None:
        """
        Tell of what happens seldom.
        """
        function = getattr(self.audience, event)
        if function is not None:
            function(self.connection, *details)


def _kind_of(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, MilterError):
        return error.kind
    return "timeout" if isinstance(error, TimeoutError) else "error"


def _answer(command: Command, result: object) -> str:
    if result is None or result is c.SMFIS_CONTINUE:
        return "continue" if command.codes else "done"
    if issubclass(type(result), Failure):
        assert isinstance(result, Failure)
        return "cancelled" if result.check(CancelledError) else "error"
    if not command.codes:
        return "done"
    # An object that is looked at may raise.
    try:
        if isinstance(result, int) and not isinstance(result, bool):
            if result in command.codes:
                return word_of(ReturnCode(result))
            if result == c.SMFIS_NOREPLY:
                return "noreply"
    except BaseException:
        pass
    return "error"
