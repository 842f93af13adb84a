"""
Sign what our own users send: DKIM (RFC 6376) for mail from inside, or of those who logged in.

Signing takes milliseconds of computing, so it is done in a thread. Let it be the last milter that
changes anything: what is changed after it breaks the signature. A message with lines that an MTA
cuts is not signed, and the log says so. Needs dkimpy.

    python dkim_signer.py ENDPOINT DOMAIN SELECTOR KEY-FILE
"""

import sys
from pathlib import Path

import dkim
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.errors import NotOnce
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters

#: MTAs cut longer lines (RFC 5321, section 4.5.3.1.6), and a signature over them breaks.
LONGEST = 998

log = Logger()


def sign(message, *arguments):
    """
    Give the field with the signature, or nothing for a message that would not arrive as it is.
    """
    if max(map(len, message.split(b"\r\n"))) > LONGEST:
        return None
    # Relaxed: blanks and folds of the header may change on the way.
    return dkim.sign(message, *arguments, canonicalize=(b"relaxed", b"relaxed"))


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
        try:
            addresses = msg.headers.only("From").addresses
        except NotOnce:
            return
        # A signature of another domain than the author's helps nobody.
        if signer.domain not in {address.domain.lower() for address in addresses}:
            return
        field = await signer.in_thread(
            *(sign, msg.bytes(), signer.selector.encode(), signer.domain.encode(), signer.key)
        )
        if field is None:
            log.warn(
                "not signing {queue_id}: it has lines of more than {longest} octets",
                queue_id=msg.queue_id,
                longest=LONGEST,
            )
            return
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
