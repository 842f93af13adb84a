"""
Check where mail comes from: SPF, DKIM, DMARC, told in an Authentication-Results header (RFC 8601).

Nothing is refused: filters further on, and the reader's program, judge by the header. So the ones
that claim to be ours are deleted first. The libraries block while they ask DNS, so they run in a
thread. Needs dkimpy, pyspf, dnspython and publicsuffixlist.

    python authentication_results.py [ENDPOINT [OUR-NAME [DNS-SERVER PORT]]]
"""

import re
import sys

import dkim
import dns.exception
import dns.name
import dns.resolver
import spf
from publicsuffixlist import PublicSuffixList
from twisted.internet.threads import deferToThread

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters

HEADER = "Authentication-Results"
COMMENT = re.compile(r"\((?:[^()\\]|\\.)*\)", re.DOTALL)
SUFFIXES = PublicSuffixList()
#: Each signature costs a question to DNS; who writes a hundred of them means no good.
MOST_SIGNATURES = 5


def claims(raw, name):
    """
    Tell whether a field's value says that it comes from a server of this name.
    """
    for _ in range(10):  # from the inside out; deeper ones are made to keep somebody busy
        raw = COMMENT.sub(" ", raw)
    owner = raw.partition(";")[0].replace("\\", "").replace('"', "").split()
    # What cannot be read is not left to others to read.
    return not owner or "(" in owner[0] or owner[0].lower() == name.lower()


def check_spf(ip, sender, helo):
    try:
        return spf.check2(i=ip, s=sender, h=helo)[0]
    except (dns.exception.DNSException, UnicodeError, ValueError):
        return "permerror"  # no name that DNS could be asked for


def check_dkim(message, number):
    """
    Verify one signature: the result, and the domain that signed.
    """
    verifier = dkim.DKIM(message)
    try:
        result = "pass" if verifier.verify(number) else "fail"
    except dkim.ValidationError:
        result = "fail"
    except (dkim.DnsTimeoutError, dns.exception.DNSException):
        result = "temperror"
    except (dkim.DKIMException, UnicodeError, ValueError):
        result = "permerror"
    return result, (verifier.signature_fields or {}).get(b"d", b"").decode("latin-1").lower()


def organization(domain):
    return SUFFIXES.privatesuffix(domain) or domain


def check_dmarc(author, passed):
    """
    Look the author's policy up (RFC 7489); `passed` are the domains that SPF and DKIM vouch for.
    """
    for domain in dict.fromkeys([author, organization(author)]):
        try:
            answer = dns.resolver.resolve(f"_dmarc.{domain}", "TXT")
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel, UnicodeError):
            return "permerror"
        except dns.exception.DNSException:
            return "temperror"
        texts = [b"".join(record.strings).decode("latin-1") for record in answer]
        policies = [text for text in texts if re.match(r"v\s*=\s*DMARC1\s*(;|$)", text)]
        if len(policies) == 1:
            strict = {kind: f"a{kind}=s" in re.sub(r"\s", "", policies[0]) for kind in passed}
            for kind, domains in passed.items():
                same = str if strict[kind] else organization
                if same(author) in map(same, domains):
                    return "pass"
            return "fail"
    return "none"


def check(message, ip, sender, helo, authors):
    """
    Do all checks; this is what runs in a thread.
    """
    domain = (sender.rpartition("@")[2] or helo).lower()
    found = [("spf", check_spf(ip, sender, helo), "smtp.mailfrom", domain)]
    header = message.partition(b"\r\n\r\n")[0]
    signatures = len(re.findall(rb"(?im)^dkim-signature[ \t]*:", header))
    for number in range(min(signatures, MOST_SIGNATURES)):
        result, domain = check_dkim(message, number)
        found.append(("dkim", result, "header.d", domain))
    # RFC 7489, section 6.6.1: without one author there is nothing to align with.
    if len(authors) == 1:
        passed = {"spf": set(), "dkim": set()}
        for method, result, _, domain in found:
            if result == "pass":
                passed[method].add(domain)
        found.append(("dmarc", check_dmarc(*authors, passed), "header.from", *authors))
    return found


class Authenticator(MessageMilter):
    """
    Put the results on top of each message.
    """

    may_edit = ("headers",)

    async def message(self, msg):
        name = self.factory.name
        for field in msg.headers.fields(HEADER):
            if claims(field.raw, name):
                field.remove()
        if msg.client.ip in (None, "127.0.0.1", "::1") or "{auth_authen}" in msg.macros:
            return
        header = "".join(f"{field.name}: {field.raw}\n" for field in msg.headers) + "\n"
        message = header.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n") + msg.body
        addresses = getattr(msg.headers.get("From"), "addresses", ())
        authors = {address.domain.lower() for address in addresses}
        found = await self.factory.in_thread(
            check, message, msg.client.ip, msg.sender, msg.client.helo or "unknown", authors
        )
        # Senders choose these domains: nothing that means something here may be in them.
        safe = [(*rest, re.sub(r"[^a-z0-9._:-]", "?", domain)) for *rest, domain in found]
        lines = [f"{m}={r} {p}={domain}" if domain else f"{m}={r}" for m, r, p, domain in safe]
        msg.headers.insert(0, HEADER, ";\n\t".join([name, *lines]), raw=True)


class AuthenticatorFactory(MilterFactory):
    """
    Know our name.
    """

    def __init__(self, name, in_thread=deferToThread):
        super().__init__(Authenticator)
        self.name, self.in_thread = name, in_thread


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    if argv[2:]:
        # All of the libraries ask this one.
        dns.resolver.default_resolver = resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = [argv[2]], int(argv[3])
    factory = MilterProtocolFactory(AuthenticatorFactory(argv[1] if argv[1:] else "mx.example.com"))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
