"""
What systemd does with a unit file, without systemd: as far as a test needs it.
"""

from __future__ import annotations

import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

from .processes import wait_until
from .sandbox import Sandbox


def read_unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """
    Read the settings of a unit file, by section and name; a name may be there several times.
    """
    sections: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            sections[section][name].append(value)
    return sections


class Service:
    """
    A service in a sandbox, with the user, folders and environment that its unit asks for.

    :param unit: The unit file.
    """

    def __init__(self, sandbox: Sandbox, unit: Path) -> None:
        self.sandbox = sandbox
        self.settings = read_unit(unit)["Service"]
        self.log = sandbox.folder / "service.log"

    def start(self, *tracer: str, **changed: str) -> subprocess.Popen[bytes]:
        """
        Start it.

        :param tracer: A command that is to run it, as its user, such as ``strace``.
        :param changed: Settings that are other than in the unit.
        """
        settings = {**{name: values[-1] for name, values in self.settings.items()}, **changed}
        user, group = settings["User"], settings["Group"]
        state = f"/var/lib/{settings['StateDirectory']}"
        logs = f"/var/log/{settings['LogsDirectory']}"
        for folder, mode in ((state, "StateDirectoryMode"), (logs, "LogsDirectoryMode")):
            owned = ("-o", user, "-g", group, "-m", settings[mode])
            made = self.sandbox.run("install", "-d", *owned, folder)
            assert made.returncode == 0, made.stdout
        script = (
            f"umask {settings['UMask']}; cd {settings['WorkingDirectory']};"
            f" ulimit -n {settings['LimitNOFILE']};"
            f" exec setpriv --reuid={user} --regid={group} --init-groups --bounding-set=-all"
            f" --inh-caps=-all --no-new-privs {shlex.join(tracer)} {settings['ExecStart']}"
        )
        environment = dict(entry.split("=", 1) for entry in self.settings["Environment"])
        self.log.write_text("")
        return self.sandbox.start(
            *("bash", "-c", script),
            output=self.log,
            environment={**environment, "STATE_DIRECTORY": state},
        )

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """
        Wait until it says that it is ready, and fail with its log if it does not.
        """
        try:
            wait_until(
                lambda: "Ready, listening" in self.log.read_text() or process.poll() is not None,
                "the service",
            )
            assert process.poll() is None
        except AssertionError as error:
            raise AssertionError(f"{error}; its log: {self.log.read_text()}") from None
