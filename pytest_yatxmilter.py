"""
The pytest plugin of yatxmilter: the fixtures ``milter_mta`` and ``milter_replay``.

It stands outside the package so that pytest can load it for every project without Twisted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from yatxmilter.testing import InMemoryMTA, Replayed


@pytest.fixture
def milter_mta() -> Iterator[Callable[..., InMemoryMTA]]:
    """
    Make MTAs in memory: ``milter_mta(MyMilter, flavour="postfix")``, checked at the test's end.
    """
    from yatxmilter.testing import InMemoryMTA, MilterTestFailure

    made: list[InMemoryMTA] = []

    def make(milters: Any, **options: Any) -> InMemoryMTA:
        mta = InMemoryMTA(milters, **options)
        made.append(mta)
        return mta

    yield make
    problems = []
    for mta in made:
        try:
            mta.finish()
        except MilterTestFailure as failure:
            problems.append(str(failure))
    if problems:
        # One that no MTA has expected is known to all of them.
        pytest.fail("\n".join(dict.fromkeys(problems)), pytrace=False)


@pytest.fixture
def milter_replay(milter_mta: Callable[..., InMemoryMTA]) -> Callable[..., Replayed]:
    """
    Play a record to milters: ``milter_replay(MyMilter, "mail.jsonl", ignore=["X-Date"])``.

    The test fails with what they do differently. The options are those of `InMemoryMTA.replay`;
    ``options=`` are those of `InMemoryMTA`.
    """
    from yatxmilter.testing import MilterTestFailure

    def play(milters: Any, file: Any, *, options: Any = None, **rules: Any) -> Replayed:
        replayed = milter_mta(milters, **(options or {})).replay(file, **rules)
        try:
            replayed.check()
        except MilterTestFailure as failure:
            pytest.fail(str(failure), pytrace=False)
        return replayed

    return play
