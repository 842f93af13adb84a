"""
Tests of `yatxmilter._cli.terminal`: what is printed, and what never is.
"""

from __future__ import annotations

import io

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._cli.terminal import Page


class Terminal(io.TextIOWrapper):
    """
    A terminal that keeps what it was told.
    """

    def __init__(self, encoding: str = "utf-8", *, tty: bool = True) -> None:
        self._tty = tty
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return self._tty

    def text(self) -> bytes:
        """
        Give all that was printed.
        """
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


class ColourTests(SynchronousTestCase):
    """
    Colour is for people in front of a terminal who have not asked for none.
    """

    def test_there_is_colour_on_terminal(self) -> None:
        """
        There is colour on a terminal, unless NO_COLOR is set or the terminal is a dumb one.
        """
        table: dict[tuple[bool, tuple[tuple[str, str], ...]], bytes] = {
            (True, ()): b"\x1b[31mx\x1b[0m\n",
            (True, (("TERM", "xterm"),)): b"\x1b[31mx\x1b[0m\n",
            (True, (("NO_COLOR", ""),)): b"\x1b[31mx\x1b[0m\n",
            (True, (("NO_COLOR", "1"),)): b"x\n",
            (True, (("TERM", "dumb"),)): b"x\n",
            (False, ()): b"x\n",
        }
        results = {}
        for tty, environ in table:
            terminal = Terminal(tty=tty)
            Page(terminal, dict(environ)).line("x", "bad")
            results[tty, environ] = terminal.text()
        self.assertEqual(results, table)

    def test_line_of_no_kind_has_no_colour(self) -> None:
        """
        A line of no kind has no colour; a title has, and an empty line before it.
        """
        terminal = Terminal()
        page = Page(terminal, {})
        page.line("a")
        page.title("b")
        self.assertEqual(terminal.text(), b"a\n\n\x1b[1mb\x1b[0m\n")


class SafetyTests(SynchronousTestCase):
    """
    Text of messages cannot do anything to a terminal.
    """

    TEXTS = {
        "a\tb": "a\tb",
        "\x1b[2J\r\n\0": "\\x1b[2J\\r\\n\\x00",
        "\u202eevil": "\\u202eevil",
        "caf\udce9": "caf\\xe9",
        "\ud800\ue000": "\\ud800\\ue000",
        "äöü 你好": "äöü 你好",
        "trailing   ": "trailing",
    }

    def test_what_is_not_printable_is_escaped_and_so_is_byte_that_is_not_utf_8(self) -> None:
        """
        What is not printable is escaped, and so is a byte that is not UTF-8.
        """
        results = {}
        for text in self.TEXTS:
            terminal = Terminal()
            Page(terminal, {}).line(text)
            results[text] = terminal.text().decode("utf-8").removesuffix("\n")
        self.assertEqual(results, self.TEXTS)

    def test_what_terminals_encoding_does_not_have_is_escaped(self) -> None:
        """
        What the terminal's encoding does not have is escaped; what it has is not.
        """
        for encoding, expected in (("ascii", b"\\xe4\n"), ("latin-1", b"\xe4\n")):
            terminal = Terminal(encoding)
            Page(terminal, {}).line("ä")
            self.assertEqual(terminal.text(), expected)

    def test_stream_of_text_without_encoding_takes_everything(self) -> None:
        """
        A stream of text without an encoding takes everything.
        """
        stream = io.StringIO()
        Page(stream, {}).line("ä你")
        self.assertEqual(stream.getvalue(), "ä你\n")
