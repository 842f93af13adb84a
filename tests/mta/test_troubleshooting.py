"""
The scenarios of the page about troubleshooting, with Postfix and with Sendmail.

Sendmail, which knows syslog only, gets a ``/dev`` of its own with our socket in it.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from . import symptoms
from .postfix import Postfix
from .sendmail import Sendmail

DEVICES = ("null", "random", "urandom", "zero")


class LoggingSendmail(Sendmail):
    """
    Sendmail whose log can be read.
    """

    def configure(self) -> None:
        """
        Make a /dev with a log socket, and mount it first thing.
        """
        super().configure()
        devices = self.folder / "dev"
        devices.mkdir()
        for name in DEVICES:
            (devices / name).touch()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(devices / "log"))
        threading.Thread(target=self._write_log, daemon=True).start()
        mounts = [f"mount --bind /dev/{name} {devices}/{name}" for name in DEVICES]
        namespace = self.folder / "namespace.sh"
        lines = [*mounts, f"mount --rbind {devices} /dev", namespace.read_text()]
        namespace.write_text("\n".join(lines))

    def _write_log(self) -> None:
        with (self.folder / "mail.log").open("ab", buffering=0) as log:
            while line := self._socket.recv(65536):
                log.write(line + b"\n")

    def stop(self) -> None:
        """
        Stop the MTA, then the thread that reads its log.
        """
        super().stop()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class PostfixSymptomsTests(symptoms.Symptoms):
    """
    What Postfix logs.
    """

    mta_class = Postfix
    log_name = "log/mail.log"


class SendmailSymptomsTests(symptoms.Symptoms):
    """
    What Sendmail logs.
    """

    mta_class = LoggingSendmail
    log_name = "mail.log"
