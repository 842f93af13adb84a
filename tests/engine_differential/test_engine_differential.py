"""
Random sessions give the same bytes and callbacks on both ways, and the same as when they were
recorded.

After a change that is meant to be seen, ``python -m tests.engine_differential --record`` makes the
recording anew; the package says how to run many more sessions.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from . import __main__ as command
from .chance import Chance
from .dialogue import Script, damaged
from .plans import CONDITIONS, condition, make_plan
from .recording import RECORDED, difference, fingerprint, recorded
from .session import run_in_memory, run_on_socket
from .ways import HAS_EPOLL, Sockets


class RecordedTests(SynchronousTestCase):
    """
    The sessions that were recorded.
    """

    def tearDown(self) -> None:
        """
        Take away what was logged: it was part of what was compared.
        """
        self.flushLoggedErrors()
        # Twisted's UNIX transport compares bytes with a string, which -bb tells.
        self.flushWarnings()

    def test_generator_is_the_one_of_the_recording(self) -> None:
        """
        What was recorded is what is generated now: else nothing would be compared.
        """
        generator, sessions = recorded()
        self.assertEqual(sorted(sessions), list(range(RECORDED)))
        self.assertEqual(generator, fingerprint(range(RECORDED)), "--record makes it anew")

    def test_sessions_in_memory_are_as_recorded(self) -> None:
        """
        Bytes and callbacks of each session are those of the recording.
        """
        for number, steps in recorded()[1].items():
            parting = difference(steps, run_in_memory(number))
            self.assertIsNone(parting, f"session {number}, recorded (-) and now (+)\n{parting}")

    @skipUnless(HAS_EPOLL, "there is no fast path here")
    def test_sessions_on_the_fast_path_are_as_recorded(self) -> None:
        """
        Over sockets, on the fast path, they are the same.
        """
        sockets = Sockets()
        self.addCleanup(sockets.close)
        for number, steps in recorded()[1].items():
            parting = difference(steps, run_on_socket(number, sockets))
            self.assertIsNone(parting, f"session {number}, recorded (-) and now (+)\n{parting}")

    @skipUnless(HAS_EPOLL, "there is no fast path here")
    def test_sessions_that_nobody_recorded_are_the_same_on_both_ways(self) -> None:
        """
        The ordinary way over sockets, the fast path and memory agree.
        """
        sockets = Sockets()
        self.addCleanup(sockets.close)
        for number in range(1_000_000, 1_000_100):
            expected = run_in_memory(number)
            for fast_path in (True, False):
                parting = difference(expected, run_on_socket(number, sockets, fast_path))
                self.assertIsNone(parting, f"session {number}, fast path {fast_path}\n{parting}")


class GeneratorTests(SynchronousTestCase):
    """
    What sessions are made of.
    """

    def test_a_session_is_made_of_its_number(self) -> None:
        """
        The same number gives the same plan and the same bytes, another one others.
        """
        for number in range(20):
            self.assertEqual(make_plan(number), make_plan(number))
            self.assertEqual(fingerprint([number]), fingerprint([number]))
        self.assertEqual(len({fingerprint([number]) for number in range(20)}), 20)

    def test_chance_is_the_same_everywhere(self) -> None:
        """
        The numbers that chance gives do not depend on Python or on what was drawn elsewhere.
        """
        chance = Chance("a", 1)
        self.assertEqual([chance.number(0, 9) for _ in range(10)], [3, 8, 7, 1, 5, 2, 9, 3, 4, 5])
        self.assertEqual(Chance("a", 2).some("abcdef", 0.5), ["a", "c"])
        self.assertEqual(Chance("a", 3).weighed([(1, "x"), (9, "y")]), "y")

    def test_all_kinds_occur(self) -> None:
        """
        Among the sessions that are recorded is each merge, manner, condition and kind of milter.
        """
        plans = [make_plan(number) for number in range(RECORDED)]
        milters = [milter for plan in plans for milter in plan.milters]
        self.assertEqual({plan.merge for plan in plans}, {"first", "strictest", "chain"})
        self.assertEqual({plan.manner for plan in plans}, {"polite", "hasty", "broken"})
        self.assertLessEqual({0, 1, 2, 3, 4}, {len(plan.milters) for plan in plans})
        self.assertLessEqual(set(range(CONDITIONS)), {milter.condition for milter in milters})
        for name in ("coroutines", "silent", "shadow", "flags", "timeout"):
            self.assertTrue(any(getattr(milter, name) for milter in milters), name)

    def test_conditions_can_be_made(self) -> None:
        """
        There are as many conditions as plans draw from.
        """
        for index in range(CONDITIONS):
            condition(index)
        self.assertRaises(IndexError, condition, CONDITIONS)

    def test_what_broken_mta_sends_is_not_what_it_would_have_sent(self) -> None:
        """
        What a broken MTA sends is not what it would have sent.
        """
        for number in range(50):
            commands = Script(make_plan(number)).commands()
            damage = damaged(commands, Chance("damage", number))
            self.assertLess(abs(len(damage) - len(commands)), 3)

    def test_differences_are_shown(self) -> None:
        """
        Where two runs part, both steps are shown, with those before; equal ones part nowhere.
        """
        one = [{"done": str(number)} for number in range(9)]
        self.assertIsNone(difference(one, list(one)))
        other = [*one[:7], {"done": "seven"}, one[8]]
        lines = str(difference(one, other)).splitlines()
        self.assertEqual(lines[-2:], ["- {'done': '7'}", "+ {'done': 'seven'}"])
        self.assertEqual(len(lines), 6)
        self.assertIn("+ (nothing more)", str(difference(one, one[:4])))
        self.assertIn("- (nothing more)", str(difference([], one)))


class CommandTests(SynchronousTestCase):
    """
    The command.
    """

    def tearDown(self) -> None:
        """
        Take away what was logged: it was part of what was compared.
        """
        self.flushLoggedErrors()
        self.flushWarnings()

    def run_command(self, *arguments: str) -> tuple[int, str]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            status = command.main(arguments)
        return status, output.getvalue()

    def test_as_many_other_sessions_as_asked_for_are_compared_and_counted(self) -> None:
        """
        As many other sessions as asked for are compared, and counted.
        """
        status, output = self.run_command("--cases", "5", "--seed", "3", "--counts")
        self.assertEqual(status, 0)
        self.assertIn("5 sessions, 0 differences", output)
        self.assertIn("connections ended", output)

    def test_session_is_shown_with_its_plan(self) -> None:
        """
        A session is shown with its plan.
        """
        status, output = self.run_command("--show", "3")
        self.assertEqual(status, 0)
        self.assertTrue(output.startswith("Plan(number=3"))

    def test_other_sessions_are_recorded_into_another_file(self) -> None:
        """
        Other sessions are recorded into another file, and compared with it; the same sessions give
        the same file.
        """
        path = Path(self.mktemp())
        words = ("--record", "--cases", "4", "--seed", "5", "--file", str(path))
        self.assertEqual(self.run_command(*words)[0], 0)
        first = path.read_bytes()
        status, output = self.run_command("--file", str(path))
        self.assertEqual(status, 0)
        self.assertIn("4 sessions, 0 differences", output)
        self.run_command(*words)
        self.assertEqual(path.read_bytes(), first)

    def test_differences_are_told(self) -> None:
        """
        A session that is not as recorded is named, and makes the status 1.
        """
        sessions = {0: [{"done": "something else"}]}
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = command.compare(range(1), sessions, False)
        self.assertEqual(status, 1)
        self.assertIn("session 0: recorded (-), in memory (+)", output.getvalue())

    def test_recording_of_another_generator_is_refused(self) -> None:
        """
        A recording of another generator is refused: its differences would say nothing.
        """
        self.patch(command, "recorded", lambda place: ("another", {}))
        self.assertEqual(self.run_command()[0], 2)

    def test_numbers_that_give_no_sessions_are_refused(self) -> None:
        """
        Numbers that give no sessions are refused.
        """
        for arguments in (["--cases", "0"], ["--seed", "0"], ["--cases", "x"]):
            self.assertRaises(SystemExit, self.run_command, *arguments)
