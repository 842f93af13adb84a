"""
Limit how many recipients each may write to: a token bucket for who logged in, or else for the
client's network and for the sender. What is above the limit is put off, and comes again later.

    python rate_limit.py [ENDPOINT [RECIPIENTS-PER-HOUR [AT-ONCE]]]
"""

import sys
from collections import OrderedDict
from ipaddress import ip_address, ip_network

from twisted.internet import reactor

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_ACCEPT, SMFIS_CONTINUE, SMFIS_TEMPFAIL
from yatxmilter.service import run_milters


class Buckets:
    """
    Token buckets, the most recently used ones of them.

    :ivar rate: Tokens that a bucket gets each second.
    :ivar size: Tokens that fit into one.
    """

    def __init__(self, clock, rate, size, most=100_000):
        self.clock, self.rate, self.size, self.most = clock, rate, size, most
        self.levels = OrderedDict()

    def level(self, key):
        now = self.clock.seconds()
        level, then = self.levels.get(key, (self.size, now))
        return min(self.size, level + (now - then) * self.rate)

    def take(self, keys):
        """
        Take a token from each of these, or none from any; tell for how many seconds to wait.
        """
        levels = {key: self.level(key) for key in keys}
        least = min(levels.values())
        if least < 1:
            return (1 - least) / self.rate
        for key, level in levels.items():
            self.levels[key] = level - 1, self.clock.seconds()
            self.levels.move_to_end(key)
        while len(self.levels) > self.most:
            self.levels.popitem(last=False)
        return 0


class RateLimit(Milter):
    """
    Put off the recipients above the limit.
    """

    xxfi_flags = 0
    network = sender = None

    def xxfi_connect(self, hostname, hostaddr):
        if not hasattr(hostaddr, "host"):
            return SMFIS_ACCEPT  # local mail
        address = ip_address(hostaddr.host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        # Who has one IPv6 address has a /64 of them, and who has one in a /24 may have them all.
        self.network = str(ip_network((address, 64 if address.version == 6 else 24), strict=False))
        return SMFIS_CONTINUE

    def xxfi_envfrom(self, argv):
        self.sender = argv[0].lower()

    def xxfi_envrcpt(self, argv):
        user = self.smfi_getsymval("{auth_authen}")
        if user:
            keys = [("user", user)]
        elif self.sender == "<>":  # bounces come from everybody
            keys = [("network", self.network)]
        else:
            keys = [("network", self.network), ("sender", self.sender)]
        wait = self.factory.buckets.take(keys)
        if not wait:
            return SMFIS_CONTINUE
        self.smfi_setreply("451", "4.7.1", f"too much mail, try again in {wait + 1:.0f} seconds")
        return SMFIS_TEMPFAIL


class RateLimitFactory(MilterFactory):
    """
    Hold the buckets, which all connections share.
    """

    def __init__(self, buckets):
        super().__init__(RateLimit)
        self.buckets = buckets


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    hourly = float(argv[1]) if argv[1:] else 600.0
    size = float(argv[2]) if argv[2:] else 100.0
    factory = MilterProtocolFactory(RateLimitFactory(Buckets(reactor, hourly / 3600, size)))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
