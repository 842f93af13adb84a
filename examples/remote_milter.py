"""
Two milters of this process in front of OpenDKIM, which signs what they have made of the message.

`ListTag` puts the list's name into the subject, `Footer` puts two lines below the text. The third
milter is another program, here OpenDKIM, as it would stand in the MTA's own list of milters. With
``merge="chain"`` it is shown the message that will be delivered, so that its signature holds; and
while it is away mail has to wait (``on_error``) instead of going out without a signature.

    python remote_milter.py [ENDPOINT [MILTER]]
        # default: tcp:9900:interface=127.0.0.1 inet:8891@127.0.0.1
"""

import sys

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIF_ADDHDRS, SMFIF_CHGBODY, SMFIF_CHGHDRS, SMFIS_TEMPFAIL
from yatxmilter.remote import RemoteMilterFactory
from yatxmilter.service import run_milters

TAG = "[friends]"
FOOTER = b"-- \r\nThe list of friends, https://lists.example.com/friends\r\n"


class ListTag(Milter):
    """
    Tag the subject, and say which list this is.
    """

    xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGHDRS

    def xxfi_envfrom(self, argv):
        self.subject = ""

    def xxfi_header(self, headerf, headerv):
        if headerf.lower() == "subject":
            self.subject = headerv

    def xxfi_eom(self):
        if TAG not in self.subject:
            self.smfi_chgheader("Subject", 1, f"{TAG} {self.subject}")
        self.smfi_addheader("List-Id", "<friends.lists.example.com>")


class Footer(Milter):
    """
    Put a footer below the text.
    """

    xxfi_flags = SMFIF_CHGBODY

    def xxfi_envfrom(self, argv):
        self.chunks = []

    def xxfi_body(self, bodyp):
        self.chunks.append(bodyp)

    def xxfi_eom(self):
        self.smfi_replacebody(b"".join(self.chunks) + FOOTER)


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    address = argv[1] if len(argv) > 1 else "inet:8891@127.0.0.1"
    milters = [
        MilterFactory(ListTag),
        MilterFactory(Footer),
        RemoteMilterFactory(address, name="OpenDKIM", timeout=20, on_error=SMFIS_TEMPFAIL),
    ]
    factory = MilterProtocolFactory(milters, merge="chain")
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
