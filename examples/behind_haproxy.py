"""
One of several milter hosts behind HAProxy, which leaves without disturbing a message.

HAProxy says who has connected to it (the PROXY protocol, ``haproxy:`` in an endpoint), and asks an
agent each second whether this host is to get more connections. On SIGTERM the agent says "drain",
and when HAProxy has heard that, and the connections there are have come to their end, the program
ends. ``deploy/haproxy.cfg`` is for two such hosts.

    python behind_haproxy.py [ENDPOINT [AGENT]]
"""

import socket
import sys

from twisted.internet import endpoints, reactor
from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIF_ADDHDRS
from yatxmilter.service import MilterService

#: Seconds for HAProxy to ask the agent, and for connections to come to their end by themselves.
HEARD = 5
LEAVE = 30

log = Logger(namespace="host")


class Mark(Milter):
    """
    Say in each message which host has seen it.
    """

    xxfi_flags = SMFIF_ADDHDRS

    def xxfi_mta_connect(self, address):
        # The MTA's address, not HAProxy's.
        self.mta = address.host

    def xxfi_eom(self):
        log.info("{id} from the MTA at {mta}", id=self.smfi_getsymval("i"), mta=self.mta)
        self.smfi_addheader("X-Filtered-By", socket.gethostname())


class AgentProtocol(Protocol):
    """
    Answer HAProxy's agent check: the connection alone is the question.
    """

    def connectionMade(self):
        self.transport.write(self.factory.answer())
        self.transport.loseConnection()


class Agent(Factory):
    """
    Know whether this host is on its way out.
    """

    protocol = AgentProtocol
    noisy = False

    def __init__(self):
        self.leaving = False
        self.heard = Deferred()

    def answer(self):
        if not self.leaving:
            return b"ready up\n"
        if not self.heard.called:
            self.heard.callback(None)
        return b"drain\n"


async def leave(agent, milters, service):
    """
    Have HAProxy send nobody any more, wait for those who are here, and stop.
    """
    agent.leaving = True
    try:
        await agent.heard.addTimeout(HEARD, reactor)
    except TimeoutError:
        log.warn("HAProxy has not asked in {seconds} seconds", seconds=HEARD)
    end = reactor.seconds() + LEAVE
    quiet = 0
    # What HAProxy sent on its way just before it heard of it may still be about to come.
    while quiet < 5 and reactor.seconds() < end:
        quiet = 0 if milters.connections else quiet + 1
        await deferLater(reactor, 0.1)
    await service.stopService()


def main(argv, milter=Mark):
    endpoint = argv[0] if argv else "haproxy:tcp:9900"
    agent_endpoint = argv[1] if argv[1:] else "tcp:9901"
    globalLogPublisher.addObserver(textFileLogObserver(sys.stderr))
    milters = MilterProtocolFactory(MilterFactory(milter))
    service = MilterService(endpoints.serverFromString(reactor, endpoint), milters)
    agent = Agent()
    reactor.callWhenRunning(service.startService)
    endpoints.serverFromString(reactor, agent_endpoint).listen(agent)
    reactor.addSystemEventTrigger(
        "before", "shutdown", lambda: ensureDeferred(leave(agent, milters, service))
    )
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
