"""
What several test modules share: rows of tables, and ways to cut a byte stream.

A table of a test is a dict from input to expected result. `table_of` runs a function over the
inputs and gives a dict of the same shape, so that one comparison shows every row that is wrong and
not only the first. A row that must be refused has the exception's class for its result.
"""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

#: The same examples on each run, and no clock: a slow machine is not a failure.
STEADY = settings(derandomize=True, deadline=None, max_examples=60, database=None)

#: Any bytes that can stand in a string on the wire.
STRINGS = st.binary(max_size=30).map(lambda data: data.replace(b"\0", b""))


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function; answer with its result, or with the class of what it raised.
    """
    try:
        return function(*args)
    except Exception as error:
        return type(error)


def table_of(function: Callable[..., Any], inputs: Iterable[Any]) -> dict[Any, Any]:
    """
    Run a function of one argument over all inputs: a dict from input to `outcome`.
    """
    return {value: outcome(function, value) for value in inputs}


def byte_by_byte(stream: bytes) -> list[bytes]:
    """
    Cut a stream into single bytes.
    """
    return [stream[place : place + 1] for place in range(len(stream))]


def every_split(stream: bytes) -> Iterator[list[bytes]]:
    """
    Cut a stream in two, at each place where it can be cut.
    """
    for place in range(1, len(stream)):
        yield [stream[:place], stream[place:]]


def equal_pieces(stream: bytes, size: int) -> list[bytes]:
    """
    Cut a stream into pieces of one size, the last perhaps shorter.
    """
    return [stream[place : place + size] for place in range(0, len(stream), size)]


def done_in_pieces(work: Generator[None, None, Any]) -> tuple[int, Any]:
    """
    Do work that pauses between its pieces: how often it has, and what came of it.
    """
    pauses = 0
    while True:
        try:
            next(work)
        except StopIteration as done:
            return pauses, done.value
        pauses += 1


class InterruptedInput(io.BytesIO):
    """
    A standard input while whose first line is read Ctrl-C is pressed.

    :ivar read_whole: How many lines were read to their ends.
    """

    read_whole = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        """
        Be interrupted; whoever goes on has come to the end.
        """
        signal.raise_signal(signal.SIGINT)
        self.read_whole += 1
        return b""


def close_reactor(reactor: Any) -> None:
    """
    Give back the descriptors that wake a reactor which runs no more; Twisted 22.10 keeps them.
    """
    for reader in list(reactor._internalReaders):
        reader.connectionLost(None)


def elsewhere(call: Callable[[], object]) -> list[Exception]:
    """
    Call something in a thread; give what it raised.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised
