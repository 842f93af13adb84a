"""
``yatxmilter doctor`` run in this process, on configurations that tests write.
"""

from __future__ import annotations

import io
import json
import os
import pwd
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import close_reactor
from yatxmilter._cli import doctor

#: Who runs the tests, and may connect to what they make.
USER = pwd.getpwuid(os.geteuid()).pw_name

#: Services that run as whoever runs the tests, outside a chroot.
MASTER = "smtp inet n - n - - smtpd\ncleanup unix n - n - 0 cleanup\n"


class Diagnosis(NamedTuple):
    """
    What a run came to.

    :ivar data: The JSON object.
    """

    status: int
    data: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, str]]:
        """
        Give all findings.
        """
        each = [finding for milter in self.data["milters"] for finding in milter["findings"]]
        return [*each, *self.data["findings"]]

    @property
    def checks(self) -> set[str]:
        """
        Give level and check of everything that is more than ok.
        """
        return {
            f"{finding['level']} {finding['check']}"
            for finding in self.findings
            if finding["level"] != "ok"
        }

    def __getitem__(self, check: Any) -> Any:
        """
        Give the one finding of a check.
        """
        [finding] = [each for each in self.findings if each["check"] == check]
        return finding


class DoctorCase(SynchronousTestCase):
    """
    A test with a folder, in which there is no postconf.

    :ivar reactor: On which milters may listen; its run ends when the command is done.
    """

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.folder.chmod(0o755)
        self.reactor: Any = SelectReactor()
        self.patch(doctor, "find_postconf", lambda: None)

    def write(self, name: str, text: str) -> Path:
        """
        Write a file.
        """
        path = self.folder / name
        path.write_text(text)
        return path

    def run_doctor(self, *words: str) -> tuple[int, str]:
        """
        Run the command.
        """
        parser = ArgumentParser(prog="doctor")
        doctor.add_arguments(parser)
        out = io.StringIO()
        # Not for ever, whatever goes wrong.
        self.reactor.callLater(30, self.reactor.stop)
        status = doctor.run(parser.parse_args(words), reactor=self.reactor, out=out)
        close_reactor(self.reactor)
        return status, out.getvalue()

    def diagnose(self, *words: str) -> Diagnosis:
        """
        Run the command, and read its JSON object.
        """
        status, out = self.run_doctor(*words, "--json")
        self.reactor = SelectReactor()
        return Diagnosis(status, json.loads(out))

    def postfix(self, main: str, *words: str, master: str = MASTER) -> Diagnosis:
        """
        Look at a Postfix, whose queue directory is the folder.
        """
        # Whatever the test sets comes last, and counts.
        common = (
            f"mail_owner = {USER}\nqueue_directory = {self.folder}\ncompatibility_level = 3.6\n"
        )
        self.write("main.cf", common + main)
        self.write("master.cf", master)
        return self.diagnose("--postfix", str(self.folder), *words)

    def sendmail(self, text: str, *words: str) -> Diagnosis:
        """
        Look at a Sendmail.
        """
        path = self.write("sendmail.cf", text)
        return self.diagnose("--sendmail", str(path), *words)
