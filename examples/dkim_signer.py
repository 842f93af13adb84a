"""
Sign what our own users send: DKIM (RFC 6376) for mail from inside, or of those who logged in.

Signing takes milliseconds of computing, so it is done in a thread. Let it be the last milter that
changes anything: what is changed after it breaks the signature. Needs dkimpy.

    python dkim_signer.py ENDPOINT DOMAIN SELECTOR KEY-FILE
"""

import sys
from pathlib import Path

import dkim
from twisted.internet.threads import deferToThread

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters


def octets(msg):
    """
    Give a message as it stands on the wire.
    """
    header = "".join(f"{field.name}: {field.raw}\n" for field in msg.headers) + "\n"
    return header.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n") + msg.body


class DkimSigner(MessageMilter):
    """
    Sign each message of ours.
    """

    may_edit = ("headers",)

    def sender(self, msg):
        if msg.client.ip not in (None, "127.0.0.1", "::1") and "{auth_authen}" not in msg.macros:
            msg.accept()

    async def message(self, msg):
        signer = self.factory
        addresses = getattr(msg.headers.get("From"), "addresses", ())
        # A signature of another domain than the author's helps nobody.
        if signer.domain not in {address.domain.lower() for address in addresses}:
            return
        # Relaxed: blanks and folds of the header may change on the way.
        field = await signer.in_thread(
            *(dkim.sign, octets(msg), signer.selector.encode(), signer.domain.encode()),
            *(signer.key, None, (b"relaxed", b"relaxed")),
        )
        name, _, value = field.decode("ascii").strip().partition(": ")
        msg.headers.insert(0, name, value.replace("\r\n", "\n"), raw=True)


class DkimSignerFactory(MilterFactory):
    """
    Hold the key, which is tried at once.
    """

    def __init__(self, domain, selector, key, in_thread=deferToThread):
        super().__init__(DkimSigner)
        self.domain, self.selector, self.key = domain.lower(), selector, key
        self.in_thread = in_thread
        dkim.sign(b"From: a\r\n\r\n", selector.encode(), domain.encode(), key)


def main(argv):
    if len(argv) != 4:
        sys.exit(__doc__)
    endpoint, domain, selector, path = argv
    factory = MilterProtocolFactory(DkimSignerFactory(domain, selector, Path(path).read_bytes()))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
