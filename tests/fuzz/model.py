"""
What a milter owes an MTA: a second opinion on the order of commands and their answers.

It reads a conversation - the packets that the MTA sent, the packets that came back - and
says how many answers there should have been, and whether each was one that fits its command. It
shares no code and no table with the library; it is libmilter's engine (``engine.c``) retold, with
the differences of the manual: an unknown command changes nothing, QUIT_NC works everywhere, a
message may have no header fields.

Only conversations without malformed payloads can be judged exactly: a milter that does not want a
command never looks at its payload.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

Packet = tuple[str, bytes]

#: State -> commands that may follow; the states stand in the order in which they are skipped.
FOLLOW = {
    "init": "O",
    "opts": "C",
    "conn": "HM",
    "helo": "HM",
    "mail": "RA",
    "rcpt": "RTLNBEA",
    "data": "LNA",
    "hdrs": "LNA",
    "eohs": "BEA",
    "body": "BEA",
    "endm": "MQ",
    "quit": "",
    "abrt": "",
    "unkn": "HMRTBAQ",
    "q_nc": "C",
}
ORDER = list(FOLLOW)
#: Command -> the state it leads to.
STATE = {
    "O": "opts", "C": "conn", "H": "helo", "M": "mail", "R": "rcpt", "T": "data", "L": "hdrs",
    "N": "eohs", "B": "body", "E": "endm", "Q": "quit", "A": "abrt", "K": "q_nc",
}  # fmt: skip
#: State -> the step (SMFIP_NO*) that makes it one to be skipped.
SKIPPED = {
    "conn": 0x1, "helo": 0x2, "mail": 0x4, "rcpt": 0x8, "data": 0x200, "hdrs": 0x20, "eohs": 0x40,
    "body": 0x10, "unkn": 0x100,
}  # fmt: skip
#: Command -> the step (SMFIP_NR_*) that does without its answer.
SILENT = {
    "C": 0x1000, "H": 0x2000, "M": 0x4000, "R": 0x8000, "T": 0x10000, "U": 0x20000, "L": 0x80,
    "N": 0x40000, "B": 0x80000,
}  # fmt: skip
#: Command -> letters that may answer it.
ANSWERS = {
    "O": "O", "C": "carty", "H": "carty", "U": "crty", "B": "cartyds",
    "M": "cartyd", "R": "cartyd", "T": "cartyd", "L": "cartyd", "N": "cartyd", "E": "cartyd",
}  # fmt: skip
EDITS = "himb+2-eq"
NEEDS_PAYLOAD = "OCHMRLBUD"


def _allowed(state: str, letter: str, declined: int) -> bool:
    if letter in "UK":
        return True
    while letter not in FOLLOW[state]:
        place = ORDER.index(state) + 1
        # A message may have no header fields.
        if place == len(ORDER) or (
            ORDER[place] != "hdrs" and not SKIPPED.get(ORDER[place], 0) & declined
        ):
            return False
        state = ORDER[place]
    return True


class Model:
    """
    The milter's side of one conversation, judged afterwards.

    :param declined: The steps that no milter wants before anything is negotiated.
    :ivar ended: How many messages came to an end by somebody else than the milter.
    :ivar closings: How many SMTP connections ended by QUIT_NC.
    :ivar over: Whether the milter must have closed the connection.
    :ivar unanswered: The first command whose answer is missing.
    """

    def __init__(self, declined: int, answers: list[Packet]) -> None:
        self._declined = declined
        self._silent = 0
        self._answers = answers
        self._state = "init"
        self._open = False
        self._due: deque[Packet] = deque()
        self.ended = 0
        self.closings = 0
        self.over = False
        self.unanswered = ""

    @property
    def aborted(self) -> int | None:
        """
        How many messages a lone milter is told of that have ended without it, the one that is open
        when the connection goes included; ``None`` where answers may have been kept back.
        """
        return None if self._silent else self.ended + self._open

    @property
    def left(self) -> list[Packet]:
        """
        What came back and was not asked for, so far.
        """
        return self._answers

    def run(self, packets: Iterable[Packet] = ()) -> None:
        """
        Follow the conversation until it ends or an answer is missing; go on when more has come.
        """
        self._due.extend(packets)
        while not self.over:
            if self.unanswered:
                letter, self.unanswered = self.unanswered, ""
                self._answer(letter)
                if self.unanswered:
                    return
            elif self._due:
                self._command(*self._due.popleft())
            else:
                return

    def _command(self, letter: str, payload: bytes) -> None:
        if letter not in STATE and letter not in "UD":
            self.over = True
            return
        if letter != "D" and not _allowed(self._state, letter, self._declined):
            self._abort()
            self._state = "helo"
            if letter != "Q" and not _allowed("helo", letter, self._declined):
                return
        if not payload and letter in NEEDS_PAYLOAD:
            self.over = True
            return
        if letter == "D":
            return
        if letter != "U":
            self._state = STATE[letter]
        if letter in "MRTLNBE" and not self._open:
            self._open = True
        if letter in "AK":
            self._abort()
            self.closings += letter == "K"
        elif letter == "Q":
            self.over = True
        elif not SILENT.get(letter, 0) & self._silent:
            self._answer(letter)

    def _abort(self) -> None:
        self.ended += self._open
        self._open = False

    def _answer(self, letter: str) -> None:
        while self._answers and self._answers[0][0] == "p" and letter == "E":
            self._answers.pop(0)
        while self._answers and self._answers[0][0] in EDITS + "p" and letter == "E":
            self._answers.pop(0)
        if not self._answers:
            self.unanswered = letter
            return
        answer, payload = self._answers.pop(0)
        assert answer in ANSWERS[letter], f"{letter!r} was answered with {answer!r}"
        if letter == "O":
            _, _, steps = struct.unpack_from("!III", payload)
            self._declined = steps & 0x37F
            self._silent = steps & 0xFF080
        elif letter == "E":
            self._open = False
            if answer != "c":
                self._state = "helo"
        elif answer in "artyd" and letter != "U" and (letter != "R" or answer == "a"):
            self._open = False
            self._state = "helo"
