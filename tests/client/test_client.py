"""
Tests of `yatxmilter.client`: commands as bytes, answers as tuples, and everything that goes wrong.

The milter's end is written by hand (see `milterside`), its bytes those that a milter linked with
libmilter sends.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import byte_by_byte, outcome
from tests.milterside import CONTINUE, OFFER, V4, Rig, packet, reply, stand_in_for_reactor
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
)
from yatxmilter.errors import ValueNotSendable


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

    def test_command_is_written_as_mtas_write_it(self) -> None:
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

    def test_response_has_its_return_code_its_letter_and_its_text(self) -> None:
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

    def test_last_body_chunk_can_go_with_end_of_message(self) -> None:
        """
        A last body chunk can go with the end of the message.
        """
        rig = Rig()
        rig.client.end_of_message(b"abc")
        self.assertEqual(rig.written(), b"\0\0\0\4Eabc")

    def test_what_no_packet_can_carry_is_refused_at_once_and_nothing_is_written(self) -> None:
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

    def test_by_default_everything_is_offered_answer_is_kept_as_agreement(self) -> None:
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

    def test_version_actions_and_steps_offered_are_callers(self) -> None:
        """
        Version, actions and steps offered are the caller's.
        """
        rig = Rig()
        rig.client.negotiate(2, actions=0, steps=0)
        self.assertEqual(rig.written(), b"\0\0\0\x0dO\0\0\0\2" + bytes(8))

    def test_what_is_no_answer_to_offer_fails_negotiation_and_ends_connection(self) -> None:
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


class StandingTests(SynchronousTestCase):
    """
    What connect and helo settle for all that follows.
    """

    def test_accept_reject_and_tempfail_stand_continue_and_discard(self) -> None:
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

    def test_helo_that_passes_takes_back_earlier_helos_refusal(self) -> None:
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

    def test_quit_nc_makes_new_start(self) -> None:
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

    def test_factory_passes_its_options_on_and_can_build_class_of_users_own(self) -> None:
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

    def test_connection_made_gives_its_client_ready_for_commands(self) -> None:
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

    def test_endpoint_can_be_given_in_place_of_address(self) -> None:
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

    def test_address_needs_no_reactor_by_default_it_is_global_one(self) -> None:
        """
        An address needs no reactor: by default it is the global one.
        """
        reactor = MemoryReactor()
        stand_in_for_reactor(self, reactor)
        connect_milter("/run/m.sock")
        self.assertEqual([client[0] for client in reactor.unixClients], ["/run/m.sock"])
