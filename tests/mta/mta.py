"""
What the tests know of an MTA, whichever it is, and how the two differ.

An MTA listens on several ports, its doors.  All lead to the same queue, but mail that comes in by
one is shown to the milter in that door's way: over a UNIX socket or TCP, with short timeouts, or
with another default action for a milter that fails.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

from .processes import LOOPBACK, is_listening, start, stop, wait_until

HOSTNAME = "mta.example.test"

#: A recipient that both MTAs refuse by themselves.
UNKNOWN_USER = f"<nosuchuser@{HOSTNAME}>"

#: Seconds that the MTA waits for the milter behind the door "brief".
BRIEF = 3


@dataclass(frozen=True)
class Addresses:
    """
    Where the milter, the sink and the milter of the seed example listen.
    """

    milter_socket: Path
    milter_port: int
    sink_port: int
    example_port: int


@dataclass(frozen=True)
class Traits:
    """
    What one MTA does differently from the other with the same milter, as Debian 12 has them.
    """

    #: Code of the reply to the end of data after a bare REJECT.
    content_reject: int
    #: The same when the milter has died and the default action is to reject.
    default_reject: int
    #: Enhanced status code of a bare TEMPFAIL.
    tempfail_status: str
    #: Whether the text of a reply given at connect is shown.
    connect_reply_kept: bool
    #: Whether the address is put before the text of a 5xx reply to MAIL and RCPT.
    shows_address: bool
    #: What the milter gets for the unknown command "XFOO bar".
    unknown_arg: str
    #: Whether a field is added after those of the same name, not before.
    adds_at_end: bool
    #: Whether the name of a changed field gets its new spelling.
    respells: bool
    #: How many fields of its own, hidden ones too, the MTA counts before those of the message.
    fields_before: int
    #: Whether the reason of a quarantine can be found afterwards.
    keeps_reason: bool
    #: Whether mail submitted on the command line passes the milter.
    filters_submission: bool


class Mta(ABC):
    """
    One MTA process with its folder.
    """

    name: str
    traits: Traits
    doors = ("unix", "inet", "brief", "accept", "reject", "example")

    def __init__(self, folder: Path, addresses: Addresses) -> None:
        self.folder = folder
        self.addresses = addresses
        self.ports = dict(zip(self.doors, free_ports(len(self.doors)), strict=True))
        self.log = folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """
        Write the configuration, start the MTA, and wait until it listens.
        """
        self.configure()
        self._process = process = start(self.command(), self.log)
        wait_until(
            lambda: process.poll() is not None or all(map(is_listening, self.ports.values())),
            f"{self.name} to listen",
        )
        if process.poll() is not None:
            raise AssertionError(f"{self.name} did not start: {self.log.read_text()}")

    def stop(self) -> None:
        """
        Stop the MTA and all its processes.
        """
        if self._process is not None:
            stop(self._process)
            self._process = None

    def settle(self) -> None:
        """
        Wait until no message is under way.
        """
        wait_until(lambda: not self.queued(), f"{self.name} to empty its queue")

    @staticmethod
    @abstractmethod
    def require_installed() -> None:
        """
        Skip the test, or fail it, if the MTA cannot be run here.
        """

    @abstractmethod
    def configure(self) -> None:
        """
        Write the configuration into the folder.
        """

    @abstractmethod
    def command(self) -> list[str | Path]:
        """
        Give the command that runs the MTA in the foreground.
        """

    @abstractmethod
    def queued(self) -> list[Path]:
        """
        List what is in the queue, save what is quarantined.
        """

    @abstractmethod
    def quarantined(self) -> list[str]:
        """
        Wait for a quarantined message, and give what is known of the reasons of all.
        """

    @abstractmethod
    def held(self) -> list[Path]:
        """
        List the queue files of the quarantined messages.
        """

    @abstractmethod
    def submission(self, *arguments: str) -> list[str | Path]:
        """
        Give the command that runs the MTA's ``sendmail`` program with this configuration.
        """

    def release(self) -> None:
        """
        Delete the quarantined messages.
        """
        for path in self.held():
            path.unlink()

    def milter(self, door: str) -> tuple[str, str, bool]:
        """
        Give a door's milter: its address, the default action, and whether its time is short.
        """
        unix = f"unix:{self.addresses.milter_socket}"
        return {
            "unix": (unix, "tempfail", False),
            "inet": (f"inet:{self.addresses.milter_port}@{LOOPBACK}", "tempfail", False),
            "brief": (unix, "tempfail", True),
            "accept": (unix, "accept", False),
            "reject": (unix, "reject", False),
            "example": (f"inet:{self.addresses.example_port}@{LOOPBACK}", "tempfail", False),
        }[door]
