"""
Cases and records as text that a person can read, and as Python source that makes the case again.
"""

from __future__ import annotations

from .case import Call, Case, Invocation, Reaction, Record

_LETTERS = {
    "O": "OPTNEG", "C": "CONNECT", "H": "HELO", "M": "MAIL", "R": "RCPT", "T": "DATA",
    "L": "HEADER", "N": "EOH", "B": "BODY", "E": "BODYEOB", "U": "UNKNOWN", "A": "ABORT",
    "Q": "QUIT", "K": "QUIT_NC", "D": "MACRO",
}  # fmt: skip


def short(value: object) -> str:
    """Show a value; the middle of a long one is left out."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-20:]} ({len(text)} characters)"


def source(value: object) -> str:
    """Write a value as Python source; long runs of one byte are written as products."""
    if isinstance(value, bytes) and len(value) > 60:
        return _run_lengths(value)
    if isinstance(value, tuple):
        return "(" + "".join(source(item) + ", " for item in value).rstrip() + ")"
    if isinstance(value, Call):
        return (
            f"Call({value.function!r}, {source(value.args)})"
            if value.args
            else f"Call({value.function!r})"
        )
    if isinstance(value, Reaction):
        default = Reaction()
        shown = [
            f"{name}={source(getattr(value, name))}"
            for name in ("result", "calls", "actions", "steps", "how")
            if getattr(value, name) != getattr(default, name)
            or type(getattr(value, name)) is not type(getattr(default, name))
        ]
        return f"Reaction({', '.join(shown)})"
    return repr(value)


def _run_lengths(value: bytes) -> str:
    parts: list[str] = []
    plain = b""
    at = 0
    while at < len(value):
        end = at
        while end < len(value) and value[end] == value[at]:
            end += 1
        if end - at > 20:
            if plain:
                parts.append(repr(plain))
            parts.append(f"{value[at : at + 1]!r} * {end - at}")
            plain = b""
        else:
            plain += value[at:end]
        at = end
    return " + ".join([*parts, repr(plain)] if plain else parts)


def literal(case: Case) -> str:
    """Write a case as Python source."""
    lines = ["Case("]
    lines.append(f"    callbacks={case.callbacks!r},")
    if case.reactions:
        lines.append("    reactions=(")
        lines += [f"        ({name!r}, {source(reactions)})," for name, reactions in case.reactions]
        lines.append("    ),")
    lines.append("    conversation=(")
    lines += [f"        {source(piece)}," for piece in case.conversation]
    lines.append("    ),")
    lines.append(
        f"    version={case.version!r}, flags={case.flags:#x}, delivery={case.delivery!r},"
    )
    lines.append(f"    on_error={case.on_error!r}, members={case.members!r},")
    lines.append(")")
    return "\n".join(lines)


def conversation(case: Case) -> str:
    """List what the MTA sends."""
    lines = []
    for piece in case.conversation:
        name = _LETTERS.get(chr(piece[4]), "?") if len(piece) > 4 else "?"
        whole = len(piece) > 4 and int.from_bytes(piece[:4], "big") == len(piece) - 4
        lines.append(
            f"  > {name:8} {short(piece[5:])}" if whole else f"  > bytes    {short(piece)}"
        )
    return "\n".join(lines)


def script(case: Case) -> str:
    """List what the milter does."""
    callbacks = " ".join(case.callbacks)
    lines = [f"  callbacks: {callbacks}; API version {case.version}; flags {case.flags:#x}"]
    lines.append(f"  on_error {case.on_error!r}; milters: {case.members}")
    for name, reactions in case.reactions:
        for reaction in reactions:
            asked = ""
            if reaction.actions is not None or reaction.steps is not None:
                asked = f" (actions {reaction.actions or 0:#x}, steps {reaction.steps or 0:#x})"
            lines.append(f"  {name} -> {reaction.result!r}{asked} {reaction.how}")
            for call in reaction.calls:
                lines.append(
                    f"      . {call.function}({', '.join(short(arg) for arg in call.args)})"
                )
    return "\n".join(lines)


def _invocation(one: Invocation) -> str:
    answers = f" . {one.answers}" if one.answers else ""
    return (
        f"at {one.written:4}: {one.callback}({', '.join(short(arg) for arg in one.args)}){answers}"
    )


def split(output: bytes) -> list[str]:
    """Cut output into packets, for reading."""
    parts = []
    at = 0
    while at < len(output):
        end = at + 4 + int.from_bytes(output[at : at + 4], "big")
        parts.append(short(output[at + 4 : end])[1:].strip("'\""))
        at = end
    return parts


def record(title: str, one: Record) -> str:
    """Show a record."""
    lines = [
        f"  {title}: read {one.consumed} bytes, wrote {' '.join(split(one.output)) or 'nothing'}"
    ]
    lines += [f"    {_invocation(invocation)}" for invocation in one.invocations]
    return "\n".join(lines)
