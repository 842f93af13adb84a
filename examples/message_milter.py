"""
Tag mail from outside: ``[EXT]`` in the subject, a banner on top of the text, and no ``X-Internal``
that only mail of our own may have.

Whoever logged in, or comes from this host, is inside. The banner goes into the plain text part
whatever the message is made of; one that is signed is left whole.

    python message_milter.py [ENDPOINT]         # default: tcp:9900:interface=127.0.0.1
"""

import sys

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters

MARK = "[EXT]"
BANNER = "This message comes from outside.\n\n"


class ExternalTagger(MessageMilter):
    """
    Tag each message that comes from outside.
    """

    may_edit = ("headers", "body")
    # Larger ones pass as they are.
    max_size = 20_000_000

    def connected(self, client):
        if client.ip in ("127.0.0.1", "::1"):
            client.accept()

    def sender(self, msg):
        # The MTA sets this macro for those who logged in.
        if "{auth_authen}" in msg.macros:
            msg.accept()

    async def message(self, msg):
        del msg.headers["X-Internal"]
        subject = msg.headers.get("Subject", "")
        if MARK not in subject:
            msg.headers["Subject"] = f"{MARK} {subject}".rstrip()
        if msg.headers.get("Content-Type", "").lower().startswith("multipart/signed"):
            return
        # A large one is parsed in a thread, while other mail goes on.
        mail = await msg.parsed()
        part = mail.get_body(("plain",))
        if part is not None:
            try:
                text = part.get_content(errors="strict")
            except (LookupError, UnicodeError):  # not in the charset that it names
                return
            part.set_content(BANNER + text)
            msg.replace(mail)


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    factory = MilterProtocolFactory(MilterFactory(ExternalTagger))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
