"""
What a benchmark runs is made on the spot: C with gcc, Go with go, Python peers in environments.

All of it is kept in one folder under a name that is made of its source, so that it is made once.
What cannot be made here is `Unavailable`, with the reason; the comparison goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

_FOLDER = "~/.cache/yatxmilter/benchmarks"
#: Where Debian's packages of Go libraries are.
_GOPATH = "/usr/share/gocode"


class Unavailable(Exception):
    """
    Something that cannot be made or run on this machine.
    """


def folder() -> Path:
    """
    Give the folder in which everything is kept; ``YATXMILTER_BENCHMARKS`` names another one.
    """
    path = Path(os.environ.get("YATXMILTER_BENCHMARKS") or _FOLDER).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _place(name: str, *sources: str) -> Path:
    digest = hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]
    return folder() / f"{name}-{digest}"


def _run(
    command: list[str | Path],
    what: str,
    directory: Path | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    done = subprocess.run(
        [*map(str, command)],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{what}: {lines[-1] if lines else f'status {done.returncode}'}")


def tool(name: str, package: str) -> str:
    """
    Give the path of a program.

    :param package: The Debian package that has it.
    :raises Unavailable: when it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not installed (Debian: apt-get install {package})")
    return path


def c_program(source: str, *libraries: str) -> Path:
    """
    Compile a C program.

    :param source: Its path below this folder.
    :param libraries: What to link it with.
    """
    links = [f"-l{name}" for name in libraries]
    package = "libmilter-dev" if libraries else None
    return _compiled(source, package, [], links)


def c_library(source: str, package: str) -> Path:
    """
    Compile C into a library that a program can load.

    :param source: Its path below this folder.
    :param package: The Debian package that has what it includes.
    """
    return _compiled(source, package, ["-shared", "-fPIC"], [])


def _compiled(source: str, package: str | None, options: list[str], links: list[str]) -> Path:
    text = (HERE / source).read_text()
    result = _place(Path(source).stem, text, *options, *links)
    if not result.exists():
        fresh = result.with_name(f"{result.name}.{os.getpid()}")
        _run(
            [tool("gcc", "gcc libc6-dev"), "-O2", *options, "-o", fresh, HERE / source, *links],
            f"{source} (Debian: apt-get install {package})" if package else source,
        )
        fresh.rename(result)
    return result


def python_with(*requirements: str) -> Path:
    """
    Give a Python like this one in whose environment these are installed.
    """
    environment = _place("python", sys.version, sys.prefix, *requirements)
    python = environment / "bin/python"
    if not (environment / "complete").exists():
        what = f"pip install {' '.join(requirements)}"
        _run([sys.executable, "-m", "venv", "--clear", environment], what)
        _run([python, "-m", "pip", "install", "-q", *requirements], what)
        (environment / "complete").touch()
    return python


def go_program(source: str, library: str) -> Path:
    """
    Build a Go program with a library that Debian ships as source.

    :param source: Its path below this folder.
    :param library: The import path of the library.
    """
    text = (HERE / source).read_text()
    program = _place(Path(source).parent.name, text)
    if not program.exists():
        go = tool("go", "golang-go")
        if not Path(_GOPATH, "src", library).is_dir():
            package = f"golang-{library.replace('.com', '').replace('/', '-')}-dev"
            raise Unavailable(f"{library} is not installed (Debian: apt-get install {package})")
        environment = {**os.environ, "GO111MODULE": "off", "GOPATH": _GOPATH, "GOFLAGS": ""}
        _run([go, "build", "-o", program, "."], source, (HERE / source).parent, environment)
    return program
