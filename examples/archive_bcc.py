"""
Send a copy of each message of some domains to an archive: one more recipient in the envelope, of
which no header tells.

    python archive_bcc.py [ENDPOINT [DOMAIN=ARCHIVE ...]]
"""

import sys

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters


def domain_of(address):
    return address.rpartition("@")[2].lower()


class Archiver(MessageMilter):
    """
    Add the archives of the domains that a message comes from or goes to.
    """

    may_edit = ("recipients",)
    # The envelope says it all.
    wants_body = False

    def message(self, msg):
        archives = self.factory.archives
        addresses = [msg.sender, *(recipient.address for recipient in msg.recipients)]
        wanted = {archives.get(domain_of(address)) for address in addresses} - {None}
        present = {address.lower() for address in addresses[1:]}
        for archive in sorted(wanted):
            # What the archive tells of its mail is not the sender's to know.
            if archive.lower() not in present:
                msg.recipients.add(archive, "NOTIFY=NEVER")


class ArchiverFactory(MilterFactory):
    """
    Hold the archive of each domain.
    """

    def __init__(self, archives):
        super().__init__(Archiver)
        self.archives = archives


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    pairs = [pair.split("=", 1) for pair in argv[1:] or ["example.com=archive@example.net"]]
    archives = {domain.lower(): archive for domain, archive in pairs}
    factory = MilterProtocolFactory(ArchiverFactory(archives))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
