"""
The pictures of the manual, drawn when it is built.

``{picture} NAME`` with the words for those who cannot see it as its content. A picture is an SVG of
text, boxes and arrows inside the page, at most 360 units wide so that a phone shows it at full
size. Its colours are variables of the theme, which has others in the dark. What the pictures of
states, conversation and layers show comes from the tables that the code and its tests work with.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from html import escape

from docutils import nodes
from sphinx.application import Sphinx

from benchmarks.report import CHARTED, RESULT, Recorded
from yatxmilter._wire.commands import ALL_COMMANDS, CALLBACK_STEPS, legal_commands

from .tables import ROOT, STATES, MadeFromCode

WIDTH = 360

#: A command for each callback, as the client says it.
_SMTP = {
    "CONNECT": "connects",
    "HELO": "EHLO client.example",
    "MAIL": "MAIL FROM:<ann@…>",
    "RCPT": "RCPT TO:<bob@…>",
    "DATA": "DATA",
    "HEADER": "Subject: hello",
    "EOH": "(empty line)",
    "BODY": "A letter.",
    "BODYEOB": ".",
}


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """
    Set words.
    """
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """
    Draw a box.
    """
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'
    )


def path(moves: str, kind: str = "line", arrow: bool = True) -> str:
    """
    Draw a line, by default with an arrow at its end.
    """
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<path d="{moves}" class="{kind}"{end}/>'


def svg(height: float, parts: Iterable[str], words: str) -> str:
    """
    Put a picture together.
    """
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" class="tip"/>'
        "</marker></defs>"
    )
    return (
        f'<svg class="drawing" role="img" viewBox="0 0 {WIDTH} {height:g}"'
        f' aria-label="{escape(words)}"><title>{escape(words)}</title>{arrow}{"".join(parts)}</svg>'
    )


def states() -> tuple[float, list[str]]:
    """
    Draw the states of a session, and the commands that lead from one to another.

    What is legal in (almost) every state has no arrows: ABORT, QUIT, QUIT_NC and UNKNOWN.
    """
    row, middle, half = 52, 180, 52
    spine = [number for number, name in enumerate(STATES[:11])]
    top = {state: 10 + row * place for place, state in enumerate(spine)}
    parts = []
    skips = 0
    for state in spine:
        legal = legal_commands(0)[state]
        y = top[state]
        for command in ALL_COMMANDS:
            goal = command.state
            if not legal & command.bit or goal is None or goal not in top:
                continue
            end, name = top[goal], chr(command.letter)
            if goal == state + 1:
                parts += [
                    path(f"M{middle} {y + 26}V{end}"),
                    text(middle + 10, end - 9, name, "key"),
                ]
            elif goal == state:
                parts.append(path(f"M{middle + half} {y + 7}h14v12h-13"))
                parts.append(text(middle + half + 23, y + 17, name, "key"))
            else:
                parts.append(curve(state, goal, top, skips, name))
                skips += goal > state
    for state in spine:
        parts += [box(middle - half, top[state], 2 * half, 26)]
        parts += [text(middle, top[state] + 17, STATES[state], "name")]
    return top[spine[-1]] + 36, parts


def curve(state: int, goal: int, top: dict[int, float], count: int, name: str) -> str:
    """
    Draw a command that passes states over, at the left and at the right in turn, or goes back.
    """
    back = goal < state
    side = -1 if back or count % 2 else 1
    edge = 180 + side * 52
    reach = edge + side * min(112, 26 + 14 * abs(goal - state))
    start, end = top[state] + 18, top[goal] + 8
    label = (start + end) / 2
    x = 0.25 * edge + 0.75 * reach
    return path(
        f"M{edge} {start:g}C{reach} {start:g} {reach} {end:g} {edge} {end:g}", "line"
    ) + text(x + side * 7, label + 4, name, "key")


def conversation() -> tuple[float, list[str]]:
    """
    Draw who says what over a message: client, MTA, milter.
    """
    client, mta, milter, row = 40, 180, 320, 46
    parts = []
    shown = [command for command in CALLBACK_STEPS if command.name in _SMTP]
    height = 64 + row * (len(shown) + 1)
    for x, name in ((client, "client"), (mta, "MTA"), (milter, "milter")):
        parts += [path(f"M{x} 34V{height - 4:g}", "rail", arrow=False)]
        parts += [box(x - 38, 6, 76, 28), text(x, 25, name, "name")]
    y = 62.0
    parts += arrow(mta, milter, y, "OPTNEG: offer")
    parts += arrow(milter, mta, y + 20, "agreement", "answer")
    for command in shown:
        y += row
        parts += arrow(client, mta, y, _SMTP[command.name], "smtp")
        parts += arrow(mta, milter, y, f"{chr(command.letter)}  {command.callback}")
        last = command.name == "BODYEOB"
        answer = "edits, ACCEPT" if last else "CONTINUE"
        parts += arrow(milter, mta, y + 20, answer, "answer")
    parts += arrow(mta, client, y + 20, "250 Ok", "answer")
    return height, parts


def arrow(start: float, end: float, y: float, words: str, kind: str = "") -> list[str]:
    """
    Draw a message from one rail to another.
    """
    return [
        path(f"M{start} {y}H{end}", kind or "line"),
        text((start + end) / 2, y - 4, words, "small"),
    ]


def table_of_layers() -> list[list[str]]:
    """
    Read the table of layers where the test that guards it has it, lowest first.
    """
    source = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [list(row) for row in ast.literal_eval(node.value)]
    raise ValueError("tests/test_layers.py has no LAYERS")


def layers() -> tuple[float, list[str]]:
    """
    Draw the layers of the library, the highest on top; packages above the core are one box each.
    """
    rows: list[list[str]] = []
    for row in reversed(table_of_layers()):
        names = list(dict.fromkeys(name.partition(".")[0] for name in row))
        names = [name for name in names if not any(name in above for above in rows)]
        if names:
            rows.append(names)
    parts, y = [], 6.0
    for names in rows:
        lines = wrapped(names, 52)
        high = 10 + 16 * len(lines)
        parts.append(box(6, y, WIDTH - 12, high))
        parts += [
            text(WIDTH / 2, y + 17 + 16 * place, line, "small") for place, line in enumerate(lines)
        ]
        y += high + 5
    return y + 2, parts


def wrapped(words: list[str], width: int) -> list[str]:
    """
    Break a list of words into lines.
    """
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) + 3 > width:
            lines.append("")
        lines[-1] += (" · " if lines[-1] else "") + word
    return lines


def merges() -> tuple[float, list[str]]:
    """
    Draw how three milters are asked and what becomes of their answers, for each merge.
    """
    parts: list[str] = []
    side_by_side = (
        ('merge="first"', "the first answer that is no CONTINUE", 6.0),
        ('merge="strictest"', "all are awaited; the strictest answer", 172.0),
    )
    for title, rule, y in side_by_side:
        parts.append(text(6, y + 14, title, "name", "start"))
        parts += [box(24, y + 66, 68, 28), text(58, y + 84, "MTA", "small")]
        for place, name in enumerate("ABC"):
            top = y + 30 + 36 * place
            parts += [box(170, top, 68, 28), text(204, top + 19, f"milter {name}", "small")]
            parts.append(path(f"M92 {y + 80:g}L170 {top + 14:g}"))
            parts.append(path(f"M238 {top + 14:g}L286 {y + 80:g}", "answer"))
        parts += [box(286, y + 66, 68, 28), text(320, y + 84, "answer", "small")]
        parts.append(text(WIDTH / 2, y + 154, rule, "small"))
    y = 340.0
    parts.append(text(6, y + 14, 'merge="chain"', "name", "start"))
    for place, name in enumerate(("MTA", "milter A", "milter B", "milter C")):
        x = 6 + 93 * place
        parts += [box(x, y + 40, 68, 28), text(x + 34, y + 59, name, "small")]
        if place:
            parts.append(path(f"M{x - 25:g} {y + 54:g}h25"))
    parts.append(path(f"M319 {y + 68:g}v22H40v-20", "answer"))
    parts.append(text(WIDTH / 2, y + 106, "each sees what the one before it has made;", "small"))
    parts.append(text(WIDTH / 2, y + 122, "the edits of all go back as one list", "small"))
    return y + 132, parts


def performance() -> tuple[float, list[str]]:
    """
    Draw bars: how many messages a second a core carries with each library, ours first in colour.
    """
    recorded = Recorded.load(RESULT)
    parts: list[str] = []
    left, right, row, y = 140, 308, 20, 4.0
    for name, title in CHARTED.items():
        carried = recorded.carried(name)
        if not carried:
            continue
        parts.append(text(6, y + 14, title[0].upper() + title[1:], "name", "start"))
        y += 24
        most = max(carried.values())
        for library, value in carried.items():
            kind = "ours" if library == "yatxmilter" else "other"
            parts.append(text(left - 6, y + 12, library, f"small {kind}", "end"))
            parts.append(box(left, y + 2, max(1, (right - left) * value / most), row - 6, kind))
            x = left + (right - left) * value / most + 5
            parts.append(text(x, y + 12, f"{value:,.0f}", f"small {kind}", "start"))
            y += row
        y += 12
    return y, parts


PICTURES: dict[str, Callable[[], tuple[float, list[str]]]] = {
    "states": states,
    "conversation": conversation,
    "layers": layers,
    "merges": merges,
    "performance": performance,
}


class Picture(MadeFromCode):
    """
    ``{picture} NAME``, and what it shows in words.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """
        Draw the picture into the page.
        """
        self.note_sources()
        words = " ".join(self.content)
        if not words:
            raise self.error("a picture needs words for those who cannot see it")
        height, parts = PICTURES[self.arguments[0]]()
        return [nodes.raw("", svg(height, parts, words), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """
    Teach Sphinx the directive.
    """
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
