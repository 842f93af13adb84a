"""
Which of Twisted's reactors a process runs: there can be one, and it is chosen before it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final, Literal

from twisted.internet.base import ReactorBase

from yatxmilter._options import choice_option

__all__ = ["REACTORS", "ReactorName", "install_module", "install_reactor", "module_of"]

ReactorName = Literal["asyncio", "epoll", "poll", "select"]

#: The reactors that can be asked for by name, and where Twisted has them.
REACTORS: Final[dict[str, str]] = {
    name: f"twisted.internet.{name}reactor" for name in ("asyncio", "epoll", "poll", "select")
}

_GLOBAL: Final = "twisted.internet.reactor"


def install_reactor(name: str | None) -> None:
    """
    Make a reactor the one of this process.

    :param name: One of `REACTORS`; ``None`` for the one that there is, or Twisted's own choice.
    :raises ValueError: for another name.
    :raises RuntimeError: when there is another one already.
    """
    if name is None:
        return
    module = REACTORS[choice_option("reactor", name, list(REACTORS))]
    present = sys.modules.get(_GLOBAL)
    if present is None:
        install_module(module)
    elif type(present).__module__ != module:
        raise RuntimeError(
            f"reactor is {name!r}, but {type(present).__name__} is installed already: something"
            " has imported twisted.internet.reactor, which is to be imported inside functions"
            " (under twist and twistd, their own option --reactor chooses)"
        )


def install_module(module: str | None) -> None:
    """
    Make the reactor of a module the one of this process, as `module_of` names it.
    """
    if module is not None and _GLOBAL not in sys.modules:
        import_module(module).install()


def module_of(reactor: Any) -> str | None:
    """
    Name the module that installs such a reactor; ``None`` where there is none.
    """
    module = type(reactor).__module__
    known = isinstance(reactor, ReactorBase) and hasattr(sys.modules.get(module), "install")
    return module if known else None
