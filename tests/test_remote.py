"""
Tests of milters that run elsewhere, in memory: the MTA by hand, the stand-in, and a remote milter
that is one of this library's own or follows a script.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from yatxmilter import Milter, MilterFactory, noreply
from yatxmilter import constants as c
from yatxmilter.interfaces import IMilter, IMilterFactory
from yatxmilter.remote import RemoteMilter, RemoteMilterFactory
from yatxmilter.wire import Offer, encode_offer

from .conversation_helpers import (
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
    MESSAGE,
    QUIT,
    QUIT_NC,
    RCPT,
    UNKNOWN,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    offer,
    packet,
    strings,
)
from .milterside import stand_in_for_reactor
from .remotes import Remote, RemoteConversation, Scripted, scripted, serving

#: The commands of a message, each as a read of its own.
COMMANDS = (MAIL, RCPT, DATA, HEADER, EOH, BODY, EOM)
CONTINUE = packet("c")
#: The answer to an offer of one who wants everything and may do everything.
AGREED = encode_offer(Offer(6, 0x1FF, 0))


def started(remote: Remote, **options: Any) -> RemoteConversation:
    """
    Make a conversation that has negotiated.
    """
    conversation = RemoteConversation(remote, **options)
    conversation.agree()
    return conversation


def breaking(**answers: list[bytes | None]) -> Remote:
    """
    Make a remote milter that answers CONTINUE, but for these.
    """
    usual: dict[str, list[bytes | None]] = {letter: [CONTINUE] for letter in "CHMRTLNBEU"}
    return scripted({"O": [AGREED], **usual, **answers})


class FactoryTests(ConversationTestCase):
    """
    `RemoteMilterFactory` and its options.
    """

    def test_interfaces(self) -> None:
        """
        Factory and milter are a milter factory and a milter like any other.
        """
        factory = RemoteMilterFactory("inet:8891@127.0.0.1")
        self.assertTrue(verifyObject(IMilterFactory, factory))
        made = factory.build_milter(None)
        self.assertTrue(verifyObject(IMilter, made))
        self.assertIsInstance(made, RemoteMilter)
        self.assertIsNone(factory.timeout)

    def test_name(self) -> None:
        """
        A remote milter is called as it was named, or by its address.
        """
        self.assertEqual(RemoteMilterFactory("/run/a").name, "/run/a")
        self.assertEqual(RemoteMilterFactory("/run/a", name="DKIM").name, "DKIM")
        self.assertEqual(RemoteMilterFactory(breaking()).name, "remote milter")

    def test_bad_options(self) -> None:
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
        ):
            self.assertRaises(error, RemoteMilterFactory, where, **options)

    def test_address(self) -> None:
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

    def test_offer(self) -> None:
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

    def test_symbol_lists(self) -> None:
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

    def test_blanks(self) -> None:
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

    def test_refused_recipients(self) -> None:
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

    def test_answers(self) -> None:
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

    def test_replies(self) -> None:
        """
        The text of a reply arrives as it was sent, one that no function would take included.
        """
        for text in (b"550 5.7.1 no\xff way", b"451-4.3.0 a\r\n452 4.2.2 b", b"550 "):
            conversation = started(breaking(R=[packet("y", text + b"\0")]))
            self.assertEqual(conversation.packets(MAIL, RCPT)[-1], ("y", text + b"\0"))

    def test_recipients(self) -> None:
        """
        A recipient refused from afar is refused, and the message goes on with the others.
        """
        far = full(envrcpt=lambda self, argv: c.SMFIS_REJECT if "bad" in argv[0] else None)
        bad = packet("R", b"<bad@example.net>\0")
        conversation = started(serving(far))
        self.assertEqual(conversation.letters(MAIL, RCPT, bad, *COMMANDS[2:]), "ccrccccc")
        self.assertEqual(names(far.calls)[-1], "eom")

    def test_skip(self) -> None:
        """
        SKIP from afar stops the body for the remote milter, until the next message.
        """
        far, near = full(body=c.SMFIS_SKIP), full(body=None)
        conversation = started(serving(far), after=(near,))
        for message in (1, 2):
            self.assertEqual(conversation.letters(*COMMANDS[:-1], BODY, BODY, EOM), 9 * "c")
            self.assertEqual(names(far.calls).count("body"), message)
            self.assertEqual(names(near.calls).count("body"), 3 * message)

    def test_silent_steps(self) -> None:
        """
        Where the remote milter does not answer nothing is waited for.
        """
        far = full(quiet=("header", "body"))
        conversation = started(serving(far))
        self.assertEqual(
            conversation.letters(MAIL, RCPT, DATA, HEADER, HEADER, EOH, BODY, EOM), 5 * "c"
        )
        self.assertEqual(names(far.calls).count("header"), 2)

    def test_abort(self) -> None:
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


class MacroTests(ConversationTestCase):
    """
    The remote milter knows the MTA's macros.
    """

    def test_each_stage(self) -> None:
        """
        Macros are passed on with the command that they came with.
        """
        seen: list[tuple[str, str | None]] = []

        def look(name: str) -> Any:
            return lambda self, *_: seen.append((name, self.smfi_getsymval(name)))

        far = full(
            connect=look("j"), envfrom=look("i"), envrcpt=look("{rcpt_addr}"), eom=look("{msg_id}")
        )
        conversation = started(serving(far))
        conversation.send(
            macros("C", b"j", b"mx.example.net") + CONNECT,
            macros("M", b"i", b"4Xyz") + MAIL,
            macros("R", b"{rcpt_addr}", b"r@example.net") + RCPT,
            macros("E", b"{msg_id}", b"<1@x>\xff") + EOM,
        )
        self.assertEqual(
            seen,
            [("j", "mx.example.net"), ("i", "4Xyz"), ("{rcpt_addr}", "r@example.net")]
            + [("{msg_id}", "<1@x>\udcff")],
        )

    def test_declined_commands(self) -> None:
        """
        The macros of a command that the remote milter does not want are sent to it all the same,
        once a message, for it may look them up later.
        """
        steps = DECLINED & ~c.SMFIP_NOBODY
        remote = breaking(O=[encode_offer(Offer(6, 0, steps))])
        conversation = started(remote)
        connect = macros("C", b"j", b"mx.example.net") + CONNECT
        mail = macros("M", b"i", b"4Xyz")
        conversation.send(connect, mail + BODY, BODY, EOM, BODY, EOM)
        once = [("D", b"Cj\0mx.example.net\0"), ("D", b"Mi\x004Xyz\0")]
        body, end = ("B", b"Hello\r\n"), ("E", b"")
        expected = [*once, body, body, end, *once, body, end]
        self.assertEqual(remote.servers[0].heard[1:], expected)

    def test_names_as_they_came(self) -> None:
        """
        Names go on as they came, and one that lost its value is left out.
        """
        remote = breaking()
        conversation = started(remote)
        conversation.send(packet("D", b"C{j}\0mx\0{client_addr}\0") + CONNECT)
        self.assertEqual(remote.servers[0].heard[1], ("D", b"C{j}\0mx\0"))


class EditTests(ConversationTestCase):
    """
    The remote milter's edits.
    """

    EDITS = (
        packet("h", b"X-Spam\0no\0"),
        packet("i", b"\0\0\0\0X-Top\0one\n\ttwo\0"),
        packet("m", b"\0\0\0\1Subject\0[x] hi\0"),
        packet("m", b"\0\0\0\2X-Old\0\0"),
        packet("+", b"<n@example.net>\0"),
        packet("2", b"<p@example.net>\0NOTIFY=NEVER\0"),
        packet("-", b"<r@example.net>\0"),
        packet("e", b"<new@example.org>\0"),
        packet("e", b"<new@example.org>\0RET=HDRS\0"),
        packet("b", b"new\r\n"),
        packet("b", b""),
        packet("q", b"held \xff\0"),
    )

    def test_all_edits(self) -> None:
        """
        Each edit reaches the MTA as it was sent, in order, in one write with the answer.
        """
        edits = b"".join(self.EDITS)
        conversation = started(breaking(E=[edits + CONTINUE]))
        conversation.send(*COMMANDS[:-1])
        self.assertEqual(conversation.send(EOM), edits + CONTINUE)

    def test_recipient_by_the_other_action(self) -> None:
        """
        Who may add recipients with ESMTP arguments only does so, with none.
        """
        add = packet("2", b"<p@example.net>\0")
        remote = breaking(O=[encode_offer(Offer(6, 0x80, 0))], E=[add + CONTINUE])
        conversation = started(remote)
        conversation.send(MAIL, RCPT)
        self.assertEqual(conversation.send(EOM), add + CONTINUE)

    def test_folds(self) -> None:
        """
        Header values are folded as an MTA would do it with those that are not.
        """
        rows = {
            b"a\r\n\tb": b"a\n\tb",
            b"a\r\nb": b"a\n\tb",
            b"a\nb\n c": b"a\n\tb\n c",
            b"a\r\n": b"a",
        }
        for value, folded in rows.items():
            conversation = started(breaking(E=[packet("h", b"X\0" + value + b"\0") + CONTINUE]))
            packets = conversation.packets(MAIL, RCPT, EOM)
            self.assertIn(("h", b"X\0" + folded + b"\0"), packets)

    def test_impossible_edit(self) -> None:
        """
        An edit that would break the message is a failure of the remote milter, and none is made.
        """
        edits = packet("h", b"X\0y\0") + packet("b", b"z") + packet("h", b"X\0a\rb\0")
        for code, letter in ((c.SMFIS_TEMPFAIL, "t"), (c.SMFIS_CONTINUE, "c")):
            conversation = started(breaking(E=[edits + CONTINUE]), on_error=code)
            self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + letter)
        self.assertEqual(self.log_text().count("Milter afar failed in xxfi_eom"), 2)

    def test_order_of_members(self) -> None:
        """
        Edits come in the order of the members, whoever is done first.
        """
        near = full(eom=lambda self: self.smfi_addheader("X-Near", "1"))
        far = full(eom=lambda self: self.smfi_addheader("X-Far", "2"))
        conversation = started(serving(far), before=(near,), after=(near,))
        conversation.send(*COMMANDS[:-1])
        fields = [payload[:6] for letter, payload in conversation.packets(EOM) if letter == "h"]
        self.assertEqual(fields, [b"X-Near", b"X-Far\0", b"X-Near"])

    def test_chain(self) -> None:
        """
        In a chain the remote milter is shown what the milters before it have made.
        """
        near = full(eom=lambda self: self.smfi_replacebody(b"edited\r\n"))
        far = full()
        conversation = started(serving(far), before=(near,), merge="chain")
        self.assertEqual(conversation.letters(*COMMANDS), "cccccc" + "bc")
        self.assertIn(("body", b"edited\r\n"), far.calls)

    def test_progress(self) -> None:
        """
        PROGRESS from afar goes on at the end of a message, and nowhere else.
        """
        progress = packet("p")
        remote = breaking(R=[progress + CONTINUE], E=[progress + progress + CONTINUE])
        conversation = started(remote)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "cc" + "ppc")


class FellowTests(ConversationTestCase):
    """
    A fellow decides while the remote milter is still asked.
    """

    def test_late_answers_are_heard(self) -> None:
        """
        An answer that nobody waits for any more is heard before the next message begins.
        """
        waiting = Waiting()
        far = full(envfrom=waiting)
        near = full(envfrom=lambda self, argv: verdicts.pop(0))
        verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        conversation = started(serving(far), after=(near,))
        self.assertEqual(conversation.letters(CONNECT, HELO, MAIL), "ccr")
        self.assertEqual(conversation.letters(MAIL), "")
        self.assertEqual(names(far.calls), ["connect", "helo", "envfrom"])
        waiting.fire()
        conversation.carry()
        self.assertEqual(names(far.calls)[2:], ["envfrom", "abort", "envfrom"])
        waiting.fire()
        self.assertEqual(conversation.carry(), CONTINUE)
        self.assertEqual(self.log_text(), "")

    def test_late_end_of_a_message(self) -> None:
        """
        When a fellow has refused a recipient before the remote milter accepted the message, that
        one is asked no more in it.
        """
        for code, letter in ((c.SMFIS_ACCEPT, "a"), (c.SMFIS_DISCARD, "d")):
            waiting = Waiting()
            verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
            near = full(envrcpt=lambda self, argv, verdicts=verdicts: verdicts.pop(0))
            far = full(envrcpt=waiting)
            conversation = started(serving(far), after=(near,))
            self.assertEqual(conversation.letters(MAIL, RCPT), "cr")
            self.assertEqual(conversation.letters(RCPT), "")
            waiting.fire(code)
            self.assertEqual(conversation.carry(), packet(letter))
            self.assertEqual(names(far.calls)[:2], ["envfrom", "envrcpt"])
            self.assertEqual(names(far.calls).count("envrcpt"), 1)

    def test_failure_that_nobody_waits_for(self) -> None:
        """
        A remote milter that goes away when nobody waits for it is found out at the next command.
        """
        waiting = Waiting()
        far = full(envfrom=waiting)
        near = full(envfrom=c.SMFIS_REJECT)
        conversation = started(serving(far), after=(near,), on_error=c.SMFIS_DISCARD)
        self.assertEqual(conversation.letters(MAIL), "r")
        conversation.remote.crash()
        conversation.carry()
        self.assertEqual(self.log_text(), "")
        self.assertEqual(conversation.letters(MAIL), "d")
        self.assertIn("Milter afar failed in xxfi_envfrom", self.log_text())

    def test_failure_while_another_command_waits(self) -> None:
        """
        The command that waits behind an answer that never comes has failed with it.
        """
        waiting = Waiting()
        near = full(envfrom=lambda self, argv: verdicts.pop(0))
        verdicts = [c.SMFIS_REJECT, c.SMFIS_CONTINUE]
        conversation = started(serving(full(envfrom=waiting)), after=(near,))
        self.assertEqual(conversation.letters(MAIL, MAIL), "r")
        conversation.remote.crash()
        self.assertEqual(conversation.carry(), packet("t"))

    def test_gone_in_mid_message(self) -> None:
        """
        An ABORT to a remote milter that is gone does no harm.
        """
        conversation = started(serving(full()))
        conversation.send(MAIL)
        conversation.remote.crash()
        conversation.carry()
        self.assertEqual(conversation.letters(ABORT, MAIL), "t")

    def test_end_of_message_of_a_fellow(self) -> None:
        """
        What is answered too late at the end of a message is dropped, and PROGRESS with it.
        """
        answer: Deferred[int] = Deferred()
        near = full(eom=lambda self: answer)
        remote = breaking(E=[b"", CONTINUE])
        conversation = started(remote, after=(near,))
        conversation.send(*COMMANDS)
        answer.callback(c.SMFIS_REJECT)
        self.assertEqual(conversation.carry(), packet("r"))
        remote.servers[0].transport.write(packet("p") + packet("h", b"X\0y\0") + CONTINUE)
        self.assertEqual(conversation.carry(), b"")
        self.assertEqual(conversation.letters(MAIL), "c")


class FailureTests(ConversationTestCase):
    """
    ``on_error`` stands for a remote milter that has failed.
    """

    def test_refuses_connections(self) -> None:
        """
        Who cannot be reached is answered for at each message, logged once, and tried again at the
        MTA's next connection.
        """
        far = full()
        remote = serving(far)
        remote.refusing = True
        conversation = RemoteConversation(remote)
        self.assertEqual(conversation.agree(), (6, 0, DECLINED & ~c.SMFIP_NOMAIL))
        self.assertEqual(conversation.letters(MAIL, MAIL, QUIT), "tt")
        self.assertEqual(
            self.log_text(),
            "Milter afar failed in xxfi_negotiate (queue id unknown, MTA [192.0.2.25]:4242):"
            " Connection was refused by other side.; answering SMFIS_TEMPFAIL for it",
        )
        remote.refusing = False
        conversation.connect()
        conversation.agree()
        self.assertEqual(conversation.letters(CONNECT, HELO, *COMMANDS), 9 * "c")

    def test_each_code(self) -> None:
        """
        Each code may stand for one that cannot be reached; with CONTINUE and ACCEPT the MTA is
        asked for nothing.
        """
        for code, letter in (
            (c.SMFIS_REJECT, "r"),
            (c.SMFIS_TEMPFAIL, "t"),
            (c.SMFIS_DISCARD, "d"),
            (c.SMFIS_CONTINUE, ""),
            (c.SMFIS_ACCEPT, ""),
        ):
            remote = breaking()
            remote.refusing = True
            conversation = RemoteConversation(remote, on_error=code)
            steps = conversation.agree()[2]
            if letter:
                self.assertEqual(conversation.letters(MAIL), letter)
            else:
                self.assertEqual(steps, DECLINED)

    def test_message_given_up(self) -> None:
        """
        A message may be given up, and the next one begun, without the remote milter.
        """
        conversation = started(breaking(R=[None]), on_error=c.SMFIS_CONTINUE)
        self.assertEqual(conversation.letters(MAIL, RCPT, ABORT, *COMMANDS), "cc" + 7 * "c")

    def test_others_go_on(self) -> None:
        """
        With CONTINUE the others see the message to its end.
        """
        near = full()
        remote = breaking(R=[None])
        conversation = started(remote, after=(near,), on_error=c.SMFIS_CONTINUE)
        self.assertEqual(conversation.letters(*COMMANDS), 7 * "c")
        self.assertEqual(names(near.calls)[-1], "eom")
        self.assertEqual(self.log_text().count("failed"), 1)

    def test_breaks_the_protocol(self) -> None:
        """
        Nonsense from afar ends the connection to it; the log says what it was, where, and in which
        message.
        """
        remote = breaking(R=[packet("h", b"X\0y\0")])
        conversation = started(remote)
        queue = macros("M", b"i", b"4Xyz")
        self.assertEqual(conversation.letters(queue + MAIL, RCPT, DATA), "ctt")
        self.assertEqual(
            self.log_text(),
            "Milter afar failed in xxfi_envrcpt (queue id 4Xyz, MTA [192.0.2.25]:4242): the milter"
            " sent ADDHEADER in answer to RCPT; answering SMFIS_TEMPFAIL for it",
        )
        self.assertEqual(remote.open, 0)

    def test_refuses_to_negotiate(self) -> None:
        """
        One that closes the connection, or asks for what was not offered, has failed.
        """
        for answer in (None, encode_offer(Offer(6, 0x1FF, 0))):
            conversation = RemoteConversation(scripted({"O": [answer]}))
            conversation.agree(actions=0x1)
            self.assertEqual(conversation.letters(MAIL), "t")

    def test_impossible_symbol_list(self) -> None:
        """
        A list of macros for no stage is a failure too.
        """
        answer = encode_offer(Offer(6, 0, 0), {9: b"j"})
        conversation = RemoteConversation(scripted({"O": [answer], "Q": [None]}))
        self.assertEqual(conversation.agree()[1:], (0, DECLINED & ~c.SMFIP_NOMAIL))
        self.assertEqual(conversation.remote.open, 0)

    def test_no_connection_in_time(self) -> None:
        """
        A connection that does not come in time has failed.
        """
        remote = breaking()
        remote.hanging = True
        conversation = RemoteConversation(remote, connect_timeout=4)
        conversation.send(offer())
        conversation.reactor.advance(4)
        self.assertEqual(conversation.letters(MAIL), "Ot")
        self.assertIn("no connection within 4 s", self.log_text())
        self.assertEqual(remote.cancelled, 1)

    def test_silence(self) -> None:
        """
        An answer that does not come in time has failed; PROGRESS gives it time again.
        """
        remote = breaking(E=[packet("p")])
        conversation = started(remote, timeout=10)
        conversation.send(*COMMANDS)
        conversation.reactor.advance(9)
        remote.servers[0].transport.write(packet("p"))
        self.assertEqual(conversation.carry(), packet("p"))
        conversation.reactor.advance(9)
        self.assertEqual(conversation.carry(), b"")
        conversation.reactor.advance(1)
        self.assertEqual(conversation.carry(), packet("t"))
        self.assertIn("the milter was silent for 10 s, awaited: BODYEOB", self.log_text())

    def test_silent_steps_stay_silent(self) -> None:
        """
        Where no answer was promised a failure is said at the next step that has one.
        """
        agreed = encode_offer(Offer(6, 0, c.SMFIP_NR_HDR))
        remote = breaking(O=[agreed], T=[None])
        conversation = started(remote, on_error=c.SMFIS_DISCARD)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA), "ccd")
        remote = breaking(O=[agreed], R=[None])
        conversation = started(remote, on_error=c.SMFIS_TEMPFAIL)
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA), "ctt")
        remote = breaking(O=[agreed], R=[None])
        near = full(envrcpt=c.SMFIS_CONTINUE)
        conversation = started(remote, before=(near,), on_error=c.SMFIS_TEMPFAIL, merge="strictest")
        self.assertEqual(conversation.letters(MAIL, RCPT, HEADER), "ctc")
        self.assertNotIn("promised", self.log_text())

    def test_too_large_for_it(self) -> None:
        """
        A header field that a fellow let grow beyond the remote milter's packets is a failure.
        """
        large = c.SMFIP_MDS_256K
        near = full(negotiate=(c.SMFIS_CONTINUE, 0, large))
        conversation = RemoteConversation(serving(full()), before=(near,))
        conversation.agree(steps=0x1FFFFF | large)
        field = packet("L", b"X\0" + 70000 * b"a" + b"\0")
        self.assertEqual(conversation.letters(MAIL, RCPT, DATA, field), "ccct")
        self.assertIn("70003 bytes, at most 65535 were agreed", self.log_text())

    def test_illegal_answer(self) -> None:
        """
        A code that is illegal at its stage is held against the remote milter like any other's.
        """
        conversation = started(breaking(C=[packet("d")]))
        self.assertEqual(conversation.letters(CONNECT), "t")
        self.assertEqual(len(self.failures()), 1)

    def test_message_without_end(self) -> None:
        """
        The stand-in's callbacks have names for the log, and its factory's name.
        """
        conversation = started(breaking(), name="DKIM")
        (member,) = conversation.protocol.milters
        self.assertEqual(member.factory.name, "DKIM")
        self.assertEqual(type(member).xxfi_helo.__doc__, "Pass HELO on.")
        self.assertIsInstance(member.factory, MilterFactory)
        self.assertEqual(conversation.letters(MESSAGE), 7 * "c")
