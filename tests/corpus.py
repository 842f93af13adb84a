"""
Odd mail, made by the tests: no mail of real people. Each message is one that somebody's program
has sent like that, or that a stranger would send to see what happens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

__all__ = ["FIELDS", "messages", "random_message"]

_RANDOM_WORDS: Final = (
    *(b"plain", b"[list]", b"=?utf-8?q?B=C3=BCro?=", b"=?utf-8?b?Y2Fmw6k=?=", b"=?utf-8?q?=C3?="),
    *(b"=?x-none?q?a?=", b"=?utf-8?q?=0A?=", b"=?utf-7?q?+2D0-?=", b"\xe9t\xe9", "été".encode()),
    *(b"a@example.org", b"<b@example.net>", b'"c, d"', b'"open', b"(comment", b")", b"<", b">"),
    *(b",", b";", b":", b"name*0*=utf-8''%C3", b"boundary=b", b"charset=utf-8", b'charset="x'),
    *(b"text/plain", b"multipart/mixed", b"base64", b"Thu, 26 Nov 2026 10:00:00 +0000", b"\x1b[2J"),
    *(b"x" * 90, b"\r", b"=?", b"?=", b"\\", b'"', b"''", b"*", b"%ZZ"),
)

#: Fields that are odd, each by itself.
FIELDS: Final = (
    b"Subject: =?utf-8?q?hello=0AX-Spam-Status:_No?=",
    b"Subject: =?utf-8?b?aGkNCg==?=",
    b"Subject: \xe1rv\xedzt\xfbr\xf5",
    "Subject: árvíztűrő tükörfúrógép".encode(),
    b"Subject:",
    b"Subject:\r\n  folded at once",
    b"Subject: a\rb",
    b"Subject: " + b"=?utf-8?q?=C3=A9?= " * 40,
    b"From: " + b'"' * 200 + b" a@example.org",
    b"From: =?utf-8?q?boss=40example=2Ecom=2C?= <eve@example.net>",
    b"From: a@example.org\r\nFrom: b@example.org",
    b"To: undisclosed-recipients:;",
    b"To: a@example.org; b@example.org",
    b"To: " + b", ".join(b"user%d@example.com" % n for n in range(200)),
    b"Date: yesterday",
    b"Date:",
    b"Date: Thu, 26 Nov 99999999999999999 10:00:00 +0000",
    b"Message-ID: none",
    b"Message-ID: <a@",
    b"MIME-Version: 1.0 (by somebody)",
    b"Content-Type: text/plain; name*",
    b"Content-Type: text/plain; name*0*=utf-8''%C3; name*1*=%A9",
    b"Content-Type: text",
    b"Content-Type: text/plain" + b";" * 300,
    b"Content-Type: text/plain; charset=unknown-8bit",
    b"Content-Type: text/plain; charset==?utf-8?q?utf-8?=",
    b'Content-Type: text/plain; charset="utf-8',
    b"Content-Type: text/html; charset=utf-16",
    b"Content-Type: multipart/mixed",
    b"Content-Type: multipart/related; boundary=none; start=x",
    b"Content-Type: multipart/mixed; boundary=b",
    b"Content-Type: multipart/alternative; boundary=b",
    b"Content-Type: message/rfc822",
    b"Content-Type: message/delivery-status",
    b"Content-Disposition: inline; filename*",
    b"Content-Disposition: \xe9; filename=\xe9",
    b"Content-Transfer-Encoding: base64",
    b"Content-Transfer-Encoding: x-uuencode",
    b"Content-Transfer-Encoding: quoted-printable",
    b"Content-Transfer-Encoding: ",
    b"Content-ID: \xe9",
    b"X-Long: " + b"y" * 1500,
    b"X-Octets: " + bytes(range(1, 10)) + bytes(range(14, 256)),
)

_BODIES: Final = (
    b"",
    b"text\r\n",
    b"no end",
    b"--b\r\n\r\npart \xe9\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>\xe9\r\n--b--\r\nend\r\n",
    b"--b\r\nContent-Type: text/plain; name*\r\nX\r\n--b--",
    b"--b\r\n--b\r\n--b--\r\n--b\r\n",
    b"pre\r\n--b  \r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!\r\n--b",
    b"From: x\r\n\r\ntext\r\n",
    b"begin 644 x\r\nM\r\nend\r\n",
    b"a\rb\nc\r\n\r\n\r\n",
    b"=\r\n=ZZ=E9=\r\n",
    b"AAAA=\r\n====\r\nB",
)


def messages() -> Iterator[bytes]:
    """
    Yield messages: each odd field in front of bodies of all kinds.
    """
    for number, field in enumerate(FIELDS):
        for body in (_BODIES[number % len(_BODIES)], _BODIES[3], _BODIES[(7 * number + 5) % 12]):
            head = b"" if field.startswith(b"From") else b"From: <a@example.org>\r\n"
            yield head + field + b"\r\n\r\n" + body


def random_message(seed: int) -> bytes:
    """
    Make a message of pieces in no order; the same for the same seed.
    """
    dice = random.Random(seed)
    names = (b"Subject", b"From", b"To", b"Date", b"Content-Type", b"Content-Disposition", b"X-A")
    names += (b"Content-Transfer-Encoding", b"Message-ID", b"MIME-Version", b"List-Id")
    lines = []
    for _ in range(dice.randrange(1, 8)):
        words = [dice.choice(_RANDOM_WORDS) for _ in range(dice.randrange(8))]
        blank = dice.choice((b" ", b" ", b"", b"\t", b"\r\n ", b"  "))
        lines.append(dice.choice(names) + b":" + blank + dice.choice((b" ", b"")).join(words))
    return b"\r\n".join(lines) + b"\r\n\r\n" + dice.choice(_BODIES)
