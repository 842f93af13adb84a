"""
Fuzzing: input that nobody thought of, and what must hold for all of it.

`tests.fuzz.codec` takes bytes for what a peer sends; `tests.fuzz.session` takes them for decisions
of an MTA and its milters on one connection. Both run under Atheris (C{python -m tests.fuzz}), and,
shorter and the same each time, in the ordinary tests. C{seeds} holds input to begin with.
"""
