"""temporary"""

from collections import deque
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure


class T:
    disconnecting = False

    def __init__(self, clock, peer):
        self.clock = clock
        self.peer = peer
        self.out = deque()
        self.sched = False
        self.closed = False
        self.lost = False

    def write(self, data):
        if not self.closed and data:
            self.out.append(data)
            self.kick()

    def writeSequence(self, x):
        self.write(b"".join(x))

    def kick(self):
        if not self.sched:
            self.sched = True
            self.clock.callLater(0, self.run)

    def run(self):
        self.sched = False
        while self.out and not self.other.lost:
            self.other.protocol.dataReceived(self.out.popleft())
        if self.closed:
            self.fin()
            self.other.fin()

    def fin(self):
        if not self.lost:
            self.lost = True
            self.closed = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def loseConnection(self):
        self.closed = True
        self.disconnecting = True
        self.kick()

    def abortConnection(self):
        self.out.clear()
        self.loseConnection()

    def getPeer(self):
        return self.peer

    getHost = getPeer

    def registerProducer(self, *a):
        pass

    def unregisterProducer(self):
        pass

    def pauseProducing(self):
        pass

    def resumeProducing(self):
        pass


def connect_in_memory(client, factory, transport):
    a = T(factory.clock, transport.getHost())
    b = T(factory.clock, transport.getPeer())
    a.other = b
    b.other = a
    a.protocol = client
    b.protocol = factory.buildProtocol(transport.getPeer())
    b.protocol.makeConnection(b)
    client.makeConnection(a)
