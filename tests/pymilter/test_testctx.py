"""
Unit tests of users: ``Milter.testctx.TestCtx`` and ``Milter.test.TestBase``.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import Milter
import milter
from Milter.test import TestBase
from Milter.testctx import TestCtx
from twisted.trial.unittest import SynchronousTestCase

from yatxmilter.pymilter import _installing, install

MESSAGE = b"Subject: hello\r\nX-Raw: \xff\r\n\r\nbody\r\n"


class Editing(Milter.Base):
    """
    Writes down what it is asked, and edits.
    """

    fails = False

    def __init__(self) -> None:
        self.calls: list[Any] = []

    @Milter.symlist("{auth_authen}")
    @Milter.noreply
    def envfrom(self, mailfrom: str, *params: str) -> Any:
        self.calls.append((mailfrom, *params))
        self.calls.append((self.getsymval("{auth_authen}"), self.getsymval("{auth_type}")))
        return Milter.CONTINUE

    def envrcpt(self, to: str, *params: str) -> Any:
        self.calls.append(to)
        return Milter.REJECT if "refused" in to else Milter.CONTINUE

    def header(self, field: str, value: str) -> Any:
        self.calls.append((field, value))
        return Milter.CONTINUE

    def body(self, blk: bytes) -> Any:
        self.calls.append(blk)
        return Milter.REJECT if b"refuse" in blk else Milter.CONTINUE

    def eom(self) -> Any:
        if self.fails:
            raise RuntimeError("no")
        self.addheader("X-New", "yes")
        self.chgheader("X-Raw", 1, None)
        self.addrcpt("<new@example.com>")
        self.delrcpt("<victim@lamb.com>")
        self.chgfrom("<from@example.com>")
        self.replacebody("new ")
        self.replacebody(b"body\n")
        self.quarantine("held")
        self.progress()
        self.setreply("250" if self.fails else "550", "5.7.1", "text")
        return Milter.ACCEPT


class Case(SynchronousTestCase):
    """
    A class as the factory, in a folder.
    """

    def setUp(self) -> None:
        self.patch(Milter, "factory", Editing)
        self.patch(Editing, "fails", False)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        Path("test").mkdir()
        Path("test/message").write_bytes(MESSAGE)


class ContextTests(Case):
    """
    ``TestCtx``.
    """

    def test_message_goes_through_milter_and_what_it_did_is_written_down(self) -> None:
        """
        A message goes through the milter, and what it did is written down.
        """
        ctx = TestCtx()
        ctx._setsymval("{auth_authen}", "batman")
        ctx._setsymval("{auth_type}", "plain")
        self.assertEqual(ctx.getsymval("{auth_type}"), "plain")
        self.assertEqual(ctx._connect(ip="2001:db8::1"), Milter.CONTINUE)
        self.assertEqual(ctx._feedMsg("message", "a@example.com"), Milter.ACCEPT)
        mine = ctx.getpriv()
        self.assertEqual(
            mine.calls,
            [
                ("<a@example.com>",),
                ("batman", None),
                "<victim@lamb.com>",
                ("Subject", "hello"),
                ("X-Raw", "\udcff"),
                b"body\n",
            ],
        )
        self.assertEqual(ctx._addrcpt, [("<new@example.com>", None)])
        self.assertEqual((ctx._delrcpt, ctx._sender), (["<victim@lamb.com>"], "<from@example.com>"))
        self.assertTrue(ctx._bodyreplaced and ctx._headerschanged and ctx._envfromchanged)
        self.assertEqual(ctx._body.getvalue(), b"Subject: hello\nX-Raw: \xff\n\nnew body\n")
        self.assertEqual((ctx._msg["X-New"], ctx._msg["X-Raw"]), ("yes", None))
        self.assertEqual((ctx._reply, ctx._quarantined), (("550", "5.7.1", "text"), "held"))
        # And what Postfix would have made of it.
        self.assertEqual(ctx.sent.delivered.message["X-New"], "yes")
        ctx._close()
        self.assertIs(mine._ctx, None)

    def test_step_by_step(self) -> None:
        """
        Each command can be given by itself; an answer other than CONTINUE ends a message.
        """
        ctx = TestCtx()
        self.assertEqual(ctx._negotiate(), Milter.CONTINUE)
        self.assertEqual(ctx._helo("name"), Milter.CONTINUE)
        self.assertEqual(ctx._envfrom("<a@example.com>", "SIZE=1"), Milter.CONTINUE)
        self.assertEqual(ctx._envrcpt("<refused@example.com>"), Milter.REJECT)
        self.assertEqual(ctx._envrcpt("<b@example.com>"), Milter.CONTINUE)
        self.assertEqual(ctx._data(), Milter.CONTINUE)
        self.assertEqual(ctx._header("A", b"\xff"), Milter.CONTINUE)
        self.assertEqual(ctx._eoh(), Milter.CONTINUE)
        self.assertEqual(ctx._feed_body(io.BytesIO(b"refuse")), Milter.REJECT)
        ctx._abort()
        ctx._abort()
        ctx._connect()
        self.assertEqual(ctx._feedFile(io.StringIO("A: b\n\nrefuse\n")), Milter.REJECT)
        ctx._close()
        ctx._close()

    def test_failures_are_seen(self) -> None:
        """
        What a callback raises is raised where the test asks for it.
        """
        self.patch(Editing, "fails", True)
        ctx = TestCtx()
        ctx._connect()
        with open("test/message", "rb") as file:
            self.assertRaises(RuntimeError, ctx._feedFile, file)
        ctx._close()
        self.flushLoggedErrors(RuntimeError)

    def test_connection_that_is_refused_is_closed_address_must_be_one(self) -> None:
        """
        A connection that is refused is closed; an address must be one.
        """
        refusing = type(
            "Refusing", (Milter.Base,), {"connect": lambda self, *arguments: Milter.REJECT}
        )
        self.patch(Milter, "factory", refusing)
        self.assertEqual(TestCtx()._connect(), Milter.REJECT)
        self.assertRaises(ValueError, TestCtx()._connect, ip="x")

    def test_what_an_mta_would_not_take(self) -> None:
        """
        Edits at another time, and macros asked for twice or too many of them, are refused.
        """
        ctx = TestCtx()
        self.assertRaises(OSError, ctx.addheader, "A", "b")
        self.assertRaises(RuntimeError, ctx.setsymlist, 1, "i")
        ctx._stage = -1
        ctx.setsymlist(1, b"i", "j")
        self.assertEqual(ctx._symlist[1], {"i", "j"})
        self.assertRaises(ValueError, ctx.setsymlist, 1, "i")
        self.assertRaises(ValueError, ctx.setsymlist, 2, "a b c d e f")
        self.assertRaises(ValueError, ctx.setsymlist, 2, "")

    def test_wrong_text_is_refused(self) -> None:
        """
        What the module ``milter`` refuses is refused here, too.
        """

        def eom(self: Any) -> int:
            self.addrcpt("<new@example.com>\0")
            return Milter.CONTINUE

        self.patch(Milter, "factory", type("Wrong", (Milter.Base,), {"eom": eom}))
        ctx = TestCtx()
        ctx._connect()
        self.assertRaises(ValueError, ctx._feedMsg, "message")
        ctx._close()
        self.flushLoggedErrors()


class MixinTests(Case):
    """
    ``TestBase``.
    """

    def mixed(self, milter_class: Any = Editing) -> Any:
        """
        Make a milter to test.
        """

        class Mixed(TestBase, milter_class):  # type: ignore[misc]
            def __init__(self) -> None:
                TestBase.__init__(self)
                milter_class.__init__(self)

        made = Mixed()
        self.addCleanup(made._close)
        return made

    def test_milters_own_functions_write_down_what_they_are_asked_for(self) -> None:
        """
        The milter's own functions write down what they are asked for.
        """
        mixed = self.mixed()
        mixed.setsymval("{auth_authen}", "batman")
        self.assertEqual(mixed.connect(), Milter.CONTINUE)
        mixed.log("hello", 5)
        self.assertEqual(mixed.feedMsg("message"), Milter.ACCEPT)
        self.assertEqual(mixed.calls[1], ("batman", None))
        self.assertEqual(mixed._addrcpt, ["<new@example.com>"])
        self.assertEqual(mixed._body.getvalue(), b"Subject: hello\nX-Raw: \xff\n\nnew body\n")
        self.assertEqual(Path("test/milter.log").read_text(), "hello 5\n")

    def test_answer_other_than_continue_ends_message_or_connection(self) -> None:
        """
        An answer other than CONTINUE ends a message, or the connection.
        """
        self.assertEqual(
            self.mixed().feedFile(io.BytesIO(MESSAGE), "a@example.com", "refused"), Milter.REJECT
        )
        for name in ("connect", "hello"):
            refusing = type(
                "Refusing", (Milter.Base,), {name: lambda self, *arguments: Milter.REJECT}
            )
            self.assertEqual(self.mixed(refusing).connect(), Milter.REJECT)

    def test_message_that_is_not_changed_stays_as_it_was(self) -> None:
        """
        A message that is not changed stays as it was.
        """
        mixed = self.mixed(Milter.Base)
        mixed.connect()
        mixed.feedMsg("message")
        self.assertEqual(mixed._body.getvalue(), MESSAGE.replace(b"\r\n", b"\n"))


class InstallTests(SynchronousTestCase):
    """
    Which modules are found.
    """

    def test_without_pymilter_ours_are_found(self) -> None:
        """
        Without pymilter ours are found, as often as they are asked for.
        """
        self.assertIs(install(), sys.modules["Milter"])
        self.assertIs(sys.modules["milter"], milter)

    def test_who_takes_module_away_as_some_tests_do_gets_it_again(self) -> None:
        """
        Who takes a module away, as some tests do, gets it again.
        """
        self.patch(sys, "modules", dict(sys.modules))
        before = len(sys.meta_path)
        del sys.modules["Milter"], sys.modules["milter"]
        self.assertIs(install(), sys.modules["Milter"])
        self.assertEqual(len(sys.meta_path), before)

    def test_parts_that_are_not_here(self) -> None:
        """
        The error for a part of pymilter's own package says where it is.
        """
        for name in ("Milter.dsn", "Milter.greylist"):
            error = self.assertRaises(ModuleNotFoundError, importlib.import_module, name)
            self.assertIn("pymilter's own package alone", str(error))
        self.assertRaises(ModuleNotFoundError, importlib.import_module, "Milter.nothing")

    def test_pymilters_own_package(self) -> None:
        """
        Where a package of that name is installed it is used, on our module.
        """
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Path(folder.name, "Milter").mkdir()
        Path(folder.name, "Milter/__init__.py").write_text("import milter\nours = milter.error\n")
        self.patch(sys, "path", [folder.name, *sys.path])
        kept = sys.modules.pop("Milter")
        self.addCleanup(sys.modules.__setitem__, "Milter", kept)
        self.assertIs(install().ours, milter.error)
        self.assertIsInstance(sys.meta_path[-1], _installing._Missing)
