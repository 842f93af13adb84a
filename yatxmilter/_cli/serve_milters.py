"""
From the names of milters to a `MilterProtocolFactory`; and once more, for SIGHUP.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults, succeed
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._cli.serve_changes import changes, needing_restart, stamps
from yatxmilter._cli.serve_options import FACTORY_OPTIONS, ConfigurationError
from yatxmilter._cli.serve_tables import condition_of, nearest, on_error_of
from yatxmilter._records.failures import FailureRecorder
from yatxmilter.defaults import MilterFactory
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.metrics import MilterMetrics
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory
from yatxmilter.protocol._life_cycle import factory_name
from yatxmilter.remote import RemoteMilterFactory

__all__ = [
    "Reloadable",
    "build_factory",
    "check_milters",
    "loading_errors",
    "may_import_from_here",
]

_log = Logger()
#: What stands before the module of a class that is written for pymilter.
_PYMILTER = "yatxmilter.pymilter"


class _Foreign(NamedTuple):
    """
    A class that is written for another library.

    :ivar make: Makes a milter factory of it, and takes the options that milters have.
    """

    make: Callable[..., Any]


def may_import_from_here() -> None:
    """
    Have modules of the working directory found: first of all, as with ``python -m``, but not while
    this is still root. Then only what is found nowhere else comes from there.
    """
    here = os.getcwd()
    if os.geteuid() != 0:
        if here not in sys.path and "" not in sys.path:
            sys.path.insert(0, here)
        return
    if sys.path[:1] in ([""], [here]):
        # Python itself has put it there, for ``-m`` or ``-c``.
        del sys.path[0]
    if here not in sys.path:
        sys.path.append(here)


def build_factory(settings: dict[str, Any], *, again: bool = False) -> MilterProtocolFactory:
    """
    Load the milters and make the factory.

    :param again: Load the modules anew.
    :raises ConfigurationError: that tells of every milter that cannot be had.
    """
    may_import_from_here()
    if again:
        importlib.invalidate_caches()
    factories, errors = _load(settings["milters"], set() if again else None)
    if errors:
        raise ConfigurationError("\n".join(errors))
    options = {name: settings[name] for name in FACTORY_OPTIONS}
    try:
        factory = MilterProtocolFactory(factories, **options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    if settings["log_level"] in ("debug", "info"):
        factory.begin_message_log()
    if settings["record_failures"] is not None:
        factory.addObserver(FailureRecorder(settings["record_failures"]))
    return factory


def loading_errors(milters: Iterable[dict[str, Any]]) -> list[str]:
    """
    Load milters, and tell what is wrong with them: a line for each that cannot be had.
    """
    may_import_from_here()
    return _load(milters, None)[1]


def _load(milters: Iterable[dict[str, Any]], anew: set[str] | None) -> tuple[list[Any], list[str]]:
    factories: list[Any] = []
    errors: list[str] = []
    for milter in milters:
        try:
            factories.append(_build(milter, anew))
        except ConfigurationError as error:
            errors += [f"{milter['place']}: {line}" for line in str(error).splitlines()]
    return factories, errors


#: What a table has besides the options of a milter factory.
_OTHER: Final = {"object", "remote", "options", "place"}


def check_milters(factory: MilterProtocolFactory, settings: dict[str, Any]) -> None:
    """
    Build each milter once, as for a connection, to see whether that fails.

    One whose factory has to be started before is not tried: it may need what it does not have yet.

    :raises ConfigurationError: that tells of every milter that cannot be built.
    """
    protocol = MilterProtocol(factory)
    errors = []
    for milter, made in zip(settings["milters"], factory.milter_factories, strict=True):
        if hasattr(made, "start"):
            continue
        try:
            protocol.addMilter(made.build_milter(protocol))
        except BaseException as error:
            words = f"{factory_name(made)} could not be built: {_said(error)}"
            errors.append(f"{milter['place']}: {words}")
    if errors:
        raise ConfigurationError("\n".join(errors))


def _build(milter: dict[str, Any], anew: set[str] | None) -> Any:
    options: dict[str, Any] = {
        key: None if value == "none" and key != "name" else value
        for key, value in milter.items()
        if key not in _OTHER
    }
    try:
        if "on_error" in milter:
            options["on_error"] = on_error_of("on_error", milter["on_error"])
        if "when" in milter:
            options["when"] = condition_of("when", milter["when"], lambda name: _find(name, anew))
        if "remote" in milter:
            return RemoteMilterFactory(milter["remote"], **options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    spec = milter["object"]
    return _make(spec, _find(spec, anew), options, milter.get("options", {}))


def _make(spec: str, found: Any, options: dict[str, Any], own: dict[str, Any]) -> Any:
    """
    Make a milter factory.

    :param options: What milter factories are told.
    :param own: What the milter, or what makes its factory, is told besides.
    """
    try:
        if isinstance(found, type) and IMilter.implementedBy(found):
            if own:
                _check_call(spec, found, (None, None), own)
                options = {"name": getattr(found, "xxfi_name", None), **options}
            return MilterFactory(partial(found, **own) if own else found, **options)
        if isinstance(found, _Foreign):
            if own:
                raise ConfigurationError(f"{spec} is a class for pymilter, which has no options")
            return found.make(**options)
        makes = callable(found) and not IMilterFactory.providedBy(found)
        if own:
            if not makes:
                raise ConfigurationError(f"{spec} is not called, so it takes no options")
            _check_call(spec, found, (), own)
        made = found(**own) if makes else found
        if not IMilterFactory.providedBy(made):
            raise ConfigurationError(
                f"{spec} is {made!r}, expected a Milter subclass, an IMilterFactory or a function"
                " that makes one"
            )
        if options:
            names = ", ".join(sorted(options))
            raise ConfigurationError(f"{spec} is a factory, which has its own {names}")
    except (ConfigurationError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # SystemExit among them, which some libraries raise: it would end us without a word.
        raise ConfigurationError(f"{spec} failed: {_said(error)}") from error
    return made


def _check_call(
    spec: str, function: Callable[..., Any], arguments: tuple[Any, ...], own: dict[str, Any]
) -> None:
    """
    Tell of options that a function does not take, or of those that it needs.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some of those that are not written in Python say nothing of what they take.
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rows = [row for row in signature.parameters.values() if row.kind in kinds]
    known = {row.name: row for row in rows[len(arguments) :]}
    wrong = []
    if not any(row.kind is row.VAR_KEYWORD for row in signature.parameters.values()):
        for name in own.keys() - known.keys():
            hint = nearest(name, known) if known else "it takes none"
            wrong.append(f"{spec} has no option {name!r}, {hint}")
    for name, row in known.items():
        if row.default is row.empty and name not in own:
            wrong.append(f"{spec} needs the option {name!r}; write it below [milter.options]")
    if wrong:
        raise ConfigurationError("\n".join(sorted(wrong)))


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "it cannot say why"
    return f"{type(error).__name__}: {text}"


def _find(spec: str, anew: set[str] | None) -> Any:
    """
    Import what a name like ``module:name`` stands for, anew where its module is to be loaded anew.
    """
    module, colon, name = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if not module or not name:
        raise ConfigurationError(f"{spec!r} names no milter, expected module:name")
    if module == _PYMILTER and ("." in name or ":" in name):
        # A class of a program for pymilter; only now its imports can be found.
        from yatxmilter.pymilter import factory, install

        install()
        return _Foreign(partial(factory, _find(name, anew)))
    try:
        before = sys.modules.get(module)
        # One without a file, such as ``builtins``, is the interpreter's own.
        loaded = before is not None and getattr(before, "__file__", None) is not None
        if loaded and anew is not None and module not in anew:
            found: Any = _anew(module, before)
        else:
            found = importlib.import_module(module)
        if anew is not None:
            anew.add(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{spec}: {_no_module(module, error.name)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigurationError(f"{spec}: {_said(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [one for one in dir(found) if one[0] != "_"], 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"{spec}: {module} has no {name!r}{hint}")
        found = getattr(found, part)
    return found


def _no_module(module: str, missing: str | None) -> str:
    if missing is None or not f"{module}.".startswith(f"{missing}."):
        # The milter's module is there, and wants another.
        return f"there is no module {missing!r}, which it imports"
    names = [path.stem for path in Path.cwd().glob("*.py")]
    near = difflib.get_close_matches(missing, names, 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    if missing.endswith(".py") or f"{missing}.py" == module:
        hint = ", write it without .py"
    return f"there is no module {missing!r}{hint}"


def _anew(module: str, before: Any) -> Any:
    """
    Load a module once more, beside the old one: connections there are keep what they have.
    """
    del sys.modules[module]
    try:
        return importlib.import_module(module)
    except BaseException:
        sys.modules[module] = before
        raise


class Reloadable(Factory):
    """
    Builds connections by the factory that is in force; counts, where the settings say so.

    :param build: Whether the milters are loaded now, or by `build`.
    :param role: What this process is.
    :param reactor: The one whose lag is measured.
    """

    noisy = False
    current: MilterProtocolFactory

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        build: bool = True,
        role: str = "server",
        reactor: Any = None,
    ) -> None:
        self._settings = settings
        self._began = settings
        self._role = role
        self._reactor = reactor
        self._end_watch: Callable[[], None] | None = None
        self._metrics = MilterMetrics() if settings["metrics"] else None
        self._generations: list[MilterProtocolFactory] = []
        # One that is to be the next, once its milters have started.
        self._coming: list[MilterProtocolFactory] = []
        self._one_by_one = DeferredLock()
        self._draining = False
        if build:
            self.build()

    def build(self) -> None:
        """
        Load the milters.

        :raises ConfigurationError: that tells of every milter that cannot be had.
        """
        self.current = self._watched(build_factory(self._settings))
        self._generations.append(self.current)
        self._stamps = stamps(self._settings["milters"])

    def start(self) -> Deferred[None]:
        """
        Start the milter factories.

        :return: A Deferred that fails with a `StartError` when one does not start.
        """
        if self._metrics is not None and self._reactor is not None:
            self._end_watch = self._metrics.watch_reactor(self._reactor)
        return self.current.start()

    def _watched(self, factory: MilterProtocolFactory) -> MilterProtocolFactory:
        if self._metrics is not None:
            self._metrics.watch(factory)
        return factory

    @property
    def connections(self) -> set[Any]:
        """
        All connections there are.
        """
        return set().union(*(one.connections for one in self._generations))

    def buildProtocol(self, addr: Any) -> Any:
        """
        Build a connection.
        """
        return self.current.buildProtocol(addr)

    def reload(self, settings: dict[str, Any]) -> Deferred[bool]:
        """
        Take other settings and load the modules once more, for connections that come; what is
        broken, or does not start, is logged, and nothing changes.

        :return: A Deferred that tells whether it was done.
        """
        reloaded: Deferred[bool] = self._one_by_one.run(self._reload, settings)
        return reloaded

    def _reload(self, settings: dict[str, Any]) -> Deferred[Any]:
        if self._draining:
            return succeed(False)
        _log.info("Reloading the configuration and the milters ({role})", role=self._role)
        try:
            factory = self._watched(build_factory(settings, again=True))
        except ConfigurationError as error:
            self.not_reloaded(str(error))
            return succeed(False)
        self._coming.append(factory)
        started: Deferred[Any] = factory.start()
        return started.addCallbacks(
            self._take,
            self._not_started,
            callbackArgs=(factory, settings),
            errbackArgs=(factory,),
        )

    def not_reloaded(self, why: str) -> None:
        """
        Take note of a reload that cannot be.

        :param why: A line for each reason.
        """
        for line in why.splitlines():
            _log.error("Nothing is reloaded: {error}", error=line, role=self._role)
        if self._metrics is not None:
            self._metrics.reloaded(False)

    def _take(self, _: None, factory: MilterProtocolFactory, settings: dict[str, Any]) -> bool:
        self._coming.remove(factory)
        before, self.current = self.current, factory
        self._generations.append(factory)
        before.stop().addCallback(self._forget, before)
        now = stamps(settings["milters"])
        changed = changes(self._settings, settings, self._stamps, now)
        restart = needing_restart(self._began, settings)
        self._settings, self._stamps = settings, now
        _log.info(
            "Reloaded, for new connections: {changed}{restart} ({role})",
            changed="; ".join(changed) or "nothing has changed",
            restart=f"; a restart is needed for {', '.join(restart)}" if restart else "",
            role=self._role,
        )
        if self._metrics is not None:
            self._metrics.reloaded(True)
        return True

    def _forget(self, _: None, factory: MilterProtocolFactory) -> None:
        self._generations.remove(factory)
        if self._metrics is not None:
            self._metrics.forget(factory)

    def _not_started(self, failure: Failure, factory: MilterProtocolFactory) -> bool:
        self._coming.remove(factory)
        if self._metrics is not None:
            self._metrics.forget(factory)
        if not failure.check(CancelledError):
            self.not_reloaded(failure.getErrorMessage())
        return False

    def drain(self, timeout: float | None = None) -> Deferred[Any]:
        """
        Come to an end without losing mail.

        :return: A Deferred that fires when all connections are gone, and the milter factories have
            stopped.
        """
        first = not self._draining
        self._draining = True
        if self._end_watch is not None:
            self._end_watch()
        if first:
            _log.info(
                "Draining: {count} connections have {seconds} to come to their end ({role})",
                count=len(self.connections),
                seconds="any time" if timeout is None else f"{timeout:g} seconds",
                role=self._role,
            )
        drained: Deferred[Any] = gatherResults(
            [one.drain(timeout) for one in (*self._generations, *self._coming)]
        )
        return drained.addCallback(self._drained) if first else drained

    def _drained(self, result: Any) -> Any:
        _log.info("Stopped ({role})", role=self._role)
        return result

    def snapshot(self) -> dict[str, Any]:
        """
        Give what was counted, as `MilterMetrics.snapshot`.
        """
        assert self._metrics is not None
        return self._metrics.snapshot()
