"""
Unit tests of programs for pymilter: a context that plays an MTA, on `yatxmilter.testing`.

What the program is asked goes through the same negotiation, the same conversation and the same
checks as behind an MTA; `TestCtx` has pymilter's names for it, which begin with ``_``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, ClassVar

from twisted.internet.address import IPv4Address, IPv6Address

from yatxmilter.pymilter import _package
from yatxmilter.pymilter._adapter import AdapterFactory
from yatxmilter.pymilter._callbacks import STAGES, Callbacks, class_callbacks
from yatxmilter.pymilter._names import NUMBERS
from yatxmilter.pymilter._package import utils
from yatxmilter.pymilter._package._recorder import PIECE, Recorder, parts_of
from yatxmilter.pymilter._program import PROGRAM
from yatxmilter.testing import InMemoryMTA, MilterTestFailure

__all__ = ["TestCtx"]

_STAGE_NUMBERS = {
    "negotiate": -1,
    "connect": 0,
    "helo": 1,
    "envfrom": 2,
    "envrcpt": 3,
    "data": 4,
    "eom": 5,
    "eoh": 6,
}


class TestCtx(Recorder):
    """
    An MTA, and the context that it gives the milter which ``Milter.factory`` makes.

    :param logfile: Not used; for programs' tests that give one.
    """

    # pytest must not take it for tests.
    __test__ = False

    default_opts: ClassVar[list[int]] = [_package.CURR_ACTS, 0x1FFFFF, 0, 0]

    def __init__(self, logfile: str = "test/milter.log") -> None:
        self._priv: Any = None
        self._protocol = 0
        self._opts = list(self.default_opts)
        self._begin()
        self._mta: InMemoryMTA | None = None
        self._session: Any = None
        self._handle: Any = None
        self._error: BaseException | None = None
        #: What a whole message came to, as the test kit of yatxmilter tells it.
        self.sent: Any = None

    # ---- for the milter

    def getpriv(self) -> Any:
        """
        Give the milter.
        """
        return self._priv

    def setpriv(self, priv: Any) -> None:
        """
        Keep the milter.
        """
        self._priv = priv

    def _setsymval(self, name: str, value: str) -> None:
        self._macros[name] = value

    def _recipient(self, rcpt: str, params: str | None) -> Any:
        return rcpt, params

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name in _FUNCTIONS and self._handle is not None:
            return _both(found, getattr(self._handle, name))
        return found

    # ---- playing an MTA

    def _callbacks(self) -> Callbacks:
        called = class_callbacks(lambda: _package.factory())
        return Callbacks(
            **{stage: self._watched(stage, getattr(called, stage)) for stage in STAGES}
        )

    def _watched(self, stage: str, callback: Callable[..., Any]) -> Callable[..., Any]:
        def call(handle: Any, *arguments: Any) -> Any:
            self._handle, self._stage = handle, _STAGE_NUMBERS.get(stage)
            if stage == "eom":
                self._body = BytesIO()
            try:
                code = callback(self, *arguments)
            except BaseException as error:
                # The test that has asked for this is to see it.
                self._error = self._error or error
                raise
            finally:
                self._handle = self._stage = None
            if stage == "negotiate":
                self._opts = list(arguments[0])
                self._protocol = self._opts[1]
            return code

        return call

    def _verdict(self, answer: Any) -> int:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return int(answer.verdict)

    def _connect(
        self, host: str = "localhost", helo: str | None = "spamrelay", ip: str = "1.2.3.4"
    ) -> int:
        if utils.ip4re.match(ip):
            address: Any = IPv4Address("TCP", ip, 1234)
        elif utils.ip6re.match(ip):
            address = IPv6Address("TCP", ip, 1234)
        else:
            raise ValueError(f"TestCtx.connect: invalid ip address: {ip}")
        self._end()
        factory = AdapterFactory(
            self._callbacks(), lambda: PROGRAM.policy, inline=True, name="TestCtx"
        )
        self._mta = InMemoryMTA(factory)
        self._session = self._mta.session(host, address, helo, macros=self._macros)
        code = self._verdict(self._session.greeting)
        if code != _package.CONTINUE:
            self._close()
        return code

    def _negotiate(self) -> int:
        return self._connect(helo=None)

    def _helo(self, helo: str) -> int:
        return self._verdict(self._session.helo(helo))

    def _envfrom(self, sender: str, *params: str) -> int:
        self._sender = sender
        return self._verdict(self._session.mail(sender, *params))

    def _envrcpt(self, rcpt: str, *params: str) -> int:
        return self._verdict(self._session.rcpt(rcpt, *params))

    def _data(self) -> int:
        return self._verdict(self._session.data())

    def _header(self, fld: str, val: Any) -> int:
        value = val if isinstance(val, bytes) else str(val).encode("utf-8", "surrogateescape")
        text = value.decode("utf-8", "surrogateescape")
        return self._verdict(self._session.header(fld, text))

    def _eoh(self) -> int:
        return self._verdict(self._session.eoh())

    def _feed_body(self, bfp: Any) -> int:
        while piece := bfp.read(PIECE):
            code = self._verdict(self._session.body(piece))
            if code not in (_package.CONTINUE, NUMBERS["SKIP"]):
                return code
        return _package.CONTINUE

    def _eom(self) -> int:
        self.sent = self._session.end()
        return self._verdict(self.sent)

    def _feedFile(
        self, fp: Any, sender: str = "spam@adv.com", rcpt: str = "victim@lamb.com", *rcpts: str
    ) -> int:
        self._new_message()
        self._msg, fields, header, body = parts_of(fp)
        steps: list[Callable[[], int]] = [partial(self._envfrom, f"<{sender}>")]
        steps += [partial(self._envrcpt, f"<{one}>") for one in (rcpt, *rcpts)]
        steps.append(self._data)
        steps += [partial(self._header, *field) for field in fields]
        steps += [self._eoh, partial(self._feed_body, BytesIO(body))]
        for step in steps:
            code = step()
            if code != _package.CONTINUE:
                return code
        code = self._eom()
        self._finish_body(header, body)
        return code

    def _feedMsg(self, fname: str, sender: str = "spam@adv.com", *rcpts: str) -> int:
        with open(f"test/{fname}", "rb") as file:
            return self._feedFile(file, sender, *rcpts)

    def _abort(self) -> None:
        if self._session is not None and not self._session.closed:
            self._session.vanish()
        self._end()

    def _close(self) -> None:
        if self._session is not None and not self._session.closed:
            self._session.quit()
        self._end()

    def _end(self) -> None:
        mta, self._mta, self._session = self._mta, None, None
        if mta is not None:
            # What the milter raised was raised where the test asked for it.
            with contextlib.suppress(MilterTestFailure):
                mta.finish()


_FUNCTIONS = frozenset(
    [
        *("setreply", "setsymlist", "addheader", "chgheader", "addrcpt", "delrcpt", "chgfrom"),
        *("replacebody", "quarantine", "progress"),
    ]
)


def _both(record: Callable[..., Any], act: Callable[..., Any]) -> Callable[..., Any]:
    """
    Record what is asked for, and do it: what an MTA would not take is refused here, too.
    """

    def call(*arguments: Any) -> Any:
        record(*arguments)
        return act(*arguments)

    return call
