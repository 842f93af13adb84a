"""
ESMTP arguments of MAIL and RCPT (RFC 5321, 4.1.2), such as ``SIZE=1000`` and ``SMTPUTF8``.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["parse_esmtp"]


def parse_esmtp(argv: Sequence[str]) -> dict[str, str | None]:
    """
    Read the ESMTP arguments of ``xxfi_envfrom`` and ``xxfi_envrcpt``.

    >>> parse_esmtp(["<a@example.com>", "size=1000", "BODY=8BITMIME", "SMTPUTF8"])
    {'SIZE': '1000', 'BODY': '8BITMIME', 'SMTPUTF8': None}

    :param argv: What the callback was given: the address, which is passed over, and the arguments.
    :return: The values by keyword, in capital letters and in the client's order; ``None`` for an
        argument without a value. A value is as the client wrote it: that of ``ORCPT``, ``ENVID``
        and ``AUTH`` is in xtext (RFC 3461, 4). Of a keyword that is there twice the first counts.
    :raises TypeError: for a text, which is not a list.
    """
    if isinstance(argv, str):
        raise TypeError(f"argv is {argv!r}, expected the list that the callback was given")
    arguments: dict[str, str | None] = {}
    for argument in argv[1:]:
        keyword, equals, value = argument.partition("=")
        arguments.setdefault(keyword.upper(), value if equals else None)
    return arguments
