"""
The smallest case for each row of the table of deliberate differences, found by shrinking.
"""

from __future__ import annotations

from dataclasses import replace

from .case import Call, Case, Reaction
from .packets import offer, packet, strings

_MAIL = packet(b"M", strings(b"<s@example.org>"))
_RCPT = packet(b"R", strings(b"<r@example.net>"))
_END = packet(b"E")


def _asks(steps: int) -> tuple[str, tuple[Reaction, ...]]:
    return "negotiate", (Reaction(actions=0, steps=steps),)


def _at_the_end(*calls: Call, result: int = 0) -> Case:
    return Case(
        callbacks=("eom",),
        reactions=(("eom", (Reaction(result=result, calls=calls),)),),
        conversation=(offer(), _END),
    )


_ADD = Call("addheader", (b"X-One", b"1"))

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
    "one_of_several": Case(
        callbacks=("connect", "helo"),
        reactions=(
            ("connect", (Reaction(calls=(Call("setreply", (b"550", None, b"no")),)),)),
            ("helo", (Reaction(result=1),)),
        ),
        conversation=(
            offer(),
            packet(b"C", b"h\0U"),
            packet(b"H", strings(b"mail.example.org")),
        ),
        members=2,
    ),
    "no_header_fields": Case(
        callbacks=("data", "header"),
        conversation=(offer(), _MAIL, _RCPT, packet(b"T"), _END),
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
    "counted_fields": Case(
        callbacks=("eom",),
        reactions=(("eom", (Reaction(calls=(Call("chgheader", (b"X-One", 0, b"1")),)),)),),
        conversation=(offer(), _END),
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

BY_ROW = {
    "return codes that a callback may give": EXAMPLES["checked_codes"],
    "`xxfi_negotiate` that fails, or returns what is not an answer": Case(
        callbacks=("negotiate",),
        reactions=(("negotiate", (Reaction(result=7),)),),
        conversation=(offer(),),
        on_error=0,
    ),
    "edits of an `xxfi_eom` that failed": replace(_at_the_end(_ADD, result=99), on_error=0),
    "a final answer where none was promised (`SMFIP_NR_*`)": EXAMPLES["late_answers"],
    "such an answer of `xxfi_connect` or `xxfi_helo`": Case(
        callbacks=("negotiate", "helo"),
        reactions=(_asks(0x2000), ("helo", (Reaction(result=1),))),
        conversation=(offer(), packet(b"H", strings(b"x")), *(_MAIL, _RCPT, packet(b"A")) * 2),
    ),
    "a refusal of one recipient where no answer was promised (`SMFIP_NR_RCPT`)": Case(
        callbacks=("negotiate", "envrcpt", "data"),
        reactions=(_asks(0x8000), ("envrcpt", (Reaction(result=1),))),
        conversation=(offer(), _MAIL, _RCPT, packet(b"T")),
        on_error=b"451 4.3.0 later",
    ),
    "SKIP where the MTA does not offer it; body sent in spite of SKIP": EXAMPLES["local_skip"],
    "SKIP where no answer was promised (`SMFIP_NR_BODY`)": Case(
        callbacks=("negotiate", "body"),
        reactions=(_asks(0x80400), ("body", (Reaction(result=8),))),
        conversation=(
            offer(6, 0x1FF, 0x7FF),
            _MAIL,
            _RCPT,
            packet(b"B", b"one"),
            packet(b"B", b"two"),
        ),
    ),
    "line ends in header values": _at_the_end(
        Call("addheader", (b"X-One", b"a\r\n b")), Call("addheader", (b"X-Two", b"a\nX-Three: b"))
    ),
    "`smfi_setmlreply` without lines, or with `None` for a line": _at_the_end(
        Call("setmlreply", (b"550", None)),
        Call("setmlreply", (b"550", None, b"one", None)),
        result=1,
    ),
    "header names": _at_the_end(
        Call("addheader", (b"X One", b"1")), Call("chgheader", (b"X:", 1, b"1"))
    ),
    "a lone CR in header values; CR or LF in addresses, ESMTP arguments, reasons and symbol"
    " lists": _at_the_end(
        Call("addheader", (b"X-One", b"a\rb")),
        Call("addrcpt_par", (b"<r@example.net>", b"NOTIFY=\nNEVER")),
        Call("quarantine", (b"one\ntwo",)),
    ),
    "NUL in any text that a milter gives: header names and values, addresses, ESMTP arguments,"
    " reasons, reply codes and texts, symbol lists": _at_the_end(
        Call("addheader", (b"X-One\0", b"a")),
        Call("addheader", (b"X-One", b"a\0b")),
        Call("addrcpt_par", (b"<r@example.net>\0", b"NOTIFY=NEVER\0")),
        Call("quarantine", (b"one\0two",)),
        Call("setreply", (b"550\0", None, b"no")),
        Call("setreply", (b"550", None, b"no\0")),
    ),
    "edits": Case(
        callbacks=("eom",),
        reactions=(("eom", (Reaction(calls=(_ADD, Call("progress"))),)),),
        conversation=(offer(), _END),
    ),
    "`smfi_replacebody` between other edits": _at_the_end(
        _ADD, Call("replacebody", (b"new",)), _ADD
    ),
    "`smfi_progress` between two edits": _at_the_end(_ADD, Call("progress"), _ADD),
}
"""An example for each point of docs/differences.md that is not the only one of its rule."""
