"""
The image of a container, built by buildah; its base image is made of this machine's programs, so
that no registry is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.mta.processes import LOOPBACK, descendants, is_listening, start, stop, wait_until
from tests.ports import free_ports
from tests.shipping.commands import ROOT, run, set_up

CONTAINERFILE = ROOT / "examples" / "deploy" / "Containerfile"

#: What a base image has besides its programs.
BASE = """\
FROM scratch
COPY . /
ENV PATH=/usr/sbin:/usr/bin
"""


class ContainerTests(SynchronousTestCase):
    """
    ``examples/deploy/Containerfile``.
    """

    def setUp(self) -> None:
        self.folder = set_up(self, "buildah")
        self.buildah = (
            *("buildah", "--root", self.folder / "store", "--runroot", self.folder / "run"),
            *("--storage-driver", "vfs"),
        )

    def build(self, name: str, file: Path, context: Path, *words: str) -> None:
        """
        Build an image, without what only a daemon or a newer kernel could do.
        """
        run(*self.buildah, "build", "--isolation=chroot", "-t", name, "-f", file, *words, context)

    def base(self) -> Path:
        """
        Make the folders of a base image without its ``/usr``.
        """
        base = self.folder / "base"
        for name in ("etc", "proc", "sys", "dev", "usr", "var/mail", "root", "tmp"):
            (base / name).mkdir(parents=True)
        (base / "tmp").chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib64"):
            (base / name).symlink_to(f"usr/{name}")
        for name in ("passwd", "group", "shadow", "gshadow", "login.defs", "ld.so.cache"):
            shutil.copy(f"/etc/{name}", base / "etc")
        shutil.copytree("/etc/ssl", base / "etc" / "ssl", symlinks=True)
        (self.folder / "Base").write_text(BASE)
        return base

    def test_image_can_be_built_and_runs_a_milter_without_root(self) -> None:
        """
        The image can be built, and what it runs is a milter that is not root's, and that ends when
        it is told to.
        """
        self.build("base", self.folder / "Base", self.base())
        usr = "--volume=/usr:/usr:ro"
        self.build("milters", CONTAINERFILE, ROOT, "--build-arg=PYTHON=localhost/base", usr)
        image = json.loads(run(*self.buildah, "inspect", "--type=image", "milters"))
        config = image["OCIv1"]["config"]
        self.assertEqual(config["User"], "milter")
        (port,) = free_ports(1)
        listening = f"inet:{port}@{LOOPBACK}"
        words = [*config["Entrypoint"], *config["Cmd"]]
        words = [word.replace("inet:8891@0.0.0.0", listening) for word in words]
        self.assertIn(listening, words)
        container = run(*self.buildah, "from", "--pull-never", "milters").strip()
        log = self.folder / "log"
        inside = [*self.buildah, "run", "--isolation=chroot", usr, container, "--"]
        process = start([*inside, *words], log)
        self.addCleanup(stop, process)
        wait_until(lambda: is_listening(port) or process.poll() is not None, "the container")
        self.assertIsNone(process.poll(), log.read_text())
        self.assertEqual(run(*inside, "/usr/bin/id", "-un").strip(), "milter")
        letter = self.folder / "letter.eml"
        letter.write_text("Subject: hello\n\nHello.\n")
        said = run(sys.executable, "-m", "yatxmilter", "send", "--to", listening, letter, cwd=ROOT)
        self.assertIn("X-External", said)
        # Python, and not one of those that have its command line on theirs.
        (served,) = [
            pid
            for pid in descendants(process.pid)
            if "python" in Path(f"/proc/{pid}/exe").resolve().name
        ]
        os.kill(served, getattr(signal, config["StopSignal"]))
        self.assertEqual(process.wait(20), 0, log.read_text())
