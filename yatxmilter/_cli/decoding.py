"""
Packets in words: what `trace` prints of each, and what `replay` calls them.

The tables of commands and of actions say which letter is what and how its payload is laid out; for
each layout there is one function here that shows it, as text for a line and as fields for JSON.
Nothing is too broken to be shown: what cannot be read is shown as it came, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from yatxmilter import constants as c
from yatxmilter._wire import payloads
from yatxmilter._wire.commands import ACTIONS, COMMANDS
from yatxmilter.constants import STAGE_NAMES, action_names, step_names
from yatxmilter.errors import ProtocolError

__all__ = ["Decoded", "QueueId", "body_of", "decode_packet"]

Fields: TypeAlias = dict[str, Any]

_RESPONSES: Final = {
    value: name.removeprefix("SMFIR_")
    for name, value in vars(c).items()
    if name.startswith("SMFIR_") and value not in ACTIONS and value != c.SMFIR_SETSYMLIST
}

# What of an unreadable payload is shown.
_MOST_SHOWN: Final = 80

# What of a queue id is kept: MTAs make them of some twenty characters.
_LONGEST_ID: Final = 100


class Decoded(NamedTuple):
    """
    A packet in words.

    :ivar name: As in libmilter's ``SMFIC_`` or ``SMFIR_`` constant, without that.
    :ivar text: The arguments, for a line.
    :ivar fields: The arguments by name, for JSON.
    :ivar error: Why it could not be read; empty when it could.
    """

    name: str
    text: str
    fields: Fields
    error: str = ""


def decode_packet(from_mta: bool, letter: int, payload: bytes) -> Decoded:
    """
    Put a packet in words.

    :param from_mta: Whether it is a command; the milter's packets have letters of their own.
    """
    name, show = _look_up(from_mta, letter)
    try:
        fields, text = show(payload)
    except ProtocolError as error:
        return Decoded(name, repr(payload[:_MOST_SHOWN]), {"size": len(payload)}, str(error))
    if not name:
        who = "MTA" if from_mta else "milter"
        shown = repr(chr(letter))
        return Decoded(shown, text, fields, f"{shown} is not a letter of the {who}")
    return Decoded(name, text, fields)


def body_of(from_mta: bool, letter: int, payload: bytes) -> bytes | None:
    """
    Give the body text that a packet carries; ``None`` if it is of another kind.
    """
    letters = (c.SMFIC_BODY, c.SMFIC_BODYEOB) if from_mta else (c.SMFIR_REPLBODY,)
    return payload if letter in letters else None


class QueueId:
    """
    The queue id of the message that is under way, as far as the MTA's macros tell.
    """

    def __init__(self) -> None:
        self.value: str | None = None
        self._is_new = False

    def follow(self, letter: int, payload: bytes) -> None:
        """
        Take note of a packet of the MTA.
        """
        if letter == c.SMFIC_MACRO and payload:
            macros = payloads.decode_macros(payload[1:])
            if payload[0] == c.SMFIC_MAIL:
                self.value, self._is_new = None, True
            value = macros.get("i") or macros.get("{i}")
            if value:
                # It is told with each packet, so what is too long for one must not stay so.
                self.value = value[:_LONGEST_ID]
            return
        if letter in (c.SMFIC_MAIL, c.SMFIC_CONNECT) and not self._is_new:
            self.value = None
        self._is_new = False


_Show: TypeAlias = Callable[[bytes], tuple[Fields, str]]


def _look_up(from_mta: bool, letter: int) -> tuple[str, _Show]:
    if from_mta:
        command = COMMANDS.get(letter)
        if command is not None:
            return command.name, _ODD_COMMANDS.get(letter) or _LAYOUTS[command.decode]
    elif letter == c.SMFIC_OPTNEG:
        return "OPTNEG", _show_agreement
    elif letter in ACTIONS:
        return ACTIONS[letter].name, _LAYOUTS[ACTIONS[letter].decode]
    elif letter in _RESPONSES:
        return _RESPONSES[letter], _show_reply if letter == c.SMFIR_REPLYCODE else _show_nothing
    return "", _show_unknown


# ---- layouts


def _show_offer(payload: bytes) -> tuple[Fields, str]:
    version, actions, steps = payloads.decode_offer(payload)
    names = action_names(actions), step_names(steps)
    fields = {
        "version": version,
        "actions": [] if not actions else names[0].split("|"),
        "steps": [] if not steps else names[1].split("|"),
    }
    return fields, f"version {version}, actions {names[0]}, steps {names[1]}"


def _show_agreement(payload: bytes) -> tuple[Fields, str]:
    fields, text = _show_offer(payload)
    lists = {
        STAGE_NAMES.get(stage, str(stage)): names.split()
        for stage, names in payloads.split_symbol_lists(payload).items()
    }
    if lists:
        fields["symbol_lists"] = lists
        shown = "; ".join(" ".join([stage + ":", *names]) for stage, names in lists.items())
        text += f", macros {shown}"
    return fields, text


def _show_connect(payload: bytes) -> tuple[Fields, str]:
    info = payloads.decode_connect(payload)
    fields: Fields = {"hostname": info.hostname, "family": chr(info.family)}
    if info.family == c.SMFIA_UNKNOWN:
        return fields, f"{info.hostname} (address unknown)"
    fields |= {"address": info.address, "port": info.port}
    return fields, f"{info.hostname} [{info.address}]:{info.port}"


def _show_string(payload: bytes) -> tuple[Fields, str]:
    values = payloads.decode_string(payload)
    if values is None:
        raise ProtocolError("the string does not end in a NUL")
    return {"text": values[0]}, values[0]


def _show_line(payload: bytes) -> tuple[Fields, str]:
    (text,) = payloads.decode_line(payload)
    return {"text": text}, text


def _show_strings(payload: bytes) -> tuple[Fields, str]:
    (argv,) = payloads.decode_strings(payload)
    return {"address": argv[0], "arguments": argv[1:]}, " ".join(argv)


def _show_header(payload: bytes) -> tuple[Fields, str]:
    name, value = payloads.decode_header(payload)
    return {"name": name, "value": value}, f"{name}: {value}"


def _show_indexed(payload: bytes) -> tuple[Fields, str]:
    index, name, value = payloads.decode_indexed_header(payload)
    return {"index": index, "name": name, "value": value}, f"{index} {name}: {value}"


def _show_body(payload: bytes) -> tuple[Fields, str]:
    return {"size": len(payload)}, f"{len(payload)} bytes"


def _show_last_body(payload: bytes) -> tuple[Fields, str]:
    return _show_body(payload) if payload else ({}, "")


def _show_macros(payload: bytes) -> tuple[Fields, str]:
    if not payload:
        raise ProtocolError("MACRO without the letter of its command")
    macros = payloads.decode_macros(payload[1:])
    command = COMMANDS.get(payload[0])
    name = command.name if command is not None else repr(chr(payload[0]))
    shown = " ".join(f"{macro}={value or ''}" for macro, value in macros.items())
    return {"command": name, "macros": macros}, f"for {name}: {shown}".rstrip()


def _show_reply(payload: bytes) -> tuple[Fields, str]:
    text = payloads.to_text(payload.rstrip(b"\0"))
    return {"text": text}, " | ".join(text.split("\r\n"))


def _show_nothing(payload: bytes) -> tuple[Fields, str]:
    # There should be nothing; what is there all the same should be seen.
    return _show_unknown(payload) if payload else ({}, "")


def _show_unknown(payload: bytes) -> tuple[Fields, str]:
    return {"size": len(payload)}, repr(payload[:_MOST_SHOWN])


_LAYOUTS: Final[Mapping[Callable[..., Any], _Show]] = {
    payloads.decode_offer: _show_offer,
    payloads.decode_connect: _show_connect,
    payloads.decode_string: _show_string,
    payloads.decode_line: _show_line,
    payloads.decode_strings: _show_strings,
    payloads.decode_header: _show_header,
    payloads.decode_indexed_header: _show_indexed,
    payloads.decode_raw: _show_body,
    payloads.decode_nothing: _show_nothing,
}

# Commands whose payload the table of commands leaves to others.
_ODD_COMMANDS: Final[Mapping[int, _Show]] = {
    c.SMFIC_MACRO: _show_macros,
    c.SMFIC_BODYEOB: _show_last_body,
}
