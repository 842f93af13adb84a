"""
Milters that note what they are called with, and what they have not answered yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from yatxmilter._engine.awaitables import is_awaited, outcome_of
from yatxmilter._engine.member import wanted_callbacks
from yatxmilter.defaults import Milter
from yatxmilter.interfaces import IMilterFactory
from yatxmilter.testing._values import Call

__all__ = ["Notebook", "RecordingFactory"]


class Notebook:
    """
    What has been called, and what is waited for.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.waiting: list[Call] = []
        self.milters: list[Any] = []

    def wrap(self, name: str, callback_name: str, callback: Callable[..., Any]) -> Any:
        """
        Make a callback that is noted.
        """

        @wraps(callback)
        def noted(*args: Any) -> Any:
            call = Call(name, callback_name, args)
            self.calls.append(call)
            result = callback(*args)
            if is_awaited(result):
                result = outcome_of(result)
            if isinstance(result, Deferred) and not result.called:
                self.waiting.append(call)
                result.addBoth(self._answered, call)
            return result

        return noted

    def _answered(self, result: Any, call: Call) -> Any:
        self.waiting.remove(call)
        return result


@implementer(IMilterFactory)
class RecordingFactory:
    """
    Build the milters of another factory, with callbacks that are noted.
    """

    def __init__(self, factory: Any, notebook: Notebook) -> None:
        self._factory = factory
        self._notebook = notebook

    def __getattr__(self, name: str) -> Any:
        # The options of the other one count.
        return getattr(self._factory, name)

    def build_milter(self, protocol: object) -> Any:
        """
        Build a milter for a connection.
        """
        milter = self._factory.build_milter(protocol)
        name = getattr(milter, "xxfi_name", None) or type(milter).__name__
        for callback in wanted_callbacks(milter, Milter):
            noted = self._notebook.wrap(name, callback, getattr(milter, callback))
            setattr(milter, callback, noted)
        self._notebook.milters.append(milter)
        return milter
