"""
Check where mail comes from: SPF, DKIM, ARC, DMARC, told in an Authentication-Results header
(RFC 8601). With a key, seal mail besides (ARC, RFC 8617), so that those it is passed on to can see
what was found here.

Nothing is refused: filters further on, and the reader's program, judge by the header. So the ones
that claim to be ours are deleted. The libraries block while they ask DNS, so they run in a thread.
Needs dkimpy, pyspf, dnspython and publicsuffixlist; and authres, for seals.

    python authentication_results.py [ENDPOINT [OUR-NAME [DNS-SERVER PORT]]]
                                     [--seal DOMAIN SELECTOR KEY-FILE]
"""

import argparse
import re
import sys
from pathlib import Path

import dkim
import dns.exception
import dns.name
import dns.resolver
import spf
from publicsuffixlist import PublicSuffixList
from twisted.internet.threads import deferToThread

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.errors import NotOnce
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters

HEADER = "Authentication-Results"
COMMENT = re.compile(r"\((?:[^()\\]|\\.)*\)", re.DOTALL)
SUFFIXES = PublicSuffixList()
#: Each signature costs a question to DNS; who writes a hundred of them means no good. So it is with
#: seals, of which each has two.
MOST_SIGNATURES = 5
MOST_SEALS = 10
#: What dkimpy and dnspython raise for what strangers write.
BROKEN = (dkim.DKIMException, dns.exception.DNSException, UnicodeError, ValueError, IndexError)


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
    except BROKEN:
        result = "permerror"
    return result, (verifier.signature_fields or {}).get(b"d", b"").decode("latin-1").lower()


def count(header, name):
    return len(re.findall(rb"(?im)^" + name + rb"[ \t]*:", header))


def check_arc(message, seals):
    """
    Verify the chain of seals: pass or fail.
    """
    if seals > MOST_SEALS:
        return "fail"
    try:
        return "pass" if dkim.arc_verify(message)[0] == dkim.CV_Pass else "fail"
    except BROKEN:
        return "fail"


def seal(message, name, domain, selector, key):
    """
    Seal a message that has our results on top: give the three fields, the uppermost first.
    """
    try:
        return dkim.arc_sign(message, selector.encode(), domain.encode(), key, name.encode())
    except BROKEN:
        return []  # its own chain is broken beyond sealing


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

    :param message: As it came, to the octet: a simple signature is about each blank.
    :param authors: The domains of the authors; ``None`` where there is not exactly one From.
    """
    domain = (sender.rpartition("@")[2] or helo).lower()
    found = [("spf", check_spf(ip, sender, helo), "smtp.mailfrom", domain)]
    header = message.partition(b"\r\n\r\n")[0] + b"\r\n"
    for number in range(min(count(header, b"dkim-signature"), MOST_SIGNATURES)):
        result, domain = check_dkim(message, number)
        found.append(("dkim", result, "header.d", domain))
    seals = count(header, b"arc-seal")
    if seals:
        found.append(("arc", check_arc(message, seals), "", ""))
    # RFC 7489, section 6.6.1: without one author there is nothing to align with. Of several From
    # fields a reader may be shown any; none is as bad (RFC 5322, section 3.6).
    if authors is None or "" in authors:
        found.append(("dmarc", "fail", "", ""))
    elif len(authors) == 1:
        passed = {"spf": set(), "dkim": set()}
        for method, result, _, domain in found:
            if result == "pass" and method in passed:
                passed[method].add(domain)
        found.append(("dmarc", check_dmarc(*authors, passed), "header.from", *authors))
    return found


def results(name, found):
    """
    Write the value of the field.
    """
    # Senders choose these domains: nothing that means something here may be in them.
    safe = [(*rest, re.sub(r"[^a-z0-9._:-]", "?", domain)) for *rest, domain in found]
    lines = [f"{m}={r} {p}={domain}" if domain else f"{m}={r}" for m, r, p, domain in safe]
    return ";\n\t".join([name, *lines])


class Authenticator(MessageMilter):
    """
    Put the results on top of each message, and a seal above them.
    """

    may_edit = ("headers",)

    async def message(self, msg):
        name = self.factory.name
        message = msg.bytes()
        for field in msg.headers.fields(HEADER):
            if claims(field.raw, name):
                field.remove()
        if msg.client.ip in (None, "127.0.0.1", "::1") or "{auth_authen}" in msg.macros:
            return
        try:
            addresses = msg.headers.only("From").addresses
            authors = {address.domain.lower() for address in addresses}
        except NotOnce:
            authors = None
        found = await self.factory.in_thread(
            check, message, msg.client.ip, msg.sender, msg.client.helo or "unknown", authors
        )
        msg.headers.insert(0, HEADER, results(name, found), raw=True)
        if self.factory.seal is not None:
            fields = await self.factory.in_thread(seal, msg.bytes(), name, *self.factory.seal)
            for field in reversed(fields):
                sealed, _, value = field.decode("ascii").strip().partition(": ")
                msg.headers.insert(0, sealed, value.replace("\r\n", "\n"), raw=True)


class AuthenticatorFactory(MilterFactory):
    """
    Know our name, and hold what we seal with: domain, selector and key.
    """

    def __init__(self, name, in_thread=deferToThread, seal=None):
        super().__init__(Authenticator)
        self.name, self.in_thread, self.seal = name, in_thread, seal
        if seal is not None:
            import authres  # noqa: F401 (dkimpy needs it to seal: better told now than later)


def main(argv):
    parser = argparse.ArgumentParser(description="Check where mail comes from.")
    parser.add_argument("endpoint", nargs="?", default="tcp:9900:interface=127.0.0.1")
    parser.add_argument("name", nargs="?", default="mx.example.com")
    parser.add_argument("dns", nargs="*", metavar="DNS-SERVER PORT")
    parser.add_argument("--seal", nargs=3, metavar=("DOMAIN", "SELECTOR", "KEY-FILE"))
    options = parser.parse_args(argv)
    if options.dns:
        # All of the libraries ask this one.
        server, port = options.dns
        dns.resolver.default_resolver = resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = [server], int(port)
    sealing = None
    if options.seal:
        domain, selector, path = options.seal
        sealing = domain, selector, Path(path).read_bytes()
    factory = AuthenticatorFactory(options.name, seal=sealing)
    run_milters(options.endpoint, MilterProtocolFactory(factory))


if __name__ == "__main__":
    main(sys.argv[1:])
