"""
Mark mail from outside: ``[EXT]`` in the subject, and a header that filters further on can trust.

Whoever logged in, or comes from this host, is inside. The mark is only worth something if senders
cannot set it themselves, so every ``X-External`` that a message brings along is deleted first.

    python header_tagger.py [ENDPOINT]          # default: tcp:9900:interface=127.0.0.1
"""

import sys

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import (
    SMFIF_ADDHDRS,
    SMFIF_CHGHDRS,
    SMFIS_ACCEPT,
    SMFIS_CONTINUE,
)
from yatxmilter.service import run_milters

HEADER = "X-External"
MARK = "[EXT]"


class HeaderTagger(Milter):
    """
    Tag each message that comes from outside.
    """

    xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGHDRS
    client = ""

    def xxfi_connect(self, hostname, hostaddr):
        self.client = getattr(hostaddr, "host", hostname)
        return SMFIS_ACCEPT if self.client in ("127.0.0.1", "::1") else SMFIS_CONTINUE

    def xxfi_envfrom(self, argv):
        # A connection can carry many messages: what belongs to one starts here.
        self.subject = None
        self.forged = 0
        # The MTA sets this macro for those who logged in.
        return SMFIS_ACCEPT if self.smfi_getsymval("{auth_authen}") else SMFIS_CONTINUE

    def xxfi_header(self, headerf, headerv):
        if headerf.lower() == "subject" and self.subject is None:
            self.subject = headerv
        elif headerf.lower() == HEADER.lower():
            self.forged += 1

    def xxfi_eom(self):
        # From the last to the first: Postfix numbers the rest anew after each deletion.
        for index in range(self.forged, 0, -1):
            self.smfi_chgheader(HEADER, index, None)
        self.smfi_addheader(HEADER, f"yes; client={self.client}")
        if self.subject is None:
            self.smfi_addheader("Subject", MARK)
        elif MARK not in self.subject:
            self.smfi_chgheader("Subject", 1, f"{MARK} {self.subject.lstrip()}")


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    factory = MilterProtocolFactory(MilterFactory(HeaderTagger))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
