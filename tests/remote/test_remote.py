"""
Tests of milters that run elsewhere, in memory: the MTA by hand, the stand-in, and a remote milter
that is one of this library's own or follows a script. What is negotiated, and what is passed on.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from tests.conversation_helpers import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    DECLINED,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    QUIT,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    strings,
)
from tests.milterside import stand_in_for_reactor
from tests.remotes import (
    AGREED,
    COMMANDS,
    CONTINUE,
    RemoteConversation,
    Scripted,
    breaking,
    scripted,
    serving,
    started,
)
from yatxmilter import Milter, noreply
from yatxmilter import constants as c
from yatxmilter._wire.payloads import Offer, encode_offer
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.remote import RemoteMilter, RemoteMilterFactory


class FactoryTests(ConversationTestCase):
    """
    `RemoteMilterFactory` and its options.
    """

    def test_factory_and_milter_are_milter_factory_and_milter_like_any_other(self) -> None:
        """
        Factory and milter are a milter factory and a milter like any other.
        """
        factory = RemoteMilterFactory("inet:8891@127.0.0.1")
        self.assertTrue(verifyObject(IMilterFactory, factory))
        made = factory.build_milter(None)
        self.assertTrue(verifyObject(IMilter, made))
        self.assertIsInstance(made, RemoteMilter)
        self.assertIsNone(factory.timeout)

    def test_remote_milter_is_called_as_it_was_named_or_by_its_address(self) -> None:
        """
        A remote milter is called as it was named, or by its address.
        """
        self.assertEqual(RemoteMilterFactory("/run/a").name, "/run/a")
        self.assertEqual(RemoteMilterFactory("/run/a", name="DKIM").name, "DKIM")
        self.assertEqual(RemoteMilterFactory(breaking()).name, "remote milter")

    def test_what_is_no_address_or_no_option_is_refused_when_factory_is_made(self) -> None:
        """
        What is no address or no option is refused when the factory is made.
        """
        for error, where, options in (
            (ValueError, "inet:x@127.0.0.1", {}),
            (TypeError, 8891, {}),
            (ValueError, "/run/a", {"on_error": 99}),
            (ValueError, "/run/a", {"timeout": 0}),
            (ValueError, "/run/a", {"connect_timeout": -1}),
            (TypeError, "/run/a", {"connect_timeout": None}),
            (TypeError, "/run/a", {"reuse": "yes"}),
            (TypeError, "/run/a", {"name": ""}),
            (TypeError, "/run/a", {"colour": "red"}),
        ):
            self.assertRaises(error, RemoteMilterFactory, where, **options)

    def test_reactor_connects_to_address_by_default_it_is_global_one(self) -> None:
        """
        The reactor connects to the address; by default it is the global one.
        """
        for given in (True, False):
            reactor = MemoryReactorClock()
            if not given:
                stand_in_for_reactor(self, reactor)
            remote = RemoteMilterFactory(
                "inet:8891@192.0.2.1", connect_timeout=4, reactor=reactor if given else None
            )
            conversation = Conversation(remote)
            conversation.send(offer())
            host, port, _, timeout, _ = reactor.tcpClients[0]
            self.assertEqual((host, port, timeout), ("192.0.2.1", 8891, 4))


class NegotiationTests(ConversationTestCase):
    """
    What the remote milter wants is asked of the MTA.
    """

    def test_actions_and_steps(self) -> None:
        """
        The MTA is asked for the actions and steps that the remote milter asked for.
        """

        class Quiet(Milter):
            xxfi_flags = c.SMFIF_ADDHDRS | c.SMFIF_QUARANTINE

            @noreply
            def xxfi_header(self, headerf: str, headerv: str) -> None:
                pass

            def xxfi_body(self, bodyp: bytes) -> None:
                pass

        steps = DECLINED & ~c.SMFIP_NOHDRS & ~c.SMFIP_NOBODY | c.SMFIP_NR_HDR | c.SMFIP_SKIP
        self.assertEqual(RemoteConversation(serving(Quiet)).agree(), (6, 0x21, steps))

    def test_what_the_mta_cannot_do(self) -> None:
        """
        The remote milter gets what can be done for it even where the MTA is an old one.
        """
        far = milter(envrcpt=c.SMFIS_CONTINUE, body=c.SMFIS_SKIP, quiet=("envrcpt",))
        conversation = RemoteConversation(serving(far))
        version, actions, steps = conversation.agree(steps=0x0F, actions=0x0F, version=2)
        self.assertEqual((version, actions), (2, 0x0F))
        self.assertEqual(steps & ~0x0F, 0)
        answers = conversation.letters(CONNECT, HELO, *COMMANDS[:2], HEADER, EOH, BODY, BODY, EOM)
        self.assertEqual(answers, "ccccccccc")
        self.assertEqual(names(far.calls), ["envrcpt", "body"])

    def test_remote_milter_is_offered_actions_and_values_of_mta(self) -> None:
        """
        The remote milter is offered the actions and the values of the MTA; larger packets are not
        for it.
        """
        remote = breaking()
        RemoteConversation(remote).agree(steps=0x1FFFFF | c.SMFIP_MDS_256K, actions=0x31)
        self.assertEqual(remote.servers[0].heard, [("O", offer(actions=0x31)[5:])])
        remote = breaking()
        RemoteConversation(remote).agree(steps=0x7F)
        self.assertEqual(remote.servers[0].heard, [("O", offer(0x0FF7FF)[5:])])

    def test_remote_milters_lists_of_macros_reach_mta(self) -> None:
        """
        The remote milter's lists of macros reach the MTA.
        """

        def negotiate(self: Any, *_: int) -> int:
            self.smfi_setsymlist(c.SMFIM_CONNECT, "j {client_port}")
            self.smfi_setsymlist(c.SMFIM_HELO, "")
            return c.SMFIS_CONTINUE

        conversation = RemoteConversation(serving(milter(negotiate=negotiate, eom=None)))
        ((_, payload),) = conversation.packets(offer())
        self.assertEqual(payload[12:], b"\0\0\0\0j {client_port}\0\0\0\0\1\0")

    def test_who_keeps_blank_behind_colon_gets_it_from_afar_too(self) -> None:
        """
        Who keeps the blank behind the colon gets it from afar too, and edits with it.
        """

        class Blank(Milter):
            def xxfi_negotiate(self, actions: int, steps: int) -> tuple[int, int, int]:
                return c.SMFIS_CONTINUE, actions, c.SMFIP_HDR_LEADSPC

            def xxfi_header(self, headerf: str, headerv: str) -> None:
                self.value = headerv

            def xxfi_eom(self) -> None:
                self.smfi_addheader("X-Seen", self.value)

        near = milter(eom=lambda self: self.smfi_addheader("X-Near", "a"))
        conversation = started(serving(Blank), before=(near,))
        conversation.send(MAIL, RCPT, DATA, packet("L", b"Subject\0  hi\0"), EOH)
        edits = [("h", b"X-Near\0 a\0"), ("h", b"X-Seen\0  hi\0")]
        self.assertEqual(conversation.packets(EOM), [*edits, ("c", b"")])

    def test_refused_recipients_are_shown_afar_only_to_who_asked(self) -> None:
        """
        Recipients that the MTA has refused are shown afar only to who asked for them.
        """
        for asked in (0, c.SMFIP_RCPT_REJ):
            far = full(negotiate=lambda self, a, s, asked=asked: (c.SMFIS_CONTINUE, 0, asked))
            near = milter(negotiate=(c.SMFIS_CONTINUE, 0, c.SMFIP_RCPT_REJ), eom=None)
            conversation = started(serving(far), before=(near,))
            error = macros("R", b"{rcpt_mailer}", b"error")
            conversation.send(MAIL, error + RCPT)
            self.assertEqual(names(far.calls).count("envrcpt"), 1 if asked else 0)


class CommandTests(ConversationTestCase):
    """
    What the remote milter hears, and what is answered.
    """

    def test_everything_is_passed_on(self) -> None:
        """
        Each command reaches the remote milter with its arguments, any byte of them.
        """
        far = full()
        conversation = started(serving(far))
        mail = packet("M", strings(b"<s\xff@example.org>", b"SIZE=42"))
        rcpt = packet("R", strings(b"<r@example.net>", b"NOTIFY=NEVER"))
        commands = (CONNECT, HELO, mail, rcpt, DATA, UNKNOWN, HEADER, EOH, BODY, EOM, QUIT)
        self.assertEqual(conversation.letters(*commands), "c" * 10)
        self.assertEqual(
            far.calls,
            [
                ("connect", "mail.example.org", IPv4Address("TCP", "192.0.2.1", 4321)),
                ("helo", "mail.example.org"),
                ("envfrom", ["<s\udcff@example.org>", "SIZE=42"]),
                ("envrcpt", ["<r@example.net>", "NOTIFY=NEVER"]),
                ("data",),
                ("unknown", "XYZZY"),
                ("header", "Subject", "hi"),
                ("eoh",),
                ("body", b"Hello\r\n"),
                ("eom",),
                ("close",),
            ],
        )
        self.assertEqual(conversation.remote.open, 0)
        self.assertEqual(self.log_text(), "")

    def test_remote_milters_answer_is_answer_at_each_stage(self) -> None:
        """
        The remote milter's answer is the answer, at each stage.
        """
        stages = dict(
            zip(
                ("envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"),
                COMMANDS,
                strict=True,
            )
        )
        codes = {c.SMFIS_REJECT: "r", c.SMFIS_TEMPFAIL: "t", c.SMFIS_DISCARD: "d"}
        for stage, command in stages.items():
            for code, letter in {**codes, c.SMFIS_ACCEPT: "a"}.items():
                conversation = started(serving(full(**{stage: code})))
                before = COMMANDS[: COMMANDS.index(command)]
                answers = conversation.letters(*before, command)
                self.assertEqual(answers, "c" * len(before) + letter, (stage, code))
                conversation.drop()

    def test_text_of_reply_arrives_as_it_was_sent(self) -> None:
        """
        The text of a reply arrives as it was sent, one that no function would take included.
        """
        for text in (b"550 5.7.1 no\xff way", b"451-4.3.0 a\r\n452 4.2.2 b", b"550 "):
            conversation = started(breaking(R=[packet("y", text + b"\0")]))
            self.assertEqual(conversation.packets(MAIL, RCPT)[-1], ("y", text + b"\0"))

    def test_recipient_refused_from_afar_is_refused(self) -> None:
        """
        A recipient refused from afar is refused, and the message goes on with the others.
        """
        far = full(envrcpt=lambda self, argv: c.SMFIS_REJECT if "bad" in argv[0] else None)
        bad = packet("R", b"<bad@example.net>\0")
        conversation = started(serving(far))
        self.assertEqual(conversation.letters(MAIL, RCPT, bad, *COMMANDS[2:]), "ccrccccc")
        self.assertEqual(names(far.calls)[-1], "eom")

    def test_skip_from_afar_stops_body_for_remote_milter_until_next_message(self) -> None:
        """
        SKIP from afar stops the body for the remote milter, until the next message.
        """
        far, near = full(body=c.SMFIS_SKIP), full(body=None)
        conversation = started(serving(far), after=(near,))
        for message in (1, 2):
            self.assertEqual(conversation.letters(*COMMANDS[:-1], BODY, BODY, EOM), 9 * "c")
            self.assertEqual(names(far.calls).count("body"), message)
            self.assertEqual(names(near.calls).count("body"), 3 * message)

    def test_skip_from_afar_elsewhere_is_a_continue(self) -> None:
        """
        SKIP from afar at any other step is a CONTINUE, as it is for Postfix.
        """
        script: dict[str, list[bytes | None]] = dict.fromkeys("CHMRTLNE", [packet("s")])
        remote = scripted({**script, "O": [AGREED], "B": [CONTINUE]})
        conversation = RemoteConversation(remote)
        conversation.send(offer())
        self.assertEqual(conversation.letters(CONNECT, HELO, *COMMANDS), 9 * "c")

    def test_where_the_remote_milter_does_not_answer_nothing_is_waited_for(self) -> None:
        """
        Where the remote milter does not answer nothing is waited for.
        """
        far = full(quiet=("header", "body"))
        conversation = started(serving(far))
        self.assertEqual(
            conversation.letters(MAIL, RCPT, DATA, HEADER, HEADER, EOH, BODY, EOM), 5 * "c"
        )
        self.assertEqual(names(far.calls).count("header"), 2)

    def test_end_of_message_is_passed_on_and_so_is_next_message(self) -> None:
        """
        The end of a message is passed on, and so is the next message.
        """
        far = full()
        conversation = started(serving(far))
        self.assertEqual(conversation.letters(MAIL, RCPT, ABORT, *COMMANDS, ABORT, QUIT), 9 * "c")
        self.assertEqual(names(far.calls)[:4], ["envfrom", "envrcpt", "abort", "envfrom"])
        self.assertEqual(names(far.calls)[-2:], ["eom", "close"])

    def test_mta_goes_away(self) -> None:
        """
        When the MTA is gone in the middle of a message the remote milter hears of it.
        """
        far = full()
        conversation = started(serving(far))
        conversation.send(MAIL, RCPT)
        conversation.drop()
        conversation.carry()
        self.assertEqual(names(far.calls)[-2:], ["abort", "close"])
        self.assertEqual(conversation.remote.open, 0)

    def test_mta_goes_away_at_once(self) -> None:
        """
        An MTA that goes before the remote milter is there leaves nothing behind.
        """
        remote = breaking()
        remote.hanging = True
        conversation = RemoteConversation(remote)
        conversation.send(offer())
        conversation.drop()
        self.assertEqual(remote.cancelled, 1)
        self.assertEqual(conversation.reactor.getDelayedCalls(), [])
        self.assertEqual(self.log_text(), "")

    def test_new_smtp_connection(self) -> None:
        """
        QUIT_NC of the MTA gives the remote milter a new connection too, on what was agreed on.
        """
        far = full()
        conversation = started(serving(far))
        commands = (CONNECT, HELO, *COMMANDS)
        for _ in range(2):
            self.assertEqual(conversation.letters(*commands, QUIT_NC), 9 * "c")
        self.assertEqual(names(far.calls).count("close"), 2)
        self.assertEqual(len(conversation.remote.servers), 2)

    def test_new_smtp_connection_on_other_terms(self) -> None:
        """
        A remote milter that wants something else on its new connection has failed.
        """
        remote = breaking(O=[AGREED])
        conversation = started(remote)
        conversation.send(CONNECT, QUIT_NC)
        remote._serve = lambda: Scripted({"O": [encode_offer(Offer(6, 0x1, 0))]})
        self.assertEqual(conversation.letters(CONNECT), "t")
        self.assertIn(
            "Milter afar failed in xxfi_connect (queue id unknown, MTA [192.0.2.25]:4242): asks for"
            " something else than it did before; answering SMFIS_TEMPFAIL for it",
            self.log_text(),
        )
        self.assertEqual(remote.servers[1].letters, "OQ")

    def test_mta_goes_away_between(self) -> None:
        """
        So does an MTA that goes while the new connection is made.
        """
        conversation = started(serving(full()))
        conversation.send(CONNECT, QUIT_NC)
        conversation.remote.hanging = True
        conversation.send(CONNECT)
        conversation.drop()
        self.assertEqual(conversation.remote.cancelled, 1)
        self.assertEqual(conversation.reactor.getDelayedCalls(), [])
        self.assertEqual(self.log_text(), "")
