"""
The benchmark's milter under ``python -m yatxmilter serve``, as people run it.

With ``BENCH_METRICS`` it has a page of metrics, which counts all that happens. With
``BENCH_LOG_LEVEL`` it logs from that level on; from ``warn`` on no message has a line of its own.
"""

# ruff: noqa: D103

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import ours
import settings


def main() -> None:
    # It looks for milters in the folder that it runs in.
    folder = Path(__file__).resolve().parent
    words = ["--listen", settings.LISTEN, "--milter", f"ours:{ours.milter_class().__name__}"]
    if settings.LOG_LEVEL:
        words += ["--log-level", settings.LOG_LEVEL]
    if settings.METRICS:
        page = Path(settings.LISTEN.removeprefix("unix:")).with_name("metrics")
        words += ["--metrics", f"unix:{page}"]
    os.chdir(folder)
    sys.argv = ["yatxmilter", "serve", *words]
    runpy.run_module("yatxmilter", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
