"""
Tests of ``smfi_*`` functions that are called in another thread than the connection's.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.contexts import EXAMPLES, ContextCase
from tests.conversation_helpers import EOM, MAIL, RCPT, full, macros, started
from tests.helpers import elsewhere
from yatxmilter import Milter
from yatxmilter.constants import SMFIM_EOM
from yatxmilter.errors import UsageError, WrongThread
from yatxmilter.testing import InMemoryMTA

#: Further functions, with arguments.
OTHERS: dict[str, tuple[Any, ...]] = {
    "getsymval": ("i",),
    "setreply": ("550", None, "x"),
    "setmlreply": ("550", None, "x"),
    "setsymlist": (SMFIM_EOM, "i"),
    "progress": (),
}


class ThreadTests(ContextCase):
    """
    All functions, in the right thread and in the wrong one.
    """

    def test_each_is_refused_with_what_to_use_instead(self) -> None:
        """
        Each is refused, says what to use instead, and changes nothing.
        """
        self.context.negotiating = True
        for function, arguments in {**EXAMPLES, **OTHERS}.items():
            call = getattr(self.context, function)
            (error,) = elsewhere(lambda call=call, a=arguments: call(*a))
            self.assertIsInstance(error, WrongThread)
            self.assertIsInstance(error, UsageError)
            for words in (f"smfi_{function}()", "callFromThread", "blockingCallFromThread"):
                self.assertIn(words, str(error))
        context = self.context
        self.assertEqual((context.outbox, context.reply, context.symbol_lists), ([], None, {}))
        self.assertEqual(self.progressed, 0)

    def test_in_the_connections_own_thread_each_works(self) -> None:
        """
        In the connection's own thread each works.
        """
        self.context.negotiating = True
        for function, arguments in {**EXAMPLES, **OTHERS}.items():
            getattr(self.context, function)(*arguments)
        self.assertEqual((len(self.context.outbox), self.progressed), (len(EXAMPLES), 1))


class ServedThreadTests(SynchronousTestCase):
    """
    Whatever thread a connection is served in.
    """

    def test_served_in_another_thread(self) -> None:
        """
        A connection that is served in a thread of its own is at home there.
        """
        symbols: list[Any] = []

        def eom(self: Any) -> None:
            symbols.append(self.smfi_getsymval("i"))
            self.smfi_addheader("X", "y")

        said: list[str] = []

        def serve() -> None:
            conversation = started(full(eom=eom))
            said.append(conversation.letters(macros("M", b"i", b"1") + MAIL + RCPT, EOM))

        self.assertEqual(elsewhere(serve), [])
        self.assertEqual((said, symbols), (["cchc"], ["1"]))

    def test_in_test_kit_milter_that_forgets_itself_is_told_of_it(self) -> None:
        """
        In the test kit a milter that forgets itself is told of it.
        """

        class Threaded(Milter):
            def xxfi_eom(self) -> None:
                errors = elsewhere(lambda: self.smfi_addheader("X", "y"))
                self.smfi_addheader("X-Error", type(errors[0]).__name__)

        mta = InMemoryMTA(Threaded)
        sent = mta.send(b"Subject: x\r\n\r\nx\r\n")
        self.assertIn(("X-Error", "WrongThread"), [edit[:2] for edit in sent.edits])
        mta.finish()
