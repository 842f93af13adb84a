"""
Fuzz with Atheris: C{python -m tests.fuzz --seconds 60}, C{--target codec} for one target alone.

Each target runs in a process of its own, because libFuzzer ends the process when its time is over.
It begins with the seeds and what ``--corpus`` holds, where new finds are kept as well. Input that
breaks a promise is written to the current folder, and the exit status is 1; ``--replay FILE`` runs
it again, without Atheris.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from twisted.logger import LogEvent, globalLogBeginner

TARGETS = ("codec", "session")
SEEDS = Path(__file__).resolve().parent / "seeds"


def ignore(event: LogEvent) -> None:
    """
    Log nothing: milters that fail by design would fill the screen.
    """


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz yatxmilter.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target; default: 60")
    parser.add_argument("--target", choices=TARGETS, help="this one only")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers; default: 1")
    parser.add_argument("--corpus", type=Path, help="a folder to keep finds in; default: none")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input, once")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def fuzz_here(options: argparse.Namespace) -> None:
    """
    Fuzz one target in this process, and end it.
    """
    import atheris

    with atheris.instrument_imports(include=["yatxmilter"]):
        module = import_module(f"tests.fuzz.{options.target}")
    corpus = str(options.corpus)
    flags = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-max_len=1500"]
    atheris.Setup([sys.argv[0], *flags, corpus, str(SEEDS / options.target)], module.test_one)
    atheris.Fuzz()


def fuzz(target: str, options: argparse.Namespace) -> int:
    """
    Fuzz one target in a process of its own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(options.corpus or scratch) / target
        corpus.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--inside", f"--target={target}"]
        command += [f"--seconds={options.seconds}", f"--seed={options.seed}"]
        print(f"--- {target}, {options.seconds} s", flush=True)
        return subprocess.run([*command, f"--corpus={corpus}"], check=False).returncode


def main() -> int:
    options = arguments()
    globalLogBeginner.beginLoggingTo([ignore], redirectStandardIO=False, discardBuffer=True)
    if options.replay is not None:
        data = options.replay.read_bytes()
        for target in [options.target] if options.target else TARGETS:
            import_module(f"tests.fuzz.{target}").test_one(data)
        return 0
    try:
        import_module("atheris")
    except ImportError:
        print(
            "Fuzzing needs Atheris, which is not installed: pip install atheris (wheels are there"
            " for some Pythons only). The ordinary tests run a small part of it without.",
            file=sys.stderr,
        )
        return 2
    if options.inside:
        fuzz_here(options)
    failed = [
        target
        for target in ([options.target] if options.target else TARGETS)
        if fuzz(target, options)
    ]
    print(f"broken: {', '.join(failed)}" if failed else "nothing broken")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
