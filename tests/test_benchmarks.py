"""
The benchmarks measure what they say: the load generator notices a wrong answer, its report is
checked, and the tables and bounds are made of the right figures.

The runs are tiny and their times mean nothing here. They need gcc and Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import skipUnless

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks import __main__ as command
from benchmarks import attribution, build, guard, milters, phases, processes, walk
from benchmarks.build import Unavailable
from benchmarks.generator import Wrong, expected_answers, generating, judged, load_command
from benchmarks.measure import Result, capacity, measure, share
from benchmarks.milters import PEERS
from benchmarks.processes import running
from benchmarks.report import Recorded
from benchmarks.scenarios import SCENARIOS, Scenario, Variant
from benchmarks.table import COLUMNS, markdown, ratio, typical

OURS = Variant("yatxmilter")
SMALL: dict[str, object] = {"connections": 3, "headers": 2, "body": 100}
TINY = Scenario("tiny", "Tiny", SMALL, (OURS,))
RESULT = Result(cpu=100, rate=10, p50=1, p99=2, memory=3, pss=2, threads=1, busy=0.5)


@cache
def built() -> str:
    """
    Make the folder in which programs are built once for all tests.
    """
    folder = tempfile.TemporaryDirectory(prefix="yatxmilter-")
    atexit.register(folder.cleanup)
    return folder.name


def report(**changes: Any) -> dict[str, Any]:
    """
    What the generator reports of two messages of `SMALL` on one connection, all well.
    """
    counts = {"messages": 2, "connections": 1, "answers": 3 + 2 * 9, "added": 2, "steps": 0}
    return counts | changes


class ReportTests(SynchronousTestCase):
    """
    The generator's report.
    """

    def judged(self, **changes: Any) -> dict[str, Any]:
        return judged(json.dumps(report(**changes)).encode(), SMALL)

    def test_every_command_of_message_counts_every_chunk_of_body(self) -> None:
        """
        Every command of a message counts, every chunk of a body, and what was added.
        """
        for options, steps, count in (
            ({"headers": 0, "body": 0}, 0, 3 + 2 * 5 + 2),
            ({"headers": 7, "body": 1}, 0, 3 + 2 * (5 + 7 + 1) + 2),
            ({"headers": 7, "body": 65_535}, 0x80, 3 + 2 * (5 + 1) + 2),
            ({"headers": 7, "body": 65_536}, 0x80, 3 + 2 * (5 + 2) + 2),
        ):
            self.assertEqual(expected_answers(report(steps=steps), options), count)

    def test_report_of_a_run_in_which_all_was_well_is_returned(self) -> None:
        """
        A report of a run in which all was well is returned, whatever was printed before it.
        """
        output = b"idle\n" + json.dumps(report()).encode() + b"\n"
        self.assertEqual(judged(output, SMALL), report())

    def test_what_the_generator_found_wrong_is_raised_in_its_words(self) -> None:
        """
        What the generator found wrong is raised in its words.
        """
        error = self.assertRaises(Wrong, judged, b'{"fault": "E was answered r"}', SMALL)
        self.assertEqual(str(error), "E was answered r")

    def test_generator_that_said_nothing_is_no_success(self) -> None:
        """
        A generator that said nothing is no success.
        """
        self.assertRaises(Wrong, judged, b"", SMALL)

    def test_milter_that_did_not_see_all_of_a_message_is_not_compared(self) -> None:
        """
        A milter that did not want to see all of a message is not compared.
        """
        for bit in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x200):
            error = self.assertRaises(Wrong, self.judged, steps=bit)
            self.assertIn(f"{bit:#x}", str(error))

    def test_answer_or_header_field_too_many_or_too_few_is_noticed(self) -> None:
        """
        An answer or a header field too many or too few is noticed.
        """
        for changes in ({"answers": 20}, {"answers": 22}, {"answers": 22, "added": 3}):
            self.assertRaises(Wrong, self.judged, **changes)


class TableTests(SynchronousTestCase):
    """
    From results to tables.
    """

    def test_cell_is_the_median_over_the_rounds(self) -> None:
        """
        A cell is the median over the rounds.
        """
        runs = [replace(RESULT, cpu=cpu) for cpu in (900, 100, 120)]
        self.assertEqual(typical(runs, "cpu"), 120)

    def test_ratio_is_the_median_of_the_rounds_ratios(self) -> None:
        """
        A ratio is the median of the rounds' ratios, so that a slow round of both changes nothing.
        """
        first = [replace(RESULT, cpu=cpu) for cpu in (50, 5000, 40)]
        other = [replace(RESULT, cpu=cpu) for cpu in (100, 10000, 100)]
        self.assertEqual(ratio(first, other, "cpu"), 0.5)
        self.assertIsNone(ratio(first, other, "each"))

    def test_what_others_took_of_a_milters_cores_is_given_back(self) -> None:
        """
        What others took of a milter's cores is given back; what nobody took is not.
        """
        self.assertEqual(capacity(1500, total=6, own=4.5), 2000)
        self.assertEqual(capacity(1500, total=6, own=6.1), 1500)

    def test_table_has_row_for_each_milter_with_figures_and_ratios(self) -> None:
        """
        The table has a row for each milter, with figures and ratios, and says what is missing.
        """
        results = {"ours": [RESULT], "theirs": [replace(RESULT, cpu=400, rate=5, threads=1234)]}
        text = markdown(TINY, results, {"other": "not measured, it is not here"})
        lines = text.splitlines()
        self.assertEqual(lines[0], "### Tiny (`tiny`)")
        self.assertIn("CPU: ours / it", lines[2])
        self.assertEqual(len({line.count("|") for line in lines[2:6]}), 1)
        self.assertIn("| 400 | 5 |", lines[5])
        self.assertTrue(lines[5].endswith("| 1,234 | 50 | 0.25 | 2.00 |"), lines[5])
        self.assertIn("- other: not measured, it is not here", lines)

    def test_columns_left_out(self) -> None:
        """
        A column that says nothing is not there.
        """
        text = markdown(TINY, {"ours": [replace(RESULT, megabytes=9, whole=9)]}, {})
        self.assertNotIn("capacity", text)
        self.assertNotIn("KiB/connection", text)
        self.assertNotIn("MB/s", text)
        large = replace(TINY, load={"body": 10_000_000})
        shown = markdown(replace(TINY, compared=("whole",)), {"ours": [RESULT]}, {})
        self.assertNotIn("capacity messages/s", shown)
        shown = markdown(
            replace(TINY, compared=("whole",)), {"ours": [replace(RESULT, whole=9)]}, {}
        )
        self.assertIn("capacity messages/s", shown)
        self.assertIn("MB/s", markdown(large, {"ours": [replace(RESULT, megabytes=9)]}, {}))

    def test_where_first_milter_is_measure_the_others_are_shown_over_it(self) -> None:
        """
        Where the first milter is the measure, the others are shown over it.
        """
        results = {"ours": [RESULT], "ours, three": [replace(RESULT, cpu=120)]}
        text = markdown(replace(TINY, inverse=True), results, {})
        self.assertIn("CPU: it / ours", text)
        self.assertIn("| 1.20 |", text)

    def test_with_no_result_at_all_the_reasons_are_still_shown(self) -> None:
        """
        With no result at all the reasons are still shown.
        """
        self.assertIn("- a: because", markdown(TINY, {}, {"a": "because"}))


#: Peers on this library.
BY_US = ("yatxmilter", "workers", "unchanged", "unchanged-threads")


class ScenarioTests(SynchronousTestCase):
    """
    The table of scenarios.
    """

    def test_ours_comes_first_and_every_milter_is_known(self) -> None:
        """
        Ours comes first, every milter is known, and what is compared is measured.
        """
        figures = {column.name for column in COLUMNS}
        for name, scenario in SCENARIOS.items():
            self.assertEqual(name, scenario.name)
            self.assertIn(scenario.variants[0].peer, BY_US)
            titles = [variant.title for variant in scenario.variants]
            self.assertEqual(len(set(titles)), len(titles))
            self.assertLessEqual({each.peer for each in scenario.variants}, PEERS.keys())
            self.assertLessEqual(set(scenario.compared), figures)

    def test_settings_are_understood(self) -> None:
        """
        What a scenario asks of a milter of ours can be asked of it.
        """
        for scenario in SCENARIOS.values():
            for variant in scenario.variants:
                if variant.peer in ("yatxmilter", "workers", "serve"):
                    asked = {**scenario.settings, **variant.settings}.keys()
                    self.assertEqual(PEERS[variant.peer].lacks & asked, set())

    def test_fastest_in_go(self) -> None:
        """
        Where the newest go-milter can be had, the former one is left out, and else measured.
        """
        self.patch(milters, "_newest_go_milter", lambda: ["newest"])
        self.assertEqual(PEERS["go-milter"].make(), ["newest"])
        error = self.assertRaises(Unavailable, PEERS["go-milter-emersion"].make)
        self.assertIn("in its place", str(error))
        self.patch(milters, "_newest_go_milter", lambda: "no Go here")
        self.patch(milters, "go_program", lambda source, library: Path("former"))
        error = self.assertRaises(Unavailable, PEERS["go-milter"].make)
        self.assertEqual(str(error), "no Go here")
        self.assertEqual(PEERS["go-milter-emersion"].make(), ["former"])

    def test_switch_stands_alone_other_options_have_a_value(self) -> None:
        """
        A switch stands alone, other options have a value.
        """
        self.patch(build, "c_program", lambda source: Path("load"))
        words = load_command("unix:/x", {"split": True, "body": 5})
        self.assertEqual(words[1:], ["--target", "unix:/x", "--split", "--body", "5"])


class BuildTests(SynchronousTestCase):
    """
    What is made on the spot.
    """

    def setUp(self) -> None:
        """
        Build in a folder of this run of the tests.
        """
        self.patch(os, "environ", {**os.environ, "YATXMILTER_BENCHMARKS": built()})

    def test_version_of_go_is_read_from_what_it_prints(self) -> None:
        """
        The version of Go is read from what it prints.
        """
        self.assertEqual(build.go_version("go version go1.27.3 linux/amd64"), (1, 27))
        self.assertEqual(build.go_version("go version devel"), (0, 0))
        self.assertGreater(build.go_version("go1.100"), (1, 25))

    def test_without_go_that_is_new_enough_reason_says_which_is_needed(self) -> None:
        """
        Without a Go that is new enough, the reason says which is needed.
        """

        def unavailable(*requirements: str) -> Path:
            raise Unavailable("no pip")

        self.patch(shutil, "which", lambda name: None)
        self.patch(build, "python_with", unavailable)
        error = self.assertRaises(Unavailable, build.go_tool, (1, 25))
        self.assertIn("Go 1.25 or newer", str(error))
        self.assertIn("no pip", str(error))

    def test_folder_that_is_no_checkout_is_refused_by_its_name(self) -> None:
        """
        A folder that is no checkout is refused by its name.
        """
        os.environ["A_CHECKOUT"] = "/nowhere"
        self.patch(build, "go_tool", lambda least: "go")
        error = self.assertRaises(
            Unavailable,
            build.go_module_program,
            "peers/gomilter/main.go",
            "example.com/module",
            "v1.0.0",
            (1, 25),
            "A_CHECKOUT",
        )
        self.assertIn("A_CHECKOUT=/nowhere is not a checkout", str(error))

    def test_python_that_was_built_in_another_way_is_told(self) -> None:
        """
        A Python that was not built as those that people have is told; a distribution's is not.
        """
        for arguments, prefix, told in (
            ("'--enable-shared'", "/root/python", True),
            ("'--enable-shared'", "/usr", False),
            ("'--enable-optimizations' '--with-lto'", "/root/python", False),
            (None, "/root/python", True),
        ):
            self.patch(processes.sysconfig, "get_config_var", lambda name, said=arguments: said)
            self.patch(sys, "base_prefix", prefix)
            warning = processes.unoptimised()
            self.assertEqual(warning is not None, told)
            if warning is not None:
                self.assertIn(prefix, warning)
                self.assertIn(warning, command.machine(1))


class WalkTests(SynchronousTestCase):
    """
    How far a packet walks.
    """

    def test_each_packet_is_answered_as_it_has_to_be(self) -> None:
        """
        Each packet is answered as it has to be, and its way leads through functions of ours alone.
        """
        for case in walk.CASES:
            found = walk.walk(case)
            self.assertGreater(len(found.calls), 0)
            self.assertLessEqual(found.files, len(found.calls))
            for file, _, _ in found.calls:
                self.assertTrue(Path(walk.ROOT, file).is_file(), file)

    def test_more_milters_walk_farther(self) -> None:
        """
        What three milters in a chain call is more than what one calls.
        """
        one, three = (
            next(walk.walk(case) for case in walk.CASES if case.name == name)
            for name in ("RCPT, one milter", "RCPT, chain of three")
        )
        self.assertGreater(len(three.calls), len(one.calls))

    def test_packet_that_is_answered_otherwise_is_no_measure_of_anything(self) -> None:
        """
        A packet that is answered otherwise is no measure of anything.
        """
        case = replace(walk.CASES[0], answer=b"something else")
        self.assertRaises(walk.WrongAnswer, walk.walk, case)

    def test_way_with_more_calls_or_files_than_wanted_is_too_long(self) -> None:
        """
        A way is too long when it has more calls, or more files, than are wanted.
        """
        calls = (("a.py", 1, "one"), ("b.py", 1, "two"))
        for wanted, longer in (((2, 2), False), ((1, 2), True), ((2, 1), True), (None, False)):
            found = walk.Walk(replace(walk.CASES[0], wanted=wanted), calls)
            self.assertEqual(found.too_long, longer)

    def run_with(self, calls: tuple[tuple[str, int, str], ...], *words: str) -> tuple[int, str]:
        self.patch(walk, "walk", lambda case: walk.Walk(case, calls))
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = walk.main(words)
        return status, output.getvalue()

    def test_table_has_a_row_for_each_packet(self) -> None:
        """
        The table has a row for each packet; with ``-v`` each call is there, too.
        """
        status, output = self.run_with((("a.py", 7, "one"),), "-v", "--check")
        self.assertEqual(status, 0)
        self.assertIn("| RCPT, one milter | 1 | 1 | 1 | 6, 4 |", output)
        self.assertEqual(output.count("    a.py:7 one"), len(walk.CASES))

    def test_with_check_way_that_is_too_long_makes_status_1(self) -> None:
        """
        With ``--check`` a way that is too long makes the status 1, and is named.
        """
        calls = tuple(("a.py", line, "one") for line in range(20))
        self.assertEqual(self.run_with(calls)[0], 0)
        status, output = self.run_with(calls, "--check")
        self.assertEqual(status, 1)
        self.assertIn("longer than wanted: RCPT, one milter; RCPT refused", output)

    def test_nothing_to_follow(self) -> None:
        """
        Where no call is seen, as of compiled functions, nothing was measured.
        """
        status, output = self.run_with((), "--check")
        self.assertEqual(status, 2)
        self.assertIn("cannot be followed", output)


class PhaseTests(SynchronousTestCase):
    """
    Phases of a message.
    """

    def test_each_step_is_of_a_phase_that_is_shown(self) -> None:
        """
        Each step is of a phase that is shown, and all of them are there but those of connections.
        """
        said = [step.phase for step in phases.steps()]
        self.assertEqual({*said, "accept", "quit and close"}, set(phases.PHASES))
        for phase, count in phases.EACH.items():
            self.assertEqual(said.count(phase), count)

    def test_each_phase_has_a_row_with_its_part_of_the_whole(self) -> None:
        """
        There is a row for each phase, with its part of the whole, and one for their sum.
        """
        times = {phase: float(number) for number, phase in enumerate(phases.PHASES, 1)}
        lines = phases.table(times, {}).splitlines()
        self.assertEqual(len(lines), 2 + len(phases.PHASES) + 1)
        self.assertIn("| commands, 5 | 4.0 | 11 | 0.80 |", lines)
        self.assertEqual(lines[-1], "| a message | 36.0 | 100 |  |")
        lines = phases.table(times, dict.fromkeys(phases.PHASES, 1000)).splitlines()
        self.assertIn("| body | 6.0 | 17 |  | 1,000 |", lines)
        self.assertTrue(lines[-1].endswith("| 8,000 |"))

    def test_instructions_are_read(self) -> None:
        """
        The count stands in what callgrind writes, with the name of the phase; else there is none.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        path = folder / "out.1"
        path.write_text("version: 1\ndesc: Trigger: Client Request: body\nsummary: 1234\n")
        (folder / "out.2").write_text("desc: Trigger: Program termination\nsummary: 0\n")
        self.assertEqual(list(phases._dumps(folder)), [("body", path)])
        self.assertEqual(phases.total(path), 1234)
        path.write_text("nothing\n")
        self.assertRaises(Unavailable, phases.total, path)

    def test_numbers_that_measure_nothing_are_refused(self) -> None:
        """
        Numbers that measure nothing are refused.
        """
        for words in (["--rounds", "0"], ["--count", "0"]):
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertRaises(SystemExit, phases.main, words)

    def test_instructions_are_attributed(self) -> None:
        """
        A count is the Python function's that led there last; what callees counted is not added.
        """
        functions = attribution.FunctionMap(
            "1000 20 py::Class.one:/a/folder/file.py\n2000 20 py::two:/b/other/more.py\n"
        )
        self.assertEqual(functions.find(0x1010), "folder/file.py Class.one")
        self.assertIsNone(functions.find(0x1031))
        self.assertIsNone(functions.find(0xFFF))
        path = Path(self.mktemp())
        path.write_text(
            "desc: Trigger: Client Request: body\n"
            "fn=(1) malloc'eval'0x1001'eval'0x2001\n1 5\n+3 6\n"
            "cfn=(2) eval'0x2001'eval\ncalls=1 0\n* 100\n* 1\n"
            "fn=(2)\n1 30\n"
            "fn=(3) main'0x5555\n1 7\n"
        )
        found = attribution.attribute(path, functions)
        self.assertEqual(
            found, {"folder/file.py Class.one": 12, "other/more.py two": 30, "main": 7}
        )

    def test_instructions_by_function_need_a_newer_python(self) -> None:
        """
        Where Python cannot tell where its functions are, that is said.
        """
        self.patch(sys, "version_info", (3, 11, 2))
        error = self.assertRaises(Unavailable, phases.instructions_by_function, 1, False, 1)
        self.assertIn("Python 3.12", str(error))

    def test_nothing_to_count_with(self) -> None:
        """
        Without valgrind nothing is counted, and the status is 2.
        """

        def unavailable(*words: object) -> dict[str, float]:
            raise Unavailable("no valgrind")

        self.patch(phases, "instructions", unavailable)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(phases.main(["--instructions"]), 2)
        self.assertIn("cannot count: no valgrind", errors.getvalue())

    @skipUnless(sys.platform.startswith("linux"), "the benchmarks need Linux")
    def test_whole_runs_in_a_process_of_its_own(self) -> None:
        """
        The whole runs in a process of its own: all phases took some time.
        """
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.phases"),
                *("--rounds", "1", "--count", "2", "--by-function", "3"),
            ],
            cwd=build.ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
        self.assertEqual(len(rows), 1 + len(phases.PHASES) + 1 + 1 + 3)
        for row in rows[1 : 2 + len(phases.PHASES)]:
            self.assertGreater(float(row[1]), 0)


class GuardTests(SynchronousTestCase):
    """
    Ratios and their bounds.
    """

    def test_ratio_above_its_bound_is_named_with_both(self) -> None:
        """
        A ratio above its bound is named with both, one at its bound is not.
        """
        at, above = (guard.Finding("a case", "calls", count, 2, 1.5) for count in (3, 3.1))
        self.assertEqual(guard.exceeded([at]), [])
        (problem,) = guard.exceeded([at, above])
        for part in ("a case", "calls", "1.550", "1.5"):
            self.assertIn(part, problem)

    def test_over_some_runs_least_and_most_of_ratio_are_shown(self) -> None:
        """
        Over some runs the least and the most of a ratio are shown.
        """
        runs = [[guard.Finding("c", "calls", count, 2, 9)] for count in (4, 3, 5)]
        self.assertIn("| c | calls | 4.0 | 2.0 | 1.500 to 2.500 | 9 |", guard.table(runs))

    def test_sum_is_read_from_what_strace_prints(self) -> None:
        """
        The sum is read from what strace prints; without one nothing was counted.
        """
        text = "calls  syscall\n----- ------\n   52 read\n   52 write\n----- ------\n  104 total\n"
        self.assertEqual(guard.total_calls(text), 104)
        self.assertRaises(Unavailable, guard.total_calls, "")


class CommandTests(SynchronousTestCase):
    """
    The command line, with nothing run.
    """

    def run_with(self, outcome: Any, *arguments: str, nothing: bool = False) -> tuple[int, str]:
        def measured(scenario: Scenario, variant: Variant, seconds: float) -> Result:
            if variant == OURS and not nothing:
                return RESULT
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        self.patch(command, "measure", measured)
        self.patch(os, "sched_setaffinity", lambda pid, cores: None)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            status = command.main(["--only", "small-unix", *arguments])
        return status, output.getvalue()

    def test_what_cannot_be_measured_here_is_named_and_is_no_failure(self) -> None:
        """
        What cannot be measured here is named, and is no failure.
        """
        status, output = self.run_with(Unavailable("no gcc"))
        self.assertEqual(status, 0)
        self.assertIn("- C libmilter: not measured, no gcc", output)
        self.assertIn("| yatxmilter | 100 |", output)

    def test_milter_that_answered_wrong_is_named_and_has_no_row(self) -> None:
        """
        A milter that answered wrong is named, has no row, and makes the status 1.
        """
        status, output = self.run_with(Wrong("E was answered r"))
        self.assertEqual(status, 1)
        self.assertIn("- C libmilter: ANSWERED WRONG in round 1: E was answered r", output)
        self.assertNotIn("| C libmilter |", output)

    def test_milter_that_breaks_measurement_itself_is_named_and_the_others_are_measured(
        self,
    ) -> None:
        """
        A milter that breaks the measurement itself is named, and the others are measured.
        """
        for fault in (FileNotFoundError("/proc/1/x"), subprocess.TimeoutExpired("load", 5)):
            status, output = self.run_with(fault)
            self.assertEqual(status, 0)
            self.assertIn(f"- C libmilter: failed in round 1: {fault!r}", output)
            self.assertIn("| yatxmilter | 100 |", output)

    def test_run_in_which_nothing_could_be_measured_is_no_success(self) -> None:
        """
        A run in which nothing could be measured is no success.
        """
        status, output = self.run_with(Unavailable("no gcc"), nothing=True)
        self.assertEqual(status, 2)
        for name in ("yatxmilter", "yatxmilter, compiled", "C libmilter"):
            self.assertIn(f"- {name}: not measured, no gcc\n", output)

    def test_file_has_what_was_printed(self) -> None:
        """
        The file has what was printed: the machine, and the tables.
        """
        path = Path(self.mktemp())
        status, output = self.run_with(RESULT, "--rounds", "2", "--markdown", str(path))
        self.assertEqual(status, 0)
        self.assertIn("medians over 2 rounds", output)
        self.assertEqual(path.read_text().split(), output.split())

    def test_all_rounds_are_kept_in_a_file(self) -> None:
        """
        All rounds are kept in a file; what is in it of other scenarios stays.
        """
        path = Path(self.mktemp())
        other = Recorded("another machine")
        other.add("another", {"ours": [RESULT]}, {"theirs": "not measured"})
        other.save(path)
        status, output = self.run_with(RESULT, "--rounds", "2", "--result", str(path))
        self.assertEqual(status, 0)
        recorded = Recorded.load(path)
        self.assertEqual(output.splitlines()[0], recorded.machine.splitlines()[0])
        self.assertEqual(recorded.results.pop("another"), {"ours": [RESULT]})
        [results] = recorded.results.values()
        self.assertEqual({len(runs) for runs in results.values()}, {2})

    def test_tables_replace_those_between_the_marks_of_a_page(self) -> None:
        """
        Tables replace those between the marks of a page, and else the whole file.
        """
        page = "a\n<!-- tables -->\nold\n<!-- end of tables -->\nb\n"
        once = command.into_page(page, "new\n")
        self.assertEqual(once, page.replace("old", "\nnew"))
        self.assertEqual(command.into_page(once, "new\n"), once)
        self.assertEqual(command.into_page("anything\n", "new\n"), "new\n")

    def test_unknown_scenario_and_no_rounds_are_refused(self) -> None:
        """
        An unknown scenario, and no rounds, are refused.
        """
        for arguments in (["--only", "nothing"], ["--rounds", "0"], ["--peer", "nobody"]):
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertRaises(SystemExit, command.main, arguments)


class RunTests(SynchronousTestCase):
    """
    The generator against real milters.
    """

    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        skip = "the load generator needs Linux and gcc"

    def setUp(self) -> None:
        """
        Build in a folder of this run of the tests.
        """
        self.patch(os, "environ", {**os.environ, "YATXMILTER_BENCHMARKS": built()})

    def load(self, where: str, **options: object) -> dict[str, Any]:
        every = {**SMALL, "messages": 7, **options}
        with generating(where, every) as load:
            output, _ = load.communicate(timeout=60)
        return judged(output, every)

    def run_load(self, scenario: Scenario, peer: str, **options: object) -> dict[str, Any]:
        with running(Variant(peer), scenario) as (_, where):
            return self.load(where, **options)

    def test_every_message_is_answered_by_ours(self) -> None:
        """
        Every message is answered by ours, on connections of its own and on ones used again.
        """
        with running(OURS, TINY) as (_, where):
            for reuse, connections in ((1, 7), (3, 3)):
                found = self.load(where, reuse=reuse)
                self.assertEqual((found["messages"], found["connections"]), (7, connections))

    def test_workers_answer_every_message_and_can_carry_no_less_than_they_did(self) -> None:
        """
        Workers answer every message, and can carry no less than they did.
        """
        found = measure(TINY, SCENARIOS["workers"].variants[1], 0.2)
        self.assertGreaterEqual(found.whole, found.rate)
        # The supervisor and two workers; the workers' clocks have a thread each.
        self.assertEqual(found.threads, 5)

    def test_serve_answers_every_message_with_and_without_a_page_of_metrics(self) -> None:
        """
        ``serve`` answers every message, with and without a page of metrics.
        """
        self.answer_by(lambda variant: not variant.peer.startswith("compiled"))

    def test_compiled_engine_answers_every_message(self) -> None:
        """
        So does the engine once it is compiled, by itself and with ``serve``.
        """
        if not os.environ.get("YATXMILTER_TEST_SHIPPING"):
            raise SkipTest("YATXMILTER_TEST_SHIPPING is not set; it takes a minute to compile")
        self.answer_by(lambda variant: variant.peer.startswith("compiled"))

    def answer_by(self, wanted: Callable[[Variant], bool]) -> None:
        """
        Have every message answered by the wanted ones of the scenario with ``serve``.
        """
        variants = [variant for variant in SCENARIOS["serve"].variants if wanted(variant)]
        self.assertGreater(len(variants), 2)
        if importlib.util.find_spec("prometheus_client") is None:
            variants = [variant for variant in variants if "BENCH_METRICS" not in variant.settings]
        for variant in variants:
            with running(variant, TINY) as (_, where):
                self.assertEqual(self.load(where)["messages"], 7)

    def test_three_milters_are_merged_in_each_way_and_add_one_field(self) -> None:
        """
        Three milters are merged in each way, and add one field.
        """
        for variant in SCENARIOS["chain"].variants:
            with running(variant, TINY) as (_, where):
                self.assertEqual(self.load(where)["added"], 7)

    def test_connections_that_are_held_are_counted_by_worker(self) -> None:
        """
        Connections that are held are counted by worker, and all are answered afterwards.
        """
        scenario = replace(TINY, kind="shares", load={**SMALL, "connections": 12, "window": 4})
        found = measure(scenario, SCENARIOS["shares"].variants[0], 1)
        self.assertGreaterEqual(found.most, 1)
        self.assertLessEqual(found.most, 2)

    def test_busiest_worker_is_compared_with_what_each_would_have(self) -> None:
        """
        The busiest worker is compared with what each would have.
        """
        variant = Variant("workers", settings={"BENCH_WORKERS": "2"})
        self.assertEqual(share([0, 50, 50], variant), 1)
        self.assertEqual(share([0, 75, 25], variant), 1.5)

    def test_all_settings_of_a_run_are_handled(self) -> None:
        """
        Several milters, TCP, waiting, promised silence and either kind of write are handled.
        """
        scenario = replace(TINY, tcp=True, settings={"BENCH_WAIT": "1", "BENCH_MILTERS": "3"})
        self.assertEqual(self.run_load(scenario, "yatxmilter", split=True)["added"], 7)
        scenario = replace(TINY, settings={"BENCH_NOREPLY": "1"})
        found = self.run_load(scenario, "yatxmilter", split=True, reuse=9)
        self.assertTrue(found["steps"] & 0x80)
        self.assertEqual(self.run_load(scenario, "limit", reuse=9)["answers"], found["answers"])

    def test_missing_header_field_and_missing_milter_are_faults(self) -> None:
        """
        A header field that is missing, and a milter that is not there, are faults.
        """
        silent = replace(TINY, settings={"BENCH_ADD": "0"})
        error = self.assertRaises(Wrong, self.run_load, silent, "limit")
        self.assertIn("0 header fields were added, not 1", str(error))
        self.assertEqual(self.run_load(silent, "limit", added=0)["added"], 0)
        error = self.assertRaises(Wrong, self.load, "unix:/nowhere")
        self.assertIn("connect: No such file or directory", str(error))

    def test_bad_generator_options(self) -> None:
        """
        The generator names what is wrong with its options.
        """
        program = str(build.c_program("load.c"))
        for words, complaint in (
            ([], "--target is unix:PATH or inet:PORT"),
            (["--target", "unix:/x"], "--messages or --seconds is missing"),
            (["--target", "unix:/x", "--connections", "0"], "numbers are at least 1"),
            (["--target", "unix:/x", "--nothing", "1"], "--nothing: no such option"),
            (["--target", "unix:/x", "--stay"], "--stay needs --idle"),
            (["--target"], "--target: a value is missing"),
        ):
            done = subprocess.run([program, *words], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertIn(complaint, json.loads(done.stdout)["fault"])

    def test_connections_that_were_idle_are_all_answered_afterwards(self) -> None:
        """
        Connections that were idle are all answered afterwards, and their memory was looked at.
        """
        scenario = replace(TINY, kind="idle", load={**SMALL, "connections": 25, "window": 4})
        result = measure(scenario, Variant("limit"), scenario.seconds)
        self.assertEqual(result.threads, 1)
        self.assertGreater(result.cpu, 0)

    def test_idle_after_a_message(self) -> None:
        """
        Memory is looked at once more when each connection has had a message and is open still.
        """
        scenario = replace(TINY, kind="idle", load={**SMALL, "connections": 300, "window": 20})
        result = measure(scenario, OURS, scenario.seconds)
        self.assertNotEqual(result.after, 0)

    def test_milter_that_cannot_do_what_scenario_asks_is_unavailable(self) -> None:
        """
        A milter that cannot do what a scenario asks is unavailable, and says what it is.
        """
        scenario = replace(TINY, settings={"BENCH_WAIT": "1"})
        error = self.assertRaises(Unavailable, measure, scenario, Variant("limit"), 1)
        self.assertIn("BENCH_WAIT=1", str(error))

    def test_does_not_compile(self) -> None:
        """
        What the compiler says is the reason why something cannot be run.
        """
        error = self.assertRaises(
            Unavailable, build.c_program, "peers/limit.c", "no_such_library_anywhere"
        )
        self.assertIn("peers/limit.c", str(error))
