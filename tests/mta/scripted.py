"""
The milter that the MTAs talk to: ``python -m tests.mta.scripted SOCKET PORT``.

It listens on a UNIX socket and on a TCP port, and does what a scenario says (see
:mod:`tests.mta.control`), which comes as a line of JSON on standard input.  A new scenario holds
for the connections that come after it.  On standard output goes a line of JSON for each callback,
for each macro asked for, and for each warning or error in the log.  It ends with its input.

Only what a user of yatxmilter would use is used here: a scenario is turned into subclasses of
``Milter`` that override the callbacks it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from yatxmilter import Milter, MilterFactory, MilterProtocol, MilterProtocolFactory, constants
from yatxmilter import noreply as promise_noreply

#: Body chunks longer than this are reported by their size and digest.
LONG = 4096

Emit = Callable[[dict[str, Any]], None]


def from_json(value: Any) -> Any:
    """
    Give an argument of a step; bytes come as an object that holds them in base64.
    """
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def to_json(value: object) -> object:
    """
    Give a callback's argument in a form that JSON can carry.
    """
    if isinstance(value, bytes):
        if len(value) > LONG:
            return {"size": len(value), "sha256": hashlib.sha256(value).hexdigest()}
        return value.decode("latin-1")
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, list):
        return [to_json(item) for item in value]
    return str(value)


class Scripted(Milter):
    """
    A milter that reports its callbacks and answers as its part of the scenario says.
    """

    #: Both are set in the subclass that is made for a scenario.
    script: dict[str, Any] = {}
    emit: Emit = print
    connection = 0

    def report(self, what: str, args: tuple[object, ...]) -> None:
        """
        Tell the test what happened.
        """
        self.emit(
            {
                "milter": self.script["name"],
                "connection": self.connection,
                "callback": what,
                "args": [to_json(arg) for arg in args],
            }
        )

    def do(self, step: Any) -> Any:
        """
        Carry out one step, and give the return code if it is one.
        """
        if isinstance(step, str):
            return getattr(constants, f"SMFIS_{step}")
        what, *args = step
        if what == "agree":
            return (constants.SMFIS_CONTINUE, *args)
        if what == "raise":
            raise RuntimeError(*args)
        result = getattr(self, what)(*map(from_json, args))
        if what == "smfi_getsymval":
            self.report(what, (*args, result))
        return None

    async def do_later(self, steps: list[Any]) -> Any:
        """
        Carry out steps that take time, the first one not before the next turn of the reactor.
        """
        await deferLater(reactor, 0)
        result = None
        for step in steps:
            if step[0] == "wait":
                await deferLater(reactor, step[1])
            elif step[0] == "hang":
                await Deferred[None]()
            else:
                result = self.do(step)
        return result

    def play(self, steps: list[Any]) -> Any:
        """
        Carry out the steps of a callback, in the way that the scenario asks for.
        """
        how = self.script["how"]
        if how == "coroutine":
            return self.do_later(steps)
        if how == "deferred" or any(step[0] in ("wait", "hang") for step in steps):
            return Deferred.fromCoroutine(self.do_later(steps))
        result = None
        for step in steps:
            result = self.do(step)
        return result


def make_callback(name: str, steps: Any) -> Callable[..., Any]:
    """
    Make a callback: the steps are a list, or an object of such lists by its first argument.
    """

    def callback(self: Scripted, *args: Any) -> Any:
        self.report(name, args)
        chosen = steps
        if isinstance(steps, dict):
            key = args[0][0] if isinstance(args[0], list) else args[0]
            chosen = steps.get(key, [])
        return self.play(chosen) if chosen else None

    callback.__name__ = name
    return callback


def make_milter(script: dict[str, Any], emit: Emit) -> type[Scripted]:
    """
    Make the class of one milter of a scenario.
    """
    members: dict[str, Any] = {"script": script, "emit": staticmethod(emit)}
    members["xxfi_name"] = script["name"]
    if script["flags"] is not None:
        members["xxfi_flags"] = script["flags"]
    for name, steps in script["callbacks"].items():
        members[name] = make_callback(name, steps)
    for name in script["noreply"]:
        members[name] = promise_noreply(members[name])
    return type(script["name"], (Scripted,), members)


class ScriptedFactory(MilterFactory):
    """
    Builds milters that know the number of their connection.
    """

    switchboard: Switchboard

    def build_milter(self, protocol: MilterProtocol) -> Milter:
        """
        Build a milter for a connection.
        """
        milter = super().build_milter(protocol)
        assert isinstance(milter, Scripted)
        milter.connection = self.switchboard.connections
        return milter


class Switchboard(Factory):
    """
    Gives each connection to the factory of the scenario that holds at the moment.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._current: MilterProtocolFactory | None = None
        self.connections = 0

    def load(self, scenario: dict[str, Any]) -> None:
        """
        Make a scenario the current one.
        """

        def emit(event: dict[str, Any]) -> None:
            self._emit({"scenario": scenario["number"], **event})

        try:
            self._current = self._build(scenario, emit)
        except Exception as error:
            emit({"callback": "loaded", "args": [repr(error)]})
        else:
            emit({"callback": "loaded", "args": []})

    def _build(self, scenario: dict[str, Any], emit: Emit) -> MilterProtocolFactory:
        factories = []
        for script in scenario["milters"]:
            factory = ScriptedFactory(make_milter(script, emit), **script["options"])
            factory.switchboard = self
            factories.append(factory)
        return MilterProtocolFactory(factories, **scenario["options"])

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """
        Build the protocol for a connection from an MTA.
        """
        self.connections += 1
        return None if self._current is None else self._current.buildProtocol(addr)


class Control(LineOnlyReceiver):
    """
    Talks to the test over standard input and output.
    """

    delimiter = b"\n"
    MAX_LENGTH = 100_000_000

    def __init__(self) -> None:
        self.switchboard = Switchboard(self.emit)

    def emit(self, event: dict[str, Any]) -> None:
        """
        Tell the test of an event.
        """
        self.sendLine(json.dumps(event).encode())

    def log(self, event: LogEvent) -> None:
        """
        Tell the test of what a user would read in the log.
        """
        if event["log_level"] >= LogLevel.warn:
            failure = event.get("log_failure")
            trace = failure.getTraceback() if isinstance(failure, Failure) else ""
            self.emit({"callback": "log", "args": [f"{formatEvent(event)}\n{trace}"]})

    def lineReceived(self, line: bytes) -> None:
        """
        Take a scenario, or answer the question whether all has been told.
        """
        order = json.loads(line)
        if "ping" in order:
            self.emit({"callback": "pong", "args": [order["ping"]]})
        else:
            self.switchboard.load(order)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """
        End with the test.
        """
        if reactor.running:
            reactor.stop()


def main(path: str, port: str) -> None:
    """
    Serve until standard input ends.
    """
    control = Control()
    globalLogBeginner.beginLoggingTo([control.log], redirectStandardIO=False)
    if os.path.exists(path):
        # A predecessor was killed.
        os.unlink(path)
    reactor.listenUNIX(path, control.switchboard, mode=0o666)
    reactor.listenTCP(int(port), control.switchboard, interface="127.0.0.1")
    StandardIO(control)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
