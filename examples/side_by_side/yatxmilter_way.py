"""
A milter the libmilter way, with yatxmilter. The same is in libmilter.c and pymilter_way.py.

    python yatxmilter_way.py ENDPOINT
"""

import sys

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIF_ADDHDRS, SMFIS_CONTINUE, SMFIS_REJECT
from yatxmilter.service import run_milters


class Counter(Milter):
    """
    Count the octets of each message.
    """

    xxfi_name = "counter"
    xxfi_flags = SMFIF_ADDHDRS

    def xxfi_envfrom(self, argv):
        self.octets = 0
        if argv[0].endswith("@spam.example>"):
            self.smfi_setreply("550", "5.7.1", "not from you")
            return SMFIS_REJECT
        return SMFIS_CONTINUE

    def xxfi_envrcpt(self, argv):
        if argv[0] == "<nobody@example.com>":
            self.smfi_setreply("550", "5.1.1", "nobody lives here")
            return SMFIS_REJECT
        return SMFIS_CONTINUE

    def xxfi_body(self, bodyp):
        self.octets += len(bodyp)
        return SMFIS_CONTINUE

    def xxfi_eom(self):
        self.smfi_addheader("X-Octets", str(self.octets))
        return SMFIS_CONTINUE


if __name__ == "__main__":
    factory = MilterProtocolFactory(MilterFactory(Counter))
    run_milters(sys.argv[1], factory)
