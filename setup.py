"""
For tools that look for this file. The metadata is in C{pyproject.toml}; here is only what cannot be
said there: how the engine is compiled.

Nothing is compiled unless C{YATXMILTER_COMPILE} is set to 1. Then mypyc makes extension modules of
the modules that each packet goes through. It reads the same source, and milters stay what they are.
It needs a C compiler and Python's headers.
"""

import os
import sys
from glob import glob
from typing import Any

from setuptools import setup

# What is left as it is, of the packages that are compiled. Users call some of it with values of
# their own: it checks these itself, and says more of what is wrong than a compiled function, which
# takes nothing that is not of the annotated type. Of some they make subclasses, and some looks at
# frames or functions of Python's.
INTERPRETED = {
    "yatxmilter/_engine": [
        "__init__",
        "awaitables",
        "conditions",
        "context",
        "decorators",
        "explaining",
        "legacy",
        "on_error",
        "threads",
    ],
    "yatxmilter/_wire": ["__init__", "actions", "replies"],
}
ALSO_COMPILED = ["yatxmilter/protocol/_accepting.py", "yatxmilter/protocol/_descriptor_set.py"]


def modules() -> list[str]:
    """
    Give the paths of the modules that are compiled.
    """
    left = {f"{folder}/{name}.py" for folder, names in INTERPRETED.items() for name in names}
    return ALSO_COMPILED + sorted(
        {path for folder in INTERPRETED for path in glob(f"{folder}/*.py")} - left
    )


def compiled() -> dict[str, Any]:
    """
    Give what setuptools is told if the engine is compiled.
    """
    if sys.argv[1] in ("egg_info", "dist_info", "sdist"):
        # Whoever builds it asks what that needs before it is there.
        needed = ["mypy>=1.19", "mypy-zope>=1.0.14", "twisted>=24.3", "zope.interface>=7.1"]
        return {"setup_requires": needed}
    from mypyc.build import mypycify

    return {"ext_modules": mypycify(modules(), opt_level="3", group_name="yatxmilter")}


setup(**(compiled() if os.environ.get("YATXMILTER_COMPILE") == "1" else {}))
