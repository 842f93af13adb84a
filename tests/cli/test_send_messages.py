"""
Tests of `yatxmilter._cli.messages`: what is found at a path, and its envelope.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from yatxmilter._cli.messages import Source, bracketed, read_messages

MBOX = (
    b"From one@example.org Mon Nov 23 01:00:00 2026\n"
    b"Subject: one\n"
    b"\n"
    b"From here on there is no end.\n"
    b">From the start\n"
    b">>From it all\n"
    b"\n"
    b"From MAILER-DAEMON Mon Nov 23 02:00:00 2026\n"
    b"Subject: two\n"
    b"\n"
    b"\n"
    b"From three@example.org  Tue, 24 Nov 26 03:04 +0100\n"
    b"Subject: three\n"
    b"\n"
    b"no empty line at the end\n"
)


class FolderCase(SynchronousTestCase):
    """
    A test with a folder of its own.
    """

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, data: bytes) -> str:
        """
        Write a file, and give its path.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


class ReadTests(FolderCase):
    """
    Files, mailboxes and folders.
    """

    def test_file_is_a_message_byte_for_byte(self) -> None:
        """
        A file is a message, byte for byte.
        """
        data = b"Subject: \xe9\r\n\r\n\0\r\n"
        path = self.write("m.eml", data)
        self.assertEqual(list(read_messages([path])), [Source(path, data)])

    def test_file_that_begins_with_a_from_line_is_an_mbox(self) -> None:
        """
        A file that begins with a From line is an mbox: its messages come without the marks of it,
        and a line "From ..." inside a paragraph does not end one.
        """
        path = self.write("inbox", MBOX)
        found = list(read_messages([path]))
        self.assertEqual([one.name for one in found], [f"{path}:{n}" for n in (1, 2, 3)])
        self.assertEqual(
            [one.data for one in found],
            [
                b"Subject: one\n\nFrom here on there is no end.\nFrom the start\n>From it all\n",
                b"Subject: two\n\n",
                b"Subject: three\n\nno empty line at the end\n",
            ],
        )
        self.assertEqual(
            [one.sender() for one in found], ["<one@example.org>", "<>", "<three@example.org>"]
        )

    def test_mbox_of_crlf(self) -> None:
        """
        An mbox may have CR LF for line ends.
        """
        path = self.write("inbox", MBOX.replace(b"\n", b"\r\n") + b"\r\n")
        found = list(read_messages([path]))
        self.assertEqual(found[1].data, b"Subject: two\r\n\r\n")
        self.assertTrue(found[2].data.endswith(b"at the end\r\n"))

    def test_folder_with_new_and_cur_is_a_maildir(self) -> None:
        """
        A folder with "new" and "cur" is a Maildir; what is in "tmp" is not read, nor are dot files.
        """
        for name in ("cur/b:2,S", "cur/a:2,S", "new/z", "new/.hidden", "tmp/t"):
            self.write(name, b"Subject: " + name.encode() + b"\n\n")
        names = [Path(one.name).name for one in read_messages([str(self.folder)])]
        self.assertEqual(names, ["z", "a:2,S", "b:2,S"])

    def test_another_folder_has_message_files_in_it(self) -> None:
        """
        Another folder has message files in it; folders in it are not entered.
        """
        for name in ("2.eml", "1.eml", "cur/3.eml"):
            self.write(name, b"A: b\n\n")
        names = [Path(one.name).name for one in read_messages([str(self.folder)])]
        self.assertEqual(names, ["1.eml", "2.eml"])

    def test_dash_is_standard_input_a_message_or_an_mbox(self) -> None:
        """
        A dash is standard input, a message or an mbox.
        """
        for data, count in ((b"A: b\n\n", 1), (MBOX, 3)):
            self.patch(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
            self.assertEqual(len(list(read_messages(["-"]))), count)

    def test_no_standard_input(self) -> None:
        """
        Where standard input is closed, that is the error.
        """
        self.patch(sys, "stdin", None)
        (found,) = read_messages(["-"])
        self.assertEqual(found.error, "cannot be read: standard input is closed")

    def test_missing_empty_or_odd_file_is_an_error_and_the_rest_is_read(self) -> None:
        """
        What is not there, is empty or is not a message is given as an error, and the rest is read.
        """
        good = self.write("good", b"A: b\n\n")
        (self.folder / "none").mkdir()
        paths = [
            "",
            str(self.folder / "missing"),
            self.write("empty", b""),
            self.write("text", b"no field\n"),
            self.write(
                "mbox", b"From a@example.org\nno field\n\nFrom b@example.org 1:00\nA: b\n\n"
            ),
            str(self.folder / "none"),
            good,
        ]
        self.assertEqual(
            [one.error.partition(":")[0] for one in read_messages(paths)],
            [
                *["cannot be read"] * 2,
                *["is not a message"] * 3,
                "",
                "is a folder without messages in it",
                "",
            ],
        )

    def test_one_at_a_time(self) -> None:
        """
        A path is not looked at before its messages are wanted.
        """
        first = self.write("first", b"A: b\n\n")
        found = read_messages([first, str(self.folder / "later")])
        next(found)
        self.write("later", b"C: d\n\n")
        self.assertEqual([one.data for one in found], [b"C: d\n\n"])


class EnvelopeTests(SynchronousTestCase):
    """
    Sender and recipients, from the message.
    """

    def test_from_line_is_the_first_place_to_look_for_the_sender(self) -> None:
        """
        The From line counts first, then Return-Path, Sender, From; without any there is none.
        """
        fields = [
            b"Return-Path: <bounce@example.org>\n",
            b"Sender: The Staff <staff@example.org>\n",
            b"From: One <one@example.org>, two@example.org\n",
            b"X: y\n",
        ]
        expected = ["<bounce@example.org>", "<staff@example.org>", "<one@example.org>", "<>"]
        senders = [Source("", b"".join(fields[n:]) + b"\n").sender() for n in range(4)]
        self.assertEqual(senders, expected)
        marked = Source("", b"".join(fields), b"From mark@example.org now\n")
        self.assertEqual(marked.sender(), "<mark@example.org>")

    def test_empty_return_path_is_that_of_a_bounce(self) -> None:
        """
        An empty Return-Path is that of a bounce, and a mark without an address is none.
        """
        data = b"Return-Path: <>\nFrom: a@example.org\n\n"
        self.assertEqual(Source("", data).sender(), "<>")
        for mark in (b"From \n", b"From - Mon Nov 23 01:00:00 2026\n"):
            self.assertEqual(Source("", data, mark).sender(), "<>")

    def test_delivered_to_counts_first_then_to_cc_and_bcc_each_address_once(self) -> None:
        """
        Delivered-To counts first, then To, Cc and Bcc, each address once; or it is the postmaster.
        """
        people = (
            b"To: A <a@example.com>,\n b@example.com\nCc: a@example.com, Team: c@example.com;\n"
        )
        self.assertEqual(
            Source("", people + b"Bcc: d@example.com\n\n").recipients(),
            ["<a@example.com>", "<b@example.com>", "<c@example.com>", "<d@example.com>"],
        )
        delivered = b"Delivered-To: me@example.com\n"
        self.assertEqual(Source("", delivered + people).recipients(), ["<me@example.com>"])
        for nobody in (b"X: y\n\n", b"To: undisclosed-recipients:;\n\n"):
            self.assertEqual(Source("", nobody).recipients(), ["<postmaster>"])

    def test_name_by_itself_is_an_address_and_words_are_none(self) -> None:
        """
        A name by itself is an address; words, or signs, are none.
        """
        for value, found in (
            (b"root, Admin <admin>", ["<root>", "<admin>"]),
            (b"Undisclosed recipients", ["<postmaster>"]),
            (b"::, <>", ["<postmaster>"]),
            (b'"a b"@c.example (x), d@[192.0.2.1]', ['<"a b"@c.example>', "<d@[192.0.2.1]>"]),
        ):
            self.assertEqual(Source("", b"To: " + value + b"\n\n").recipients(), found)

    def test_bytes_that_are_not_utf_8_survive(self) -> None:
        """
        Bytes that are not UTF-8 survive; a NUL does not.
        """
        source = Source("", b"To: caf\xe9@example.com\nFrom: a\0b@example.org\n\n")
        self.assertEqual(source.recipients(), ["<caf\udce9@example.com>"])
        self.assertEqual(source.sender(), "<ab@example.org>")

    def test_first_field_of_a_name_counts_in_any_case(self) -> None:
        """
        The first field of a name counts, in any case; without one it is empty.
        """
        source = Source("", b"MESSAGE-id: <1>\nMessage-Id: <2>\n\n")
        self.assertEqual((source.field(b"message-id"), source.field(b"x")), (" <1>", ""))

    def test_brackets_are_added_where_there_are_none(self) -> None:
        """
        Brackets are added where there are none.
        """
        self.assertEqual(
            [bracketed(text) for text in ("a@b", " <a@b>", "", "<>")],
            ["<a@b>", "<a@b>", "<>", "<>"],
        )

    def test_address_with_control_character_in_it_is_not_believed(self) -> None:
        """
        An address with a control character in it is not believed, as no MTA gives one to a milter.
        """
        fields = [b"<c\x1b@d.example>", b"<e\xc2\x85@f.example>", b"<g@h.example>"]
        source = Source("", b"".join(b"To: " + field + b"\n" for field in fields) + b"\n")
        self.assertEqual(source.recipients(), ["<g@h.example>"])
        source = Source("", b"From: a@b.example\n\n", b"From c\x1b@d.example 1:00")
        self.assertEqual(source.sender(), "<a@b.example>")

    def test_groups_in_groups(self) -> None:
        """
        A field that cannot be read without end has no addresses; the next one has.
        """
        groups = b":" * 100_000
        source = Source("", b"To: " + groups + b"\nCc: a@b.example\nSender: " + groups + b"\n\n")
        self.assertEqual(source.recipients(), ["<a@b.example>"])
        self.assertEqual(source.sender(), "<>")


class GrowthTests(FolderCase):
    """
    Work that grows with the messages, and not with its square.
    """

    def test_envelope_is_read_in_linear_time_whatever_the_lines(self) -> None:
        """
        Whatever lines a file has, reading it and its envelope takes no longer than they are many.
        """
        for first, line in (
            (b"A: b\n", b"\tc\n"),
            (b"From a 1:00\nA: b\n", b"\nFrom a 1:00\n"),
            (b"From a 1:00\nA: b\n\n", b">From a\n"),
            (b"To: a@b.example", b",\n c@d.example"),
            (b"To: ", b'((\\<"'),
            (b"To: g:", b"a@b.example,"),
            (b"To: ", b"a:"),
            (b"A: b\n", b"To: a@b.example\n"),
        ):

            def prepare(size: int, first: bytes = first, line: bytes = line) -> Callable[[], None]:
                path = self.write(f"file{size}", first + line * size + b"\n")

                def work() -> None:
                    for source in read_messages([path]):
                        source.sender()
                        source.recipients()
                        source.field(b"message-id")

                return work

            assert_linear(prepare, 1000)
