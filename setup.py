"""
For tools that look for this file. The metadata is in C{pyproject.toml}; here is only what cannot be
said there: how the engine is compiled.

Nothing is compiled unless C{YATXMILTER_COMPILE} is set to 1. Then mypyc makes extension modules of
those modules that each packet goes through. It reads the same source, and milters stay what they
are. It needs a C compiler and Python's headers.
"""

import os
import sys
from glob import glob
from typing import Any

from setuptools import setup

# What users call with values of their own checks these itself, and says more of what is wrong than
# a compiled function, which refuses what is not of the annotated type. What they subclass, or what
# looks at frames of Python's, cannot be compiled either.
INTERPRETED = {
    "_engine": ("awaitables", "conditions", "context", "decorators", "explaining", "legacy")
    + ("on_error", "threads"),
    "_wire": ("actions", "replies"),
}
COMPILED = sorted(
    {path for package in INTERPRETED for path in glob(f"yatxmilter/{package}/*.py")}
    - {
        f"yatxmilter/{package}/{name}.py"
        for package in INTERPRETED
        for name in INTERPRETED[package]
    }
    - {f"yatxmilter/{package}/__init__.py" for package in INTERPRETED}
    | {"yatxmilter/protocol/_accepting.py", "yatxmilter/protocol/_descriptor_set.py"}
)


def compiled() -> dict[str, Any]:
    """
    Give what setuptools is told if the engine is compiled.
    """
    needed = ["mypy>=1.19", "mypy-zope>=1.0.14", "twisted>=24.3", "zope.interface>=7.1"]
    if sys.argv[1:2] in (["egg_info"], ["dist_info"], ["sdist"]):
        # Builders ask what is needed before it is there.
        return {"setup_requires": needed}
    from mypyc.build import mypycify

    return {"ext_modules": mypycify(COMPILED, opt_level="3", group_name="yatxmilter")}


setup(**(compiled() if os.environ.get("YATXMILTER_COMPILE") == "1" else {}))
