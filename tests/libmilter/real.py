"""
The real C libmilter as a child process.

scripted_milter.c is compiled once for each state of its source (the result is kept in a folder for
temporary files) against the static library, so that libmilter's table of skippable states, which is
private to it and shared by all its connections, can be put back before each case.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections import deque
from types import TracebackType

from .case import Case, Record
from .codec import decode_record, encode_case

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scripted_milter.c")
_HEADER = "/usr/include/libmilter/mfapi.h"


class Unavailable(Exception):
    """The C side cannot be built here; the text says what is missing."""


def _library() -> str:
    for tool in ("gcc", "objcopy"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    found = subprocess.run(
        ["gcc", "-print-file-name=libmilter.a"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found) or not os.path.exists(_HEADER):
        raise Unavailable("libmilter's header and static library (libmilter-dev) are not installed")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")


def build() -> str:
    """Compile scripted_milter where that has not been done yet, and return its path."""
    library = _library()
    digest = hashlib.sha256()
    for path in (_SOURCE, library):
        with open(path, "rb") as stream:
            digest.update(stream.read())
    folder = os.path.join(tempfile.gettempdir(), f"yatxmilter-libmilter-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid != os.getuid():
        raise Unavailable(f"{folder} belongs to somebody else")
    program = os.path.join(folder, "scripted_milter-" + digest.hexdigest()[:16])
    if not os.path.exists(program):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            copy = os.path.join(scratch, "libmilter.a")
            made = os.path.join(scratch, "scripted_milter")
            _run("objcopy", "--globalize-symbol=next_states", library, copy)
            wrap = "-Wl,--wrap=accept,--wrap=malloc"
            _run("gcc", "-O1", "-Wall", "-o", made, _SOURCE, copy, wrap, "-lpthread")
            os.replace(made, program)
    return program


class LibMilter:
    """
    One scripted_milter process.

    Use it as a context manager. `start` and `finish` may overlap with other work: libmilter runs
    the case between the two; `run` is both.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._done: deque[Record] = deque()
        self._folder = tempfile.mkdtemp(prefix="lm")
        try:
            self._process = subprocess.Popen(
                [build(), os.path.join(self._folder, "s")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def __enter__(self) -> LibMilter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its socket's folder."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, case: Case) -> None:
        """Hand a case over."""
        assert self._process.stdin is not None
        self._process.stdin.write(encode_case(case))
        self._process.stdin.flush()
        self._in_flight += 1

    def finish(self) -> Record:
        """Wait for the record of the first case handed over that has not been fetched."""
        return self._done.popleft() if self._done else self._fetch()

    def run(self, case: Case) -> Record:
        """Run one case; those handed over before it can still be fetched after that."""
        while self._in_flight:
            self._done.append(self._fetch())
        self.start(case)
        return self._fetch()

    def _fetch(self) -> Record:
        self._in_flight -= 1
        return decode_record(self._read(struct.unpack("<I", self._read(4))[0]))

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(length)
        if len(data) < length:
            raise RuntimeError(f"scripted_milter ended with status {self._process.wait()}")
        return data
