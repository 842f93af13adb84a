"""
Tests of `yatxmilter.client`: commands as bytes, answers as tuples, and everything that goes wrong.

The milter's end is written by hand (see `milterside`), its bytes those that a milter linked with
libmilter sends.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted import internet
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport, IUNIXTransport
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from yatxmilter import constants as c
from yatxmilter.client import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    EndOfMessage,
    InsertHeader,
    MilterClient,
    MilterClientFactory,
    PeerError,
    Quarantine,
    ReplaceBody,
    Response,
    connect_milter,
    milter_endpoint,
)
from yatxmilter.errors import ValueNotSendable

from .helpers import byte_by_byte, outcome
from .milterside import Rig, packet, reply

CONTINUE = Response(c.SMFIS_CONTINUE, c.SMFIR_CONTINUE)
NOTHING = Response(c.SMFIS_CONTINUE)
V4 = IPv4Address("TCP", "192.0.2.1", 4321)
OFFER = b"\0\0\0\x0dO\0\0\0\6\0\0\1\xff\0\x1f\xff\xff"


def stand_in_for_reactor(test: SynchronousTestCase, reactor: object) -> None:
    """
    Have ``from twisted.internet import reactor`` give this one until the test is over.
    """
    # The attribute is there, and can be replaced, once a reactor has been installed.
    import_module("twisted.internet.reactor")
    test.patch(internet, "reactor", reactor)


class CommandTests(SynchronousTestCase):
    """
    Each method writes its command and answers with the milter's response.
    """

    #: What is called, with which arguments, and the bytes of it, as in captured sessions.
    ROWS: tuple[tuple[str, tuple[Any, ...], dict[str, str] | None, bytes], ...] = (
        ("connect", ("mail.example.org", V4), {"j": "mx.example.net", "{daemon_name}": "MTA"},
         b"\0\0\0%DCj\0mx.example.net\0{daemon_name}\0MTA\0"
         b"\0\0\0\x1fCmail.example.org\x004\x10\xe1192.0.2.1\0"),
        ("connect", ("h", IPv6Address("TCP", "2001:db8::9", 25000)), None,
         b"\0\0\0\x12Ch\x006a\xa82001:db8::9\0"),
        ("connect", ("h", UNIXAddress("/run/x")), None, b"\0\0\0\x0dCh\0L\0\0/run/x\0"),
        ("connect", ("h", UNIXAddress(None)), None, b"\0\0\0\7Ch\0L\0\0\0"),
        ("connect", ("h",), None, b"\0\0\0\4Ch\0U"),
        ("helo", ("mail.example.org",), {}, b"\0\0\0\2DH\0\0\0\x12Hmail.example.org\0"),
        ("mail", ("<s@example.org>", "SIZE=42"), {"i": "4Xyz"},
         b"\0\0\0\x09DMi\x004Xyz\0\0\0\0\x19M<s@example.org>\0SIZE=42\0"),
        ("mail", ("",), None, b"\0\0\0\2M\0"),
        ("rcpt", ("<r@example.net>",), None, b"\0\0\0\x11R<r@example.net>\0"),
        ("data", (), {}, b"\0\0\0\2DT\0\0\0\1T"),
        ("unknown", ("FOO bar",), None, b"\0\0\0\x09UFOO bar\0"),
        ("header", ("Subject", "hi\n \udcff"), None, b"\0\0\0\x0fLSubject\0hi\n \xff\0"),
        ("eoh", (), None, b"\0\0\0\1N"),
        ("body", (b"Hello\r\n",), {"i": "1"}, b"\0\0\0\6DBi\x001\0\0\0\0\x08BHello\r\n"),
        ("body", (b"",), None, b"\0\0\0\1B"),
    )  # fmt: skip

    def test_bytes(self) -> None:
        """
        A command is written as MTAs write it, its macros in a packet in front of it.
        """
        for name, arguments, macros, expected in self.ROWS:
            rig = Rig()
            result = getattr(rig.client, name)(*arguments, macros=macros)
            self.assertEqual(rig.written(), expected)
            self.assertNoResult(result)
            rig.answer("c")
            self.assertEqual(self.successResultOf(result), CONTINUE)

    def test_responses(self) -> None:
        """
        A response has its return code, its letter and its text.
        """
        table = {
            packet("r"): Response(c.SMFIS_REJECT, c.SMFIR_REJECT),
            packet("s"): Response(c.SMFIS_SKIP, c.SMFIR_SKIP),
            reply("550 5.7.1 no"): Response(c.SMFIS_REJECT, c.SMFIR_REPLYCODE, "550 5.7.1 no"),
            reply("451 later"): Response(c.SMFIS_TEMPFAIL, c.SMFIR_REPLYCODE, "451 later"),
        }
        for data, expected in table.items():
            rig = Rig()
            result = rig.client.rcpt("<a@example.net>")
            for byte in byte_by_byte(data):
                rig.client.dataReceived(byte)
            self.assertEqual(self.successResultOf(result), expected)

    def test_end_of_message(self) -> None:
        """
        The end of a message brings the edits in their order, and counts progress.
        """
        rig = Rig()
        rig.agree()
        result = rig.client.end_of_message(macros={"i": "4Xyz"})
        self.assertEqual(rig.written(), b"\0\0\0\x09DEi\x004Xyz\0\0\0\0\1E")
        rig.client.dataReceived(
            b"\0\0\0\1p"
            b"\0\0\0\x0fi\0\0\0\0X-Top\0one\0"
            b"\0\0\0\x0bhX-Spam\0no\0"
            b"\0\0\0\x14m\0\0\0\1Subject\0[x] hi\0"
            b"\0\0\0\x11+<n@example.net>\0"
            b"\0\0\0\x1e2<p@example.net>\0NOTIFY=NEVER\0"
            b"\0\0\0\x11-<r@example.net>\0"
            b"\0\0\0\x13e<new@example.org>\0"
            b"\0\0\0\6bnew\r\n\0\0\0\1b"
            b"\0\0\0\1p"
        )
        self.assertNoResult(result)
        rig.client.dataReceived(b"\0\0\0\6qheld\0\0\0\0\1a")
        edits = (
            InsertHeader(0, "X-Top", "one"),
            AddHeader("X-Spam", "no"),
            ChangeHeader(1, "Subject", "[x] hi"),
            AddRecipient("<n@example.net>"),
            AddRecipient("<p@example.net>", "NOTIFY=NEVER"),
            DeleteRecipient("<r@example.net>"),
            ChangeSender("<new@example.org>"),
            ReplaceBody(b"new\r\n"),
            ReplaceBody(b""),
            Quarantine("held"),
        )
        self.assertEqual(
            self.successResultOf(result),
            EndOfMessage(Response(c.SMFIS_ACCEPT, c.SMFIR_ACCEPT), edits, 2),
        )

    def test_last_chunk(self) -> None:
        """
        A last body chunk can go with the end of the message.
        """
        rig = Rig()
        rig.client.end_of_message(b"abc")
        self.assertEqual(rig.written(), b"\0\0\0\4Eabc")

    def test_bad_arguments(self) -> None:
        """
        What no packet can carry is refused at once, and nothing is written.
        """
        rig = Rig()
        client: Any = rig.client
        table = {
            ("mail",): TypeError,
            ("rcpt",): TypeError,
            ("mail", "<a@example.org>\0"): ValueNotSendable,
            ("helo", "a\0b"): ValueNotSendable,
            ("header", "a", "b\0c"): ValueNotSendable,
            ("connect", "h", "192.0.2.1"): TypeError,
            ("send_message", b""): ValueError,
        }
        results = {row: outcome(getattr(client, row[0]), *row[1:]) for row in table}
        self.assertEqual(results, table)
        self.assertEqual(rig.written(), b"")


class NegotiationTests(SynchronousTestCase):
    """
    The offer, and the agreement that comes of it.
    """

    def test_agreement(self) -> None:
        """
        By default everything is offered; the answer is kept as the agreement.
        """
        rig = Rig()
        result = rig.client.negotiate()
        self.assertEqual(rig.written(), OFFER)
        rig.client.dataReceived(
            b"\0\0\0\x35O\0\0\0\6\0\0\1\xff\0\0\7z"
            b"\0\0\0\0j {client_port}\0\0\0\0\1\0\0\0\0\5i {msg_id}\0"
        )
        agreement = Agreement(
            6, 0x1FF, 0x77A, {0: ["j", "{client_port}"], 1: [], 5: ["i", "{msg_id}"]}
        )
        self.assertEqual(self.successResultOf(result), agreement)
        self.assertEqual(rig.client.agreement, agreement)

    def test_offer(self) -> None:
        """
        Version, actions and steps offered are the caller's.
        """
        rig = Rig()
        rig.client.negotiate(2, actions=0, steps=0)
        self.assertEqual(rig.written(), b"\0\0\0\x0dO\0\0\0\2" + bytes(8))

    def test_refusals(self) -> None:
        """
        What is no answer to the offer fails negotiation and ends the connection.
        """
        for data in (b"\0\0\0\1c", b"\0\0\0\x0dO\0\0\0\7" + bytes(8), b"\0\0\0\2Ox"):
            rig = Rig()
            result = rig.client.negotiate()
            rig.client.dataReceived(data)
            self.failureResultOf(result, PeerError)
            self.assertTrue(rig.transport.disconnected)
            self.assertIsNone(rig.client.agreement)


class AgreementTests(SynchronousTestCase):
    """
    What was negotiated is honoured.
    """

    CALLS: tuple[tuple[str, tuple[Any, ...], str, int, int], ...] = (
        ("connect", ("h", V4), "C", c.SMFIP_NOCONNECT, c.SMFIP_NR_CONN),
        ("helo", ("h",), "H", c.SMFIP_NOHELO, c.SMFIP_NR_HELO),
        ("mail", ("<>",), "M", c.SMFIP_NOMAIL, c.SMFIP_NR_MAIL),
        ("rcpt", ("<a>",), "R", c.SMFIP_NORCPT, c.SMFIP_NR_RCPT),
        ("data", (), "T", c.SMFIP_NODATA, c.SMFIP_NR_DATA),
        ("unknown", ("X",), "U", c.SMFIP_NOUNKNOWN, c.SMFIP_NR_UNKN),
        ("header", ("A", "b"), "L", c.SMFIP_NOHDRS, c.SMFIP_NR_HDR),
        ("eoh", (), "N", c.SMFIP_NOEOH, c.SMFIP_NR_EOH),
        ("body", (b"x",), "B", c.SMFIP_NOBODY, c.SMFIP_NR_BODY),
    )

    def test_declined(self) -> None:
        """
        A declined command is not sent and counts as CONTINUE; its macros are sent, as by Postfix.
        """
        for name, arguments, letter, no, _ in self.CALLS:
            rig = Rig()
            rig.agree(no)
            result = getattr(rig.client, name)(*arguments, macros={"i": "1"})
            self.assertEqual(self.successResultOf(result), NOTHING)
            self.assertEqual(rig.sent(), [("D", letter.encode() + b"i\x001\0")])
            self.assertEqual(self.successResultOf(getattr(rig.client, name)(*arguments)), NOTHING)
            self.assertEqual(rig.sent(), [])

    def test_no_reply(self) -> None:
        """
        A command that needs no reply is sent and not waited for.
        """
        for name, arguments, letter, _, nr in self.CALLS:
            rig = Rig()
            rig.agree(nr)
            result = getattr(rig.client, name)(*arguments)
            self.assertEqual(self.successResultOf(result), NOTHING)
            self.assertEqual(rig.letters(), letter)
            self.assertNoResult(rig.client.end_of_message())
            self.assertEqual(rig.letters(), "E")

    def test_old_versions(self) -> None:
        """
        A command is not sent to a milter whose version does not have it.
        """
        table = {2: "E", 3: "UE", 4: "TUE", 5: "TUE", 6: "TUKE"}
        for version, expected in table.items():
            rig = Rig()
            rig.agree(version=version)
            results: list[Deferred[Any]] = [
                rig.client.data({"i": "1"}), rig.client.unknown("X"), rig.client.quit_nc(),
                rig.client.end_of_message(),
            ]  # fmt: skip
            sent = [one for one in rig.serve() + rig.serve() if one[0] != "D"]
            self.assertEqual("".join(letter for letter, _ in sent), expected)
            for result in results:
                self.successResultOf(result)

    def test_old_version_gets_no_macros(self) -> None:
        """
        Macros for a command that the version does not have are not sent either.
        """
        rig = Rig()
        rig.agree(version=3)
        rig.client.data({"i": "1"})
        self.assertEqual(rig.sent(), [])

    def test_skip(self) -> None:
        """
        After SKIP no more of this message's body is sent; the next message's is.
        """
        for end in ("end_of_message", "abort", "mail"):
            rig = Rig()
            client = rig.client
            first = client.body(b"one")
            second = client.body(b"two", {"i": "1"})
            self.assertEqual(rig.letters(), "B")
            rig.answer("s")
            self.assertEqual(self.successResultOf(first).code, c.SMFIS_SKIP)
            self.assertEqual(self.successResultOf(second), NOTHING)
            self.assertEqual(rig.letters(), "")
            getattr(client, end)(*(("<>",) if end == "mail" else ()))
            if end != "abort":
                rig.answer("c")
            rig.written()
            client.body(b"three")
            self.assertEqual(rig.sent(), [("B", b"three")])

    def test_chunks(self) -> None:
        """
        A body larger than the agreed data size is cut, and a chunk's answer is awaited.
        """
        body = bytes(range(256)) * 600
        sizes = {0: 65535, c.SMFIP_MDS_256K: 262143, c.SMFIP_MDS_1M: 1048575}
        for step, size in sizes.items():
            rig = Rig()
            rig.agree(step)
            result = rig.client.body(body, {"i": "1"})
            seen = rig.serve()
            chunks = [payload for letter, payload in seen if letter == "B"]
            self.assertEqual(b"".join(chunks), body)
            self.assertEqual([len(chunk) for chunk in chunks[:-1]], [size] * (len(chunks) - 1))
            self.assertEqual(len(chunks), -(-len(body) // size))
            self.assertEqual([one[0] for one in seen], ["D", "B"] * len(chunks))
            self.assertEqual(self.successResultOf(result), CONTINUE)

    def test_settled_between_chunks(self) -> None:
        """
        An answer other than CONTINUE keeps back the chunks after it.
        """
        for letter, code in (("s", c.SMFIS_SKIP), ("r", c.SMFIS_REJECT), ("a", c.SMFIS_ACCEPT)):
            rig = Rig()
            result = rig.client.body(bytes(200000))
            seen = rig.serve({"B": [packet("c"), packet(letter)]})
            self.assertEqual("".join(one for one, _ in seen), "BB")
            self.assertEqual(self.successResultOf(result).code, code)

    def test_chunks_without_reply(self) -> None:
        """
        Chunks that need no reply are sent one behind the other.
        """
        rig = Rig()
        rig.agree(c.SMFIP_NR_BODY)
        result = rig.client.body(bytes(131071))
        self.assertEqual([len(payload) for _, payload in rig.sent()], [65535, 65535, 1])
        self.assertEqual(self.successResultOf(result), NOTHING)

    def test_too_long(self) -> None:
        """
        Any other payload over the agreed size fails its command alone.
        """
        rig = Rig()
        longest = rig.client.header("N", "v" * 65532)
        too_long = rig.client.header("N", "v" * 65533)
        after = rig.client.eoh()
        self.assertEqual([len(payload) for _, payload in rig.sent()], [65535])
        rig.answer("c")
        rig.answer("c")
        self.assertEqual(self.successResultOf(longest), CONTINUE)
        self.failureResultOf(too_long, ValueNotSendable)
        self.assertEqual(self.successResultOf(after), CONTINUE)


class OrderTests(SynchronousTestCase):
    """
    Commands may be asked for at any time, and are sent one after another.
    """

    def test_one_at_a_time(self) -> None:
        """
        A command is sent when those before it are answered, and gets its own answer.
        """
        rig = Rig()
        results = [rig.client.rcpt(f"<{n}@example.net>") for n in range(3)]
        for number, letter in enumerate("crc"):
            self.assertEqual(rig.sent(), [("R", f"<{number}@example.net>\0".encode())])
            rig.answer(letter)
        codes = [self.successResultOf(result).letter for result in results]
        self.assertEqual(bytes(codes), b"crc")

    def test_before_connected(self) -> None:
        """
        Commands asked for before there is a connection are sent once there is.
        """
        rig = Rig(start=False)
        result = rig.client.negotiate()
        self.assertEqual(rig.written(), b"")
        rig.start()
        self.assertEqual(rig.written(), OFFER)
        self.assertNoResult(result)

    def test_agreement_counts_at_the_turn(self) -> None:
        """
        Whether a command is sent is decided when its turn comes.
        """
        rig = Rig()
        rig.client.negotiate()
        helo = rig.client.helo("h")
        rig.written()
        rig.client.dataReceived(b"\0\0\0\x0dO\0\0\0\6\0\0\0\0\0\0\0\2")
        self.assertEqual(rig.written(), b"")
        self.assertEqual(self.successResultOf(helo), NOTHING)

    def test_asked_from_a_callback(self) -> None:
        """
        A command asked for when another is answered comes after those that wait.
        """
        rig = Rig()
        rig.client.mail("<>").addCallback(lambda _: rig.client.eoh())
        rig.client.rcpt("<a>")
        sent = rig.serve()
        self.assertEqual([letter for letter, _ in sent], ["M", "R", "N"])

    def test_unanswered_commands(self) -> None:
        """
        ABORT and QUIT_NC are done when they are written; they too wait for their turn.
        """
        rig = Rig()
        mail = rig.client.mail("<>")
        abort = rig.client.abort()
        quit_nc = rig.client.quit_nc()
        rig.written()
        self.assertNoResult(abort)
        rig.answer("c")
        self.assertEqual(rig.letters(), "AK")
        for result in (mail, abort, quit_nc):
            self.successResultOf(result)

    def test_turn(self) -> None:
        """
        A turn comes when all before it are answered, and writes nothing.
        """
        rig = Rig()
        rig.client.mail("<>")
        turn = rig.client.turn()
        rig.written()
        self.assertNoResult(turn)
        rig.answer("c")
        self.successResultOf(turn)
        self.assertEqual(rig.written(), b"")

    def test_cancel_waiting(self) -> None:
        """
        A command cancelled before its turn is never sent; the others go on.
        """
        rig = Rig()
        first, second, third = (rig.client.rcpt(f"<{n}>") for n in "abc")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual([payload for _, payload in rig.serve()], [b"<a>\0", b"<c>\0"])
        self.successResultOf(first)
        self.successResultOf(third)

    def test_cancel_awaited(self) -> None:
        """
        Cancelling a command that was sent ends the connection: its answer could come yet.
        """
        rig = Rig()
        first, second = rig.client.mail("<>"), rig.client.rcpt("<a>")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, PeerError)
        self.assertTrue(rig.transport.disconnected)
        self.assertEqual(rig.clock.getDelayedCalls(), [])


class BreachTests(SynchronousTestCase):
    """
    A milter that breaks the protocol is dropped, and the error says what it did.
    """

    ANSWERS = {
        ("mail", packet("Z")): "'Z'",
        ("mail", packet("c", b"x")): "payload",
        ("mail", packet("y", b"250 ok\0")): "malformed SMTP reply",
        ("mail", packet("h", b"A\0b\0")): "ADDHEADER in answer to MAIL",
        ("mail", packet("q", b"x\0")): "QUARANTINE in answer to MAIL",
        ("mail", packet("p", b"x")): "'p'",
        ("mail", packet("c") + packet("c")): "'c' unasked",
        ("mail", b"\0\0\0\0c"): "packet length 0",
        ("mail", b"HTTP/1.1 400\r\n"): "packet length",
        ("mail", b"\xff\xff\xff\xffc"): "packet length",
        ("end_of_message", packet("h", b"A\0b")): "malformed ADDHEADER",
        ("end_of_message", packet("b", b"x")): "SMFIF_CHGBODY",
    }

    def test_breaches(self) -> None:
        """
        Whatever it was, the connection ends, and everything that waits fails with a reason.
        """
        for (name, data), words in self.ANSWERS.items():
            rig = Rig()
            rig.agree(actions=c.SMFIF_ADDHDRS)
            awaited = getattr(rig.client, name)(*(("<>",) if name == "mail" else ()))
            waiting = rig.client.turn().addCallback(lambda _: Deferred())
            later = rig.client.rcpt("<a>") if data != packet("c") * 2 else None
            rig.client.dataReceived(data)
            failed = later if later is not None else rig.client.eoh()
            if later is not None:
                self.failureResultOf(awaited, PeerError)
                self.failureResultOf(waiting, PeerError)
            error = self.failureResultOf(failed, PeerError)
            self.assertIn(words, error.getErrorMessage())
            self.assertTrue(rig.transport.disconnected)
            self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_nothing_agreed(self) -> None:
        """
        Without negotiation no action was agreed.
        """
        rig = Rig()
        result = rig.client.end_of_message()
        rig.answer("h", b"A\0b\0")
        self.failureResultOf(result, PeerError)

    def test_stays_failed(self) -> None:
        """
        After a breach nothing more is read or sent, and every command fails.
        """
        rig = Rig()
        result = rig.client.mail("<>")
        rig.client.dataReceived(packet("Z") + packet("c"))
        rig.client.dataReceived(packet("c"))
        rig.written()
        self.failureResultOf(result, PeerError)
        self.failureResultOf(rig.client.rcpt("<a>"), PeerError)
        self.assertEqual(rig.written(), b"")
        self.successResultOf(rig.client.quit())

    def test_stray_progress(self) -> None:
        """
        PROGRESS outside a command is let pass: libmilter sends it from any callback.
        """
        rig = Rig()
        rig.client.abort()
        rig.answer("p")
        result = rig.client.mail("<>")
        rig.answer("c")
        self.assertEqual(self.successResultOf(result), CONTINUE)

    def test_long_response(self) -> None:
        """
        A response of a megabyte is read; a longer one is refused as soon as its length is there.
        """
        rig = Rig()
        rig.agree()
        result = rig.client.end_of_message()
        rig.answer("b", bytes(c.MILTER_MDS_1M))
        self.assertNoResult(result)
        rig.client.dataReceived(b"\0\x10\0\1b")
        self.failureResultOf(result, PeerError)


class EndTests(SynchronousTestCase):
    """
    How connections end.
    """

    def test_lost(self) -> None:
        """
        When the milter goes away everything that waits fails, and says what was awaited.
        """
        rig = Rig()
        awaited, waiting = rig.client.mail("<>"), rig.client.rcpt("<a>")
        lost = ConnectionLost()
        rig.client.connectionLost(Failure(lost))
        error = self.failureResultOf(awaited, PeerError).value
        self.assertIn("MAIL", str(error))
        self.assertIs(error.__cause__, lost)
        self.failureResultOf(waiting, PeerError)
        self.failureResultOf(rig.client.eoh(), PeerError)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_lost_while_idle(self) -> None:
        """
        A connection lost while nothing was awaited fails the next command.
        """
        rig = Rig()
        rig.transport.loseConnection()
        self.failureResultOf(rig.client.mail("<>"), PeerError)
        self.successResultOf(rig.client.quit())

    def test_cancel_in_errback(self) -> None:
        """
        Whoever is told of the end may cancel what waits behind.
        """
        rig = Rig()
        awaited, waiting = rig.client.mail("<>"), rig.client.rcpt("<a>")
        awaited.addErrback(lambda _: waiting.cancel())
        rig.transport.loseConnection()
        self.successResultOf(awaited)
        self.failureResultOf(waiting, CancelledError)

    def test_quit(self) -> None:
        """
        QUIT is done when the milter has closed the connection; what it still says is ignored.
        """
        rig = Rig()
        result = rig.client.quit()
        self.assertEqual(rig.letters(), "Q")
        rig.answer("p")
        rig.answer("Z")
        self.assertNoResult(result)
        rig.transport.loseConnection()
        self.assertIsNone(self.successResultOf(result))
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_quit_grace(self) -> None:
        """
        A milter that does not close after QUIT has the connection closed for it.
        """
        rig = Rig()
        result = rig.client.quit()
        rig.clock.advance(4.9)
        self.assertNoResult(result)
        rig.clock.advance(0.1)
        self.successResultOf(result)

    def test_after_quit(self) -> None:
        """
        A command asked for after QUIT fails when the connection is closed.
        """
        rig = Rig()
        rig.client.quit()
        result = rig.client.mail("<>")
        rig.transport.loseConnection()
        self.failureResultOf(result, PeerError)

    def test_timeout(self) -> None:
        """
        A milter that is silent for too long is dropped.
        """
        rig = Rig(timeout=30)
        result = rig.client.mail("<>")
        rig.clock.advance(29.9)
        self.assertNoResult(result)
        rig.clock.advance(0.1)
        error = self.failureResultOf(result, PeerError)
        self.assertIn("MAIL", error.getErrorMessage())
        self.assertTrue(rig.transport.disconnected)

    def test_timeout_anew(self) -> None:
        """
        Each answer, and each chunk of a body, has the whole time.
        """
        rig = Rig(timeout=30)
        result = rig.client.body(bytes(131071))
        for _ in range(3):
            self.assertNoResult(result)
            rig.clock.advance(29)
            rig.answer("c")
        self.successResultOf(result)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_progress(self) -> None:
        """
        PROGRESS gives the milter more time, and is reported.
        """
        told: list[str] = []
        rig = Rig(timeout=30, progress=told.append)
        result = rig.client.end_of_message()
        for _ in range(5):
            rig.clock.advance(29)
            rig.answer("p")
        rig.answer("c")
        self.assertEqual(self.successResultOf(result).progress, 5)
        self.assertEqual(told, ["BODYEOB"] * 5)

    def test_no_timeout(self) -> None:
        """
        Without a timeout an answer is awaited for ever.
        """
        rig = Rig(timeout=None)
        result = rig.client.mail("<>")
        rig.answer("p")
        self.assertEqual(rig.clock.getDelayedCalls(), [])
        self.assertNoResult(result)

    def test_default_clock(self) -> None:
        """
        Without a clock of one's own it is the reactor's.
        """
        clock = Clock()
        stand_in_for_reactor(self, clock)
        client = MilterClient(timeout=5)
        client.makeConnection(StringTransport())
        result = client.mail("<>")
        clock.advance(5)
        self.failureResultOf(result, PeerError)


class StandingTests(SynchronousTestCase):
    """
    What connect and helo settle for all that follows.
    """

    def test_settled(self) -> None:
        """
        ACCEPT, REJECT and TEMPFAIL stand; CONTINUE and DISCARD, as for Postfix, do not.
        """
        table: dict[str, bool] = {"a": True, "r": True, "t": True, "c": False, "d": False}
        for letter, stands in table.items():
            rig = Rig()
            result = rig.client.connect("h")
            rig.answer(letter)
            response = self.successResultOf(result)
            self.assertEqual(rig.client.standing, ("connect", response) if stands else None)

    def test_next_helo(self) -> None:
        """
        A HELO that passes takes back an earlier HELO's refusal, not a refused connection.
        """
        rig = Rig()
        for call, letter, standing in (
            (rig.client.helo, "r", "helo"),
            (rig.client.helo, "c", None),
            (rig.client.connect, "t", "connect"),
            (rig.client.helo, "c", "connect"),
        ):
            call("h")
            rig.answer(letter)
            stage = rig.client.standing[0] if rig.client.standing else None
            self.assertEqual(stage, standing)

    def test_quit_nc(self) -> None:
        """
        QUIT_NC makes a new start.
        """
        rig = Rig()
        rig.client.connect("h")
        rig.answer("r")
        self.successResultOf(rig.client.quit_nc())
        self.assertIsNone(rig.client.standing)


class FactoryTests(SynchronousTestCase):
    """
    Making connections.
    """

    def test_options(self) -> None:
        """
        A factory passes its options on, and can build a class of the user's own.
        """
        clock = Clock()

        class Mine(MilterClient):
            pass

        factory = MilterClientFactory(timeout=7, clock=clock)
        factory.protocol = Mine
        client = factory.buildProtocol(None)
        client.makeConnection(StringTransport())
        self.assertIsInstance(client, Mine)
        self.assertIs(client.factory, factory)
        result = client.mail("<>")
        clock.advance(7)
        self.failureResultOf(result, PeerError)

    #: Addresses of milters, and how they are connected to.
    SPECS = {
        "inet:1234@192.0.2.1": ("tcp", "192.0.2.1", 1234),
        "inet:1234": ("tcp", "127.0.0.1", 1234),
        "inet:1234@[192.0.2.1]": ("tcp", "192.0.2.1", 1234),
        "inet:smtp@192.0.2.1": ("tcp", "192.0.2.1", 25),
        "inet6:1234@2001:db8::1": ("tcp", "2001:db8::1", 1234),
        "inet6:1234@[2001:db8::1]": ("tcp", "2001:db8::1", 1234),
        "inet6:1234": ("tcp", "::1", 1234),
        "tcp:192.0.2.1:1234": ("tcp", "192.0.2.1", 1234),
        "unix:/run/m.sock": ("unix", "/run/m.sock"),
        "local:/run/m.sock": ("unix", "/run/m.sock"),
        "/run/m.sock": ("unix", "/run/m.sock"),
        "inet:no-such-service@192.0.2.1": ValueError,
        "inet:": ValueError,
        "nonsense": ValueError,
    }

    def test_specs(self) -> None:
        """
        An address can be written as libmilter and the MTAs write it, or as Twisted does.
        """

        def connected(spec: str) -> object:
            reactor = MemoryReactor()
            milter_endpoint(reactor, spec).connect(MilterClientFactory())
            if reactor.unixClients:
                return ("unix", reactor.unixClients[0][0])
            host, port, *_ = reactor.tcpClients[0]
            return ("tcp", host, port)

        self.assertEqual({spec: outcome(connected, spec) for spec in self.SPECS}, self.SPECS)

    def test_connect_milter(self) -> None:
        """
        A connection made gives its client, ready for commands.
        """
        reactor, clock = MemoryReactor(), Clock()
        result = connect_milter("/run/m.sock", timeout=3, clock=clock, reactor=reactor)
        self.assertNoResult(result)
        wrapped = reactor.unixClients[0][1]
        protocol = wrapped.buildProtocol(UNIXAddress("/run/m.sock"))
        protocol.makeConnection(StringTransport())
        client = self.successResultOf(result)
        command = client.negotiate()
        clock.advance(3)
        self.failureResultOf(command, PeerError)

    def test_endpoint(self) -> None:
        """
        An endpoint can be given in place of an address.
        """

        class Endpoint:
            def connect(self, factory: MilterClientFactory) -> Deferred[MilterClient]:
                connected: Deferred[MilterClient] = Deferred()
                connected.callback(factory.buildProtocol(None))
                return connected

        endpoint: Any = Endpoint()
        self.assertIsInstance(self.successResultOf(connect_milter(endpoint)), MilterClient)

    def test_default_reactor(self) -> None:
        """
        An address needs no reactor: by default it is the global one.
        """
        reactor = MemoryReactor()
        stand_in_for_reactor(self, reactor)
        connect_milter("/run/m.sock")
        self.assertEqual([client[0] for client in reactor.unixClients], ["/run/m.sock"])

    def test_no_delay(self) -> None:
        """
        On TCP, and there alone, small writes are sent at once.
        """
        for interfaces, expected in (
            ((), []),
            ((ITCPTransport,), [True]),
            # Twisted's UNIX transports provide both, and older ones fail when they are asked.
            ((ITCPTransport, IUNIXTransport), []),
        ):
            transport: Any = StringTransport()
            set_to: list[bool] = []
            transport.setTcpNoDelay = set_to.append
            if interfaces:
                alsoProvides(transport, *interfaces)
            MilterClient().makeConnection(transport)
            self.assertEqual(set_to, expected)
