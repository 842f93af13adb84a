"""
The tables ``[[milter]]`` of a configuration: what they may say, and what it means.

They are kept as they were written once they have been found right, since JSON carries that to the
workers; what they mean is made of them where milters are loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import and_, or_
from typing import Any, Final

from yatxmilter import conditions
from yatxmilter import constants as c
from yatxmilter._engine.on_error import DISCONNECT, Reply, on_error_option
from yatxmilter._options import count_option, seconds_option
from yatxmilter.conditions import Condition
from yatxmilter.protocol._endpoints import check_client_spec

__all__ = ["MILTER", "OF_REMOTE", "condition_of", "nearest", "on_error_of", "unknown_option"]

Find = Callable[[str], Any]


def nearest(word: str, known: Iterable[str]) -> str:
    """
    Name the nearest of the words that there are, or all of them.
    """
    known = list(known)
    found = difflib.get_close_matches(word, known, 1)
    return f"did you mean {found[0]!r}?" if found else f"expected one of {', '.join(known)}"


def unknown_option(key: str, known: Iterable[str]) -> str:
    """
    Say that there is no option of that name, and which one may have been meant.
    """
    found = difflib.get_close_matches(key, list(known), 1)
    return f"unknown option {key!r}" + (f", did you mean {found[0]!r}?" if found else "")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r}, expected a text")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected true or false")


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: check(name, None if value == "none" else value)


def _seconds(name: str, value: Any) -> None:
    # It has no "none": the MTA waits meanwhile.
    if value == "none":
        raise TypeError(f"{name} is {value!r}, expected seconds")
    seconds_option(name, value)


def _remote(name: str, value: Any) -> None:
    specs = value if isinstance(value, list) else [value]
    wrong = [] if specs else [f"{name} is empty, expected an address"]
    for spec in specs:
        try:
            check_client_spec(spec)
        except (TypeError, ValueError) as error:
            wrong.append(f"{name}: {error}")
    _raise(wrong)


def _options(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is {value!r}, expected a table such as {{ store = 'x' }}")


def _raise(wrong: list[str]) -> None:
    if wrong:
        raise ValueError("\n".join(wrong))


def on_error_of(name: str, value: Any) -> Any:
    """
    Read what is answered for a milter that has failed.

    :raises ValueError: that has a line for each mistake.
    """
    if not isinstance(value, dict):
        return on_error_option(name, _answer(name, value))
    wrong: list[str] = []
    answers = {}
    for stage, word in value.items():
        try:
            answers[stage] = _answer(f"{name}.{stage}", word)
            on_error_option(name, {stage: answers[stage]})
        except ValueError as error:
            wrong.append(str(error))
    _raise(wrong)
    return on_error_option(name, answers)


def _answer(name: str, value: Any) -> Any:
    codes = {code.name.removeprefix("SMFIS_"): code for code in c.ReturnCode}
    word = str(value).upper().removeprefix("SMFIS_")
    if word in codes:
        return codes[word]
    if word == DISCONNECT.name:
        return DISCONNECT
    reply = re.fullmatch(r"([45]\d\d)(?: +([245]\.\d+\.\d+))?(?: +(.*))?", str(value))
    if reply is not None:
        return Reply(*reply.groups())
    known = ["tempfail", "continue", "accept", "reject", "discard", "disconnect"]
    near = difflib.get_close_matches(str(value).lower(), known, 1)
    raise ValueError(
        f"{name} is {value!r}, expected {', '.join(known)} or a reply such as"
        " '451 4.3.0 Try again later'" + (f"; did you mean {near[0]!r}?" if near else "")
    )


def condition_of(name: str, value: Any, find: Find) -> Any:
    """
    Read which mail a milter is for: a table, or the name of a condition or a function.

    :param find: Gives what has a name.
    :raises ValueError: that has a line for each mistake.
    """
    if isinstance(value, str) and value:
        return find(value)
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"{name} is {value!r}, expected a table such as {{ client_in = ['192.0.2.0/24'] }}, or"
            " module:name"
        )
    wrong: list[str] = []
    parts: list[Condition] = []
    for key, said in value.items():
        make = _CONDITIONS.get(key)
        try:
            if make is None:
                raise ValueError(f"{name} has {key!r}, {nearest(key, _CONDITIONS)}")
            parts.append(make(f"{name}.{key}", said, find))
        except (TypeError, ValueError) as error:
            wrong.append(str(error))
    _raise(wrong)
    return reduce(and_, parts)


def _yes(make: Callable[[], Condition]) -> Callable[[str, Any, Find], Condition]:
    def read(name: str, value: Any, find: Find) -> Condition:
        _flag(name, value)
        return make() if value else ~make()

    return read


def _list(make: Callable[..., Condition]) -> Callable[[str, Any, Find], Condition]:
    def read(name: str, value: Any, find: Find) -> Condition:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise TypeError(f"{name} is {value!r}, expected a list of texts")
        try:
            return make(*texts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None

    return read


def _macro(name: str, value: Any, find: Find) -> Condition:
    if not isinstance(value, dict) or not value:
        raise TypeError(f"{name} is {value!r}, expected a table such as {{ j = ['mx'] }}")
    parts = []
    for macro, values in value.items():
        texts = [values] if isinstance(values, str) else values
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise TypeError(f"{name}.{macro} is {values!r}, expected a list of texts")
        parts.append(conditions.macro_is(macro, *texts))
    return reduce(and_, parts)


def _negated(name: str, value: Any, find: Find) -> Condition:
    condition: Condition = ~_as_one(name, value, find)
    return condition


def _as_one(name: str, value: Any, find: Find) -> Any:
    return conditions.condition_option(name, condition_of(name, value, find))


def _several(join: Callable[[Any, Any], Any]) -> Callable[[str, Any, Find], Condition]:
    def read(name: str, value: Any, find: Find) -> Condition:
        if not isinstance(value, list) or not value:
            raise TypeError(f"{name} is {value!r}, expected a list of tables")
        wrong: list[str] = []
        parts: list[Any] = []
        for number, one in enumerate(value, 1):
            try:
                parts.append(_as_one(f"{name}.{number}", one, find))
            except (TypeError, ValueError) as error:
                wrong.append(str(error))
        _raise(wrong)
        joined: Condition = reduce(join, parts)
        return joined

    return read


_CONDITIONS: Final[Mapping[str, Callable[[str, Any, Find], Condition]]] = {
    "client_in": _list(conditions.client_in),
    "sender_matches": _list(conditions.sender_matches),
    "recipient_matches": _list(conditions.recipient_matches),
    "authenticated": _yes(conditions.authenticated),
    "over_tls": _yes(conditions.over_tls),
    "macro_is": _macro,
    "not": _negated,
    "any": _several(or_),
    "all": _several(and_),
}


def _when(name: str, value: Any) -> None:
    # What has a name is looked for when milters are loaded.
    condition_of(name, value, lambda spec: conditions.authenticated())


#: What is for milters that run elsewhere.
OF_REMOTE: Final[dict[str, Callable[[str, Any], Any]]] = {
    "connect_timeout": _seconds,
    "reuse": _flag,
    "max_edit_bytes": _or_none(count_option),
    "max_edits": _or_none(count_option),
    "max_body": _or_none(count_option),
}

#: All that a table may say; each check raises for a value that is wrong.
MILTER: Final[dict[str, Callable[[str, Any], Any]]] = {
    "object": _text,
    "remote": _remote,
    "options": _options,
    "on_error": on_error_of,
    "timeout": _or_none(seconds_option),
    "name": _text,
    "when": _when,
    "shadow": _flag,
    **OF_REMOTE,
}
