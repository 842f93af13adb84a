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
    MTA_CLOSE_ROW,
    MTA_CONNECT_ROW,
    Command,
)
from yatxmilter._wire.payloads import to_text
from yatxmilter.constants import ReturnCode
from yatxmilter.errors import MilterError
from yatxmilter.interfaces import IMilterObserver

if TYPE_CHECKING:
    from yatxmilter._engine.member import Callback, Member

__all__ = ["EVENTS", "Audience", "Watch"]

_log = Logger()

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


_UNKNOWN: Final = object()
_MOST_TELLERS: Final = 256


class Audience:
    """
    The observers of a factory.

    It has an attribute for each event: a function that tells all who listen to it, or ``None``.

    Nearly all that is told is that a callback has answered with a continue. An observer that only
    counts may have a method ``usual_answers(milter, stage)``, which gives a function: it is called
    with the seconds of each such answer, and ``callback_answered`` is not called for it then.

    :param base: The class whose methods do nothing, so that they need not be called.
    :ivar observers: They, in the order in which they are told.
    :ivar answer_listeners: Of ``callback_answered`` those who listen, and their methods.
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

    def __init__(self, base: type) -> None:
        self.observers: list[Any] = []
        self._base = base
        self._failed: set[tuple[int, str]] = set()
        self._tellers: dict[tuple[str, str], Callable[..., object] | None] = {}
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
            if event == "callback_answered":
                self.answer_listeners = listeners

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

    def teller_of(
        self, label: str, name: str, seconds: Callable[[], float]
    ) -> Callable[..., object] | None:
        """
        Give the function that calls a callback and tells of it; ``None`` where nobody listens.

        It is called with the connection's `Watch`, the milter and the callback's arguments.

        :param label: The milter's name.
        :param name: The callback's.
        :param seconds: Tells the time.
        """
        known = self._tellers.get((label, name), _UNKNOWN)
        if known is _UNKNOWN:
            if len(self._tellers) >= _MOST_TELLERS:
                # Names are the milters' own, who may have made one for each connection.
                self._tellers.clear()
            known = self._make_teller(label, _ROWS[name], seconds)
            self._tellers[label, name] = known
        return cast("Callable[..., object] | None", known)

    def _make_teller(
        self, label: str, command: Command, seconds: Callable[[], float]
    ) -> Callable[..., object] | None:
        called, name = self.callback_called, command.callback
        if called is None and not self.answer_listeners:
            return None
        usual = self._usual_teller(label, command)
        count = self._only_counter(label, name)
        observer = self.answer_listeners[0][0] if self.answer_listeners else None

        def call(watch: Watch, milter: object, *arguments: object) -> object:
            if called is not None:
                called(watch.connection, label, name)
            start = seconds()
            try:
                result: object = getattr(milter, name)(*arguments)
                if result is not None and result is not c.SMFIS_CONTINUE:
                    return watch.over(label, command, start, result)
            except BaseException:
                watch.answered(label, command, start, Failure())
                raise
            if count is None:
                usual(watch, seconds() - start)
                return result
            # `usual`, without a call.
            try:
                count(seconds() - start)
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
    :param slow: What is told of callbacks that block the process, if they are timed here.
    :ivar stage: The callback of the command that is being answered.
    :ivar last: The last answer, in a word.
    :ivar received: How many bytes have been read from the MTA; ``sent``: written for it.
    """

    __slots__ = ("_seconds", "audience", "connection", "last", "received", "sent", "slow", "stage")

    def __init__(
        self,
        audience: Audience,
        connection: object,
        seconds: Callable[[], float],
        slow: SlowCallbacks | None = None,
    ) -> None:
        self.audience = audience
        self.connection = connection
        self.stage = ""
        self.last = ""
        self.received = self.sent = 0
        self.slow = slow
        self._seconds = seconds

    def around(self, member: Member, name: str) -> Callback:
        """
        Put what is told of a milter's callback around it.
        """
        tell = self.audience.teller_of(member.name, name, self._seconds)
        callback: Callback
        if tell is None:
            callback = getattr(member.milter, name)
        else:
            callback = partial(tell, self, member.milter)
        if self.slow is None:
            return callback
        return self.slow.around(callback, member.name, name, self.connection)

    def over(self, label: str, command: Command, start: float, result: object) -> object:
        """
        Tell of a callback that has not answered as usual, when it has answered.

        :param label: The milter's name.
        :param start: When it was called.
        """
        over = partial(self.answered, label, command, start)
        result = outcome_of(result)
        return result.addBoth(over) if isinstance(result, Deferred) else over(result)

    def answered(self, label: str, command: Command, start: float, result: object) -> object:
        """
        Tell of an answer.

        :param result: What the callback has returned, or a Failure.
        """
        answered = self.audience.callback_answered
        if answered is not None:
            taken = self._seconds() - start
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
