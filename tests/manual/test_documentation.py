"""
Everything that README.md and the manual show is run.

Fenced blocks are told apart by their language. Python is executed: the blocks of a page one after
the other in one namespace, and a block that runs the reactor as a program of its own, which has to
answer a client. Shell commands are run, ``main.cf`` is read by ``postconf`` and ``sendmail.mc`` by
``m4`` where these are installed. A ``text`` block is what the block before it prints.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.ports import free_port
from tests.programs import ROOT, Program, ProgramTestCase
from yatxmilter import Milter, MilterProtocolFactory
from yatxmilter.client import AddHeader, Outcome

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = {"python", "diff", "sh", "main.cf", "sendmail.mc", "text"}

#: Where tests/mta/install.sh unpacks Sendmail, next to an installed Postfix.
SENDMAIL = Path(os.environ.get("YATXMILTER_SENDMAIL", "/var/cache/yatxmilter/sendmail"))

#: Every name of libmilter's API, as in mfapi.h of Sendmail 8.17.
LIBMILTER_NAMES = [
    "smfi_addheader",
    "smfi_addrcpt",
    "smfi_addrcpt_par",
    "smfi_chgfrom",
    "smfi_chgheader",
    "smfi_delrcpt",
    "smfi_getpriv",
    "smfi_getsymval",
    "smfi_insheader",
    "smfi_main",
    "smfi_opensocket",
    "smfi_progress",
    "smfi_quarantine",
    "smfi_register",
    "smfi_replacebody",
    "smfi_set_max_exec_time",
    "smfi_setbacklog",
    "smfi_setconn",
    "smfi_setdbg",
    "smfi_setmaxdatasize",
    "smfi_setmlreply",
    "smfi_setpriv",
    "smfi_setreply",
    "smfi_setsymlist",
    "smfi_settimeout",
    "smfi_stop",
    "smfi_version",
    "xxfi_abort",
    "xxfi_body",
    "xxfi_close",
    "xxfi_connect",
    "xxfi_data",
    "xxfi_envfrom",
    "xxfi_envrcpt",
    "xxfi_eoh",
    "xxfi_eom",
    "xxfi_flags",
    "xxfi_header",
    "xxfi_helo",
    "xxfi_name",
    "xxfi_negotiate",
    "xxfi_signal",
    "xxfi_unknown",
    "xxfi_version",
]

FENCE = re.compile(r"^```([\w.{}-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """
    A fenced block: where it begins, in which language, and its text.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """
        Say where the block is, as tracebacks do.
        """
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_program(self) -> bool:
        """
        Whether the block is a milter that runs until it is stopped.
        """
        return "reactor.run()" in self.text or "run_milters(" in self.text

    @property
    def is_client(self) -> bool:
        """
        Whether the block is a program that needs the milter shown before it.
        """
        return "react(" in self.text


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """
    Yield the blocks of a page, of these languages or all; MyST's directives are not blocks.
    """
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        block = Block(page, line, match[1], match[2])
        if not block.language.startswith("{") and (not languages or block.language in languages):
            yield block


def all_blocks(*languages: str) -> list[Block]:
    """
    List the blocks of all pages, of these languages or all.
    """
    return [block for page in PAGES for block in blocks(page, *languages)]


def skip_unless(found: object, reason: str) -> None:
    """
    Skip the test, saying why, if what it needs is not here; in CI it has to be.
    """
    if not found:
        if os.environ.get("YATXMILTER_REQUIRE_MTA"):
            raise AssertionError(reason)
        raise SkipTest(reason)


def run(*command: str | Path, **options: object) -> str:
    """
    Run a command to its end, without input, and return what it prints; it has to succeed.
    """
    result = subprocess.run(  # type: ignore[call-overload]
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
    )
    if result.returncode != 0 or result.stderr:
        raise AssertionError(f"{command}: {result.returncode}\n{result.stdout}{result.stderr}")
    return str(result.stdout)


class BlockTests(SynchronousTestCase):
    """
    No block escapes the tests below.
    """

    def test_every_block_has_a_language_that_is_run_here(self) -> None:
        """
        Every block has a language that is run here.
        """
        wrong = [block.place for block in all_blocks() if block.language not in LANGUAGES]
        self.assertEqual(wrong, [])

    def test_every_fence_of_three_backticks_is_one_of_pair_that_tests_see(self) -> None:
        """
        Every fence of three backticks is one of a pair that the tests see.
        """
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            fences = len(re.findall(r"^ *```", text, re.MULTILINE))
            self.assertEqual(fences, 2 * len(FENCE.findall(text)), page.name)

    def test_links_that_sphinx_does_not_see_lead_to_files(self) -> None:
        """
        Links of the pages outside the manual, which Sphinx does not see, lead to files.
        """
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            targets = [link for link in re.findall(r"\]\(([^)#]+)", text) if ":" not in link]
            self.assertEqual([link for link in targets if not (ROOT / link).exists()], [], name)


class PythonTests(SynchronousTestCase):
    """
    Python that does its work and is done.
    """

    def test_blocks_of_each_page_run_one_after_the_other(self) -> None:
        """
        The blocks of each page run one after the other, and print what the page says.
        """
        for page in PAGES:
            namespace: dict[str, object] = {"__name__": page.stem}
            printed = "(nothing)"
            for block in blocks(page):
                if block.is_client:
                    # What it prints is the business of test_clients.
                    printed = "(client)"
                elif block.language == "text" and printed != "(client)":
                    self.assertEqual(printed.strip(), block.text.strip(), block.place)
                elif block.language == "python" and not block.is_program:
                    printed = self.execute(block, block.text, namespace)
                elif block.language == "diff":
                    self.execute(block, new_side(block.text), namespace)

    def execute(self, block: Block, source: str, namespace: dict[str, object]) -> str:
        """
        Execute a block, and return what it prints.
        """
        # The line numbers of tracebacks are those of the page.
        code = compile("\n" * (block.line - 1) + source, block.place, "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        return output.getvalue()

    def test_first_milter_is_short(self) -> None:
        """
        The README's first milter has at most 15 lines.
        """
        first = next(blocks(ROOT / "README.md", "python"))
        self.assertLessEqual(len(first.text.splitlines()), 15)


def new_side(diff: str) -> str:
    """
    Take the new text out of a diff block, which has a column of its own for its marks.
    """
    return "".join(line[1:] or "\n" for line in diff.splitlines(True) if line[0] in "+ \n")


class ProgramTests(ProgramTestCase):
    """
    Python that runs until it is stopped.
    """

    async def test_each_one_is_a_milter(self) -> None:
        """
        Each one is a milter: it negotiates, lets a harmless message pass, and ends when it is told.
        """
        programs = [block for block in all_blocks("python") if block.is_program]
        self.assertGreater(len(programs), 1)
        for block in programs:
            outcome = await self.play(block, "<sender@client.example>")
            self.assertTrue(outcome.accepted, f"{block.place}: {outcome}")

    async def test_readmes_first_milter_does_what_the_readme_says_of_it(self) -> None:
        """
        The README's first milter does what the README says of it.
        """
        first = next(blocks(ROOT / "README.md", "python"))
        outcome = await self.play(first, "<offers@spam.example>")
        self.assertEqual((outcome.stage, outcome.text), ("mail", "550 5.7.1 not from you"))
        outcome = await self.play(first, "<sender@client.example>")
        self.assertEqual(outcome.edits, (AddHeader("X-Milter", "seen"),))

    async def test_each_program_that_plays_the_mta_gets_what_the_page_says(self) -> None:
        """
        Each program that plays the MTA gets from the milter before it what the page says.
        """
        pages = [(block, page) for page in PAGES for block in blocks(page) if block.is_client]
        self.assertGreater(len(pages), 0)
        for client, page in pages:
            before = [block for block in blocks(page, "python") if block.line < client.line]
            after = [block for block in blocks(page, "text") if block.line > client.line]
            milter = next(block for block in reversed(before) if block.is_program)
            program, port = self.start(milter)
            mta = await program.connect()
            await mta.quit()
            printed = run(
                *(sys.executable, "-c", client.text.replace("9900", str(port))),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            self.assertEqual(printed.strip(), after[0].text.strip(), client.place)
            program.stop()

    def start(self, block: Block) -> tuple[Program, int]:
        """
        Run a block on a free port.
        """
        program, port = self.program(), free_port()
        self.assertIn("9900", block.text, block.place)
        source = program.folder / "milter.py"
        source.write_text(block.text.replace("9900", str(port)))
        return program.start(source, spec=f"inet:{port}@127.0.0.1"), port

    async def play(self, block: Block, sender: str) -> Outcome:
        """
        Run a block, send it a message, and stop it.
        """
        program, _ = self.start(block)
        mta = await program.connect()
        await mta.negotiate()
        await mta.connect("client.example", IPv4Address("TCP", "192.0.2.25", 40025))
        await mta.helo("client.example")
        outcome = await mta.send_message(
            b"Subject: hello\n\nA letter.\n", sender, ["<reader@example.com>"]
        )
        await mta.quit()
        program.stop()
        return outcome


class ShellTests(SynchronousTestCase):
    """
    Commands for the shell.
    """

    def test_commands_of_the_page_succeed(self) -> None:
        """
        The commands succeed; the two that set up a clone are left to the test below.
        """
        for block in all_blocks("sh"):
            if "pip install" not in block.text:
                self.shell(block)

    def shell(self, block: Block) -> None:
        """
        Run a block where ``python`` is the Python of the tests.
        """
        with tempfile.TemporaryDirectory() as folder:
            run(
                *("bash", "-euc", block.text),
                cwd=folder,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                    "MILTER_USER": str(os.getuid()),
                    "POSTFIX_GROUP": str(os.getgid()),
                    "QUEUE_DIRECTORY": folder,
                },
            )

    def test_two_commands_of_the_readme_work_in_a_fresh_clone(self) -> None:
        """
        The two commands of the README work in a fresh clone.

        That takes minutes, and .ci/run does it by itself; set YATXMILTER_TEST_SETUP for it here.
        """
        commands = list(blocks(ROOT / "README.md", "sh"))
        self.assertEqual(len(commands), 2)
        for block in commands:
            # .ci/run takes each from the README by its beginning, as one line.
            self.assertEqual(block.text.count("\n"), 1)
            start = re.split(r" && |(?<=test]')", block.text)[0]
            self.assertIn(start, (ROOT / ".ci" / "run").read_text())
        if not os.environ.get("YATXMILTER_TEST_SETUP"):
            raise SkipTest("YATXMILTER_TEST_SETUP is not set; .ci/run sets up a clone by itself")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("YATXMILTER_")}
        with tempfile.TemporaryDirectory() as folder:
            run("git", "clone", "-q", ROOT, folder)
            for block in commands:
                run("bash", "-euc", block.text, cwd=folder, env=environment)


class MtaConfigurationTests(SynchronousTestCase):
    """
    Configuration of the MTAs, read by the MTAs.
    """

    def test_postfix_knows_each_parameter_and_takes_its_value_as_it_stands_there(self) -> None:
        """
        Postfix knows each parameter and takes its value as it stands there.
        """
        skip_unless(shutil.which("postconf"), "there is no Postfix (postconf)")
        for block in all_blocks("main.cf"):
            with tempfile.TemporaryDirectory() as folder:
                settings = "compatibility_level = 3.6\n" + block.text
                Path(folder, "main.cf").write_text(settings)
                # A main.cf that is only a second old makes Postfix doze, lest it change again.
                os.utime(Path(folder, "main.cf"), (1, 1))
                Path(folder, "master.cf").write_text("")
                output = run("postconf", "-c", folder, "-n")
            joined = re.sub(r"\s*\n\s+", " ", block.text)
            wanted = [re.sub(r"\s+", " ", line) for line in joined.splitlines()]
            got = [re.sub(r"\s+", " ", line) for line in output.splitlines()]
            self.assertEqual([line for line in wanted if line not in got], [], block.place)

    def test_m4_macros_of_sendmail_make_lines_in_sendmail_cf(self) -> None:
        """
        Sendmail's m4 macros make of each setting the lines in sendmail.cf that it is for.
        """
        m4, cf = find_m4()
        skip_unless(m4, "there is no m4 with Sendmail's macros (tests/mta/install.sh)")
        assert m4 is not None
        libraries = ":".join(map(str, SENDMAIL.glob("usr/lib/*-linux-gnu*")))
        for block in all_blocks("sendmail.mc"):
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "sendmail.mc")
                # Nothing is made of lists of macros where there is no filter to get them.
                some = (
                    "" if "MAIL_FILTER" in block.text else "MAIL_FILTER(`some', `S=local:/some')dnl"
                )
                source.write_text(
                    f"{some}\ndivert(0)dnl\nOSTYPE(`linux')dnl\n{block.text}MAILER(`smtp')dnl\n"
                )
                output = run(
                    *(m4, f"-D_CF_DIR_={cf}/", cf / "m4" / "cf.m4", source),
                    env={**os.environ, "LD_LIBRARY_PATH": libraries},
                )
            made = output.splitlines()
            missing = [line for line in mc_results(block.text) if line not in made]
            self.assertEqual(missing, [], block.place)


def find_m4() -> tuple[Path | None, Path]:
    """
    Find m4 and Sendmail's macros, installed or unpacked.
    """
    for root in (SENDMAIL, Path("/")):
        m4, cf = root / "usr/bin/m4", root / "usr/share/sendmail/cf"
        if m4.exists() and (cf / "m4" / "cf.m4").exists():
            return m4, cf
    return None, Path()


def mc_results(fragment: str) -> Iterator[str]:
    """
    Yield the lines of sendmail.cf that the lines of a fragment are for.
    """
    filters = re.findall(r"INPUT_MAIL_FILTER\(`(.*?)', `(.*?)'\)", fragment)
    if filters:
        yield "O InputMailFilters=" + ", ".join(name for name, _ in filters)
    for name, equates in filters:
        yield f"X{name}, {equates}"
    for name, value in re.findall(r"define\(`confMILTER_MACROS_(\w+)', `(.*?)'\)", fragment):
        yield f"O Milter.macros.{name.lower()}={value}"


class SeveralMiltersPageTests(SynchronousTestCase):
    """
    The page about several milters.
    """

    def test_each_way_to_merge_answers_that_there_is_has_its_row(self) -> None:
        """
        Each way to merge answers that there is has its row, and no other has one.
        """
        page = (ROOT / "docs" / "several-milters.md").read_text(encoding="utf-8")
        rows = re.findall(r'^\| `"(\w+)"`', page, re.MULTILINE)
        with self.assertRaises(ValueError) as raised:
            MilterProtocolFactory((), merge="none of them")
        known = str(raised.exception).partition("expected one of ")[2].split(", ")
        self.assertEqual(rows, known)


class LibmilterPageTests(SynchronousTestCase):
    """
    The table of libmilter's functions.
    """

    def test_every_name_has_a_row(self) -> None:
        """
        Each function, callback and field of libmilter's API has a row of its own.
        """
        page = (ROOT / "docs" / "libmilter.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
        self.assertEqual(sorted(rows), sorted(LIBMILTER_NAMES))

    def test_names_are_those_of_the_header(self) -> None:
        """
        The names that are looked for are those of the installed mfapi.h.
        """
        header = Path("/usr/include/libmilter/mfapi.h")
        skip_unless(header.exists(), f"{header} is not here (libmilter-dev)")
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
        functions = set(re.findall(r"\b(smfi_\w+) __P", text))
        fields = set(re.findall(r"\b(xxfi_\w+)", text))
        self.assertEqual(functions | fields, set(LIBMILTER_NAMES))

    def test_methods_are_there(self) -> None:
        """
        What the table says to be a method or a callback of Milter is one, with these arguments.
        """
        page = (ROOT / "docs" / "libmilter.md").read_text(encoding="utf-8")
        said = re.findall(r"^\| `(\w+)` \| `(?:self\.)?\1\((.*?)\)`", page, re.MULTILINE)
        self.assertGreater(len(said), 25)
        for name, arguments in said:
            signature = inspect.signature(getattr(Milter, name))
            parameters = [
                str(parameter.replace(annotation=inspect.Parameter.empty)).replace(" = ", "=")
                for parameter in list(signature.parameters.values())[1:]
            ]
            self.assertEqual(", ".join(parameters), arguments, name)
