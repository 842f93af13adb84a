"""
A private Sendmail, run from the folder into which ``install.sh`` unpacked it.

It runs in mount and host name namespaces of its own, because it looks at the machine's host name
and /etc/hosts before it reads its configuration, and sleeps a minute over a name without a dot.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .mta import BRIEF, HOSTNAME, Mta, Traits
from .processes import LOOPBACK, require, require_program, require_root, wait_until

#: Where install.sh unpacks it.
DISTRIBUTION = Path(os.environ.get("YATXMILTER_SENDMAIL") or "/var/cache/yatxmilter/sendmail")
PROGRAM = DISTRIBUTION / "usr/libexec/sendmail/sendmail"

_MC = """\
divert(0)dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `{hostname}')dnl
define(`QUEUE_DIR', `{folder}/queue')dnl
define(`confPID_FILE', `{folder}/sendmail.pid')dnl
define(`STATUS_FILE', `{folder}/statistics')dnl
define(`ALIAS_FILE', `null:')dnl
define(`confSERVICE_SWITCH_FILE', `{folder}/service.switch')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
dnl UNIX sockets are below /tmp.
define(`confDONT_BLAME_SENDMAIL', `TrustStickyBit')dnl
define(`confTO_IDENT', `0')dnl
dnl A busy machine is no reason to queue or to refuse.
define(`confQUEUE_LA', `1000')dnl
define(`confREFUSE_LA', `1000')dnl
define(`confBAD_RCPT_THROTTLE', `0')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
FEATURE(`promiscuous_relay')dnl
define(`SMART_HOST', `smtp8:[{loopback}]')dnl
define(`SMTP8_MAILER_ARGS', `TCP $h {sink_port}')dnl
{doors}
define(`confINPUT_MAIL_FILTERS', `unix')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""

_ACTIONS = {"tempfail": "F=T, ", "reject": "F=R, ", "accept": ""}

_NAMESPACE = """\
hostname {hostname}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
exec "$@"
"""


class Sendmail(Mta):
    """
    Sendmail 8.17, as Debian builds it.
    """

    name = "Sendmail"
    traits = Traits(
        content_reject=554,
        default_reject=554,
        tempfail_status="4.3.2",
        connect_reply_kept=False,
        shows_address=True,
        unknown_arg="XFOO bar",
        adds_at_end=False,
        respells=False,
        fields_before=8,
        keeps_reason=True,
        filters_submission=False,
    )

    @staticmethod
    def require_installed() -> None:
        """
        Skip the test, or fail it, if there is no Sendmail or no namespaces can be made for it.
        """
        require_root()
        require(PROGRAM.exists(), f"Sendmail is not in {DISTRIBUTION}")
        probe = [require_program("unshare"), "-m", "-u", "true"]
        made = subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0
        require(made, "namespaces for Sendmail cannot be made here")

    def configure(self) -> None:
        """
        Write the .mc file and what it names, and make the .cf of it.
        """
        (self.folder / "queue").mkdir(mode=0o700)
        (self.folder / "service.switch").write_text("hosts\tfiles\naliases\tfiles\npasswd\tfiles\n")
        (self.folder / "hosts").write_text(f"{LOOPBACK} {HOSTNAME} localhost\n")
        (self.folder / "resolv.conf").touch()
        (self.folder / "namespace.sh").write_text(
            _NAMESPACE.format(hostname=HOSTNAME, folder=self.folder)
        )
        (self.folder / "sendmail.mc").write_text(
            _MC.format(
                folder=self.folder,
                hostname=HOSTNAME,
                loopback=LOOPBACK,
                sink_port=self.addresses.sink_port,
                doors="\n".join(map(self._door_lines, self.doors)),
            )
        )
        macros = DISTRIBUTION / "usr/share/sendmail/cf"
        m4: list[str | Path] = [
            DISTRIBUTION / "usr/bin/m4",
            f"-D_CF_DIR_={macros}/",
            macros / "m4/cf.m4",
        ]
        with (self.folder / "sendmail.cf").open("wb") as configuration:
            subprocess.run(
                [*m4, self.folder / "sendmail.mc"],
                stdout=configuration,
                stderr=subprocess.DEVNULL,  # a warning against open relays
                env=self._environment(),
                check=True,
            )

    def _door_lines(self, door: str) -> str:
        address, action, brief = self.milter(door)
        reply = f"R:{BRIEF}s" if brief else "R:30s"
        timeouts = f"T=C:30s;S:30s;{reply};E:5m"
        return (
            f"MAIL_FILTER(`{door}', `S={address}, {_ACTIONS[action]}{timeouts}')dnl\n"
            f"DAEMON_OPTIONS(`Name={door}, Addr={LOOPBACK}, Port={self.ports[door]},"
            f" Family=inet, InputMailFilters={door}')dnl"
        )

    def _environment(self) -> dict[str, str]:
        libraries = ":".join(map(str, (DISTRIBUTION / "usr/lib").glob("*-linux-gnu*")))
        return {**os.environ, "LD_LIBRARY_PATH": libraries}

    def _in_namespace(self, arguments: list[str]) -> list[str | Path]:
        configuration = str(self.folder / "sendmail.cf")
        return [
            require_program("unshare"), "-m", "-u", "sh", "-e", self.folder / "namespace.sh",
            "env", f"LD_LIBRARY_PATH={self._environment()['LD_LIBRARY_PATH']}",
            PROGRAM, "-C", configuration, *arguments,
        ]  # fmt: skip

    def command(self) -> list[str | Path]:
        """
        Run the daemon in the foreground.
        """
        return self._in_namespace(["-bD"])

    def queued(self) -> list[Path]:
        """
        List the queue files of messages that are not quarantined.
        """
        ids = {path.name[2:] for path in self.held()}
        return [path for path in (self.folder / "queue").iterdir() if path.name[2:] not in ids]

    def held(self) -> list[Path]:
        """
        List the queue files that Sendmail gave the name of a quarantined message.
        """
        return list((self.folder / "queue").glob("hf*"))

    def quarantined(self) -> list[str]:
        """
        Find the reasons in the queue files, in lines that begin with "q".
        """
        wait_until(self.held, "a quarantined message")
        lines = (line for path in self.held() for line in path.read_text("latin-1").splitlines())
        return [line[1:] for line in lines if line.startswith("q")]

    def release(self) -> None:
        """
        Delete the quarantined messages, their data files included.
        """
        for path in self.held():
            for each in path.parent.glob(f"?f{path.name[2:]}"):
                each.unlink()

    def submission(self, *arguments: str) -> list[str | Path]:
        """
        Run sendmail(8) in namespaces like the daemon's.
        """
        return self._in_namespace([*arguments])
