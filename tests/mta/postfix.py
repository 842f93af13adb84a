"""
A private Postfix: run as root, without systemd and without DNS.

Its doors are smtpd services in master.cf.  Each names its milter by a parameter of main.cf,
because a setting with blanks is awkward in master.cf.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from .mta import BRIEF, HOSTNAME, UNKNOWN_USER, Mta, Traits
from .processes import LOOPBACK, require_program, require_root, wait_until

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log/mail.log
maillog_file_prefixes = {folder}/log
myhostname = {hostname}
inet_interfaces = {loopback}
inet_protocols = ipv4
# Who connects may say to come from somewhere else, as a client outside would.
mynetworks = 127.0.0.0/8 192.0.2.0/24
smtpd_authorized_xclient_hosts = 127.0.0.0/8
mydestination =
alias_maps =
notify_classes =
relayhost = [{loopback}]:{sink_port}
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_recipient_access inline:{{ {{ {unknown} = REJECT }} }}
# A session of a test has many refusals.
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_hard_error_limit = 1000
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
message_size_limit = 60000000
mailbox_size_limit = 0
non_smtpd_milters = $unix_milter
{milters}
"""

_SERVICES = """\
pickup   unix n - n 60 1 pickup
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n 300 1 qmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
smtp     unix - - n - - smtp
retry    unix - - n - - error
error    unix - - n - - error
discard  unix - - n - - discard
showq    unix n - n - - showq
flush    unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil    unix - - n - 1 anvil
tlsmgr   unix - - n 1000? 1 tlsmgr
scache   unix - - n - 1 scache
postlog  unix-dgram n - n - 1 postlogd
"""


class Postfix(Mta):
    """
    Postfix 3.5 or newer, as Debian installs it.
    """

    name = "Postfix"
    traits = Traits(
        content_reject=550,
        default_reject=550,
        tempfail_status="4.7.1",
        connect_reply_kept=True,
        shows_address=False,
        unknown_arg="XFOO",
        adds_at_end=True,
        respells=True,
        fields_before=1,
        keeps_reason=False,
        filters_submission=True,
    )

    @staticmethod
    def require_installed() -> None:
        """
        Skip the test, or fail it, if there is no Postfix.
        """
        require_root()
        require_program("postfix")
        require_program("postconf")

    def configure(self) -> None:
        """
        Write main.cf and master.cf.
        """
        for name in ("conf", "queue", "data", "log"):
            (self.folder / name).mkdir()
        shutil.chown(self.folder / "data", "postfix")
        main = self.folder / "conf" / "main.cf"
        main.write_text(
            _MAIN.format(
                folder=self.folder,
                hostname=HOSTNAME,
                loopback=LOOPBACK,
                sink_port=self.addresses.sink_port,
                unknown=UNKNOWN_USER.strip("<>"),
                milters="\n".join(map(self._milter_line, self.doors)),
            )
        )
        # Every program dozes while main.cf is only a second old, lest it change again.
        os.utime(main, (1, 1))
        (self.folder / "conf" / "master.cf").write_text(
            "".join(
                f"{LOOPBACK}:{port} inet n - n - - smtpd -o smtpd_milters=${door}_milter\n"
                for door, port in self.ports.items()
            )
            + _SERVICES
        )

    def _milter_line(self, door: str) -> str:
        address, action, brief = self.milter(door)
        # Postfix has port and host the other way round.
        address = re.sub(r"inet:(\d+)@(.*)", r"inet:\2:\1", address)
        timeouts = f"command_timeout={BRIEF}s, content_timeout={BRIEF}s" if brief else ""
        return f"{door}_milter = {{ {address}, default_action={action}, {timeouts} }}"

    def command(self) -> list[str | Path]:
        """
        Make the queue's folders, and run the master, which stays in the foreground.

        ``postfix start-fg`` would run it as a child of a shell: stopping that stops no Postfix.
        """
        conf = self.folder / "conf"
        subprocess.run([require_program("postfix"), "-c", conf, "check"], check=True)
        query = [require_program("postconf"), "-c", conf, "-h", "daemon_directory"]
        programs = subprocess.run(query, stdout=subprocess.PIPE, check=True, text=True).stdout
        return [Path(programs.strip()) / "master", "-c", conf, "-s"]

    def queued(self) -> list[Path]:
        """
        List the queue files, in the order in which a file moves through the folders.
        """
        queue = self.folder / "queue"
        return [
            path
            for name in ("maildrop", "incoming", "active", "deferred")
            for path in (queue / name).rglob("*")
            if path.is_file()
        ]

    def held(self) -> list[Path]:
        """
        List the files in the "hold" queue.
        """
        return [path for path in (self.folder / "queue" / "hold").iterdir() if path.is_file()]

    def quarantined(self) -> list[str]:
        """
        Find what the mail log says of them; before 3.12 the reason that was given is not there.
        """
        wait_until(self.held, "a message on hold")
        ids = [path.name for path in self.held()]
        log = self.folder / "log" / "mail.log"
        pattern = re.compile(rf"(?:{'|'.join(ids)}): milter-hold: (.*)")
        wait_until(lambda: pattern.search(log.read_text(errors="replace")), "the log of the hold")
        return pattern.findall(log.read_text(errors="replace"))

    def submission(self, *arguments: str) -> list[str | Path]:
        """
        Run Postfix's sendmail(1).
        """
        return [require_program("sendmail"), "-C", self.folder / "conf", *arguments]
