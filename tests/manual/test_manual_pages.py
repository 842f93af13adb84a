"""
The manual as its readers see it: built once, served from the loopback interface, and opened in a
headless Chromium at the sizes of a phone and of a desk.

It needs what ``pip install '.[docs]'`` installs, and Chromium (tests/mta/install.sh).
Without them it is skipped, or fails where ``YATXMILTER_REQUIRE_BROWSER`` is set.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.programs import ROOT

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1366, "height": 768}

#: What is wrong with the page that is open: wider than the window, pictures that are not there
#: or cannot be read.
LOOK = """() => {
    const wrong = [], root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) wrong.push(`${root.scrollWidth} wide`);
    // The theme hides what is too wide for the window: it is looked for, save in boxes that scroll.
    const end = e => e.getBoundingClientRect().right;
    const scrolls = e => e.tagName != "ARTICLE"
        && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    for (const e of document.querySelectorAll("article *"))
        if (end(e) > root.clientWidth + 1 && !scrolls(e.parentElement))
            wrong.push("too wide: " + e.outerHTML.slice(0, 80));
    // A box of code scrolls if a line is too long: then the line is cut on the screen.
    for (const code of document.querySelectorAll("article pre"))
        if (code.scrollWidth > code.clientWidth + 1)
            wrong.push("cut: " + code.innerText.slice(0, 80));
    // On a phone a table of few columns is read row by row, and does not scroll.
    if (root.clientWidth < 500)
        for (const table of document.querySelectorAll("article table.stacked")) {
            const box = table.closest(".table-wrapper") || table;
            if (box.scrollWidth > box.clientWidth + 1)
                wrong.push("cut table: " + table.innerText.slice(0, 80));
        }
    for (const image of document.images)
        if (!image.naturalWidth) wrong.push("no picture " + image.src);
    for (const drawing of document.querySelectorAll("svg.drawing")) {
        const all = drawing.viewBox.baseVal;
        const scale = drawing.getBoundingClientRect().width / all.width;
        for (const text of drawing.querySelectorAll("text")) {
            const box = text.getBBox();
            if (box.x < 0 || box.y < 0 || box.x + box.width > all.width
                || box.y + box.height > all.height)
                wrong.push("outside of its picture: " + text.textContent);
            if (parseFloat(getComputedStyle(text).fontSize) * scale < 10)
                wrong.push("too small to read: " + text.textContent);
        }
    }
    return wrong;
}"""


def need(found: object, what: str) -> None:
    """
    Skip the test, or fail it where a browser has to be there, if something is not here.
    """
    if found:
        return
    if os.environ.get("YATXMILTER_REQUIRE_BROWSER"):
        raise AssertionError(what)
    raise SkipTest(what)


def find_browser() -> str | None:
    """
    Find a Chromium.
    """
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Quiet(SimpleHTTPRequestHandler):
    """
    A server of files that does not talk.
    """

    def log_message(self, format: str, *args: Any) -> None:
        """
        Say nothing.
        """


@functools.cache
def manual() -> tuple[Path, str]:
    """
    Build the manual and serve it until the tests end; give its folder and its address.
    """
    folder = Path(tempfile.mkdtemp(prefix="yatxmilter-manual-"))
    atexit.register(shutil.rmtree, folder)
    build = [sys.executable, "-m", "sphinx", "-q", "-b", "html", ROOT / "docs", folder]
    subprocess.run([*build, "-d", folder / ".doctrees"], check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return folder, f"http://127.0.0.1:{server.server_port}/"


class SearchIndexTests(SynchronousTestCase):
    """
    What the search of the built manual knows.
    """

    #: What readers look for, and a page that has to be among those found.
    WORDS = {
        "asyncio": "asyncio",
        "httpx": "asyncio",
        "typing": "typing",
        "docker": "deployment",
        "logrotate": "deployment",
        "selinux": "deployment",
        "pymilter": "pymilter",
        "greylisting": "examples",
        "chroot": "mta",
        "haproxy": "scaling",
        "prometheus": "monitoring",
        "dkim": "examples",
    }

    def test_words_that_readers_look_for_lead_to_page_that_is_about_them(self) -> None:
        """
        The words that readers look for lead to the page that is about them.
        """
        need(importlib.util.find_spec("sphinx"), "there is no Sphinx")
        # The index has words as Sphinx cuts them.
        stem = importlib.import_module("sphinx.search.en").SearchEnglish({}).stem
        folder, _ = manual()
        source = (folder / "searchindex.js").read_text(encoding="utf-8")
        index = json.loads(source.removeprefix("Search.setIndex(").removesuffix(")"))
        for word, page in self.WORDS.items():
            found: set[str] = set()
            for terms in (index["terms"], index["titleterms"]):
                places = terms.get(stem(word), [])
                numbers = places if isinstance(places, list) else [places]
                found |= {index["docnames"][number] for number in numbers}
            self.assertTrue(found, word)
            if (ROOT / "docs" / f"{page}.md").exists():
                self.assertIn(page, found, word)


class ManualPagesTests(SynchronousTestCase):
    """
    The manual in a browser.
    """

    def setUp(self) -> None:
        """
        Start the browser.
        """
        program = find_browser()
        need(program, "there is no Chromium (tests/mta/install.sh installs it)")
        try:
            for name in ("sphinx", "furo", "myst_parser"):
                importlib.import_module(name)
            playwright: Any = importlib.import_module("playwright.sync_api")
        except ImportError as error:
            need(False, f"{error} (pip install '.[docs]')")
        self.folder, self.address = manual()
        self.play = playwright.sync_playwright().start()
        self.addCleanup(self.play.stop)
        # Chromium's own sandbox is not to be had for root.
        self.browser = self.play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        self.addCleanup(self.browser.close)

    def open(self, **options: Any) -> tuple[Any, list[str]]:
        """
        Open a window; give it, and the list of what goes wrong in it.
        """
        page = self.browser.new_page(**options)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(f"JavaScript: {error}"))
        page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))

        def check(response: Any) -> None:
            if response.status >= 400:
                wrong.append(f"{response.status}: {response.url}")
            if not response.url.startswith((self.address, "data:")):
                wrong.append(f"from elsewhere: {response.url}")

        page.on("response", check)
        return page, wrong

    def look_at_all(self, size: dict[str, int]) -> None:
        """
        Open all pages at one size, and find nothing wrong with any.
        """
        page, wrong = self.open(viewport=size)
        names = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*.html"))
        self.assertIn("start.html", names)
        self.assertIn("reference/api/yatxmilter.html", names)
        found = {}
        for name in names:
            page.goto(self.address + name)
            wrong += page.evaluate(LOOK)
            if wrong:
                found[name] = wrong[:3]
                wrong.clear()
        self.assertEqual(found, {})

    def test_nothing_is_missing_or_cut_at_the_width_of_a_phone(self) -> None:
        """
        At the width of a phone nothing is missing or cut, and no page is wider than the window.
        """
        self.look_at_all(PHONE)

    def test_nothing_is_missing_or_cut_at_the_width_of_a_desk(self) -> None:
        """
        At the width of a desk nothing is missing or cut, and no page is wider than the window.
        """
        self.look_at_all(DESK)

    def test_who_types_a_word_into_the_search_gets_pages(self) -> None:
        """
        Who types a word into the search gets pages, and the first one has the word.
        """
        page, wrong = self.open(viewport=DESK)
        page.goto(self.address + "index.html")
        page.fill("input.sidebar-search", "quarantine")
        page.press("input.sidebar-search", "Enter")
        first = page.locator("#search-results li a").first
        first.wait_for()
        # It looks into each page that it found; to leave earlier would break that off.
        page.wait_for_load_state("networkidle")
        first.click()
        page.wait_for_url(lambda url: "search.html" not in url)
        self.assertIn("quarantine", page.inner_text("article").lower())
        self.assertEqual(wrong, [])

    def test_each_block_of_code_has_a_button_that_copies_it(self) -> None:
        """
        Each block of code has a button that copies it.
        """
        need(importlib.util.find_spec("sphinx_copybutton"), "there is no sphinx-copybutton")
        page, wrong = self.open(viewport=DESK)
        page.goto(self.address + "index.html")
        page.locator("button.copybtn").first.wait_for(state="attached")
        self.assertEqual(
            page.locator("button.copybtn").count(), page.locator("div.highlight pre").count()
        )
        self.assertEqual(wrong, [])

    def test_each_page_has_a_link_to_the_repository(self) -> None:
        """
        Each page has a link to the repository.
        """
        page, _ = self.open(viewport=DESK)
        for name in ("index.html", "serving.html", "reference/api/yatxmilter.html"):
            page.goto(self.address + name)
            self.assertTrue(page.locator('a[href^="https://github.com/"]').count(), name)

    def test_pictures_have_other_colours_in_the_dark(self) -> None:
        """
        Pictures have other colours in the dark.
        """
        colours = set()
        for scheme in ("light", "dark"):
            page, _ = self.open(viewport=PHONE, color_scheme=scheme)
            page.goto(self.address + "index.html")
            colours.add(page.eval_on_selector(".drawing text", "e => getComputedStyle(e).fill"))
        self.assertEqual(len(colours), 2, colours)
