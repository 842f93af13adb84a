"""
How Sphinx builds the manual.

The build needs no network: the names of Python and Twisted that the manual links to are listed in
``inventories/``, and made into the files that intersphinx reads.
"""

import re
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils.nodes import Text
from pygments.lexers.configs import IniLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.ext.intersphinx import missing_reference

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from yatxmilter import __version__  # noqa: E402

project = "yatxmilter"
REPOSITORY = "https://github.com/humantech/yatxmilter"
author = "the yatxmilter contributors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "_ext.tables",
    "_ext.drawings",
    "_ext.modules",
    # Optional, so that the manual can be built with Debian's Sphinx; the extra "docs" has it.
    *(name for name in ("sphinx_copybutton",) if find_spec(name)),
]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
nitpicky = True
INTERFACES = ("IMilter", "IMilterFactory", "IMilterObserver")
# Of no use to readers, so they have no entry.
nitpick_ignore = [
    ("py:class", "yatxmilter._engine.decorators._AnyCallback"),
    ("py:class", "yatxmilter._engine.decorators._Result"),
    ("py:class", "~_Parameters"),
    ("py:class", "_Factories"),
    ("py:class", "yatxmilter._engine.on_error.Disconnect"),
    # What is no class, or not in the reference: its page describes it in words.
    *(("py:class", f"<InterfaceClass yatxmilter.interfaces.{name}>") for name in INTERFACES),
    *(("py:class", name) for name in (*INTERFACES, "MilterObserver", "Replayed")),
    ("py:class", "yatxmilter.defaults.MilterObserver"),
    ("py:class", "yatxmilter.testing._replaying.Replayed"),
    *(("py:class", name) for name in ("pathlib.Path", "re.Pattern", "types.SimpleNamespace")),
    ("py:class", "MacroStore"),
    ("py:class", "CallbackResult"),
    *(("py:class", name) for name in ("Allow", "Macros", "Octets", "Received", "SetReply")),
    # Made by the library, not by its users.
    *(("py:class", name) for name in ("Stage", "Transaction", "InMemoryConnection", "Flavour")),
    *(("py:class", name) for name in ("Clock", "Deferred", "contextlib.AbstractContextManager")),
]

# What is private has no page: a type with an underscore in its path is for the library's own use.
nitpick_ignore_regex = [("py:.*", r"(.*\.|~)?_.*")]

# Two classes are called Reply; an annotation does not say of which package it is.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_js_files = ["manual.js"]
html_title = f"yatxmilter {release}"

html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "master",
    "source_directory": "docs/",
    "footer_icons": [{"name": "Repository", "url": REPOSITORY, "html": "Repository", "class": ""}],
}
# What a reader types is copied; prompts and what is printed is not.
copybutton_prompt_text = "$ "
copybutton_selector = "div:not(.no-copy) > div.highlight > pre"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
default_role = "literal"


def inventory(name: str) -> str:
    """
    Write the inventory of ``inventories/<name>.txt`` as intersphinx wants it.
    """
    title, _, *lines = (HERE / "inventories" / f"{name}.txt").read_text().splitlines()
    entries = [line.split() for line in lines]
    body = "".join(f"{what} {role} 1 {page.replace('$', what)} -\n" for what, role, page in entries)
    head = f"# Sphinx inventory version 2\n{title}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    path = HERE / "_build" / f"{name}.inv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress(body.encode()))
    return str(path)


intersphinx_mapping = {
    "python": ("https://docs.python.org/3", inventory("python")),
    "twisted": ("https://docs.twisted.org/en/stable/api", inventory("twisted")),
}


def name_interface(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """
    Give interfaces in signatures their names: Sphinx knows classes only, and prints
    ``<InterfaceClass twisted.internet.interfaces.IAddress>``.
    """
    match = re.fullmatch(r"(?:<InterfaceClass [\w.]+\.)?(I[A-Z]\w+)>?", node["reftarget"])
    if match:
        # Ours are shown as they are written, and have no entry to link to.
        ours = match[1].startswith("IMilter")
        node["reftarget"] = f"twisted.internet.interfaces.{match[1]}"
        if isinstance(content, Text):
            # A return type: nothing is around it in which it could be replaced.
            text = Text(match[1])
            return text if ours else missing_reference(app, env, node, text)
        for text in list(content.findall(type(content[0]))):
            text.parent.replace(text, type(text)(match[1]))
        return content if ours else None
    return None


def setup(app: Sphinx) -> None:
    """
    Teach Sphinx Twisted's interfaces, and the two kinds of configuration file the manual shows.
    """
    # Before intersphinx, which then finds the page.
    app.connect("missing-reference", name_interface, priority=400)
    app.add_lexer("main.cf", IniLexer)
    app.add_lexer("sendmail.mc", TextLexer)
