"""
A class written for pymilter as a milter factory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._callbacks import class_callbacks
from yatxmilter.pymilter._installing import install
from yatxmilter.pymilter._program import PROGRAM

__all__ = ["factory"]


def factory(
    milter: Callable[[], Any],
    *,
    inline: bool = False,
    name: str | None = None,
    **options: Any,
) -> AdapterFactory:
    """
    Make an `IMilterFactory` of a subclass of pymilter's ``Milter.Base``.

    It goes where every milter factory goes: in a list with milters of yatxmilter, under ``serve``,
    into the test kit. Callbacks run in threads, one for each connection that has something to do;
    where there is no reactor that runs threads, as in the test kit, they run where they are called.

    :param milter: The class, or a function that gives an object of one, as ``Milter.factory``.
    :param inline: Run callbacks where the reactor is: for those that never wait for anything.
    :param name: The milter's name, by default the class's.
    :param options: ``on_error``, ``timeout``, ``when`` and ``shadow`` of `MilterFactory`. Without
        an ``on_error`` a failed callback is answered as ``milter.set_exception_policy`` says.
    :raises TypeError: for what makes no such objects.
    """
    if not callable(milter) or (isinstance(milter, type) and not hasattr(milter, "_setctx")):
        raise TypeError(
            f"milter is {milter!r}, expected a subclass of Milter.Base, or a function that gives an"
            " object of one"
        )
    install()
    if name is None:
        name = getattr(milter, "__name__", type(milter).__name__)
    return AdapterFactory(
        class_callbacks(milter), lambda: PROGRAM.policy, inline=inline, name=name, **options
    )
