"""
Making a failing case small: parts are left out or put back to their plainest for as long as it goes
on failing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from .case import Case, Reaction

_PLAIN = Reaction()


def shrink(case: Case, fails: Callable[[Case], bool], limit: int = 3000) -> Case:
    """Give the smallest case found that still fails; `limit` bounds how many are tried."""
    tried = 0
    improved = True
    while improved:
        improved = False
        for candidate in _simpler(case):
            tried += 1
            if tried > limit:
                return case
            if fails(candidate):
                case = candidate
                improved = True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    pieces = case.conversation
    size = len(pieces) // 2
    while size:
        for start in range(0, len(pieces), size):
            yield replace(case, conversation=pieces[:start] + pieces[start + size :])
        size //= 2
    if case.delivery != "packets":
        yield replace(case, delivery="packets")
    if case.on_error != 4:
        yield replace(case, on_error=4)
    if case.members > 1:
        yield replace(case, members=1)
    if case.version != 6:
        yield replace(case, version=6)
    for name in case.callbacks:
        yield replace(case, callbacks=tuple(other for other in case.callbacks if other != name))
    for at, (name, reactions) in enumerate(case.reactions):
        before, after = case.reactions[:at], case.reactions[at + 1 :]
        yield replace(case, reactions=before + after)
        for changed in _simpler_reactions(reactions):
            yield replace(case, reactions=(*before, (name, changed), *after))
    for at, piece in enumerate(pieces):
        if len(piece) > 5 and piece[4] not in b"OC":
            for shorter in _simpler_packets(piece):
                yield replace(case, conversation=pieces[:at] + (shorter,) + pieces[at + 1 :])


def _simpler_reactions(reactions: tuple[Reaction, ...]) -> Iterator[tuple[Reaction, ...]]:
    if len(reactions) > 1:
        yield reactions[:-1]
    for at, reaction in enumerate(reactions):
        candidates = []
        if reaction != _PLAIN:
            candidates.append(_PLAIN)
        if reaction.result is not None and reaction.result != 0 and reaction.actions is None:
            candidates.append(replace(reaction, result=0))
        if reaction.how != "plain":
            candidates.append(replace(reaction, how="plain"))
        for skip in range(len(reaction.calls)):
            candidates.append(
                replace(reaction, calls=reaction.calls[:skip] + reaction.calls[skip + 1 :])
            )
        for mask in (reaction.steps or 0, reaction.actions or 0):
            for bit in range(32):
                if mask >> bit & 1:
                    less = mask & ~(1 << bit)
                    if mask == reaction.steps:
                        candidates.append(replace(reaction, steps=less))
                    else:
                        candidates.append(replace(reaction, actions=less))
        for candidate in candidates:
            yield reactions[:at] + (candidate,) + reactions[at + 1 :]


def _simpler_packets(piece: bytes) -> Iterator[bytes]:
    payload = piece[5:]
    whole = int.from_bytes(piece[:4], "big") == len(piece) - 4
    if whole and len(payload) > 8:
        for shorter in (payload[:1] + payload[-1:], payload[: len(payload) // 2] + payload[-1:]):
            yield (len(shorter) + 1).to_bytes(4, "big") + piece[4:5] + shorter
