"""
``MilterFactory(when=...)``: which mail a milter is shown, and what it is told late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

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
    packet,
    started,
    strings,
)
from tests.engine.test_chain_limits import Turns
from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter import DISCONNECT, MilterFactory
from yatxmilter import constants as c
from yatxmilter._engine.conditions import Recipients
from yatxmilter._mail.bounds import MAX_LATE_COMMANDS
from yatxmilter._wire.commands import CONNECT_ROW, DATA_ROW, HELO_ROW, MAIL_ROW, RCPT_ROW
from yatxmilter._wire.macros import MacroStore
from yatxmilter.conditions import (
    Condition,
    MailView,
    authenticated,
    client_in,
    known_at,
    macro_is,
    over_tls,
    recipient_matches,
    sender_matches,
)
from yatxmilter.errors import LimitExceeded

MERGES = ("first", "strictest", "chain")
OTHER_RCPT = packet("R", b"<other@example.org>\0")


def view(**known: Any) -> MailView:
    """
    Make a view without macros.
    """
    return MailView(MacroStore().get, **known)


def view_of_macros(letter: str, **known: str) -> MailView:
    """
    Make a view of a message with macros of one stage.
    """
    store = MacroStore()
    pairs = [text for name, value in known.items() for text in ("{" + name + "}", value)]
    store.put(letter.encode() + strings(*(text.encode() for text in pairs)))
    return MailView(store.get)


def behind(condition: Any, made: Any, **options: Any) -> MilterFactory:
    """
    Make the factory of a milter behind a condition.
    """
    return MilterFactory(made, when=condition, **options)


def always(at: str) -> Condition:
    """
    Make a condition that is true, from a stage on.
    """
    return known_at(at)(lambda mail: True)


class ReadyConditionTests(SynchronousTestCase):
    """
    The conditions that are there to be used.
    """

    def test_client_in_knows_ipv4_ipv6_and_ipv4_written_as_ipv6(self) -> None:
        """
        ``client_in`` knows IPv4, IPv6 and IPv4 written as IPv6; what has no address is outside.
        """
        inside = client_in("192.0.2.0/24", "2001:db8::/32")
        cases = [
            (IPv4Address("TCP", "192.0.2.7", 1), True),
            (IPv4Address("TCP", "198.51.100.7", 1), False),
            (IPv6Address("TCP", "2001:db8::1", 1), True),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 1), True),
            (IPv6Address("TCP", "2001:db9::1", 1), False),
            (UNIXAddress(b"/run/socket"), False),
            (None, False),
        ]
        for address, expected in cases:
            found = inside.evaluate(view(client=address), CONNECT_ROW)
            self.assertIs(found, expected, address)

    def test_senders_match_by_address_domain_subdomain_or_local_part(self) -> None:
        """
        Patterns of senders are addresses, domains, subdomains, local parts or the empty sender.
        """
        cases = [
            ("user@example.com", "<User@Example.COM>", True),
            ("user@example.com", "<other@example.com>", False),
            ("example.com", "<x@example.com>", True),
            ("example.com", "<x@sub.example.com>", False),
            (".example.com", "<x@sub.example.com>", True),
            (".example.com", "<x@example.com>", False),
            ("postmaster@", "<postmaster@example.org>", True),
            ("postmaster@", "<postmaster>", True),
            ("postmaster@", "<x@example.org>", False),
            ("<>", "<>", True),
            ("<>", "<x@example.org>", False),
            ("example.com", "<@relay.example.org:x@example.com>", True),
            ("example.com", "<>", False),
        ]
        for pattern, address, expected in cases:
            found = sender_matches(pattern).evaluate(view(sender=(address,)), MAIL_ROW)
            self.assertIs(found, expected, (pattern, address))
            found = recipient_matches(pattern).evaluate(view(recipient=(address,)), RCPT_ROW)
            self.assertIs(found, expected, (pattern, address))

    def test_sender_that_is_not_there_matches_nothing(self) -> None:
        """
        A sender that is not there matches nothing.
        """
        self.assertIs(sender_matches("<>", "a@").evaluate(view(), MAIL_ROW), False)

    def test_log_in_tls_and_other_macros_are_looked_up(self) -> None:
        """
        Log-in, TLS and other macros are looked up; without a value any but the empty one will do.
        """
        cases = [
            (authenticated(), "M", {"auth_authen": "user"}, True),
            (authenticated(), "M", {"auth_type": "PLAIN"}, True),
            (authenticated(), "M", {"auth_type": ""}, False),
            (over_tls(), "H", {"tls_version": "TLSv1.3"}, True),
            (over_tls(), "H", {"cipher": "x"}, False),
            (macro_is("{daemon_name}", "smtps", "relay"), "C", {"daemon_name": "relay"}, True),
            (macro_is("{daemon_name}", "smtps"), "C", {"daemon_name": "relay"}, False),
            (macro_is("{own}"), "M", {"own": "1"}, True),
            (macro_is("{own}"), "M", {"own": ""}, False),
        ]
        for condition, letter, known, expected in cases:
            found = condition.evaluate(view_of_macros(letter, **known), MAIL_ROW)
            self.assertIs(found, expected, known)

    def test_when_macros_are_known(self) -> None:
        """
        A macro is looked at with the callback it comes with: the MTA's habit, or what is said.
        """
        for condition, row in [
            (macro_is("{daemon_name}"), CONNECT_ROW),
            (macro_is("{cipher}"), HELO_ROW),
            (macro_is("{own}"), MAIL_ROW),
            (macro_is("{rcpt_mailer}"), RCPT_ROW),
            (macro_is("{own}", at="data"), DATA_ROW),
        ]:
            self.assertEqual(condition.needs, {row})
            self.assertIs(condition.evaluate(view(), row), False)

    def test_conditions_are_joined_as_soon_as_their_parts_allow_and_no_sooner(self) -> None:
        """
        Conditions are joined as soon as their parts allow, and no sooner.
        """
        true, false = always("connect"), ~always("connect")
        unknown = always("data")
        table = [
            (true & false, False), (true & true, True), (false & unknown, False),
            (unknown & false, False), (true & unknown, None), (unknown & true, None),
            (true | unknown, True), (unknown | true, True), (false | unknown, None),
            (unknown | false, None), (false | false, False), (unknown | unknown, None),
            (~unknown, None), (~false, True),
        ]  # fmt: skip
        for condition, expected in table:
            self.assertIs(condition.evaluate(view(), CONNECT_ROW), expected)

    def test_plain_function_joins_condition_from_either_side_as_one_that_knows_sender(self) -> None:
        """
        A plain function joins a condition from either side, as one that knows the sender.
        """
        by_function = lambda mail: mail.sender == ("<a@example.com>",)  # noqa: E731
        for condition in (
            always("connect") & by_function,
            by_function & always("connect"),
            ~always("connect") | by_function,
            by_function | ~always("connect"),
        ):
            found = condition.evaluate(view(sender=("<a@example.com>",)), MAIL_ROW)
            self.assertIs(found, True)
            self.assertIs(condition.evaluate(view(sender=("<>",)), MAIL_ROW), False)
            self.assertIs(condition.evaluate(view(), HELO_ROW), None)

    def test_what_cannot_be_a_condition_is_refused_where_it_is_made(self) -> None:
        """
        What cannot be a condition is refused where it is made.
        """
        for bad in (
            lambda: client_in(),
            lambda: client_in("example.com"),
            lambda: client_in("192.0.2.1/24"),
            lambda: sender_matches(""),
            lambda: known_at("eom"),
            lambda: macro_is("{x}", at="header"),
        ):
            self.assertRaises(ValueError, bad)
        for bad in (
            lambda: MilterFactory(when=True),  # type: ignore[arg-type]
            lambda: MilterFactory(when=milter()),
            lambda: always("data") & 1,
            lambda: 1 | always("data"),
            lambda: always("data") and always("data"),
        ):
            self.assertRaises(TypeError, bad)

    def test_condition_that_waits_is_a_mistake_and_said_to_be_one(self) -> None:
        """
        A condition that waits is a mistake, and said to be one.
        """

        async def coroutine(mail: MailView) -> bool:
            return True

        for waits in (coroutine, lambda mail: Deferred()):
            condition = known_at("connect")(waits)
            error = self.assertRaises(TypeError, condition.evaluate, view(), CONNECT_ROW)
            self.assertIn("cannot wait", str(error))

    def test_condition_of_nobodys_making_has_no_value(self) -> None:
        """
        A condition of nobody's making has no value.
        """
        self.assertRaises(NotImplementedError, Condition().evaluate, view(), CONNECT_ROW)


class NegotiationTests(SynchronousTestCase):
    """
    What a condition asks of the MTA.
    """

    def declined(self, condition: Any, made: Any) -> int:
        """
        Negotiate; give the steps declined.
        """
        _, _, steps = Conversation(behind(condition, made)).agree()
        return steps & DECLINED

    def test_steps_a_condition_looks_at_are_asked_for_besides(self) -> None:
        """
        The steps a condition looks at are asked for besides the milter's own; a message's
        beginning too, unless all is known at connect.
        """
        only_body = milter(body=None)
        no_body = DECLINED & ~c.SMFIP_NOBODY
        cases = [
            (client_in("192.0.2.0/24"), c.SMFIP_NOCONNECT),
            (sender_matches("a@"), c.SMFIP_NOMAIL),
            (recipient_matches("a@"), c.SMFIP_NOMAIL | c.SMFIP_NORCPT),
            (over_tls(), c.SMFIP_NOHELO | c.SMFIP_NOMAIL),
            (
                always("data"),
                c.SMFIP_NOCONNECT
                | c.SMFIP_NOHELO
                | c.SMFIP_NOMAIL
                | c.SMFIP_NORCPT
                | c.SMFIP_NODATA,
            ),
        ]
        for condition, asked in cases:
            self.assertEqual(self.declined(condition, only_body), no_body & ~asked)

    def test_macro_that_mtas_do_not_send_unasked_is_asked_for(self) -> None:
        """
        A macro that MTAs do not send unasked is asked for, in the milter's own list or a new one.
        """

        def negotiate(self: Any, actions: int, steps: int) -> int:
            self.smfi_setsymlist(c.SMFIM_ENVFROM, "i")
            return c.SMFIS_CONTINUE

        condition = (
            macro_is("{own}") & macro_is("{verify}", at="helo") & macro_is("i", at="connect")
        )
        factory = behind(condition & authenticated(), milter(negotiate=negotiate, eom=None))
        ((_, payload),) = Conversation(factory).packets(
            packet("O", b"\0\0\0\6" + b"\0\0\1\xff" + b"\0\x1f\xff\xff")
        )
        self.assertIn(b"\0\0\0\2i {auth_authen} {auth_type} {own}\0", payload)
        self.assertIn(b"{cert_issuer} {verify}\0", payload)
        self.assertIn(b" v i\0", payload)

    def test_no_list_possible(self) -> None:
        """
        No list is made for an MTA that takes none, nor for macros that come anyway.
        """
        for condition, actions in ((macro_is("{own}"), 0xFF), (authenticated(), 0x1FF)):
            conversation = Conversation(behind(condition, milter(eom=None)))
            ((_, payload),) = conversation.packets(
                packet("O", b"\0\0\0\6" + actions.to_bytes(4, "big") + b"\0\x1f\xff\xff")
            )
            self.assertEqual(len(payload), 12)

    def test_milter_that_is_out_since_its_negotiation_failed_asks_for_nothing(self) -> None:
        """
        A milter that is out since its negotiation failed asks for nothing, and is only closed.
        """

        def negotiate(*_: Any) -> int:
            raise ZeroDivisionError

        made = full(negotiate=negotiate)
        conversation = Conversation(behind(always("data"), made, on_error=c.SMFIS_ACCEPT))
        _, _, steps = conversation.agree()
        self.assertEqual(steps & DECLINED, DECLINED)
        conversation.send(CONNECT + HELO + MESSAGE + QUIT)
        self.assertEqual(names(made.calls), ["negotiate", "close"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


SPEAKING = ["connect", "helo", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"]


class ShownTests(ConversationTestCase):
    """
    What a milter behind a condition is shown.
    """

    def shown(self, condition: Any, *pieces: bytes, merge: str = "first", **answers: Any) -> Any:
        """
        Give the names of what it is called with, in a conversation with one that wants all.
        """
        made = full("Gated", **answers)
        conversation = started(full("Other"), behind(condition, made), merge=merge)
        self.conversation = conversation
        self.answers = conversation.letters(*pieces)
        return names(made.calls)

    def test_from_each_stage(self) -> None:
        """
        Whenever a condition comes true, the milter sees what it would have seen, in order.
        """
        for merge in MERGES:
            for at in ("connect", "helo", "envfrom", "envrcpt", "data"):
                calls = self.shown(always(at), CONNECT + HELO + MESSAGE + QUIT, merge=merge)
                self.assertEqual(calls, [*SPEAKING, "close"], (merge, at))
                self.assertEqual(self.answers, "c" * 9)

    def test_whenever_condition_turns_out_false_milter_sees_nothing_at_all(self) -> None:
        """
        Whenever a condition turns out false, the milter sees nothing at all.
        """
        for merge in MERGES:
            for at in ("connect", "helo", "envfrom", "envrcpt", "data"):
                session = CONNECT + HELO + MESSAGE + MAIL + RCPT + DATA + UNKNOWN + ABORT + QUIT
                self.assertEqual(self.shown(~always(at), session, merge=merge), [], (merge, at))

    def test_milter_that_is_not_shown_a_message_does_without_its_body(self) -> None:
        """
        A milter that is not shown a message does without its body.
        """
        made = full()
        conversation = started(behind(~always("connect"), made))
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "cccccccsc")

    def test_what_depends_on_the_message_is_decided_for_each(self) -> None:
        """
        What depends on the message is decided for each; the connection is shown with the first.
        """
        other = packet("M", b"<x@example.com>\0") + MESSAGE[len(MAIL) :]
        calls = self.shown(
            sender_matches("example.com"), CONNECT + HELO, MESSAGE, other, MESSAGE, other
        )
        self.assertEqual(calls, [*SPEAKING, *SPEAKING[2:]])

    def test_after_quit_nc_all_is_decided_anew(self) -> None:
        """
        After QUIT_NC all is decided anew, and closed is what was shown.
        """
        far = packet("C", b"far.example.org\x004\x10\xe1198.51.100.1\0")
        calls = self.shown(
            client_in("192.0.2.0/24"),
            CONNECT + HELO + MESSAGE + QUIT_NC + far + HELO + MESSAGE + QUIT_NC + CONNECT + QUIT,
        )
        self.assertEqual(calls, [*SPEAKING, "close", "connect", "close"])

    def test_milter_is_shown_the_recipients_that_match(self) -> None:
        """
        A milter is shown the recipients that match, and the message from the first of them on.
        """
        made = full()
        conversation = started(behind(recipient_matches("example.net"), made))
        conversation.send(CONNECT + HELO + MAIL + OTHER_RCPT)
        self.assertEqual(made.calls, [])
        conversation.send(RCPT + OTHER_RCPT + RCPT + UNKNOWN + DATA)
        expected = ["connect", "helo", "envfrom", "envrcpt", "envrcpt", "unknown", "data"]
        self.assertEqual(names(made.calls), expected)
        self.assertEqual({call[1][0] for call in made.calls[3:5]}, {"<r@example.net>"})

    def test_message_to_nobody_that_matches_is_not_shown(self) -> None:
        """
        A message to nobody that matches is not shown.
        """
        session = CONNECT + HELO + MAIL + OTHER_RCPT + DATA + HEADER + EOH + BODY + EOM
        self.assertEqual(self.shown(recipient_matches("example.net"), session), [])

    def test_undecided_recipients_are_shown_when_they_are_decided(self) -> None:
        """
        Recipients that are not decided upon are shown when they are, at DATA or in its place.
        """
        late = known_at("data")(lambda mail: mail.recipient == ("<other@example.org>",))
        made = full()
        conversation = started(behind(recipient_matches("example.net") | late, made))
        third = packet("R", b"<third@example.org>\0")
        conversation.send(CONNECT + HELO + MAIL + OTHER_RCPT + third + RCPT)
        self.assertEqual(made.calls[3:], [("envrcpt", ["<r@example.net>"])])
        conversation.send(HEADER)
        self.assertEqual(names(made.calls[4:]), ["envrcpt", "header"])
        self.assertEqual(made.calls[4][1], ["<other@example.org>"])

    def test_known_with_the_sender(self) -> None:
        """
        What is known with the sender counts for all recipients.
        """
        by_either = sender_matches("s@") | recipient_matches("example.net")
        calls = self.shown(by_either, CONNECT + HELO + MAIL + OTHER_RCPT + RCPT)
        self.assertEqual(calls, ["connect", "helo", "envfrom", "envrcpt", "envrcpt"])

    def test_no_data_no_recipients(self) -> None:
        """
        Where no recipient was seen a condition is decided upon the message alone.
        """
        calls = self.shown(
            known_at("data")(lambda mail: mail.recipients == ()), CONNECT + HELO + MAIL + ABORT
        )
        self.assertEqual(calls, [])
        made = milter(eom=None, envfrom=None)
        conversation = started(behind(macro_is("{own}", at="data"), made))
        conversation.send(CONNECT + MAIL, macros("T", b"{own}", b"1") + DATA + EOM)
        self.assertEqual(names(made.calls), ["envfrom", "eom"])

    def test_client_that_says_helo_again_is_looked_at_again(self) -> None:
        """
        A client that says HELO again is looked at again; nothing is lost or told twice.
        """
        condition = known_at("helo")(lambda mail: mail.helo == "second.example.org")
        made = full()
        conversation = started(behind(condition, made))
        conversation.send(CONNECT + UNKNOWN + HELO + UNKNOWN)
        self.assertEqual(made.calls, [])
        conversation.send(packet("H", b"second.example.org\0") + UNKNOWN)
        self.assertEqual(
            names(made.calls), ["connect", "unknown", "helo", "unknown", "helo", "unknown"]
        )

    def test_unknown_commands_are_shown_in_their_place(self) -> None:
        """
        Unknown commands are shown in their place; what is answered to them late is for nobody.
        """
        session = CONNECT + HELO + MAIL + UNKNOWN + RCPT + DATA
        calls = self.shown(always("envrcpt"), session, unknown=c.SMFIS_REJECT)
        self.assertEqual(calls, ["connect", "helo", "envfrom", "unknown", "envrcpt", "data"])
        self.assertEqual(self.answers, "cccccc")
        calls = self.shown(~always("envfrom"), CONNECT + MAIL + UNKNOWN)
        self.assertEqual(calls, [])

    def test_unknown_command_before_the_message_is_none_of_the_message(self) -> None:
        """
        An unknown command that came before the message, and is shown late, has no part in it: what
        it keeps in ``message_state`` is gone where the message begins.
        """
        seen: list[bool] = []

        def unknown(milter: Any, arg: str) -> None:
            milter.message_state.rude = True

        def begin(milter: Any, argv: list[str]) -> None:
            seen.append(hasattr(milter.message_state, "rude"))

        def recipient(milter: Any, argv: list[str]) -> None:
            seen.append(hasattr(milter.message_state, "rude"))

        for session in (CONNECT + UNKNOWN + MAIL + RCPT, CONNECT + MAIL + UNKNOWN + RCPT):
            self.shown(
                always("envrcpt"), session, unknown=unknown, envfrom=begin, envrcpt=recipient
            )
        self.assertEqual(seen, [False, False, False, True])

    def test_abort_and_close(self) -> None:
        """
        An aborted message is told to who has seen some of it, a closed connection likewise.
        """
        calls = self.shown(always("envrcpt"), CONNECT + HELO + MAIL + ABORT + QUIT)
        self.assertEqual(calls, [])
        calls = self.shown(always("envfrom"), CONNECT + HELO + MAIL + ABORT + QUIT)
        self.assertEqual(calls, ["connect", "helo", "envfrom", "abort", "close"])
        calls = self.shown(always("connect"), CONNECT + HELO + MAIL + ABORT + QUIT)
        self.assertEqual(calls, ["connect", "helo", "envfrom", "abort", "close"])

    def test_milter_that_lacks_last_callbacks_does_without_them_here_too(self) -> None:
        """
        A milter with neither end of message nor abort nor close does without them here, too.
        """
        made = milter(envfrom=None)
        del made.xxfi_abort, made.xxfi_close
        conversation = started(behind(always("envfrom"), made), full())
        conversation.send(CONNECT + HELO + MESSAGE + MAIL + ABORT + QUIT)
        self.assertEqual(names(made.calls), ["envfrom", "envfrom"])

    def test_macros_of_their_time(self) -> None:
        """
        A callback that is shown late finds the macros of its own time, and the next one today's.
        """
        seen = []

        def look(self: Any, *_: Any) -> None:
            seen.append((self.smfi_getsymval("j"), self.smfi_getsymval("i")))

        made = milter(connect=look, helo=look, envfrom=look, envrcpt=look)
        conversation = started(behind(always("envrcpt"), made))
        conversation.send(macros("C", b"j", b"one") + CONNECT)
        conversation.send(macros("H", b"j", b"two") + HELO)
        conversation.send(macros("M", b"i", b"three") + MAIL)
        conversation.send(macros("R", b"i", b"four") + RCPT)
        expected = [("one", None), ("two", None), ("two", "three"), ("two", "four")]
        self.assertEqual(seen, expected)

    def test_argv_is_its_own(self) -> None:
        """
        What a milter does to its arguments is not seen by a condition or another milter.
        """

        def clear(self: Any, argv: list[str]) -> None:
            argv.clear()

        made = full(envfrom=clear)
        conversation = started(
            behind(sender_matches("s@"), made), behind(recipient_matches("r@"), full("B"))
        )
        conversation.send(CONNECT + HELO + MAIL + RCPT)
        self.assertEqual(
            conversation.protocol.milters[1].calls[2], ("envfrom", ["<s@example.org>"])
        )


class LateAnswerTests(ConversationTestCase):
    """
    What becomes of an answer that is given late.
    """

    def test_sender_rejected_late_is_rejected_for_each_recipient_that_matches(self) -> None:
        """
        A sender rejected late is rejected for each recipient that matches, and for no other.
        """

        def refuse(self: Any, argv: list[str]) -> int:
            self.smfi_setreply("550", "5.7.1", "no")
            return c.SMFIS_REJECT

        made = full(envfrom=refuse)
        conversation = started(full("Other"), behind(recipient_matches("example.net"), made))
        answers = conversation.packets(
            CONNECT + HELO + MAIL + OTHER_RCPT + RCPT + OTHER_RCPT + RCPT
        )
        refusal = ("y", b"550 5.7.1 no\0")
        go_on = ("c", b"")
        self.assertEqual(answers, [*[go_on] * 4, refusal, go_on, refusal])
        self.assertEqual(conversation.letters(DATA + HEADER + EOH + BODY + EOM), "ccccc")
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom"])
        conversation.send(ABORT + QUIT)
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom", "close"])

    def test_connection_rejected_late_is_rejected_with_each_of_its_messages(self) -> None:
        """
        A connection rejected late is rejected with each of its messages, without another call.
        """
        for merge in MERGES:
            made = full(connect=c.SMFIS_REJECT)
            conversation = started(behind(sender_matches("s@"), made), merge=merge)
            other = packet("M", b"<x@example.com>\0")
            answers = conversation.letters(CONNECT + HELO + MAIL, other + ABORT, MAIL, UNKNOWN)
            self.assertEqual(answers, "ccrcrc")
            self.assertEqual(names(made.calls), ["connect"])

    def test_connection_accepted_late_is_accepted_with_each_of_its_messages(self) -> None:
        """
        A connection accepted late is accepted with each of its messages.
        """
        for merge in MERGES:
            made = full(helo=c.SMFIS_ACCEPT)
            conversation = started(behind(always("envrcpt"), made), merge=merge)
            answers = conversation.letters(CONNECT + HELO + MAIL + RCPT, MAIL + RCPT)
            self.assertEqual(answers, "cccaca", merge)
            self.assertEqual(names(made.calls), ["connect", "helo"])

    def test_what_is_known_at_data_only_ends_the_message_there(self) -> None:
        """
        What is known at DATA only ends the message there.
        """
        made = full(envfrom=c.SMFIS_DISCARD)
        conversation = started(behind(always("data"), made))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT + DATA), "ccccd")

    def test_recipients_refused_late(self) -> None:
        """
        Recipients that are in already stay, with a warning; a message to nobody else is refused.
        """

        def only_second(self: Any, argv: list[str]) -> int:
            return c.SMFIS_REJECT if argv[0] == "<r@example.net>" else c.SMFIS_CONTINUE

        made = full(envrcpt=only_second)
        conversation = started(behind(always("data"), made))
        answers = conversation.letters(CONNECT + HELO + MAIL + OTHER_RCPT + RCPT + DATA + EOH)
        self.assertEqual(answers, "ccccccc")
        self.assertIn("refused 1 recipients", self.log_text())
        self.assertEqual(conversation.letters(MAIL + RCPT + DATA), "ccr")
        self.assertEqual(names(made.calls)[-2:], ["envfrom", "envrcpt"])

    def test_late_discard_of_recipient_is_about_message_as_it_always_is(self) -> None:
        """
        A late DISCARD of a recipient is about the message, as it always is.
        """
        conversation = started(behind(always("data"), full(envrcpt=c.SMFIS_DISCARD)))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT + DATA), "ccccd")

    def test_milter_that_promised_not_to_answer_may_say_so_late(self) -> None:
        """
        A milter that promised not to answer may say so late.
        """
        made = full(quiet=("helo",), helo=c.SMFIS_NOREPLY)
        conversation = started(behind(always("envfrom"), made))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL), "cc")
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom"])
        self.assertEqual(self.failures(), [])

    def test_callback_that_fails_late_is_logged_with_its_own_name(self) -> None:
        """
        A callback that fails late is logged with its own name, and ``on_error`` is answered.
        """

        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        for on_error, answer in ((c.SMFIS_TEMPFAIL, "t"), (c.SMFIS_CONTINUE, "c")):
            self.events.clear()
            made = full(connect=fail)
            conversation = started(behind(always("envfrom"), made, on_error=on_error))
            self.assertEqual(conversation.letters(CONNECT + HELO + MAIL), "cc" + answer)
            self.assertEqual(len(self.failures()), 1)
            self.assertIn("failed in xxfi_connect", self.log_text())

    def test_code_that_is_not_legal_where_it_was_late_is_failure_too(self) -> None:
        """
        A code that is not legal where it was late is a failure, too.
        """
        conversation = started(behind(always("envfrom"), full(connect=c.SMFIS_DISCARD)))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL), "cct")
        self.assertEqual(len(self.failures()), 1)

    def test_callback_shown_late_even_at_end_of_message_may_make_no_edits(self) -> None:
        """
        A callback shown late, even at the end of the message, may make no edits; the end may.
        """
        outcomes = []

        def edit(self: Any, *_: Any) -> None:
            try:
                self.smfi_addheader("X-Late", "1")
            except Exception as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("edited")

        made = milter(envfrom=edit, eom=edit)
        conversation = started(behind(always("data"), made))
        self.assertEqual(conversation.letters(CONNECT + MAIL + RCPT + EOM), "ccchc")
        self.assertEqual(outcomes, ["WrongStage", "edited"])

    def test_late_callbacks_may_wait(self) -> None:
        """
        Late callbacks may wait: the MTA waits with them, and the next one is called after that.
        """
        for merge in MERGES:
            wait = {name: Waiting() for name in ("connect", "envfrom", "envrcpt", "eom")}
            made = full(**wait)
            conversation = started(behind(always("envrcpt"), made), merge=merge)
            self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT), "ccc")
            self.assertEqual(names(made.calls), ["connect"])
            wait["connect"].fire()
            self.assertEqual(names(made.calls), ["connect", "helo", "envfrom"])
            wait["envfrom"].fire()
            self.assertEqual(conversation.letters(), "")
            wait["envrcpt"].fire()
            self.assertEqual(conversation.letters(DATA + EOH + EOM), "ccc")
            wait["eom"].fire()
            self.assertEqual(conversation.letters(QUIT), "c")
            self.assertEqual(names(made.calls)[-2:], ["eom", "close"])

    def test_when_another_milter_ends_message_what_is_late_waits_for_next_one(self) -> None:
        """
        When another milter ends the message, what is late waits for the next one.
        """
        slow = Waiting()
        made = full(connect=slow)
        answers = Waiting()
        other = full("Other", envfrom=answers)
        conversation = started(behind(always("envfrom"), made), other)
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL), "cc")
        answers.fire(c.SMFIS_REJECT)
        self.assertEqual(conversation.letters(), "r")
        self.assertEqual(slow.cancelled, 1)
        self.assertEqual(names(made.calls), ["connect"])
        conversation.send(MAIL)
        self.assertEqual(names(made.calls), ["connect", "helo", "envfrom"])
        answers.fire()
        self.assertEqual(conversation.letters(), "c")

    def test_milters_time_counts_for_what_is_late_and_what_is_now_together(self) -> None:
        """
        The milter's time counts for what is late and what is now together.
        """
        slow = Waiting()
        made = full(envfrom=slow)
        conversation = started(behind(always("envrcpt"), made, timeout=5))
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT), "ccc")
        conversation.clock.advance(5)
        self.assertEqual(conversation.letters(), "t")
        self.assertEqual(conversation.letters(RCPT), "t")
        self.assertEqual(slow.cancelled, 1)
        self.assertEqual(len(self.failures()), 1)

    def test_connection_lost_at_end_of_message_is_told_by_abort_and_close(self) -> None:
        """
        A connection lost while the end of a message waits is told by abort and close.
        """
        slow = Waiting()
        made = full(eom=slow)
        conversation = started(behind(always("envfrom"), made))
        conversation.send(CONNECT + HELO + MESSAGE)
        conversation.drop()
        self.assertEqual(names(made.calls)[-3:], ["eom", "abort", "close"])

    def test_message_whose_end_fails_is_over_for_the_milter(self) -> None:
        """
        A message whose end fails is over for the milter.
        """

        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        made = full(eom=fail)
        conversation = started(behind(always("envfrom"), made))
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE)[-1], "t")
        conversation.send(ABORT + QUIT)
        self.assertEqual(names(made.calls)[-2:], ["eom", "close"])
        self.assertEqual(len(self.failures()), 1)


class FailingConditionTests(ConversationTestCase):
    """
    Conditions with bugs.
    """

    def failing(self, at: str, on_error: int = c.SMFIS_TEMPFAIL) -> tuple[Any, Conversation]:
        """
        Begin a conversation behind a condition that fails.
        """

        def fail(mail: MailView) -> bool:
            raise ZeroDivisionError

        made = full()
        return made, started(behind(known_at(at)(fail), made, on_error=on_error))

    def test_failed_condition_is_logged_once_and_milter_sees_nothing(self) -> None:
        """
        It is the milter's failure, logged once a message, and the milter sees nothing.
        """
        made, conversation = self.failing("envrcpt")
        self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT + RCPT), "ccctt")
        self.assertEqual(conversation.letters(DATA + EOH + BODY + EOM), "ccsc")
        self.assertEqual(len(self.failures()), 1)
        self.assertEqual(conversation.letters(MAIL + RCPT + QUIT), "ct")
        self.assertEqual(len(self.failures()), 2)
        self.assertEqual(made.calls, [])

    def test_at_each_stage(self) -> None:
        """
        Wherever it fails, ``on_error`` is the answer.
        """
        for at, answers in (
            ("connect", "t"),
            ("helo", "ct"),
            ("envfrom", "cct"),
            ("data", "cccct"),
        ):
            made, conversation = self.failing(at)
            session = [CONNECT, HELO, MAIL, RCPT, DATA][: len(answers)]
            self.assertEqual(conversation.letters(*session), answers)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
            self.assertEqual(made.calls, [])

    def test_what_fails_at_connect_stands_for_all_of_the_connection(self) -> None:
        """
        What fails at connect stands for all of the connection.
        """
        made, conversation = self.failing("connect")
        self.assertEqual(
            conversation.letters(CONNECT + HELO + UNKNOWN + MAIL + ABORT + QUIT), "ttct"
        )
        self.assertEqual(len(self.failures()), 1)
        self.assertEqual(made.calls, [])

    def test_with_on_error_smfis_continue_mail_passes_without_the_milter(self) -> None:
        """
        With ``on_error=SMFIS_CONTINUE`` mail passes without the milter.
        """
        made, conversation = self.failing("envfrom", c.SMFIS_CONTINUE)
        self.assertEqual(conversation.letters(CONNECT + HELO + MESSAGE), "cccccccsc")
        self.assertEqual(made.calls, [])
        self.assertEqual(len(self.failures()), 1)


class BoundsTests(ConversationTestCase):
    """
    What is kept of a message, and of a connection, has limits.
    """

    def failed(self, option: str) -> None:
        """
        Expect that one failure was logged, and that it names an option.
        """
        (failure,) = self.failures()
        self.assertIs(failure.type, LimitExceeded)
        self.assertIn(option, str(failure.value))
        self.events.clear()

    def test_recipients_beyond_number_allowed_are_answered_with_on_error(self) -> None:
        """
        Recipients beyond the number allowed are answered with ``on_error``, told once for each
        message; the milter stays in the message.
        """
        for condition in (recipient_matches("example.net"), always("data")):
            for merge in ("first", "strictest"):
                for code, letter in ((c.SMFIS_TEMPFAIL, "t"), (c.SMFIS_CONTINUE, "c")):
                    made = full()
                    conversation = started(
                        behind(condition, made, on_error=code), merge=merge, max_recipients=2
                    )
                    conversation.send(CONNECT + HELO)
                    for _ in range(2):
                        made.calls.clear()
                        answers = conversation.letters(MAIL + RCPT * 4 + DATA + EOH + EOM)
                        self.assertEqual(answers, "ccc" + letter * 2 + "ccc")
                        self.assertEqual(names(made.calls).count("envrcpt"), 2)
                        self.assertEqual(names(made.calls)[-1], "eom")
                        self.failed("max_recipients")

    def test_what_is_known_before_recipients_keeps_none(self) -> None:
        """
        What is known before the recipients keeps none, so there may be any number.
        """
        for condition in (always("connect"), sender_matches("s@")):
            conversation = started(behind(condition, full()), max_recipients=1, max_header_bytes=1)
            self.assertEqual(conversation.letters(CONNECT + HELO + MAIL + RCPT * 3), "cccccc")

    def test_all_recipients_in_the_message_are_refused(self) -> None:
        """
        Where all recipients that are in the message are refused late, the message is; those that
        are in it though they were not kept stay.
        """
        for code, answers in ((c.SMFIS_TEMPFAIL, "cctr"), (c.SMFIS_CONTINUE, "cccc")):
            made = full(envrcpt=c.SMFIS_REJECT)
            conversation = started(behind(always("data"), made, on_error=code), max_recipients=1)
            self.assertEqual(conversation.letters(MAIL + RCPT + RCPT + DATA), answers)
            self.failed("max_recipients")

    def test_disconnect_as_on_error_ends_the_connection(self) -> None:
        """
        With DISCONNECT as ``on_error`` a recipient too many ends the connection.
        """
        made = full()
        conversation = started(behind(always("data"), made, on_error=DISCONNECT), max_recipients=1)
        self.assertEqual(conversation.letters(MAIL + RCPT + RCPT), "cc")
        self.assertTrue(conversation.closed)
        self.failed("max_recipients")

    def test_bytes_of_recipients_and_macros_are_limited(self) -> None:
        """
        The bytes of recipients are limited, with the macros of those not decided upon; macros that
        have not changed are not counted again.
        """
        long = packet("R", b"<" + 100 * b"r" + b"@example.net>\0")
        conversation = started(behind(recipient_matches("x.example"), full()), max_header_bytes=200)
        self.assertEqual(conversation.letters(MAIL + long + long + RCPT), "cctc")
        self.failed("max_header_bytes")
        same, other = macros("M", b"i", 100 * b"1"), macros("R", b"{own}", 100 * b"2")
        conversation = started(behind(always("data"), full()), max_header_bytes=200)
        self.assertEqual(conversation.letters(same + MAIL + RCPT + other + RCPT), "ccc")
        self.assertEqual(conversation.letters(other + RCPT + other + RCPT + DATA), "ttc")
        self.failed("max_header_bytes")

    def test_last_helo_and_few_others_are_kept(self) -> None:
        """
        Of HELO and unknown commands a few are kept, the connection and the last HELO in any case.
        """
        made = full()
        conversation = started(behind(always("envfrom"), made))
        conversation.send(CONNECT, *(packet("H", b"h%d\0" % number) for number in range(100)))
        conversation.send(UNKNOWN * 100 + MAIL)
        self.assertEqual(
            names(made.calls),
            ["connect", "helo", *(MAX_LATE_COMMANDS - 2) * ["unknown"], "envfrom"],
        )
        self.assertEqual(made.calls[1], ("helo", "h99"))
        self.assertIn("not shown 181 HELO and unknown commands", self.log_text())
        self.events.clear()
        made.calls.clear()
        conversation.send(ABORT, *(packet("H", b"h%d\0" % number) for number in range(100)))
        conversation.send(MAIL)
        self.assertEqual(made.calls[1], ("helo", f"h{100 - MAX_LATE_COMMANDS}"))
        self.assertEqual(made.calls[-2], ("helo", "h99"))

    def test_bytes_of_commands_before_a_message_are_limited(self) -> None:
        """
        So are their bytes; what the connection itself takes does not matter.
        """
        for size, shown in (
            (10, ["connect", "helo", "unknown", "helo"]),
            (900, ["connect", "helo"]),
        ):
            made = full()
            conversation = started(behind(always("envfrom"), made), max_header_bytes=500)
            conversation.send(macros("C", b"j", size * b"x") + CONNECT + HELO)
            conversation.send(UNKNOWN + HELO + MAIL)
            self.assertEqual(names(made.calls), [*shown, "envfrom"])

    def test_few_unknown_commands_of_a_message_are_kept(self) -> None:
        """
        Of unknown commands in a message the first few are kept, and none that is too long.
        """
        made = full()
        conversation = started(behind(always("envrcpt"), made), max_header_bytes=1000)
        conversation.send(CONNECT + MAIL + packet("U", 2000 * b"x" + b"\0") + UNKNOWN * 100 + RCPT)
        self.assertEqual(names(made.calls).count("unknown"), MAX_LATE_COMMANDS)
        self.assertIn("not shown 81 HELO and unknown commands", self.log_text())
        self.assertEqual(conversation.letters(DATA + EOH + EOM), "ccc")

    def test_recipients_cost_no_more_each_when_there_are_many(self) -> None:
        """
        Recipients cost no more each when there are many, whatever the condition.
        """
        conditions = [
            sender_matches("s@") & recipient_matches("x.example"),
            recipient_matches("example.org") | ~always("data"),
            known_at("envrcpt")(lambda mail: len(mail.recipients) > 10**9),
            always("data"),
        ]
        for condition in conditions:

            def prepare(size: int, condition: Condition = condition) -> Callable[[], object]:
                conversation = started(
                    behind(condition, milter(envrcpt=None)),
                    max_recipients=None,
                    max_header_bytes=None,
                    timeout=None,
                )
                pieces = [CONNECT + MAIL, *(size * [RCPT]), *(size * [OTHER_RCPT]), DATA + ABORT]

                def work() -> None:
                    for piece in pieces:
                        conversation.protocol.dataReceived(piece)
                        conversation.transport.clear()

                return work

            assert_linear(prepare, 300)

    def turning(self, made: Any) -> Conversation:
        """
        Begin a conversation in which many recipients are shown late, and others have their turns.
        """
        conversation = Conversation(behind(always("data"), made), timeout=None)
        self.turns = conversation.factory._clock = Turns(conversation.clock)
        conversation.connect()
        conversation.agree()
        conversation.send(CONNECT + HELO + MAIL, *(1000 * [RCPT]))
        return conversation

    def test_others_have_their_turn_while_many_recipients_are_shown_late(self) -> None:
        """
        Other connections have their turn while many recipients are shown late.
        """
        made = full()
        conversation = self.turning(made)
        conversation.protocol.dataReceived(DATA)
        self.assertEqual(conversation.written(), b"")
        self.assertEqual(conversation.letters(), "c")
        self.assertEqual(self.turns.turns, 4)
        self.assertEqual(names(made.calls), [*SPEAKING[:3], *(1000 * ["envrcpt"]), "data"])

    def test_mta_may_go_between_turns(self) -> None:
        """
        The MTA may go in between.
        """
        made = full()
        conversation = self.turning(made)
        conversation.protocol.dataReceived(DATA)
        conversation.drop()
        conversation.clock.advance(1)
        self.assertEqual(names(made.calls)[-2:], ["abort", "close"])
        self.assertEqual(conversation.clock.getDelayedCalls(), [])
        self.assertEqual(self.failures(), [])

    def test_macros_of_each_recipient_shown_late(self) -> None:
        """
        Each recipient that is shown late finds its own macros, and those of stages before it.
        """
        seen = []

        def look(self: Any, argv: list[str]) -> None:
            seen.append((self.smfi_getsymval("j"), self.smfi_getsymval("{own}")))

        conversation = started(behind(always("data"), milter(envrcpt=look)))
        conversation.send(macros("C", b"j", b"host") + CONNECT + MAIL)
        for value in (b"one", b"two"):
            conversation.send(macros("R", b"{own}", value) + RCPT)
        conversation.send(DATA)
        self.assertEqual(seen, [("host", "one"), ("host", "two")])

    def test_recipients_of_a_view_are_as_a_tuple(self) -> None:
        """
        The recipients that a condition is shown are as a tuple, and stay when others come.
        """
        kept = [("a",), ("b",), ("c",)]
        seen = Recipients(kept)
        kept.append(("d",))
        expected = (("a",), ("b",), ("c",))
        self.assertEqual(seen, expected)
        self.assertEqual(seen, Recipients(kept[:3]))
        self.assertNotEqual(seen, Recipients(kept))
        self.assertNotEqual(seen, 3)
        self.assertEqual(hash(seen), hash(expected))
        self.assertEqual(repr(seen), repr(expected))
        self.assertEqual((len(seen), seen[-1], seen[1:]), (3, ("c",), expected[1:]))
        self.assertRaises(IndexError, lambda: seen[3])


PIECES = {
    "connect": CONNECT, "helo": HELO, "mail": MAIL, "rcpt": RCPT, "data": DATA, "header": HEADER,
    "eoh": EOH, "body": BODY, "eom": EOM, "abort": ABORT, "unknown": UNKNOWN,
    "quit_nc": QUIT_NC + CONNECT, "message": MESSAGE, "greeting": CONNECT + HELO,
}  # fmt: skip
ANSWERS = st.dictionaries(
    st.sampled_from(["connect", "helo", "envfrom", "envrcpt", "data", "body", "eom"]),
    st.sampled_from([None, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_ACCEPT]),
    max_size=3,
)


class PropertyTests(SynchronousTestCase):
    """
    All or nothing, whatever is said.
    """

    @settings(STEADY, max_examples=150)
    @given(st.lists(st.sampled_from(sorted(PIECES)), max_size=12), ANSWERS, st.sampled_from(MERGES))
    def test_always_and_never(self, pieces: list[str], answers: Any, merge: str) -> None:
        """
        Behind a condition that is true at connect a milter sees all it would see without it, and
        its answers are the same; behind one that is false, nothing.
        """
        session = b"".join(PIECES[piece] for piece in pieces)
        plain, gated, barred = (full("Gated", **answers) for _ in range(3))
        talks = [
            started(full("Other"), MilterFactory(plain), merge=merge),
            started(full("Other"), behind(always("connect"), gated), merge=merge),
            started(full("Other"), behind(~always("connect"), barred), merge=merge),
        ]
        said = [talk.letters(CONNECT + session + QUIT) for talk in talks]
        self.assertEqual(gated.calls, plain.calls)
        self.assertEqual(said[1], said[0])
        self.assertEqual(barred.calls, [])

    @settings(STEADY, max_examples=100)
    @given(
        st.lists(st.sampled_from([MESSAGE, MAIL + RCPT + DATA + ABORT, HELO]), max_size=5),
        st.sampled_from(["helo", "envfrom", "envrcpt", "data"]),
        st.sampled_from(MERGES),
    )
    def test_milter_decided_late_has_seen_the_same_in_the_end(
        self, pieces: list[bytes], at: str, merge: str
    ) -> None:
        """
        One that learns late that all is its own has seen the same in the end.
        """
        session = CONNECT + HELO + b"".join(pieces) + MESSAGE + QUIT
        plain, gated = full("Plain"), full("Gated")
        for factory in (MilterFactory(plain), behind(always(at), gated)):
            started(full("Other"), factory, merge=merge).send(session)
        self.assertEqual(gated.calls, plain.calls)
