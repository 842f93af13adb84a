"""
Three milters on one connection, each seeing the message as the one before it left it.

The MTA talks to one milter; inside, `HeloCheck` turns away hosts that claim to be us,
`AttachmentCheck` refuses programs as attachments, and `Tally` notes what came through. With
``merge="chain"`` they work as if the MTA had been given three milters, one after the other.

    python three_milters.py [ENDPOINT]          # default: tcp:9900:interface=127.0.0.1
"""

import sys
from email import policy
from email.parser import BytesFeedParser

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIF_ADDHDRS, SMFIS_CONTINUE, SMFIS_REJECT
from yatxmilter.service import run_milters

OUR_NAMES = {"mail.example.com", "example.com", "localhost"}
PROGRAMS = (".exe", ".com", ".scr", ".bat", ".js", ".vbs")


class HeloCheck(Milter):
    """
    Turn away strangers who introduce themselves with our name.
    """

    xxfi_flags = 0

    def xxfi_connect(self, hostname, hostaddr):
        self.local = getattr(hostaddr, "host", None) in (None, "127.0.0.1", "::1")

    def xxfi_helo(self, helohost):
        if self.local or helohost.lower() not in OUR_NAMES:
            return SMFIS_CONTINUE
        self.smfi_setreply("550", "5.7.1", f"you are not {helohost}")
        return SMFIS_REJECT


class AttachmentCheck(Milter):
    """
    Refuse messages with a program attached, naming it.
    """

    xxfi_flags = 0

    def xxfi_envfrom(self, argv):
        self.parser = BytesFeedParser(policy=policy.default)

    def xxfi_header(self, headerf, headerv):
        # Folded header fields come with LF in them, as surrogates where they were not UTF-8.
        line = f"{headerf}: {headerv.lstrip()}\n"
        self.parser.feed(line.encode("utf-8", "surrogateescape"))

    def xxfi_eoh(self):
        self.parser.feed(b"\n")

    def xxfi_body(self, bodyp):
        self.parser.feed(bodyp)

    def xxfi_eom(self):
        for part in self.parser.close().walk():
            name = part.get_filename() or ""
            if name.lower().endswith(PROGRAMS):
                self.smfi_setreply("550", "5.7.1", "no programs by mail, please")
                return SMFIS_REJECT
        return SMFIS_CONTINUE


class Tally(Milter):
    """
    Count the header fields, and leave a note for the reader.
    """

    xxfi_flags = SMFIF_ADDHDRS

    def xxfi_envfrom(self, argv):
        self.headers = self.octets = 0

    def xxfi_header(self, headerf, headerv):
        self.headers += 1

    def xxfi_body(self, bodyp):
        self.octets += len(bodyp)

    def xxfi_eom(self):
        self.smfi_addheader("X-Tally", f"{self.headers} header fields, {self.octets} octets")


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    milters = [MilterFactory(milter) for milter in (HeloCheck, AttachmentCheck, Tally)]
    factory = MilterProtocolFactory(milters, merge="chain")
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
