"""
Having ``import milter`` and ``import Milter`` find ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

__all__ = ["install"]

_OURS: Final = "yatxmilter.pymilter._package"
#: Parts of pymilter's own package that its own family of programs uses.
_PARTS: Final = frozenset(
    [
        *(f"Milter.{name}" for name in ("config", "dsn", "dns", "dynip", "cache", "greylist")),
        *(
            f"Milter.{name}"
            for name in ("greysql", "policy", "plock", "pyip6", "unsign", "sgmllib")
        ),
        "mime",
    ]
)


class _Missing(MetaPathFinder):
    """
    Says of the parts of pymilter that are not here where they are.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """
        Find nothing.

        :raises ModuleNotFoundError: for such a part, with words of its own.
        """
        if fullname in _PARTS:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: yatxmilter has the modules milter and Milter with"
                " Milter.utils, Milter.testctx and Milter.test. This one is in pymilter's own"
                " package alone; put its Python files on the path, they work on yatxmilter's"
                " milter",
                name=fullname,
            )
        return None


def install() -> ModuleType:
    """
    Have ``import milter`` find ours, and ``import Milter`` pymilter's own package or ours.

    Where a ``Milter`` package is installed it is used, on our ``milter``. What has been imported
    before stays: call this before a program for pymilter is imported. It may be called again.

    :return: The package that is found as ``Milter``.
    """
    if "milter" not in sys.modules:
        sys.modules["milter"] = importlib.import_module("yatxmilter.pymilter._milter")
    found: Any = sys.modules.get("Milter")
    if found is None:
        if importlib.util.find_spec("Milter") is not None:
            return importlib.import_module("Milter")
        found = sys.modules["Milter"] = importlib.import_module(_OURS)
        if not any(isinstance(finder, _Missing) for finder in sys.meta_path):
            # Behind all others: what somebody has installed is found.
            sys.meta_path.append(_Missing())
    package: ModuleType = found
    return package
