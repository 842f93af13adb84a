"""
Many connections in one reactor event: a descriptor set of our own between reactor and connections.

What the reactor does for each event of each descriptor - a log context, a look-up, a dispatch -
costs more than a milter's whole answer, and a transport that writes asks the reactor twice more. A
`ConnectionSet` is one descriptor for the reactor, an ``epoll`` of its own, and serves all its
connections that are ready in one event. While nothing waits to be written and reading is not
paused, sockets are read and written directly. Everything else - buffers, producers, closing slowly,
half-closing, errors - is done by a transport of Twisted's, which asks the set, instead of the
reactor, to be told of what it can read and write.

Where many connections are ready at once, their usual answers are sent one after the other when all
of them are handled, or as soon as a millisecond has passed. To send one wakes whoever waits for it,
which may cost more than all that we do ourselves; a program that waits for several answers is woken
once that way. Where few are ready it is better that others go on while we do. What else is written
- by a callback, or when something that was awaited has come - is written at once, behind the answer
that waits.

A connection that the set has accepted itself (`yatxmilter.protocol._accepting`) has no transport
before one is needed, which for most never happens. One that a reactor has accepted has its
transport from the beginning (`ConnectionSet.adopt`).
"""

from __future__ import annotations

import select
import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

from twisted.internet import main, tcp, unix
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IReactorFDSet,
    IReadDescriptor,
)
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from yatxmilter._engine.connection import EASY, RUNNING, Conversation
from yatxmilter._wire.packets import readers_of_one
from yatxmilter.constants import SMFIC_MACRO

if TYPE_CHECKING:
    from yatxmilter.protocol._accepting import Listener

__all__ = ["ConnectionSet", "Served", "TransportReactor", "adoptable", "connection_set"]

#: Bytes read at once: a whole body chunk with its length and letter, and the macros before it.
READ_SIZE: Final = 65536 + 4096
# Bytes tried first: what Python's own allocator has a place for, which costs a twentieth of the
# work on a usual packet less than to cut a small piece off a large one.
_SHORT: Final = 512 - bytes.__basicsize__
# What reads one of so many bytes that is a packet alone; where as many came as could, there may be
# more.
_READERS: Final = readers_of_one(_SHORT - 1)
# Where more than this comes, so does more of it: a large body.
_LONG: Final = 8192

# How many connections are served between two looks at the clock, and for how many seconds after the
# first ones, before the reactor has its turn again. That costs as much as some answers.
_MOST_AT_ONCE: Final = 64
_TURN: Final = 0.002

# Where no more are ready, each answer is sent at once.
_FEW: Final = 8
# For how many seconds answers are gathered at most, while callbacks are quick.
_SOON: Final = 0.001

_MACRO: Final = SMFIC_MACRO
_IN: Final[int] = getattr(select, "EPOLLIN", 1)
_OUT: Final[int] = getattr(select, "EPOLLOUT", 4)
_IN_OR_OUT: Final = _IN | _OUT
_GONE: Final[int] = getattr(select, "EPOLLHUP", 16) | getattr(select, "EPOLLERR", 8)

# Made once, as in Twisted's reactors: a Failure costs more than a whole answer.
_FAILURES: Final[dict[type[BaseException], Failure]] = {
    type(why): Failure(why) for why in (main.CONNECTION_DONE, main.CONNECTION_LOST)
}

#: The transports whose connections can be served here.
TRANSPORTS: Final = (tcp.Server, unix.Server)


def adoptable(transport: Any) -> bool:
    """
    Tell whether a connection can be served by a `ConnectionSet`.

    It can where there is ``epoll``, on a reactor that watches descriptors, when it is a plain TCP
    or UNIX connection of Twisted's: no TLS, no wrapper around it.
    """
    return (
        type(transport) in TRANSPORTS
        and hasattr(select, "epoll")
        and not transport.TLS
        and IReactorFDSet.providedBy(transport.reactor)
    )


class Entry(Protocol):
    """
    What a set watches: a connection, or a port.
    """

    events: int

    @property
    def socket(self) -> Any:
        """
        What is watched.
        """

    def lose(self, reason: Failure) -> None:
        """
        Come to an end, for that reason.
        """


class Served:
    """
    One connection in a set.

    :param connections: The set.
    :param socket: The connection's.
    :ivar connections: The set; ``socket``: the connection's, a `socket.socket` once there is a
        transport.
    :ivar made: The transport, if it has been made.
    :ivar protocol: Whose connection it is, while that has no transport.
    :ivar conversation: What is given the bytes that were read, in the place of the protocol, if
        that lets itself be passed over.
    :ivar client: Its address as the system gave it, for the transport.
    :ivar listener: The port that has accepted it, likewise.
    :ivar answer: What is to be sent with the answers of others, before anything else.
    :ivar direct: Whether what is to be written can go to the socket without a second look: it is
        watched for reading alone, so that nothing is queued, and has no transport.
    :ivar events: What the connection is watched for.
    :ivar failed: Whether the system has told us, and tells nobody else, that the peer is lost.
    :ivar size: How many bytes are read at once.
    """

    __slots__ = (
        "answer",
        "client",
        "connections",
        "conversation",
        "direct",
        "events",
        "failed",
        "listener",
        "made",
        "protocol",
        "size",
        "socket",
    )

    client: Any
    listener: Listener

    def __init__(self, connections: ConnectionSet, socket: Any) -> None:
        self.connections = connections
        self.socket = socket
        self.events = 0
        self.size = _SHORT
        self.answer = b""
        self.direct = self.failed = False
        self.made: Any = None
        self.protocol: Any = None
        self.conversation: Conversation | None = None

    # ---- the transport, late

    @property
    def transport(self) -> Any:
        """
        The connection's transport, which is made when it is asked for.

        Of a connection that is over, one that is lost.
        """
        if self.made is None:
            if self.answer:
                self.connections.send_answers()
                # It may not have been taken at once: then there is one.
                return self.transport
            protocol = self.protocol
            self.direct = False
            if protocol is None:
                self.made = self.listener.lost_transport(self)
            else:
                # As it is the same descriptor, it is watched as it was.
                self.socket = socket.socket(fileno=self.socket.detach())
                self.made = self.listener.transport(
                    self.socket, protocol, self.client, TransportReactor(self)
                )
                self.made.registerProducer(protocol, True)
                self.protocol = None
                self.conversation = None
        return self.made

    @property
    def connected(self) -> bool:
        """
        Whether the connection is there, and is not being closed.
        """
        made = self.made
        if made is None:
            return self.protocol is not None
        return bool(made.connected and not made.disconnecting)

    # ---- bytes

    def begin(self, protocol: Any, conversation: Conversation | None = None) -> None:
        """
        Read from now on, for a protocol.

        :param conversation: What is given what was read, if that need not be its ``dataReceived``.
        """
        self.protocol = protocol
        if conversation is not None:
            self.conversation = conversation
            if protocol.slow < self.connections.soon:
                self.connections.soon = protocol.slow
        self.connections.watch(self, _IN)

    def read_on(self, data: bytes) -> bytes:
        """
        Read the rest, where a short read was full; suit the size of reads to what comes.

        :param data: What was read.
        :return: The same, with the rest.
        """
        if self.size == _SHORT:
            try:
                data += self.socket.recv(READ_SIZE)
            except OSError as error:
                self.has_failed(error)
        self.size = _SHORT if len(data) < _LONG else READ_SIZE
        return data

    def write(self, data: bytes) -> None:
        """
        Send at once what can be sent at once; the transport has the rest.
        """
        if self.answer:
            self.connections.send_answers()
        # Watched for reading alone: nothing is queued, it is not paused and not being closed.
        if self.events == _IN and (self.made is None or not self.made.TLS):
            try:
                sent = self.socket.send(data)
            except OSError as error:
                sent = self.has_failed(error)
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)

    def has_failed(self, error: OSError) -> int:
        """
        Take note of an error that the system gives once: who reads later is told that all is well,
        and at its end.

        :return: How many bytes were sent.
        """
        # The transport finds out about a broken pipe, once it has read what is to be read.
        if not isinstance(error, (BlockingIOError, BrokenPipeError)):
            self.failed = True
        return 0

    def pause(self) -> None:
        """
        Read nothing for now.
        """
        self.connections.watch(self, self.events & ~_IN)

    def resume(self) -> None:
        """
        Read on.
        """
        self.connections.watch(self, self.events | _IN)

    # ---- the end

    def finish(self) -> bool:
        """
        Close the connection as soon as what was read is dealt with, if that can be done.

        :return: Whether it can: all is written, and the connection is being read.
        """
        if self.events != _IN or not self.connections.serving:
            return False
        self.connections.finished.append(self)
        return True

    def lose(self, reason: Failure) -> None:
        """
        Close the connection, and tell its protocol.
        """
        if self.made is not None:
            self.made.connectionLost(reason)
            return
        if self.answer:
            self.connections.send_answers()
            self.lose(reason)
            return
        protocol, self.protocol = self.protocol, None
        self.connections.watch(self, 0)
        # In the order in which a transport does it.
        protocol.stopProducing()
        # By `suppress` it would cost twice as much.
        try:  # noqa: SIM105
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The peer may be gone already.
            pass
        self.socket.close()
        protocol.connectionLost(reason)

    def release(self) -> None:
        """
        Let go of the transport and of the conversation, whose connection is over.
        """
        self.conversation = None
        if self.made is not None:
            self.made.reactor = self.connections.reactor


class TransportReactor:
    """
    What the transport of a `Served` has for its reactor.

    Not `Served` itself: a class that has a `__getattr__` finds nothing fast.
    """

    def __init__(self, served: Served) -> None:
        self._served = served

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served.connections.reactor, name)

    def _watch(self, events: int) -> None:
        self._served.connections.watch(self._served, events)

    def addReader(self, transport: Any) -> None:
        """
        Tell the transport when it can read.
        """
        # One that is being made asks for it, too.
        if self._served.made is not None:
            self._served.resume()

    def addWriter(self, transport: Any) -> None:
        """
        Tell the transport when it can write.
        """
        self._watch(self._served.events | _OUT)

    def removeReader(self, transport: Any) -> None:
        """
        Tell the transport no more when it can read.
        """
        self._served.pause()

    def removeWriter(self, transport: Any) -> None:
        """
        Tell the transport no more when it can write.
        """
        self._watch(self._served.events & ~_OUT)


# One for each reactor: a set is kept by those whose connections it has, and by its reactor.
_sets: Final[WeakValueDictionary[int, ConnectionSet]] = WeakValueDictionary()


def connection_set(reactor: Any) -> ConnectionSet:
    """
    Give the set of a reactor's connections.

    :param reactor: An `IReactorFDSet`.
    """
    found = _sets.get(id(reactor))
    if found is None:
        found = _sets[id(reactor)] = ConnectionSet(reactor)
    return found


@implementer(IReadDescriptor)
class ConnectionSet:
    """
    Connections that are served together; for their reactor they are one descriptor.

    :param reactor: An `IReactorFDSet`.
    :ivar serving: Whether connections are being served.
    :ivar answered: Those whose answers are to be sent.
    :ivar finished: Those that are to be closed when what was read is dealt with.
    :ivar soon: For how many seconds answers are gathered at most, while callbacks are quick. What
        has taken less is no slow read.
    :ivar turn: How often the reactor has let the set serve its connections.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.serving = False
        self.answered: list[Served] = []
        self.finished: list[Served] = []
        self.soon = _SOON
        self.turn = 0
        self._ready: list[tuple[int, int]] = []
        self._epoll = select.epoll()
        self._served: dict[int, Served] = {}
        self._ports: dict[int, Any] = {}

    @property
    def size(self) -> int:
        """
        How many connections and ports there are.
        """
        return len(self._served) + len(self._ports)

    def adopt(self, transport: Any) -> Served:
        """
        Take a connection over from the reactor; it must be `adoptable`, and nothing be written yet.
        """
        transport.stopReading()
        served = Served(self, transport.getHandle())
        served.made = transport
        transport.reactor = TransportReactor(served)
        transport.startReading()
        return served

    def watch(self, entry: Entry, events: int) -> None:
        """
        Watch a connection, or a port, for what it is to be told of.
        """
        before = entry.events
        if events == before:
            return
        entry.events = events
        descriptor = entry.socket.fileno()
        entries: dict[int, Any] = self._ports
        if isinstance(entry, Served):
            entry.direct = events == _IN and entry.made is None
            entries = self._served
        if before and events:
            self._epoll.modify(descriptor, events)
            return
        if events:
            self._epoll.register(descriptor, events)
            if not (self._served or self._ports):
                self.reactor.addReader(self)
            entries[descriptor] = entry
        else:
            self._epoll.unregister(descriptor)
            del entries[descriptor]
            if not (self._served or self._ports):
                self.reactor.removeReader(self)

    # ---- for the reactor: one descriptor

    def fileno(self) -> int:
        """
        Give the descriptor that is readable when one of the connections is ready.
        """
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """
        Name the connections in the log.
        """
        return "Milters"

    def doRead(self) -> None:
        """
        Serve the connections that are ready; accept new ones.

        Where several were ready at once, more become ready meanwhile. They are served in the same
        turn, for some time.
        """
        self.turn = turn = self.turn + 1
        # If the reactor has gone on without a callback, this is in the middle of another call,
        # whose connections are ready still (`yatxmilter.pymilter`).
        self._ready.clear()
        if self.answered:
            self.send_answers()
        self.serving = True
        seconds, poll, until = monotonic, self._epoll.poll, 0.0
        while True:
            ready = self._ready = poll(0, _MOST_AT_ONCE)
            count = len(ready)
            self._serve_ready(ready)
            if self.finished:
                self._end_finished()
            if count < 2 or self.turn != turn:
                break
            now = seconds()
            until = until or now + _TURN
            if now >= until:
                break
        self.serving = False

    def _serve_ready(self, ready: list[tuple[int, int]]) -> None:
        """
        Serve connections and ports that are ready; ports when all answers are on their way.
        """
        all_served, answered, seconds = self._served, self.answered, monotonic
        readers, together = _READERS, len(ready) > _FEW
        ports: list[int] = []
        now = seconds()
        due = now + self.soon
        for descriptor, events in ready:
            if events != _IN and events & _IN_OR_OUT != _IN:
                if descriptor in all_served:
                    self._serve_otherwise(all_served[descriptor], events)
                    now, due = self._look_up()
                else:
                    ports.append(descriptor)
                continue
            try:
                served = all_served[descriptor]
                data = served.socket.recv(served.size)
            except BlockingIOError:
                continue
            except KeyError:
                ports.append(descriptor)
                continue
            except OSError:
                self.disconnect(served, main.CONNECTION_LOST, True)
                now, due = self._look_up()
                continue
            size = len(data)
            if size >= _SHORT:
                # There is no reader for it: more may have come than one packet.
                data, size = served.read_on(data), _SHORT
            elif not size:
                why = main.CONNECTION_LOST if served.failed else main.CONNECTION_DONE
                self.disconnect(served, why, True)
                now, due = self._look_up()
                continue
            conversation = served.conversation
            try:
                if conversation is None:
                    # A transport's protocol may have been exchanged.
                    (served.protocol or served.made.protocol).dataReceived(data)
                    now, due = self._look_up()
                    continue
                # As `TransportLine.dataReceived`.
                watch = conversation.watch
                if watch is not None:
                    if watch.only_counts:
                        # As `count_read`, and `count_sent` below, without a call.
                        watch.received += len(data)
                    else:
                        moved = None if conversation.busy else conversation.moved
                        watch.count_read(len(data), moved, now)
                while True:
                    length, letter, payload = readers[size](data)
                    if conversation.way or conversation.held:
                        answer = conversation.take_in(data)
                    elif length == size - 4:
                        # As nearly always: one packet and nothing else. What `take_in` does then is
                        # done here, without a call in between.
                        conversation.way = RUNNING
                        handler, conversation.table = conversation.table[letter]
                        answer = handler(conversation, payload)
                        if answer is None or conversation.held or conversation.out:
                            answer = conversation.go_on(answer)
                        else:
                            conversation.way = EASY
                            if watch is not None:
                                if watch.only_counts:
                                    watch.sent += len(answer)
                                else:
                                    watch.count_sent(len(answer))
                    elif letter == _MACRO and 1 < length < size - 4:
                        # The macros of what comes behind them.
                        conversation.macros.put(payload[: length - 1])
                        data = payload[length - 1 :]
                        size = len(data)
                        continue
                    else:
                        answer = conversation.take_in(data)
                    break
                began, now = now, seconds()
                if answer:
                    conversation.moved = now
                    if together and served.direct:
                        served.answer = answer
                        answered.append(served)
                    else:
                        served.write(answer)
                elif answer is not None:
                    conversation.moved = now
                if now > due:
                    conversation.line.look_back(data, began, now)
                    now, due = self._look_up()
            except BaseException as error:
                self._end_failed(served, conversation, error, data, now)
                now, due = self._look_up()
        if answered:
            self.send_answers()
        for descriptor in ports:
            port = self._ports.get(descriptor)
            # It may have been closed, or be a connection that another one has ended.
            if port is not None:
                port.accept()

    def _end_failed(
        self,
        served: Served,
        conversation: Conversation | None,
        error: BaseException,
        data: bytes,
        began: float,
    ) -> None:
        """
        End a connection because of what was raised while bytes were dealt with.

        :param data: The bytes, and ``began``: when that began.
        """
        try:
            if conversation is not None and conversation.broken_by(error):
                # The milters have been told that it ends, which may have taken its time, too.
                conversation.line.look_back(data, began, monotonic())
                return
        except BaseException as another:
            error = another
        # As the reactors of Twisted do: log it, and end the connection that failed.
        log.err(Failure(error))
        self.disconnect(served, error, True)

    def _look_up(self) -> tuple[float, float]:
        """
        Send the answers that there are, after what may have taken its time.

        :return: What time it is, and until when answers are gathered.
        """
        if self.answered:
            self.send_answers()
        now = monotonic()
        return now, now + self.soon

    def send_answers(self) -> None:
        """
        Send the answers that there are.
        """
        answered = self.answered
        for served in answered:
            answer = served.answer
            # To send one may have had others sent.
            if answer:
                served.answer = b""
                try:
                    try:
                        sent = served.socket.send(answer)
                    except OSError as error:
                        sent = served.has_failed(error)
                    if sent != len(answer):
                        served.transport.write(answer[sent:])
                except BaseException as error:
                    # The others have theirs all the same.
                    log.err()
                    self.disconnect(served, error)
        answered.clear()

    def _end_finished(self) -> None:
        finished, self.finished = self.finished, []
        for served in finished:
            if served.events & _OUT:
                # Its last answer was not taken at once since: the transport has the rest.
                served.made.protocol.hang_up()
            elif served.events:
                # It has not come to an end otherwise.
                self.disconnect(served, main.CONNECTION_DONE)

    def _serve_otherwise(self, served: Served, events: int) -> None:
        """
        Serve a connection that can do something else than to be read.
        """
        try:
            why, reading = _serve(served, events)
        except BaseException:
            why, reading = sys.exc_info()[1], True
            log.err()
        if why:
            self.disconnect(served, why, reading)

    def disconnect(self, served: Served, why: BaseException, reading: bool = False) -> None:
        """
        End a connection.

        :param reading: Whether it was found by reading that it is over.
        """
        failure = _FAILURES.get(type(why)) or Failure(why)
        try:
            made = served.made
            if reading and isinstance(why, ConnectionDone):
                # The peer may have closed its half alone.
                if made is not None or IHalfCloseableProtocol.providedBy(served.protocol):
                    transport = served.transport
                    transport.stopReading()
                    transport.readConnectionLost(failure)
                    return
            elif made is not None:
                made.stopReading()
                made.stopWriting()
            served.lose(failure)
        except Exception:
            # If it came to the reactor, that would end all connections of this set.
            log.err()

    def connectionLost(self, reason: Failure) -> None:
        """
        Lose all connections, and ports: the reactor ends.
        """
        for entry in [*self._served.values(), *self._ports.values()]:
            # To lose one may have ended others.
            if entry.events:
                log.callWithLogger(self, entry.lose, reason)


def _serve(served: Served, events: int) -> tuple[Any, bool]:
    """
    Let a transport do what it is ready for.

    :return: Why the connection is over, if it is, and whether that was found by reading.
    """
    if events & _GONE and not events & _IN:
        # It is not being read: else it could be read now, if only its end.
        return main.CONNECTION_LOST, False
    # There is one, where something waits to be written.
    transport = served.made
    why, reading = None, False
    if events & _IN:
        why, reading = transport.doRead(), True
    if served.failed:
        return main.CONNECTION_LOST, False
    if not why and events & _OUT:
        why, reading = transport.doWrite(), False
    return why, reading
