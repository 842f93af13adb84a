"""
Random sessions, compared: through both ways of bytes, and with what was recorded once.

A session is made of nothing but its number: milters with answers of all kinds, an MTA that is
polite or breaks the protocol, bytes that are cut anywhere, Deferreds that fire later or never. It
is run on a transport in memory and over a socket with the factory's ``fast_path``; bytes and
callbacks must be equal, and equal to those in ``recorded.json.gz``.

Everything here uses the public API and bytes alone, so that it measures any engine alike:

``python -m tests.engine_differential``
    compares 300 recorded sessions; ``--cases 5000 --seed 7`` compares as many others both ways.
``python -m tests.engine_differential --record``
    writes the recording anew, after a change that is meant to be seen. With ``--cases``, ``--seed``
    and ``--file`` it makes a larger one elsewhere, with which ``--file`` compares later.
``python -m tests.engine_differential --show 17``
    prints one session.
"""
