"""
Tables of the manual that are made from the code when the manual is built.

``{generated} NAME`` in a page stands for the table of that name. Each is a function that gives a
heading row and rows of Markdown, made from the tables and signatures that the library itself works
with, so that none can be out of date. An option without a description is an error of the build.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from yatxmilter import MilterFactory, MilterProtocolFactory, constants
from yatxmilter._mail.bounds import BOUNDS
from yatxmilter._wire.actions import ACTIONS
from yatxmilter._wire.commands import ALL_COMMANDS, CALLBACK_STEPS, Command, legal_commands
from yatxmilter.constants import ReturnCode

ROOT = Path(__file__).parent.parent.parent

Table = tuple[tuple[str, ...], Iterable[tuple[str, ...]]]

#: What the numbers of states are called, as in libmilter's engine.c.
STATES = (
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA",
    "HDRS", "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
)  # fmt: skip

#: What the numbers of the flags do not say.
_STEP_MEANINGS = {
    "SMFIP_SKIP": "the milter may answer SKIP in `xxfi_body`",
    "SMFIP_RCPT_REJ": "the milter is shown recipients that the MTA has refused, too",
    "SMFIP_HDR_LEADSPC": "the blank behind the colon is part of a header field's value",
    "SMFIP_MDS_256K": "packets of up to 262,143 bytes of payload",
    "SMFIP_MDS_1M": "packets of up to 1,048,575 bytes of payload",
}

_CODE_MEANINGS = {
    "SMFIS_CONTINUE": "go on; `None` means the same",
    "SMFIS_REJECT": "refuse for good: 5xx, or the reply of `smfi_setreply`",
    "SMFIS_DISCARD": "accept the message and throw it away",
    "SMFIS_ACCEPT": "accept without asking this milter again",
    "SMFIS_TEMPFAIL": "refuse for now: 4xx, or the reply of `smfi_setreply`",
    "SMFIS_NOREPLY": "no answer, where none was promised (`@noreply`)",
    "SMFIS_SKIP": "enough of the body; the end of the message is shown",
    "SMFIS_ALL_OPTS": "from `xxfi_negotiate`: all that the MTA offers",
}


def code(*words: object) -> str:
    """
    Set words as code.
    """
    return ", ".join(f"`{word}`" for word in words)


def letter(number: int) -> str:
    """
    Name a command or action by its letter on the wire.
    """
    return code(chr(number))


def step(flag: int) -> str:
    """
    Name a protocol step, if there is one.
    """
    return code(constants.step_names(flag)) if flag else ""


def short(codes: Iterable[ReturnCode]) -> str:
    """
    List return codes without what their names have in common.
    """
    return ", ".join(each.name.removeprefix("SMFIS_") for each in sorted(codes))


def commands() -> Table:
    """
    The commands: one row for each of the protocol's.
    """
    head = ("letter", "command", "callback", "declined by", "needs no answer with", "since version")
    return head, (
        (
            letter(each.letter),
            each.name,
            code(each.callback) if each.callback else "none: macros for the next command",
            step(each.no),
            step(each.nr),
            str(each.since),
        )
        for each in ALL_COMMANDS
    )


def answers() -> Table:
    """
    Which return codes are legal from which callback.
    """
    columns = [each for each in ReturnCode if any(each in c.codes for c in CALLBACK_STEPS)]
    head = ("callback", *(short([each]) for each in columns))
    return head, (
        (code(command.callback), *("✓" if each in command.codes else "" for each in columns))
        for command in CALLBACK_STEPS
    )


def return_codes() -> Table:
    """
    The return codes.
    """
    rows = ((code(each.name), str(int(each)), _CODE_MEANINGS[each.name]) for each in ReturnCode)
    return ("code", "number", "meaning"), rows


def actions() -> Table:
    """
    The modification actions.
    """
    return ("letter", "action", "function", "arguments on the wire", "flag"), (
        (
            letter(each.letter),
            each.name,
            code(each.function),
            ", ".join(
                kind if number < each.required else f"[{kind}]"
                for number, kind in enumerate(each.arguments)
            ),
            code(constants.action_names(each.flag)) if each.flag else "none is needed",
        )
        for each in ACTIONS.values()
    )


def flags(prefix: str) -> dict[str, int]:
    """
    Give the flags of one kind: single bits, each under one name.
    """
    names: dict[int, str] = {}
    for name, value in vars(constants).items():
        if name.startswith(prefix) and isinstance(value, int) and value.bit_count() == 1:
            names.setdefault(value, name)
    return {name: value for value, name in sorted(names.items())}


def action_flags() -> Table:
    """
    The action flags.
    """

    def functions(flag: int) -> str:
        if flag == constants.SMFIF_SETSYMLIST:
            return code("smfi_setsymlist")
        return code(*(each.function for each in ACTIONS.values() if each.flag == flag))

    rows = (
        (code(constants.action_names(value)), f"`{value:#05x}`", functions(value))
        for value in flags("SMFIF_").values()
    )
    return ("flag", "value", "allows"), rows


def protocol_steps() -> Table:
    """
    The protocol steps.
    """

    def meaning(name: str, value: int) -> str:
        for each in CALLBACK_STEPS:
            if each.no == value:
                return f"{each.name} is not sent: no milter has `{each.callback}`"
            if each.nr == value:
                return f"{each.name} is not answered: `{each.callback}` is marked `@noreply`"
        return _STEP_MEANINGS[name]

    names = ((constants.step_names(value), value) for value in flags("SMFIP_").values())
    rows = (
        (code(name), f"`{value:#010x}`", meaning(name, value))
        for name, value in names
        if name != "SMFIP_TEST"
    )
    return ("flag", "value", "when it is agreed on"), rows


def stages() -> Table:
    """
    The stages of macros.
    """
    names = constants.STAGE_NAMES
    rows = ((code(names[number]), str(number)) for number in sorted(names))
    return ("stage", "number"), rows


def leads_to(state: int, command: Command) -> str:
    """
    Say to which state a legal command leads; nothing if it is not legal.
    """
    if not legal_commands(0)[state] & command.bit:
        return ""
    if command.state is None:
        return "stays"
    return STATES[command.state]


def transitions() -> Table:
    """
    Which command is legal in which state, and where it leads.
    """
    columns = [each for each in ALL_COMMANDS if each.name != "MACRO"]
    shown = [state for state, name in enumerate(STATES) if name not in ("QUIT", "ABRT", "UNKN")]
    head = ("in state", *(each.name for each in columns))
    return head, (
        (STATES[state], *(leads_to(state, command) for command in columns)) for state in shown
    )


def options_of(cls: type) -> Table:
    """
    The options of a factory: from its signature and from its docstring.
    """
    docstring = inspect.getdoc(cls) or ""
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", docstring, re.MULTILINE | re.DOTALL)
    texts = {name: " ".join(text.split()).replace("``", "`") for name, text in found}
    parameters = list(inspect.signature(cls).parameters.values())
    return ("option", "default", "what it is"), (
        (
            code(each.name),
            "" if each.default is each.empty else code(default(each.default)),
            texts[each.name],
        )
        for each in parameters
    )


def default(value: object) -> str:
    """
    Spell a default as it would be written.
    """
    return value.__name__ if isinstance(value, type) else repr(value)


def amount(number: int | None) -> str:
    """
    Write a bound as people would.
    """
    if number is None:
        return "none"
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number % size == 0:
            return f"{number // size} {unit}"
    return f"{number:,}"


def bounds() -> Table:
    """
    The bounds of what is kept of other people's mail.
    """
    head = ("what", "option", "default", "SMTP server", "what exceeds it")
    return head, (
        (
            each.what,
            code(each.option) if each.option else "",
            amount(each.default),
            "" if each.smtp is None else amount(each.smtp),
            each.exceeded,
        )
        for each in BOUNDS
    )


TABLES: dict[str, Callable[[], Table]] = {
    "bounds": bounds,
    "commands": commands,
    "answers": answers,
    "return-codes": return_codes,
    "actions": actions,
    "action-flags": action_flags,
    "protocol-steps": protocol_steps,
    "stages": stages,
    "transitions": transitions,
    "MilterFactory": lambda: options_of(MilterFactory),
    "MilterProtocolFactory": lambda: options_of(MilterProtocolFactory),
}


class MadeFromCode(SphinxDirective):
    """
    What is made anew when a module of the library, its table of layers, or this folder changes.
    """

    required_arguments = 1

    def note_sources(self) -> None:
        """
        Tell Sphinx when the page has to be read again.
        """
        for folder, pattern in (("yatxmilter", "*.py"), ("docs/_ext", "*.py")):
            for path in (ROOT / folder).glob(pattern):
                self.env.note_dependency(str(path))
        self.env.note_dependency(str(ROOT / "tests" / "test_layers.py"))
        self.env.note_dependency(str(ROOT / "benchmarks" / "result.json"))


class Generated(MadeFromCode):
    """
    ``{generated} NAME``: a table made from the code.
    """

    def run(self) -> list[nodes.Node]:
        """
        Make the table, and have it read as if it stood in the page.
        """
        self.note_sources()
        head, rows = TABLES[self.arguments[0]]()
        lines = [head, ("---",) * len(head), *rows]
        text = [
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines
        ]
        holder = nodes.container(classes=["generated"])
        source = f"generated {self.arguments[0]}"
        self.state.nested_parse(StringList(text, source), self.content_offset, holder)
        return [holder]


def setup(app: Sphinx) -> dict[str, bool]:
    """
    Teach Sphinx the directive.
    """
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
