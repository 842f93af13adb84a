"""
Tests of accepting connections in our own set: with all that Twisted's ports do, and no transport
before somebody asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.conversation_helpers import HELO, MAIL, MESSAGE, QUIT, full, names
from tests.pathways import HAS_EPOLL, Mta, PathCase, reactor
from yatxmilter import Milter, MilterProtocolFactory
from yatxmilter.protocol._accepting import PortReactor, adopt_port
from yatxmilter.protocol._descriptor_set import connection_set


class _Case(PathCase):
    """
    A port whose connections are accepted in the set.
    """

    skip = None if HAS_EPOLL else "there is no epoll here, and so no connection set"

    async def served(self, mta: Mta) -> None:
        """
        Have a command answered.
        """
        before = len(mta.received)
        mta.send(HELO)
        await self.until(lambda: mta.letters()[-1:] == "c" and len(mta.received) > before)

    async def client(self) -> Mta:
        """
        Connect without waiting for anything.
        """
        mta = Mta(self.family, self.address)
        self.addCleanup(mta.socket.close)
        return mta

    def descriptors(self) -> int:
        """
        Count this process's that are sockets.
        """
        folder, count = "/proc/self/fd", 0
        for name in os.listdir(folder):
            # That of the folder itself is gone.
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(f"{folder}/{name}").startswith("socket:")
        return count


class _LateTransportTests(_Case):
    """
    The transport of a connection.
    """

    async def test_connection_that_nobody_asks_for_its_transport_has_none(self) -> None:
        """
        A connection that nobody asks for its transport has none, from its beginning to its end.
        """
        self.serve(full(mta_close=None))
        mta, protocol = await self.mta()
        served = protocol._served
        mta.send(MESSAGE + QUIT)
        await self.gone()
        await self.over(mta)
        self.assertEqual((mta.letters(), mta.end), ("ccccccc", "closed"))
        self.assertEqual((self.reasons(), served.made), ([ConnectionDone], None))

    async def test_in_a_callback(self) -> None:
        """
        Asked for in the middle of a callback it is there, and the connection goes on as it was.
        """
        found: list[Any] = []
        self.serve(full(helo=lambda milter, *_: found.append(milter.protocol.transport)))
        mta, protocol = await self.mta()
        await self.served(mta)
        (transport,) = found
        self.assertIs(transport, protocol.transport)
        self.assertIsInstance(transport, tcp.Server)
        self.assertEqual(
            (transport.connected, transport.protocol, transport.getPeer()),
            (1, protocol, protocol.peer),
        )
        self.assertEqual(transport.getHost(), self.port.getHost())
        self.assertEqual(transport.getHandle().fileno(), protocol._served.socket.fileno())
        mta.send(MAIL + QUIT)
        await self.gone()
        await self.over(mta)
        self.assertEqual((mta.letters(), mta.end), ("cc", "closed"))

    async def test_while_it_comes(self) -> None:
        """
        Asked for as soon as the connection has come it is there.
        """
        found: list[Any] = []

        def connected(milter: Milter, *_: Any) -> None:
            found.append(milter.protocol.transport.getPeer())

        self.serve(full(mta_connect=connected))
        mta, protocol = await self.mta()
        self.assertEqual(found, [protocol.peer])
        await self.served(mta)

    async def test_after_the_end(self) -> None:
        """
        Asked for in the last callback, or later, it is lost, and knows where it had come from.
        """
        found: list[Any] = []

        def closed(milter: Milter, *_: Any) -> None:
            found.append(milter.protocol.transport)

        self.serve(full(mta_close=closed))
        mta, protocol = await self.mta()
        before = self.descriptors()
        mta.send(QUIT)
        await self.gone()
        self.assertEqual(found, [protocol.transport])
        transport = protocol.transport
        self.assertEqual((transport.connected, transport.disconnected), (0, 1))
        self.assertEqual(transport.getPeer(), protocol.peer)
        self.assertIs(transport.reactor, reactor)
        # They do nothing, as with any connection that is over.
        transport.loseConnection()
        transport.abortConnection()
        transport.write(b"x")
        self.assertEqual(self.descriptors(), before - 1)

    async def test_transport_made_while_nothing_is_read_does_not_begin_to_read(self) -> None:
        """
        One that is made while nothing is read does not begin to read.
        """
        self.serve()
        mta, protocol = await self.mta()
        protocol.rest()
        mta.send(HELO)
        self.assertTrue(protocol.transport.connected)
        for _ in range(5):
            await self.turn()
        self.assertEqual(mta.read(), b"")
        protocol.go_on()
        await self.until(lambda: mta.letters() == "c")

    async def test_not_paused_without_it(self) -> None:
        """
        A connection can rest and go on without one; one that is over does not go on.
        """
        self.serve()
        mta, protocol = await self.mta()
        protocol.rest()
        mta.send(HELO)
        for _ in range(5):
            await self.turn()
        self.assertEqual(mta.read(), b"")
        protocol.go_on()
        await self.until(lambda: mta.letters() == "c")
        self.assertIsNone(protocol._served.made)
        mta.send(QUIT)
        await self.gone()
        protocol.go_on()
        self.assertEqual(protocol._served.events, 0)

    async def test_transport_that_was_put_in_its_place_is_one_that_is_given(self) -> None:
        """
        A transport that was put in its place is the one that is given.
        """
        self.serve()
        _, protocol = await self.mta()
        own = protocol.transport
        protocol.transport = other = object()
        self.assertIs(protocol.transport, other)
        protocol.transport = own


class _PortTests(_Case):
    """
    The port.
    """

    def listen(self, factory: Any) -> None:
        """
        Listen, and leave the first connection to Twisted.
        """
        super().listen(factory)
        if isinstance(self.port.reactor, PortReactor):
            # As it was before somebody has looked after it.
            self.port.stopReading()
            self.port.reactor = reactor
            self.port.startReading()

    async def test_first_connection_of_a_port_has_its_transport(self) -> None:
        """
        The first connection of a port has its transport, those that come later need none.
        """
        self.serve()
        (first, one), (second, two) = [await self.mta() for _ in range(2)]
        self.assertIsNotNone(one._served.made)
        self.assertIsNone(two._served.made)
        self.assertIsInstance(self.port.reactor, PortReactor)
        for mta in (first, second):
            await self.served(mta)
        self.assertEqual(one._served.made.reactor._served, one._served)

    async def test_several_at_first(self) -> None:
        """
        All that come in one turn with the first are served.
        """
        self.serve()
        clients = [await self.client() for _ in range(5)]
        for mta in clients:
            await self.served(mta)
        self.assertEqual(len(self.factory.connections), 5)

    async def test_more_than_are_accepted_in_one_turn_are_all_served(self) -> None:
        """
        More than are accepted in one turn are all served.
        """
        self.serve()
        await self.mta()
        clients = [await self.client() for _ in range(45)]
        await self.until(lambda: len(self.factory.connections) == 46)
        clients += [await self.client() for _ in range(45)]
        await self.until(lambda: len(self.factory.connections) == 91)
        for mta in clients:
            mta.send(HELO)
        for mta in clients:
            await self.until(lambda mta=mta: mta.letters() == "c")

    async def test_closed_port_takes_no_connection_any_more(self) -> None:
        """
        A port that is closed takes no connection any more; those that there are go on.
        """
        self.serve()
        await self.mta()
        mta, _ = await self.mta()
        host = self.port.getHost()
        closed = self.port.stopListening()
        self.assertEqual(self.port.getHost(), host)
        await closed
        self.assertRaises(OSError, Mta, self.family, self.address)
        await self.served(mta)
        self.assertIn(connection_set(reactor), reactor.getReaders())

    async def test_closed_while_accepting(self) -> None:
        """
        A port that is closed by what the first of several connections does takes no other one.
        """

        def connected(milter: Milter, *_: Any) -> None:
            if len(self.milter.calls) > 1:
                closing.append(self.port.stopListening())

        closing: list[Any] = []
        self.serve(full(mta_connect=connected))
        await self.mta(agree=False)
        clients = [await self.client() for _ in range(2)]
        await self.until(lambda: closing)
        await closing[0]
        await self.over(clients[1])
        self.assertEqual((len(closing), len(self.factory.connections)), (1, 2))
        await self.served(clients[0])

    async def test_port_that_is_not_read_from_leaves_connections_waiting_until_it_is(self) -> None:
        """
        A port that is not read from leaves connections waiting until it is.
        """
        self.serve()
        await self.mta()
        self.port.stopReading()
        mta = await self.client()
        for _ in range(5):
            await self.turn()
        self.assertEqual(len(self.factory.connections), 1)
        self.port.startReading()
        await self.served(mta)

    async def test_port_that_listens_again_after_its_end_accepts_as_before(self) -> None:
        """
        A port that listens again after its end accepts as before.
        """
        self.serve()
        await self.mta()
        await self.port.stopListening()
        self.port.startListening()
        if self.family == socket.AF_INET:
            self.address = ("127.0.0.1", self.port.getHost().port)
        mta, protocol = await self.mta()
        await self.served(mta)
        self.assertIsNone(protocol._served.made)

    async def test_when_reactor_loses_its_descriptors_ports_and_connections_are_lost_each_once(
        self,
    ) -> None:
        """
        When the reactor loses its descriptors, ports and connections are lost, each once.
        """
        self.serve(full(mta_close=None))
        ends = [await self.mta() for _ in range(3)]
        # One that is lost may take another with it.
        first, second = ends[1][1], ends[2][1]
        lost = first.connectionLost

        def both(reason: Failure) -> None:
            lost(reason)
            connection_set(reactor).disconnect(second._served, ConnectionLost())

        first.connectionLost = both
        connection_set(reactor).connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.port.connected, len(self.factory.connections)), (False, 0))
        self.assertEqual(self.reasons(), [ConnectionLost] * 3)
        self.assertNotIn(connection_set(reactor), reactor.getReaders())
        for mta, _ in ends:
            await self.over(mta)

    async def test_factorys_protocols_that_are_no_milters_have_transports_of_reactors(self) -> None:
        """
        A factory's protocols that are no milters have transports of the reactor's, as always.
        """

        class Echo(TwistedProtocol):
            def dataReceived(self, data: bytes) -> None:
                found.append((type(self.transport), self.transport.reactor))  # type: ignore
                self.transport.write(data)  # type: ignore[union-attr]
                self.transport.loseConnection()  # type: ignore[union-attr]

        found: list[Any] = []
        self.serve()
        await self.mta()
        self.port.factory = Factory.forProtocol(Echo)
        mta = await self.client()
        mta.send(b"echo")
        await self.over(mta)
        self.assertEqual(mta.received, b"echo")
        self.assertEqual(found, [(self.port.transport, reactor)])

    async def test_where_fast_path_is_turned_off_later_connections_have_transports_of_reactors(
        self,
    ) -> None:
        """
        Where the fast path is turned off, later connections have transports of the reactor's.
        """
        self.serve()
        await self.mta()
        self.factory.fast_path = False
        mta, protocol = await self.mta()
        self.assertIs(protocol.transport.reactor, reactor)
        await self.served(mta)

    async def test_port_and_connections_of_a_wrapping_factory_are_the_reactors(
        self,
    ) -> None:
        """
        Connections behind a factory that wraps them are the reactor's, and so is the port.
        """
        self.serve()
        self.port.factory = WrappingFactory(self.factory)
        mta = await self.client()
        await self.served(mta)
        self.assertIs(self.port.reactor, reactor)

    async def test_port_with_way_of_its_own_to_accept_connections_is_left_alone(self) -> None:
        """
        A port with a way of its own to accept connections is left alone; so is one that is closed.
        """

        class Own(tcp.Port):
            def doRead(self) -> None:
                """Accept in a way of its own."""

        connections = connection_set(reactor)
        port: Any = Own(0, Factory(), interface="127.0.0.1", reactor=reactor)
        port.startListening()
        self.addCleanup(port.stopListening)
        for one in (port, None, self.__dict__.get("port")):
            adopt_port(connections, one)
        self.assertIs(port.reactor, reactor)
        closed: Any = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        await closed.stopListening()
        adopt_port(connections, closed)
        self.assertIs(closed.reactor, reactor)


class _ErrorTests(_Case):
    """
    What goes wrong while a connection is accepted.
    """

    async def test_without_descriptors_connections_are_closed_by_the_reserved_one(self) -> None:
        """
        Where no descriptor is left, connections are closed by means of the one that Twisted has
        in reserve, which is logged; when there are some again, connections are served again.
        """
        self.serve()
        first, _ = await self.mta()
        clients = [await self.client() for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        filling: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            with capturedLogs() as logs:
                while True:
                    try:
                        filling.append(os.open(os.devnull, os.O_RDONLY))
                    except OSError as error:
                        self.assertEqual(error.errno, errno.EMFILE)
                        break
                for mta in clients:
                    await self.over(mta)
                await self.served(first)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in filling:
                os.close(descriptor)
        told = [formatEvent(event) for event in logs]
        self.assertIn("EMFILE encountered; releasing reserved file descriptor.", told)
        self.assertEqual(sum("EMFILE recovery: Closed socket" in text for text in told), 3)
        self.assertEqual(len(self.factory.connections), 1)
        mta, _ = await self.mta()
        await self.served(mta)

    async def refused(self) -> None:
        """
        See that a connection is closed at once, and a second one as well.
        """
        before = self.descriptors()
        for _ in range(2):
            mta = await self.client()
            await self.over(mta)
            mta.socket.close()
            self.assertEqual(mta.received, b"")
        self.assertEqual(self.descriptors(), before)

    async def test_error_in_buildprotocol_is_logged_and_its_connection_closed(self) -> None:
        """
        An error in C{buildProtocol} is logged, and its connection closed; others come after it.
        """
        self.serve()
        self.factory.buildProtocol = lambda addr: 1 // 0  # type: ignore[method-assign]
        await self.refused()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        del self.factory.buildProtocol  # type: ignore[method-assign]
        mta, _ = await self.mta()
        await self.served(mta)

    async def test_error_while_a_connection_begins_is_logged(self) -> None:
        """
        An error while a connection begins is logged; it is closed, and does not count.
        """
        self.serve(full(mta_close=None))
        made = self.factory.connection_made

        def failing(protocol: Any, peer: object) -> None:
            made(protocol, peer)
            raise ZeroDivisionError

        self.factory.connection_made = failing  # type: ignore[method-assign]
        await self.refused()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual((self.factory.connections, self.factory.admission.count), (set(), 0))
        self.assertEqual(self.reasons(), [ConnectionLost] * 2)

    async def test_one_that_is_refused_is_closed_at_once(self) -> None:
        """
        One that is refused is closed at once.
        """
        self.serve(max_connections=1)
        first, _ = await self.mta()
        await self.refused()
        first.send(QUIT)
        await self.gone()
        mta, _ = await self.mta()
        await self.served(mta)

    async def test_answer_to_a_peer_that_has_gone_ends_its_connection(self) -> None:
        """
        An answer to a peer that has gone ends its connection, after what it has said.
        """
        self.serve(full(mta_close=None))
        mta, protocol = await self.mta()
        mta.send(HELO)
        mta.reset()
        await self.gone()
        self.assertEqual(len(self.reasons()), 1)
        self.assertEqual(names(self.milter.calls)[-1], "mta_close")

    async def test_connection_of_which_system_says_that_it_is_lost(self) -> None:
        """
        A connection of which the system says that it is lost, and nothing can be read, is lost.
        """
        self.serve(full(mta_close=None))
        _, protocol = await self.mta()
        connections = connection_set(reactor)
        poll = connections._epoll

        class Lost:
            def poll(self, *_: Any) -> list[tuple[int, int]]:
                return [(protocol._served.socket.fileno(), select.EPOLLHUP)]

            def __getattr__(self, name: str) -> Any:
                return getattr(poll, name)

        self.patch(connections, "_epoll", Lost())
        connections.doRead()
        self.assertEqual(self.reasons(), [ConnectionLost])


class _Leaving:
    """
    What another process would say of the connections it has.
    """

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers
        self.asked: list[int] = []
        self.taken = 0

    def leaves(self, connections: int) -> bool:
        self.asked.append(connections)
        return bool(self.answers) and self.answers.pop(0)

    def took(self) -> None:
        self.taken += 1


class ShareTests(_Case, TestCase):
    """
    A port that processes share.
    """

    def share(self, *answers: bool) -> _Leaving:
        """
        Serve at such a port.
        """
        self.serve()
        self.port.share = share = _Leaving(list(answers))
        # As if it were opened only now.
        self.port.stopReading()
        self.port.reactor = reactor
        self.port.startReading()
        adopt_port(connection_set(reactor), self.port)
        return share

    async def test_connection_left_to_others_is_not_looked_at_for_a_moment(self) -> None:
        """
        A connection that is left to others is not looked at for a moment, and is taken when it is
        still there then.
        """
        share = self.share(True, True, False)
        mta = await self.client()
        await self.served(mta)
        # The first is the one by which the port was found.
        self.assertEqual((share.asked, share.taken), ([1, 1, 1], 2))
        await self.mta()
        self.assertEqual((share.asked[3:], share.taken), ([2], 3))

    async def test_port_paused_or_closed_while_it_leaves_a_connection_stays_so(self) -> None:
        """
        A port that is paused, or closed, while it leaves a connection does not come back by itself.
        """
        share = self.share(True)
        mta = await self.client()
        await self.until(lambda: share.asked)
        self.port.stopReading()
        before = len(reactor.getDelayedCalls())
        for _ in range(3):
            await self.turn()
        self.assertEqual((len(reactor.getDelayedCalls()), share.taken), (before, 1))
        self.port.startReading()
        await self.served(mta)
        share.answers.append(True)
        await self.client()
        await self.until(lambda: not share.answers)
        # It is not looked at before its moment is over, whoever says so.
        self.port.startReading()
        self.assertNotIn(self.port.fileno(), connection_set(reactor)._served)
        await self.port.stopListening()

    async def test_one_at_a_time(self) -> None:
        """
        Others have their chance between two connections.
        """
        share = self.share()
        clients = [await self.client() for _ in range(3)]
        for mta in clients:
            await self.served(mta)
        self.assertEqual(share.asked, [1, 2, 3])


class AddressTests(_Case, TestCase):
    """
    Where a connection comes from.
    """

    async def test_address_of_unix_client_that_has_name_is_that_name(self) -> None:
        """
        The address of a UNIX client that has a name is that name; of others there is none.
        """
        self.serve()
        _, protocol = await self.mta()
        self.assertEqual(protocol.peer, UNIXAddress(None))
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.bind(self.address + ".client")
        client.connect(self.address)
        await self.until(lambda: len(self.factory.connections) == 2)
        (named,) = self.factory.connections - {protocol}
        self.assertEqual(named.peer, UNIXAddress(self.address + ".client"))
        self.assertEqual(named.transport.getPeer(), named.peer)

    async def test_ipv6_client_has_the_address_that_its_transport_shows(self) -> None:
        """
        An IPv6 client has the address that its transport shows.
        """
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            self.skipTest(f"there is no IPv6 here: {error}")
        self.serve()
        port = reactor.listenTCP(0, self.factory, interface="::1")
        self.addCleanup(port.stopListening)
        adopt_port(connection_set(reactor), port)
        with socket.create_connection(("::1", port.getHost().port)) as client:
            await self.until(lambda: self.factory.connections)
            (protocol,) = self.factory.connections
            expected = IPv6Address("TCP", *client.getsockname())
            self.assertEqual(protocol.peer, expected)
            self.assertEqual(protocol.transport.getPeer(), expected)
        await self.gone()


class LifeTests(_Case, TestCase):
    """
    A factory and its ports.
    """

    async def test_connections_of_several_factories_are_one_descriptor_for_the_reactor(
        self,
    ) -> None:
        """
        Connections of several factories, and their ports, are one descriptor for the reactor.
        """
        self.serve()
        address = self.address
        await self.mta()
        first = self.factory
        self.serve()
        await self.mta()
        mine = [one for one in reactor.getReaders() if type(one) is type(connection_set(reactor))]
        self.assertEqual(mine, [connection_set(reactor)])
        self.assertNotEqual(address, self.address)
        for protocol in first.connections | self.factory.connections:
            protocol.transport.loseConnection()
        await self.until(lambda: not first.connections)

    def test_connection_that_was_built_by_no_factory_has_defaults(self) -> None:
        """
        A connection that was built by no factory has the defaults, and no connection yet.
        """
        protocol = MilterProtocolFactory(()).buildProtocol(None)
        self.assertEqual((protocol.transport, protocol.connected), (None, 0))


for _case in (_LateTransportTests, _PortTests, _ErrorTests):
    for _family in (socket.AF_INET, socket.AF_UNIX):
        _name = f"{'TCP' if _family == socket.AF_INET else 'UNIX'}{_case.__name__[1:]}"
        _members = {"family": _family, "__module__": __name__, "__doc__": _case.__doc__}
        globals()[_name] = type(_name, (_case, TestCase), _members)
