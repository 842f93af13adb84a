"""
The Debian package: what it says once more, and that it can be built, installed, used and removed.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.mta.sandbox import Sandbox
from tests.mta.units import Service
from tests.shipping.commands import ROOT, run, set_up

DEBIAN = ROOT / "debian"
PAGE = ROOT / "docs" / "deployment.md"

#: An environment is nothing for Debian's own archive, where nothing lies in /opt, and where scripts
#: begin with the system's Python. It is a package of a host's own, and the milters in it are to be
#: changed like a configuration.
ENVIRONMENT = "dir-or-file-in-opt,wrong-path-for-interpreter,non-etc-file-marked-as-conffile"


class SourceTests(SynchronousTestCase):
    """
    The files that the package is made from.
    """

    def test_package_has_the_version_of_what_is_in_it(self) -> None:
        """
        The package has the version of what is in it.
        """
        version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
        latest = re.match(r"yatxmilter \((.*)\)", (DEBIAN / "changelog").read_text())
        assert version is not None and latest is not None
        self.assertEqual(latest[1], version[1])

    def test_same_as_the_page(self) -> None:
        """
        It makes the same user and the same folder as the manual's page on deployment.
        """
        page, script = PAGE.read_text("utf-8"), (DEBIAN / "yatxmilter.postinst").read_text()
        for words in re.findall(r"^(?:adduser|install -d) .*", page, re.MULTILINE):
            self.assertIn(words.replace("adduser", "adduser --quiet"), script)
        rules = (DEBIAN / "rules").read_text()
        for source, target in re.findall(r"^\tinstall -D -m 644 (\S+) (\S+)", rules, re.MULTILINE):
            self.assertTrue((ROOT / source).exists(), source)
            path = target.replace("$(TARGET)", "/opt/yatxmilter").replace("$(ROOT_FOLDER)", "")
            self.assertIn(path.replace("/lib/systemd/", "/etc/systemd/"), page)


class PackageTests(SynchronousTestCase):
    """
    The package itself, in a sandbox.
    """

    def setUp(self) -> None:
        self.folder = set_up(self, "dpkg-buildpackage", "dh", "lintian")

    def build(self) -> Path:
        """
        Build it out of what a clone would have, and have lintian look at it.
        """
        source = self.folder / "yatxmilter"
        source.mkdir()
        files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
        listed = self.folder / "files"
        listed.write_text(
            "".join(f"{one}\n" for one in files.splitlines() if (ROOT / one).exists())
        )
        archive = self.folder / "source.tar"
        run("tar", "-cf", archive, "-C", ROOT, "-T", listed)
        run("tar", "-xf", archive, "-C", source)
        # As on a Debian of anybody's, whichever Python the tests are for.
        clean = ("env", "--unset=PYTHON", "--unset=REQUIREMENT")
        run(*clean, "dpkg-buildpackage", "-us", "-uc", "-b", cwd=source)
        (changes,) = self.folder.glob("*.changes")
        run(
            *("lintian", "--allow-root", "--fail-on", "error"),
            *("--suppress-tags", ENVIRONMENT, changes),
        )
        (package,) = self.folder.glob("*.deb")
        return package

    def test_package_can_be_built_installed_run_and_purged(self) -> None:
        """
        dpkg-buildpackage builds it, lintian finds no error, dpkg installs it with its user and
        folders; the command runs, the service serves, and a purge leaves nothing behind.
        """
        package = self.build()
        sandbox = Sandbox(copied=("/usr/lib/systemd/system",), empty=("/usr/share/doc",))
        self.addCleanup(sandbox.stop)

        def inside(script: str) -> str:
            return run(*sandbox.command("bash", "-euc", script))

        database = sandbox.folder / "var/lib/dpkg"
        for name in ("info", "updates", "triggers", "parts"):
            (database / name).mkdir(parents=True)
        (database / "status").write_bytes(Path("/var/lib/dpkg/status").read_bytes())
        inside(f"dpkg -i {package}")
        demo = inside("cd / && /opt/yatxmilter/bin/yatxmilter demo")
        self.assertIn("yatxmilter", inside("/opt/yatxmilter/bin/pip list"))
        self.assertTrue(demo)
        self.assertEqual(
            inside("stat --format='%U %G %a' /var/spool/postfix/yatxmilter"),
            "yatxmilter postfix 2710\n",
        )
        service = Service(sandbox, sandbox.folder / "usr/lib/systemd/system/yatxmilter.service")
        process = service.start()
        service.wait_until_ready(process)
        inside("pkill -TERM -o -u yatxmilter")
        self.assertEqual(process.wait(20), 0, service.log.read_text())
        inside("dpkg --purge yatxmilter")
        left = inside(
            "ls -d /opt/yatxmilter /etc/yatxmilter /var/lib/yatxmilter"
            " /var/spool/postfix/yatxmilter 2>/dev/null || true"
        )
        self.assertEqual(left, "")
