"""
Twisted's own tests of TCP and UNIX connections, with each server transport in a `ConnectionSet`.

They are imported from the Twisted that is installed and run as they are, on each reactor that can
watch an ``epoll`` descriptor. What is put under them is a server transport that is adopted as soon
as it is made, and that writes as `Served` writes. On one reactor they run a second time, with
connections that the set has accepted and that have got their transport late (`_accepting`). Where
they only make the client do something worth a test, they run with the ends exchanged, too. What
cannot be run is left out by name, with the reason (`LEFT_OUT`); all of ``AdoptStreamConnection``
is, because it takes the descriptor of one server transport away for another, by the reactor that is
not asked any more.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.protocol import BaseProtocol
from twisted.internet.test import reactormixins
from twisted.internet.test import test_tcp as tcp_tests
from twisted.internet.test import test_unix as unix_tests
from twisted.test import test_tcp as old_tcp_tests

from yatxmilter.protocol._accepting import adopt_port
from yatxmilter.protocol._descriptor_set import ConnectionSet, Served

#: The reactors that are tried, with an ``epoll`` among the descriptors that they watch.
REACTORS = ("SelectReactor", "PollReactor", "EPollReactor", "AsyncioSelectorReactor")

_DESCRIPTORS = "descriptors that an MTA might send along are not received, only closed"
_PORTS = "it is about ports alone"

#: Tests of Twisted's that cannot hold, or cannot be run, and why.
LEFT_OUT = {
    "test_logPrefix": "the connections of a set have their log prefix in common",
    "test_sendFileDescriptor": _DESCRIPTORS,
    "test_sendFileDescriptorTriggersPauseProducing": _DESCRIPTORS,
    "test_descriptorDeliveredBeforeBytes": _DESCRIPTORS,
    "test_avoidLeakingFileDescriptors": _DESCRIPTORS,
    "test_multiFileDescriptorReceivedPerRecvmsgOneCMSG": _DESCRIPTORS,
    "test_multiFileDescriptorReceivedPerRecvmsgTwoCMSGs": _DESCRIPTORS,
    "test_multiFileDescriptorReceivedPerRecvmsgBadCMSG": _DESCRIPTORS,
    "test_fileDescriptorOverrun": "it is about clients alone",
    "test_mode": _PORTS,
    "test_listenOnLinuxAbstractNamespace": _PORTS,
    "test_listenFailure": _PORTS,
    "test_connectToLinuxAbstractNamespace": _PORTS,
}


class _Adopted:
    """
    A server transport that is in a set from the beginning, and writes as `Served` writes.
    """

    served: Served | None = None
    writing = False
    #: The sets, by reactor, of the test that runs.
    sets: dict[Any, ConnectionSet] = {}
    #: How many connections were accepted in a set.
    taken = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        reactor: Any = self.reactor  # type: ignore[has-type]
        if reactor not in self.sets:
            self.sets[reactor] = ConnectionSet(reactor)
        self.served = self.sets[reactor].adopt(self)

    def write(self, data: bytes) -> None:
        served = self.served
        if self.writing or served is None or not isinstance(data, bytes):
            super().write(data)  # type: ignore[misc]
            return
        self.writing = True
        try:
            served.write(data)
        finally:
            self.writing = False

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)  # type: ignore[misc]
        served, self.served = self.served, None
        if served is not None:
            served.release()


class _TCPServer(_Adopted, tcp.Server):
    pass


class _UNIXServer(_Adopted, unix.Server):
    pass


def _left_out(reason: str) -> Any:
    def test(case: Any) -> None:
        """
        Say why not.
        """

    test.skip = reason  # type: ignore[attr-defined]
    return test


def _adopting(base: Any) -> Any:
    """
    Make a test case whose server transports are adopted, and that fails where none was.
    """

    class Adopting(base):  # type: ignore[misc]
        # Twisted waits two minutes for a reactor that does not stop.
        timeout = 120

        def setUp(self) -> Any:
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            self.addCleanup(os.chdir, os.getcwd())
            # UNIX sockets are made here.
            os.chdir(folder.name)
            # What was run by asyncio before leaves this thread without a loop.
            loop = asyncio.new_event_loop()
            self.addCleanup(loop.close)
            asyncio.set_event_loop(loop)
            self.addCleanup(asyncio.set_event_loop, None)
            self.patch(_Adopted, "sets", {})
            for module, server in ((tcp, _TCPServer), (unix, _UNIXServer)):
                self.patch(module.Port, "transport", server)
            # Else each collection looks at all that the other tests have imported.
            gc.freeze()
            self.addCleanup(gc.unfreeze)
            self.addCleanup(self._check_adopted)
            return super().setUp()

        def _check_adopted(self) -> None:
            self.assertTrue(_Adopted.sets, "no connection was adopted: the test shows nothing")
            # What Twisted's tests leave open, they leave to the garbage collector.
            _Adopted.sets.clear()
            gc.collect()

    for name, reason in LEFT_OUT.items():
        if hasattr(base, name):
            setattr(Adopting, name, _left_out(reason))
    return Adopting


def _take(protocol: Any, served: Served, peer: Any) -> bool:
    """
    Be what a milter's protocol has for connections without transports, for all of Twisted's.
    """
    _Adopted.taken += 1
    served.begin(protocol)
    transport = served.transport
    # Twisted's protocols are no producers, or register others.
    transport.unregisterProducer()
    # What the test case looks at.
    transport.served = served
    protocol.makeConnection(transport)
    return True


def _accepting(base: Any) -> Any:
    """
    Make a test case whose server connections are accepted in a set, and that fails where none was.
    """

    class Accepting(base):  # type: ignore[misc]
        timeout = 30

        def setUp(self) -> Any:
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            self.addCleanup(os.chdir, os.getcwd())
            os.chdir(folder.name)
            self.patch(_Adopted, "taken", 0)
            self.patch(_Adopted, "sets", {})
            for module in (tcp, unix):
                self.patch(module.Port, "startListening", _adopted(module.Port.startListening))
            BaseProtocol.accepted = _take  # type: ignore[attr-defined]
            self.addCleanup(delattr, BaseProtocol, "accepted")
            self.addCleanup(self._check_accepted)
            return super().setUp()

        def _check_accepted(self) -> None:
            self.assertTrue(_Adopted.taken, "no connection was accepted: the test shows nothing")
            _Adopted.sets.clear()
            gc.collect()

    for name, reason in LEFT_OUT.items():
        if hasattr(base, name):
            setattr(Accepting, name, _left_out(reason))
    return Accepting


def _adopted(start: Callable[[Any], None]) -> Callable[[Any], None]:
    def start_listening(port: Any) -> None:
        start(port)
        reactor = port.reactor
        if reactor not in _Adopted.sets:
            _Adopted.sets[reactor] = ConnectionSet(reactor)
        adopt_port(_Adopted.sets[reactor], port)

    return start_listening


class _Reading:
    """
    What Twisted asks of reactors in order to see whether a transport is read from.
    """

    @staticmethod
    def patched(case: Any) -> None:
        for name, expected in (("assertReading", True), ("assertNotReading", False)):
            case.patch(tcp_tests, name, _Reading.check(expected))

    @staticmethod
    def check(expected: bool) -> Callable[..., None]:
        def reading(case: Any, reactor: Any, transport: Any) -> None:
            served = transport.served
            found = served is not None and bool(served.events & select.EPOLLIN)
            case.assertEqual(found, expected)

        return reading


class _Connections(tcp_tests.TCPConnectionTestsBuilder):
    def setUp(self) -> None:
        super().setUp()
        _Reading.patched(self)


class _Aborts(tcp_tests.AbortConnectionTests):
    pass


class _ServerAborts(tcp_tests.AbortConnectionTests):
    """
    What Twisted has the client do, the server does.
    """

    # It waits to be told that all is written; `Served` tells that only of what was queued.
    _pull = _left_out("a pull producer, and a milter's connection has a push producer")
    test_resumeProducingAbort = test_resumeProducingAbortLater = test_resumeProducingThrows = _pull

    def setUp(self) -> None:
        super().setUp()
        run = tcp_tests.runProtocolsWithReactor

        def exchanged(case: Any, server: Any, client: Any, endpoints: Any) -> Any:
            return run(case, client, server, endpoints)

        self.patch(tcp_tests, "runProtocolsWithReactor", exchanged)


class _UNIXServerAborts(_ServerAborts):
    endpoints = unix_tests.UNIXCreator()
    _alike = _left_out("a UNIX connection that is aborted looks like one that is closed")
    test_serverAbortsConnectionTwice = test_serverAbortsConnectionThenLosesConnection = _alike


class _Transports(tcp_tests.TCPTransportTestsBuilder):
    pass


class _ServerWrites(tcp_tests.TCPTransportTestsBuilder):
    """
    What Twisted has the client write, the server writes.
    """

    test_serverAddressTCP4 = test_serverAddressTCP6 = _left_out("it is about servers already")

    def getConnectedClientAndServer(self, *args: Any) -> Any:
        connected = super().getConnectedClientAndServer(*args)
        return connected.addCallback(lambda ends: (ends[1], ends[0], ends[2]))


class _UNIXConnections(unix_tests.UNIXTestsBuilder):
    pass


#: Those that are run with each reactor, a new one for each test.
BUILDERS: tuple[Any, ...] = (
    _Connections,
    _Aborts,
    _ServerAborts,
    _UNIXServerAborts,
    _Transports,
    _ServerWrites,
    _UNIXConnections,
)

#: Those of Twisted's tests that run on the reactor that is installed: half-close, large buffers,
#: errors in protocols, files that stay open, the order of what is called.
INSTALLED: tuple[Any, ...] = (
    old_tcp_tests.WriteDataTests,
    old_tcp_tests.ProperlyCloseFilesTests,
    old_tcp_tests.LargeBufferTests,
    old_tcp_tests.HalfCloseTests,
    old_tcp_tests.HalfCloseNoNotificationAndShutdownExceptionTests,
    old_tcp_tests.HalfCloseBuggyApplicationTests,
    old_tcp_tests.PauseProducingTests,
    old_tcp_tests.CallBackOrderTests,
)


def cases() -> Iterator[Any]:
    """
    Make the test cases: for each reactor of its own, and for the one that is installed.
    """
    for builder in BUILDERS:
        adopting = _adopting(builder)
        adopting.__name__ = builder.__name__.strip("_")
        adopting._reactors = [
            name
            for name in reactormixins.ReactorBuilder._reactors
            if name.rpartition(".")[2] in REACTORS
        ]
        yield from adopting.makeTestCaseClasses().values()
        accepting = _accepting(builder)
        accepting.__name__ = f"Accepted{adopting.__name__}"
        accepting._reactors = ["twisted.internet.epollreactor.EPollReactor"]
        yield from accepting.makeTestCaseClasses().values()
    for base in INSTALLED:
        adopting = _adopting(base)
        adopting.__name__ = adopting.__qualname__ = base.__name__
        yield adopting
