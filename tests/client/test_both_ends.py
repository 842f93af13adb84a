"""
Tests of client and milter back to back: what one side of the library says the other understands.

Both are wired in memory; no byte is written by hand.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, MilterFactory, MilterProtocolFactory, noreply
from yatxmilter import constants as c
from yatxmilter.client import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    MilterClient,
    PeerError,
    Quarantine,
    ReplaceBody,
)
from yatxmilter.client._in_memory import connect_in_memory

MESSAGE = b"From: a\nSubject:  hi\n there\n\nbody \xff\n"
A, B = "<a@example.net>", "<b@example.net>"


class Pair:
    """
    A client connected to milters in memory.
    """

    def __init__(self, *milters: type[Milter] | MilterFactory, **options: Any) -> None:
        self.clock = Clock()
        factories = [
            milter if isinstance(milter, MilterFactory) else MilterFactory(milter)
            for milter in milters
        ]
        factory = MilterProtocolFactory(factories, reactor=self.clock, **options)
        self.client = MilterClient(clock=self.clock, timeout=60)
        peer = IPv4Address("TCP", "192.0.2.9", 9)
        self.connection = connect_in_memory(self.client, factory, mta_address=peer)

    def flush(self) -> None:
        """
        Carry bytes until there are no more.
        """
        self.connection.flush()


class BothEndsTests(SynchronousTestCase):
    """
    Milters seen through the client.
    """

    def result(self, pair: Pair, command: Deferred[Any]) -> Any:
        """
        Carry bytes until a command is answered.
        """
        pair.flush()
        return self.successResultOf(command)

    def test_callbacks_get_what_clients_methods_were_given_any_byte_included(self) -> None:
        """
        Callbacks get what the client's methods were given, any byte included.
        """
        calls: list[tuple[object, ...]] = []

        class Recorder(Milter):
            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                calls.append(("connect", hostname, hostaddr, self.smfi_getsymval("j")))

            def xxfi_helo(self, helohost: str) -> None:
                calls.append(("helo", helohost))

            def xxfi_envfrom(self, argv: list[str]) -> None:
                calls.append(("mail", *argv))

            def xxfi_envrcpt(self, argv: list[str]) -> None:
                calls.append(("rcpt", *argv, self.smfi_getsymval("{rcpt_addr}")))

            def xxfi_data(self) -> None:
                calls.append(("data",))

            def xxfi_unknown(self, arg: str) -> None:
                calls.append(("unknown", arg))

            def xxfi_header(self, headerf: str, headerv: str) -> None:
                calls.append(("header", headerf, headerv))

            def xxfi_eoh(self) -> None:
                calls.append(("eoh",))

            def xxfi_body(self, bodyp: bytes) -> None:
                calls.append(("body", bodyp))

            def xxfi_eom(self) -> None:
                calls.append(("eom", self.smfi_getsymval("i")))

            def xxfi_abort(self) -> None:
                calls.append(("abort",))

            def xxfi_close(self) -> None:
                calls.append(("close",))

        pair = Pair(Recorder)
        client = pair.client
        address = IPv6Address("TCP", "2001:db8::9", 25000)
        client.negotiate()
        client.connect("h", address, {"j": "mx.example.net"})
        client.helo("helo.example.org")
        client.unknown("FOO bar \udcff")
        client.send_message(MESSAGE, "<s@example.org>", [A], sender_args=["SIZE=9"],
                            macros={"i": "Q1"})  # fmt: skip
        client.quit()
        pair.flush()
        self.assertEqual(
            calls,
            [
                ("connect", "h", address, "mx.example.net"),
                ("helo", "helo.example.org"),
                ("unknown", "FOO bar \udcff"),
                ("mail", "<s@example.org>", "SIZE=9"),
                ("rcpt", A, "a@example.net"),
                ("data",),
                ("header", "From", "a"),
                ("header", "Subject", " hi\n there"),
                ("eoh",),
                ("body", b"body \xff\r\n"),
                ("eom", "Q1"),
                ("close",),
            ],
        )

    def test_each_kind_of_address_arrives_as_the_object_it_was(self) -> None:
        """
        Each kind of address arrives as the object it was.
        """
        seen: list[object] = []

        class Recorder(Milter):
            def xxfi_connect(self, hostname: str, hostaddr: object) -> None:
                seen.append(hostaddr)

        addresses = [
            IPv4Address("TCP", "192.0.2.1", 4321),
            IPv6Address("TCP", "2001:db8::9", 25000),
            UNIXAddress("/run/x"),
            None,
        ]
        for address in addresses:
            pair = Pair(Recorder)
            pair.client.negotiate()
            self.result(pair, pair.client.connect("h", address))
        self.assertEqual(seen, addresses)

    def test_every_action_arrives_as_tuple_that_says_it_in_order_made(self) -> None:
        """
        Every action arrives as the tuple that says it, in the order made.
        """

        class Editor(Milter):
            def xxfi_eom(self) -> None:
                self.smfi_addheader("X", "a\n b")
                self.smfi_insheader(1, b"Y", b"\xff")
                self.smfi_chgheader("Z", 2, None)
                self.smfi_chgfrom("<>")
                self.smfi_chgfrom("<f@example.org>", "RET=HDRS")
                self.smfi_addrcpt(A)
                self.smfi_addrcpt_par(A, "NOTIFY=NEVER")
                self.smfi_delrcpt(B)
                self.smfi_replacebody(b"new\r\n")
                self.smfi_quarantine("held")

        pair = Pair(Editor)
        pair.client.negotiate()
        outcome = self.result(pair, pair.client.send_message(MESSAGE, recipients=[A]))
        self.assertEqual(
            outcome.edits,
            (
                AddHeader("X", "a\n b"),
                InsertHeader(1, "Y", "\udcff"),
                ChangeHeader(2, "Z", ""),
                ChangeSender("<>"),
                ChangeSender("<f@example.org>", "RET=HDRS"),
                AddRecipient(A),
                AddRecipient(A, "NOTIFY=NEVER"),
                DeleteRecipient(B),
                Quarantine("held"),
                # Whenever it was made.
                ReplaceBody(b"new\r\n"),
            ),
        )

    def test_recipient_is_refused_with_milters_own_text(self) -> None:
        """
        A recipient is refused with the milter's own text, and the message goes on without it.
        """

        class Guard(Milter):
            async def xxfi_envrcpt(self, argv: list[str]) -> int:
                if argv[0] == B:
                    self.smfi_setmlreply("550", "5.1.1", "No", "such user")
                    return c.SMFIS_REJECT
                return c.SMFIS_CONTINUE

        pair = Pair(Guard)
        pair.client.negotiate()
        outcome = self.result(pair, pair.client.send_message(MESSAGE, recipients=[A, B]))
        self.assertTrue(outcome.accepted)
        refused = [one for one in outcome.recipients if not one.accepted]
        self.assertEqual(
            [(one.address, one.response.text) for one in refused],
            [(B, "550-5.1.1 No\r\n550 5.1.1 such user")],
        )

    def test_no_reply_and_skip(self) -> None:
        """
        Header fields need no answer where the milter said so, and the body ends with its SKIP.
        """
        seen: list[object] = []

        class Quick(Milter):
            @noreply
            def xxfi_header(self, headerf: str, headerv: str) -> None:
                seen.append(headerf)

            def xxfi_body(self, bodyp: bytes) -> int:
                seen.append(len(bodyp))
                return c.SMFIS_SKIP

        pair = Pair(Quick)
        agreement = self.result(pair, pair.client.negotiate())
        self.assertEqual(agreement.steps & c.ALL_NR_STEPS, c.SMFIP_NR_HDR)
        message = b"A: b\nC: d\n\n" + b"x\n" * 100000
        outcome = self.result(pair, pair.client.send_message(message, recipients=[A]))
        self.assertEqual(seen, ["A", "C", 65535])
        self.assertTrue(outcome.accepted)

    def test_milter_that_takes_its_time_keeps_client_waiting(self) -> None:
        """
        A milter that takes its time keeps the client waiting, however short its patience.
        """
        waiting: list[Deferred[int]] = []

        class Slow(Milter):
            def xxfi_eom(self) -> Deferred[int]:
                waiting.append(Deferred())
                return waiting[0]

        pair = Pair(Slow, progress_interval=20)
        pair.client.negotiate()
        result = pair.client.send_message(MESSAGE, recipients=[A])
        pair.flush()
        for _ in range(10):
            pair.clock.advance(20)
            pair.flush()
        waiting[0].callback(c.SMFIS_ACCEPT)
        outcome = self.result(pair, result)
        self.assertEqual((outcome.verdict, outcome.progress), (c.SMFIS_ACCEPT, 10))

    def test_macros_that_milter_asks_for_are_ones_it_gets(self) -> None:
        """
        The macros that a milter asks for are the ones it gets.
        """
        seen: list[object] = []

        class Asker(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> int:
                self.smfi_setsymlist(c.SMFIM_ENVFROM, "{client_addr}")
                return c.SMFIS_CONTINUE

            def xxfi_envfrom(self, argv: list[str]) -> None:
                seen.append([self.smfi_getsymval(name) for name in ("{client_addr}", "i")])

        pair = Pair(Asker)
        pair.client.negotiate()
        macros = {"i": "Q1", "{client_addr}": "192.0.2.1"}
        self.result(pair, pair.client.send_message(MESSAGE, recipients=[A], macros=macros))
        self.assertEqual(seen, [["192.0.2.1", None]])

    def test_milter_that_refuses_offer_closes_connection(self) -> None:
        """
        A milter that refuses the offer closes the connection, and the client's command fails.
        """

        class Demanding(Milter):
            xxfi_flags = c.SMFIF_CHGFROM

            def xxfi_eom(self) -> None:
                pass

        pair = Pair(Demanding)
        result = pair.client.negotiate(actions=c.SMFI_V1_ACTS)
        pair.flush()
        self.failureResultOf(result, PeerError)

    def test_with_each_version_of_protocol_milter_is_sent_what_that_version_has(self) -> None:
        """
        With each version of the protocol the milter is sent what that version has.
        """

        class Recorder(Milter):
            def xxfi_data(self) -> None:
                seen.append("data")

            def xxfi_unknown(self, arg: str) -> None:
                seen.append("unknown")

            def xxfi_close(self) -> None:
                seen.append("close")

        table = {
            2: [],
            3: ["unknown"],
            4: ["data", "unknown"],
            6: ["data", "unknown", "close"],
        }
        for version, expected in table.items():
            seen: list[str] = []
            pair = Pair(Recorder)
            client = pair.client
            agreement = self.result(pair, client.negotiate(version))
            self.assertEqual(agreement.version, version)
            client.mail("<>")
            client.rcpt(A)
            for command in (client.data(), client.unknown("X"), client.abort(), client.quit_nc()):
                self.result(pair, command)
            self.assertEqual(seen, expected)
