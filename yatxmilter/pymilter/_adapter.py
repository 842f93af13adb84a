"""
A program's callbacks as a milter of ours: `Adapter`, and the factory that builds it.

The engine calls an `Adapter` as it calls every `Milter`. What it is given becomes what pymilter's
callbacks take, and what these return becomes a return code. Callbacks run where they are called
(``inline``), or one after the other in a thread, and then the engine is given a Deferred.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._wire.macros import MacroStore
from yatxmilter._wire.payloads import to_text
from yatxmilter.constants import ReturnCode
from yatxmilter.defaults import Milter, MilterFactory
from yatxmilter.pymilter._callbacks import Callbacks
from yatxmilter.pymilter._context import Context, error_class
from yatxmilter.pymilter._pace import Pace
from yatxmilter.pymilter._threads import Lane, Threads

if TYPE_CHECKING:
    # It needs a reactor that is not there on all systems.
    from yatxmilter.pymilter._leading import Leading

__all__ = ["Adapter", "AdapterFactory"]

_CODES: Final = {int(code): code for code in ReturnCode}
_OVER: Final = (
    "the callback has taken too long, or the MTA is gone: its answer is no longer awaited"
)
#: The texts that go with a failed callback, by what is answered for it.
_REPLIES: Final = {c.SMFIS_REJECT: ("554", "5.3.0"), c.SMFIS_TEMPFAIL: ("451", "4.3.0")}
_LONGEST_NAME: Final = 40
# What these return is nobody's business.
_UNANSWERED: Final = frozenset(["abort", "close"])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _client(address: IAddress | None) -> tuple[int, Any]:
    """
    Write the address of an SMTP client as the module ``socket`` does.

    :return: Its family, and the address.
    """
    if isinstance(address, IPv4Address):
        return int(socket.AF_INET), (address.host, address.port)
    if isinstance(address, IPv6Address):
        flow, scope = int(address.flowInfo or 0), address.scopeID
        number = int(scope) if str(scope).isdigit() else 0
        return int(socket.AF_INET6), (address.host, address.port, flow, number)
    if isinstance(address, UNIXAddress):
        return int(socket.AF_UNIX), to_text(address.name or b"")
    return 0, None


class _Job:
    """
    One callback that is to run in a thread.

    :ivar arguments: What it is called with, the context first.
    :ivar over: Whether nobody waits for its answer any more.
    """

    __slots__ = ("_adapter", "_callback", "_macros", "arguments", "deferred", "over", "stage")

    def __init__(
        self,
        adapter: Adapter,
        stage: str,
        callback: Callable[..., Any],
        arguments: tuple[Any, ...],
        macros: MacroStore | None = None,
    ) -> None:
        self._adapter = adapter
        self._callback = callback
        self._macros = macros
        self.stage = stage
        self.arguments = arguments
        self.over = False
        self.deferred: Deferred[Any] = Deferred(self._abandon)

    def _abandon(self, deferred: Deferred[Any]) -> None:
        self.over = True
        self._adapter.abandoned(self)

    def run(self) -> None:
        """
        Call the callback, in the thread, and have its answer taken.
        """
        adapter = self._adapter
        if self.over:
            # Nobody ever waited for it to begin.
            return
        adapter.begun(self, self._macros)
        start = perf_counter()
        try:
            result: Any = adapter.answer(self.stage, self._callback(*self.arguments))
        except BaseException:
            # One that asks the process to end, too: the MTA waits for an answer.
            result = Failure()
        adapter.ended(self, perf_counter() - start)
        adapter.hop(self._deliver, result)

    def refuse(self, error: BaseException) -> None:
        """
        Take note that there is no thread for it.
        """
        self._adapter.hop(self._deliver, Failure(error))

    def _deliver(self, result: Any) -> None:
        if self.deferred.called:
            return
        self.arguments[0]._send_signs()
        if isinstance(result, Failure):
            self._adapter.explain()
        self.deferred.callback(result)


class Adapter(Milter):
    """
    One MTA connection with the callbacks of a program written for pymilter.
    """

    factory: AdapterFactory

    def __init__(self, factory: AdapterFactory, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self._callbacks = factory.callbacks
        self._handle: Context | None = None
        self._running: _Job | None = None
        self._lane: Lane | None = None
        self._hop: Callable[..., object] | None = None
        self._leading = factory.leading
        self._stage = ""
        # What waits for a callback that the reactor's loop has left behind.
        self._behind = False
        self._waiting: list[_Job] = []
        if not factory.inline:
            if self._leading is not None:
                self._hop = self._leading.hop
            else:
                # A clock that tests set has no threads: there callbacks run where they are called.
                self._hop = getattr(getattr(protocol, "clock", None), "callFromThread", None)
            if self._hop is not None:
                self._lane = Lane(factory.threads)

    # ---- calling

    def _context_of(self) -> Context:
        handle = self._handle
        if handle is None:
            handle = self._handle = Context(self._ctx(), self._hop)
        return handle

    def _call(self, stage: str, callback: Callable[..., Any], *arguments: Any) -> Any:
        handle = self._handle or self._context_of()
        lane, leading = self._lane, self._leading
        try:
            if lane is None:
                return self.answer(stage, callback(handle, *arguments))
            if leading is None or lane.busy or self._behind or stage in self.factory.pace.slow:
                return self._put(_Job(self, stage, callback, (handle, *arguments)))
            self._stage = stage
            try:
                result = leading.call(self, callback, handle, *arguments)
            finally:
                if handle._signs:
                    handle._send_signs()
            return self.answer(stage, result)
        except BaseException:
            # One that asks the process to end, too: the MTA waits for an answer.
            self.explain()
            failed: Deferred[Any] = Deferred()
            failed.errback(Failure())
            return failed

    def _put(self, job: _Job) -> Deferred[Any]:
        if self._behind:
            self._waiting.append(job)
        else:
            assert self._lane is not None
            self._lane.put(job)
        return job.deferred

    def _notify(self, stage: str, callback: Callable[..., Any], handle: Context) -> Any:
        """
        Call a callback that may be called later, with the macros that there are now.
        """
        if self._behind or (self._lane is not None and self._lane.busy):
            return self._put(_Job(self, stage, callback, (handle,), self._ctx().macros))
        return self._call(stage, callback)

    # ---- while the reactor's loop is elsewhere

    def left_behind(self) -> None:
        """
        Rest: the loop goes on without the callback that is running.
        """
        self._behind = True
        self.factory.pace.note(self._stage, None)
        self.protocol.rest()

    def back(self) -> None:
        """
        Go on: the callback is over.
        """
        self._behind = False
        jobs, self._waiting = self._waiting, []
        for job in jobs:
            self._put(job)
        self.protocol.go_on()

    def answer(self, stage: str, result: Any) -> Any:
        """
        Read what a callback returned.

        :raises milter.error: if it is not a whole number.
        """
        if stage in _UNANSWERED:
            return c.SMFIS_CONTINUE
        if not isinstance(result, int):
            raise error_class()(f"The {stage} callback must return int")
        if type(result) is not int:
            result = int(result)
        code = _CODES.get(result, result)
        if code is c.SMFIS_SKIP and stage != "body":
            return c.SMFIS_CONTINUE
        return code

    def explain(self) -> None:
        """
        Set the text that goes with a failed callback.
        """
        codes = self.factory.reply
        if codes is not None:
            name = "".join(filter(str.isprintable, self.factory.name or ""))[:_LONGEST_NAME]
            name = name.replace("%", "%%")
            engine = self._ctx()
            engine.claim()
            engine.setreply(*codes, f"pymilter: untrapped exception in {name}")

    # ---- for jobs, in their thread

    def hop(self, function: Callable[..., object], *arguments: object) -> None:
        """
        Have something done where the engine is.
        """
        assert self._hop is not None
        self._hop(function, *arguments)

    def begun(self, job: _Job, macros: MacroStore | None) -> None:
        """
        Take note that a callback runs.
        """
        handle: Context = job.arguments[0]
        handle._macros = macros
        self._running = job
        if job.over:
            handle._stale = _OVER

    def ended(self, job: _Job, seconds: float) -> None:
        """
        Take note that it is over.
        """
        self._running = None
        self.factory.pace.note(job.stage, seconds)
        handle: Context = job.arguments[0]
        handle._macros = handle._stale = None
        if job.stage == "close":
            self._forget(handle)

    def abandoned(self, job: _Job) -> None:
        """
        Take note that nobody waits for a callback any more: what it does has no effect.
        """
        if self._running is job:
            job.arguments[0]._stale = _OVER

    def _forget(self, handle: Context) -> None:
        handle._end()
        self._handle = None

    # ---- the engine's callbacks

    def xxfi_negotiate(self, actions: int, steps: int) -> Any:
        """
        Let the program change a list of four numbers.
        """
        callback = self._callbacks.negotiate
        if callback is None:
            return c.SMFIS_ALL_OPTS
        options = [actions, steps, 0, 0]
        answer = self._call("negotiate", callback, options)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._negotiated, options)
        return self._negotiated(answer, options)

    def _negotiated(self, code: Any, options: list[int]) -> Any:
        if code is c.SMFIS_ALL_OPTS:
            return code
        if code is not c.SMFIS_CONTINUE:
            return c.SMFIS_REJECT
        return code, int(options[0]), int(options[1])

    def xxfi_connect(self, hostname: str, hostaddr: IAddress | None) -> Any:
        """
        Tell the program of an SMTP client.
        """
        callback = self._callbacks.connect
        if callback is None:
            return c.SMFIS_CONTINUE
        return self._call("connect", callback, hostname, *_client(hostaddr))

    def xxfi_helo(self, helohost: str) -> Any:
        """
        Tell the program of HELO.
        """
        callback = self._callbacks.helo
        return c.SMFIS_CONTINUE if callback is None else self._call("helo", callback, helohost)

    def xxfi_envfrom(self, argv: list[str]) -> Any:
        """
        Tell the program of MAIL.
        """
        return self._envelope("envfrom", self._callbacks.envfrom, argv)

    def xxfi_envrcpt(self, argv: list[str]) -> Any:
        """
        Tell the program of RCPT.
        """
        return self._envelope("envrcpt", self._callbacks.envrcpt, argv)

    def _envelope(
        self, stage: str, callback: Callable[..., Any] | None, argv: Iterable[str]
    ) -> Any:
        if callback is None:
            return c.SMFIS_CONTINUE
        return self._call(stage, callback, *map(_bytes, argv))

    def xxfi_data(self) -> Any:
        """
        Tell the program of DATA.
        """
        callback = self._callbacks.data
        return c.SMFIS_CONTINUE if callback is None else self._call("data", callback)

    def xxfi_unknown(self, arg: str) -> Any:
        """
        Tell the program of a command that the MTA does not know.
        """
        callback = self._callbacks.unknown
        return c.SMFIS_CONTINUE if callback is None else self._call("unknown", callback, arg)

    def xxfi_header(self, headerf: str, headerv: str) -> Any:
        """
        Tell the program of a header field.
        """
        callback = self._callbacks.header
        if callback is None:
            return c.SMFIS_CONTINUE
        value = headerv.encode("utf-8", "surrogateescape")
        return self._call("header", callback, headerf, value)

    def xxfi_eoh(self) -> Any:
        """
        Tell the program that the header is over.
        """
        callback = self._callbacks.eoh
        return c.SMFIS_CONTINUE if callback is None else self._call("eoh", callback)

    def xxfi_body(self, bodyp: bytes) -> Any:
        """
        Give the program a piece of the body.
        """
        callback = self._callbacks.body
        return c.SMFIS_CONTINUE if callback is None else self._call("body", callback, bodyp)

    def xxfi_eom(self) -> Any:
        """
        Let the program change the message, and answer.
        """
        callback = self._callbacks.eom
        return c.SMFIS_CONTINUE if callback is None else self._call("eom", callback)

    def xxfi_abort(self) -> Any:
        """
        Tell the program that the message is given up, behind the callback that still runs.
        """
        callback = self._callbacks.abort
        if callback is None:
            return None
        return self._notify("abort", callback, self._context_of())

    def xxfi_close(self) -> Any:
        """
        Tell the program that its connection is over; not if it was told nothing before.
        """
        handle, callback = self._handle, self._callbacks.close
        if handle is None:
            return None
        answer = self._notify("close", callback or _nothing, handle)
        if not isinstance(answer, Deferred) or answer.called:
            self._forget(handle)
        return answer


def _nothing(context: Context) -> int:
    return c.SMFIS_CONTINUE


class AdapterFactory(MilterFactory):
    """
    Builds the milters of a program: an `IMilterFactory`.

    :param callbacks: What is called.
    :param policy: Tells what is answered for a callback that fails, at each connection anew.
    :param inline: Call callbacks where the reactor is: for those that never wait.
    :param leading: The loop that callbacks are called in, and that may leave them behind.
    :param options: Those of `MilterFactory`.
    :ivar threads: The threads that callbacks run in.
    :ivar pace: Which callbacks take long.
    :ivar reply: The codes of the text that goes with a failed callback; where ``on_error`` says
        what is answered there is no such text.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        policy: Callable[[], int],
        *,
        inline: bool = False,
        leading: Leading | None = None,
        **options: Any,
    ) -> None:
        super().__init__(Adapter, **options)
        self.callbacks = callbacks
        self.inline = inline
        self.leading = leading
        self.threads = Threads() if leading is None else leading.threads
        self.pace = Pace()
        self.reply: tuple[str, str] | None = None
        self._policy = None if "on_error" in options else policy

    def build_milter(self, protocol: Any) -> Adapter:
        """
        Build the milter of one connection.
        """
        if self._policy is not None:
            self.on_error = ReturnCode(self._policy())
            self.reply = _REPLIES.get(self.on_error)
        return Adapter(self, protocol)

    def start(self) -> None:
        """
        Be ready for connections (again).
        """
        self.threads.start()

    def stop(self) -> None:
        """
        Let the threads end.
        """
        self.threads.stop()
