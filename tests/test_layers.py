"""
The rules of the house that a machine can check: who imports whom, and that every test says what it
promises.

The table of layers stands here and nowhere else. A module imports, at run time, from strictly lower
layers only, so there is no cycle and no need to know more than the layers below; a new module
needs a place in the table. Everything is read from the source, nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "yatxmilter"

LAYERS = (
    # numbers, exceptions, and small things that know nothing of the protocol
    (
        "constants",
        "errors",
        "interfaces",
        "escaping",
        "rfc5322",
        "watch",
        "draining",
        "bounds",
        "ending",
        "socketfile",
    ),
    ("logs", "metrics_families", "page", "proxied", "lifecycle"),
    ("connspec",),
    ("notify", "listening"),
    ("packets", "options", "legacy"),
    ("wire", "admission", "fastpath"),
    # the tables: a row for each command, a row for each action
    ("commands", "replies", "macros"),
    # the rules: bytes to calls, answers to bytes, offers and verdicts merged
    ("session", "context", "negotiation", "verdicts", "responses", "rounds", "addresses"),
    ("members", "exchange", "dialogue", "model", "spool", "conditions", "tally", "backlog"),
    ("calling", "naming", "transaction", "delivery", "edits", "deciding", "flavours"),
    # what users subclass, what all ways to merge have in common, the MTA's side
    ("defaults", "merging", "client", "opening", "gate"),
    ("together", "chain", "reuse", "pulling"),
    ("fanout", "strictest"),
    # milters written in messages
    ("message.values", "message.least", "message.body", "message.envelope"),
    ("message.headers",),
    ("message.mail",),
    ("message.milter",),
    ("message",),
    ("recording",),
    ("shadow",),
    ("conversation", "standin"),
    ("line",),
    ("protocol", "remote"),
    ("__init__",),
    ("service", "inmemory", "metrics"),
    ("metrics_page",),
    # Twisted's SMTP server
    ("smtp.content", "smtp.envelope", "smtp.lines", "smtp.values"),
    ("smtp.filtering", "smtp.handover", "smtp.pacing"),
    ("smtp.milters",),
    ("smtp.server",),
    ("smtp.factory",),
    ("smtp",),
    # tests of users
    ("testing.values", "testing.watching"),
    ("testing.answers", "testing.recording"),
    ("testing.content", "testing.lane"),
    ("testing.session",),
    ("testing.mta",),
    ("testing.trial",),
    ("testing",),
    # the command
    ("cli",),
    ("worker",),
    ("workers", "cli.messages", "cli.report", "cli.running", "cli.serve_log", "cli.pidfile"),
    ("cli.serve_options",),
    ("cli.serve_milters",),
    ("cli.serve_service",),
    ("cli.serve",),
    ("cli.demo", "cli.send_play"),
    ("cli.send_results",),
    ("cli.send_options",),
    ("cli.send",),
    ("cli.decoding", "cli.trace_output", "cli.trace_relay"),
    ("cli.record_redaction",),
    ("cli.record",),
    ("cli.replay_steps", "cli.trace_view"),
    ("cli.replay_compare", "cli.trace"),
    ("cli.replay_player",),
    ("cli.replay_report",),
    ("cli.replay",),
    ("__main__",),
)

#: The modules that know the protocol. They know nothing of Twisted.
RULES = {
    *("commands", "constants", "context", "delivery", "errors", "legacy", "macros", "members"),
    *(
        "negotiation",
        "options",
        "packets",
        "replies",
        "responses",
        "rfc5322",
        "session",
        "transaction",
    ),
    *("verdicts", "wire"),
}


#: All modules, by the names that they have in the table: a package has its own name.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def tree_of(module: Path) -> ast.Module:
    """
    Parse a source file.
    """
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def opening(module: Path) -> str | None:
    """
    Read the docstring with which a source file opens.
    """
    return ast.get_docstring(tree_of(module))


def for_types_only(node: ast.AST) -> bool:
    """
    Tell whether this is an ``if TYPE_CHECKING:``.
    """
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports(tree: ast.AST) -> Iterator[str]:
    """
    Yield the dotted names that a module imports at run time, inside functions too.
    """
    for node in ast.iter_child_nodes(tree):
        if for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def inner(dotted: str) -> str | None:
    """
    Name the module of ours that an import is about: ``yatxmilter._wire.payloads.Offer`` is about ``wire``.
    """
    first, _, rest = dotted.partition(".")
    if first != "yatxmilter":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


class LayerTests(SynchronousTestCase):
    """
    Imports go down.
    """

    def setUp(self) -> None:
        self.modules = {name: tree_of(path) for name, path in MODULES.items()}
        self.layer = {name: row for row, names in enumerate(LAYERS) for name in names}

    def test_table_is_complete(self) -> None:
        """
        Every module has its place in the table.
        """
        self.assertEqual(sorted(self.modules.keys() - self.layer.keys()), [])

    def test_imports_go_down(self) -> None:
        """
        No module imports one of its own layer or of a higher one.
        """
        wrong = [
            f"{name} imports {used}"
            for name, tree in self.modules.items()
            for used in filter(None, map(inner, imports(tree)))
            if self.layer[used] >= self.layer[name]
        ]
        self.assertEqual(wrong, [])

    def test_rules_need_no_twisted(self) -> None:
        """
        The modules that know the protocol import nothing of Twisted.
        """
        wrong = [
            f"{name} imports {used}"
            for name in sorted(RULES)
            for used in imports(self.modules[name])
            if used.partition(".")[0] == "twisted"
        ]
        self.assertEqual(wrong, [])

    def test_two_dependencies(self) -> None:
        """
        At run time the library uses the standard library, Twisted and zope.interface, no more.

        But for the page of metrics, which has an extra for it.
        """
        import sys

        allowed = {*sys.stdlib_module_names, "twisted", "zope", "yatxmilter"}
        used = {
            (name, dotted.partition(".")[0])
            for name, tree in self.modules.items()
            for dotted in imports(tree)
        }
        used -= {("metrics_page", "prometheus_client")}
        self.assertEqual([pair for pair in sorted(used) if pair[1] not in allowed], [])

    def test_relative_imports(self) -> None:
        """
        Imports are written in full.
        """
        wrong = [
            name
            for name, tree in self.modules.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level
        ]
        self.assertEqual(wrong, [])


class DocstringTests(SynchronousTestCase):
    """
    Files say what they are for, and tests what they promise.
    """

    def test_files(self) -> None:
        """
        Each file with code, in the library, the tests and the examples, opens with a docstring.
        """
        files = [
            path
            for top in (PACKAGE, ROOT / "tests", ROOT / "examples")
            for path in top.rglob("*.py")
        ]
        wrong = [path for path in files if path.stat().st_size and not opening(path)]
        self.assertEqual([str(path.relative_to(ROOT)) for path in wrong], [])

    def test_tests(self) -> None:
        """
        Each test has a docstring.
        """
        wrong = [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
            for path in (ROOT / "tests").rglob("test_*.py")
            for node in ast.walk(tree_of(path))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name.startswith("test_")
            and not ast.get_docstring(node)
        ]
        self.assertEqual(wrong, [])

    def test_no_exclusions(self) -> None:
        """
        No line of the library is hidden from coverage.
        """
        wrong = [name for name, path in MODULES.items() if "pragma: no" in path.read_text()]
        self.assertEqual(wrong, [])
