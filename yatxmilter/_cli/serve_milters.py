"""
From the names of milters to a `MilterProtocolFactory`; and once more, for SIGHUP.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults, succeed
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter._cli.serve_options import FACTORY_OPTIONS, ConfigurationError
from yatxmilter._records.failures import FailureRecorder
from yatxmilter.defaults import MilterFactory
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.metrics import MilterMetrics
from yatxmilter.protocol import MilterProtocol, MilterProtocolFactory
from yatxmilter.protocol._life_cycle import factory_name

__all__ = ["Reloadable", "build_factory", "check_milters", "may_import_from_here"]

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
    errors: list[str] = []
    factories = []
    anew: set[str] = set()
    for milter in settings["milters"]:
        try:
            factories.append(_build(milter, anew if again else None))
        except ConfigurationError as error:
            errors.append(f"{milter['place']}: {error}")
    if errors:
        raise ConfigurationError("\n".join(errors))
    factory = MilterProtocolFactory(factories, **{name: settings[name] for name in FACTORY_OPTIONS})
    if settings["log_level"] in ("debug", "info"):
        factory.begin_message_log()
    if settings["record_failures"] is not None:
        factory.addObserver(FailureRecorder(settings["record_failures"]))
    return factory


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
    spec = milter["object"]
    found = _find(spec, anew)
    options = {key: milter[key] for key in milter.keys() - {"object", "place", "when"}}
    if "when" in milter:
        options["when"] = _find(milter["when"], anew)
    try:
        if isinstance(found, type) and IMilter.implementedBy(found):
            return MilterFactory(found, **options)
        if isinstance(found, _Foreign):
            return found.make(**options)
        made = found() if callable(found) and not IMilterFactory.providedBy(found) else found
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


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "it cannot say why"
    return f"{type(error).__name__}: {text}"


def _find(spec: str, anew: set[str] | None) -> Any:
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
        if before is not None and anew is not None and module not in anew:
            found: Any = _anew(module, before)
        else:
            found = importlib.import_module(module)
        if anew is not None:
            anew.add(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{spec}: there is no module {error.name!r}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigurationError(f"{spec}: {_said(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{spec}: {module} has no {name!r}")
        found = getattr(found, part)
    return found


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
    """

    noisy = False
    current: MilterProtocolFactory

    def __init__(self, settings: dict[str, Any], *, build: bool = True) -> None:
        self._settings = settings
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

    def start(self) -> Deferred[None]:
        """
        Start the milter factories.

        :return: A Deferred that fails with a `StartError` when one does not start.
        """
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
        try:
            factory = self._watched(build_factory(settings, again=True))
        except ConfigurationError as error:
            for line in str(error).splitlines():
                _log.error("Nothing is reloaded: {error}", error=line)
            return succeed(False)
        self._coming.append(factory)
        started: Deferred[Any] = factory.start()
        return started.addCallbacks(
            self._take, self._not_started, callbackArgs=(factory,), errbackArgs=(factory,)
        )

    def _take(self, _: None, factory: MilterProtocolFactory) -> bool:
        self._coming.remove(factory)
        before, self.current = self.current, factory
        self._generations.append(factory)
        before.stop().addCallback(self._forget, before)
        _log.info("The configuration and the milters are reloaded, for new connections")
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
            _log.error("Nothing is reloaded: {error}", error=failure.getErrorMessage())
        return False

    def drain(self, timeout: float | None = None) -> Deferred[Any]:
        """
        Come to an end without losing mail.

        :return: A Deferred that fires when all connections are gone, and the milter factories have
            stopped.
        """
        self._draining = True
        return gatherResults([one.drain(timeout) for one in (*self._generations, *self._coming)])

    def snapshot(self) -> dict[str, Any]:
        """
        Give what was counted, as `MilterMetrics.snapshot`.
        """
        assert self._metrics is not None
        return self._metrics.snapshot()
