"""
Put a disclaimer under the text of what our users send: plain text and HTML each in its own way.

What is signed or encrypted, by whatever means, is left whole: a disclaimer would break it. So is
text that is not what its charset says, and an answer that has the disclaimer in it already.

    python disclaimer.py [ENDPOINT [TEXT]]
"""

import html
import re
import sys

from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter
from yatxmilter.service import run_milters

SIGNED = ("DKIM-Signature", "ARC-Seal", "DomainKey-Signature")
SEALED = {
    "multipart/signed",
    "multipart/encrypted",
    "application/pkcs7-mime",
    "application/x-pkcs7-mime",
}
ENCODINGS = {"7bit", "8bit", "quoted-printable", "base64"}
# Mail may also be signed or encrypted within its text.
ARMOUR = "-----BEGIN PGP "


def add_text(text, disclaimer):
    return f"{text.rstrip()}\n\n-- \n{disclaimer}\n"


def add_html(text, disclaimer):
    ends = [match.start() for match in re.finditer(r"(?i)</body\s*>", text)]
    end = ends[-1] if ends else len(text)
    return f"{text[:end]}<hr><p>{html.escape(disclaimer)}</p>\n{text[end:]}"


def put_under(part, add, disclaimer):
    """
    Change a part of text; tell whether it was.
    """
    charset = part.get_content_charset("us-ascii")
    encoding = part.get("Content-Transfer-Encoding", "7bit").lower()
    if encoding not in ENCODINGS:
        return False
    try:
        text = part.get_content(errors="strict")
        changed = add(text, disclaimer)
    except (LookupError, UnicodeError):
        return False
    if any(there in text for there in (disclaimer, html.escape(disclaimer), ARMOUR)):
        return False
    try:
        changed.encode(charset)
    except LookupError:
        return False
    except UnicodeError:
        charset = "utf-8"
    if encoding == "7bit" and not changed.isascii():
        # The MTA was told that the message has no 8-bit text.
        encoding = "quoted-printable"
    kept = {name: part[name] for name in ("Content-ID", "Content-Language") if name in part}
    flowed = {name: part.get_param(name) for name in ("format", "delsp") if part.get_param(name)}
    disposition = part.get_content_disposition()
    if disposition not in ("inline", "attachment"):
        disposition = None
    part.set_content(
        *(changed, part.get_content_subtype()),
        charset=charset,
        cte=encoding,
        disposition=disposition,
        params=flowed or None,
    )
    for name, value in kept.items():
        part[name] = value
    return True


class Disclaimer(MessageMilter):
    """
    Add the disclaimer to mail of our users.
    """

    may_edit = ("headers", "body")
    max_size = 20_000_000

    def sender(self, msg):
        if msg.client.ip not in (None, "127.0.0.1", "::1") and "{auth_authen}" not in msg.macros:
            msg.accept()

    async def message(self, msg):
        if ARMOUR.encode() in msg.body or any(name in msg.headers for name in SIGNED):
            return
        if any(part.content_type in SEALED for part in msg.walk()):
            return
        # A large one is parsed in a thread, while other mail goes on.
        mail = await msg.parsed()
        changed = False
        for kind, add in (("plain", add_text), ("html", add_html)):
            part = mail.get_body((kind,))
            if part is not None:
                changed |= put_under(part, add, self.factory.text)
        if changed:
            msg.replace(mail)


class DisclaimerFactory(MilterFactory):
    """
    Hold the text.
    """

    def __init__(self, text):
        super().__init__(Disclaimer)
        self.text = text


def main(argv):
    endpoint = argv[0] if argv else "tcp:9900:interface=127.0.0.1"
    text = argv[1] if argv[1:] else "This message is meant for those it is addressed to."
    factory = MilterProtocolFactory(DisclaimerFactory(text))
    run_milters(endpoint, factory)


if __name__ == "__main__":
    main(sys.argv[1:])
