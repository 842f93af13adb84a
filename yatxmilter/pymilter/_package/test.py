"""
A mixin for unit tests of programs for pymilter: the milter's functions only record what they do.

`Milter.testctx.TestCtx`, which plays a whole MTA, is the better one; this is for tests there are.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import IO, Any

from yatxmilter.pymilter import _package
from yatxmilter.pymilter._package._recorder import Recorder, parts_of, pieces

__all__ = ["TestBase"]

# Callbacks that promise no answer give this one: no step is left out here.
_package.NOREPLY = _package.CONTINUE


class TestBase(Recorder):
    """
    Put it before the milter's class: ``class TestMilter(TestBase, MyMilter)``.

    :param logfile: Where what the milter logs is added.
    """

    # pytest must not take it for tests.
    __test__ = False

    # Of the milter's class.
    negotiate: Callable[[list[int]], int]
    hello: Callable[[str], int]
    envfrom: Callable[..., int]
    envrcpt: Callable[..., int]
    data: Callable[[], int]
    header_bytes: Callable[[str, bytes], int]
    eoh: Callable[[], int]
    body: Callable[[bytes], int]
    eom: Callable[[], int]
    close: Callable[[], object]
    _setctx: Callable[[Any], None]

    def __init__(self, logfile: str = "test/milter.log") -> None:
        self._protocol = 0
        self.logfp: IO[str] | None = open(logfile, "a", encoding="utf-8")  # noqa: SIM115
        self._begin()

    def _close(self) -> None:
        if self.logfp is not None:
            self.logfp.close()
            self.logfp = None

    def log(self, *msg: Any) -> None:
        """
        Write a line into the log.
        """
        print(*msg, file=self.logfp)

    def setsymval(self, name: str, val: str) -> None:
        """
        Give a macro its value.
        """
        self._macros[name] = val

    def connect(self, host: str = "localhost", helo: str = "spamrelay", ip: str = "1.2.3.4") -> int:
        """
        Be an SMTP client that connects and greets.
        """
        self._new_message()
        self._setctx(None)
        self._at(-1, self.negotiate, [_package.CURR_ACTS, -1, 0, 0])
        parent: Any = super()
        code = self._at(0, parent.connect, host, 1, (ip, 1234))
        if code == _package.CONTINUE:
            code = self._at(1, self.hello, helo)
        if code != _package.CONTINUE:
            self.close()
        return code

    def _at(self, stage: int, callback: Callable[..., int], *arguments: Any) -> int:
        self._stage = stage
        try:
            return callback(*arguments)
        finally:
            self._stage = None

    def feedFile(
        self, fp: Any, sender: str = "spam@adv.com", rcpt: str = "victim@lamb.com", *rcpts: str
    ) -> int:
        """
        Send a message, until the milter answers other than CONTINUE.

        :param fp: A file with the message.
        """
        self._new_message()
        self._msg, fields, header, body = parts_of(fp)
        self._sender = f"<{sender}>"
        steps: list[tuple[int, Callable[..., int], tuple[Any, ...]]] = [
            (2, self.envfrom, (self._sender,))
        ]
        steps += [(3, self.envrcpt, (f"<{one}>",)) for one in (rcpt, *rcpts)]
        steps.append((4, self.data, ()))
        steps += [(-2, self.header_bytes, field) for field in fields]
        steps.append((6, self.eoh, ()))
        steps += [(-2, self.body, (piece,)) for piece in pieces(body)]
        for stage, callback, arguments in steps:
            code = self._at(stage, callback, *arguments)
            if code != _package.CONTINUE:
                return code
        self._body = BytesIO()
        code = self._at(5, self.eom)
        self._finish_body(header, body)
        self.close()
        self._close()
        return code

    def feedMsg(self, fname: str, sender: str = "spam@adv.com", *rcpts: str) -> int:
        """
        Send a message that is in a file of the folder ``test``.
        """
        with open(f"test/{fname}", "rb") as file:
            return self.feedFile(file, sender, *rcpts)
