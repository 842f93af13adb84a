"""
Single points of libmilter's behaviour, and what each comes to, on both libraries.

Unless a vector says otherwise the milter has all callbacks but negotiate, they return CONTINUE, and
all flags are asked for. Where a deliberate difference (`differences.py`) changes what yatxmilter
does, the vector names it and has both results.
"""

from __future__ import annotations

from .case import OPTIONAL, Call, Reaction
from .packets import offer, packet
from .written import (
    ABORT,
    AGREED,
    AGREED_OURS,
    CLOSE,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HELO,
    MAIL,
    OFFER,
    PLAIN,
    RCPT,
    A,
    C,
    E,
    H,
    K,
    M,
    N,
    R,
    T,
    U,
    agreement,
    vector,
)


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in PLAIN if name not in names)


def _asking(steps: int) -> Reaction:
    return Reaction(actions=0, steps=steps)


_ADD = Call("addheader", (b"X", b"y"))
_I = Call("getsymval", (b"i",))
_C = b"c"

VECTORS = (
    vector(
        "bytes behind the offer are ignored",
        (packet(b"O", OFFER[5:] + b"xyz"),),
        (CLOSE,),
        (AGREED,),
    ),
    vector("an offer of 11 bytes closes", (packet(b"O", OFFER[5:16]),), (CLOSE,), closed=True),
    vector("version 1 is refused", (offer(1),), (CLOSE,), closed=True),
    vector("a negative version is refused", (offer(0x80000006),), (CLOSE,), closed=True),
    vector("of version 7, 6 is taken", (offer(7),), (CLOSE,), (AGREED,)),
    vector(
        "no actions mean those of version 1",
        (offer(2, 0, 0),),
        (CLOSE,),
        (agreement(2, 0x0F, 0),),
        flags=0x0F,
    ),
    vector("and only those", (offer(2, 0, 0),), (CLOSE,), closed=True, flags=0x20),
    vector(
        "NODATA and NOUNKNOWN are left out where they are not offered",
        (offer(2, 0x3F, 0x7F),),
        (CLOSE,),
        (agreement(2, 0, 0),),
        flags=0,
        callbacks=_without("data", "unknown"),
    ),
    vector(
        "NOEOH is not",
        (offer(6, 0x1FF, 0x3F),),
        (CLOSE,),
        closed=True,
        flags=0,
        callbacks=_without("eoh"),
    ),
    vector("a length of 0 is a command", (OFFER, b"\0\0\0\0Q"), (CLOSE,), (AGREED,), closed=True),
    vector(
        "a negative length is a command",
        (OFFER, b"\xff\xff\xff\xffQ"),
        (CLOSE,),
        (AGREED,),
        closed=True,
    ),
    vector("65537 is too long", (OFFER, b"\0\x01\0\x01B"), (CLOSE,), (AGREED,), closed=True),
    vector(
        "65536 is not",
        (OFFER, M, R, T, N, packet(b"B", b"x" * 65535)),
        (MAIL, RCPT, DATA, EOH, ("body", b"x" * 65535), ABORT, CLOSE),
        (AGREED, _C, _C, _C, _C, _C),
    ),
    vector(
        "an unknown letter closes",
        (OFFER, M, packet(b"Z")),
        (MAIL, ABORT, CLOSE),
        (AGREED, _C),
        closed=True,
    ),
    vector(
        "an address without NUL closes",
        (OFFER, packet(b"C", b"h\x004\0\x191.2.3.4")),
        (CLOSE,),
        (AGREED,),
        closed=True,
    ),
    vector(
        "IPv6: before an address is dropped",
        (OFFER, packet(b"C", b"h\x006\0\x19IPv6:::1\0")),
        (("connect", b"h", b"::1", 25, 6), CLOSE),
        (AGREED, _C),
    ),
    vector(
        "an unknown family has no address",
        (OFFER, packet(b"C", b"h\0U")),
        (("connect", b"h", None, 0), CLOSE),
        (AGREED, _C),
    ),
    vector(
        "a host name may be empty",
        (OFFER, packet(b"C", b"\x004\0\x00192.0.2.1\0")),
        (("connect", b"", b"192.0.2.1", 0, 4), CLOSE),
        (AGREED, _C),
    ),
    vector(
        "HELO without NUL is not answered",
        (OFFER, packet(b"H", b"abc"), M),
        (MAIL, ABORT, CLOSE),
        (AGREED, _C),
    ),
    vector(
        "bytes behind the last NUL of MAIL are dropped",
        (OFFER, packet(b"M", b"a\0b")),
        (("envfrom", b"a"), ABORT, CLOSE),
        (AGREED, _C),
    ),
    vector(
        "a lone NUL is an empty address",
        (OFFER, packet(b"M", b"\0")),
        (("envfrom", b""), ABORT, CLOSE),
        (AGREED, _C),
    ),
    vector(
        "MAIL without NUL closes, and aborts",
        (OFFER, packet(b"M", b"abc")),
        (ABORT, CLOSE),
        (AGREED,),
        closed=True,
    ),
    vector(
        "a header value may be empty",
        (OFFER, M, R, T, packet(b"L", b"N\0\0")),
        (MAIL, RCPT, DATA, ("header", b"N", b""), ABORT, CLOSE),
        (AGREED, _C, _C, _C, _C),
    ),
    vector(
        "a header without value closes",
        (OFFER, M, R, T, packet(b"L", b"N\0")),
        (MAIL, RCPT, DATA, ABORT, CLOSE),
        (AGREED, _C, _C, _C),
        closed=True,
    ),
    vector(
        "a command out of order ends the message",
        (OFFER, M, packet(b"L", b"a\0b\0"), R),
        (MAIL, ABORT, CLOSE),
        (AGREED, _C),
    ),
    vector(
        "a second MAIL starts another message",
        (OFFER, M, R, packet(b"M", b"b\0")),
        (MAIL, RCPT, ABORT, ("envfrom", b"b"), ABORT, CLOSE),
        (AGREED, _C, _C, _C),
    ),
    vector(
        "HELO ends the message",
        (OFFER, M, R, H),
        (MAIL, RCPT, ABORT, HELO, CLOSE),
        (AGREED, _C, _C, _C),
    ),
    vector(
        "an empty HELO in a message",
        (OFFER, M, packet(b"H")),
        (MAIL, ABORT, ABORT, CLOSE),
        (AGREED, _C),
        closed=True,
        ours={"callbacks": (MAIL, ABORT, CLOSE)},
        difference="abort_in_message_only",
    ),
    vector(
        "a rejected recipient leaves the message open",
        (OFFER, M, R, R, A),
        (MAIL, RCPT, RCPT, ABORT, CLOSE),
        (AGREED, _C, b"r", _C),
        reactions={"envrcpt": (Reaction(1),)},
    ),
    vector(
        "a rejected sender does not",
        (OFFER, M, R, A),
        (MAIL, CLOSE),
        (AGREED, b"r"),
        reactions={"envfrom": (Reaction(1),)},
    ),
    vector(
        "ABORT after the end of message means nothing",
        (OFFER, M, R, E, A),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, _C),
    ),
    vector(
        "QUIT_NC after CONTINUE at the end of message",
        (OFFER, M, R, E, K, C),
        (MAIL, RCPT, EOM, CLOSE, CONNECT, CLOSE),
        (AGREED, _C, _C, _C, _C),
    ),
    vector(
        "QUIT_NC after ACCEPT",
        (OFFER, M, R, E, K, C),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, b"a"),
        reactions={"eom": (Reaction(3),)},
        ours={
            "callbacks": (MAIL, RCPT, EOM, CLOSE, CONNECT, CLOSE),
            "output": (AGREED_OURS, _C, _C, b"a", _C),
        },
        difference="quit_nc_anywhere",
    ),
    vector(
        "BODYEOB with data is answered once",
        (OFFER, M, R, N, packet(b"E", b"abc")),
        (MAIL, RCPT, EOH, ("body", b"abc"), EOM, CLOSE),
        (AGREED, _C, _C, _C, _C),
    ),
    vector(
        "a macro packet without macros leaves the old ones",
        (OFFER, packet(b"D", b"Mi\x001\0"), M, packet(b"D", b"M"), R),
        (MAIL, RCPT, ABORT, CLOSE),
        (AGREED, _C, _C),
        reactions={"envrcpt": (Reaction(calls=(_I,)),)},
        answers=(b"1",),
    ),
    vector(
        "MAIL ends macros of later stages",
        (OFFER, packet(b"D", b"Ti\0early\0"), M),
        (MAIL, ABORT, CLOSE),
        (AGREED, _C),
        reactions={"envfrom": (Reaction(calls=(_I,)),)},
        answers=(None,),
    ),
    vector(
        "a text of the other class is kept",
        (OFFER, M, R, R),
        (MAIL, RCPT, RCPT, ABORT, CLOSE),
        (AGREED, _C, b"r", b"y450 x\0"),
        reactions={
            "envrcpt": (Reaction(1, (Call("setreply", (b"450", None, b"x")),)), Reaction(4))
        },
        answers=(0,),
    ),
    vector(
        "edits are for the end of message",
        (OFFER, M, R, E),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, b"hX\0y\0", _C),
        reactions={"envfrom": (Reaction(calls=(_ADD,)),), "eom": (Reaction(calls=(_ADD,)),)},
        answers=(-1, 0),
    ),
    vector(
        "a new body is cut in packets",
        (OFFER, M, R, E),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, b"b" + b"x" * 65535, b"b" + b"x" * 65535, _C),
        reactions={"eom": (Reaction(calls=(Call("replacebody", (b"x" * 131070,)),)),)},
        answers=(0,),
    ),
    vector(
        "an empty new body is one empty packet",
        (OFFER, M, R, E),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, b"b", _C),
        reactions={"eom": (Reaction(calls=(Call("replacebody", (b"",)),)),)},
        answers=(0,),
    ),
    vector(
        "no answer where none was promised",
        (OFFER, M, R, T, packet(b"L", b"a\0b\0")),
        (
            ("negotiate", 0x1FF, 0x1FFFFF, 0, 0),
            MAIL,
            RCPT,
            DATA,
            ("header", b"a", b"b"),
            ABORT,
            CLOSE,
        ),
        (agreement(6, 0, 0x80), _C, _C, _C),
        callbacks=OPTIONAL,
        reactions={"negotiate": (_asking(0x80),)},
    ),
    vector(
        "an answer where the MTA did not take the promise",
        (offer(6, 0x1FF, 0x7F), M, R, T, packet(b"L", b"a\0b\0")),
        (
            ("negotiate", 0x1FF, 0xFF0FF, 0, 0),
            MAIL,
            RCPT,
            DATA,
            ("header", b"a", b"b"),
            ABORT,
            CLOSE,
        ),
        (agreement(6, 0, 0), _C, _C, _C, _C),
        callbacks=OPTIONAL,
        reactions={"negotiate": (_asking(0x80),), "header": (Reaction(7),)},
    ),
    vector(
        "a second offer is dropped, and CONNECT with it", (OFFER, OFFER, C), (CLOSE,), (AGREED,)
    ),
    vector(
        "without xxfi_envfrom every ABORT counts",
        (OFFER, H, A, A),
        (HELO, ABORT, ABORT, CLOSE),
        (agreement(6, 0x1FF, 0x4), _C),
        callbacks=_without("envfrom"),
        ours={"callbacks": (HELO, CLOSE), "output": (agreement(6, 0x1FF, 0x404), _C)},
        difference="abort_in_message_only",
    ),
    vector(
        "an unknown command in a message, without xxfi_data",
        (OFFER, M, R, U, packet(b"L", b"a\0b\0")),
        (MAIL, RCPT, ("unknown", b"FOO"), CLOSE),
        (agreement(6, 0x1FF, 0x200), _C, _C, _C),
        callbacks=_without("data"),
        ours={
            "callbacks": (MAIL, RCPT, ("unknown", b"FOO"), ("header", b"a", b"b"), ABORT, CLOSE),
            "output": (agreement(6, 0x1FF, 0x600), _C, _C, _C, _C),
        },
        difference="unknown_keeps_state",
    ),
    vector(
        "an edit in xxfi_close, when the MTA hangs up after the end of message",
        (OFFER, M, R, E),
        (MAIL, RCPT, EOM, CLOSE),
        (AGREED, _C, _C, _C, b"hX\0y\0"),
        reactions={"close": (Reaction(calls=(_ADD,)),)},
        answers=(0,),
        ours={"output": (AGREED_OURS, _C, _C, _C), "answers": (-1,)},
        difference="edits_in_eom_only",
    ),
)
