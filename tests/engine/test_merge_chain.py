"""
What all merges have in common with an MTA's own filters.

The reference is an MTA with as many filters of one milter each: `_Separate` plays it.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
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
    MESSAGE,
    QUIT,
    RCPT,
    STAGES,
    Conversation,
    ConversationTestCase,
    Waiting,
    full,
    macros,
    milter,
    names,
    packet,
    parse,
    started,
)
from yatxmilter import constants as c
from yatxmilter._engine import merge_chain as chain_module
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.delivery import apply_edits
from yatxmilter._mail.rfc5322 import split_mail
from yatxmilter._wire.actions import read_edit

POSTFIX = macros("C", b"v", b"Postfix 3.12")
OTHER = packet("R", b"<other@example.net>\0")
MAIL_FILE = b"A: 1\r\nSubject: hi\r\nA: 2\r\n\r\nfirst\r\nsecond\r\n"

#: What a callback may answer, continue being the likeliest.
ANSWERS: dict[str, list[Any]] = {
    "connect": [c.SMFIS_ACCEPT],
    "helo": [c.SMFIS_ACCEPT],
    "envfrom": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_DISCARD],
    "envrcpt": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL],
    "data": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_DISCARD],
    "header": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_DISCARD],
    "eoh": [c.SMFIS_ACCEPT, c.SMFIS_TEMPFAIL],
    "body": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_SKIP, c.SMFIS_SKIP],
    "eom": [c.SMFIS_ACCEPT, c.SMFIS_REJECT, c.SMFIS_TEMPFAIL, c.SMFIS_DISCARD],
}
EDITS: list[tuple[Any, ...]] = [
    ("addheader", "A", "added"),
    ("insheader", 0, "X", "top"),
    ("insheader", 2, "Y", "middle"),
    ("chgheader", "A", 1, "changed"),
    ("chgheader", "X", 1, "changed"),
    ("chgheader", "A", 1, None),
    ("chgheader", "A", 3, "third"),
    ("replacebody", b"new body\n"),
    ("replacebody", b""),
]


class BrokenTests(ConversationTestCase):
    """
    An MTA that breaks the protocol.
    """

    def test_header_field_without_payload_ends_the_connection(self) -> None:
        """
        A header field without a payload ends the connection in a chain, too.
        """
        conversation = started(full(), full(), merge="chain")
        conversation.send(CONNECT, HELO, MAIL, RCPT, DATA)
        conversation.send(packet("L"))
        self.assertTrue(conversation.closed)


class _Clocks:
    """
    The clock of the conversation that is being held.
    """

    now: Any = None


def random_milter(dice: random.Random, clocks: _Clocks, rate: float = 0.12) -> Any:
    """
    Make the members of a milter that answers at random, at once or later, always in the same way.
    """

    def answer_of(stage: str, edits: list[tuple[Any, ...]]) -> Any:
        code = dice.choice(ANSWERS[stage]) if dice.random() < rate else c.SMFIS_CONTINUE
        how = dice.choice(("plain", "plain", "deferred", "coroutine"))

        def answer(self: Any, *_: Any) -> Any:
            for name, *arguments in edits:
                getattr(self, f"smfi_{name}")(*arguments)
            if how == "plain":
                return code
            later = deferLater(clocks.now, 0, lambda: code)
            return later if how == "deferred" else _await(later)

        return answer

    edits = dice.sample(EDITS, dice.randint(0, 3))
    # All are told of the message's begin, or an MTA would not know that they are in it.
    stages = [stage for stage in ANSWERS if stage == "envfrom" or dice.random() < 0.85]
    return {stage: answer_of(stage, edits if stage == "eom" else []) for stage in stages}


async def _await(deferred: Deferred[Any]) -> Any:
    return await deferred


def calls_of(cls: Any) -> list[Any]:
    """
    Give a milter's calls; how the body was cut does not count.
    """
    found: list[Any] = []
    for name, *args in cls.calls:
        if name == "body" and found and found[-1][0] == "body":
            found[-1] = ("body", found[-1][1] + args[0])
        else:
            found.append((name, *args))
    return found


def content(message: bytes) -> tuple[list[bytes], bytes]:
    """
    Give the header packets and the body of a message.
    """
    mail = split_mail(message)
    packets = [packet("L", f.name + b"\0" + f.bare_value() + b"\0") for f in mail.fields]
    return packets, mail.body


class _Separate:
    """
    An MTA with filters of one milter each, that does with them what Postfix does.
    """

    def __init__(self, milters: list[Any], clocks: _Clocks) -> None:
        self.clocks = clocks
        self.all = [started(one) for one in milters]
        self.gone: list[Conversation] = []
        self.left: list[Conversation] = []

    def say(self, conversation: Conversation, piece: bytes) -> str:
        """
        Send a packet to one filter, and give the letter of what is the answer.
        """
        self.clocks.now = conversation.clock
        self.answer = parse(conversation.send(piece))
        # What is not asked for is not answered.
        return self.answer[-1][0] if self.answer else "c"

    def step(self, piece: bytes) -> str:
        """
        Send a command to one after the other.
        """
        for one in self.all:
            if one in self.left or one in self.gone:
                continue
            letter = self.say(one, piece) if self.wants(one, piece) else "c"
            if letter == "a":
                (self.gone if piece in (CONNECT, HELO) else self.left).append(one)
            elif letter != "c":
                return letter
        return "c"

    @staticmethod
    def wants(one: Conversation, piece: bytes) -> bool:
        """
        Tell whether the filter has asked for the command; RSET's is for all.
        """
        (member,) = one.protocol._conversation.members
        callbacks = {
            **{"C": "connect", "H": "helo", "M": "envfrom", "R": "envrcpt", "T": "data"},
            **{"L": "header", "N": "eoh", "B": "body"},
        }
        name = callbacks.get(chr(piece[4]))
        return name is None or f"xxfi_{name}" in member.wanted

    def message(self) -> str:
        """
        Send a message, and give the answer to it.
        """
        self.left = []
        letter = self.envelope()
        message = MAIL_FILE
        for place, one in enumerate(self.all):
            if letter != "c":
                break
            if one in self.left or one in self.gone:
                continue
            letter, message = self.content_for(one, message)
            self.finished = self.all[: place + 1]
        self.end(letter)
        return letter

    def envelope(self) -> str:
        """
        Send the envelope.
        """
        self.finished: list[Conversation] = []
        refused = 0
        for piece in (MAIL, RCPT, OTHER, DATA):
            letter = self.step(piece)
            if piece in (RCPT, OTHER):
                refused += letter != "c"
            elif letter != "c":
                return letter
            if refused == 2:
                return "none"
        return "c"

    def content_for(self, one: Conversation, message: bytes) -> tuple[str, bytes]:
        """
        Send the content to one filter; give its answer and what it has made of the message.
        """
        headers, body = content(message)
        chunks = [packet("B", body)] if body else []
        for piece in (*headers, EOH, *chunks, EOM):
            if not self.wants(one, piece):
                continue
            letter = self.say(one, piece)
            if letter == "a" and piece is not EOM:
                self.left.append(one)
                return "c", message
            if letter not in "cas":
                return letter, message
        edits = [read_edit(ord(what), data, 0x1FF) for what, data in self.answer[:-1]]
        return "c", apply_edits(message, edits)

    def end(self, letter: str) -> None:
        """
        Abort the message of those that have not finished with it.
        """
        for one in self.all:
            if one not in self.finished and one not in self.gone:
                one.send(ABORT)


class EqualityTests(SynchronousTestCase):
    """
    A chain, and as many filters.
    """

    def test_each_milter_of_a_chain_is_called_as_a_filter_by_itself(self) -> None:
        """
        Each milter of a chain is called as it would be as a filter by itself, with the edits of
        those before it, and the MTA is told the same.
        """
        for seed in range(150):
            clocks = _Clocks()
            dice = random.Random(seed)
            members = [random_milter(dice, clocks) for _ in range(dice.choice((2, 3, 4)))]
            letters = []
            separate = [made_of(part) for part in members]
            filters = _Separate(separate, clocks)
            filters.step(CONNECT)
            filters.step(HELO)
            for _ in range(2):
                letters.append(filters.message())
            for one in filters.all:
                one.send(QUIT)
            chained = [made_of(part) for part in members]
            self.assertEqual(self.converse(chained, clocks), letters, f"seed {seed}")
            for number, (one, other) in enumerate(zip(chained, separate, strict=True)):
                self.assertEqual(calls_of(one), calls_of(other), f"seed {seed}, {number}")

    def converse(self, milters: list[Any], clocks: _Clocks) -> list[str]:
        """
        Have two messages chained, and give the answers to them; all that lets one pass is "c".
        """
        conversation = started(*milters, merge="chain")
        clocks.now = conversation.clock
        conversation.send(POSTFIX)
        accepted = any(conversation.letters(piece) == "a" for piece in (CONNECT, HELO))
        letters = ["c" if accepted else self.one_message(conversation) for _ in range(2)]
        conversation.send(QUIT)
        return letters

    def one_message(self, conversation: Conversation) -> str:
        """
        Send a message until it is decided, and give the answer.
        """
        headers, body = content(MAIL_FILE)
        refused = 0
        for piece in (MAIL, RCPT, OTHER, DATA, *headers, EOH, packet("B", body), EOM):
            letters = conversation.letters(piece)
            letter = letters[-1] if letters else "c"
            if letter == "a":
                return "c"
            if piece in (RCPT, OTHER):
                refused += letter != "c"
            elif letter not in "cs":
                return letter
            if refused == 2:
                conversation.send(ABORT)
                return "none"
        return "c"

    def test_others_until_decided(self) -> None:
        """
        With the other merges each milter is called as if alone until the message is decided.
        """
        for seed in range(150):
            for merge in ("first", "strictest"):
                clocks = _Clocks()
                dice = random.Random(seed)
                members = [random_milter(dice, clocks, rate=0.04) for _ in range(3)]
                for part in members:
                    # An edit of the body by two is a conflict, and a recipient that one refuses is
                    # not shown to those behind it.
                    part.pop("eom", None)
                    part.pop("envrcpt", None)
                together = [made_of(part) for part in members]
                self.run_all(together, clocks, merge)
                for part, one in zip(members, together, strict=True):
                    alone = made_of(part)
                    self.run_all([alone], clocks, merge)
                    seen = [call for call in one.calls if call[0] != "abort"]
                    whole = [call for call in alone.calls if call[0] != "abort"]
                    self.assertEqual(seen, whole[: len(seen)], f"seed {seed}, {merge}")

    def run_all(self, milters: list[Any], clocks: _Clocks, merge: str) -> None:
        """
        Send one message until it is decided.
        """
        conversation = started(*milters, merge=merge)
        clocks.now = conversation.clock
        for piece in (CONNECT, HELO):
            if conversation.letters(piece) == "a":
                return
        self.one_message(conversation)


def made_of(members: dict[str, Any]) -> Any:
    """
    Make a milter class of these members alone.
    """
    return milter(**members)


class FlavourTests(ConversationTestCase):
    """
    The MTA that a chain talks to is told by its macros.
    """

    def edits(self, macro: bytes, **others: Any) -> tuple[list[tuple[str, bytes]], list[Any]]:
        """
        Have one milter delete the first X, and the next one change what is the first for it.

        :return: The edits, and the header that the second was shown.
        """

        def delete(self: Any) -> None:
            self.smfi_chgheader("X", 1, None)

        def change(self: Any) -> None:
            self.smfi_chgheader("X", 1, "new")

        two = milter(eom=change, **others)
        conversation = started(milter(eom=delete), two, merge="chain")
        conversation.send(macro, packet("L", b"X\x001\0"), packet("L", b"X\x002\0"))
        found = conversation.packets(EOM)[:-1]
        return found, [call[1:] for call in two.calls if call[0] == "header"]

    def test_sendmail_is_told_to_change_the_second_field(self) -> None:
        """
        Sendmail is told to change the second field, since it counts the deleted one for a filter.
        """
        gone = ("m", b"\0\0\0\1X\0\0")
        for macro in ((b"v", b"8.17.1"), (b"j", b"mta.example.com")):
            edits = self.edits(macros("C", *macro), header=None)
            self.assertEqual(edits, ([gone, ("m", b"\0\0\0\2X\0new\0")], [("X", "2")]))
        for macro in ((b"v", b"Postfix 3.7"), (b"v", b"Other 8"), (b"_", b"x")):
            edits = self.edits(macros("C", *macro), header=None)
            self.assertEqual(edits, ([gone, ("m", b"\0\0\0\1X\0new\0")], [("X", "2")]))

    def test_header_not_wanted(self) -> None:
        """
        For a milter that is not sent the header Sendmail counts the deleted field.
        """
        edits, _ = self.edits(macros("C", b"v", b"8.17.1"))
        self.assertEqual(edits[-1], ("m", b"\0\0\0\1X\0new\0"))

    def test_edits_of_a_header_that_nobody_is_shown_are_sent_as_they_were_made(self) -> None:
        """
        What is done to a header that nobody is shown is sent as it was made: which fields there are
        is not known, also where one has asked for it and is out of the message by then.
        """

        def change(self: Any) -> None:
            self.smfi_chgheader("X", 1, "new")

        def delete(self: Any) -> None:
            self.smfi_chgheader("X", 1, None)

        made = [("m", b"\0\0\0\1X\0new\0"), ("m", b"\0\0\0\1X\0\0")]
        blind = [{"eom": change}, {"eom": delete}]
        gone = {"data": c.SMFIS_ACCEPT, "header": None}
        for flavour in (b"Postfix 3.7", b"8.17.1"):
            for parts in (blind, [gone, *blind], [*blind, gone]):
                conversation = started(*map(made_of, parts), merge="chain")
                sent = (macros("C", b"v", flavour), CONNECT, HELO, MAIL, RCPT, DATA)
                conversation.send(*sent, packet("L", b"X\x001\0"), EOH)
                self.assertEqual(conversation.packets(EOM)[:-1], made, flavour)


class SpoolTests(ConversationTestCase):
    """
    The body that is kept.
    """

    def setUp(self) -> None:
        super().setUp()
        self.spools: list[Any] = []
        test = self

        class Noted(BodySpool):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                test.spools.append(self)
                self.closed = False

            def close(self) -> None:
                super().close()
                self.closed = True

        self.patch(chain_module, "BodySpool", Noted)

    def closed(self) -> list[bool]:
        """
        Tell of each one whether it is closed.
        """
        return [spool.closed for spool in self.spools]

    def test_closed_at_the_end(self) -> None:
        """
        It is closed however the message ends, on disk or not.
        """
        for ending in (EOM, ABORT, QUIT):
            for memory in (1, 1000):
                self.spools.clear()
                conversation = started(full(), full(), merge="chain", spool_memory=memory)
                conversation.send(MAIL, RCPT, DATA, HEADER, EOH, BODY)
                self.assertEqual(self.closed(), [False])
                self.assertEqual(self.spools[0]._file is not None, memory == 1)
                conversation.send(ending)
                self.assertEqual(self.closed(), [True])

    def test_each_message_has_one(self) -> None:
        """
        Each message on a connection has its own.
        """
        conversation = started(full(), full(), merge="chain")
        conversation.send(MESSAGE, MESSAGE)
        self.assertEqual(self.closed(), [True, True])

    def test_closed_when_the_mta_goes(self) -> None:
        """
        When the MTA goes while a milter takes its time over the content, what is awaited is
        cancelled, those in the message are told, once, and the file is closed.
        """
        for stage in ("header", "eoh", "body", "eom"):
            for place in range(3):
                self.spools.clear()
                waiting = Waiting()
                milters = [full(**{stage: waiting} if n == place else {}) for n in range(3)]
                conversation = started(*milters, merge="chain", timeout=None)
                conversation.send(MESSAGE)
                self.assertEqual(self.closed(), [False])
                conversation.drop()
                self.assertEqual((waiting.cancelled, self.closed()), (1, [True]))
                self.assertEqual(conversation.clock.getDelayedCalls(), [])
                for number, one in enumerate(milters):
                    self.assertEqual(names(one.calls).count("abort"), 1, f"{stage} {number}")


class PayloadTests(ConversationTestCase):
    """
    What cannot be read.
    """

    def test_header_that_cannot_be_read_ends_the_connection(self) -> None:
        """
        A header that cannot be read ends the connection; all were in the message.
        """
        for merge in ("first", "strictest", "chain"):
            milters = [full(), full()]
            conversation = started(*milters, merge=merge)
            conversation.send(MAIL, RCPT, DATA, packet("L", b"no end"))
            self.assertTrue(conversation.closed)
            for one in milters:
                self.assertEqual(names(one.calls)[-2:], ["abort", "close"], merge)

    def test_before_any_message_nobody_is_told_of_one(self) -> None:
        """
        Before any message nobody is told of one.
        """
        for merge in ("first", "strictest", "chain"):
            milters = [full(), full()]
            conversation = started(*milters, merge=merge)
            conversation.send(packet("C", b"no end"))
            self.assertTrue(conversation.closed)
            for one in milters:
                self.assertEqual(names(one.calls), ["close"], merge)


class FairnessTests(ConversationTestCase):
    """
    A large message does not keep other connections waiting.
    """

    def begin(self, *milters: Any) -> Conversation:
        """
        Send all of a message of 10 MB except its end.
        """
        conversation = started(*milters, merge="chain", timeout=None)
        conversation.send(MAIL, RCPT, DATA, EOH)
        chunk = packet("B", 65535 * b"x")
        for _ in range(150):
            conversation.send(chunk)
        return conversation

    @staticmethod
    def given(*milters: Any) -> int:
        """
        Count the bytes that the milters have been given.
        """
        return sum(len(call[1]) for one in milters for call in one.calls if call[0] == "body")

    def test_after_some_megabytes_the_reactor_has_its_turn(self) -> None:
        """
        After some megabytes the reactor has its turn; in the end all have been given all.
        """
        milters = [full(), full(), full()]
        conversation = self.begin(*milters)
        conversation.protocol.dataReceived(EOM)
        self.assertLess(self.given(*milters), 5_000_000)
        self.assertEqual(conversation.written(), b"")
        self.assertEqual(conversation.letters(), "c")
        self.assertEqual(self.given(*milters), 3 * 150 * 65535)
        self.assertEqual(conversation.clock.getDelayedCalls(), [])

    def test_goes_in_between(self) -> None:
        """
        The MTA may go in between: nothing more is given.
        """
        milters = [full(), full()]
        conversation = self.begin(*milters)
        conversation.protocol.dataReceived(EOM)
        before = self.given(*milters)
        conversation.drop()
        conversation.clock.advance(1)
        self.assertEqual(self.given(*milters), before)
        self.assertEqual([names(one.calls)[-2:] for one in milters], 2 * [["abort", "close"]])
        self.assertEqual(conversation.clock.getDelayedCalls(), [])


class StageTests(ConversationTestCase):
    """
    What comes between the steps.
    """

    def test_disconnect_at_each_stage(self) -> None:
        """
        Whoever has been called for a message is told of its end, at whichever stage the MTA goes.
        """
        for stage, (before, last) in STAGES.items():
            milters = [full(), full()]
            conversation = started(*milters, merge="chain")
            conversation.send(before, last)
            conversation.drop()
            aborts = int(stage not in ("connect", "helo", "eom"))
            for one in milters:
                self.assertEqual(names(one.calls).count("abort"), aborts, stage)
