"""
The smallest case for each row of the table of deliberate differences, found by shrinking.
"""

from __future__ import annotations

from .case import Call, Case, Reaction
from .packets import offer, packet, strings

_MAIL = packet(b"M", strings(b"<s@example.org>"))
_RCPT = packet(b"R", strings(b"<r@example.net>"))
_END = packet(b"E")


def _asks(steps: int) -> tuple[str, tuple[Reaction, ...]]:
    return "negotiate", (Reaction(actions=0, steps=steps),)


EXAMPLES = {
    "checked_codes": Case(
        callbacks=("helo",),
        reactions=(("helo", (Reaction(result=2),)),),
        conversation=(packet(b"H", strings(b"mail.example.org")),),
    ),
    "late_answers": Case(
        callbacks=("negotiate", "envrcpt", "data"),
        reactions=(_asks(0x8000), ("envrcpt", (Reaction(result=4),))),
        conversation=(offer(), _MAIL, _RCPT, packet(b"T")),
    ),
    "one_answer_for_last_chunk": Case(
        callbacks=("body",),
        reactions=(("body", (Reaction(result=2),)),),
        conversation=(packet(b"E", b"last"),),
    ),
    "unknown_keeps_state": Case(
        callbacks=(),
        conversation=(packet(b"T"), packet(b"U", strings(b"FOO"))),
    ),
    "quit_nc_anywhere": Case(callbacks=(), conversation=(packet(b"K"),)),
    "abort_in_message_only": Case(callbacks=(), conversation=(packet(b"A"),)),
    "own_marks": Case(
        callbacks=("negotiate",), reactions=(_asks(0),), conversation=(offer(), _END)
    ),
    "declined_not_called": Case(
        callbacks=("negotiate", "envrcpt"),
        reactions=(_asks(0x8),),
        conversation=(offer(), _MAIL, _RCPT),
    ),
    "local_skip": Case(
        callbacks=("body",),
        reactions=(("body", (Reaction(result=8),)),),
        conversation=(packet(b"B", b"one"), packet(b"B", b"two")),
    ),
    "reply_ends_with_message": Case(
        callbacks=("envfrom", "envrcpt"),
        reactions=(
            ("envrcpt", (Reaction(calls=(Call("setreply", (b"450", None, b"later")),)),)),
            ("envfrom", (Reaction(), Reaction(result=4))),
        ),
        conversation=(_MAIL, _RCPT, _END, _MAIL),
    ),
    "checked_values": Case(
        callbacks=("eom",),
        reactions=(
            (
                "eom",
                (
                    Reaction(
                        calls=(
                            Call("addheader", (b"X-One", b"a\nX-Two: b")),
                            Call("addheader", (b"X\n", b"a")),
                            Call("quarantine", (b"one\ntwo",)),
                            Call("addrcpt", (b"<r@example.net>\0",)),
                            Call("setmlreply", (b"550", None)),
                            Call("addheader", (b"X-Folded", b"a\n b")),
                        )
                    ),
                ),
            ),
        ),
        conversation=(offer(), _END),
    ),
    "edits_in_eom_only": Case(
        callbacks=("eoh",),
        reactions=(("eoh", (Reaction(calls=(Call("progress"),)),)),),
        conversation=(packet(b"N"),),
    ),
    "symlist_in_negotiate_only": Case(
        callbacks=("helo",),
        reactions=(("helo", (Reaction(calls=(Call("setsymlist", (1, b"i")),)),)),),
        conversation=(packet(b"H", strings(b"mail.example.org")),),
    ),
    "edits_together": Case(
        callbacks=("eom",),
        reactions=(
            (
                "eom",
                (Reaction(calls=(Call("addheader", (b"X-One", b"1")), Call("progress"))),),
            ),
        ),
        conversation=(offer(), _END),
    ),
    "computed_request": Case(callbacks=("body",), conversation=(offer(),)),
    "limited_macros": Case(
        callbacks=(),
        conversation=(packet(b"D", b"C" + strings(*[b"a"] * 1026)), _END),
    ),
    "larger_packets": Case(
        callbacks=("negotiate", "body"),
        reactions=(_asks(0x10000000),),
        conversation=(
            offer(6, 0x1FF, 0x701FFFFF),
            _MAIL,
            _RCPT,
            packet(b"N"),
            packet(b"B", b"x" * 70000),
        ),
    ),
}
