"""
A milter with pymilter (Debian's python3-milter). The same is in libmilter.c and yatxmilter_way.py.

    python3 pymilter_way.py SOCKET
"""

import sys

import Milter


class Counter(Milter.Base):
    """
    Count the octets of each message.
    """

    def __init__(self):
        self.octets = 0

    def envfrom(self, sender, *params):
        self.octets = 0
        if sender.endswith("@spam.example>"):
            self.setreply("550", "5.7.1", "not from you")
            return Milter.REJECT
        return Milter.CONTINUE

    def envrcpt(self, recipient, *params):
        if recipient == "<nobody@example.com>":
            self.setreply("550", "5.1.1", "nobody lives here")
            return Milter.REJECT
        return Milter.CONTINUE

    def body(self, chunk):
        self.octets += len(chunk)
        return Milter.CONTINUE

    def eom(self):
        self.addheader("X-Octets", str(self.octets))
        return Milter.CONTINUE


if __name__ == "__main__":
    Milter.factory = Counter
    Milter.set_flags(Milter.ADDHDRS)
    Milter.runmilter("counter", sys.argv[1], 240)
