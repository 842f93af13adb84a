"""
Tests of ``yatxmilter replay``: records against scripted milters, over real sockets.

A milter here is a script: a letter of a command to the packets that answer it. What a session was
like is written in the same way, so each test says what was, what is now, and what has to be found.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import InterruptedInput
from yatxmilter import constants as c
from yatxmilter._cli import replay
from yatxmilter._cli.running import Interrupted
from yatxmilter._records import replay_compare
from yatxmilter._records.record import Recorder, Session
from yatxmilter._records.replay_player import Player, Result
from yatxmilter._wire.payloads import Offer, PacketSplitter, encode_offer, encode_packet

Script = dict[str, Any]
Spoken = list[tuple[str, str, bytes]]

ALL = c.SMFI_CURR_ACTS
OFFER = encode_offer(Offer(6, ALL, c.SMFI_CURR_PROT))[5:]


def agreement(steps: int = 0, version: int = 6) -> bytes:
    """
    Give the payload of a milter's OPTNEG.
    """
    return encode_offer(Offer(version, ALL, steps))[5:]


def session(
    *message: tuple[str, str, bytes], steps: int = 0, end: tuple[str, str, bytes] | None = None
) -> Spoken:
    """
    Give a session: negotiation, what is said, and QUIT.
    """
    last = end or (">", "Q", b"")
    return [(">", "O", OFFER), ("<", "O", agreement(steps)), *message, last]


def asked(letter: str, payload: bytes = b"", answer: str = "c", text: bytes = b"") -> Spoken:
    """
    Give a command and its answer.
    """
    return [(">", letter, payload), ("<", answer, text)]


MAIL = [(">", "D", b"Mi\0Q1\0"), *asked("M", b"<a@example.org>\0")]
RCPT = asked("R", b"<b@example.net>\0")
HEADER = asked("L", b"Subject\0hi\0")
BODY = asked("B", b"text\r\n")
EOM = asked("E", b"")
MESSAGE = [*MAIL, *RCPT, *HEADER, *BODY]


class ScriptedMilter(Protocol):
    """
    Answers as its factory's script says.
    """

    factory: Any

    def connectionMade(self) -> None:
        self.splitter = PacketSplitter(strict=True)

    def dataReceived(self, data: bytes) -> None:
        self.splitter.feed(data)
        while (packet := self.splitter.next_packet()) is not None:
            letter = chr(packet[0])
            self.factory.seen.append((letter, packet[1]))
            answers = self.factory.script.get(letter, [] if letter in "DAKQ" else [("c", b"")])
            if letter == "O":
                answers = self.factory.script.get("O", [("O", agreement())])
            for answer, payload in answers:
                assert self.transport is not None
                if answer == "!":
                    self.transport.loseConnection()
                else:
                    self.transport.write(encode_packet(ord(answer), payload))
            if letter == "Q":
                self.transport.loseConnection()  # type: ignore[union-attr]


class ReplayCase(SynchronousTestCase):
    """
    A folder, and the command run in it.
    """

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.record = self.folder / "record"
        self.socket = str(self.folder / "milter")
        self.seen: list[tuple[str, bytes]] = []

    def keep(self, *sessions: Spoken, redact: tuple[str, ...] = (), by: str = "mta") -> None:
        """
        Record sessions.
        """
        recorder = Recorder(self.record.open("w"), redact)
        recorder.begin(0)
        for number, spoken in enumerate(sessions, 1):
            recorder.open(number, 0)
            for side, letter, payload in spoken:
                if side == "?":
                    recorder.undecoded(number, 0, True, "odd bytes")
                else:
                    recorder.packet(number, 0, side == ">", ord(letter), payload)
            recorder.close(number, 0, by)
        recorder.end(0)

    def replay(
        self, script: Script | None = None, *options: str, listen: bool = True
    ) -> tuple[int, str, str]:
        """
        Run the command against a milter; give status, output and complaints.
        """
        parser = ArgumentParser()
        replay.add_arguments(parser)
        arguments = parser.parse_args([str(self.record), "--to", self.socket, *options])
        reactor: Any = SelectReactor()
        factory: Any = Factory.forProtocol(ScriptedMilter)
        factory.script, factory.seen = script or {}, self.seen
        self.seen.clear()
        if listen:
            port = reactor.listenUNIX(self.socket, factory)
            reactor.addSystemEventTrigger("before", "shutdown", port.stopListening)
        out, err = io.StringIO(), io.StringIO()
        status = replay.run(arguments, reactor=reactor, out=out, err=err)
        return status, out.getvalue(), err.getvalue()

    def differences(self, script: Script, *options: str) -> list[tuple[str, list[str], list[str]]]:
        """
        Replay; give what differs: where, what was, what is now.
        """
        _, out, err = self.replay(script, "--json", *options)
        self.assertEqual(err, "")
        parts = [json.loads(line) for line in out.splitlines()][:-1]
        self.notes = [note for part in parts[:1] for note in part["notes"]]
        self.unsent = sum(part["unsent"] for part in parts)
        found = [difference for part in parts for difference in part["differences"]]
        return [(one["at"], one["was"], one["now"]) for one in found]

    def sent(self) -> str:
        """
        Give the letters of what the milter got, without macros.
        """
        return "".join(letter for letter, _ in self.seen if letter != "D")


class SameTests(ReplayCase):
    """
    Nothing differs.
    """

    def test_all_is_sent_as_it_was_macros_too_and_status_is_0(self) -> None:
        """
        All is sent as it was, macros too, and the status is 0.
        """
        self.keep(session(*MESSAGE, *EOM, (">", "A", b"")), session(*MESSAGE, *EOM))
        status, out, _ = self.replay()
        self.assertEqual((status, out), (0, "2 sessions, 2 messages, no difference\n"))
        self.assertEqual(self.sent(), "OMRLBEAQ" + "OMRLBEQ")
        self.assertIn(("D", b"Mi\0Q1\0"), self.seen)

    def test_with_verbose_what_is_the_same_is_told_of_too(self) -> None:
        """
        With --verbose what is the same is told of, too.
        """
        self.keep(session(*MESSAGE, *EOM))
        _, out, _ = self.replay(None, "--verbose")
        self.assertIn("connection 1, before any message (line 2): the same\n", out)
        self.assertIn("connection 1, message 1 [Q1] (line 6): the same\n", out)

    def test_unanswered_in_both(self) -> None:
        """
        A milter that hangs up where it did is the same.
        """
        spoken = session(*MESSAGE, end=(">", "E", b""))
        self.keep(spoken, by="milter")
        self.assertEqual(self.differences({"E": [("!", b"")]}), [])
        found = self.differences({})
        self.assertEqual(found, [("BODYEOB", ["(closed the connection)"], ["CONTINUE"])])

    def test_progress_and_unasked(self) -> None:
        """
        Progress is not compared; a response that nobody asked for is.
        """
        self.keep(session(*MESSAGE, (">", "E", b""), ("<", "p", b""), ("<", "c", b"")))
        self.assertEqual(self.differences({"E": [("p", b""), ("c", b"")]}), [])
        self.keep(session(*MESSAGE, *EOM, ("<", "c", b"")))
        found = self.differences({})
        self.assertEqual(found, [("BODYEOB", ["CONTINUE", "CONTINUE"], ["CONTINUE"])])


class DifferenceTests(ReplayCase):
    """
    What differs is found, and told of.
    """

    def test_edits_are_compared_in_their_order_bodies_line_by_line(self) -> None:
        """
        Edits are compared in their order, bodies line by line.
        """
        was = [("<", "h", b"X\0a\0"), ("<", "b", b"one\r\nt"), ("<", "b", b"wo"), ("<", "c", b"")]
        self.keep(session(*MESSAGE, (">", "E", b""), *was))
        now = [("h", b"X\0b\0"), ("b", b"one\r\nthree"), ("c", b"")]
        status, out, _ = self.replay({"E": now})
        self.assertEqual(status, 1)
        self.assertEqual(
            out,
            "connection 1, message 1 [Q1] (line 6): 1 difference\n"
            "  BODYEOB (line 14)\n"
            "    was ADDHEADER X: a\n"
            "    now ADDHEADER X: b\n"
            "        REPLBODY\n"
            "        | one\n"
            "    was | two\n"
            "    now | three\n"
            "        CONTINUE\n"
            "1 session, 1 message, 1 difference in 1 session\n",
        )
        self.patch(replay_compare, "_MOST_LINES", 1)
        _, out, _ = self.replay({"E": now})
        self.assertIn("now REPLBODY 10 bytes, sha256 ", out)

    def test_what_is_not_to_be_compared_is_left_alone(self) -> None:
        """
        What is not to be compared is not: fields, parts of lines, the negotiation.
        """
        was = [("<", "h", b"X-Date\0a\0"), ("<", "q", b"id 12\0"), ("<", "c", b"")]
        self.keep(session(*MESSAGE, (">", "E", b""), *was))
        script: Script = {"E": [("q", b"id 34\0"), ("c", b"")], "O": [("O", agreement(1))]}
        options = ("--ignore", "x-date", "--mask", "id [0-9]+", "--ignore-negotiation")
        self.assertEqual(self.differences(script, *options), [])
        self.assertEqual(len(self.differences(script)), 2)

    def test_when_message_is_refused_now_the_rest_of_it_is_not_sent(self) -> None:
        """
        When a message is refused now the rest of it is not sent; when it no longer is, it is ended.
        """
        good = [*MESSAGE, *EOM, (">", "A", b"")]
        self.keep(session(*good, *good))
        found = self.differences({"M": [("r", b"")]})
        self.assertEqual(found, [("MAIL <a@example.org>", ["CONTINUE"], ["REJECT"])] * 2)
        self.assertEqual((self.sent(), self.unsent), ("OMAMAQ", 8))
        _, out, _ = self.replay({"M": [("r", b"")]})
        self.assertIn("  4 recorded commands not sent after that\n", out)
        refused = asked("M", b"<a@example.org>\0", "r")
        self.keep(session(*refused, *asked("U", b"XFOO\0"), *MESSAGE, *EOM))
        self.assertEqual(len(self.differences({})), 1)
        self.assertEqual(self.sent(), "OMUAMRLBEQ")

    def test_without_a_recipient_there_is_no_content(self) -> None:
        """
        Without a recipient there is no content; with one of two there is.
        """
        self.keep(session(*MESSAGE, *EOM))
        self.assertEqual(len(self.differences({"R": [("y", b"550 5.1.1 no\0")]})), 1)
        self.assertEqual(self.sent(), "OMRQ")
        other = asked("R", b"<c@example.net>\0", "r")
        self.keep(session(*MAIL, *other, *RCPT, *HEADER, *EOM))
        self.assertEqual(len(self.differences({})), 1)
        self.assertEqual(self.sent(), "OMRRLEQ")

    def test_connection_or_a_helo_that_is_refused_now_has_no_messages(self) -> None:
        """
        A connection or a HELO that is refused now has no messages; a new HELO is heard again.
        """
        hello = asked("H", b"x\0")
        start = asked("C", b"x\0U")
        self.keep(session(*start, *hello, *MESSAGE, *EOM, *hello, *MAIL, (">", "K", b""), *start))
        self.assertEqual(len(self.differences({"C": [("r", b"")]})), 2)
        self.assertEqual(self.sent(), "OCKCQ")
        self.differences({"H": [("t", b"")]})
        self.assertEqual(self.sent(), "OCHHKCQ")
        found = self.differences({"C": [("4", b"")]})
        self.assertEqual(found[0], ("CONNECT x (address unknown)", ["CONTINUE"], ["SHUTDOWN"]))
        self.assertEqual(self.sent(), "OCQ")

    def test_command_is_named_in_a_few_words_however_long_it_is(self) -> None:
        """
        A command is named in a few words, however long it is.
        """
        self.keep(session(*MAIL, *RCPT, *asked("L", b"X\0" + b"y" * 200 + b"\0")))
        ((name, _, _),) = self.differences({"L": [("r", b"")]})
        self.assertEqual(name, f"HEADER X: {'y' * 54}...")

    def test_hanging_up_where_it_did_not_is_a_difference(self) -> None:
        """
        A milter that hangs up, or breaks the protocol, where it did not is a difference.
        """
        self.keep(session(*MESSAGE, *EOM))
        found = self.differences({"L": [("!", b"")]})
        self.assertEqual(found, [("HEADER Subject: hi", ["CONTINUE"], ["(closed the connection)"])])
        found = self.differences({"L": [("h", b"X\0y\0")]})
        self.assertIn("in answer to HEADER", found[0][2][1])
        found = self.differences({"O": [("!", b"")]})
        self.assertEqual((found[0][0], self.sent()), ("negotiation", "O"))
        found = self.differences({"L": []}, "--timeout", "0.01")
        self.assertIn("silent for 0.01 s", found[0][2][0])


class AgreementTests(ReplayCase):
    """
    The milter asks for something else than it did.
    """

    def test_what_is_declined_now_is_not_sent_and_counts_as_continue(self) -> None:
        """
        What is declined now is not sent, and counts as CONTINUE; the negotiation differs.
        """
        self.keep(session(*MESSAGE, *EOM))
        found = self.differences(
            {"O": [("O", agreement(c.SMFIP_NOHDRS | c.SMFIP_NR_BODY))], "B": []}
        )
        self.assertEqual([one[0] for one in found], ["negotiation"])
        self.assertEqual(found[0][2][2], "steps SMFIP_NOHDRS|SMFIP_NR_BODY")
        self.assertEqual(self.sent(), "OMRBEQ")

    def test_what_was_declined_then_and_is_not_now_cannot_be_sent(self) -> None:
        """
        What was declined then and is not now cannot be sent, which is noted; where no answer was
        given one is awaited.
        """
        steps = c.SMFIP_NOMAIL | c.SMFIP_NR_HDR
        silent = [(">", "L", b"Subject\0hi\0")]
        message = [*RCPT, *silent, *silent, *EOM]
        self.keep(session(*message, *message, steps=steps))
        found = self.differences({"L": [("d", b"")]})
        self.assertEqual([one[0] for one in found], ["negotiation", *["HEADER Subject: hi"] * 2])
        self.assertEqual(self.notes, ["the milter wants now what the record does not have: MAIL"])
        self.assertEqual(self.sent(), "ORLRLQ")

    def test_fields_are_sent_with_space_that_is_asked_for_now(self) -> None:
        """
        Fields are sent with the space that is asked for now, and edits compared without it.
        """
        space = c.SMFIP_HDR_LEADSPC
        edit = [("h", b"X\0 y\0"), ("c", b"")]
        self.keep(session(*MESSAGE, (">", "E", b""), ("<", "h", b"X\0y\0"), ("<", "c", b"")))
        script: Script = {"O": [("O", agreement(space))], "E": edit}
        self.assertEqual(self.differences(script, "--ignore-negotiation"), [])
        self.assertIn(("L", b"Subject\0 hi\0"), self.seen)
        with_space = asked("L", b"Subject\0 hi\0")
        self.keep(session(*MAIL, *RCPT, *with_space, *EOM, steps=space))
        self.assertEqual(self.differences({}, "--ignore-negotiation"), [])
        self.assertIn(("L", b"Subject\0hi\0"), self.seen)

    def test_recipients_refused_by_the_mta(self) -> None:
        """
        Recipients that the MTA had refused go only to a milter that asks for them.
        """
        refused = [(">", "D", b"R{rcpt_mailer}\0error\0"), *RCPT]
        self.keep(session(*MAIL, *refused, (">", "A", b""), steps=c.SMFIP_RCPT_REJ))
        self.assertEqual(self.differences({}, "--ignore-negotiation"), [])
        self.assertEqual(self.sent(), "OMAQ")
        self.differences({"O": [("O", agreement(c.SMFIP_RCPT_REJ))]})
        self.assertEqual(self.sent(), "OMRAQ")

    def test_negotiation_that_failed_then_may_succeed_now(self) -> None:
        """
        A negotiation that failed then may succeed now.
        """
        self.keep([(">", "O", OFFER)], by="milter")
        self.assertEqual(len(self.differences({})), 1)
        self.assertEqual(self.differences({"O": [("!", b"")]}), [])

    def test_what_is_too_large_for_what_is_agreed_now_is_not_sent(self) -> None:
        """
        What is too large for what is agreed now is not sent.
        """
        large = asked("L", b"X\0" + b"y" * 70_000 + b"\0")
        self.keep(session(*MAIL, *large))
        self.assertEqual(self.differences({}), [])
        self.assertIn("was not sent", self.notes[0])


class RecordTests(ReplayCase):
    """
    Records of all sorts.
    """

    def test_what_is_not_in_record_is_not_compared_and_the_rest_is(self) -> None:
        """
        What is not in the record is not compared, and the rest is.
        """
        edits = [("+", b"<new@example.com>\0"), ("+", b"<b@example.net>\0"), ("b", b"body\r\n")]
        was = [("<", letter, payload) for letter, payload in [*edits, ("c", b"")]]
        self.keep(session(*MESSAGE, (">", "E", b""), *was), redact=("body", "addresses"))
        (_, old, new), *_ = self.differences({"E": [*edits, ("c", b"")]})
        self.assertEqual([place for place, line in enumerate(old) if new[place] != line], [1])

    def test_where_the_record_ends_before_the_session_does_is_noted(self) -> None:
        """
        Where the record ends before the session does is noted.
        """
        self.keep(session(*MESSAGE, end=(">", "E", b"")))
        self.assertEqual(self.differences({}), [])
        self.assertEqual(self.notes, ["line 14: BODYEOB was not answered, the mta ended there"])
        self.keep([*session(*MESSAGE, end=("?", "", b""))])
        self.assertEqual(self.differences({}), [])
        self.assertEqual(self.notes, ["line 14: odd bytes"])
        _, out, _ = self.replay(None, "-v")
        self.assertIn("connection 1: note: line 14: odd bytes", out)

    def test_record_that_cannot_be_used_is_named_with_line(self) -> None:
        """
        A record that cannot be used is named, with the line, and the status is 3.
        """
        table = {
            "line 3 is not an OPTNEG": [(">", "H", b"x\0")],
            "line 5 has the letter 'Z'": session((">", "Z", b"")),
            "line 3 cannot be read": [(">", "O", b"x")],
        }
        for expected, spoken in table.items():
            self.keep(spoken)
            status, _, err = self.replay()
            self.assertEqual(status, 3)
            self.assertIn(f"{self.record}: {expected}", err)
        for nothing in ([], [("?", "", b""), ("<", "c", b"")]):
            self.keep(nothing)
            self.assertIn("no session is in the record", self.replay()[2])
        self.record.unlink()
        self.assertIn("cannot read", self.replay()[2])

    def test_of_a_record_that_was_cut_what_there_is_can_be_played(self) -> None:
        """
        Of a record that was cut what there is can be played.
        """
        self.keep(session(*MESSAGE, *EOM))
        lines = self.record.read_bytes().splitlines(True)
        self.record.write_bytes(b"".join(lines[:9]) + lines[9][:20])
        self.assertEqual(self.replay()[0], 3)
        self.assertEqual(self.replay(None, "--partial")[0], 0)
        self.assertEqual(self.sent(), "OMRQ")

    def test_one_queue_id_picks_its_session(self) -> None:
        """
        One queue id picks its session.
        """
        other = [(">", "D", b"Mi\0Q2\0"), *asked("M", b"<c@example.org>\0"), *RCPT]
        self.keep(session(*MESSAGE, *EOM), session(*other))
        status, out, _ = self.replay(None, "--only", "Q2")
        self.assertEqual((status, self.sent()), (0, "OMRQ"))
        status, _, err = self.replay(None, "--only", "Q3")
        self.assertEqual(status, 3)
        self.assertIn("no session has the queue id 'Q3'", err)

    def test_record_may_come_through_a_pipe(self) -> None:
        """
        The record may come through a pipe.
        """
        self.keep(session(*MESSAGE))
        stdin = io.TextIOWrapper(io.BytesIO(self.record.read_bytes()))
        self.patch(replay.sys, "stdin", stdin)  # type: ignore[attr-defined]
        self.record = Path("-")
        self.assertEqual(self.replay()[0], 0)
        self.patch(replay.sys, "stdin", None)  # type: ignore[attr-defined]
        status, _, err = self.replay()
        self.assertEqual(status, 3)
        self.assertIn("replay: -: cannot be read: standard input is closed\n", err)


class CommandTests(ReplayCase):
    """
    The command.
    """

    def test_several_sessions_at_a_time_are_told_of_in_order_of_record(self) -> None:
        """
        Several sessions at a time are told of in the order of the record.
        """
        self.keep(*[session(*MESSAGE, *EOM)] * 7)
        status, out, _ = self.replay({"E": [("a", b"")]}, "--concurrency", "3", "--json")
        self.assertEqual(status, 1)
        numbers = [json.loads(line).get("connection") for line in out.splitlines()]
        self.assertEqual(numbers[:-1:2], list(range(1, 8)))

    def test_results_that_wait(self) -> None:
        """
        However slow one session is, only so many results of those behind it wait to be told.
        """
        self.patch(replay, "_MOST_WAITING", 5)
        gate: Deferred[None] = Deferred()
        played: list[int] = []

        async def play(endpoint: object, session: Session, *more: Any) -> Result:
            played.append(session.connection)
            if session.connection == 1:
                # The others go on without it, as far as they may.
                more[-1].clock.callLater(0, gate.callback, None)
                await gate
                self.assertEqual(played, [1, 2, 3, 4, 5])
            return Result(session)

        self.patch(replay, "play_session", play)
        self.keep(*[session(*MESSAGE)] * 20)
        status, out, _ = self.replay(None, "--concurrency", "3")
        self.assertEqual((status, out), (0, "20 sessions, 0 messages, no difference\n"))
        self.assertEqual(sorted(played), list(range(1, 21)))

    def test_results_hold_no_packets(self) -> None:
        """
        A session that was played is not kept.
        """
        results: list[Result] = []
        self.patch(replay.Summary, "add", lambda _, result: results.append(result))
        self.keep(session(*MESSAGE, *EOM))
        self.replay()
        self.assertEqual([result.session.packets for result in results], [[]])

    def test_flood_at_the_end(self) -> None:
        """
        What a milter sends behind QUIT is not kept.
        """
        player = Player()
        player.makeConnection(StringTransport())
        player.quit()
        player.dataReceived(encode_packet(ord("c")) * 1000)
        self.assertEqual(player.heard, [])

    def test_with_fail_fast_the_first_difference_is_the_last(self) -> None:
        """
        With --fail-fast the first difference is the last.
        """
        self.keep(*[session(*MESSAGE, *EOM)] * 3)
        _, out, _ = self.replay({"E": [("a", b"")]}, "--fail-fast")
        self.assertIn("1 session, 1 message, 1 difference in 1 session", out)

    def test_lost_on_the_way(self) -> None:
        """
        When the milter goes away the sessions that were played are told of all the same.
        """
        gate: Deferred[None] = Deferred()

        async def play(endpoint: object, session: Session, *more: object) -> Result:
            if session.connection == 1:
                await gate
                raise ConnectError("gone")
            if session.connection == 3:
                gate.callback(None)
            return Result(session)

        self.patch(replay, "play_session", play)
        self.keep(*[session(*MESSAGE)] * 4)
        status, out, err = self.replay(None, "--concurrency", "2")
        self.assertEqual((status, out), (3, "2 sessions, 0 messages, no difference\n"))
        self.assertIn("cannot be reached: ", err)

    def test_milter_that_cannot_be_reached_is_named_and_status_is_3(self) -> None:
        """
        A milter that cannot be reached is named, and the status is 3.
        """
        self.keep(session(*MESSAGE), session(*MESSAGE))
        for options in ((), ("--concurrency", "2")):
            status, _, err = self.replay(None, *options, listen=False)
            self.assertEqual(status, 3)
            self.assertIn(f"the milter at {self.socket} cannot be reached", err)

    def test_arguments_that_make_no_sense_are_refused(self) -> None:
        """
        Arguments that make no sense are refused.
        """
        for option, value, words in (
            ("--concurrency", "0", "'0' is not a whole number above 0"),
            ("--concurrency", "many", "'many' is not a whole number above 0"),
            ("--concurrency", "999999999999", "'999999999999' is more than 10000"),
            ("--timeout", "soon", "'soon' is not a number of seconds above 0"),
            ("--mask", "(", "'(' is not a regular expression: "),
        ):
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                self.assertRaises(SystemExit, self.replay, None, option, value)
            self.assertIn(f"argument {option}: {words}", err.getvalue())
        self.keep(session(*MESSAGE))
        self.socket = "nonsense"
        status, _, err = self.replay(listen=False)
        self.assertEqual(status, 2)
        self.assertIn("not a milter's address", err)

    def test_ctrl_c_ends_it_with_what_was_found_so_far(self) -> None:
        """
        Ctrl-C ends it, with what was found so far and the status 130.
        """
        self.keep(session(*MESSAGE))

        def interrupt(*arguments: object) -> None:
            raise Interrupted

        self.patch(replay, "run_reactor", interrupt)
        self.assertEqual(self.replay()[0], 130)

    def test_ctrl_c_ends_reading_of_record(self) -> None:
        """
        Ctrl-C ends the reading of a record, which through a pipe may take its time.
        """
        buffer = InterruptedInput()
        self.patch(replay.sys, "stdin", SimpleNamespace(buffer=buffer))  # type: ignore[attr-defined]
        self.record = Path("-")
        self.assertEqual((self.replay()[0], buffer.read_whole), (130, 0))

    def test_output_that_nobody_reads_ends_it_as_every_command(self) -> None:
        """
        Output that nobody reads ends it as every command.
        """
        self.keep(session(*MESSAGE))

        def fail(*arguments: object, **options: object) -> None:
            raise BrokenPipeError

        self.patch(replay, "tell_result", fail)
        self.assertRaises(BrokenPipeError, self.replay)
