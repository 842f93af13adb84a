"""
A machine of its own for a test, as far as what is installed on it goes.

It has this machine's programs and libraries, but its own ``/etc``, ``/opt``, ``/run``,
``/usr/local/sbin``, ``/var/lib``, ``/var/log``, ``/var/mail``, Postfix's queue, loopback interface
and processes. So the commands of a manual can be run in it as they stand, by root, and nothing of
it is left at the end.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .processes import descendants, require, require_program, require_root, start, stop, wait_until

#: The Python that is ``python3`` in it: what is tested in it is for Debian as it stands.
DEBIANS = "/usr/bin/python3"
#: What is copied: its files are there, and may be changed.
_COPIED = ("/etc", "/var/spool/postfix")
#: What is empty, but for the folders named with it.
_EMPTY = {
    "/opt": (),
    "/run": ("lock",),
    "/usr/local/sbin": (),
    "/var/lib": ("logrotate", "postfix"),
    "/var/log": (),
    "/var/mail": (),
}

_BEGIN = """
set -eu
here=$1; shift
for path in "$@"; do mount --bind "$here$path" "$path"; done
ip link set lo up 2>/dev/null || "$PYTHON" -c '
import fcntl, socket, struct
with socket.socket() as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"lo", 0x41))
'
touch "$here/ready"
exec sleep infinity
"""


class Sandbox:
    """
    One.

    :param copied: More folders that are copied; ``empty``: that are empty, of those that exist.
    :ivar folder: Where its files are, seen from outside: ``folder / "etc"`` is its ``/etc``.
    """

    def __init__(self, *, copied: tuple[str, ...] = (), empty: tuple[str, ...] = ()) -> None:
        require_root()
        require_program("unshare")
        require_program("nsenter")
        self._temporary = tempfile.TemporaryDirectory(prefix="yatxmilter-sandbox-")
        self.folder = Path(self._temporary.name)
        self.folder.chmod(0o755)
        copied = (*_COPIED, *copied)
        made = {**_EMPTY, **dict.fromkeys(empty, ())}
        for path in copied:
            target = self.folder / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", path, target], check=True)
        for path, folders in made.items():
            for name in ("", *folders):
                (self.folder / path[1:] / name).mkdir(parents=True, exist_ok=True)
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHON": DEBIANS,
            "LC_ALL": "C.UTF-8",
            "HOME": "/root",
        }
        (self.folder / "usr/local/sbin/python3").symlink_to(DEBIANS)
        output = self.folder / "sandbox.log"
        self._process = start(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
            + ["bash", "-c", _BEGIN, "bash", str(self.folder), *copied, *made],
            output,
            {"PYTHON": DEBIANS},
        )
        ready = self.folder / "ready"
        wait_until(lambda: ready.exists() or self._process.poll() is not None, "the sandbox")
        require(ready.exists(), f"namespaces cannot be made here: {output.read_text()}")
        (self._first,) = descendants(self._process.pid)

    def command(self, *words: str | Path) -> list[str]:
        """
        Give the command that runs another one inside.
        """
        inside = ["nsenter", f"--target={self._first}", "--mount", "--net", "--pid"]
        return [*inside, "--wd=/", *map(str, words)]

    def run(
        self, *words: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """
        Run a command to its end; it may fail.
        """
        return subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self._environment, **(environment or {})},
            timeout=120,
        )

    def start(
        self, *words: str | Path, output: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """
        Start a command that stays.
        """
        return start(self.command(*words), output, {**self._environment, **(environment or {})})

    def stop(self) -> None:
        """
        End all that runs in it, and remove its files.
        """
        stop(self._process, patience=0)
        self._temporary.cleanup()
