"""
What the library promises its users, promise by promise, through its public names only.

A protocol comes from its factory, its transport is in memory and time is a `Clock`. How several
milters share a connection is in `tests.engine.test_contract_several`, what travels on the wire in
`tests.wire.test_captured_sessions` and `tests.wire.test_vectors`.
"""

from __future__ import annotations

import warnings
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

import yatxmilter
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
    PEER,
    QUIT,
    QUIT_NC,
    RCPT,
    STAGES,
    STEPS,
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
    parse,
    started,
    strings,
)
from yatxmilter import Milter, MilterFactory, MilterProtocol, MilterProtocolFactory, noreply
from yatxmilter import constants as c
from yatxmilter.errors import UsageError
from yatxmilter.interfaces import IMilter, IMilterFactory

NO = {
    "connect": c.SMFIP_NOCONNECT,
    "helo": c.SMFIP_NOHELO,
    "envfrom": c.SMFIP_NOMAIL,
    "envrcpt": c.SMFIP_NORCPT,
    "data": c.SMFIP_NODATA,
    "unknown": c.SMFIP_NOUNKNOWN,
    "header": c.SMFIP_NOHDRS,
    "eoh": c.SMFIP_NOEOH,
    "body": c.SMFIP_NOBODY,
}
NR = {
    "connect": c.SMFIP_NR_CONN,
    "helo": c.SMFIP_NR_HELO,
    "envfrom": c.SMFIP_NR_MAIL,
    "envrcpt": c.SMFIP_NR_RCPT,
    "data": c.SMFIP_NR_DATA,
    "unknown": c.SMFIP_NR_UNKN,
    "header": c.SMFIP_NR_HDR,
    "eoh": c.SMFIP_NR_EOH,
    "body": c.SMFIP_NR_BODY,
}
LETTERS = {
    c.SMFIS_CONTINUE: "c",
    c.SMFIS_REJECT: "r",
    c.SMFIS_DISCARD: "d",
    c.SMFIS_ACCEPT: "a",
    c.SMFIS_TEMPFAIL: "t",
    c.SMFIS_SKIP: "s",
}
#: Callback -> the letters of its legal answers.
LEGAL = {
    "connect": "crta",
    "helo": "crta",
    "envfrom": "crtad",
    "envrcpt": "crtad",
    "data": "crtad",
    "unknown": "crt",
    "header": "crtad",
    "eoh": "crtad",
    "body": "crtads",
    "eom": "crtad",
}


def answered(stage: str, answer: Any, **options: Any) -> str:
    """
    Give the letters with which a callback's packet is answered.
    """
    conversation = started(full(**{stage: answer}), **options)
    before, last = STAGES[stage]
    conversation.send(before)
    return conversation.letters(last)


def at_eom(action: Any, **members: Any) -> list[tuple[str, bytes]]:
    """
    Give the packets that end a message in whose end this is done.
    """
    conversation = started(milter(eom=action, **members))
    return conversation.packets(EOM)


class NameTests(ConversationTestCase):
    """
    Section 1: names.
    """

    def test_four_classes_are_what_their_modules_define(self) -> None:
        """
        The four classes are what their modules define.
        """
        from yatxmilter import defaults
        from yatxmilter.protocol import _factory as protocol

        self.assertIs(yatxmilter.Milter, defaults.Milter)
        self.assertIs(yatxmilter.MilterFactory, defaults.MilterFactory)
        self.assertIs(yatxmilter.MilterProtocol, protocol.MilterProtocol)
        self.assertIs(yatxmilter.MilterProtocolFactory, protocol.MilterProtocolFactory)

    def test_milters_and_factories_keep_their_interfaces(self) -> None:
        """
        Milters and factories keep their interfaces.
        """
        factory = MilterFactory()
        protocol: Any = MilterProtocolFactory(factory).buildProtocol(PEER)
        verifyObject(IMilterFactory, factory)
        verifyObject(IMilter, Milter(factory, protocol))

    def test_milter_returncodes_are_members_of_constants_print_names_and_equal_numbers(
        self,
    ) -> None:
        """
        `Milter.ReturnCodes` are the members of the constants, print names and equal numbers.
        """
        table = {
            "CONTINUE": 0,
            "REJECT": 1,
            "DISCARD": 2,
            "ACCEPT": 3,
            "TEMPFAIL": 4,
            "NOREPLY": 7,
            "SKIP": 8,
            "ALL_OPTS": 10,
        }
        for name, number in table.items():
            member = getattr(Milter.ReturnCodes, name)
            self.assertIs(member, getattr(c, f"SMFIS_{name}"))
            self.assertEqual(member, number)
            self.assertIn(name, str(member))

    def test_factory_of_a_default_milter_serves_a_connection(self) -> None:
        """
        A factory of the default milter, given no options, serves a connection.
        """
        factory = MilterProtocolFactory(MilterFactory())
        protocol: Any = factory.buildProtocol(PEER)
        self.assertIsInstance(protocol, MilterProtocol)
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(offer())
        self.assertEqual(transport.value(), offer(DECLINED, 0x1FF))
        transport.clear()
        protocol.dataReceived(EOM)
        self.assertEqual(transport.value(), packet("c"))
        protocol.dataReceived(QUIT)
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(None)


class CallbackTests(ConversationTestCase):
    """
    Section 2: callbacks, their arguments and results.
    """

    def test_each_callback_gets_what_the_table_says(self) -> None:
        """
        Each callback gets what the table says.
        """
        cls = full()
        conversation = started(cls)
        conversation.send(CONNECT, HELO, packet("M", strings(b"<s>", b"SIZE=42")))
        conversation.send(RCPT, UNKNOWN, DATA, HEADER, EOH, BODY, EOM, QUIT)
        self.assertEqual(
            cls.calls,
            [
                ("connect", "mail.example.org", IPv4Address("TCP", "192.0.2.1", 4321)),
                ("helo", "mail.example.org"),
                ("envfrom", ["<s>", "SIZE=42"]),
                ("envrcpt", ["<r@example.net>"]),
                ("unknown", "XYZZY"),
                ("data",),
                ("header", "Subject", "hi"),
                ("eoh",),
                ("body", b"Hello\r\n"),
                ("eom",),
                ("close",),
            ],
        )

    def test_clients_address_is_one_of_twisteds_or_none(self) -> None:
        """
        The client's address is one of Twisted's, or None.
        """
        table: dict[bytes, Any] = {
            b"h\x004\x00\x19192.0.2.1\0": IPv4Address("TCP", "192.0.2.1", 25),
            b"h\x006\x00\x19IPv6:2001:db8:0:0:0:0:0:1\0": IPv6Address("TCP", "2001:db8::1", 25),
            b"h\0L\0\0/run/x\0": UNIXAddress("/run/x"),
            b"h\0U": None,
        }
        for payload, address in table.items():
            cls = full()
            started(cls).send(packet("C", payload))
            self.assertEqual(cls.calls, [("connect", "h", address)])

    def test_any_byte_of_a_header_comes_back_as_it_was(self) -> None:
        """
        Any byte of a header comes back as it was when it is written again.
        """
        raw = bytes(range(1, 256)).replace(b"\n", b"").replace(b"\r", b"")

        def header(self: Any, name: str, value: str) -> None:
            self.value = value

        def eom(self: Any) -> None:
            self.smfi_addheader("X", self.value)

        conversation = started(full(header=header, eom=eom))
        conversation.send(MAIL, RCPT, DATA, packet("L", b"N\0" + raw + b"\0"), EOH)
        self.assertEqual(conversation.packets(EOM)[0], ("h", b"X\0" + raw + b"\0"))

    def test_forms_of_results(self) -> None:
        """
        A code, a number, None, a Deferred and a coroutine answer alike, in every callback.
        """

        async def coroutine(*_: Any) -> Any:
            return await succeed(c.SMFIS_REJECT)

        for stage in STAGES:
            self.assertEqual(answered(stage, None), "c", stage)
            self.assertEqual(answered(stage, lambda *_: succeed(None)), "c", stage)
            for answer in (
                c.SMFIS_REJECT,
                1,
                lambda *_: succeed(c.SMFIS_REJECT),
                lambda *_: succeed(1),
                coroutine,
            ):
                self.assertEqual(answered(stage, answer), "r", stage)

    def test_each_code_that_is_legal_in_a_callback_is_sent(self) -> None:
        """
        Each code that is legal in a callback is sent, each that is not is the milter's bug.
        """
        for stage in STAGES:
            for code, letter in LETTERS.items():
                with self.subTest(stage=stage, code=code):
                    legal = letter in LEGAL[stage]
                    self.assertEqual(answered(stage, code), letter if legal else "t")
                    self.assertEqual(bool(self.failures()), not legal)
                    self.events.clear()

    def test_answer_that_means_nothing_is_the_milters_bug(self) -> None:
        """
        NOREPLY without a promise, ALL_OPTS, unknown numbers and other things are the milter's bug.
        """
        for stage in STAGES:
            for value in (c.SMFIS_NOREPLY, c.SMFIS_ALL_OPTS, 5, -1, "c", True, [], object()):
                with self.subTest(stage=stage, value=value):
                    self.assertEqual(answered(stage, value), "t")
                    self.assertEqual(len(self.failures()), 1)
                    self.events.clear()

    def test_what_abort_and_close_return_is_ignored_whatever_it_is(self) -> None:
        """
        What abort and close return is ignored, whatever it is.
        """

        def broken(*_: Any) -> None:
            raise ValueError("x")

        for answer in (c.SMFIS_REJECT, "nonsense", lambda *_: fail(ValueError()), broken):
            conversation = started(full(abort=answer, close=answer))
            conversation.send(MAIL)
            self.assertEqual(conversation.send(ABORT), b"")
            self.assertEqual(conversation.letters(MAIL), "c")
            self.assertEqual(conversation.send(QUIT), b"")
            self.assertTrue(conversation.closed)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 6)

    def test_abort_that_takes_time(self) -> None:
        """
        The next message waits until its milter is done with the last.
        """
        waiting = Waiting()
        conversation = started(full(abort=waiting))
        self.assertEqual(conversation.letters(MAIL, ABORT, MAIL), "c")
        waiting.fire("nonsense")
        self.assertEqual(conversation.written(), packet("c"))


class AskedForTests(ConversationTestCase):
    """
    Section 2: only what a class overrides is asked for.
    """

    def test_overriding_a_callback_clears_its_smfip_no_flag(self) -> None:
        """
        Overriding a callback clears its SMFIP_NO* flag; wanting the body asks for SKIP as well.
        """
        for stage in STEPS:
            conversation = Conversation(milter(**{stage: None}))
            expected = DECLINED & ~NO.get(stage, 0)
            if stage == "body":
                expected |= c.SMFIP_SKIP
            self.assertEqual(conversation.agree(), (6, 0x1FF, expected), stage)

    def test_milter_without_callbacks_declines_all_steps_and_may_use_every_action(self) -> None:
        """
        A milter without callbacks declines all steps and may use every action.
        """
        self.assertEqual(Conversation(Milter).agree(), (6, 0x1FF, DECLINED))

    def test_what_a_parent_of_the_users_own_overrides_counts(self) -> None:
        """
        What a parent of the user's own overrides counts.
        """

        class Child(full()):  # type: ignore[misc]
            pass

        self.assertEqual(Conversation(Child).agree(), (6, 0x1FF, c.SMFIP_SKIP))

    def test_xxfi_flags_are_the_actions_asked_for(self) -> None:
        """
        `xxfi_flags` are the actions asked for; the default is what the MTA offers.
        """
        self.assertEqual(Conversation(milter(xxfi_flags=c.SMFIF_ADDHDRS)).agree()[1], 1)
        self.assertEqual(Conversation(milter(xxfi_flags=0)).agree()[1], 0)
        self.assertEqual(Conversation(Milter).agree(actions=0x13)[1], 0x13)

    def test_callback_decorated_with_noreply_asks_for_smfip_nr_flag_of_its_stage(self) -> None:
        """
        A callback decorated with `noreply` asks for the SMFIP_NR_* flag of its stage.
        """
        for stage, flag in NR.items():
            conversation = Conversation(milter(quiet=(stage,), **{stage: None}))
            expected = DECLINED & ~NO[stage] | flag
            _, _, steps = conversation.agree()
            self.assertEqual(steps & ~c.SMFIP_SKIP, expected, stage)

    def test_none_and_noreply_in_callback_that_promised_no_reply_write_nothing(self) -> None:
        """
        None and NOREPLY in a callback that promised no reply write nothing.
        """
        for stage in NR:
            for answer in (None, c.SMFIS_NOREPLY):
                conversation = started(full(quiet=(stage,), **{stage: answer}))
                before, last = STAGES[stage]
                conversation.send(before)
                self.assertEqual(conversation.letters(last), "", stage)

    def test_noreply_not_offered(self) -> None:
        """
        An MTA that does not offer no-reply steps gets its answers.
        """
        for stage in NR:
            conversation = Conversation(full(quiet=(stage,), **{stage: None}))
            conversation.agree(steps=0x37F)
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "c", stage)

    def test_noreply_returns_something(self) -> None:
        """
        A final code from a callback decorated with `noreply` is kept for the next answer.
        """
        conversation = started(full(quiet=("header",), header=c.SMFIS_REJECT))
        conversation.send(MAIL + RCPT + DATA)
        self.assertEqual(conversation.letters(HEADER), "")
        self.assertEqual(conversation.letters(EOH), "r")


class NegotiateTests(ConversationTestCase):
    """
    Section 2: what `xxfi_negotiate` may return.
    """

    def agreed(self, answer: Any, **members: Any) -> Any:
        """
        Give the agreement, or None when the connection was closed.
        """
        conversation = Conversation(milter(negotiate=answer, header=None, **members))
        found = conversation.packets(offer())
        self.assertEqual(conversation.closed, not found)
        if not found:
            return None
        payload = found[0][1]
        return tuple(int.from_bytes(payload[i : i + 4], "big") for i in (0, 4, 8))

    def test_each_legal_result_of_xxfi_negotiate_is_taken_in_each_form(self) -> None:
        """
        Each legal result of `xxfi_negotiate`, in each form.
        """
        declined = DECLINED & ~c.SMFIP_NOHDRS
        exact = (6, 1, c.SMFIP_NOBODY)

        async def coroutine(*_: Any) -> Any:
            return (c.SMFIS_CONTINUE, 1, c.SMFIP_NOBODY)

        table: list[tuple[Any, Any]] = [
            (c.SMFIS_CONTINUE, (6, 0x1FF, declined)),
            (None, (6, 0x1FF, declined)),
            (c.SMFIS_ALL_OPTS, (6, 0x1FF, declined | c.SMFIP_SKIP)),
            (c.SMFIS_REJECT, None),
            ((c.SMFIS_CONTINUE, 1, c.SMFIP_NOBODY), exact),
            ([c.SMFIS_CONTINUE, 6, 1, c.SMFIP_NOBODY], exact),
            (lambda *_: succeed((c.SMFIS_CONTINUE, 1, c.SMFIP_NOBODY)), exact),
            (coroutine, exact),
            (lambda *_: succeed(c.SMFIS_REJECT), None),
        ]
        for answer, expected in table:
            self.assertEqual(self.agreed(answer), expected)
        self.flushLoggedErrors()

    def test_flags_with_continue(self) -> None:
        """
        CONTINUE means as computed, `xxfi_flags` included; ALL_OPTS means all that is offered.
        """
        self.assertEqual(self.agreed(c.SMFIS_CONTINUE, xxfi_flags=1)[1], 1)
        self.assertEqual(self.agreed(c.SMFIS_ALL_OPTS, xxfi_flags=1)[1], 0x1FF)

    def test_any_other_result_or_an_error_fails_the_negotiation(self) -> None:
        """
        Anything else, an error included, fails the negotiation.
        """

        def broken(*_: Any) -> None:
            raise ValueError("x")

        for answer in (
            c.SMFIS_ACCEPT,
            "x",
            (0, 1),
            ("a", 1, 2),
            broken,
            lambda *_: fail(KeyError()),
        ):
            self.assertIs(self.agreed(answer), None)
        self.flushLoggedErrors()

    def test_offer_is_shown(self) -> None:
        """
        `xxfi_negotiate` sees the MTA's offer, with the no-reply steps that can always be had.
        """
        cls = milter(negotiate=None)
        Conversation(cls).agree(steps=0x1FFFFF, actions=0x3F)
        self.assertEqual(cls.calls, [("negotiate", 0x3F, 0x1FFFFF)])

    def test_asking_for_action_or_step_that_is_not_offered_closes(self) -> None:
        """
        Asking for an action or step that is not offered closes, and the log names milter and flag.
        """
        table = [
            (milter("Greedy", xxfi_flags=c.SMFIF_QUARANTINE), {"actions": 0x1F}, "QUARANTINE"),
            (
                milter("Greedy", negotiate=(0, 0, c.SMFIP_RCPT_REJ), envrcpt=None),
                {"steps": 0x37F},
                "RCPT_REJ",
            ),
        ]
        for cls, offered, flag in table:
            conversation = Conversation(cls)
            self.assertEqual(conversation.send(offer(**offered)), b"")
            self.assertTrue(conversation.closed)
            self.assertEqual(cls.calls[-1], ("close",))
            self.assertIn("Greedy", self.log_text())
            self.assertIn(flag, self.log_text())
        self.flushLoggedErrors()


class NamingTests(ConversationTestCase):
    """
    Section 2: a misspelt callback does not pass silently.
    """

    def test_callback_that_does_not_exist_raises_typeerror_which_names_nearest_real_one(
        self,
    ) -> None:
        """
        A callback that does not exist raises TypeError, which names the nearest real one.
        """
        for wrong, right in {
            "xxfi_body_chunk": "xxfi_body",
            "xxfi_headers": "xxfi_header",
            "xxfi_envform": "xxfi_envfrom",
            "xxfi_end_of_message": "xxfi_",
        }.items():
            with self.assertRaises(TypeError) as caught:
                type("Wrong", (Milter,), {wrong: lambda self: None})
            self.assertIn(wrong, str(caught.exception))
            self.assertIn(right, str(caught.exception).replace(wrong, ""))

    def test_spellings_of_0_1_1_work_and_are_called_deprecated(self) -> None:
        """
        The spellings of 0.1.1 work and are called deprecated.
        """
        for old, letter, argument in (
            ("xxfi_env_from", MAIL, ["<s@example.org>"]),
            ("xxfi_env_rcpt", MAIL + RCPT, ["<r@example.net>"]),
        ):
            seen: list[Any] = []

            def callback(self: Any, argv: list[str], seen: list[Any] = seen) -> None:
                seen.append(argv)

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                cls = type("Old", (Milter,), {old: callback})
                started(cls).send(letter)
            self.assertEqual(seen, [argument])
            self.assertIn(DeprecationWarning, [warning.category for warning in caught])

    def test_xxfi_name_is_that_of_the_class_unless_it_is_set(self) -> None:
        """
        `xxfi_name` is the class's name unless it is set.
        """
        self.assertEqual(milter("Special").xxfi_name, "Special")
        self.assertEqual(milter("Special", xxfi_name="other").xxfi_name, "other")

    def test_milter_keeps_factory_and_protocol_that_it_was_built_with(self) -> None:
        """
        A milter keeps the factory and the protocol that it was built with.
        """
        cls = milter()
        factory = MilterFactory(cls)
        conversation = Conversation(factory)
        (made,) = cls.made
        self.assertIs(made.factory, factory)
        self.assertIs(made.protocol, conversation.protocol)


class StateTests(ConversationTestCase):
    """
    Section 2: one instance for each connection.
    """

    def test_one_for_a_connection(self) -> None:
        """
        An instance lives over messages and aborts, and the next connection has its own.
        """
        cls = full()
        conversation = started(cls)
        conversation.send(MESSAGE, MAIL, ABORT, MESSAGE, QUIT)
        self.assertEqual(len(cls.made), 1)
        conversation.connect()
        self.assertEqual(len(cls.made), 2)

    def test_xxfi_mta_connect_comes_first_xxfi_mta_close_last_each_once(self) -> None:
        """
        `xxfi_mta_connect` comes first, `xxfi_mta_close` last, each once.
        """
        cls = milter(mta_connect=None, mta_close=None, negotiate=None)
        conversation = Conversation(cls)
        self.assertEqual(cls.calls, [("mta_connect", PEER)])
        conversation.send(offer(), QUIT)
        self.assertEqual(names(cls.calls), ["mta_connect", "negotiate", "close", "mta_close"])
        self.assertEqual(len(cls.calls[-1]), 2)

    def test_mta_connect_refuses(self) -> None:
        """
        A return code other than CONTINUE or ACCEPT at `xxfi_mta_connect` closes the connection.
        """
        for code in c.ReturnCode:
            for answer in (code, lambda *_, code=code: succeed(code)):
                conversation = Conversation(milter(mta_connect=answer))
                refused = code not in (c.SMFIS_CONTINUE, c.SMFIS_ACCEPT)
                self.assertEqual(conversation.closed, refused, code)
        self.flushLoggedErrors()

    def test_mta_connect_waits(self) -> None:
        """
        The offer is answered when `xxfi_mta_connect` has its result.
        """
        waiting = Waiting()
        conversation = Conversation(milter(mta_connect=waiting))
        self.assertEqual(conversation.letters(offer()), "")
        waiting.fire(None)
        conversation.clock.advance(0)
        self.assertEqual([letter for letter, _ in parse(conversation.written())], ["O"])


class FunctionTests(ConversationTestCase):
    """
    Section 2: libmilter's functions.
    """

    def done(self, action: Any, *args: Any, actions: int = 0x1FF) -> Any:
        """
        Call a function in `xxfi_eom`: what was sent for it, or the error it raised.
        """
        raised: list[Exception] = []

        def eom(self: Any) -> None:
            try:
                assert getattr(self, action)(*args) is None
            except UsageError as error:
                raised.append(error)

        conversation = Conversation(milter(eom=eom))
        conversation.agree(actions=actions)
        *sent, last = conversation.packets(EOM)
        self.assertEqual(last, ("c", b""))
        return raised[0] if raised else sent

    def test_each_function_writes_libmilters_packet_from_text_and_from_bytes(self) -> None:
        """
        Each function writes libmilter's packet, from text and from bytes.
        """
        index = b"\0\0\0\2"
        table: list[tuple[tuple[Any, ...], list[tuple[str, bytes]]]] = [
            (("smfi_addheader", "X", "y"), [("h", b"X\0y\0")]),
            (("smfi_addheader", "X", "a\n b"), [("h", b"X\0a\n b\0")]),
            (("smfi_chgheader", "X", 2, "y"), [("m", index + b"X\0y\0")]),
            (("smfi_chgheader", "X", 2, None), [("m", index + b"X\0\0")]),
            (("smfi_chgheader", "X", 2, ""), [("m", index + b"X\0\0")]),
            (("smfi_insheader", 2, "X", "y"), [("i", index + b"X\0y\0")]),
            (("smfi_chgfrom", "<a>"), [("e", b"<a>\0")]),
            (("smfi_chgfrom", "<a>", "RET=HDRS"), [("e", b"<a>\0RET=HDRS\0")]),
            (("smfi_addrcpt", "<a>"), [("+", b"<a>\0")]),
            (("smfi_addrcpt_par", "<a>"), [("2", b"<a>\0")]),
            (("smfi_addrcpt_par", "<a>", "NOTIFY=NEVER"), [("2", b"<a>\0NOTIFY=NEVER\0")]),
            (("smfi_delrcpt", "<a>"), [("-", b"<a>\0")]),
            (("smfi_replacebody", "abc"), [("b", b"abc")]),
            (("smfi_quarantine", "why"), [("q", b"why\0")]),
            (("smfi_progress",), [("p", b"")]),
        ]
        for (name, *args), expected in table:
            raw = [arg.encode() if isinstance(arg, str) else arg for arg in args]
            self.assertEqual(self.done(name, *args), expected, name)
            self.assertEqual(self.done(name, *raw), expected, name)

    def test_action_not_negotiated(self) -> None:
        """
        An action that was not negotiated is refused, and its flag named.
        """
        table: dict[int, list[tuple[Any, ...]]] = {
            c.SMFIF_ADDHDRS: [("smfi_addheader", "X", "y"), ("smfi_insheader", 0, "X", "y")],
            c.SMFIF_CHGHDRS: [("smfi_chgheader", "X", 1, "y")],
            c.SMFIF_CHGBODY: [("smfi_replacebody", b"x")],
            c.SMFIF_ADDRCPT: [("smfi_addrcpt", "<a>")],
            c.SMFIF_ADDRCPT_PAR: [("smfi_addrcpt_par", "<a>")],
            c.SMFIF_DELRCPT: [("smfi_delrcpt", "<a>")],
            c.SMFIF_CHGFROM: [("smfi_chgfrom", "<a>")],
            c.SMFIF_QUARANTINE: [("smfi_quarantine", "why")],
        }
        flags = {value: name for name, value in vars(c).items() if name.startswith("SMFIF_")}
        for flag, calls in table.items():
            for call in calls:
                error = self.done(*call, actions=0x1FF & ~flag)
                self.assertIsInstance(error, UsageError)
                self.assertTrue(
                    "SMFIF_" in str(error)
                    and any(
                        name in str(error)
                        for name, value in vars(c).items()
                        if name.startswith("SMFIF_") and value == flag
                    ),
                    f"{flags[flag]} is not in {error}",
                )

    def test_what_the_protocol_cannot_carry_is_refused_and_nothing_is_sent(self) -> None:
        """
        What the protocol cannot carry is refused, and nothing is sent.
        """
        long = 65535 * "x"
        for call in [
            ("smfi_addheader", "", "y"),
            ("smfi_addheader", "X", "a\rb"),
            ("smfi_addheader", "X", "a\0b"),
            ("smfi_addheader", " X", "y"),
            ("smfi_addheader", "X:Y", "y"),
            ("smfi_addheader", "X Y", "y"),
            ("smfi_addheader", "X\u00e9", "y"),
            ("smfi_insheader", 0, "X:", "y"),
            ("smfi_chgheader", "\tX", 1, "y"),
            ("smfi_chgheader", "X\x7f", 1, None),
            ("smfi_addheader", "X\n", "y"),
            ("smfi_addheader", "X\r", "y"),
            ("smfi_addheader", "X", long),
            ("smfi_addheader", "X", None),
            ("smfi_insheader", -1, "X", "y"),
            ("smfi_insheader", 0, "", "y"),
            ("smfi_chgheader", "X", -1, "y"),
            ("smfi_chgheader", "", 1, "y"),
            ("smfi_chgfrom", ""),
            ("smfi_chgfrom", "<a>\n"),
            ("smfi_addrcpt", ""),
            ("smfi_addrcpt", "<a>\r"),
            ("smfi_addrcpt_par", ""),
            ("smfi_delrcpt", ""),
            ("smfi_delrcpt", "<a>\n"),
            ("smfi_quarantine", ""),
            ("smfi_quarantine", "a\nb"),
            ("smfi_setreply", "250", None, "x"),
            ("smfi_setreply", "55", None, "x"),
            ("smfi_setreply", "550", "5.7", "x"),
            ("smfi_setreply", "550", "5.7.1", "a\nb"),
            ("smfi_setreply", "550", "5.7.1", 981 * "x"),
            ("smfi_setmlreply", "550", "5.7.1"),
            ("smfi_setmlreply", "550", "5.7.1", *(33 * ["x"])),
        ]:
            self.assertIsInstance(self.done(*call), UsageError, str(call)[:60])

    def test_header_of_the_largest_size(self) -> None:
        """
        A header fills a packet to the last byte; one byte more does not fit.
        """
        self.assertEqual(len(self.done("smfi_addheader", "X", 65532 * "y")), 1)
        self.assertIsInstance(self.done("smfi_addheader", "X", 65533 * "y"), UsageError)
        self.assertEqual(len(self.done("smfi_insheader", 0, "X", 65528 * "y")), 1)
        self.assertIsInstance(self.done("smfi_insheader", 0, "X", 65529 * "y"), UsageError)

    def test_edits_and_progress_are_for_xxfi_eom_only_and_the_error_says_so(self) -> None:
        """
        Edits and progress are for `xxfi_eom` only, and the error says so.
        """
        calls: list[tuple[Any, ...]] = [
            ("smfi_addheader", "X", "y"),
            ("smfi_insheader", 0, "X", "y"),
            ("smfi_chgheader", "X", 1, "y"),
            ("smfi_chgfrom", "<a>"),
            ("smfi_addrcpt", "<a>"),
            ("smfi_addrcpt_par", "<a>"),
            ("smfi_delrcpt", "<a>"),
            ("smfi_replacebody", b"x"),
            ("smfi_quarantine", "why"),
            ("smfi_progress",),
        ]
        for stage in (*STEPS[:-1], "abort", "close", "negotiate"):
            raised: list[str] = []

            def callback(self: Any, *_: Any, raised: list[str] = raised) -> None:
                for name, *args in calls:
                    try:
                        getattr(self, name)(*args)
                    except UsageError as error:
                        raised.append(str(error))

            conversation = Conversation(full(**{stage: callback}))
            conversation.agree()
            conversation.send(STAGES.get(stage, (MAIL + RCPT, b""))[0])
            said = conversation.letters(STAGES.get(stage, (b"", b""))[1], ABORT, QUIT)
            self.assertLessEqual(set(said), {"c"}, stage)
            self.assertGreaterEqual(len(raised), len(calls), stage)
            self.assertTrue(all("xxfi_eom" in text for text in raised), raised)

    def test_symbol_list_outside_negotiate(self) -> None:
        """
        `smfi_setsymlist` is for `xxfi_negotiate` only.
        """
        error = self.done("smfi_setsymlist", c.SMFIM_CONNECT, "i")
        self.assertIn("xxfi_negotiate", str(error))

    def test_symbol_list_is_refused_for_no_stage(self) -> None:
        """
        A symbol list is refused for no stage, and a second time for the same.
        """
        raised: list[Exception] = []

        def negotiate(self: Any, *_: Any) -> None:
            self.smfi_setsymlist(c.SMFIM_EOM, b"i")
            for stage in (c.SMFIM_EOM, 7, -1):
                try:
                    self.smfi_setsymlist(stage, "j")
                except UsageError as error:
                    raised.append(error)

        conversation = Conversation(milter(negotiate=negotiate))
        ((_, payload),) = conversation.packets(offer())
        self.assertEqual(payload[12:], b"\0\0\0\5i\0")
        self.assertEqual(len(raised), 3)

    def test_text_of_a_reply_goes_with_the_code_of_its_class(self) -> None:
        """
        The text of a reply goes with the code of its class.
        """
        table: list[tuple[tuple[Any, ...], Any, list[tuple[str, bytes]]]] = [
            (("550", "5.7.1", "no"), c.SMFIS_REJECT, [("y", b"550 5.7.1 no\0")]),
            ((b"550", b"5.7.1", b"no"), c.SMFIS_REJECT, [("y", b"550 5.7.1 no\0")]),
            (("451", None, "later"), c.SMFIS_TEMPFAIL, [("y", b"451 later\0")]),
            (("550",), c.SMFIS_REJECT, [("y", b"550 \0")]),
            (("550", "5.7.1"), c.SMFIS_REJECT, [("y", b"550 5.7.1\0")]),
            (("550", "5.7.1", "no"), c.SMFIS_TEMPFAIL, [("t", b"")]),
            (("450", "4.7.1", "no"), c.SMFIS_REJECT, [("r", b"")]),
            (("550", "5.7.1", "no"), c.SMFIS_CONTINUE, [("c", b"")]),
            (("550", "5.7.1", "no"), c.SMFIS_DISCARD, [("d", b"")]),
        ]
        for args, code, expected in table:

            def eom(self: Any, args: Any = args, code: Any = code) -> Any:
                self.smfi_setreply(*args)
                return code

            self.assertEqual(at_eom(eom), expected)

    def test_set_reply_of_lines(self) -> None:
        """
        `smfi_setmlreply` joins its lines, and makes up an enhanced status code.
        """

        def eom(self: Any) -> Any:
            self.smfi_setmlreply("450", None, "a", b"b")
            return c.SMFIS_TEMPFAIL

        self.assertEqual(at_eom(eom), [("y", b"450-4.0.0 a\r\n450 4.0.0 b\0")])

    def test_smfi_getsymval_finds_macros_in_text_and_none_when_there_is_none(self) -> None:
        """
        `smfi_getsymval` finds macros in text, and None when there is none.
        """
        found: list[Any] = []

        def envfrom(self: Any, argv: list[str]) -> None:
            found.extend(map(self.smfi_getsymval, ("i", "{i}", b"{x_y}", "no", "")))

        started(full(envfrom=envfrom)).send(macros("M", b"i", b"4Xyz", b"{x_y}", b"\xff"), MAIL)
        self.assertEqual(found, ["4Xyz", "4Xyz", "\udcff", None, None])

    def test_smfi_version_is_libmilters_version(self) -> None:
        """
        `smfi_version` is libmilter's version.
        """
        cls = milter()
        Conversation(cls)
        self.assertEqual(tuple(cls.made[0].smfi_version()), (1, 0, 1))


class FactoryTests(ConversationTestCase):
    """
    Section 3: factories.
    """

    def test_build_milter_is_called_once_for_each_connection_with_its_protocol(self) -> None:
        """
        `build_milter` is called once for each connection, with its protocol, and may be overridden.
        """
        asked: list[Any] = []
        cls = milter(eom=c.SMFIS_REJECT)

        class Own(MilterFactory):
            def build_milter(self, protocol: Any) -> Any:
                asked.append(protocol)
                return cls(self, protocol)

        conversation = started(Own())
        self.assertEqual(asked, [conversation.protocol])
        self.assertEqual(conversation.letters(EOM), "r")
        conversation.connect()
        self.assertEqual(len(asked), 2)

    def test_factories_serve_the_next_connections_in_order(self) -> None:
        """
        A factory, an iterable of them, and more added later serve the next connection in order.
        """
        one, two, three = (MilterFactory(milter(name)) for name in ("One", "Two", "Three"))
        factory = MilterProtocolFactory(one)
        factory.addMilterFactory([two])
        factory.addMilterFactory(three)
        protocol: Any = factory.buildProtocol(PEER)
        protocol.makeConnection(StringTransport())
        self.assertEqual([made.xxfi_name for made in protocol.milters], ["One", "Two", "Three"])
        self.assertEqual(len(list(protocol.milters)), 3)
        protocol.connectionLost(None)
        many: Any = MilterProtocolFactory(iter([one, two])).buildProtocol(PEER)
        many.makeConnection(StringTransport())
        self.assertEqual([made.xxfi_name for made in many.milters], ["One", "Two"])
        many.connectionLost(None)

    def test_milter_added_before_negotiation_takes_part(self) -> None:
        """
        A milter added before negotiation takes part.
        """
        conversation = Conversation(milter(eom=None))
        cls = milter("Late", eom=c.SMFIS_REJECT)
        conversation.protocol.addMilter(cls(MilterFactory(cls), conversation.protocol))
        conversation.agree()
        self.assertEqual(conversation.letters(EOM), "r")

    def test_bad_value_of_option_is_refused_when_factory_is_made_and_named(self) -> None:
        """
        A bad value of an option is refused when the factory is made, and named.
        """
        for options in (
            {"merge": "all"},
            {"merge": None},
            {"timeout": -1},
            {"timeout": "10"},
            {"progress_interval": -1},
            {"progress_interval": "x"},
            {"max_connections": 0},
            {"max_connections": -1},
            {"max_connections": 1.5},
        ):
            with self.assertRaises((TypeError, ValueError)) as caught:
                MilterProtocolFactory(MilterFactory(), **options)
            self.assertIn(repr(next(iter(options.values()))), str(caught.exception))
        with self.assertRaises(TypeError):
            MilterProtocolFactory(MilterFactory(), nonsense=1)

    def test_bad_milter_options(self) -> None:
        """
        A milter factory refuses what is no milter, no return code and no time.
        """
        for args, options in (
            (("x",), {}),
            ((), {"on_error": "x"}),
            ((), {"on_error": 99}),
            ((), {"timeout": -1}),
            ((), {"timeout": "x"}),
        ):
            with self.assertRaises((TypeError, ValueError)):
                MilterFactory(*args, **options)

    def test_what_is_no_milter_factory_is_refused(self) -> None:
        """
        What is no milter factory is refused.
        """
        for wrong in (object(), [object()], None, 1):
            with self.assertRaises((TypeError, ValueError)):
                MilterProtocolFactory(wrong)

    def test_with_max_connections_one_more_is_closed_without_a_milter(self) -> None:
        """
        With `max_connections` one more is closed without a milter, until another has gone.
        """
        cls = milter()
        conversation = started(cls, max_connections=1)
        first = conversation.protocol, conversation.transport
        protocol: Any = conversation.factory.buildProtocol(PEER)
        if protocol is not None:
            transport = StringTransport()
            protocol.makeConnection(transport)
            self.assertTrue(transport.disconnecting or transport.disconnected)
            protocol.connectionLost(None)
        self.assertEqual(len(cls.made), 1)
        conversation.protocol, conversation.transport = first
        self.assertEqual(conversation.letters(EOM), "c")
        conversation.drop()
        conversation.connect()
        self.assertEqual(conversation.letters(offer()), "O")

    def test_factorys_name_stands_for_the_milters_in_logs(self) -> None:
        """
        A factory's `name` stands for the milter's in logs.
        """

        def broken(*_: Any) -> None:
            raise ValueError("x")

        conversation = started(MilterFactory(milter("Plain", eom=broken), name="fancy"))
        self.assertEqual(conversation.letters(EOM), "t")
        self.assertIn("fancy", self.log_text())
        self.flushLoggedErrors(ValueError)


class WaitingTests(ConversationTestCase):
    """
    Section 7: order and waiting.
    """

    def test_next_command_waits(self) -> None:
        """
        While an answer is awaited the next command waits, at every stage.
        """
        for stage, (before, last) in STAGES.items():
            waiting = Waiting()
            cls = full(**{stage: waiting})
            conversation = started(cls)
            conversation.send(before)
            cls.calls.clear()
            self.assertEqual(conversation.send(last + MAIL), b"", stage)
            self.assertEqual(names(cls.calls), [stage])
            waiting.fire()
            self.assertIn("envfrom", names(cls.calls), stage)

    def test_order_of_answers(self) -> None:
        """
        Answers come in the order of their commands.
        """
        waiting = Waiting()
        conversation = started(full(envfrom=waiting, envrcpt=c.SMFIS_REJECT))
        self.assertEqual(conversation.send(MAIL + RCPT + DATA), b"")
        waiting.fire()
        conversation.clock.advance(0)
        self.assertEqual([letter for letter, _ in parse(conversation.written())], list("crc"))

    def test_macros_belong_to_their_command(self) -> None:
        """
        Macros that arrive while an answer is awaited are not seen by its callback.
        """
        waiting = Waiting()
        cls = full(envfrom=waiting)
        conversation = started(cls)
        conversation.send(macros("M", b"i", b"1"), MAIL, macros("R", b"i", b"2"), RCPT)
        self.assertEqual(cls.made[0].smfi_getsymval("i"), "1")
        waiting.fire()
        self.assertEqual(cls.made[0].smfi_getsymval("i"), "2")

    def test_commands_that_came_in_one_read_are_answered_in_one_write(self) -> None:
        """
        Commands that came in one read are answered in one write.
        """
        conversation = started(full())
        writes: list[bytes] = []
        self.patch(conversation.transport, "write", writes.append)
        conversation.send(CONNECT + HELO + MESSAGE)
        self.assertEqual(writes, [9 * packet("c")])

    def test_too_much_input_while_an_answer_is_awaited_pauses_the_transport(self) -> None:
        """
        Too much input while an answer is awaited pauses the transport until it is there.
        """
        waiting = Waiting()
        conversation = started(full(header=waiting))
        conversation.send(MAIL, RCPT, DATA, HEADER)
        large = packet("L", b"X\0" + 65000 * b"x" + b"\0")
        count = 0
        while conversation.transport.producerState == "producing" and count < 200:
            conversation.send(large)
            count += 1
        self.assertEqual(conversation.transport.producerState, "paused")
        while waiting.deferreds:
            waiting.fire()
        conversation.clock.advance(0)
        self.assertEqual(conversation.transport.producerState, "producing")
        self.assertEqual(len(parse(conversation.written())), count + 1)

    def test_mta_hears_of_progress_while_end_of_message_takes_long(self) -> None:
        """
        While the end of a message takes long, the MTA hears of progress at the given pace.
        """
        waiting = Waiting()
        conversation = started(full(eom=waiting), progress_interval=10)
        conversation.send(MESSAGE)
        for _ in range(3):
            conversation.clock.advance(9)
            self.assertEqual(conversation.written(), b"")
            conversation.clock.advance(1)
            self.assertEqual(conversation.written(), packet("p"))
        waiting.fire()
        self.assertEqual(conversation.written(), packet("c"))
        conversation.clock.advance(100)
        self.assertEqual(conversation.written(), b"")

    def test_no_progress_elsewhere(self) -> None:
        """
        Progress is for the end of a message only.
        """
        conversation = started(full(eoh=Waiting()), progress_interval=10)
        conversation.send(MAIL, RCPT, DATA, EOH)
        conversation.written()
        conversation.clock.pump([1] * 100)
        self.assertEqual(conversation.written(), b"")

    def test_when_the_mta_goes_what_is_awaited_is_cancelled(self) -> None:
        """
        When the MTA goes, what is awaited is cancelled, and the ends are called once, in order.
        """
        for stage, (before, last) in STAGES.items():
            waiting = Waiting()
            cls = full(**{stage: waiting}, mta_close=None)
            conversation = started(cls)
            conversation.send(before)
            cls.calls.clear()
            conversation.send(last)
            conversation.drop()
            self.assertEqual(waiting.cancelled, 1, stage)
            ends = ["close", "mta_close"]
            if stage not in ("connect", "helo"):
                ends.insert(0, "abort")
            self.assertEqual(names(cls.calls), [stage, *ends], stage)
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_without_a_message_open_there_is_nothing_to_abort(self) -> None:
        """
        Without a message open there is nothing to abort.
        """
        for before in (b"", CONNECT, CONNECT + HELO, MESSAGE, MAIL + ABORT):
            cls = full(mta_close=None)
            conversation = started(cls)
            conversation.send(before)
            cls.calls.clear()
            conversation.drop()
            self.assertEqual(names(cls.calls), ["close", "mta_close"], before)

    def test_mta_that_is_silent_for_timeout_seconds_is_given_up(self) -> None:
        """
        An MTA that is silent for `timeout` seconds is given up; every byte starts the time anew.
        """
        cls = full(mta_close=None)
        conversation = started(cls, timeout=10)
        for piece in (MAIL, b"\0", b"\0\0\5R"):
            conversation.clock.advance(9)
            self.assertFalse(conversation.closed)
            conversation.send(piece)
        conversation.clock.advance(9)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)
        self.assertEqual(names(cls.calls), ["envfrom", "abort", "close", "mta_close"])

    def test_timeout_and_callbacks(self) -> None:
        """
        A callback that takes longer than the MTA's timeout is no silence of the MTA.
        """
        waiting = Waiting()
        conversation = started(full(envfrom=waiting), timeout=10)
        conversation.send(MAIL)
        conversation.clock.advance(100)
        self.assertFalse(conversation.closed)
        waiting.fire()
        self.assertEqual(conversation.written(), packet("c"))
        conversation.clock.advance(9)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)

    def test_by_default_an_mta_is_given_libmilters_7210_seconds(self) -> None:
        """
        By default an MTA is given libmilter's 7210 seconds.
        """
        conversation = started(full())
        conversation.clock.advance(7209)
        self.assertFalse(conversation.closed)
        conversation.clock.advance(2)
        self.assertTrue(conversation.closed)


class ErrorTests(ConversationTestCase):
    """
    Section 8: when something is wrong.
    """

    def broken(self, *_: Any) -> None:
        """
        Be a callback with a bug.
        """
        raise ValueError("bug")

    def test_failed_callback_is_answered_by_on_error(self) -> None:
        """
        A callback that raises, fails, answers nonsense or is late is answered by `on_error`.
        """
        kinds: dict[str, Any] = {
            "raises": self.broken,
            "fails": lambda *_: fail(ValueError("bug")),
            "fails late": Waiting(),
            "nonsense": "x",
            "late": lambda *_: Deferred(),
        }
        codes = {c.SMFIS_TEMPFAIL: "t", c.SMFIS_REJECT: "r", c.SMFIS_CONTINUE: "c"}
        for stage, (before, last) in STAGES.items():
            for kind, answer in kinds.items():
                for code, letter in codes.items():
                    factory = MilterFactory(full(**{stage: answer}), on_error=code, timeout=3)
                    conversation = started(factory)
                    conversation.send(before)
                    said = conversation.send(last)
                    if kind == "late":
                        conversation.clock.advance(4)
                    elif kind == "fails late":
                        answer.deferreds.pop().errback(ValueError("bug"))
                    said += conversation.written()
                    self.assertEqual(said, packet(letter), (stage, kind))
                    self.assertEqual(len(self.failures()), 1, (stage, kind))
                    self.events.clear()

    def test_log_has_one_entry_with_traceback_milter_stage_and_queue_id(self) -> None:
        """
        The log has one entry, with traceback, milter, stage and queue id.
        """
        conversation = started(full("Buggy", eoh=self.broken))
        conversation.send(macros("M", b"i", b"4QueueId"), MAIL, RCPT, DATA, EOH)
        (failure,) = self.failures()
        self.assertIn("bug", failure.getTraceback())
        self.assertIn("broken", failure.getTraceback())
        (event,) = [event for event in self.events if "log_failure" in event]
        text = self.log_text()
        for word in ("Buggy", "xxfi_eoh", "4QueueId"):
            self.assertIn(word, text)
        self.assertEqual(event["log_level"].name, "critical")

    def test_others_go_on(self) -> None:
        """
        An error in one milter leaves its fellows and other connections working.
        """
        good = full("Good")
        bad = MilterFactory(full("Bad", envfrom=self.broken), on_error=c.SMFIS_CONTINUE)
        conversation = started(bad, good)
        self.assertEqual(conversation.letters(MAIL, RCPT), "cc")
        self.assertEqual(names(good.calls), ["envfrom", "envrcpt"])
        conversation.connect()
        conversation.agree()
        self.assertEqual(conversation.letters(MAIL, RCPT), "cc")
        self.assertEqual(len(self.failures()), 2)

    def test_late_result_is_dropped(self) -> None:
        """
        What comes after a callback's time is over is never sent.
        """
        deferred: list[Deferred[Any]] = []

        def stubborn(*_: Any) -> Any:
            deferred.append(Deferred(lambda _: None))
            return deferred[-1]

        conversation = started(MilterFactory(full(envfrom=stubborn), timeout=3))
        conversation.send(MAIL)
        conversation.clock.advance(4)
        self.assertEqual(conversation.written(), packet("t"))
        if not deferred[0].called:
            deferred[0].callback(c.SMFIS_REJECT)
        self.assertEqual(conversation.written(), b"")
        self.flushLoggedErrors()

    def test_mta_breaks_the_protocol(self) -> None:
        """
        What the MTA does wrong is logged with its address.
        """
        for wrong in (b"\0\1\0\1B", packet("Z"), packet("M", b"abc")):
            self.events.clear()
            conversation = started(full())
            conversation.send(wrong)
            self.assertTrue(conversation.closed)
            self.assertIn("192.0.2.25", self.log_text())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_usage_error_in_the_milters_stack(self) -> None:
        """
        A usage error that the milter does not catch is a bug like any other.
        """

        def envfrom(self: Any, argv: list[str]) -> None:
            self.smfi_addheader("X", "y")

        conversation = started(full(envfrom=envfrom))
        self.assertEqual(conversation.letters(MAIL), "t")
        (failure,) = self.failures()
        self.assertTrue(failure.check(UsageError))
        self.assertIn("in envfrom", failure.getTraceback())

    def test_milter_that_cannot_be_built_is_answered_for_by_on_error(self) -> None:
        """
        A milter that cannot be built is answered for by `on_error`; the server goes on.
        """

        class Sometimes(MilterFactory):
            broken = True

            def build_milter(self, protocol: Any) -> Any:
                if self.broken:
                    raise ValueError("no milter today")
                return super().build_milter(protocol)

        for code, letter in ((c.SMFIS_TEMPFAIL, "t"), (c.SMFIS_REJECT, "r")):
            factory = Sometimes(full(), on_error=code)
            conversation = started(factory)
            self.assertEqual(conversation.letters(CONNECT), letter)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
            factory.broken = False
            conversation.connect()
            conversation.agree()
            self.assertEqual(conversation.letters(CONNECT), "c")

    def test_factory_raises_and_fellows_go_on(self) -> None:
        """
        With CONTINUE for `on_error` the other milters work without the one that is missing.
        """

        class Never(MilterFactory):
            def build_milter(self, protocol: Any) -> Any:
                raise ValueError("no milter today")

        cls = full(envfrom=c.SMFIS_REJECT)
        conversation = started(Never(on_error=c.SMFIS_CONTINUE), cls)
        self.assertEqual(conversation.letters(CONNECT, MAIL), "cr")
        self.flushLoggedErrors(ValueError)


class DifferenceTests(ConversationTestCase):
    """
    Section 10: where libmilter is wrong, and we are not.
    """

    def test_final_answer_is_kept(self) -> None:
        """
        A final answer where none was promised is given at the next step that is answered.
        """
        for stage, following in (
            ("envfrom", RCPT),
            ("data", HEADER),
            ("header", EOH),
            ("eoh", BODY),
            ("body", EOM),
        ):
            conversation = started(full(quiet=(stage,), **{stage: c.SMFIS_REJECT}))
            before, last = STAGES[stage]
            conversation.send(before)
            self.assertEqual(conversation.letters(last), "", stage)
            self.assertEqual(conversation.letters(following), "r", stage)

    def test_kept_until_the_end(self) -> None:
        """
        When nothing on the way is answered, the end of message is.
        """
        cls = full(quiet=("header", "eoh", "body"), header=c.SMFIS_DISCARD)
        conversation = started(cls)
        conversation.send(MAIL, RCPT, DATA)
        self.assertEqual(conversation.letters(HEADER, EOH, BODY), "")
        self.assertEqual(conversation.letters(EOM), "d")

    def test_kept_answers_die_with_their_message(self) -> None:
        """
        An answer kept for a message that was aborted is forgotten with it.
        """
        conversation = started(full(quiet=("header",), header=c.SMFIS_REJECT))
        conversation.send(MAIL, RCPT, DATA, HEADER, ABORT)
        self.assertEqual(conversation.letters(MAIL, RCPT, EOM), "ccc")

    def test_end_with_chunk(self) -> None:
        """
        End of message with data: body first, then end of message unless body's answer was final.
        """
        for answer, said, called in (
            (c.SMFIS_CONTINUE, "c", ["body", "eom"]),
            (c.SMFIS_SKIP, "c", ["body", "eom"]),
            (c.SMFIS_REJECT, "r", ["body"]),
            (c.SMFIS_ACCEPT, "a", ["body"]),
        ):
            cls = full(body=answer)
            conversation = started(cls)
            conversation.send(MAIL, RCPT, DATA, EOH)
            cls.calls.clear()
            self.assertEqual(conversation.letters(packet("E", b"abc")), said)
            self.assertEqual(names(cls.calls), called)

    def test_unknown_leaves_the_state(self) -> None:
        """
        An unknown command changes nothing, wherever it comes.
        """
        for stage in ("envrcpt", "data", "header", "eoh", "body", "eom"):
            before, last = STAGES[stage]
            conversation = started(full())
            conversation.send(before)
            conversation.send(UNKNOWN)
            if stage in ("envrcpt", "data"):
                self.assertEqual(conversation.letters(last), "c", stage)
        cls = full()
        conversation = started(cls)
        conversation.send(MAIL, UNKNOWN)
        conversation.drop()
        self.assertEqual(names(cls.calls)[-2:], ["abort", "close"])

    def test_quit_nc_closes_and_begins_a_new_connection_as_agreed(self) -> None:
        """
        QUIT_NC in any state: abort if in a message, close, then a new connection as agreed.
        """
        for before, ends in (
            (b"", ["close"]),
            (CONNECT, ["close"]),
            (CONNECT + HELO, ["close"]),
            (MAIL, ["abort", "close"]),
            (MAIL + RCPT + DATA + HEADER, ["abort", "close"]),
            (MESSAGE, ["close"]),
            (MAIL + ABORT, ["close"]),
        ):
            cls = full()
            conversation = started(cls)
            conversation.send(before)
            cls.calls.clear()
            self.assertEqual(conversation.send(QUIT_NC), b"")
            self.assertFalse(conversation.closed)
            self.assertEqual(names(cls.calls), ends)
            self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE), 9 * "c")

    def test_quit_nc_forgets(self) -> None:
        """
        After QUIT_NC the macros and reply texts of the connection before are gone.
        """
        found: list[Any] = []

        def connect(self: Any, *_: Any) -> Any:
            found.append(self.smfi_getsymval("j"))
            if len(found) == 1:
                self.smfi_setreply("550", None, "old")
                return None
            return c.SMFIS_REJECT

        conversation = started(full(connect=connect))
        conversation.send(macros("C", b"j", b"old"), CONNECT, QUIT_NC)
        self.assertEqual(conversation.letters(CONNECT), "r")
        self.assertEqual(found, ["old", None])

    def test_reply_text_dies_with_its_message(self) -> None:
        """
        The text of `smfi_setreply` is gone when its message ends.
        """
        for end in (EOM, ABORT):
            count: list[int] = []

            def envfrom(self: Any, argv: list[str], count: list[int] = count) -> Any:
                count.append(1)
                if len(count) == 1:
                    self.smfi_setreply("550", None, "old")
                    return None
                return c.SMFIS_REJECT

            conversation = started(full(envfrom=envfrom))
            conversation.send(MAIL, RCPT, end)
            self.assertEqual(conversation.letters(MAIL), "r")

    def test_marks_are_each_connections_own(self) -> None:
        """
        What one connection declined loosens no check of another.
        """
        cls = full(negotiate=lambda self, *_: self.wanted)
        factory = MilterFactory(cls)
        cls.wanted = (c.SMFIS_CONTINUE, 0, DECLINED)
        conversation = Conversation(factory)
        conversation.agree()
        self.assertEqual(conversation.letters(EOM), "c")
        cls.wanted = (c.SMFIS_CONTINUE, 0, 0)
        conversation.connect()
        conversation.agree()
        self.assertEqual(conversation.letters(EOM), "")

    def test_step_that_was_declined(self) -> None:
        """
        A step that no milter asked for is answered CONTINUE, and called for none.
        """
        cls = full(negotiate=(c.SMFIS_CONTINUE, 0, DECLINED))
        conversation = started(cls)
        cls.calls.clear()
        self.assertEqual(conversation.letters(CONNECT, HELO, MESSAGE), 9 * "c")
        self.assertEqual(names(cls.calls), ["eom"])

    def test_skip_not_offered(self) -> None:
        """
        SKIP where the MTA does not offer it is answered CONTINUE, and body is not called again.
        """
        cls = full(body=c.SMFIS_SKIP)
        conversation = Conversation(cls)
        conversation.agree(steps=0x37F)
        conversation.send(MAIL, RCPT, DATA, EOH)
        cls.calls.clear()
        self.assertEqual(conversation.letters(BODY, BODY, EOM), "ccc")
        self.assertEqual(names(cls.calls), ["body", "eom"])
        cls.calls.clear()
        conversation.send(MESSAGE)
        self.assertIn("body", names(cls.calls))

    def test_body_in_spite_of_skip(self) -> None:
        """
        Body sent in spite of SKIP is answered CONTINUE, not called.
        """
        cls = full(body=c.SMFIS_SKIP)
        conversation = started(cls)
        conversation.send(MAIL, RCPT, DATA, EOH)
        cls.calls.clear()
        self.assertEqual(conversation.letters(BODY), "s")
        self.assertIn(conversation.letters(BODY), ("c", "s"))
        self.assertEqual(names(cls.calls), ["body"])

    def test_one_write_for_edits(self) -> None:
        """
        Edits go out in one write with the answer, progress at once.
        """
        writes: list[bytes] = []
        waiting = Waiting()

        def eom(self: Any) -> Any:
            self.smfi_addheader("X", "y")
            self.smfi_progress()
            self.smfi_quarantine("why")
            return waiting()

        conversation = started(full(eom=eom))
        conversation.send(MAIL, RCPT)
        self.patch(conversation.transport, "write", writes.append)
        conversation.send(EOM)
        self.assertEqual(writes, [packet("p")])
        waiting.fire()
        self.assertEqual(writes[1:], [packet("h", b"X\0y\0") + packet("q", b"why\0") + packet("c")])

    def test_xxfi_abort_is_called_with_a_message_open_only_and_once(self) -> None:
        """
        `xxfi_abort` is called with a message open only, and once.
        """
        for sent in (ABORT, packet("H"), packet("M"), CONNECT + CONNECT, HEADER + QUIT):
            cls = full()
            conversation = started(cls)
            conversation.send(MAIL, sent)
            conversation.drop()
            self.assertEqual(names(cls.calls).count("abort"), 1)
            self.assertEqual(names(cls.calls).count("close"), 1)
        cls = milter(eom=None)
        conversation = started(cls)
        conversation.send(ABORT, ABORT, EOM, ABORT)
        self.assertEqual(names(cls.calls), ["eom"])


class NoReplyTests(ConversationTestCase):
    """
    The decorator `noreply`.
    """

    def test_on_a_class(self) -> None:
        """
        It works on an ordinary class, on coroutines too, and leaves the function callable.
        """
        seen: list[str] = []

        class Quiet(Milter):
            @noreply
            async def xxfi_helo(self, helohost: str) -> None:
                seen.append(helohost)

        conversation = Conversation(Quiet)
        self.assertEqual(conversation.agree()[2], DECLINED & ~c.SMFIP_NOHELO | c.SMFIP_NR_HELO)
        self.assertEqual(conversation.letters(HELO), "")
        self.assertEqual(seen, ["mail.example.org"])
