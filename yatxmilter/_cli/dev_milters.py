"""
The milters of a file, loaded once more each time with all that belongs to them.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from yatxmilter._cli.serve_milters import build_factory
from yatxmilter._cli.serve_options import ConfigurationError
from yatxmilter._cli.serve_service import parse
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.protocol import MilterProtocolFactory

__all__ = ["MilterFile"]

_LIBRARIES = ("site-packages", "dist-packages")


class MilterFile:
    """
    A file with milters in it.

    :param spec: The path, and behind a colon the names of the milters, with commas; those that the
        file has if there are none.
    :param words: More options of ``yatxmilter serve``.
    :raises ConfigurationError: when that is not a Python file.
    """

    def __init__(self, spec: str, words: tuple[str, ...] = ()) -> None:
        path, _, names = spec.partition(":")
        self.path = Path(os.path.abspath(path))
        self._names = [name for name in names.split(",") if name]
        self._words = words
        if self.path.suffix != ".py" or not self.path.is_file():
            what = "is not a Python file" if self.path.exists() else "is not there"
            raise ConfigurationError(f"{path!r} {what}, expected PATH.py or PATH.py:NAME")
        self._module = self.path.stem
        # What was there before belongs to us, and is not loaded again.
        self._ours = {*sys.modules}

    def files(self) -> set[Path]:
        """
        Give the file, the others in its folder, and those of modules that it has loaded.
        """
        loaded = {Path(str(module.__file__)) for _, module in self._modules()}
        return {self.path, *self.path.parent.glob("*.py"), *loaded}

    def _modules(self) -> Iterator[tuple[str, ModuleType]]:
        """
        Go through the loaded modules that are below the folder, libraries and ours left out.
        """
        for name, module in sys.modules.copy().items():
            file = getattr(module, "__file__", None)
            if name in self._ours or not file:
                continue
            path = Path(file)
            inside = self.path.parent in path.parents
            if inside and not any(part in _LIBRARIES for part in path.parts):
                yield name, module

    def load(self) -> MilterProtocolFactory:
        """
        Load it, or load it once more; connections that there are keep what they have.

        :raises ConfigurationError: with words and, where it comes from the file, the traceback.
            Then what was loaded before is still there.
        """
        before = dict(self._modules())
        for name in before:
            del sys.modules[name]
        folder = str(self.path.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        importlib.invalidate_caches()
        # A file that is saved twice in a second, at the same length, is taken for the compiled one.
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            return self._build()
        except (ConfigurationError, KeyboardInterrupt):
            self._restore(before)
            raise
        except BaseException as error:
            self._restore(before)
            raise ConfigurationError(_told(error)) from error
        finally:
            sys.dont_write_bytecode = writes

    def _restore(self, before: dict[str, ModuleType]) -> None:
        for name, _ in self._modules():
            del sys.modules[name]
        sys.modules.update(before)

    def _build(self) -> MilterProtocolFactory:
        module = importlib.import_module(self._module)
        if Path(str(module.__file__)) != self.path:
            raise ConfigurationError(
                f"{self.path.name} cannot be imported: there is another module {self._module!r},"
                f" {module.__file__}; give the file another name"
            )
        names = self._names or [self._only(module)]
        words = [f"--milter={self._module}:{name}" for name in names]
        return build_factory(parse([*words, "--listen=unix:/unused", *self._words]))

    def _only(self, module: Any) -> str:
        found = vars(module).items()
        names: list[str] = [name for name, value in found if _is_milter(value, module)]
        if len(names) == 1:
            return names[0]
        if not names:
            raise ConfigurationError(
                f"{self.path.name} has no milter in it: neither a subclass of Milter nor a factory"
            )
        raise ConfigurationError(
            f"{self.path.name} has several milters, {', '.join(names)}: name those that are meant,"
            f" as in {self.path.name}:{names[0]}"
        )


def _is_milter(value: Any, module: Any) -> bool:
    if isinstance(value, type):
        return IMilter.implementedBy(value) and value.__module__ == module.__name__
    return IMilterFactory.providedBy(value)


def _told(error: BaseException) -> str:
    """
    Give a traceback without the steps of the import machinery and ours.
    """
    told = traceback.TracebackException.from_exception(error)
    frames = [
        frame
        for frame in told.stack
        if not frame.filename.startswith("<frozen importlib")
        and frame.filename not in (__file__, importlib.__file__)
    ]
    told.stack = traceback.StackSummary.from_list(frames)
    return "".join(told.format()).rstrip()
