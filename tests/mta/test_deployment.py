"""
The manual's page on deployment, followed to the letter on a machine of its own, with Debian's
Postfix and its chroot; what systemd does there is done by the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from .control import ROOT
from .postfix import Postfix
from .processes import descendants, require, require_program, wait_until
from .sandbox import Sandbox
from .units import Service, read_unit

PAGE = ROOT / "docs" / "deployment.md"
DEPLOY = ROOT / "examples" / "deploy"
UNIT = DEPLOY / "yatxmilter.service"
INSTALLED_UNIT = "etc/systemd/system/yatxmilter.service"
SOCKET = "var/spool/postfix/yatxmilter/milter.sock"

#: A file that the page shows, with the path that it is to have; or commands.
STEP = re.compile(
    r"^```\{literalinclude\} (?P<source>\S+)\n:caption: (?P<path>/\S+)\n"
    r"|^```\{code-block\} sh\n(?P<commands>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

#: What stands for systemctl: it says what it was told, and does what is Postfix's part.
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>/run/systemctl.log
if [ "$*" = "reload postfix" ]; then exec postfix reload; fi
"""

#: Sends a message from a host that is not this one, as Postfix sees it.
SEND = """
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25, source_address=("127.0.0.2", 0)) as client:
    client.sendmail("a@client.example", ["reader@mta.example.test"], "Subject: letter\\n\\nHi.\\n")
"""


#: What builds the clone there: without a network, it gives the wheel that is made already.
BACKEND = """\
import shutil


def build_wheel(folder, config_settings=None, metadata_directory=None):
    return shutil.copy(WHEEL, folder) and WHEEL


WHEEL = "yatxmilter-1.0.0-py3-none-any.whl"
"""


def make_clone(folder: Path) -> None:
    """
    Make a source folder that pip can install without a network.
    """
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "made"\nbackend-path = ["."]\n'
    )
    (folder / "made.py").write_text(BACKEND)
    make_wheel(folder)


def make_wheel(folder: Path) -> None:
    """
    Make a wheel of this source.
    """
    with zipfile.ZipFile(folder / "yatxmilter-1.0.0-py3-none-any.whl", "w") as wheel:
        for path in sorted((ROOT / "yatxmilter").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(ROOT))
        info = "yatxmilter-1.0.0.dist-info/"
        wheel.writestr(
            info + "METADATA",
            "Metadata-Version: 2.1\nName: yatxmilter\nVersion: 1.0.0\nProvides-Extra: metrics\n",
        )
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            info + "entry_points.txt", "[console_scripts]\nyatxmilter = yatxmilter.__main__:main\n"
        )
        wheel.writestr(info + "RECORD", "")


#: Twisted, zope.interface and prometheus_client, and what they need.
LENT = (
    *("attr", "attrs", "automat", "constantly", "hyperlink", "idna", "incremental", "packaging"),
    *("prometheus_client", "twisted", "typing_extensions", "zope"),
)


class Machine:
    """
    A machine on which the page was followed.

    :ivar service: The service of the unit; ``process``: it, running.
    """

    def __init__(self) -> None:
        Postfix.require_installed()
        for program in ("adduser", "runuser", "setpriv"):
            require_program(program)
        self.sandbox = Sandbox(empty=("/usr/local/src",))
        self.folder = self.sandbox.folder
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._prepare()
            self._follow()
        except BaseException:
            self.sandbox.stop()
            raise

    def stop(self) -> None:
        """
        End it.
        """
        self.sandbox.stop()

    def run(self, script: str) -> str:
        """
        Run commands, which have to succeed, and give what they say.
        """
        result = self.sandbox.run("bash", "-euc", script, environment=self._environment)
        assert result.returncode == 0, f"{script}\n{result.stdout}"
        return result.stdout

    def _prepare(self) -> None:
        # Debian's own configuration of Postfix, with its chroot; and what its package does once.
        postfix = self.folder / "etc" / "postfix"
        shutil.copy("/usr/share/postfix/master.cf.dist", postfix / "master.cf")
        (postfix / "main.cf").write_text(
            "compatibility_level = 3.6\nqueue_directory = /var/spool/postfix\n"
            "myhostname = mta.example.test\nmydestination = mta.example.test\n"
            "inet_interfaces = loopback-only\nmynetworks = 127.0.0.0/8\nalias_maps =\n"
            "smtpd_peername_lookup = no\nmaillog_file = /var/log/mail.log\n"
        )
        os.utime(postfix / "main.cf", (1, 1))
        shutil.chown(self.folder / "var/lib/postfix", "postfix")
        os.chmod(self.folder / "var/mail", 0o1777)
        make_clone(self.folder / "usr/local/src/yatxmilter")
        self._environment = {
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_COMPILE": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        systemctl = self.folder / "usr/local/sbin/systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        self.run("useradd --no-create-home reader; postfix check; postfix start")

    def _follow(self) -> None:
        """
        Do what the page says, in its order.
        """
        for step in STEP.finditer(PAGE.read_text(encoding="utf-8")):
            if step["source"] is not None:
                target = self.folder / step["path"][1:]
                target.parent.mkdir(exist_ok=True, parents=True)
                shutil.copy((PAGE.parent / step["source"]).resolve(), target)
                continue
            self.run(step["commands"])
            if "-m venv" in step["commands"]:
                self._lend_packages()
            if "enable --now yatxmilter" in step["commands"]:
                self.service = Service(self.sandbox, self.folder / INSTALLED_UNIT)
                self.begin()

    def _lend_packages(self) -> None:
        # What pip would have got from the network: what the tests themselves use. It is copied, as
        # the service's user may not look into the folder that the tests are in.
        (site,) = (self.folder / "opt/yatxmilter/lib").glob("python*/site-packages")
        ours = "python{}.{}".format(*sys.version_info)
        require(site.parent.name == ours, f"Debian's is {site.parent.name}, the tests' {ours}")
        leave = shutil.ignore_patterns("test", "__pycache__")
        for name in LENT:
            for place in {*map(sysconfig.get_path, ("purelib", "platlib"))}:
                if (Path(place) / name).is_dir():
                    shutil.copytree(
                        Path(place) / name, site / name, dirs_exist_ok=True, ignore=leave
                    )
                elif (Path(place) / f"{name}.py").exists():
                    shutil.copy(Path(place) / f"{name}.py", site)

    def send(self) -> str:
        """
        Send a message from outside, and give it as it was delivered.
        """
        mailbox = self.folder / "var/mail/reader"
        mailbox.unlink(missing_ok=True)
        self.run(f"python3 - <<'END'\n{SEND}\nEND")
        wait_until(lambda: mailbox.exists() and "Hi." in mailbox.read_text(), "the message")
        return mailbox.read_text()

    def begin(self, *tracer: str, options: str = "") -> None:
        """
        Start the service, and wait until it is ready.

        :param tracer: A command that runs it.
        :param options: More options than the unit gives it.
        """
        self.usual = not tracer and not options
        log = self.service.log
        (command,) = self.service.settings["ExecStart"]
        self.process = process = self.service.start(*tracer, ExecStart=f"{command} {options}")
        socket = self.folder / SOCKET
        if options:
            wait_until(lambda: socket.exists() or process.poll() is not None, "the service")
        else:
            wait_until(
                lambda: "Ready, listening" in log.read_text() or process.poll() is not None,
                "the service",
            )
        assert process.poll() is None, log.read_text()

    def settle(self) -> None:
        """
        Have the service run as it usually does, whatever a test has left.
        """
        assert self.process is not None
        if self.process.poll() is None and self.usual:
            return
        if self.process.poll() is None:
            os.kill(self.main_pid, signal.SIGKILL)
            self.process.wait(20)
        self.begin()

    def end(self) -> None:
        """
        End the service as systemd does.
        """
        assert self.process is not None
        os.kill(self.main_pid, signal.SIGTERM)
        status = self.process.wait(20)
        assert status == 0, (status, self.service.log.read_text())

    @property
    def main_pid(self) -> int:
        """
        The process that systemd would know as the service.
        """
        assert self.process is not None
        for pid in (self.process.pid, *descendants(self.process.pid)):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"bin/yatxmilter") for word in words[:3]):
                return pid
        raise AssertionError(self.service.log.read_text())


class DeploymentTests(SynchronousTestCase):
    """
    The machine as it is when the page was followed.
    """

    machine: ClassVar[Machine | None] = None
    failure: ClassVar[BaseException | None] = None

    def setUp(self) -> None:
        # Not in setUpClass, which trial does not call for a class on its own.
        if DeploymentTests.failure is not None:
            # It takes its time, and would fail in the same way.
            raise DeploymentTests.failure
        if DeploymentTests.machine is None:
            try:
                DeploymentTests.machine = Machine()
            except BaseException as failure:
                DeploymentTests.failure = failure
                raise
        self.here: Any = DeploymentTests.machine
        self.here.settle()

    @classmethod
    def tearDownClass(cls) -> None:
        if cls.machine is not None:
            cls.machine.stop()
            cls.machine = None

    def analyze(self, *words: str) -> str:
        """
        Have systemd's tool look at the unit where it is installed.
        """
        require(shutil.which("systemd-analyze") is not None, "systemd is not installed")
        result = self.here.sandbox.run("systemd-analyze", "--no-pager", *words)
        self.assertEqual(result.returncode, 0, result.stdout)
        return str(result.stdout)

    def test_mail_is_filtered(self) -> None:
        """
        Mail from outside goes through the milter, though smtpd runs in its chroot.
        """
        services = self.here.run("postconf -M smtp/inet")
        self.assertEqual(services.split()[4], "y")
        self.assertIn("X-External: yes", self.here.send())
        log = (self.here.folder / "var/log/mail.log").read_text()
        self.assertNotIn("warning: ", log)

    def test_who_may_connect(self) -> None:
        """
        The socket is the milter's and of Postfix's group, without the milter's user being in that;
        Postfix's user may connect, another one may not even see it.
        """
        users = self.here.run("stat --format='%U %G %a' /" + SOCKET)
        self.assertEqual(users.strip(), "yatxmilter postfix 660")
        self.assertEqual(self.here.run("id -nG yatxmilter").strip(), "yatxmilter")
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('/{SOCKET}')"
        self.here.run(f'runuser -u postfix -- /usr/bin/python3 -c "{connect}"')
        with self.assertRaisesRegex(AssertionError, "PermissionError"):
            self.here.run(f'runuser -u nobody -- /usr/bin/python3 -c "{connect}"')

    def test_what_is_the_service_s(self) -> None:
        """
        The service owns its state and the socket's folder, and can change nothing else.
        """
        for path in ("/opt/yatxmilter", "/etc/yatxmilter", "/etc/systemd/system"):
            owned = self.here.run(f"find {path} ! -type l \\( ! -user root -o -perm /022 \\)")
            self.assertEqual(owned, "")
        folders = "/var/lib/yatxmilter /var/spool/postfix/yatxmilter"
        self.assertEqual(
            self.here.run(f"stat --format='%U %G %a' {folders}"),
            "yatxmilter yatxmilter 750\nyatxmilter postfix 2710\n",
        )

    def test_reload_and_restart(self) -> None:
        """
        What the unit sends for a reload, and the restart of the page, do what they should.
        """
        self.assertEqual(self.here.service.settings["ExecReload"], ["/bin/kill -HUP $MAINPID"])
        os.kill(self.here.main_pid, signal.SIGHUP)
        log = self.here.service.log
        wait_until(lambda: log.read_text().count("Reloaded, ") == 2, "both workers to reload")
        self.here.end()
        self.assertFalse((self.here.folder / SOCKET).exists())
        self.here.begin()
        self.assertIn("X-External: yes", self.here.send())

    def test_left_over_socket(self) -> None:
        """
        After a crash, which leaves the socket's file, it starts again.
        """
        os.kill(self.here.main_pid, signal.SIGKILL)
        self.here.process.wait(20)
        self.assertTrue(stat.S_ISSOCK((self.here.folder / SOCKET).stat().st_mode))
        self.here.begin()
        self.assertIn("X-External: yes", self.here.send())

    def test_service_writes_to_the_new_file_of_logrotate(self) -> None:
        """
        Where the service writes a file, logrotate makes a new one, and the signal that it sends has
        the service write to that.
        """
        require_program("logrotate")
        self.here.end()
        file = self.here.folder / "var/log/yatxmilter/yatxmilter.log"
        self.here.begin(options="--log-file /var/log/yatxmilter/yatxmilter.log")
        wait_until(lambda: "Ready, listening" in file.read_text(), "the log's file")
        self.here.run("logrotate --force /etc/logrotate.d/yatxmilter")
        told = (self.here.folder / "run/systemctl.log").read_text().splitlines()[-1]
        self.assertEqual(told, "kill --signal=USR1 --kill-who=main yatxmilter.service")
        self.assertIn("Ready, listening", file.with_suffix(".log.1").read_text())
        os.kill(self.here.main_pid, signal.SIGUSR1)
        os.kill(self.here.main_pid, signal.SIGHUP)
        wait_until(lambda: file.exists() and "eload" in file.read_text(), "the new file")

    def test_statuses_in_the_table_are_those_of_the_service(self) -> None:
        """
        The statuses in the page's table are those of the service, and the one for which systemd
        leaves it is that of a wrong configuration.
        """
        page = PAGE.read_text(encoding="utf-8")
        self.assertEqual(self.here.service.settings["RestartPreventExitStatus"], ["2"])
        broken = self.here.folder / "opt/yatxmilter/milters/broken.py"
        broken.write_text(
            "from yatxmilter import Milter, MilterFactory\n"
            "class Broken(MilterFactory):\n"
            "    def start(self):\n        raise OSError('no database')\n"
            "def broken():\n    return Broken(Milter)\n"
        )
        serve = "/opt/yatxmilter/bin/yatxmilter serve"
        state = "unix:/var/lib/yatxmilter/x.sock"
        for status, words, said in (
            (2, "--config /etc/yatxmilter/none.toml", "none.toml"),
            (2, f"--listen {state} --milter header_tagger:Tager", "no 'Tager'"),
            (3, "--listen unix:/etc/x.sock --milter header_tagger:HeaderTagger", "/etc/x.sock"),
            (4, f"--listen {state} --milter broken:broken", "no database"),
        ):
            service = Service(self.here.sandbox, self.here.folder / INSTALLED_UNIT)
            service.log = self.here.folder / "exit.log"
            process = service.start(ExecStart=f"{serve} {words}")
            self.assertEqual(process.wait(20), status, service.log.read_text())
            self.assertIn(said, service.log.read_text())
            self.assertIn(f"| {status} |", page)

    def test_systemd_finds_nothing_wrong_with_units_and_programs_that_they_start(self) -> None:
        """
        systemd finds nothing wrong with the units, and the programs that they start.
        """
        said = self.analyze("verify", "/" + INSTALLED_UNIT)
        socket = INSTALLED_UNIT.replace(".service", ".socket")
        said += self.analyze("verify", "/" + socket)
        self.assertNotIn("yatxmilter", said)

    def test_by_systemds_own_reckoning_service_is_exposed_to_less_than_page_says(self) -> None:
        """
        By systemd's own reckoning the service is exposed to less than the page says.
        """
        self.analyze("security", "--offline=true", "--threshold=20", "/" + INSTALLED_UNIT)
        self.assertIn("rates the service below 2 of 10", PAGE.read_text(encoding="utf-8"))

    def test_locked_in_it_can_work(self) -> None:
        """
        The service calls nothing that the unit forbids: no system call, no memory that is written
        and executed, no kind of socket.
        """
        require_program("strace")
        trace = self.here.folder / "var/lib/yatxmilter/trace"
        self.here.end()
        tracer = ["strace", "-f", "-qq", "-o", "/var/lib/yatxmilter/trace"]
        self.here.begin(*tracer)
        self.here.send()
        os.kill(self.here.main_pid, signal.SIGHUP)
        log = self.here.service.log
        wait_until(lambda: log.read_text().count("Reloaded, ") == 2, "both workers to reload")
        self.here.end()
        calls = re.findall(r"^\d+ +(\w+)\((.*)", trace.read_text(errors="replace"), re.MULTILINE)
        called = {name for name, _ in calls}
        self.assertIn("accept4", called)
        unit = read_unit(self.here.folder / INSTALLED_UNIT)["Service"]
        allowed: set[str] = set()
        for words in unit["SystemCallFilter"]:
            named = set().union(*map(self.calls_of, words.removeprefix("~").split()))
            allowed = allowed - named if words.startswith("~") else allowed | named
        self.assertEqual(called - allowed, set())
        executable = [text for name, text in calls if name in ("mmap", "mprotect")]
        for text in executable:
            self.assertFalse("PROT_WRITE" in text and "PROT_EXEC" in text, text)
        self.assertEqual([one for one in calls if one[0] == "mprotect" and "EXEC" in one[1]], [])
        kinds = {text.split(",")[0] for name, text in calls if name == "socket"}
        self.assertLessEqual(kinds, set(unit["RestrictAddressFamilies"][0].split()))

    def calls_of(self, group: str) -> set[str]:
        """
        List the system calls in one of systemd's groups, those of the groups in it included.
        """
        calls = set()
        for line in self.analyze("syscall-filter", group).splitlines():
            word = line.strip()
            if word.startswith("@") and word != group:
                calls |= self.calls_of(word)
            elif word and not word.startswith(("#", "@")):
                calls.add(word)
        return calls


class PageTests(SynchronousTestCase):
    """
    The page and the files that it shows.
    """

    def test_every_file_is_shown(self) -> None:
        """
        Each file for a host's own deployment is on the page.
        """
        page = PAGE.read_text(encoding="utf-8")
        shared = {"alerts.yml", "grafana-dashboard.json", "haproxy.cfg"}
        files = {path.name for path in DEPLOY.iterdir()} - shared
        self.assertEqual({name for name in files if f"examples/deploy/{name}" not in page}, set())
