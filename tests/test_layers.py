"""
The rules of the house that a machine can check: who imports whom, and that every test says what it
promises.

The table of packages stands here and nowhere else. A package imports, at run time, from strictly
lower ones and from itself only, so there is no cycle and no need to know more than what is below; a
new package needs a place in the table. Everything is read from the source, nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "yatxmilter"

LAYERS = (
    # facts: numbers, exceptions, interfaces, checks of options
    ("constants", "errors", "interfaces"),
    ("_escaping",),
    ("_describing",),
    ("_options",),
    # what travels on the wire
    ("_wire",),
    # mail as MTAs treat it
    ("_mail",),
    # one MTA connection without its transport
    ("_engine",),
    ("conditions",),
    # what users subclass
    ("defaults",),
    # the connection's transport and its factory; milters written in messages
    ("message", "protocol"),
    ("__init__",),
    # the MTA's side; processes and what they tell
    ("client", "service"),
    ("connspec", "logs", "metrics", "metrics_page", "workers"),
    # recorded sessions, written, read and played
    ("_records",),
    # kits on top of both sides
    ("remote", "smtp", "testing"),
    # programs that are written for pymilter
    ("pymilter",),
    # the command
    ("_cli",),
    ("__main__",),
)

#: The packages that know the protocol or mail. They know nothing of Twisted.
WITHOUT_TWISTED = {"_wire", "_mail"}


#: All modules, by the names that they have in the table: a package has its own name.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@cache
def tree_of(module: Path) -> ast.Module:
    """
    Parse a source file, once for all the rules.
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


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """
    Yield all statements, those inside others too.
    """
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr):
            yield node
            yield from statements(node)


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    """
    List the dotted names that a module imports at run time, inside functions too.
    """
    return tuple(_imports(tree))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        # An import is a statement: there is none within an expression.
        if isinstance(child, ast.expr) or for_types_only(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from _imports(child)


def inner(dotted: str) -> str | None:
    """
    Name the module of ours that an import is about.

    ``yatxmilter._wire.payloads.Offer`` is about ``_wire.payloads``.
    """
    first, _, rest = dotted.partition(".")
    if first != "yatxmilter":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def package(module: str) -> str:
    """
    Name the package, or the module beside the packages, that a module belongs to.
    """
    return module.partition(".")[0]


class LayerTests(SynchronousTestCase):
    """
    Imports go down.
    """

    def setUp(self) -> None:
        self.modules = {name: tree_of(path) for name, path in MODULES.items()}
        self.layer = {name: row for row, names in enumerate(LAYERS) for name in names}

    def test_table_is_complete(self) -> None:
        """
        The table has every package, and no other one.
        """
        self.assertEqual({package(name) for name in self.modules} ^ self.layer.keys(), set())

    def test_imports_go_down(self) -> None:
        """
        No package imports another one of its own layer or of a higher one.
        """
        wrong = [
            f"{name} imports {used}"
            for name, tree in self.modules.items()
            for used in filter(None, map(inner, imports(tree)))
            if package(used) != package(name)
            and self.layer[package(used)] >= self.layer[package(name)]
        ]
        self.assertEqual(wrong, [])

    def test_no_cycle_within_a_package(self) -> None:
        """
        No module imports, by way of others of its package, itself.
        """
        needs = {
            name: {used for used in filter(None, map(inner, imports(tree))) if used != name}
            for name, tree in self.modules.items()
        }
        free: set[str] = set()
        while ready := {name for name in needs.keys() - free if needs[name] <= free}:
            free |= ready
        self.assertEqual(sorted(needs.keys() - free), [])

    def test_wire_and_mail_need_no_twisted(self) -> None:
        """
        The packages that know the protocol and mail import nothing of Twisted.
        """
        wrong = [
            f"{name} imports {used}"
            for name in sorted(self.modules)
            if package(name) in WITHOUT_TWISTED
            for used in imports(self.modules[name])
            if package(used) == "twisted"
        ]
        self.assertEqual(wrong, [])

    def test_library_needs_only_twisted_and_zope_interface_at_run_time(self) -> None:
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
        used -= {("service._metrics_page", "prometheus_client")}
        self.assertEqual([pair for pair in sorted(used) if pair[1] not in allowed], [])

    def test_imports_are_written_in_full(self) -> None:
        """
        Imports are written in full.
        """
        wrong = [
            name
            for name, tree in self.modules.items()
            for node in statements(tree)
            if isinstance(node, ast.ImportFrom) and node.level
        ]
        self.assertEqual(wrong, [])


class DocstringTests(SynchronousTestCase):
    """
    Files say what they are for, and tests what they promise.
    """

    def test_each_file_with_code_in_library_tests_and_examples_opens_with_docstring(self) -> None:
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

    def test_each_test_has_a_docstring(self) -> None:
        """
        Each test has a docstring.
        """
        wrong = [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
            for path in (ROOT / "tests").rglob("test_*.py")
            for node in statements(tree_of(path))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name.startswith("test_")
            and not ast.get_docstring(node)
        ]
        self.assertEqual(wrong, [])

    def test_no_line_of_the_library_is_hidden_from_coverage(self) -> None:
        """
        No line of the library is hidden from coverage.
        """
        wrong = [name for name, path in MODULES.items() if "pragma: no" in path.read_text()]
        self.assertEqual(wrong, [])
