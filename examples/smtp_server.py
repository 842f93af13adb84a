"""
An SMTP server in Twisted whose mail OpenDKIM signs; there is no Postfix or Sendmail.

It takes mail for everyone from whoever can reach it, so it listens on this host only. The message
is written into a maildir as OpenDKIM, and any milter before it in the list, has left it. While
OpenDKIM is away clients are told to come back later. On SIGTERM those that have begun a message may
finish it.

    python smtp_server.py [ENDPOINT [MILTER [MAILDIR]]]
        # default: tcp:2525:interface=127.0.0.1 inet:8891@127.0.0.1 Maildir
"""

import mailbox
import sys

from twisted.internet import defer, endpoints, task
from twisted.mail.interfaces import IMessageDelivery, IMessageSMTP
from twisted.mail.smtp import rfc822date
from zope.interface import implementer

from yatxmilter.remote import RemoteMilterFactory
from yatxmilter.smtp import MilterSMTPFactory, SMTPMilters


@implementer(IMessageSMTP)
class MaildirMessage:
    """
    A message for a maildir, in memory until it is complete.
    """

    def __init__(self, folder):
        self.folder = folder
        self.lines = []

    def lineReceived(self, line):
        self.lines.append(line)

    def eomReceived(self):
        return defer.execute(self.folder.add, b"\n".join([*self.lines, b""]))

    def connectionLost(self):
        self.lines.clear()


@implementer(IMessageDelivery)
class MaildirDelivery:
    """
    Take mail from everyone for everyone.
    """

    def __init__(self, path):
        self.folder = mailbox.Maildir(path)

    def receivedHeader(self, helo, origin, recipients):
        date = rfc822date().decode()
        return f"Received: from {helo[0].decode('latin-1')} by localhost; {date}".encode("latin-1")

    def validateFrom(self, helo, origin):
        return origin

    def validateTo(self, user):
        return lambda: MaildirMessage(self.folder)


async def serve(reactor, endpoint, factory):
    port = await endpoints.serverFromString(reactor, endpoint).listen(factory)

    async def stop():
        await port.stopListening()
        await factory.milters.drain(30)

    reactor.addSystemEventTrigger("before", "shutdown", lambda: defer.ensureDeferred(stop()))
    await defer.Deferred()


def main(argv):
    defaults = ["tcp:2525:interface=127.0.0.1", "inet:8891@127.0.0.1", "Maildir"]
    endpoint, address, path = [*argv, *defaults[len(argv) :]]
    milters = SMTPMilters([RemoteMilterFactory(address, name="OpenDKIM", timeout=20)])
    task.react(serve, (endpoint, MilterSMTPFactory(milters, MaildirDelivery(path))))


if __name__ == "__main__":
    main(sys.argv[1:])
