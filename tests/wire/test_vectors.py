"""
Packets, well-formed and not, with what C libmilter was seen to do with them, and what we do.

A row has the offer or prefix that is sent and answered first, the packets under test, and what is
expected of them: the bytes answered, the callbacks called, and whether the connection is closed.
Where we differ on purpose, the row says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    QUIT,
    QUIT_NC,
    RCPT,
    STEPS,
    UNKNOWN,
    Conversation,
    full,
    macros,
    milter,
    offer,
    packet,
    parse,
    strings,
)
from yatxmilter import constants as c
from yatxmilter.errors import UsageError

OFFER = offer()
SENDER, RECIPIENT = ("envfrom", ["<s@example.org>"]), ("envrcpt", ["<r@example.net>"])
CLOSE, ABORTED, OVER = ("close",), ("abort",), [("abort",), ("close",)]
OLD = offer(0x7F, 0x3F, 2)


def agreed(version: int, actions: int, steps: int) -> bytes:
    """
    Make the answer to an offer.
    """
    return offer(steps, actions, version)


class Outcome(NamedTuple):
    """
    What is to come of a row: bytes, calls, and whether the connection is closed.
    """

    said: bytes = b""
    calls: list[Any] = []
    closed: bool = False


class Row(NamedTuple):
    """
    What is sent, to whom, and what comes of it.
    """

    prefix: bytes
    sent: bytes
    outcome: Outcome
    made: dict[str, Any] = {}


def run(row: Row) -> Outcome:
    """
    Play a row.
    """
    made = row.made or dict.fromkeys(STEPS)
    cls = milter(**made)
    conversation = Conversation(cls)
    conversation.send(row.prefix)
    cls.calls.clear()
    said = conversation.send(row.sent)
    return Outcome(said, cls.calls, conversation.closed)


def without(*names: str, **members: Any) -> dict[str, Any]:
    """
    All callbacks but these.
    """
    return {**{step: None for step in STEPS if step not in names}, **members}


def fatal(*calls: Any) -> Outcome:
    """
    Nothing is said, and the connection closed.
    """
    return Outcome(b"", list(calls), True)


def heard(*calls: Any) -> Outcome:
    """
    One CONTINUE, after these calls.
    """
    return Outcome(packet("c"), list(calls))


NOTHING = Outcome()
MESSAGE = OFFER + MAIL + RCPT
IN_DATA = MESSAGE + DATA
IN_BODY = IN_DATA + EOH

NEGOTIATION = {
    "1: three bytes more": Row(
        b"", packet("O", OFFER[5:] + b"abc"), Outcome(agreed(6, 0x1FF, 0x400))
    ),
    "2: a byte too few": Row(b"", packet("O", OFFER[5:-1]), fatal(CLOSE)),
    "3: version 1": Row(b"", offer(version=1), fatal(CLOSE)),
    "3: negative version": Row(b"", offer(version=0x80000006), fatal(CLOSE)),
    "3: version 0": Row(b"", offer(version=0), fatal(CLOSE)),
    "4: version 7": Row(b"", offer(version=7), Outcome(agreed(6, 0x1FF, 0x400))),
    "5: zeros": Row(b"", offer(0, 0, 2), Outcome(agreed(2, 0x0F, 0)), without(xxfi_flags=0x0F)),
    "6: zero actions are 0x0f": Row(b"", offer(0, 0, 2), fatal(CLOSE), without(xxfi_flags=0x20)),
    "7: NODATA and NOUNKNOWN may be missing": Row(
        b"", OLD, Outcome(agreed(2, 0, 0)), without("data", "unknown", xxfi_flags=0)
    ),
    "8: NOEOH may not": Row(b"", offer(0x3F), fatal(CLOSE), without("eoh", xxfi_flags=0)),
    "41: NR_HDR that is not offered": Row(
        b"",
        offer(0x7F),
        Outcome(agreed(6, 0, 0), [("negotiate", 0x1FF, 0x7F | 0xFF080)]),
        without(negotiate=(c.SMFIS_CONTINUE, 0, 0x80)),
    ),
    "42: offered twice": Row(OFFER, OFFER + CONNECT, NOTHING),
    "NOHDRS to one who offers nothing": Row(
        b"", offer(0, 0, 2), Outcome(agreed(2, 0x0F, 0x20)), without("header")
    ),
    "larger packets are neither shown nor taken": Row(
        b"",
        offer(0x701FFFFF),
        Outcome(agreed(6, 0x1FF, 0x400)),
    ),
}

FRAMING = {
    "9: length 0": Row(OFFER, b"\0\0\0\0Q", fatal(CLOSE)),
    "10: negative length": Row(OFFER, b"\xff\xff\xff\xffQ", fatal(CLOSE)),
    "11: one byte too long": Row(OFFER, b"\0\1\0\1B", fatal(CLOSE)),
    "the longest positive": Row(OFFER, b"\x7f\xff\xff\xffB", fatal(CLOSE)),
    "12: the largest body": Row(IN_BODY, packet("B", 65535 * b"x"), heard(("body", 65535 * b"x"))),
    "13: no such command": Row(OFFER + MAIL, packet("Z"), fatal(*OVER)),
    "no such command, with payload": Row(OFFER, packet("Z", b"z"), fatal(CLOSE)),
    "33: end of message with a chunk": Row(
        IN_BODY, packet("E", b"abc"), heard(("body", b"abc"), ("eom",))
    ),
    "payload where none belongs": Row(MESSAGE, packet("T", b"abc"), heard(("data",))),
    "quit with payload": Row(OFFER, packet("Q", b"abc"), fatal(CLOSE)),
    "abort with payload": Row(MESSAGE, packet("A", b"abc"), Outcome(b"", [ABORTED])),
    "27: empty HELO, one abort (libmilter: two)": Row(OFFER + MAIL, packet("H"), fatal(*OVER)),
    "empty MAIL": Row(OFFER, packet("M"), fatal(CLOSE)),
    "empty macros": Row(OFFER, packet("D"), fatal(CLOSE)),
    "empty body": Row(IN_BODY, packet("B"), fatal(*OVER)),
    "empty body where none is legal": Row(OFFER, packet("B"), NOTHING),
}


def at_connect(payload: bytes, outcome: Outcome) -> Row:
    """
    A CONNECT packet.
    """
    return Row(OFFER, packet("C", payload), outcome)


def client(host: str, address: Any) -> Outcome:
    """
    What a good CONNECT gives.
    """
    return heard(("connect", host, address))


ADDRESSES = {
    "14: IPv4 without NUL": at_connect(b"h\x004\0\x191.2.3.4", fatal(CLOSE)),
    "15: IPv6 with prefix": at_connect(
        b"h\x006\0\x19IPv6:::1\0", client("h", IPv6Address("TCP", "::1", 25))
    ),
    "16: unknown": at_connect(b"h\0U", client("h", None)),
    "unknown, with more": at_connect(b"h\0Uabc", client("h", None)),
    "17: no host name, no port": at_connect(
        b"\x004\0\x00192.0.2.1\0", client("", IPv4Address("TCP", "192.0.2.1", 0))
    ),
    "a path": at_connect(b"h\0L\0\0/run/s\0", client("h", UNIXAddress("/run/s"))),
    "a path too long": at_connect(b"h\0L\0\0" + 108 * b"p" + b"\0", fatal(CLOSE)),
    "no NUL": at_connect(b"h", fatal(CLOSE)),
    "no family": at_connect(b"h\0", fatal(CLOSE)),
    "no address": at_connect(b"h\x004\0\x19", fatal(CLOSE)),
    "no port": at_connect(b"h\x004", fatal(CLOSE)),
    "another family": at_connect(b"h\x005\0\x19x\0", fatal(CLOSE)),
    "a name for IPv4": at_connect(b"h\x004\0\x19mail\0", fatal(CLOSE)),
    "IPv4 for IPv6": at_connect(b"h\x006\0\x19192.0.2.1\0", fatal(CLOSE)),
}

TEXTS = {
    "18: HELO without NUL": Row(OFFER, packet("H", b"abc"), NOTHING),
    "18: MAIL after it": Row(OFFER + packet("H", b"abc"), MAIL, heard(SENDER)),
    "HELO with NUL inside": Row(OFFER, packet("H", b"a\0b\0"), heard(("helo", "a"))),
    "19: MAIL with a tail": Row(OFFER, packet("M", b"a\0b"), heard(("envfrom", ["a"]))),
    "20: MAIL of one NUL": Row(OFFER, packet("M", b"\0"), heard(("envfrom", [""]))),
    "RCPT with arguments": Row(
        OFFER + MAIL,
        packet("R", strings(b"<r>", b"", b"NOTIFY=NEVER")),
        heard(("envrcpt", ["<r>", "", "NOTIFY=NEVER"])),
    ),
    "RCPT without NUL": Row(OFFER + MAIL, packet("R", b"abc"), fatal(*OVER)),
    "22: empty value": Row(IN_DATA, packet("L", b"N\0\0"), heard(("header", "N", ""))),
    "23: no value": Row(IN_DATA, packet("L", b"N\0"), fatal(*OVER)),
    "no NUL after the value": Row(IN_DATA, packet("L", b"N\0v"), fatal(*OVER)),
    "two NULs": Row(IN_DATA, packet("L", b"\0\0"), fatal(*OVER)),
    "empty name": Row(IN_DATA, packet("L", b"\0v\0w\0"), heard(("header", "", "w"))),
    "three strings": Row(IN_DATA, packet("L", b"N\0v\0w\0"), heard(("header", "N", "v"))),
    "folded": Row(IN_DATA, packet("L", b"N\0a\n b\0"), heard(("header", "N", "a\n b"))),
    "any byte": Row(
        IN_DATA, packet("L", b"N\xff\0\xc3\xa4\x80\0"), heard(("header", "N\udcff", "ä\udc80"))
    ),
    "unknown without NUL": Row(OFFER, packet("U", b"HELP me"), heard(("unknown", "HELP me"))),
    "unknown with NUL inside": Row(OFFER, packet("U", b"a\0b\0"), heard(("unknown", "a"))),
}

ORDER = {
    "24: header after MAIL": Row(OFFER + MAIL, packet("L", b"a\0b\0"), Outcome(b"", [ABORTED])),
    "24: RCPT after it": Row(OFFER + MAIL + packet("L", b"a\0b\0"), RCPT, NOTHING),
    "25: MAIL in a message": Row(MESSAGE, packet("M", b"b\0"), heard(ABORTED, ("envfrom", ["b"]))),
    "26: HELO in a message": Row(MESSAGE, packet("H", b"x\0"), heard(ABORTED, ("helo", "x"))),
    "28: one recipient rejected": Row(
        OFFER + MAIL,
        RCPT + packet("R", b"b\0") + ABORT,
        Outcome(packet("r") + packet("c"), [RECIPIENT, ("envrcpt", ["b"]), ABORTED]),
        without(
            envrcpt=lambda milter, argv: c.SMFIS_REJECT if argv[0] != "b" else c.SMFIS_CONTINUE
        ),
    ),
    "29: sender rejected": Row(
        OFFER,
        MAIL + RCPT + ABORT,
        Outcome(packet("r"), [SENDER]),
        without(envfrom=c.SMFIS_REJECT),
    ),
    "30: abort after the end": Row(MESSAGE + EOM, ABORT, NOTHING),
    "31: QUIT_NC after CONTINUE": Row(MESSAGE + EOM, QUIT_NC, Outcome(b"", [CLOSE])),
    "32: QUIT_NC after ACCEPT (libmilter: nothing)": Row(
        MESSAGE + EOM, QUIT_NC, Outcome(b"", [CLOSE]), without(eom=c.SMFIS_ACCEPT)
    ),
    "43: aborts without a message (libmilter: two)": Row(
        OFFER + HELO, ABORT + ABORT, NOTHING, without("envfrom")
    ),
    "44: header after unknown (libmilter: nothing)": Row(
        MESSAGE + UNKNOWN, HEADER, heard(("header", "Subject", "hi")), without("data")
    ),
    "no offer, HELO": Row(b"", HELO, heard(("helo", "mail.example.org"))),
    "no offer, quit": Row(b"", QUIT, fatal(CLOSE)),
    "quit in a message": Row(MESSAGE, QUIT, fatal(*OVER)),
    "end of message without RCPT": Row(OFFER + MAIL, EOM, Outcome(b"", [ABORTED])),
    "body after the end": Row(MESSAGE + EOM, BODY, NOTHING),
}


class VectorTests(SynchronousTestCase):
    """
    What libmilter does with a packet, we do.
    """

    maxDiff = None

    def check(self, rows: dict[str, Row]) -> None:
        """
        Play all rows of a table, and show all that are wrong.
        """
        wrong = {
            name: (found, row.outcome)
            for name, row in rows.items()
            if (found := run(row)) != row.outcome
        }
        self.assertEqual(wrong, {})
        self.flushLoggedErrors()

    def test_offers_of_all_kinds_are_answered_or_refused_as_libmilter_does(self) -> None:
        """
        Offers of all kinds are answered or refused as libmilter does.
        """
        self.check(NEGOTIATION)

    def test_odd_lengths_and_commands_are_taken_as_libmilter_takes_them(self) -> None:
        """
        Odd lengths and odd commands end the session or are taken as libmilter takes them.
        """
        self.check(FRAMING)

    def test_connect_gives_address_for_each_family_and_broken_one_ends_session(self) -> None:
        """
        CONNECT gives an address for each family, and a broken one ends the session.
        """
        self.check(ADDRESSES)

    def test_strings_are_cut_where_libmilter_cuts_them(self) -> None:
        """
        Strings are cut where libmilter cuts them.
        """
        self.check(TEXTS)

    def test_commands_out_of_order_are_dropped_and_abort_message_that_was_open(self) -> None:
        """
        Commands out of order are dropped, and abort the message that was open.
        """
        self.check(ORDER)

    def test_mail_without_any_nul_ends_session_without_envfrom(self) -> None:
        """
        A MAIL without any NUL ends the session, without envfrom (row 21).
        """
        cls = full()
        conversation = Conversation(cls)
        conversation.send(OFFER)
        self.assertEqual(conversation.send(packet("M", b"abc")), b"")
        self.assertTrue(conversation.closed)
        self.assertNotIn("envfrom", [call[0] for call in cls.calls])
        self.assertEqual(cls.calls.count(CLOSE), 1)


class MacroVectorTests(SynchronousTestCase):
    """
    What `smfi_getsymval` finds.
    """

    def look_up(self, stage: str, name: str, *packets: bytes) -> str | None:
        """
        Look up a name in a callback, the last that these packets call.
        """
        found: list[str | None] = []

        def answer(self: Any, *_: Any) -> None:
            found.append(self.smfi_getsymval(name))

        Conversation(full(**{stage: answer})).send(OFFER, *packets)
        return found[-1]

    def test_macros_are_replaced_kept_wiped_and_found_as_in_libmilter(self) -> None:
        """
        Macros are replaced, kept, wiped and found as in libmilter (rows 34 and 35 among them).
        """
        one = macros("M", b"i", b"1")
        table = {
            "34: a packet without pairs": (
                self.look_up("envrcpt", "i", one, MAIL, macros("M"), RCPT),
                "1",
            ),
            "35: a later stage is wiped": (
                self.look_up("envfrom", "i", macros("T", b"i", b"early"), MAIL),
                None,
            ),
            "its own stage is not": (self.look_up("envfrom", "i", one, MAIL), "1"),
            "replaced": (
                self.look_up("envfrom", "i", one, macros("M", b"j", b"2"), MAIL),
                None,
            ),
            "the later stage wins": (
                self.look_up("envrcpt", "i", one, MAIL, macros("R", b"i", b"2"), RCPT),
                "2",
            ),
            "braces, one letter": (self.look_up("envfrom", "{i}", one, MAIL), "1"),
            "odd number": (self.look_up("envfrom", "j", macros("M", b"j"), MAIL), None),
            "empty value": (self.look_up("envfrom", "j", macros("M", b"j", b""), MAIL), ""),
            "no stage of macros": (
                self.look_up("envfrom", "j", macros("L", b"j", b"x"), MAIL),
                None,
            ),
            "name needs its braces": (
                self.look_up("envfrom", "ab", macros("M", b"{ab}", b"x"), MAIL),
                None,
            ),
            "first of two": (
                self.look_up("envfrom", "a", macros("M", b"a", b"1", b"a", b"2"), MAIL),
                "1",
            ),
            "the last message's": (
                self.look_up("envfrom", "i", one, MAIL, RCPT, EOM, MAIL),
                "1",
            ),
        }
        self.assertEqual(
            {name: found for name, (found, _) in table.items()},
            {name: expected for name, (_, expected) in table.items()},
        )


class ReplyVectorTests(SynchronousTestCase):
    """
    Rows in which the milter says something.
    """

    def said(self, *packets: bytes, **members: Any) -> list[tuple[str, bytes]]:
        """
        Give the packets with which the last of these is answered.
        """
        conversation = Conversation(full(**members))
        for sent in packets[:-1]:
            conversation.send(sent)
        return conversation.packets(packets[-1])

    def test_wrong_class_is_kept(self) -> None:
        """
        A 4xx text does not go with REJECT, and waits for a TEMPFAIL (row 36).
        """

        def envrcpt(self: Any, argv: list[str]) -> Any:
            if argv != ["b"]:
                self.smfi_setreply("450", None, "x")
                return c.SMFIS_REJECT
            return c.SMFIS_TEMPFAIL

        conversation = Conversation(full(envrcpt=envrcpt))
        conversation.send(OFFER, MAIL)
        self.assertEqual(conversation.packets(RCPT), [("r", b"")])
        self.assertEqual(conversation.packets(packet("R", b"b\0")), [("y", b"450 x\0")])

    def test_header_is_added_at_end_of_message_and_refused_at_its_beginning(self) -> None:
        """
        A header is added at the end of a message, and refused at its beginning (row 37).
        """
        refused = []

        def envfrom(self: Any, argv: list[str]) -> None:
            try:
                self.smfi_addheader("X", "y")
            except UsageError as error:
                refused.append(str(error))

        def eom(self: Any) -> None:
            self.smfi_addheader("X", "y")

        conversation = Conversation(full(envfrom=envfrom, eom=eom))
        conversation.send(OFFER)
        self.assertEqual(conversation.packets(MAIL), [("c", b"")])
        self.assertEqual(len(refused), 1)
        self.assertEqual(
            conversation.packets(RCPT, EOM), [("c", b""), ("h", b"X\0y\0"), ("c", b"")]
        )

    def test_body_at_the_limit(self) -> None:
        """
        A body of twice the limit goes in two packets, an empty one in one (rows 38 and 39).
        """

        def large(self: Any) -> None:
            self.smfi_replacebody(131070 * b"x")

        def empty(self: Any) -> None:
            self.smfi_replacebody(b"")

        chunk = ("b", 65535 * b"x")
        packets = (OFFER, MAIL, RCPT, EOM)
        self.assertEqual(self.said(*packets, eom=large), [chunk, chunk, ("c", b"")])
        self.assertEqual(self.said(*packets, eom=empty), [("b", b""), ("c", b"")])

    def test_continue_where_no_reply_was_promised(self) -> None:
        """
        CONTINUE in a callback that promised no reply is not sent (row 40).
        """
        promised = (c.SMFIS_CONTINUE, 0, c.SMFIP_NR_HDR)
        cls = full(negotiate=promised)
        conversation = Conversation(cls)
        self.assertEqual(parse(conversation.send(OFFER)), parse(agreed(6, 0, c.SMFIP_NR_HDR)))
        conversation.send(MAIL, RCPT, DATA)
        self.assertEqual(conversation.packets(HEADER), [])
        self.assertIn(("header", "Subject", "hi"), cls.calls)
        self.assertEqual(conversation.packets(EOH), [("c", b"")])

    def test_no_reply_is_faked(self) -> None:
        """
        NOREPLY to an MTA that did not offer it is sent as CONTINUE (row 41).
        """
        promised = (c.SMFIS_CONTINUE, 0, c.SMFIP_NR_HDR)
        conversation = Conversation(full(negotiate=promised, header=c.SMFIS_NOREPLY))
        conversation.send(offer(0x7F), MAIL, RCPT, DATA)
        self.assertEqual(conversation.packets(HEADER), [("c", b"")])

    def test_edit_in_close(self) -> None:
        """
        An edit after the message is refused (row 45; libmilter sends it).
        """
        refused = []

        def close(self: Any) -> None:
            try:
                self.smfi_addheader("X", "y")
            except UsageError as error:
                refused.append(error)

        conversation = Conversation(full(close=close))
        conversation.send(OFFER, MAIL, RCPT, EOM)
        conversation.drop()
        self.assertEqual(conversation.written(), b"")
        self.assertEqual(len(refused), 1)

    def test_after_quit_nc(self) -> None:
        """
        After QUIT_NC a new CONNECT is served, whatever came before (rows 31 and 32).
        """
        for code in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT, c.SMFIS_REJECT):
            self.assertEqual(
                self.said(OFFER, MAIL, RCPT, EOM, QUIT_NC, CONNECT, eom=code), [("c", b"")]
            )
