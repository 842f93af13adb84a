"""
Scenarios: what the manual's page about troubleshooting says the MTAs log, they have to write.

Each one makes the milter fail, or do something worth a line in the log. What the MTA logs is
compared with the page after addresses, queue ids and the like are replaced by those of the page.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

from .bench import MESSAGE, MtaTestCase
from .control import ROOT, script
from .processes import LOOPBACK, PATIENCE, wait_until

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def said_by(mta: str) -> dict[str, set[str]]:
    """
    Give the log lines that the page has for an MTA, by section.
    """
    found: dict[str, set[str]] = {}
    for part in PAGE.split("\n## ")[1:]:
        title = part.partition("\n")[0]
        block = re.search(rf"```{{code-block}} text\n:caption: {mta}\n(.*?)```", part, re.DOTALL)
        if block:
            found[title] = set(block[1].splitlines())
    return found


class Symptoms(MtaTestCase):
    """
    Scenarios, and the sections of the page that tell of them.
    """

    log_name: ClassVar[str]

    @contextlib.contextmanager
    def logged(self, title: str) -> Iterator[None]:
        """
        Check that all lines which a section of the page has for this MTA are logged meanwhile.
        """
        log = self.mta.folder / self.log_name
        # The log of an MTA that has said nothing yet is not there.
        start = log.stat().st_size if log.exists() else 0
        yield
        wanted = said_by(self.mta.name)[title]
        seen: set[str] = set()

        def all_there() -> bool:
            lines = log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
            seen.update(map(self.as_on_page, lines))
            return wanted <= seen

        # What is missing is shown below, with what is there instead.
        with contextlib.suppress(AssertionError):
            wait_until(all_there, "the log")
        self.assertEqual(wanted - seen, set(), "\n".join(sorted(seen)))

    def as_on_page(self, line: str) -> str:
        """
        Take date and program off a line, and give addresses and ids the page's values.
        """
        addresses = self.bench.mta.addresses
        line = re.sub(r"^.*?\[\d+\]: ", "", line)
        for port in (addresses.milter_port, addresses.example_port):
            line = line.replace(f"{LOOPBACK}:{port}", f"{LOOPBACK}:9900")
        line = line.replace(str(addresses.milter_socket), "/run/milters/filter.sock")
        line = re.sub(r"^[0-9A-F]{6,15}: ", "4F8B2220897: ", line)
        line = re.sub(r"^[0-9A-Za-z]{14}: ", "", line)
        line = re.sub(
            r"\b(Milter |milter_sys_read)\((?:unix|inet|brief|example)\)", r"\1(first)", line
        )
        return re.sub(r"milter=unix,", "milter=first,", line)

    @contextlib.contextmanager
    def serve(self, greeting: bytes) -> Iterator[None]:
        """
        Have something that is no milter listen where the door "example" leads.
        """
        listener = socket.create_server((LOOPBACK, self.bench.mta.addresses.example_port))
        listener.settimeout(PATIENCE)

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(greeting)
                connection.recv(1000)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with listener:
            yield
            thread.join()

    def test_address_at_which_nobody_listens_is_told(self) -> None:
        """
        Nobody listens.
        """
        with self.logged("The milter is not there"):
            self.send(door="example")

    def test_socket_is_not_there_is_another_users_or_is_left_over(self) -> None:
        """
        The socket is not there, is another user's, or is left over.
        """
        path = self.bench.mta.addresses.milter_socket
        away = path.with_suffix(".away")
        self.load(script())
        mode = path.stat().st_mode & 0o777
        with self.logged("The socket is not there, or must not be used"):
            path.rename(away)
            self.send()
            away.rename(path)
            # To Sendmail, which is root, the next two are no obstacle, or are told elsewhere.
            if self.mta.name == "Postfix":
                path.chmod(0o600)
                self.send()
                path.chmod(mode)
                self.milter.kill()
                self.send()

    def test_what_listens_closes_the_connection_without_a_word(self) -> None:
        """
        What listens closes the connection without a word.
        """
        with self.serve(b""), self.logged("The milter closes at once"):
            self.send(door="example")

    def test_smtp_server_is_taken_for_a_milter(self) -> None:
        """
        An SMTP server is taken for a milter.
        """
        with (
            self.serve(b"220 mail.example.com ESMTP\r\n"),
            self.logged("The program is not a milter"),
        ):
            self.send(door="example")

    def test_callback_takes_longer_than_mta_waits_before_and_at_end_of_message(self) -> None:
        """
        A callback takes longer than the MTA waits, before and at the end of the message.
        """
        with self.logged("The milter is too slow"):
            for callback in ("xxfi_envrcpt", "xxfi_eom"):
                self.load(script(**{callback: [("hang",)]}))
                self.send(door="brief")

    def test_milter_dies_while_its_answer_to_a_message_is_awaited(self) -> None:
        """
        The milter dies while its answer to a message is awaited.
        """
        self.load(script(xxfi_eom=[("hang",)]))
        client = self.connect()
        with self.logged("The milter died in a message"):
            client.command("MAIL FROM:<sender@client.example>")
            client.command("RCPT TO:<rcpt@sink.example>")
            client.command("DATA")
            client.send(MESSAGE.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            self.milter.wait("xxfi_eom")
            self.milter.kill()
            self.assertEqual(client.reply().code, 451)

    def test_callback_raises_an_exception(self) -> None:
        """
        A callback raises an exception.
        """
        self.load(script(xxfi_envrcpt=[("raise", "a bug")]))
        with self.logged("451, and nothing is wrong with the connection"):
            self.send()
        self.milter.wait_log("a bug")

    def test_milter_refuses_discards_and_holds_mail(self) -> None:
        """
        The milter refuses, discards and holds mail.
        """
        reply = ("smfi_setreply", "554", "5.7.1", "not this")
        with self.logged("Refused, discarded, held"):
            self.load(script(xxfi_envrcpt=["REJECT"]))
            self.send()
            for steps in (
                [reply, "REJECT"],
                ["DISCARD"],
                [("smfi_quarantine", "look at it")],
            ):
                self.load(script(xxfi_eom=steps))
                self.send()
        self.mta.release()
