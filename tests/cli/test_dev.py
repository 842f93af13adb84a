"""
Tests of ``yatxmilter dev``: watching files, loading a file once more, and what is shown.
"""

from __future__ import annotations

import io
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli import dev, dev_watch
from yatxmilter._cli.dev_milters import MilterFile
from yatxmilter._cli.dev_watch import PAUSE, Watch
from yatxmilter._cli.serve_options import ConfigurationError

MILTER = """\
from yatxmilter import Milter
from yatxmilter.constants import SMFIS_CONTINUE, SMFIS_REJECT


class First(Milter):
    def xxfi_envfrom(self, argv):
        return SMFIS_REJECT if "spam" in argv[0] else SMFIS_CONTINUE

    def xxfi_eom(self):
        self.smfi_addheader("X-Seen", "one")
"""


class FolderCase(SynchronousTestCase):
    """
    A test with a folder, from which Python imports nothing afterwards.
    """

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.patch(sys, "path", sys.path.copy())
        modules = sys.modules.copy()

        def forget() -> None:
            for name in sys.modules.keys() - modules.keys():
                if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]

        self.addCleanup(forget)

    def write(self, name: str, text: str) -> Path:
        """
        Write a file.
        """
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path


class WatchTests(FolderCase):
    """
    Waiting for a change.
    """

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.files = [self.write("a", "1"), self.write("b", "1")]
        self.watch = Watch(self.clock, lambda: self.files)
        self.watch.remember()

    def touch(self, path: Path, when: int) -> None:
        """
        Give a file another time.
        """
        os.utime(path, (when, when))

    def test_nothing_is_told_as_long_as_nothing_changes(self) -> None:
        """
        Nothing is told as long as nothing changes.
        """
        done = self.watch.changed()
        self.clock.pump([PAUSE] * 5)
        self.assertNoResult(done)

    def test_change_is_told_when_two_looks_have_seen_same_and_once(self) -> None:
        """
        A change is told when two looks have seen the same, and once.
        """
        done = self.watch.changed()
        self.touch(self.files[1], 1)
        self.clock.advance(PAUSE)
        self.touch(self.files[1], 2)
        self.clock.advance(PAUSE)
        self.assertNoResult(done)
        self.clock.advance(PAUSE)
        self.assertEqual(self.successResultOf(done), [self.files[1]])
        again = self.watch.changed()
        self.clock.pump([PAUSE] * 5)
        self.assertNoResult(again)

    def test_gone_and_back(self) -> None:
        """
        Files that go, and files that come, have changed.
        """
        self.files[0].unlink()
        more = self.folder / "c"
        self.files.append(more)
        more.write_text("")
        done = self.watch.changed()
        self.clock.pump([PAUSE] * 2)
        self.assertEqual(self.successResultOf(done), [self.files[0], more])

    def test_files_that_are_new_to_it_are_taken_as_they_are(self) -> None:
        """
        Files that are new to it are taken as they are; of others a change is told all the same.
        """
        self.touch(self.files[0], 1)
        self.files.append(self.write("c", ""))
        self.watch.include()
        done = self.watch.changed()
        self.clock.pump([PAUSE] * 2)
        self.assertEqual(self.successResultOf(done), [self.files[0]])

    def test_nothing_is_looked_at_when_nobody_waits_any_more(self) -> None:
        """
        Nothing is looked at when nobody waits any more.
        """
        done = self.watch.changed()
        done.cancel()
        self.failureResultOf(done)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class MilterFileTests(FolderCase):
    """
    Loading a file.
    """

    def load(self, name: str, text: str, names: str = "", *words: str) -> Any:
        """
        Write a file and load it.
        """
        path = self.write(name, text)
        return MilterFile(f"{path}{names}", words).load()

    def refused(self, name: str, text: str, names: str = "") -> str:
        """
        Give what is said of a file that cannot be used.
        """
        return str(self.assertRaises(ConfigurationError, self.load, name, text, names))

    def test_one_milter_of_file_needs_no_name_imported_classes_do_not_count(self) -> None:
        """
        The one milter of a file needs no name; imported classes do not count.
        """
        self.load("dev_one.py", MILTER)
        self.load("dev_made.py", "from yatxmilter import *\nmade = MilterFactory(Milter)\n")

    def test_of_several_milters_those_that_are_named_are_taken_in_that_order(self) -> None:
        """
        Of several milters those that are named are taken, in that order.
        """
        text = f"{MILTER}\n\nclass Second(Milter):\n    pass\n"
        said = self.refused("dev_two.py", text)
        self.assertIn("several milters, First, Second", said)
        self.assertIn("dev_two.py:First", said)
        self.load("dev_named.py", text, ":Second,First", "--merge=chain")

    def test_file_without_milter_is_refused(self) -> None:
        """
        A file without a milter is refused.
        """
        self.assertIn("has no milter in it", self.refused("dev_none.py", "x = 1\n"))

    def test_what_is_not_python_file_is_refused(self) -> None:
        """
        What is not a Python file is refused.
        """
        self.write("a.txt", "")
        for name, words in (("a.txt", "is not a Python file"), ("nosuch.py", "is not there")):
            error = self.assertRaises(ConfigurationError, MilterFile, str(self.folder / name))
            self.assertIn(f"{name}' {words}, expected PATH.py", str(error))

    def test_file_with_name_of_another_module_is_refused_with_reason(self) -> None:
        """
        A file with the name of another module is refused with the reason.
        """
        self.assertIn("another module 'json'", self.refused("json.py", MILTER))

    def test_exception_in_file_exit_too_is_told_with_lines_of_file_alone(self) -> None:
        """
        An exception in the file, an exit too, is told with the lines of the file alone.
        """
        said = self.refused("dev_fails.py", "def f():\n    1 / 0\nf()\n")
        self.assertIn("ZeroDivisionError: division by zero", said)
        self.assertEqual(said.count("  File "), 2)
        self.assertIn("SystemExit", self.refused("dev_exits.py", "raise SystemExit(3)\n"))
        cancelled = "import asyncio\nraise asyncio.CancelledError\n"
        self.assertIn("CancelledError", self.refused("dev_cancelled.py", cancelled))

    def test_ctrl_c_while_file_is_loaded_is_none_of_its_failures(self) -> None:
        """
        Ctrl-C while the file is loaded is none of its failures; what was loaded before is there.
        """
        file = MilterFile(str(self.write("dev_interrupted.py", MILTER)))
        file.load()
        module = sys.modules["dev_interrupted"]
        self.write("dev_interrupted.py", "raise KeyboardInterrupt\n")
        self.assertRaises(KeyboardInterrupt, file.load)
        self.assertIs(sys.modules["dev_interrupted"], module)

    def test_edited_file_is_loaded_once_more_with_modules_of_its_folder(self) -> None:
        """
        It is loaded once more with the modules of its folder, and without those of libraries; one
        that is broken leaves the one before.
        """
        self.write("dev_helper.py", "COUNT = []\n")
        library = self.folder / "site-packages"
        self.write("site-packages/dev_library.py", "COUNT = []\n")
        sys.path.insert(0, str(library))
        path = self.write("dev_again.py", f"import dev_helper, dev_library\n{MILTER}")
        file = MilterFile(str(path))
        file.load()
        helper, kept = sys.modules["dev_helper"], sys.modules["dev_library"]
        self.assertEqual(file.files(), {path, self.folder / "dev_helper.py"})
        file.load()
        self.assertIsNot(sys.modules["dev_helper"], helper)
        self.assertIs(sys.modules["dev_library"], kept)
        helper = sys.modules["dev_helper"]
        for text in ("COUNT = [\n", "raise SystemExit\n"):
            self.write("dev_helper.py", text)
            self.assertRaises(ConfigurationError, file.load)
            self.assertIs(sys.modules["dev_helper"], helper)
        self.write("dev_helper.py", "")
        self.write("dev_again.py", "import dev_helper\n")
        self.assertRaises(ConfigurationError, file.load)
        self.assertIs(sys.modules["dev_helper"], helper)
        self.assertFalse(list(self.folder.rglob("*.pyc")))


class Steps(io.StringIO):
    """
    Output that does the next thing each time the command waits.
    """

    def __init__(self, steps: list[Callable[[], object]]) -> None:
        super().__init__()
        self._steps = steps
        self._waits = 0

    def flush(self) -> None:
        waits = self.getvalue().count("waiting for a change")
        if waits > self._waits:
            self._waits = waits
            self._steps.pop(0)()


class DevTests(FolderCase):
    """
    The command.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(dev, "begin_log", lambda settings: None)
        self.patch(dev_watch, "PAUSE", 0.01)
        self.reactor: Any = SelectReactor()
        self.milter = self.write("dev_run.py", MILTER)
        self.milter_spec = ""
        head = "To: bob@example.com\nSubject: x\n\nbody\n"
        self.write("mails/hello.eml", f"From: ann@example.org\n{head}")
        self.write("mails/spam.eml", f"From: spam@example.org\n{head}")

    def dev(self, steps: list[Callable[[], object]], *words: str) -> tuple[int, str, str]:
        """
        Run the command, with something to do each time it waits, after which it is stopped.
        """
        parser = ArgumentParser(prog="dev")
        dev.add_arguments(parser)
        out, err = Steps([*steps, self.reactor.stop]), io.StringIO()
        # Not for ever, whatever goes wrong.
        self.reactor.callLater(60, self.reactor.stop)
        arguments = parser.parse_args([f"{self.milter}{self.milter_spec}", *words])
        status = dev.run(arguments, reactor=self.reactor, out=out, err=err)
        return status, out.getvalue().replace(f"{self.folder}/", ""), err.getvalue()

    def parts(self, *texts: str) -> list[str]:
        """
        Save one text after the other as the milter; give what is printed each time.
        """
        steps = [lambda text=text: self.milter.write_text(text) for text in texts]
        status, out, err = self.dev(steps, "--messages", str(self.folder / "mails"))
        self.assertEqual((status, err), (0, ""))
        return out.split("waiting for a change (Ctrl-C ends)\n")[:-1]

    def test_at_first_each_message_is_told_in_line(self) -> None:
        """
        At first each message is told in a line.
        """
        [first] = self.parts()
        self.assertEqual(
            first, "mails/hello.eml: accept at eom, 1 edit\nmails/spam.eml: reject at mail\n"
        )

    def test_change_that_changes_nothing_is_told_as_that(self) -> None:
        """
        A change that changes nothing is told as that.
        """
        [_, again] = self.parts(f"# more\n{MILTER}")
        self.assertIn("dev_run.py", again)
        self.assertTrue(again.endswith("2 played, 2 as before\n"), again)

    def test_verdict_and_message(self) -> None:
        """
        Another verdict is told with the one before, another message as a diff.
        """
        [_, again] = self.parts(MILTER.replace('"one"', '"two"').replace('"spam"', '"nobody"'))
        self.assertIn("-X-Seen: one\n+X-Seen: two\n", again)
        self.assertIn("  was  reject at mail\n  is   accept at eom, 1 edit\n", again)
        self.assertIn("  + AddHeader 'X-Seen' 'two'\n", again)
        self.assertIn("2 played, 0 as before\n", again)

    def test_other_edits_that_leave_message_alone_are_told_one_by_one(self) -> None:
        """
        Other edits that leave the message alone are told one by one.
        """
        quarantine = 'self.smfi_quarantine("{}")'
        one, two = (
            MILTER.replace('self.smfi_addheader("X-Seen", "one")', quarantine.format(reason))
            for reason in ("this", "that")
        )
        [_, again, other] = self.parts(one, two)
        self.assertIn("-X-Seen: one\n", again)
        self.assertIn("  - Quarantine 'this'\n  + Quarantine 'that'\n", other)

    def test_message_that_is_refused_as_before_with_other_words(self) -> None:
        """
        A message that is refused as before, with other words, is told without a diff.
        """
        reply = '"spam" in argv[0] and self.smfi_setreply("550", "5.7.1", "{}")'
        one, two = (
            MILTER.replace("        return", f"        {reply.format(text)}\n        return", 1)
            for text in ("no", "never")
        )
        [_, _, other] = self.parts(one, two)
        self.assertIn(
            "  was  reject at mail 550 5.7.1 no\n  is   reject at mail 550 5.7.1 never\n", other
        )

    def test_broken_file_is_told_milter_before_stays(self) -> None:
        """
        A broken file is told, the milter before stays, and the next one is compared with it.
        """
        [_, broken, mended] = self.parts("class First(Milter:\n", MILTER)
        self.assertIn("SyntaxError", broken)
        self.assertIn("the milter that was loaded before stays\n", broken)
        self.assertNotIn("played", broken)
        self.assertIn("2 played, 2 as before\n", mended)

    def test_broken_at_first(self) -> None:
        """
        A file that is broken at first is waited for.
        """
        self.milter.write_text("nonsense\n")
        [broken, mended] = self.parts(MILTER)
        self.assertIn("NameError", broken)
        self.assertNotIn("stays", broken)
        self.assertIn("mails/hello.eml: accept", mended)

    def test_messages_come_and_go(self) -> None:
        """
        Messages that come into the folder, and go, are told.
        """

        def change() -> None:
            (self.folder / "mails" / "spam.eml").rename(self.folder / "mails" / "more.eml")

        _, out, _ = self.dev([change], "--messages", str(self.folder / "mails"))
        self.assertIn("mails/more.eml: new: reject at mail\nmails/spam.eml: gone\n", out)
        self.assertIn("2 played, 1 as before\n", out)

    def test_folder_that_goes_while_it_is_looked_at(self) -> None:
        """
        A folder among the messages that goes while it is looked at ends nothing.
        """
        mails = self.folder / "mails"
        (mails / "tmp").mkdir()
        scan = os.scandir

        def scandir(path: Any) -> Any:
            if str(path).endswith("tmp") and os.path.isdir(path):
                os.rmdir(path)
            return scan(path)

        self.patch(os, "scandir", scandir)
        change = lambda: (mails / "spam.eml").unlink()  # noqa: E731
        _, out, _ = self.dev([change], "--messages", str(mails))
        self.assertFalse((mails / "tmp").exists())
        self.assertIn("mails/spam.eml: gone\n", out)

    def test_working_directory_that_is_gone(self) -> None:
        """
        Where the working directory is gone, files are told by their whole path.
        """
        self.addCleanup(os.chdir, os.getcwd())
        here = self.folder / "here"
        here.mkdir()
        os.chdir(here)

        def change() -> None:
            here.rmdir()
            self.milter.write_text(f"# more\n{MILTER}")

        status, out, _ = self.dev([change])
        self.assertEqual(status, 0)
        self.assertIn("changed: dev_run.py\n", out)

    def test_factories_are_started_and_stopped_when_they_are_replaced(self) -> None:
        """
        A milter factory is started before the one before it is stopped, and that one then; where it
        does not start the one before stays.
        """
        told = self.folder / "told"
        telling = f"""\
from yatxmilter import MilterFactory
{MILTER}

class Telling(MilterFactory):
    def tell(self, word):
        with open({str(told)!r}, "a") as file:
            file.write(f"{{word}} NAME\\n")

    def start(self):
        self.tell("start")
        if "NAME" == "broken":
            raise OSError("no such database")

    def stop(self):
        self.tell("stop")


factory = Telling(First)
"""
        self.milter.write_text(telling.replace("NAME", "one"))
        self.milter_spec = ":factory"
        seen: list[str] = []

        def change(name: str) -> Callable[[], None]:
            def do() -> None:
                seen.append(told.read_text())
                told.write_text("")
                self.milter.write_text(telling.replace("NAME", name))

            return do

        _, out, _ = self.dev([change("two"), change("broken"), change("three")])
        self.assertEqual(seen, ["start one\n", "start two\nstop one\n", "start broken\n"])
        self.assertEqual(told.read_text(), "start three\nstop two\n")
        self.assertIn("no such database", out)
        self.assertIn("the milter that was loaded before stays\n", out)

    def test_message_that_cannot_be_used_is_told_by_its_error(self) -> None:
        """
        A message that cannot be used is told by its error.
        """
        self.write("mails/spam.eml", "")
        [first] = self.parts()
        self.assertIn("mails/spam.eml: ", first)

    def test_without_messages_there_is_one_that_comes_with_package(self) -> None:
        """
        Without messages there is one that comes with the package.
        """
        status, out, _ = self.dev([])
        self.assertEqual(status, 0)
        self.assertIn("demo.eml: accept at eom, 1 edit\n", out)

    def test_mta_may_connect_as_well_also_while_nothing_could_be_loaded(self) -> None:
        """
        An MTA may connect as well, also while nothing could be loaded: then it is turned away.
        """
        self.milter.write_text("nonsense\n")
        path = self.folder / "m.sock"
        seen: list[bool] = []

        def mend() -> None:
            seen.append(path.is_socket())
            self.milter.write_text(MILTER)

        self.dev([mend], f"--listen=unix:{path}")
        self.assertEqual(seen, [True])
        self.assertIsNone(dev._Latest().buildProtocol(None))

    def test_where_it_cannot_listen_status_is_3(self) -> None:
        """
        Where it cannot listen the status is 3.
        """
        status, _, err = self.dev([], "--listen=unix:/nosuch/folder/m.sock")
        self.assertEqual(status, 3)
        self.assertIn("yatxmilter dev: ", err)

    def test_wrong_address_and_file_that_is_not_there_give_status_2(self) -> None:
        """
        A wrong address, and a file that is not there, give status 2.
        """
        status, _, err = self.dev([], "--listen=nonsense")
        self.assertEqual(status, 2)
        self.assertIn("nonsense", err)
        self.milter = self.folder / "nosuch.py"
        self.reactor = SelectReactor()
        status, _, err = self.dev([])
        self.assertEqual(status, 2)
        self.assertIn("nosuch.py", err)

    def test_prints_to_the_standard_streams(self) -> None:
        """
        It prints to the standard streams.
        """
        out = Steps([self.reactor.stop])
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", io.StringIO())
        parser = ArgumentParser(prog="dev")
        dev.add_arguments(parser)
        arguments = parser.parse_args([str(self.milter)])
        self.assertEqual(dev.run(arguments, reactor=self.reactor), 0)
        self.assertIn("accept at eom", out.getvalue())
