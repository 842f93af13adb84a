"""
Macros, by the stage they came with.

An MTA sends a macro packet before most commands, and few are ever looked at: payloads are kept as
they came and read on the first look-up. Each command ends the macros of the stages after its own,
as libmilter's ``mi_clr_macros`` does.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from yatxmilter import constants as c
from yatxmilter._wire.payloads import decode_macros, from_text
from yatxmilter.errors import ProtocolError

__all__ = ["NO_MACROS", "MacroLimits", "MacroStore", "RecipientMissed", "mta_flavour"]

# libmilter's order of look-up, from the end: connect, helo, envfrom, envrcpt, data, eoh, eom.
_STAGES: Final = {
    letter: stage
    for stage, letter in enumerate(
        (
            c.SMFIC_CONNECT,
            c.SMFIC_HELO,
            c.SMFIC_MAIL,
            c.SMFIC_RCPT,
            c.SMFIC_DATA,
            c.SMFIC_EOH,
            c.SMFIC_BODYEOB,
        )
    )
}


# The same, to find it faster.
_STAGE_OF: Final = [_STAGES.get(letter) for letter in range(256)]

#: What there is of each stage at the beginning.
NO_MACROS: Final[tuple[bytes | None, ...]] = (None,) * len(_STAGES)

_RCPT: Final = _STAGES[c.SMFIC_RCPT]
# Sendmail has had milters from this release on; Postfix is far from it.
_FIRST_SENDMAIL: Final = 8
_DIGITS: Final = re.compile("[0-9]+", re.ASCII)


def _normal(name: str) -> str:
    # ``x`` and ``{x}`` are the same macro when x is one byte; longer names need their braces.
    if len(name) == 3 and name[0] == "{" and name[2] == "}":
        letter = name[1]
        if letter.isascii() or 0xDC80 <= ord(letter) <= 0xDCFF:
            return letter
    return name


class MacroLimits:
    """
    How many macros are taken.

    :param most: How many macros one stage may have.
    :param most_bytes: How many bytes the macros of all stages may have.
    :ivar uncounted: A packet of so many bytes need not be looked at: a macro has two bytes at
        least, and there are seven stages.
    """

    __slots__ = ("most", "most_bytes", "uncounted")

    def __init__(self, most: int = 512, most_bytes: int = 512 * 1024) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.uncounted = min(2 * most, most_bytes // len(_STAGES))


_USUAL_LIMITS: Final = MacroLimits()


class MacroStore:
    """
    The macros of one connection.

    :ivar payloads: The payloads of the stages' macro packets, as they came.
    :ivar limits: How many are taken.
    """

    __slots__ = ("_tables", "limits", "payloads")

    def __init__(self) -> None:
        self.limits = _USUAL_LIMITS
        self.payloads: list[bytes | None] = [*NO_MACROS]
        # What was read of them; there is no list before the first look-up.
        self._tables: list[dict[str, str | None] | None] | None = None

    def put(self, payload: bytes) -> None:
        """
        Keep the payload of a macro packet in place of its stage's old one.

        A packet for a stage that has no macros, and one without any string, changes nothing.

        :raises ProtocolError: when there are too many macros, or too many bytes of them.
        """
        stage = _STAGE_OF[payload[0]]
        # The NUL as a number: to look for a piece of bytes in bytes costs ten times as much.
        if stage is not None and 0 in payload:
            self.payloads[stage] = payload
            if self._tables is not None:
                self._tables[stage] = None
            if len(payload) > self.limits.uncounted:
                self._check(payload)

    def _check(self, payload: bytes) -> None:
        count = payload.count(b"\0") // 2
        if count > self.limits.most:
            raise ProtocolError(
                f"{count} macros for one stage, at most {self.limits.most} are taken", "macros"
            )
        size = sum(len(one) for one in self.payloads if one is not None)
        if size > self.limits.most_bytes:
            raise ProtocolError(
                f"macros of {size} bytes, at most {self.limits.most_bytes} are taken", "macros"
            )

    def clear_from(self, first: int) -> None:
        """
        End the macros of a stage and of those after it.

        :param first: 0 for all, 1 from HELO on, and so on in the order of look-up.
        """
        self.payloads[first:] = NO_MACROS[first:]

    @property
    def recipient(self) -> bytes | None:
        """
        The macros of the last recipient, as they came.
        """
        return self.payloads[_RCPT]

    @property
    def refuses_recipient(self) -> bool:
        """
        Whether the MTA has refused the last recipient itself: so both MTAs mark one, which they
        show to milters that ask for such (SMFIP_RCPT_REJ).
        """
        return self.get("{rcpt_mailer}") == "error"

    def copy(self) -> MacroStore:
        """
        Give a copy, which stays as it is when other macros come.
        """
        other = MacroStore()
        other.payloads = self.payloads.copy()
        other._tables = None if self._tables is None else self._tables.copy()
        return other

    def become(self, payloads: tuple[bytes | None, ...]) -> None:
        """
        Have the macros of another time.

        What was read stays for the stages whose macros are the same.
        """
        tables = self._tables
        for stage, payload in enumerate(payloads):
            if payload is not self.payloads[stage]:
                self.payloads[stage] = payload
                if tables is not None:
                    tables[stage] = None

    def get(self, symname: str) -> str | None:
        """
        Look a macro up, from the last stage to the first; mirrors ``smfi_getsymval``.
        """
        name = _normal(symname)
        tables = self._tables
        if tables is None:
            tables = self._tables = [None] * 7
        for stage in range(6, -1, -1):
            payload = self.payloads[stage]
            if payload is None:
                continue
            table = tables[stage]
            if table is None:
                # To read all macros of a stage costs far more than to see that this is not there.
                if not _may_have(payload, name):
                    continue
                table = tables[stage] = _read(payload)
            if name in table:
                return table[name]
        return None

    def of_stage(self, letter: int) -> dict[str, str] | None:
        """
        Give the macros of one stage, spelled as they came; ``None`` when none came.

        :param letter: The stage's command, ``SMFIC_*``; most commands have macros, not all.
        """
        stage = _STAGES.get(letter)
        payload = self.payloads[stage] if stage is not None else None
        if payload is None:
            return None
        macros = decode_macros(payload[1:])
        return {name: value for name, value in macros.items() if value is not None}

    def all(self) -> dict[str, str | None]:
        """
        Collect all that `get` would find, by name.
        """
        found: dict[str, str | None] = {}
        for stage in range(7):
            payload = self.payloads[stage]
            if payload is not None:
                found.update(_read(payload))
        return found


class RecipientMissed(MacroStore):
    """
    The macros of a connection for a milter that was not shown its last recipients.

    :param store: What comes from the MTA.
    :param recipient: The macros of the last recipient that the milter was shown, as they came.
    """

    __slots__ = ("_recipient", "_store")

    def __init__(self, store: MacroStore, recipient: bytes | None) -> None:
        super().__init__()
        self._store = store
        self._recipient = recipient

    def _follow(self) -> None:
        payloads = self._store.payloads.copy()
        payloads[_RCPT] = self._recipient
        if any(one is not other for one, other in zip(payloads, self.payloads, strict=True)):
            self.payloads = payloads
            self._tables = None

    def get(self, symname: str) -> str | None:
        """
        Look a macro up as the milter would find it if it were alone.
        """
        self._follow()
        return super().get(symname)

    def of_stage(self, letter: int) -> dict[str, str] | None:
        """
        Give the macros that came with one stage, by their names.
        """
        self._follow()
        return super().of_stage(letter)


def _read(payload: bytes) -> dict[str, str | None]:
    table: dict[str, str | None] = {}
    for name, value in decode_macros(payload[1:]).items():
        if name:  # libmilter's look-up of an empty name finds nothing
            table.setdefault(_normal(name), value)
    return table


@lru_cache(maxsize=256)
def _written(name: str) -> tuple[int, tuple[bytes, ...]]:
    """
    Tell how a macro of that name may be written, each with something behind or before it; before
    these comes the first byte of the name itself.
    """
    try:
        letters = from_text(name)
    except UnicodeEncodeError:
        # No bytes are read as such a name.
        return 0, ()
    forms = (letters + b"\0", b"{" + letters + b"}") if len(name) == 1 else (letters,)
    bare = letters.lstrip(b"{")
    return bare[0] if bare else 0, forms


def _may_have(payload: bytes, name: str) -> bool:
    first, forms = _written(name)
    # In two steps: to look for a piece of bytes in bytes costs ten times as much as for one.
    if first in payload:
        for form in forms:
            if form in payload:
                return True
    return False


def mta_flavour(version: str | None, hostname: str | None) -> str:
    """
    Tell the MTAs apart by their macros: ``"postfix"`` or ``"sendmail"``.

    :param version: The macro ``v``. Postfix always gives it, with any text that the administrator
        likes. Sendmail does when asked, and then a bare number; else it only gives its name.
    :param hostname: The macro ``j``. Where nothing is known the plain rules are expected.
    """
    if not version:
        return "postfix" if hostname is None else "sendmail"
    release = _DIGITS.match(version)
    is_sendmail = release is not None and int(release[0][:9]) >= _FIRST_SENDMAIL
    return "sendmail" if is_sendmail else "postfix"
