"""
Refuse recipients whose domain cannot receive mail, while the sender is still there to be told.

For a submission server: a mistyped domain is refused at RCPT TO instead of bouncing a day later.
The look-up goes through Twisted's own DNS client and blocks nothing: the callback returns a
Deferred, and this connection waits for it while all others go on.

    python recipient_checker.py [ENDPOINT [DNS-SERVER PORT]]
"""

import sys

from twisted.names import client, dns
from twisted.names.error import DNSNameError, DNSQueryTimeoutError, DomainError, ResolverError

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT, SMFIS_TEMPFAIL
from yatxmilter.service import run_milters


class RecipientChecker(Milter):
    """
    Look up the mail exchanger of each recipient's domain.
    """

    # Nothing is changed, so no action is asked for.
    xxfi_flags = 0
    resolver = None

    def xxfi_envrcpt(self, argv):
        domain = argv[0].strip("<>").rpartition("@")[2]
        # <postmaster> has no domain, and an address literal needs no look-up.
        if "@" not in argv[0] or domain.startswith("["):
            return SMFIS_CONTINUE
        try:
            name = domain.encode("idna")
        except UnicodeError:
            return self.refuse("550", "5.1.3", "that is not a domain")
        looked_up = self.resolver.lookupMailExchange(name, timeout=[2, 5])
        return looked_up.addCallbacks(self.found, self.not_found)

    def found(self, result):
        answers, authority, additional = result
        exchangers = [answer.payload.name.name for answer in answers if answer.type == dns.MX]
        # RFC 7505: a lone exchanger "." says that the domain takes no mail. Without any MX record
        # the domain itself is the exchanger (RFC 5321, section 5.1).
        if exchangers and not any(exchangers):
            return self.refuse("556", "5.1.10", "the recipient's domain takes no mail")
        return SMFIS_CONTINUE

    def not_found(self, failure):
        if failure.check(DNSNameError):
            return self.refuse("550", "5.1.2", "the recipient's domain does not exist")
        # No answer says nothing about the recipient: let the sender try again. What is no DNS
        # error is a bug, and passes on to the log.
        failure.trap(DomainError, DNSQueryTimeoutError, ResolverError)
        return self.refuse("451", "4.4.3", "cannot look up the recipient's domain now")

    def refuse(self, code, status, text):
        self.smfi_setreply(code, status, text)
        return SMFIS_REJECT if code.startswith("5") else SMFIS_TEMPFAIL


class RecipientCheckerFactory(MilterFactory):
    """
    Give every milter the same resolver.
    """

    def __init__(self, resolver):
        super().__init__(RecipientChecker)
        self.resolver = resolver

    def build_milter(self, protocol):
        milter = super().build_milter(protocol)
        milter.resolver = self.resolver
        return milter


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    # Not client.createResolver: its chain of resolvers turns "no such domain" into "failed".
    if argv[1:]:
        resolver = client.Resolver(servers=[(argv[1], int(argv[2]))])
    else:
        resolver = client.Resolver("/etc/resolv.conf")
    factory = MilterProtocolFactory(RecipientCheckerFactory(resolver))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
