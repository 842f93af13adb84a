"""
``yatxmilter doctor`` on configurations of a real Postfix and a real Sendmail, most of them wrong.

For each one there is what doctor says, and what the MTA itself does with it: the two must agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from tests.ports import free_ports

from .control import ROOT
from .mta import Addresses, Mta
from .postfix import Postfix
from .processes import LOOPBACK, start, stop, wait_until
from .sendmail import Sendmail
from .smtp import Disconnected, SmtpClient

#: Milters of several kinds, on the sockets of a folder and on a port.
MILTERS = """
import os, socket, sys
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from yatxmilter import Milter, MilterFactory, MilterProtocolFactory

class Asking(Milter):
    def xxfi_negotiate(self, actions, steps):
        self.smfi_setsymlist(0, "j {if_name}")

class HangingUp(Protocol):
    def dataReceived(self, data):
        self.transport.loseConnection()

class Greeting(Protocol):
    def connectionMade(self):
        self.transport.write(b"220 mail.example.com ESMTP\\r\\n")

folder, port = sys.argv[1], int(sys.argv[2])
good = MilterProtocolFactory(MilterFactory(Milter))
factories = {
    "good": good, "closed": good, "inner/good": good,
    "asking": MilterProtocolFactory(MilterFactory(Asking)),
    "hangs-up": Factory.forProtocol(HangingUp),
    "silent": Factory.forProtocol(Protocol),
    "greeting": Factory.forProtocol(Greeting),
}
for name, factory in factories.items():
    reactor.listenUNIX(f"{folder}/{name}", factory, mode=0o600 if name == "closed" else 0o666)
left = socket.socket(socket.AF_UNIX)
left.bind(f"{folder}/left-over")
os.chmod(f"{folder}/left-over", 0o666)
left.close()
reactor.listenTCP(port, good, interface="127.0.0.1")
reactor.callWhenRunning(lambda: open(f"{folder}/ready", "w").close())
reactor.run()
"""


class Kind(NamedTuple):
    """
    A kind of configuration.

    :ivar setting: Of the milter; ``SOCKETS`` is the folder of the sockets, ``PORT`` that of a
        milter, ``FREE`` one where nobody listens.
    :ivar check: What doctor says, with the level.
    :ivar reply: What Postfix answers to MAIL; 0 if it hangs up.
    :ivar chroot: Whether the service runs in a chroot.
    :ivar more: What else ``-o`` has.
    """

    setting: str
    check: str
    reply: int
    chroot: str = "n"
    more: str = ""


KINDS = {
    # What is right.
    "port": Kind("inet:127.0.0.1:PORT", "ok answer", 250),
    "socket": Kind("unix:SOCKETS/good", "ok answer", 250),
    "in_chroot": Kind("unix:milters/good", "ok answer", 250, "y"),
    "from_chroot": Kind("unix:/milters/good", "ok answer", 250, "y"),
    "without_chroot": Kind("unix:milters/good", "ok answer", 250),
    "asking": Kind("unix:SOCKETS/asking", "warning macro-unknown", 250),
    # The address.
    "swapped": Kind("inet:PORT@127.0.0.1", "error address", 0),
    "no_port": Kind("inet:127.0.0.1", "error address", 0),
    "inet6": Kind("inet6:PORT@127.0.0.1", "error address", 451),
    "bare_path": Kind("SOCKETS/good", "error address", 451),
    "quoted": Kind('"inet:127.0.0.1:PORT"', "error address", 451),
    "no_transport": Kind("127.0.0.1:PORT", "error address", 451),
    "ipv6": Kind("inet:[::1]:PORT", "error address", 451),
    # What is in the braces.
    "option": Kind("{ unix:SOCKETS/good, default_acton=accept }", "error address", 0),
    "blanks": Kind("{ unix:SOCKETS/good, default_action = accept }", "error address", 0),
    "brace": Kind("{ unix:SOCKETS/good", "error list-syntax", 0),
    "no_time": Kind("{ unix:SOCKETS/good, command_timeout=0 }", "error address", 0),
    "protocol": Kind("{ unix:SOCKETS/good, protocol=7 }", "error address", 451),
    "no_address": Kind("{}", "error address", 0),
    "short": Kind("{ unix:SOCKETS/good, content_timeout=5s }", "warning timeout-short", 250),
    # The way.
    "outside": Kind("unix:SOCKETS/good", "error socket-chroot", 451, "y"),
    "missing": Kind("unix:milters/none", "error socket-missing", 451, "y"),
    "file": Kind("unix:SOCKETS/ready", "error socket-type", 451),
    "closed": Kind("unix:SOCKETS/closed", "error socket-permission", 451),
    "closed_folder": Kind("unix:SOCKETS/inner/good", "error socket-permission", 451),
    # The milter.
    "nobody": Kind("inet:127.0.0.1:FREE", "error answer-refused", 451),
    "left_over": Kind("unix:SOCKETS/left-over", "error answer-refused", 451),
    "hangs_up": Kind("unix:SOCKETS/hangs-up", "error answer-closed", 451),
    "greeting": Kind("unix:SOCKETS/greeting", "error answer-foreign", 451),
    "silent": Kind("{ unix:SOCKETS/silent, command_timeout=1s }", "error answer-silent", 451),
    # What becomes of mail.
    "accept": Kind("{ unix:SOCKETS/left-over, default_action=accept }", "note when-down", 250),
    "reject": Kind("{ unix:SOCKETS/left-over, default_action=reject }", "warning when-down", 550),
    "version": Kind("unix:SOCKETS/good", "warning version-low", 250, "n", "-o milter_protocol=2"),
    # master.cf.
    "blank": Kind("unix:SOCKETS/good", "error master-cf-argument", 0, "n", "-o x=1, 2"),
    "off": Kind(
        "unix:SOCKETS/left-over",
        "note milters-off",
        250,
        "n",
        "-o receive_override_options=no_milters",
    ),
}


class KindsOfPostfix(Postfix):
    """
    A Postfix with a service for each kind.
    """

    doors = tuple(KINDS)
    values: ClassVar[dict[str, str]] = {}

    def _milter_line(self, door: str) -> str:
        text = KINDS[door].setting
        for word, value in self.values.items():
            text = text.replace(word, value)
        return f"{door}_milter = {text}"

    def configure(self) -> None:
        """
        Give each service its column and options.
        """
        super().configure()
        # What a chrooted smtpd needs of the system.
        (self.folder / "queue" / "milters").symlink_to("sockets")
        master = self.folder / "conf" / "master.cf"
        lines = master.read_text().splitlines()
        for place, (door, kind) in enumerate(KINDS.items()):
            lines[place] = (
                f"{LOOPBACK}:{self.ports[door]} inet n - {kind.chroot} - - smtpd"
                f" -o smtpd_milters=${door}_milter {kind.more}"
            )
        master.write_text("\n".join(lines) + "\n")
        main = self.folder / "conf" / "main.cf"
        text = main.read_text().replace("non_smtpd_milters = $unix_milter\n", "")
        main.write_text(f"{text}smtpd_milterz = inet:127.0.0.1:9900\n")
        os.utime(main, (1, 1))


class RealCase(SynchronousTestCase):
    """
    A test with milters, and a folder for an MTA.
    """

    mta_class: ClassVar[type[Mta]]

    def setUp(self) -> None:
        self.mta_class.require_installed()
        self.folder = Path(tempfile.mkdtemp(prefix="yatxmilter-doctor-"))
        self.addCleanup(shutil.rmtree, self.folder)
        # The daemons' own users have to pass.
        self.folder.chmod(0o755)
        self.port, self.free = free_ports(2)
        self.addresses = Addresses(self.folder / "none", 0, self.free, 0)

    def start_milters(self, sockets: Path) -> None:
        """
        Start the milters, with their sockets in a folder.
        """
        sockets.mkdir(parents=True)
        (sockets / "inner").mkdir(mode=0o700)
        program = self.folder / "milters.py"
        program.write_text(MILTERS)
        command = [sys.executable, program, sockets, str(self.port)]
        process = start(command, self.folder / "milters.log", {"PYTHONPATH": str(ROOT)})
        self.addCleanup(stop, process)
        wait_until(lambda: (sockets / "ready").exists(), "the milters")

    def doctor(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """
        Run doctor as a program; give its status, and its JSON object.
        """
        run = subprocess.run(
            [sys.executable, "-m", "yatxmilter", "doctor", "--json", "--timeout=2", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        self.assertEqual(run.stderr, b"")
        return run.returncode, json.loads(run.stdout)


def said(milter: dict[str, Any]) -> set[str]:
    """
    Give level and check of each finding.
    """
    return {f"{finding['level']} {finding['check']}" for finding in milter["findings"]}


class PostfixTests(RealCase):
    """
    Postfix.
    """

    mta_class = KindsOfPostfix

    def reply(self, mta: KindsOfPostfix, door: str) -> int:
        """
        Give what Postfix answers to MAIL, or 0 if it hangs up.
        """
        try:
            with contextlib.closing(SmtpClient(mta.ports[door])) as client:
                client.ehlo()
                return client.command("MAIL FROM:<sender@client.example>").code
        except Disconnected:
            return 0

    def test_what_doctor_says_of_each_kind_and_what_postfix_does_with_it(self) -> None:
        """
        What doctor says of each kind, and what Postfix does with it.
        """
        mta = KindsOfPostfix(self.folder / "mta", self.addresses)
        mta.folder.mkdir()
        sockets = mta.folder / "queue" / "sockets"
        values = {"SOCKETS": str(sockets), "PORT": str(self.port), "FREE": str(self.free)}
        self.patch(KindsOfPostfix, "values", values)
        # The queue directory is made by Postfix's configuration: the milters' folder is in it.
        configure = mta.configure

        def with_milters() -> None:
            configure()
            self.start_milters(sockets)

        mta.configure = with_milters  # type: ignore[method-assign]
        self.addCleanup(mta.stop)
        mta.start()
        status, data = self.doctor("--postfix", mta.folder / "conf")
        self.assertEqual(status, 2)
        self.assertRegex(data["version"], r"^3\.\d")
        general = said(data)
        self.assertIn("warning parameter-unknown", general)
        found = {}
        for door, kind in KINDS.items():
            label = f"{LOOPBACK}:{mta.ports[door]}/inet"
            checks = set().union(
                *(said(m) for m in data["milters"] if f"smtpd_milters of {label}" in m["places"])
            )
            checks |= {
                f"{each['level']} {each['check']}"
                for each in data["findings"]
                if label in each["what"]
            }
            wrong = {check for check in checks if check.startswith("error")}
            allowed = {kind.check}
            if kind.check.endswith("when-down"):
                # Nobody listens, to see what becomes of mail.
                allowed.add("error answer-refused")
            found[door] = (kind.check in checks, wrong <= allowed, self.reply(mta, door))
        expected = {door: (True, True, kind.reply) for door, kind in KINDS.items()}
        wrong_ones = {door: row for door, row in found.items() if row != expected[door]}
        self.assertEqual(wrong_ones, {})

    def test_default_action_that_this_postfix_does_not_know_is_an_error(self) -> None:
        """
        A default action that this Postfix does not know is an error.
        """
        folder = self.folder / "conf"
        folder.mkdir()
        (folder / "main.cf").write_text(
            "compatibility_level = 3.6\nmilter_default_action = vanish\n"
            f"smtpd_milters = inet:127.0.0.1:{self.free}\n"
        )
        (folder / "master.cf").write_text("smtp inet n - n - - smtpd\n")
        status, data = self.doctor("--postfix", folder)
        self.assertEqual((status, said(data["milters"][0])), (2, {"error address"}))


#: By name: the filter, what doctor says, and whether Sendmail complains when it starts.
FILTERS = {
    "right": ("S=inet:PORT@127.0.0.1, F=T, T=R:30s", "ok answer", False),
    "socket": ("S=local:SOCKETS/good, F=T", "ok answer", False),
    "asking": ("S=local:SOCKETS/asking, F=T", "ok answer", False),
    "swapped": ("S=inet:127.0.0.1:PORT, F=T", "error address", True),
    "noport": ("S=inet:PORT, F=T", "error address", True),
    "service": ("S=inet:nosuch@127.0.0.1, F=T", "error address", True),
    "type": ("S=tcp:PORT@127.0.0.1, F=T", "error address", True),
    "comma": ("S=inet:PORT@127.0.0.1 F=T", "error address", True),
    "nothing": ("F=T", "error address", True),
    "family": ("S=inet:PORT@::1, F=T", "error address", True),
    "equate": ("S=inet:PORT@127.0.0.1, G=T", "error address", True),
    "semicolon": ("S=inet:PORT@127.0.0.1, F=T, T=R:30s;", "error address", True),
    "timeout": ("S=inet:PORT@127.0.0.1, F=T, T=X:30s", "error address", True),
    "relative": ("S=local:sockets/good, F=T", "error address", True),
    "missing": ("S=local:SOCKETS/none, F=T", "error socket-missing", True),
    "group": ("S=local:FOLDER/group/good, F=T", "error socket-unsafe", True),
    "all": ("S=local:FOLDER/all/good, F=T", "error socket-unsafe", True),
    "link": ("S=local:FOLDER/link, F=T", "error socket-unsafe", True),
    "linked": ("S=local:FOLDER/linked/good, F=T", "ok answer", False),
    "refused": ("S=inet:FREE@127.0.0.1, F=T", "error answer-refused", False),
    "left": ("S=local:SOCKETS/left-over, F=T", "error answer-refused", False),
    "closing": ("S=local:SOCKETS/hangs-up, F=T", "error answer-closed", False),
    "smtp": ("S=local:SOCKETS/greeting, F=T", "error answer-foreign", False),
    "open": ("S=inet:PORT@127.0.0.1", "warning when-down", False),
    "hard": ("S=inet:PORT@127.0.0.1, F=R", "warning when-down", False),
    "flag": ("S=inet:PORT@127.0.0.1, F=X", "warning action-unknown", False),
    "short": ("S=inet:PORT@127.0.0.1, F=T, T=R:1s", "warning timeout-short", False),
}


class KindsOfSendmail(Sendmail):
    """
    A Sendmail with a filter for each kind.
    """

    doors = tuple(FILTERS)
    values: ClassVar[dict[str, str]] = {}

    def _door_lines(self, door: str) -> str:
        text = FILTERS[door][0]
        for word, value in self.values.items():
            text = text.replace(word, value)
        line = super()._door_lines("unix").splitlines()[1].replace("unix", door)
        line = line.replace(str(self.ports.get("unix", "PORT")), str(self.ports[door]))
        return f"MAIL_FILTER(`{door}', `{text}')dnl\n{line}"


class SendmailTests(RealCase):
    """
    Sendmail.
    """

    mta_class = KindsOfSendmail

    def test_findings_of_doctor_are_those_of_sendmail_when_it_starts(self) -> None:
        """
        What doctor says of each filter, and of which ones Sendmail complains when it starts.
        """
        mta = KindsOfSendmail(self.folder / "mta", self.addresses)
        mta.folder.mkdir()
        mta.ports["unix"] = self.free
        sockets = self.folder / "sockets"
        self.start_milters(sockets)
        for name, mode in (("group", 0o775), ("all", 0o777)):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(mode)
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(self.folder / name / "good"))
        (self.folder / "link").symlink_to(sockets / "good")
        (self.folder / "linked").symlink_to(sockets)
        values = {
            "SOCKETS": str(sockets),
            "FOLDER": str(self.folder),
            "PORT": str(self.port),
            "FREE": str(self.free),
        }
        self.patch(KindsOfSendmail, "values", values)
        mta.configure()
        file = mta.folder / "sendmail.cf"
        text = file.read_text()
        # The common list, with which the daemons' own have nothing to do.
        file.write_text(text.replace("O InputMailFilters=unix\n", ""))
        status, data = self.doctor("--sendmail", file)
        self.assertEqual(status, 2)
        self.assertEqual(data["version"], "8.17.1.9")
        found = {}
        run = subprocess.run(
            [*map(str, mta.command())], capture_output=True, text=True, check=False
        )
        complaints = run.stdout + run.stderr
        for name in FILTERS:
            place = f"InputMailFilters of the daemon {name}"
            checks = set().union(*(said(m) for m in data["milters"] if place in m["places"]))
            wrong = {check for check in checks if check.startswith("error")}
            _, check, _ = FILTERS[name]
            told = f" X{name}" in complaints
            found[name] = (check in checks, wrong - {check}, told)
        expected: dict[str, Any] = {name: (True, set(), kind[2]) for name, kind in FILTERS.items()}
        # There a socket nobody listens at, in a folder that is not used.
        for name in ("group", "all"):
            expected[name] = (True, {"error answer-refused"}, True)
        self.assertEqual(found, expected, complaints)


class PageTests(RealCase):
    """
    The manual's page about it.
    """

    mta_class = Postfix

    def test_pages_configuration_gets_the_findings_that_the_page_shows(self) -> None:
        """
        The page's configuration gets the findings that the page shows.
        """
        page = (ROOT / "docs" / "mta.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```\{code-block\} text\n:caption: (.*)\n([^`]*)```", page)
        (_, main), (command, shown) = blocks
        queue, run = self.folder / "queue", self.folder / "run"
        (queue / "milters").parent.mkdir()
        run.mkdir()
        self.start_milters(queue / "milters")
        (queue / "milters" / "good").rename(queue / "milters" / "signer.sock")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(run / "filter.sock"))
        conf = self.folder / "conf"
        conf.mkdir()
        paths = {"/run/milters": run, "/var/spool/postfix": queue, "/etc/postfix": conf}
        for shorter, path in paths.items():
            main = main.replace(shorter, str(path))
        (conf / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {queue}\n{main}"
        )
        (conf / "master.cf").write_text(
            "smtp inet n - y - - smtpd\ncleanup unix n - y - 0 cleanup\n"
        )
        words = command.removeprefix("yatxmilter ").split()
        printed = subprocess.run(
            [sys.executable, "-m", "yatxmilter", *words, "--postfix", conf],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for shorter, path in paths.items():
            printed = printed.replace(str(path), shorter)
        version = r"^Postfix [\d.]+"
        self.assertEqual(re.sub(version, "Postfix", shown), re.sub(version, "Postfix", printed))
