"""
What an MTA says: the packets of a session, and what chance makes of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from yatxmilter import constants as c

from .chance import Chance
from .plans import Plan

#: Steps by which commands are declined, and promised no answer.
DECLINED = {
    "C": c.SMFIP_NOCONNECT,
    "H": c.SMFIP_NOHELO,
    "M": c.SMFIP_NOMAIL,
    "R": c.SMFIP_NORCPT,
    "T": c.SMFIP_NODATA,
    "L": c.SMFIP_NOHDRS,
    "N": c.SMFIP_NOEOH,
    "B": c.SMFIP_NOBODY,
    "U": c.SMFIP_NOUNKNOWN,
}
UNANSWERED = {
    "C": c.SMFIP_NR_CONN,
    "H": c.SMFIP_NR_HELO,
    "M": c.SMFIP_NR_MAIL,
    "R": c.SMFIP_NR_RCPT,
    "T": c.SMFIP_NR_DATA,
    "L": c.SMFIP_NR_HDR,
    "N": c.SMFIP_NR_EOH,
    "B": c.SMFIP_NR_BODY,
    "U": c.SMFIP_NR_UNKN,
    "A": -1,
    "Q": -1,
    "K": -1,
}

_CLIENTS = (
    b"mail.example.org\x004\x10\xe1192.0.2.1\0",
    b"mail.example.org\x004\0\0198.51.100.7\0",
    b"six.example.org\x006\0\x19IPv6:2001:db8::5\0",
    b"[UNAVAILABLE]\0U",
    b"localhost\0L\0\0/var/run/socket\0",
    b"m\xe9ll.example.org\x004\0\x19192.0.2.9\0",
    b"odd.example.org\x004\0\x19not an address\0",
)
_SENDERS = (
    b"<alice@example.org>\0SIZE=100\0BODY=8BITMIME\0",
    b"<alice@example.org>\0",
    b"<>\0",
    b"<Al\xffice@sub.example.com>\0",
    b"plain@example.net\0SIZE=\0",
)
_RECIPIENTS = (
    b"<bob@example.net>\0NOTIFY=NEVER\0",
    b"<bob@example.net>\0",
    b"<carol@example.com>\0",
    b"<dave@EXAMPLE.net>\0ORCPT=rfc822;x\0",
    b"<e\xe9@example.org>\0",
)
_FIELDS = (
    b"Subject\0 hello\0",
    b"Subject\0no blank\0",
    b"X-Tag\0 first\n\tfolded\0",
    b"Received\0 from a\r\n by b\0",
    b"X-\xc3\xa9\0 caf\xc3\xa9 \xff\0",
    b"X-Empty\0\0",
    b"To\0 bob@example.net\0",
)
_BODIES = (b"Hello\r\n", b"", b".\r\nline\r\n" * 12, b"\0\xff\r", b"z" * 300, b"big\r\n" * 13_107)


def packet(letter: str, payload: bytes = b"") -> bytes:
    """
    Make a packet.
    """
    return struct.pack("!IB", len(payload) + 1, ord(letter)) + payload


def macros(letter: str, *pairs: tuple[str, str]) -> bytes:
    """
    Make the packet of a command's macros.
    """
    text = "".join(f"{name}\0{value}\0" for name, value in pairs)
    return packet("D", letter.encode() + text.encode("latin-1"))


def parse(data: bytes) -> Iterator[tuple[str, bytes]]:
    """
    Take packets apart, as far as they are whole.
    """
    while len(data) >= 5:
        (length,) = struct.unpack("!I", data[:4])
        yield chr(data[4]), data[5 : 4 + length]
        data = data[4 + length :]


@dataclass(frozen=True)
class Command:
    """
    One command with the macros before it.

    :ivar message: Whether it belongs to a message.
    """

    letter: str
    packets: bytes
    message: bool = False


def offer(plan: Plan) -> bytes:
    """
    Make the offer.
    """
    return packet("O", struct.pack("!III", plan.version, plan.actions, plan.steps))


class Script:
    """
    All that an MTA wants to say in one session.
    """

    def __init__(self, plan: Plan) -> None:
        self._chance = Chance("script", plan.number)
        self._plan = plan

    def commands(self) -> list[Command]:
        """
        Give it, after the offer.
        """
        chance = self._chance
        said = self._client()
        for _ in range(chance.weighed([(1, 0), (5, 1), (5, 2), (3, 4)])):
            said += self._message()
            if chance.whether(0.15):
                said.append(Command("K", packet("K")))
                said += self._client()
        if chance.whether(0.7):
            said.append(Command("Q", packet("Q")))
        return said

    def _with(self, letter: str, payload: bytes, *pairs: tuple[str, str]) -> bytes:
        chance = self._chance
        shown = chance.some(pairs, 0.8)
        before = macros(letter, *shown) if shown or chance.whether(0.1) else b""
        return before + packet(letter, payload)

    def _client(self) -> list[Command]:
        chance = self._chance
        connect = self._with(
            "C",
            chance.pick(_CLIENTS),
            ("j", "mx.example.net"),
            ("{daemon_name}", "mta"),
            ("v", "1"),
        )
        said = [Command("C", connect)]
        for _ in range(chance.weighed([(8, 1), (2, 2), (1, 3), (1, 0)])):
            name = chance.pick((b"mail.example.org\0", b"[192.0.2.1]\0", b"\xffodd\0"))
            tls = chance.pick((("{tls_version}", "TLSv1.3"), ("{tls_version}", "")))
            said.append(Command("H", self._with("H", name, tls)))
        return said + self._unknown(False)

    def _unknown(self, message: bool) -> list[Command]:
        if not self._chance.whether(0.06):
            return []
        return [Command("U", self._with("U", b"XFOO bar\0"), message)]

    def _message(self) -> list[Command]:
        chance = self._chance
        identity = ("i", f"4X{chance.number(100, 999)}")
        said = []

        def add(letter: str, payload: bytes = b"", *pairs: tuple[str, str]) -> None:
            said.append(Command(letter, self._with(letter, payload, *pairs), True))
            said.extend(self._unknown(True))

        user = ("{auth_authen}", "alice")
        host = ("{mail_host}", chance.pick(("example.org", "example.com")))
        pairs = [identity, host, ("{mail_addr}", "alice@example.org"), *chance.some([user], 0.3)]
        add("M", chance.pick(_SENDERS), *pairs)
        for _ in range(chance.weighed([(6, 1), (3, 2), (2, 4), (0.2, 0)])):
            recipient = chance.pick(_RECIPIENTS)
            refused = ("{rcpt_mailer}", chance.pick(("smtp", "local", "error")))
            add("R", recipient, ("{rcpt_addr}", recipient[:4].decode("latin-1")), refused)
        ends = chance.weighed([(40, "E"), (1, "M"), (1, "R"), (1, "T"), (1, "L"), (1, "B")])
        if ends not in "MR":
            self._content(add, ends, identity)
        if ends != "E" or chance.whether(0.1):
            said.append(Command("A", packet("A")))
        return said

    def _content(self, add: object, ends: str, identity: tuple[str, str]) -> None:
        assert callable(add)
        chance = self._chance
        if self._plan.version > 3 and chance.whether(0.95):
            add("T", b"", identity)
        if ends == "T":
            return
        for _ in range(chance.weighed([(6, 3), (2, 8), (1, 0)])):
            add("L", chance.pick(_FIELDS))
        if ends == "L":
            return
        if chance.whether(0.97):
            add("N")
        for _ in range(chance.weighed([(8, 1), (3, 2), (1, 4), (1, 0)])):
            large = chance.whether(0.03)
            add("B", _BODIES[-1] if large else chance.pick(_BODIES[:-1]) or b"rest\r\n")
        if ends == "E":
            rest = chance.pick(_BODIES[:-1]) if chance.whether(0.15) else b""
            add("E", rest, identity, ("{msg_size}", "77"))


def damaged(commands: list[Command], chance: Chance) -> list[Command]:
    """
    Do to a few commands what no MTA should do.
    """
    result = list(commands)
    for _ in range(chance.number(1, 2)):
        # Late mostly: nothing is said after most of them.
        least = len(result) // 2 if chance.whether(0.7) else 0
        place = chance.number(least, len(result) - 1) if result else 0
        before = result[place : place + 1]
        letter, data = (before[0].letter, before[0].packets) if before else ("?", packet("?"))
        what = chance.pick(
            (
                "lost",
                "twice",
                "swapped",
                "cut",
                "letter",
                "length",
                "empty",
                "endless",
                "bit",
                "extra",
            )
        )
        if what == "lost":
            result[place : place + 1] = []
        elif what == "twice":
            result[place:place] = before
        elif what == "swapped":
            other = chance.number(0, len(result) - 1) if result else 0
            for one in before:
                result[place], result[other] = result[other], one
        else:
            result[place : place + 1] = [Command(letter, _damage(what, data, chance))]
    return result


def _damage(what: str, data: bytes, chance: Chance) -> bytes:
    # A former damage may have left nothing.
    data = data or packet("?")
    place = chance.number(0, len(data) - 1)
    if what == "cut":
        return data[:place]
    if what == "letter":
        return data[:4] + chance.pick((b"Z", b"\0", b"O", b"D", b"E", b"K", b"B")) + data[5:]
    if what == "length":
        return struct.pack("!I", chance.pick((1, 2, max(0, len(data) - 5), len(data)))) + data[4:]
    if what == "empty":
        return struct.pack("!I", 0) + data
    if what == "endless":
        return b"\xff\xff" + data[2:]
    if what == "bit":
        return data[:place] + bytes([data[place] ^ 1 << chance.number(0, 7)]) + data[place + 1 :]
    # A payload without its end, or where there is none.
    return packet(
        chance.pick("CHMRLDUO"), chance.pick((b"", b"x", b"a\0", b"\0\0", b"C", b"Cx\0y"))
    )
