"""
yatxmilter against the real C libmilter.

A case (`case.py`) is a milter's script and the bytes of an MTA. It runs on libmilter
(`scripted_milter.c`, driven by `real.py`) and, as a `Milter`, on yatxmilter (`ours.py`); callbacks,
arguments, results of smfi_* calls, reply bytes and the moment of closing must be the same. Where
yatxmilter is meant to differ, `differences.py` says so and the reference engine (`reference.py`)
says how; both libraries are held against it too. Cases are generated (`generator.py`) from seeds or
by Hypothesis, and made small when they fail (`shrink.py`).

    python -m tests.libmilter --profile hostile --cases 100000 --seed 1 --jobs 2
    python -m tests.libmilter.mutations

It needs gcc, objcopy and libmilter's static library and header (Debian: libmilter-dev). Without
them the tests are skipped, or fail if YATXMILTER_REQUIRE_MTA is 1.
"""
