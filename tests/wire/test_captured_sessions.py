"""
Conversations that C libmilter was seen to hold, byte for byte, and held again here.

Each session is a list of what the MTA sends and what is answered to it; beside it stand the milter
that was on the other end and the callbacks it saw. All are run packet by packet, one byte at a
time, and cut in two at every place.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import Conversation, full, milter
from tests.helpers import byte_by_byte, every_split
from yatxmilter import constants as c

Session = tuple[tuple[bytes, list[bytes]], ...]

#: Version 6, actions 0x1ff, protocol 0x1fffff: what Postfix and Sendmail send.
OFFER = b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"
CONT = b"\x00\x00\x00\x01c"

#: Minimal accept.
SESSION_1: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x04\x00"]),
    (b"\x00\x00\x00%DCj\x00mx.example.net\x00{daemon_name}\x00MTA\x00", []),
    (b"\x00\x00\x00\x1fCmail.example.org\x004\x10\xe1192.0.2.1\x00", [CONT]),
    (b"\x00\x00\x00\x12Hmail.example.org\x00", [CONT]),
    (b"\x00\x00\x00#DMi\x004Xyz\x00{mail_addr}\x00s@example.org\x00", []),
    (b"\x00\x00\x00\x19M<s@example.org>\x00SIZE=42\x00", [CONT]),
    (b"\x00\x00\x00\x1cDR{rcpt_addr}\x00r@example.net\x00", []),
    (b"\x00\x00\x00\x11R<r@example.net>\x00", [CONT]),
    (b"\x00\x00\x00\x01T", [CONT]),
    (b"\x00\x00\x00\x14LFrom\x00s@example.org\x00", [CONT]),
    (b"\x00\x00\x00\x0cLSubject\x00hi\x00", [CONT]),
    (b"\x00\x00\x00\x01N", [CONT]),
    (b"\x00\x00\x00\x08BHello\x0d\x0a", [CONT]),
    (b"\x00\x00\x00\x01E", [b"\x00\x00\x00\x01a"]),
    (b"\x00\x00\x00\x01Q", []),
)

#: Header edits, quarantine and progress at end of message.
SESSION_2: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x001\x00\x00\x03\x7f"]),
    (b"\x00\x00\x00\x09DEi\x004Xyz\x00", []),
    (
        b"\x00\x00\x00\x01E",
        [
            b"\x00\x00\x00\x01p",
            b"\x00\x00\x00\x0fi\x00\x00\x00\x00X-Top\x00one\x00",
            b"\x00\x00\x00\x0bhX-Spam\x00no\x00",
            b"\x00\x00\x00\x14m\x00\x00\x00\x01Subject\x00[x] hi\x00",
            b"\x00\x00\x00\x0cm\x00\x00\x00\x01X-Old\x00\x00",
            b"\x00\x00\x00\x06qheld\x00",
            CONT,
        ],
    ),
    (b"\x00\x00\x00\x01Q", []),
)

#: Multi-line reject of one recipient.
SESSION_3: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x03r"]),
    (b"\x00\x00\x00:C[IPv6:2001:db8:0:0:0:0:0:9]\x006a\xa8IPv6:2001:db8:0:0:0:0:0:9\x00", [CONT]),
    (b"\x00\x00\x00\x04M<>\x00", [CONT]),
    (
        b"\x00\x00\x00\x1eR<a@example.net>\x00NOTIFY=NEVER\x00",
        [
            b"\x00\x00\x00By550-5.7.1 Go away\x0d\x0a"
            b"550-5.7.1 See http://x.example\x0d\x0a550 5.7.1 Bye\x00"
        ],
    ),
    (b"\x00\x00\x00\x11R<b@example.net>\x00", [b"\x00\x00\x00\x01t"]),
    (b"\x00\x00\x00\x11R<c@example.net>\x00", [CONT]),
    (b"\x00\x00\x00\x01A", []),
    (b"\x00\x00\x00\x01Q", []),
)

#: Body skip.
SESSION_4: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x07O"]),
    (b"\x00\x00\x00\x0cLSubject\x00hi\x00", [CONT]),
    (b"\x00\x00\x00\x0bBpart one\x0d\x0a", [b"\x00\x00\x00\x01s"]),
    (b"\x00\x00\x00\x01E", [CONT]),
    (b"\x00\x00\x00\x01Q", []),
)

#: No-reply, MTA supports it.
SESSION_5: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x08\x03\xcf"]),
    (b"\x00\x00\x00\x0cLSubject\x00hi\x00", []),
    (b"\x00\x00\x00\x06LTo\x00x\x00", []),
    (b"\x00\x00\x00\x07Bbody\x0d\x0a", []),
    (b"\x00\x00\x00\x01E", [CONT]),
    (b"\x00\x00\x00\x01Q", []),
)

#: Abort, second message, stray abort.
SESSION_6: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x03q"]),
    (b"\x00\x00\x00\x0fHc.example.org\x00", [CONT]),
    (b"\x00\x00\x00\x07DMi\x00Q1\x00", []),
    (b"\x00\x00\x00\x13M<one@example.org>\x00", [CONT]),
    (b"\x00\x00\x00\x11R<r@example.net>\x00", [CONT]),
    (b"\x00\x00\x00\x01A", []),
    (b"\x00\x00\x00\x07DMi\x00Q2\x00", []),
    (b"\x00\x00\x00\x13M<two@example.org>\x00", [CONT]),
    (b"\x00\x00\x00\x11R<r@example.net>\x00", [CONT]),
    (b"\x00\x00\x00\x01E", [CONT]),
    (b"\x00\x00\x00\x01A", []),
    (b"\x00\x00\x00\x01Q", []),
)

#: Symbol list negotiation.
SESSION_7: Session = (
    (
        OFFER,
        [
            b"\x00\x00\x005O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x00\x07z"
            b"\x00\x00\x00\x00j {client_port}\x00\x00\x00\x00\x01\x00\x00\x00\x00\x05i {msg_id}\x00"
        ],
    ),
    (b"\x00\x00\x00&DCj\x00mx.example.net\x00{client_port}\x004321\x00", []),
    (b"\x00\x00\x00\x1fCmail.example.org\x004\x10\xe1192.0.2.1\x00", [CONT]),
    (b"\x00\x00\x00\x11M<s@example.org>\x00", [CONT]),
    (b"\x00\x00\x00\x18DEi\x004Xyz\x00{msg_id}\x00<1@x>\x00", []),
    (b"\x00\x00\x00\x01E", [CONT]),
    (b"\x00\x00\x00\x01Q", []),
)

#: Envelope and body modification.
SESSION_8: Session = (
    (OFFER, [b"\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\xce\x00\x00\x03\x7f"]),
    (
        b"\x00\x00\x00\x01E",
        [
            b"\x00\x00\x00\x11+<n@example.net>\x00",
            b"\x00\x00\x00\x1e2<p@example.net>\x00NOTIFY=NEVER\x00",
            b"\x00\x00\x00\x11-<r@example.net>\x00",
            b"\x00\x00\x00\x13e<new@example.org>\x00",
            b"\x00\x00\x00\x1ce<new@example.org>\x00RET=HDRS\x00",
            b"\x00\x00\x00\x06bnew\x0d\x0a",
            b"\x00\x01\x00\x00b" + 65535 * b"x",
            b"\x00\x00\x00\x02bx",
            b"\x00\x00\x00\x01a",
        ],
    ),
    (b"\x00\x00\x00\x01Q", []),
)


def accepting() -> Any:
    """
    Session 1: all callbacks, no flags; ACCEPT at the end.
    """
    return full(xxfi_flags=0, eom=c.SMFIS_ACCEPT)


def editing() -> Any:
    """
    Session 2: header edits and quarantine.
    """

    def eom(self: Any) -> None:
        self.smfi_progress()
        self.smfi_insheader(0, "X-Top", "one")
        self.smfi_addheader("X-Spam", "no")
        self.smfi_chgheader("Subject", 1, "[x] hi")
        self.smfi_chgheader("X-Old", 1, None)
        self.smfi_quarantine("held")

    flags = c.SMFIF_ADDHDRS | c.SMFIF_CHGHDRS | c.SMFIF_QUARANTINE
    return milter(xxfi_flags=flags, eom=eom)


def rejecting() -> Any:
    """
    Session 3: recipient 1 rejected with three lines, 2 put off without text, 3 accepted.
    """

    def envrcpt(self: Any, argv: list[str]) -> Any:
        if argv[0] == "<a@example.net>":
            self.smfi_setmlreply("550", "5.7.1", "Go away", "See http://x.example", "Bye")
            return c.SMFIS_REJECT
        return c.SMFIS_TEMPFAIL if argv[0] == "<b@example.net>" else c.SMFIS_CONTINUE

    return milter(xxfi_flags=0, connect=None, envfrom=None, envrcpt=envrcpt)


def skipping() -> Any:
    """
    Session 4: everything offered, and the rest of the body skipped.
    """
    return milter(negotiate=c.SMFIS_ALL_OPTS, header=None, body=c.SMFIS_SKIP, eom=None)


def quiet() -> Any:
    """
    Session 5: header and body callbacks without replies.
    """
    return milter(
        negotiate=(c.SMFIS_CONTINUE, 0, 0x803CF),
        header=c.SMFIS_NOREPLY,
        body=c.SMFIS_NOREPLY,
        eom=None,
    )


def aborted() -> Any:
    """
    Session 6: an abort, a second message, a stray abort; macro ``i`` is noted at envelope and end.
    """

    def note(self: Any, *_: Any) -> None:
        self.calls.append(("i", self.smfi_getsymval("i")))

    return milter(xxfi_flags=0, helo=None, envfrom=note, envrcpt=None, eom=note)


def listing() -> Any:
    """
    Session 7: symbol lists for connect, HELO (empty) and end of message.
    """

    def negotiate(self: Any, *_: Any) -> Any:
        self.smfi_setsymlist(c.SMFIM_CONNECT, "j {client_port}")
        self.smfi_setsymlist(c.SMFIM_HELO, "")
        self.smfi_setsymlist(c.SMFIM_EOM, "i {msg_id}")
        return c.SMFIS_ALL_OPTS

    def connect(self: Any, *_: Any) -> None:
        self.calls.append(("{client_port}", self.smfi_getsymval("{client_port}")))

    def eom(self: Any) -> None:
        self.calls.append(("{msg_id}", self.smfi_getsymval("{msg_id}")))
        self.calls.append(("msg_id", self.smfi_getsymval("msg_id")))

    return milter(negotiate=negotiate, connect=connect, envfrom=None, eom=eom)


def rewriting() -> Any:
    """
    Session 8: envelope and body changed.
    """

    def eom(self: Any) -> Any:
        self.smfi_addrcpt("<n@example.net>")
        self.smfi_addrcpt_par("<p@example.net>", "NOTIFY=NEVER")
        self.smfi_delrcpt("<r@example.net>")
        self.smfi_chgfrom("<new@example.org>", None)
        self.smfi_chgfrom("<new@example.org>", "RET=HDRS")
        self.smfi_replacebody(b"new\r\n")
        self.smfi_replacebody(65536 * b"x")
        return c.SMFIS_ACCEPT

    return milter(xxfi_flags=0xCE, eom=eom)


V4 = IPv4Address("TCP", "192.0.2.1", 4321)
V6 = IPv6Address("TCP", "2001:db8::9", 25000)
CLOSE = ("close",)

CALLS_1 = [
    ("connect", "mail.example.org", V4),
    ("helo", "mail.example.org"),
    ("envfrom", ["<s@example.org>", "SIZE=42"]),
    ("envrcpt", ["<r@example.net>"]),
    ("data",),
    ("header", "From", "s@example.org"),
    ("header", "Subject", "hi"),
    ("eoh",),
    ("body", b"Hello\r\n"),
    ("eom",),
    CLOSE,
]
CALLS_3 = [
    ("connect", "[IPv6:2001:db8:0:0:0:0:0:9]", V6),
    ("envfrom", ["<>"]),
    ("envrcpt", ["<a@example.net>", "NOTIFY=NEVER"]),
    ("envrcpt", ["<b@example.net>"]),
    ("envrcpt", ["<c@example.net>"]),
    ("abort",),
    CLOSE,
]
CALLS_4 = [
    ("negotiate", 0x1FF, 0x1FFFFF),
    ("header", "Subject", "hi"),
    ("body", b"part one\r\n"),
    ("eom",),
    CLOSE,
]
CALLS_5 = [
    ("negotiate", 0x1FF, 0x1FFFFF),
    ("header", "Subject", "hi"),
    ("header", "To", "x"),
    ("body", b"body\r\n"),
    ("eom",),
    CLOSE,
]
CALLS_6 = [
    ("helo", "c.example.org"),
    ("envfrom", ["<one@example.org>"]),
    ("i", "Q1"),
    ("envrcpt", ["<r@example.net>"]),
    ("abort",),
    ("envfrom", ["<two@example.org>"]),
    ("i", "Q2"),
    ("envrcpt", ["<r@example.net>"]),
    ("eom",),
    ("i", "Q2"),
    CLOSE,
]
CALLS_7 = [
    ("negotiate", 0x1FF, 0x1FFFFF),
    ("connect", "mail.example.org", V4),
    ("{client_port}", "4321"),
    ("envfrom", ["<s@example.org>"]),
    ("eom",),
    ("{msg_id}", "<1@x>"),
    ("msg_id", None),
    CLOSE,
]


class CapturedSessionTests(SynchronousTestCase):
    """
    Conversations seen with C libmilter.
    """

    def check(self, build: Any, session: Session, calls: list[tuple[Any, ...]]) -> None:
        """
        Hold a session packet by packet, byte by byte, and in two pieces at every place.
        """
        self._packet_by_packet(build, session, calls)
        whole = b"".join(sent for sent, _ in session)
        said = b"".join(packet for _, answers in session for packet in answers)
        for pieces in [[whole], byte_by_byte(whole), *every_split(whole)]:
            made = build()
            conversation = Conversation(made)
            self.assertEqual(conversation.send(*pieces), said)
            self.assertEqual(made.calls, calls)
            self.assertTrue(conversation.closed)

    def _packet_by_packet(self, build: Any, session: Session, calls: list[tuple[Any, ...]]) -> None:
        made = build()
        conversation = Conversation(made)
        for sent, answers in session:
            self.assertFalse(conversation.closed)
            self.assertEqual(conversation.send(sent), b"".join(answers))
        self.assertEqual(made.calls, calls)
        self.assertTrue(conversation.closed)

    def test_one_message_passes_all_callbacks_and_is_accepted_at_its_end(self) -> None:
        """
        One message passes all callbacks and is accepted at its end.
        """
        self.check(accepting, SESSION_1, CALLS_1)

    def test_progress_edits_and_quarantine_are_written_in_order_they_were_made(self) -> None:
        """
        Progress, edits and quarantine are written in the order they were made, then the answer.
        """
        self.check(editing, SESSION_2, [("eom",), CLOSE])

    def test_one_recipient_rejected(self) -> None:
        """
        A reply of three lines rejects one recipient and is spent with it.
        """
        self.check(rejecting, SESSION_3, CALLS_3)

    def test_skip_at_first_body_chunk_is_told_to_mta(self) -> None:
        """
        SKIP at the first body chunk is told to the MTA.
        """
        self.check(skipping, SESSION_4, CALLS_4)

    def test_steps_agreed_on_as_unanswered_are_not_answered(self) -> None:
        """
        Steps agreed on as unanswered are not answered.
        """
        self.check(quiet, SESSION_5, CALLS_5)

    def test_abort_ends_message_next_has_its_own_macros(self) -> None:
        """
        An abort ends a message, the next has its own macros, and an abort between messages is mute.
        """
        self.check(aborted, SESSION_6, CALLS_6)

    def test_symbol_lists_ride_behind_agreement(self) -> None:
        """
        Symbol lists ride behind the agreement.
        """
        self.check(listing, SESSION_7, CALLS_7)

    def test_envelope_and_body(self) -> None:
        """
        Envelope edits, and a body replaced in packets of 65,535 bytes.
        """
        self.check(rewriting, SESSION_8, [("eom",), CLOSE])
