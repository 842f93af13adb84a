"""
Whose the instructions are that callgrind counts: of which Python function.

For the kernel's profiler Python 3.12 and newer can give each function a few bytes of machine code
of its own, and write down where they are (``-X perf``). Callgrind tells with each count which
functions led there, so that the nearest of those bytes tells the Python function. Calls from Python
to Python cost more that way than they do else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from pathlib import Path

#: How many callers callgrind tells: a built-in function calls others, some deep.
CALLERS = 12
# What callgrind takes for the address of a function may be a little behind its bytes.
_BEHIND = 16


class FunctionMap:
    """
    Which Python function has its bytes where.

    :param text: What Python writes: a line for each, address and size in hexadecimal, and a name.
    """

    def __init__(self, text: str) -> None:
        rows = []
        for line in text.splitlines():
            address, size, name = line.split(" ", 2)
            rows.append((int(address, 16), int(size, 16), name))
        self._rows = sorted(rows)
        self._addresses = [row[0] for row in self._rows]

    def find(self, address: int) -> str | None:
        """
        Give the name of the function at an address; ``None`` where there is none.
        """
        place = bisect_right(self._addresses, address) - 1
        if place < 0:
            return None
        begin, size, name = self._rows[place]
        return shorter(name) if address < begin + size + _BEHIND else None


def shorter(name: str) -> str:
    """
    Write a function as its file, the folder of that, and its name.
    """
    found = re.fullmatch(r"py::(.*?):(/.*)", name)
    return f"{'/'.join(Path(found[2]).parts[-2:])} {found[1]}" if found else name


def attribute(path: Path, functions: FunctionMap) -> Counter[str]:
    """
    Read one of callgrind's files, made with ``--separate-callers``: instructions by function.

    What no Python function leads to is given by the name that callgrind has for it.
    """
    found: Counter[str] = Counter()
    names: dict[str, str] = {}
    owner = ""
    after_calls = False
    with path.open(errors="replace") as lines:
        for line in lines:
            name = re.match(r"(c?fn)=\((\d+)\)(?: (.*))?", line)
            if name:
                # A name is written once; later only its number.
                if name[3]:
                    names[name[2]] = name[3].strip()
                if name[1] == "fn":
                    owner = _owner(names[name[2]], functions)
            elif line.startswith("calls="):
                after_calls = True
            elif re.match(r"[\d+*-]", line):
                # After a call stands what the called function counted, which has a line of its own.
                if not after_calls:
                    found[owner] += int(line.split()[1])
                after_calls = False
    return found


def _owner(chain: str, functions: FunctionMap) -> str:
    for part in chain.split("'"):
        if part.startswith("0x"):
            name = functions.find(int(part, 16))
            if name is not None:
                return name
    return chain.partition("'")[0]
