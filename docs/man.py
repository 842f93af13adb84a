"""
The man pages, made of the texts that ``--help`` shows: ``python docs/man.py`` writes them to
``docs/man``.

They are kept in the repository, because building a package must not need Twisted. A test compares
them with what this script writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from yatxmilter import __version__  # noqa: E402
from yatxmilter.__main__ import _parser  # noqa: E402

FOLDER = HERE / "man"


def escape(text: str) -> str:
    """
    Write text so that troff prints it: hyphens as they are typed, and no line a request.
    """
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n")
    )


def paragraphs(text: str) -> Iterator[tuple[bool, str]]:
    """
    Cut a description into running text and examples, which are indented there.
    """
    lines: list[str] = []
    example = False
    for line in [*text.splitlines(), ""]:
        indented = line.startswith("  ")
        if lines and (not line.strip() or indented != example):
            yield example, "\n".join(lines)
            lines = []
        if line.strip():
            example = indented
            lines.append(line)


def prose(text: str) -> Iterator[str]:
    """
    Set a description.
    """
    for example, words in paragraphs(text):
        if example:
            yield from (".PP", ".nf", escape(words), ".fi")
        else:
            yield from (".PP", escape(words))


def choices(action: argparse.Action) -> str:
    """
    Say what an argument takes.
    """
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar:
        return action.metavar
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return (action.dest if not action.option_strings else action.dest.upper()).replace("_", "-")


def option(action: argparse.Action) -> Iterator[str]:
    """
    Set one option or argument, with what it is for.
    """
    what = choices(action)
    value = f" \\fI{escape(what)}\\fR" if what else ""
    names = ", ".join(f"\\fB{escape(name)}\\fR{value}" for name in action.option_strings)
    yield ".TP"
    yield names or value.strip()
    words = action.help or ""
    yield escape(" ".join((words % {**vars(action), "prog": ""}).split()) or "see above")


def page(name: str, summary: str, parser: argparse.ArgumentParser, others: list[str]) -> str:
    """
    Write one man page.

    :param others: The names of the pages to see also.
    """
    description = parser.description or ""
    ending = [words for _, words in paragraphs(description) if words.startswith("The exit status")]
    for words in ending:
        description = description.replace(words, "")
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    rest = "[\\fIoption\\fR ...]"
    for action in parser._actions:
        if not action.option_strings:
            many = " ..." if action.nargs in ("*", "+", argparse.PARSER, argparse.REMAINDER) else ""
            rest += f" \\fI{escape(choices(action))}\\fR{many}"
    lines = [
        '.\\" Made by docs/man.py of the texts that --help shows.',
        f'.TH {name.upper()} 1 "" "yatxmilter {__version__}" "yatxmilter"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(summary)}",
        ".SH SYNOPSIS",
        f"\\fB{escape(parser.prog)}\\fR {rest}",
        ".SH DESCRIPTION",
        *prose(description),
    ]
    for action in commands:
        lines.append(".SH COMMANDS")
        for choice in action._choices_actions:
            lines += [".TP", f"\\fB{escape(choice.dest)}\\fR", escape(choice.help or "")]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a not in commands]
        if actions:
            lines += [f".SH {escape((group.title or 'options').upper())}"]
            for action in actions:
                lines += option(action)
    if ending:
        lines += [".SH EXIT STATUS", *map(escape, ending)]
    see = ", ".join(f"\\fB{escape(other)}\\fR(1)" for other in others if other != name)
    return "\n".join([*lines, ".SH SEE ALSO", see, ""])


def pages() -> dict[str, str]:
    """
    Write all pages, by the names of their files.
    """
    parser = _parser()
    [commands] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    summaries = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    names = ["yatxmilter", *(f"yatxmilter-{name}" for name in summaries)]
    top = "mail filters for Postfix and Sendmail"
    made = {"yatxmilter.1": page("yatxmilter", top, parser, names)}
    for name, summary in summaries.items():
        title = f"yatxmilter-{name}"
        made[f"{title}.1"] = page(title, summary, commands.choices[name], names)
    return made


def main() -> None:
    """
    Write them to their folder, and remove those of commands that there are no more.
    """
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
