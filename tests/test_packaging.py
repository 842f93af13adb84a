"""
The package's metadata, and the other files that say the same once more.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import yatxmilter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def metadata() -> dict[str, Any]:
    """
    Read what pyproject.toml says of the project.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def requirement(line: str) -> tuple[str, str, str]:
    """
    Take a requirement apart: name, version, marker.
    """
    match = re.fullmatch(r"([\w.-]+)[>=]=([\d.]+); (.*)", line)
    assert match is not None, line
    name, version, marker = match.groups()
    return name, version.removesuffix(".0"), marker.replace("'", '"')


class MetadataTests(SynchronousTestCase):
    """
    What is written twice is the same twice.
    """

    def setUp(self) -> None:
        self.project = metadata()["project"]
        self.tox = configparser.ConfigParser()
        self.tox.read(ROOT / "tox.ini")

    def test_package_names_the_version_that_its_metadata_has(self) -> None:
        """
        The package names the version that its metadata has.
        """
        self.assertEqual(yatxmilter.__version__, self.project["version"])

    def test_lowest_versions_are_those_asked_for(self) -> None:
        """
        The constraints for the lowest versions are what the package asks for at least.
        """
        lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
        lowest = [requirement(line) for line in lines if line and not line.startswith("#")]
        self.assertEqual(lowest, [requirement(line) for line in self.project["dependencies"]])

    def test_tox_has_every_python(self) -> None:
        """
        tox tries each Python that the package names, and no other one.
        """
        pattern = re.compile(r"Programming Language :: Python :: 3\.(\d+)")
        named = [match[1] for match in map(pattern.fullmatch, self.project["classifiers"]) if match]
        listed = re.match(r"py\{([\d,]+)\}", self.tox["tox"]["envlist"])
        assert listed is not None
        self.assertEqual([f"3{minor}" for minor in named], listed[1].split(","))

    def test_what_is_not_compiled_is_there(self) -> None:
        """
        The modules that are left out when the engine is compiled are there: one that was given
        another name would be compiled.
        """
        tree = ast.parse((ROOT / "setup.py").read_text())
        left = {
            target.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        paths = [
            f"{folder}/{name}.py" for folder, names in left["INTERPRETED"].items() for name in names
        ]
        missing = [path for path in paths + left["ALSO_COMPILED"] if not (ROOT / path).is_file()]
        self.assertEqual(missing, [])

    def test_one_version_of_the_linter(self) -> None:
        """
        tox lints with the version that contributors install.
        """
        self.assertIn(
            self.tox["testenv:lint"]["deps"], self.project["optional-dependencies"]["dev"]
        )

    def test_pytest_finds_the_fixture(self) -> None:
        """
        Installed, pytest finds the plugin with the fixture by itself.
        """
        self.assertEqual(
            self.project["entry-points"]["pytest11"], {"yatxmilter": "pytest_yatxmilter"}
        )
        modules = metadata()["tool"]["setuptools"]["py-modules"]
        self.assertEqual(modules, ["pytest_yatxmilter"])
