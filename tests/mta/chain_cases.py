"""
The cases of the proof: a table of milters that meet in every way, and as many made at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from yatxmilter import constants as c

from .chain_bench import Case
from .control import Script, script

NAMES = ("One", "Two", "Three")
STAGES = ("helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom")

_DATE = b"Date: Thu, 02 Jan 2025 03:04:05 +0000\r\n"

#: Messages by what is special about them.
MESSAGES = {
    "plain": (
        b"Received: from there by here; Thu, 02 Jan 2025 03:04:04 +0000\r\n"
        b"From: sender@client.example\r\n"
        b"X-Rep: one\r\n"
        b"To: rcpt@sink.example\r\n"
        b"Subject: A test\r\n"
        b"X-Rep: two\r\n"
        b"X-Folded: one\r\n\ttwo\r\n  three\r\n"
        b"X-Rep: three\r\n" + _DATE + b"Message-Id: <1@client.example>\r\n"
        b"\r\n"
        b"First line\r\n.\r\n..two dots\r\n\r\nlast line\r\n"
    ),
    "bare": b"Subject: no date, sender or id\r\nX-Rep: one\r\nX-Rep: two\r\n\r\nbody\r\n",
    "no body": b"From: sender@client.example\r\n" + _DATE + b"X-Rep: one\r\nX-Rep: two\r\n",
    "blanks": (
        b"From: sender@client.example\r\n" + _DATE + b"Message-Id: <2@client.example>\r\n"
        b"X-Rep:   three blanks\r\nX-Rep:\ttab\r\nX-Rep:none\r\nX-Octets: \xe4\xff\r\n"
        b"Received: one\r\nReceived: two\r\n\r\n \r\n\xc3\xa4\xff\r\n"
    ),
    "long": (
        b"From: sender@client.example\r\n" + _DATE + b"Message-Id: <3@client.example>\r\n"
        b"X-Rep: one\r\n\r\n" + 3000 * (70 * b"x" + b"\r\n")
    ),
}

BODIES = (
    b"new body\r\n",
    b"no line end",
    b"bare\nline\nfeeds\n",
    b"carriage\rreturn\r\n\r\r\n",
    b".\r\n..\r\n.x\r\n",
    b"",
    b"\r\n",
    b"ends in CR\r",
    b"nul \0 inside\r\n",
    b"\xe4\xff\r\n",
    b"y" * 70000 + b"\r\n",
    2000 * (40 * b"z" + b"\r\n"),
)

_FIELDS = (
    "Return-Path",
    "X-Rep",
    "x-rep",
    "X-New",
    "Subject",
    "Received",
    "Date",
    "Message-Id",
    "From",
    "X-Other",
)
_VALUES = ("value", "one\n\ttwo", " blank before", "\ttab before", "", "blank after ", b"\xe4\xff")
_ADDRESSES = ("<rcpt@sink.example>", "<two@sink.example>", "<new@sink.example>")


def add(name: str, value: Any = "added") -> tuple[Any, ...]:
    """
    Make a step: add a field.
    """
    return ("smfi_addheader", name, value)


def insert(index: int, name: str, value: Any = "inserted") -> tuple[Any, ...]:
    """
    Make a step: insert a field.
    """
    return ("smfi_insheader", index, name, value)


def change(name: str, index: int, value: Any = "changed") -> tuple[Any, ...]:
    """
    Make a step: change a field, or with ``None`` delete it.
    """
    return ("smfi_chgheader", name, index, value)


#: What one milter does at the end of the message, by a name.
EDITORS: dict[str, list[Any]] = {
    "adds": [add("X-New"), add("X-Rep", "four")],
    "adds what the MTA makes": [
        add("Date", "Thu, 02 Jan 2025 00:00:00 +0000"),
        add("From", "<x@y>"),
    ],
    # Sendmail never puts one of these into the empty slot of another.
    "adds trace": [
        add("Received", "by a filter"),
        insert(1, "Received", "by another"),
        add("Via", "a"),
        change("Via", 1, None),
        insert(0, "Via", "b"),
    ],
    "inserts": [insert(1, "X-New", "1"), insert(3, "X-New", "3"), insert(9, "X-Rep", "9")],
    "inserts on top": [insert(0, "X-New", "top"), change("X-New", 1, "new"), insert(0, "X-Rep")],
    "inserts low": [insert(12, "X-New", "12"), insert(1000, "X-Rep", "end")],
    "inserts deep": [insert(index, "X-New", str(index)) for index in (10, 8, 6, 4, 2)],
    "changes": [change("X-Rep", 2), change("subject", 1, "other"), change("X-New", 1, "new")],
    "changes far": [change("X-Rep", 7, "seven"), change("Date", 2, "x"), change("X-New", 1, "1")],
    "deletes first": [change("X-Rep", 1, None)],
    "deletes two": [change("X-Rep", 2, None), change("X-Rep", 1, None)],
    "deletes downwards": [change("X-Rep", 1, None), change("X-Rep", 2, None)],
    "deletes and adds": [change("X-Rep", 1, None), add("X-Rep", "again")],
    "deletes and changes": [change("Subject", 1, None), change("Subject", 1, "back")],
    "deletes what the MTA needs": [change("Date", 1, None), change("Message-Id", 1, None)],
    "changes trace": [change("Received", 1, "changed"), change("Received", 2, None)],
    "adds a path": [add("Return-Path", "<a@b>"), insert(0, "X-New", "top")],
    "inserts paths": [insert(0, "Return-Path", "<a@b>"), insert(1, "return-path", "<c@d>")],
    "replaces the body": [("smfi_replacebody", b"a new body\r\n")],
    "replaces by nothing": [("smfi_replacebody", b"")],
    "replaces in pieces": [("smfi_replacebody", b"one\r"), ("smfi_replacebody", b"\ntwo")],
    "changes the sender": [("smfi_chgfrom", "<other@client.example>")],
    "changes it to nobody": [("smfi_chgfrom", "<>", "RET=HDRS ENVID=x")],
    "adds recipients": [
        ("smfi_addrcpt", "<new@sink.example>"),
        ("smfi_addrcpt_par", "<two@sink.example>", "NOTIFY=NEVER"),
    ],
    "moves recipients": [
        ("smfi_delrcpt", "<rcpt@sink.example>"),
        ("smfi_addrcpt", "<two@sink.example>"),
    ],
    "moves them back": [
        ("smfi_delrcpt", "<two@sink.example>"),
        ("smfi_addrcpt", "rcpt@sink.example"),
    ],
    "quarantines": [("smfi_quarantine", "a reason"), add("X-New", "held")],
    "accepts": [add("X-New", "accepted"), "ACCEPT"],
    "takes its time": [add("X-New", "late"), ("wait", 0.01)],
    "only looks": [],
}

_LEADING = int(c.SMFIP_HDR_LEADSPC)


def _milters(parts: Sequence[dict[str, Any]]) -> tuple[Script, ...]:
    return tuple(script(NAMES[place], **part) for place, part in enumerate(parts))


def table_cases(mta: str) -> Iterator[Case]:
    """
    Give the cases of the table: each editor before each other, and all that ends a message.
    """
    for cases in table(mta).values():
        yield from cases


def table(mta: str) -> dict[str, Iterator[Case]]:
    """
    Give the parts of the table by their titles.
    """
    return {
        "pairs": _pairs(),
        "messages": _other_messages(),
        "bodies": _bodies(),
        "envelopes": _envelopes(mta),
        "long fields": _long_fields(),
        "answers": _answers(mta),
        "declined": _declined(mta),
        "abilities": _abilities(),
    }


def _pairs() -> Iterator[Case]:
    for first, second in product(EDITORS, repeat=2):
        yield Case(
            f"{first} / {second}",
            _milters([{"xxfi_eom": EDITORS[first]}, {"xxfi_eom": EDITORS[second]}]),
            MESSAGES["plain"],
        )


def _other_messages() -> Iterator[Case]:
    last = {"xxfi_eom": [add("X-New", "last"), change("X-Rep", 2, "last"), insert(11, "X-L", "l")]}
    for name, message in MESSAGES.items():
        for editor, steps in EDITORS.items():
            if name != "plain":
                parts = [{"xxfi_eom": steps}, last]
                yield Case(f"{name}: {editor}", _milters(parts), message)


def _bodies() -> Iterator[Case]:
    for number, body in enumerate(BODIES):
        parts = [{"xxfi_eom": [("smfi_replacebody", body)]}, {}, {"xxfi_eom": [add("X-New")]}]
        yield Case(f"body {number}", _milters(parts), MESSAGES["plain"])
        parts = [parts[0], {"xxfi_eom": [("smfi_replacebody", b"second\r\n")]}, {}]
        yield Case(f"body {number}, replaced", _milters(parts), MESSAGES["no body"])


#: Spellings of addresses, some of which stand for others in Postfix.
_SPELLINGS = (
    "<rcpt@sink.example>",
    "rcpt@sink.example",
    "<RCPT@sink.example>",
    "rcpt@SINK.example",
    '<"rcpt"@sink.example>',
    "<two@sink.example>",
    "<Two@sink.example>",
    "new@sink.example",
    "<New@Sink.example>",
)
_ALIASES = ("<both@alias.example>", "new@alias.example", "<New@alias.example>")
_ARGUMENTS = (None, "", "NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;x@example.com")


def _recipient_edit(dice: random.Random, mta: str) -> tuple[Any, ...]:
    address = dice.choice(_SPELLINGS + (_ALIASES if mta == "postfix" else ()))
    kind = dice.choice(("add", "add", "par", "del", "del", "from"))
    if kind == "add":
        return ("smfi_addrcpt", address)
    if kind == "par":
        return ("smfi_addrcpt_par", address, dice.choice(_ARGUMENTS))
    if kind == "del":
        return ("smfi_delrcpt", address)
    sender = dice.choice(("<a@client.example>", "a@CLIENT.example", "<>"))
    return ("smfi_chgfrom", sender, dice.choice((None, "", "RET=HDRS", "ENVID=x")))


def _envelopes(mta: str) -> Iterator[Case]:
    for spelling in _SPELLINGS:
        for other in _SPELLINGS[:5]:
            parts = [
                {"xxfi_eom": [("smfi_addrcpt", spelling)]},
                {"xxfi_eom": [("smfi_delrcpt", other)]},
                {"xxfi_eom": [("smfi_addrcpt", spelling)]},
            ]
            yield Case(f"{spelling} added, {other} deleted", _milters(parts), MESSAGES["plain"])
    for number in range(150):
        dice = random.Random(f"envelope {number}")
        parts = [
            {"xxfi_eom": [_recipient_edit(dice, mta) for _ in range(dice.randint(1, 4))]}
            for _ in range(3)
        ]
        recipients = tuple(dice.sample(_ADDRESSES, dice.randint(1, 2)))
        yield Case(f"envelope {number}", _milters(parts), MESSAGES["plain"], recipients)


def _long_fields() -> Iterator[Case]:
    last = {"xxfi_eom": [change("X-New", 1, "short"), insert(3, "X-Other")]}
    for lengths in (
        (64_000,),
        (59_993,),
        (59_994,),
        (59_989, 0),
        (59_988, 1),
        (59_980, 64, 3),
        (10, 64_000),
        (53_991, 9_000),
        (53_992, 9_000),
        (53_993, 9_000),
        (30_000, 30_000),
        (30_000, 20_000, 9_000, 4_000),
    ):
        value = "\n\t".join("x" * length for length in lengths)
        for steps in (
            [add("X-New", value)],
            [insert(0, "X-New", value)],
            [change("X-Rep", 2, value)],
        ):
            parts = [{"xxfi_eom": steps}, {}, last]
            yield Case(f"lines of {lengths}", _milters(parts), MESSAGES["plain"])


_FEW = ("xxfi_abort", "xxfi_close", "xxfi_connect")


def _declined(mta: str) -> Iterator[Case]:
    # What those get that declined some of the message, when another one ends it.
    few = (
        {"only": _FEW},
        {"only": (*_FEW, "xxfi_envrcpt")},
        {"only": (*_FEW, "xxfi_data")},
        {"only": (*_FEW, "xxfi_header", "xxfi_body")},
    )
    look = [("smfi_getsymval", name) for name in ("{rcpt_addr}", "{mail_addr}")]
    some = {"<two@sink.example>": ["REJECT"], "<new@sink.example>": [*look, "TEMPFAIL"]}
    for part in few:
        for stage, code in product(STAGES[1:], ("REJECT", "DISCARD", "ACCEPT")):
            for place in range(3):
                parts: list[dict[str, Any]] = [part, part]
                parts.insert(place, {f"xxfi_{stage}": [code]})
                name = f"{code} at {stage} by {place + 1}, others have {part['only'][3:]}"
                yield Case(name, _milters(parts), MESSAGES["plain"])
        for command in ("RCPT", "DATA"):
            yield Case(
                f"RSET before {command}, {part['only'][3:]}",
                _milters([{}, part, {}]),
                MESSAGES["plain"],
                reset_at=command,
            )
    # The macros of a recipient that one was not shown.
    looker = {"xxfi_envrcpt": look, "xxfi_data": look, "xxfi_eom": look}
    for place in range(3):
        parts = [looker, looker]
        parts.insert(place, {**looker, "xxfi_envrcpt": some})
        for recipients in (_ADDRESSES, _ADDRESSES[::-1], _ADDRESSES[1:]):
            name = f"macros of recipients, by {place + 1}"
            yield Case(name, _milters(parts), MESSAGES["plain"], recipients)


def _answers(mta: str) -> Iterator[Case]:
    edit = {"xxfi_eom": [add("X-New")]}
    reply = ("smfi_setreply", "554", "5.7.9", "says One")
    for stage, code in product(STAGES, ("REJECT", "TEMPFAIL", "DISCARD", "ACCEPT", "reply")):
        if stage == "helo" and code in ("DISCARD", "reply"):
            continue
        steps = [reply, "REJECT"] if code == "reply" else [code]
        part = {f"xxfi_{stage}": steps}
        for place in range(3):
            parts = [edit, edit]
            parts.insert(place, part)
            name = f"{code} at {stage} by {place + 1}"
            # Postfix asks the filters before it for MAIL before it says so.
            late = mta == "postfix" and stage == "helo" and place and code != "ACCEPT"
            known = "MAIL is not shown to those before" if late else ""
            yield Case(name, _milters(parts), MESSAGES["plain"], known=known)
    some = {"<two@sink.example>": ["REJECT"], "<new@sink.example>": ["TEMPFAIL"]}
    for place in range(2):
        parts = [edit, edit]
        parts[place] = {**edit, "xxfi_envrcpt": some}
        yield Case(f"recipients, by {place + 1}", _milters(parts), MESSAGES["plain"], _ADDRESSES)


def _abilities() -> Iterator[Case]:
    skip = {"xxfi_body": ["SKIP"]}
    leading = {
        "xxfi_negotiate": [("agree", 0x1FF, _LEADING)],
        "xxfi_eom": [add("X-Two", "  two"), add("X-None", "none"), change("X-Rep", 1, " one")],
    }
    plain = {"xxfi_eom": [add("X-New"), change("X-Rep", 1)]}
    for name in ("long", "blanks"):
        for title, parts in {
            "skip": [skip, plain],
            "skip second": [plain, skip, plain],
            "leading space": [leading, plain],
            "leading space second": [plain, leading],
            "leading space of both": [leading, leading, skip],
            "few callbacks": [{"only": ["xxfi_close", "xxfi_connect"], **plain}, plain],
            "no headers": [plain, {"only": ["xxfi_close", "xxfi_connect", "xxfi_body"]}, plain],
            "coroutines": [{"how": "coroutine", **leading}, {"how": "deferred", **plain}],
        }.items():
            yield Case(f"{name}, {title}", _milters(parts), MESSAGES[name])
    no_headers = {"only": ["xxfi_close", "xxfi_connect"], "xxfi_eom": [change("X-Rep", 1, "x")]}
    delete = {"xxfi_eom": EDITORS["deletes first"]}
    for title, parts in {
        "deleted, unseen": [delete, no_headers],
        "deleted, unseen, seen": [delete, no_headers, plain],
    }.items():
        yield Case(title, _milters(parts), MESSAGES["plain"])
    # The header is shown to nobody: there is none who wants it, or he is out of the message.
    again = {**no_headers, "xxfi_eom": [change("X-Rep", 1, "x"), change("X-Rep", 1, None)]}
    for title, parts in {
        "changed and deleted, unseen": [again, no_headers],
        "changed and deleted by two, unseen": [no_headers, {**no_headers, **delete}],
        "changed and deleted, one accepts": [again, {"xxfi_data": ["ACCEPT"]}],
        "changed and deleted by two, one accepts": [
            {"xxfi_envfrom": ["ACCEPT"]},
            no_headers,
            {**no_headers, **delete},
        ],
    }.items():
        yield Case(title, _milters(parts), MESSAGES["plain"])


# ---- at random


def _random_edit(dice: random.Random) -> tuple[Any, ...]:
    kind = dice.choice(["add", "insert", "insert", "change", "change", "delete", "delete", "other"])
    name, value = dice.choice(_FIELDS), dice.choice(_VALUES)
    if kind == "add":
        return add(name, value)
    if kind == "insert":
        return insert(max(0, dice.randint(-3, 15)), name, value)
    if kind == "change":
        return change(name, dice.randint(1, 4), value)
    if kind == "delete":
        return change(name, dice.randint(1, 4), None)
    address = dice.choice(_ADDRESSES)
    return dice.choice(
        [
            ("smfi_addrcpt", address),
            ("smfi_delrcpt", address),
            ("smfi_chgfrom", dice.choice(("<a@client.example>", "<b@client.example>", "<>"))),
        ]
    )


def _random_milter(dice: random.Random) -> dict[str, Any]:
    steps: list[Any] = [_random_edit(dice) for _ in range(dice.randint(0, 5))]
    if dice.random() < 0.3:
        steps.insert(0, ("smfi_replacebody", dice.choice(BODIES)))
    part: dict[str, Any] = {"how": dice.choice(("plain", "plain", "deferred", "coroutine"))}
    if dice.random() < 0.15:
        part["xxfi_negotiate"] = [("agree", 0x1FF, _LEADING)]
    if dice.random() < 0.1:
        stage = dice.choice(STAGES[1:])
        code = dice.choice(("REJECT", "TEMPFAIL", "DISCARD", "ACCEPT", "ACCEPT"))
        if stage == "eom":
            steps.append(code)
        else:
            part[f"xxfi_{stage}"] = [code]
    elif dice.random() < 0.1:
        part["xxfi_body"] = ["SKIP"]
    if dice.random() < 0.05:
        steps.insert(0, ("smfi_quarantine", "at random"))
    if dice.random() < 0.1:
        part["only"] = ["xxfi_close", "xxfi_connect"]
    part["xxfi_eom"] = steps
    return part


def generated_cases(seed: int, count: int) -> Iterator[Case]:
    """
    Give cases made at random.
    """
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        size = dice.choice((2, 2, 3))
        parts = [_random_milter(dice) for _ in range(size)]
        message = MESSAGES[dice.choice(list(MESSAGES))]
        recipients = _ADDRESSES[: dice.randint(1, 2)]
        yield Case(f"seed {seed} case {number}", _milters(parts), message, recipients)
