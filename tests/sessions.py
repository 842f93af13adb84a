"""
A driver for `yatxmilter._engine.command_order` in tests.

It stands in for what is above a session: it pulls calls, and notes the end of a message where a
callback ends one. It answers nothing, so all is as if each callback had continued.
"""

from __future__ import annotations

from collections.abc import Iterable

from yatxmilter._engine.command_order import Session
from yatxmilter._wire.packets import encode_packet

#: A payload for each command, as an MTA would send it.
PAYLOADS = {
    "O": b"\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff",
    "C": b"mail.example.org\x004\x10\xe1192.0.2.1\x00",
    "H": b"mail.example.org\x00",
    "M": b"<s@example.org>\x00",
    "R": b"<r@example.net>\x00",
    "L": b"Subject\x00hi\x00",
    "B": b"Hello\r\n",
    "U": b"VRFY root\x00",
    "D": b"Ci\x001\x00",
}

STATES = [
    "INIT", "OPTS", "CONN", "HELO", "MAIL", "RCPT", "DATA", "HDRS",
    "EOHS", "BODY", "ENDM", "QUIT", "ABRT", "UNKN", "Q_NC",
]  # fmt: skip

#: State -> the commands that lead to it.
WAYS = {
    "INIT": "", "OPTS": "O", "CONN": "OC", "HELO": "OCH", "MAIL": "OCHM", "RCPT": "OCHMR",
    "DATA": "OCHMRT", "HDRS": "OCHMRTL", "EOHS": "OCHMRTLN", "BODY": "OCHMRTLNB",
    "ENDM": "OCHMRTLNBE", "ABRT": "OCHMA", "Q_NC": "OCHMRTLNBEK",
}  # fmt: skip


def command_packet(letter: str, payload: bytes | None = None) -> bytes:
    return encode_packet(ord(letter), PAYLOADS.get(letter, b"") if payload is None else payload)


def command_packets(letters: str) -> bytes:
    return b"".join(map(command_packet, letters))


def pull_calls(session: Session) -> list[tuple[str, bytes]]:
    """
    Pull all calls that there are; answer with their letters and payloads.
    """
    calls = []
    while (row := session.next_call()) is not None:
        calls.append((chr(row.letter), session.payload))
        if row.callback in ("xxfi_abort", "xxfi_eom", "xxfi_close"):
            session.in_message = False
    return calls


def called(session: Session) -> str:
    return "".join(letter for letter, _ in pull_calls(session))


def session_after(letters: str = "", *, declined: int = 0) -> Session:
    """
    Give a session that has had these commands.
    """
    session = Session()
    session.decline(declined)
    session.receive(command_packets(letters))
    pull_calls(session)
    return session


def calls_after(
    letters: str, chunks: Iterable[bytes], *, declined: int = 0
) -> list[tuple[str, bytes]]:
    """
    Give the calls of some bytes that arrive after these commands.
    """
    session = session_after(letters, declined=declined)
    calls = []
    for chunk in chunks:
        session.receive(chunk)
        calls += pull_calls(session)
    return calls
