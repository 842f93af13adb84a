"""
The shape of the manual: its number of pages, its first page, the README, and what is generated.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks.report import RESULT, Recorded, render
from tests.programs import ROOT
from yatxmilter.__main__ import _parser

DOCS = ROOT / "docs"

#: More than this nobody can choose from. Pages that are made from the code, or show another file of
#: the repository, are in docs/reference and do not count.
MOST_PAGES = 25


def toctrees(page: Path) -> dict[str, list[str]]:
    """
    Give the groups of pages that a page lists, by their captions.
    """
    found = {}
    for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        lines = [line for line in block.splitlines() if line]
        caption = next((x.split(": ")[1] for x in lines if x.startswith(":caption:")), "")
        found[caption] = [line for line in lines if not line.startswith(":")]
    return found


class NavigationTests(SynchronousTestCase):
    """
    The list of pages.
    """

    def test_every_page_is_in_one_of_four_groups(self) -> None:
        """
        There are four groups, and every page of docs/ is in one of them.
        """
        groups = toctrees(DOCS / "index.md")
        self.assertEqual(list(groups), ["Learn", "Guides", "Operate", "Reference"])
        listed = [page for pages in groups.values() for page in pages]
        written = [path.stem for path in DOCS.glob("*.md") if path.stem != "index"]
        self.assertEqual(sorted(p for p in listed if "/" not in p), sorted(written))

    def test_there_are_no_more_pages_than_a_reader_can_choose_from(self) -> None:
        """
        There are no more pages than a reader can choose from.
        """
        groups = toctrees(DOCS / "index.md")
        pages = [p for each in groups.values() for p in each if not p.startswith("reference/")]
        self.assertLessEqual(len(pages), MOST_PAGES, pages)

    def test_first_page_begins_with_how_to_install_and_with_code(self) -> None:
        """
        The first page begins with how to install and with code, then come the ways in, then the
        picture.
        """
        text = (DOCS / "index.md").read_text("utf-8")
        places = [text.index(what) for what in ("pip install", "```python", "cards", "{picture}")]
        self.assertEqual(places, sorted(places))
        cards = text.partition("{container} cards")[2].partition(":::")[0]
        self.assertEqual(cards.count("- **["), 5)


class ReadmeTests(SynchronousTestCase):
    """
    The README.
    """

    text = (ROOT / "README.md").read_text("utf-8")

    def test_readme_says_in_two_sentences_what_this_is(self) -> None:
        """
        It says in two sentences what this is and for whom; then comes the code.
        """
        words = " ".join(self.text.partition("```python")[0].splitlines()[1:]).strip()
        self.assertEqual(len(re.findall(r"\.(?: |$)", words)), 2, words)

    def test_readme_is_not_a_wall_of_links(self) -> None:
        """
        It is not a wall of links: there are fewer than one for two lines.
        """
        lines = [line for line in self.text.splitlines() if line.strip()]
        self.assertLess(2 * self.text.count("]("), len(lines))

    def test_each_extra_that_users_need_has_its_row(self) -> None:
        """
        Each extra that users need has its row, and no other has one.
        """
        project = (ROOT / "pyproject.toml").read_text("utf-8")
        block = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        extras = set(re.findall(r"^(\w+) = \[", block, re.MULTILINE)) - {"test", "dev"}
        table = self.text.partition("| extra | for |")[2].partition("\n\n")[0]
        cells = [line.split(" | ")[0] for line in table.splitlines()]
        self.assertEqual({name for cell in cells for name in re.findall(r"`(\w+)`", cell)}, extras)


class GeneratedTests(SynchronousTestCase):
    """
    What is generated and kept in the repository.
    """

    def test_page_about_performance_and_readme_show_figures_of_result_file(self) -> None:
        """
        The page about performance and the README show the figures of the result file.
        """
        copies = []
        for path in (DOCS / "performance.md", ROOT / "README.md"):
            copy = Path(self.mktemp())
            copy.write_text(path.read_text("utf-8"), encoding="utf-8")
            copies.append((path, copy))
        render(Recorded.load(RESULT), *(copy for _, copy in copies))
        for path, copy in copies:
            self.assertEqual(
                copy.read_text("utf-8"), path.read_text("utf-8"), "python -m benchmarks.report"
            )

    def test_result_file_that_is_read_and_written_again_is_the_same(self) -> None:
        """
        A result file that is read and written again is the same.
        """
        copy = Path(self.mktemp())
        Recorded.load(RESULT).save(copy)
        self.assertEqual(copy.read_text("utf-8"), RESULT.read_text("utf-8"))

    def test_result_file_without_the_scenarios_of_the_answer_is_refused(self) -> None:
        """
        A result file without the scenarios of the answer is refused.
        """
        recorded = Recorded.load(RESULT)
        del recorded.results["reuse-unix"]
        with self.assertRaisesRegex(ValueError, "reuse-unix"):
            render(recorded, DOCS / "performance.md", ROOT / "README.md")

    def test_page_without_marks(self) -> None:
        """
        A page without the place for the figures is refused, and so is a README without the row.
        """
        page, readme = Path(self.mktemp()), Path(self.mktemp())
        page.write_text("nothing")
        readme.write_text("nothing")
        recorded = Recorded.load(RESULT)
        with self.assertRaisesRegex(ValueError, "answer"):
            render(recorded, page, readme)
        page.write_text((DOCS / "performance.md").read_text("utf-8"), encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "no row"):
            render(recorded, page, readme)

    def test_man_pages_have_the_texts_that_help_shows(self) -> None:
        """
        The man pages have the texts that --help shows.
        """
        made = runpy.run_path(str(DOCS / "man.py"))["pages"]()
        there = {path.name: path.read_text("utf-8") for path in (DOCS / "man").glob("*.1")}
        self.assertEqual(sorted(there), sorted(made), "python docs/man.py")
        for name, text in made.items():
            self.assertEqual(there[name], text, "python docs/man.py")

    def test_each_command_has_man_page_and_each_of_its_options_is_there(self) -> None:
        """
        Each command has a man page, and each of its options is there.
        """
        commands = next(a.choices for a in _parser()._actions if a.dest == "command")
        assert isinstance(commands, dict)
        for name, parser in commands.items():
            page = (DOCS / "man" / f"yatxmilter-{name}.1").read_text("utf-8")
            for option in parser._option_string_actions:
                self.assertIn(f"\\fB{option}\\fR".replace("-", "\\-"), page, name)

    def test_reference_has_a_page_for_each_public_module(self) -> None:
        """
        The reference has a page for each public module, and each of its names is there.
        """
        if importlib.util.find_spec("sphinx") is None:
            raise SkipTest("there is no Sphinx (pip install '.[docs]')")
        from docs._ext.modules import page, public_modules
        from tests.test_exports import PUBLIC

        self.assertEqual(sorted(public_modules()), sorted([*PUBLIC, "yatxmilter.constants"]))
        for module, names in PUBLIC.items():
            text = page(module)
            self.assertEqual([name for name in names if name not in text], [], module)
