"""
Whole sessions as captured from libmilter byte for byte, and what each comes to on both libraries.
"""

from __future__ import annotations

from .case import Call, Reaction
from .written import PLAIN, Seen, vector

_O = b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"
_C = b"\x00\x00\x00\x1fCmail.example.org\x004\x10\xe1192.0.2.1\x00"
_R = b"\x00\x00\x00\x11R<r@example.net>\x00"
_Q = b"\x00\x00\x00\x01Q"
_E = b"\x00\x00\x00\x01E"
_A = b"\x00\x00\x00\x01A"

_CONNECT: Seen = ("connect", b"mail.example.org", b"192.0.2.1", 4321, 4)
_NEGOTIATE: Seen = ("negotiate", 0x1FF, 0x1FFFFF, 0, 0)
_RCPT: Seen = ("envrcpt", b"<r@example.net>")
_ABORT: Seen = ("abort",)
_EOM: Seen = ("eom",)
_CLOSE: Seen = ("close",)
_SUBJECT: Seen = ("header", b"Subject", b"hi")


def _agreed(words: bytes) -> bytes:
    return b"O\x00\x00\x00\x06" + words


def _symbol(name: bytes) -> Call:
    return Call("getsymval", (name,))


SESSIONS = (
    vector(
        "a message is accepted",
        (
            _O,
            b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00",
            _C,
            b"\x00\x00\x00\x12Hmail.example.org\x00",
            b"\x00\x00\x00#DMi\x004Xyz\x00{mail_addr}\x00s@example.org\x00",
            b"\x00\x00\x00\x19M<s@example.org>\x00SIZE=42\x00",
            b"\x00\x00\x00\x1cDR{rcpt_addr}\x00r@example.net\x00",
            _R,
            b"\x00\x00\x00\x01T",
            b"\x00\x00\x00\x14LFrom\x00s@example.org\x00",
            b"\x00\x00\x00\x0cLSubject\x00hi\x00",
            b"\x00\x00\x00\x01N",
            b"\x00\x00\x00\x08BHello\x0d\x0a",
            _E,
            _Q,
        ),
        (
            _CONNECT,
            ("helo", b"mail.example.org"),
            ("envfrom", b"<s@example.org>", b"SIZE=42"),
            _RCPT,
            ("data",),
            ("header", b"From", b"s@example.org"),
            _SUBJECT,
            ("eoh",),
            ("body", b"Hello\r\n"),
            _EOM,
            _CLOSE,
        ),
        (_agreed(b"\0\0\0\0\0\0\0\0"), *[b"c"] * 9, b"a"),
        closed=True,
        flags=0,
        callbacks=PLAIN,
        reactions={"eom": (Reaction(3),)},
        ours={"output": (_agreed(b"\0\0\0\0\0\0\x04\0"), *[b"c"] * 9, b"a")},
        difference="computed_request",
    ),
    vector(
        "header edits, quarantine and progress at the end of message",
        (_O, b"\x00\x00\x00\x09DEi\x004Xyz\x00", _E, _Q),
        (_EOM, _CLOSE),
        (
            _agreed(b"\0\0\x001\0\0\x03\x7f"),
            b"p",
            b"i\0\0\0\0X-Top\0one\0",
            b"hX-Spam\0no\0",
            b"m\0\0\0\x01Subject\0[x] hi\0",
            b"m\0\0\0\x01X-Old\0\0",
            b"qheld\0",
            b"c",
        ),
        closed=True,
        flags=0x31,
        callbacks=("eom",),
        reactions={
            "eom": (
                Reaction(
                    calls=(
                        Call("progress"),
                        Call("insheader", (0, b"X-Top", b"one")),
                        Call("addheader", (b"X-Spam", b"no")),
                        Call("chgheader", (b"Subject", 1, b"[x] hi")),
                        Call("chgheader", (b"X-Old", 1, None)),
                        Call("quarantine", (b"held",)),
                    )
                ),
            )
        },
        answers=(0, 0, 0, 0, 0, 0),
    ),
    vector(
        "one recipient is rejected with three lines, one with none",
        (
            _O,
            b"\x00\x00\x00:C[IPv6:2001:db8:0:0:0:0:0:9]\x006a\xa8IPv6:2001:db8:0:0:0:0:0:9\x00",
            b"\x00\x00\x00\x04M<>\x00",
            b"\x00\x00\x00\x1eR<a@example.net>\x00NOTIFY=NEVER\x00",
            b"\x00\x00\x00\x11R<b@example.net>\x00",
            b"\x00\x00\x00\x11R<c@example.net>\x00",
            _A,
            _Q,
        ),
        (
            ("connect", b"[IPv6:2001:db8:0:0:0:0:0:9]", b"2001:db8::9", 25000, 6),
            ("envfrom", b"<>"),
            ("envrcpt", b"<a@example.net>", b"NOTIFY=NEVER"),
            ("envrcpt", b"<b@example.net>"),
            ("envrcpt", b"<c@example.net>"),
            _ABORT,
            _CLOSE,
        ),
        (
            _agreed(b"\0\0\0\0\0\0\x03r"),
            b"c",
            b"c",
            b"y550-5.7.1 Go away\r\n550-5.7.1 See http://x.example\r\n550 5.7.1 Bye\0",
            b"t",
            b"c",
        ),
        closed=True,
        flags=0,
        callbacks=("connect", "envfrom", "envrcpt", "eom"),
        reactions={
            "envrcpt": (
                Reaction(
                    1,
                    (
                        Call(
                            "setmlreply",
                            (b"550", b"5.7.1", b"Go away", b"See http://x.example", b"Bye"),
                        ),
                    ),
                ),
                Reaction(4),
            )
        },
        answers=(0,),
    ),
    vector(
        "the rest of the body is skipped",
        (
            _O,
            b"\x00\x00\x00\x0cLSubject\x00hi\x00",
            b"\x00\x00\x00\x0bBpart one\x0d\x0a",
            _E,
            _Q,
        ),
        (_NEGOTIATE, _SUBJECT, ("body", b"part one\r\n"), _EOM, _CLOSE),
        (_agreed(b"\0\0\x01\xff\0\0\x07O"), b"c", b"s", b"c"),
        closed=True,
        callbacks=("negotiate", "header", "body", "eom"),
        reactions={"negotiate": (Reaction(10),), "body": (Reaction(8),)},
    ),
    vector(
        "headers and body without replies",
        (
            _O,
            b"\x00\x00\x00\x0cLSubject\x00hi\x00",
            b"\x00\x00\x00\x06LTo\x00x\x00",
            b"\x00\x00\x00\x07Bbody\x0d\x0a",
            _E,
            _Q,
        ),
        (_NEGOTIATE, _SUBJECT, ("header", b"To", b"x"), ("body", b"body\r\n"), _EOM, _CLOSE),
        (_agreed(b"\0\0\0\0\0\x08\x03\xcf"), b"c"),
        closed=True,
        callbacks=("negotiate", "header", "body", "eom"),
        reactions={
            "negotiate": (Reaction(actions=0, steps=0x803CF),),
            "header": (Reaction(7), Reaction(7)),
            "body": (Reaction(7),),
        },
    ),
    vector(
        "RSET, a second message, and the ABORT that Postfix sends behind it",
        (
            _O,
            b"\x00\x00\x00\x0fHc.example.org\x00",
            b"\x00\x00\x00\x07DMi\x00Q1\x00",
            b"\x00\x00\x00\x13M<one@example.org>\x00",
            _R,
            _A,
            b"\x00\x00\x00\x07DMi\x00Q2\x00",
            b"\x00\x00\x00\x13M<two@example.org>\x00",
            _R,
            _E,
            _A,
            _Q,
        ),
        (
            ("helo", b"c.example.org"),
            ("envfrom", b"<one@example.org>"),
            _RCPT,
            _ABORT,
            ("envfrom", b"<two@example.org>"),
            _RCPT,
            _EOM,
            _CLOSE,
        ),
        (_agreed(b"\0\0\0\0\0\0\x03q"), *[b"c"] * 6),
        closed=True,
        flags=0,
        callbacks=("helo", "envfrom", "envrcpt", "eom"),
        reactions={
            "envfrom": (Reaction(calls=(_symbol(b"i"),)), Reaction(calls=(_symbol(b"i"),))),
            "eom": (Reaction(calls=(_symbol(b"i"),)),),
        },
        answers=(b"Q1", b"Q2", b"Q2"),
    ),
    vector(
        "symbol lists are negotiated",
        (
            _O,
            b"\x00\x00\x00&DCj\x00mx.example.net\x00{client_port}\x004321\x00",
            _C,
            b"\x00\x00\x00\x11M<s@example.org>\x00",
            b"\x00\x00\x00\x18DEi\x004Xyz\x00{msg_id}\x00<1@x>\x00",
            _E,
            _Q,
        ),
        (_NEGOTIATE, _CONNECT, ("envfrom", b"<s@example.org>"), _EOM, _CLOSE),
        (
            _agreed(
                b"\0\0\x01\xff\0\0\x07z\0\0\0\0j {client_port}\0\0\0\0\x01\0\0\0\0\x05i {msg_id}\0"
            ),
            b"c",
            b"c",
            b"c",
        ),
        closed=True,
        callbacks=("negotiate", "connect", "envfrom", "eom"),
        reactions={
            "negotiate": (
                Reaction(
                    10,
                    (
                        Call("setsymlist", (0, b"j {client_port}")),
                        Call("setsymlist", (1, b"")),
                        Call("setsymlist", (5, b"i {msg_id}")),
                    ),
                ),
            ),
            "connect": (Reaction(calls=(_symbol(b"{client_port}"),)),),
            "eom": (Reaction(calls=(_symbol(b"{msg_id}"), _symbol(b"msg_id"))),),
        },
        answers=(0, 0, 0, b"4321", b"<1@x>", None),
    ),
    vector(
        "envelope and body are changed",
        (_O, _E, _Q),
        (_EOM, _CLOSE),
        (
            _agreed(b"\0\0\0\xce\0\0\x03\x7f"),
            b"+<n@example.net>\0",
            b"2<p@example.net>\0NOTIFY=NEVER\0",
            b"-<r@example.net>\0",
            b"e<new@example.org>\0",
            b"e<new@example.org>\0RET=HDRS\0",
            b"bnew\r\n",
            b"b" + b"x" * 65535,
            b"bx",
            b"a",
        ),
        closed=True,
        flags=0xCE,
        callbacks=("eom",),
        reactions={
            "eom": (
                Reaction(
                    3,
                    (
                        Call("addrcpt", (b"<n@example.net>",)),
                        Call("addrcpt_par", (b"<p@example.net>", b"NOTIFY=NEVER")),
                        Call("delrcpt", (b"<r@example.net>",)),
                        Call("chgfrom", (b"<new@example.org>", None)),
                        Call("chgfrom", (b"<new@example.org>", b"RET=HDRS")),
                        Call("replacebody", (b"new\r\n",)),
                        Call("replacebody", (b"x" * 65536,)),
                    ),
                ),
            )
        },
        answers=(0, 0, 0, 0, 0, 0, 0),
    ),
)
