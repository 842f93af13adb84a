"""
Tests of choosing a reactor: by name, in the process that serves and in its workers.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from argparse import ArgumentParser
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.programs import ROOT, ProgramTestCase
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory
from yatxmilter._cli import dev
from yatxmilter._cli.serve_service import Options, makeService
from yatxmilter.client import MilterClient
from yatxmilter.service import run_milters
from yatxmilter.service._reactors import REACTORS, install_module, install_reactor, module_of

#: A milter that waits as asyncio does, and tells which reactor it has.
MILTER = """
import asyncio
from yatxmilter import Milter

class Asyncio(Milter):
    async def xxfi_eom(self):
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))
        from twisted.internet import reactor
        self.smfi_addheader("X-Reactor", type(reactor).__name__)
"""

PROGRAM = """
import sys
from milter import Asyncio
from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.service import run_milters

run_milters(sys.argv[1], MilterProtocolFactory(MilterFactory(Asyncio)), reactor="asyncio")
"""

#: The name of the reactor that the tests run under.
PRESENT = type(reactor).__module__.rpartition(".")[2].removesuffix("reactor")
OTHER = "select" if PRESENT == "poll" else "poll"


async def reactor_of(client: MilterClient) -> str:
    """
    Ask a milter in another process which reactor it has.
    """
    await client.negotiate()
    outcome = await client.send_message(
        b"A: b\r\n\r\nc\r\n", "<s@example.org>", ["<r@example.net>"]
    )
    await client.quit()
    edit: Any = outcome.edits[0]
    return str(edit.value)


class ProcessTests(ProgramTestCase):
    """
    Programs that run asyncio's reactor.
    """

    async def test_serve_reactor_asyncio_runs_it_and_so_do_its_workers(self) -> None:
        """
        ``serve --reactor asyncio`` runs it, and so do its workers.
        """
        program = self.program()
        (program.folder / "milter.py").write_text(MILTER)
        words = f"-m yatxmilter serve --milter milter:Asyncio --listen {program.endpoint}"
        program.start(*words.split(), "--workers=1", "--reactor=asyncio")
        self.assertEqual(await reactor_of(await program.connect()), "AsyncioSelectorReactor")
        program.stop()

    async def test_run_milters_runs_the_reactor_it_is_given(self) -> None:
        """
        ``run_milters(..., reactor="asyncio")`` runs it.
        """
        program = self.program()
        (program.folder / "milter.py").write_text(MILTER)
        (program.folder / "program.py").write_text(PROGRAM)
        program.start("program.py", program.endpoint)
        self.assertEqual(await reactor_of(await program.connect()), "AsyncioSelectorReactor")
        program.stop()

    async def test_serve_in_one_process_runs_reactor_that_its_configuration_names(self) -> None:
        """
        ``serve`` in one process runs the reactor that its configuration names.
        """
        program = self.program()
        (program.folder / "milter.py").write_text(MILTER)
        (program.folder / "serve.toml").write_text(
            f"listen = ['{program.endpoint}']\nreactor = 'asyncio'\n"
            "[[milter]]\nobject = 'milter:Asyncio'\n"
        )
        program.start("-m", "yatxmilter", "serve", "--config", "serve.toml")
        self.assertEqual(await reactor_of(await program.connect()), "AsyncioSelectorReactor")
        program.stop()


class ChoiceTests(SynchronousTestCase):
    """
    A process has one reactor.
    """

    def test_named_reactor_is_installed_in_a_fresh_process(self) -> None:
        """
        A name, or the module that `module_of` names, installs that reactor in a fresh process.
        """
        for call, expected in (
            ("install_reactor('poll')", "PollReactor"),
            ("install_module('twisted.internet.selectreactor')", "SelectReactor"),
        ):
            code = (
                f"from yatxmilter.service._reactors import *; {call};"
                " from twisted.internet import reactor; print(type(reactor).__name__)"
            )
            printed = subprocess.check_output(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                text=True,
            )
            self.assertEqual(printed.strip(), expected)

    def test_to_ask_for_reactor_that_is_there_or_for_none_changes_nothing(self) -> None:
        """
        To ask for the reactor that is there, or for none, changes nothing.
        """
        install_reactor(PRESENT)
        install_reactor(None)
        install_module(REACTORS[OTHER])
        install_module(None)
        self.assertEqual(type(reactor).__module__, REACTORS[PRESENT])

    def test_asking_for_another_reactor_is_an_error_that_names_both(self) -> None:
        """
        To ask for another than the one that is there is an error that names both.
        """
        error = self.assertRaises(RuntimeError, install_reactor, OTHER)
        self.assertIn(f"reactor is '{OTHER}', but {type(reactor).__name__} is", str(error))
        factory = MilterProtocolFactory(MilterFactory(Milter))
        self.assertRaises(RuntimeError, run_milters, "inet:0@127.0.0.1", factory, reactor=OTHER)

    def test_unknown_name_is_refused_with_those_that_there_are(self) -> None:
        """
        An unknown name is refused with those that there are.
        """
        error = self.assertRaises(ValueError, install_reactor, "uv")
        self.assertIn("expected one of asyncio, epoll, poll, select", str(error))

    def test_workers_are_told_the_reactor_by_the_module_that_installs_it(self) -> None:
        """
        Workers are told a reactor by the module that installs it; what is none has no module.
        """
        self.assertEqual(module_of(reactor), REACTORS[PRESENT])
        self.assertIsNone(module_of(Clock()))

    def test_another_reactor_cannot_be_chosen_under_twist(self) -> None:
        """
        Under ``twist``, which has chosen already, another reactor ends the program with a word.
        """
        options = Options()
        options.parseOptions(
            ["--milter=yatxmilter:Milter", "--listen=inet:0@127.0.0.1", f"--reactor={OTHER}"]
        )
        end = self.assertRaises(SystemExit, makeService, options)
        self.assertIn("under twist", str(end))

    def test_dev_has_the_option_too_and_says_what_is_wrong_with_it(self) -> None:
        """
        ``dev`` has the option too, and says what is wrong with it.
        """
        self.patch(dev, "begin_log", lambda *_: None)
        parser = ArgumentParser()
        dev.add_arguments(parser)
        err = io.StringIO()
        status = dev.run(parser.parse_args(["my.py", f"--reactor={OTHER}"]), err=err)
        self.assertEqual(status, 2)
        self.assertIn(f"reactor is '{OTHER}'", err.getvalue())
