"""
One MTA that can be asked to filter a message in two ways, to see that they come to the same.

By the door "unix" the message goes through one yatxmilter that chains the milters; by "two" and
"three" through as many processes of one milter each, which the MTA asks one after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

from .control import Event, MilterProcess, Script
from .mta import Addresses, Mta
from .postfix import Postfix
from .processes import LOOPBACK, wait_until
from .sendmail import Sendmail
from .sink import Delivery, Sink
from .smtp import Disconnected, SmtpClient

SEPARATE = {2: "two", 3: "three"}


# The macro v is anything that the administrator likes.
_POSTFIX = """\
milter_macro_v = $mail_version
virtual_alias_domains = alias.example
virtual_alias_maps = inline:{
    { both@alias.example = rcpt@sink.example, new@sink.example },
    { new@alias.example = new@sink.example },
    { two@sink.example = Two@sink.example } }
"""


class _Doors(Mta):
    doors = ("unix", *SEPARATE.values())

    def sockets(self) -> list[str]:
        """
        Give the sockets of the milters that run by themselves.
        """
        return [f"unix:{self.folder}/m{number}.sock" for number in range(max(SEPARATE))]

    def asked(self, door: str) -> list[str]:
        """
        Give the milters' sockets of a door.
        """
        if door == "unix":
            return [f"unix:{self.addresses.milter_socket}"]
        count = next(count for count, name in SEPARATE.items() if name == door)
        return self.sockets()[:count]


class ChainPostfix(_Doors, Postfix):
    """
    Postfix with these doors.

    It does not say that it is Postfix, and some addresses stand for others.
    """

    extra = _POSTFIX

    def configure(self) -> None:
        """
        Write the configuration: after a DISCARD Postfix asks the milters of local mail, too.
        """
        super().configure()
        main = self.folder / "conf" / "main.cf"
        text = main.read_text().replace("non_smtpd_milters = $unix_milter\n", "")
        main.write_text(text + self.extra)
        os.utime(main, (1, 1))

    def _milter_line(self, door: str) -> str:
        milters = ", ".join(f"{{ {each}, default_action=tempfail }}" for each in self.asked(door))
        return f"{door}_milter = {milters}"


class BluntPostfix(ChainPostfix):
    """
    A Postfix that forgets what an address was before it was replaced.
    """

    extra = _POSTFIX + "enable_original_recipient = no\n"


class ChainSendmail(_Doors, Sendmail):
    """
    Sendmail with these doors.
    """

    def _door_lines(self, door: str) -> str:
        lines = []
        names = [f"{door}{number}" for number in range(len(self.asked(door)))]
        if door == "unix":
            # The default, which has to exist.
            names = [door]
        for name, each in zip(names, self.asked(door), strict=True):
            lines.append(f"MAIL_FILTER(`{name}', `S={each}, F=T, T=C:30s;S:30s;R:30s;E:5m')dnl")
        lines.append(
            f"DAEMON_OPTIONS(`Name={door}, Addr={LOOPBACK}, Port={self.ports[door]},"
            f" Family=inet, InputMailFilters={';'.join(names)}')dnl"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Case:
    """
    One message and the milters it goes through.

    :ivar known: What is known to be different, if anything is.
    """

    name: str
    milters: tuple[Script, ...]
    message: bytes
    recipients: tuple[str, ...] = ("<rcpt@sink.example>",)
    known: str = ""
    #: A command at which the client goes on with RSET instead.
    reset_at: str = ""


@dataclass
class Outcome:
    """
    What came of one message.

    :ivar shown: For each milter the callbacks that it got.
    """

    replies: list[str]
    deliveries: list[Delivery]
    held: list[str]
    shown: list[list[Event]]
    log: list[str]


class ChainBench:
    """
    The MTA, the sink, the milters' processes.
    """

    def __init__(self, mta: type[_Doors]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="yatxmilter-"))
        self.folder.chmod(0o755)
        self.sink = Sink()
        ports = free_ports(max(SEPARATE) + 2)
        socket = self.folder / "chain.sock"
        self.mta = mta(self.folder, Addresses(socket, ports[0], self.sink.port, ports[-1]))
        paths = [socket, *(Path(each.partition(":")[2]) for each in self.mta.sockets())]
        self.milters = [
            MilterProcess(path, port, self.folder / f"milter{number}.log")
            for number, (path, port) in enumerate(zip(paths, ports, strict=False))
        ]

    def start(self) -> None:
        """
        Start the processes.
        """
        for milter in self.milters:
            milter.start()
        self.mta.start()

    def stop(self) -> None:
        """
        Stop the processes and remove what they left.
        """
        self.mta.stop()
        for milter in self.milters:
            milter.stop()
        self.sink.stop()
        shutil.rmtree(self.folder)

    def chained(self, case: Case) -> Outcome:
        """
        Send the message through one yatxmilter.
        """
        chain = self.milters[0]
        chain.load(case.milters, {"merge": "chain"})
        replies, deliveries, held = self._send("unix", case)
        names = [milter["name"] for milter in case.milters]
        wait_until(lambda: _closed(chain, len(names)), "the milters' end")
        shown = [chain.events(milter=name) for name in names]
        return Outcome(replies, deliveries, held, shown, chain.take_log())

    def separate(self, case: Case) -> Outcome:
        """
        Send the message through as many milters as the MTA's own filters.
        """
        used = self.milters[1 : 1 + len(case.milters)]
        for process, milter in zip(used, case.milters, strict=True):
            process.load([milter], {})
        replies, deliveries, held = self._send(SEPARATE[len(used)], case)
        shown = []
        for process in used:
            wait_until(lambda process=process: _closed(process, 1), "the milter's end")
            shown.append(process.events())
        log = [line for process in used for line in process.take_log()]
        return Outcome(replies, deliveries, held, shown, log)

    def _send(self, door: str, case: Case) -> tuple[list[str], list[Delivery], list[str]]:
        self.sink.clear()
        replies = _converse(self.mta.ports[door], case)
        self.mta.settle()
        held = self.mta.quarantined() if self.mta.held() else []
        self.mta.release()
        return replies, self.sink.deliveries.copy(), held


def _closed(process: MilterProcess, count: int) -> bool:
    """
    Tell whether each connection that was opened has been closed.
    """
    callbacks = [event.callback for event in process.events()]
    return callbacks.count("xxfi_close") >= min(count, callbacks.count("xxfi_connect"))


def _converse(port: int, case: Case) -> list[str]:
    client = SmtpClient(port)
    replies = [str(client.banner)]
    try:
        replies.append(str(client.ehlo()))
        commands = ["MAIL FROM:<sender@client.example>"]
        commands += [f"RCPT TO:{recipient}" for recipient in case.recipients]
        for command in (*commands, "DATA"):
            if case.reset_at and command.startswith(case.reset_at):
                command = "RSET"
            replies.append(str(client.command(command)))
            if command == "RSET":
                break
        if replies[-1].startswith("354"):
            replies.append(str(client.content(case.message)))
        client.quit()
    except Disconnected:
        replies.append("closed")
    finally:
        client.close()
    return replies
