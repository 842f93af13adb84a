"""
Tests of what is logged of a milter's exception, where its own words do not say what to do.
"""

from __future__ import annotations

from typing import Any

from tests.conversation_helpers import HELO, ConversationTestCase, started
from yatxmilter import Milter


class RightNameTests(ConversationTestCase):
    """
    An AttributeError on a function of another library.
    """

    def logged(self, callback: str, use: Any, milter: type[Milter] = Milter) -> list[str]:
        """
        Give what is logged when a milter uses something.
        """
        self.events.clear()
        conversation = started(type("Wrong", (milter,), {callback: lambda self, *_: use(self)}))
        conversation.send(HELO)
        conversation.drop()
        self.assertEqual(len(self.failures()), 1)
        return self.log_text().splitlines()

    def test_functions_of_pymilter_are_told_with_their_names_here(self) -> None:
        """
        Each function that pymilter has, and a misspelt one of ours, is told with its name here,
        whether anything is answered or not.
        """
        for name, right in {
            "addheader": "smfi_addheader(headerf, headerv)",
            "chgheader": "smfi_chgheader(headerf, hdridx, headerv)",
            "addrcpt": "smfi_addrcpt(rcpt)",
            "delrcpt": "smfi_delrcpt(rcpt)",
            "replacebody": "smfi_replacebody(bodyp)",
            "quarantine": "smfi_quarantine(reason)",
            "progress": "smfi_progress()",
            "getsymval": "smfi_getsymval(symname)",
            "setreply": "smfi_setreply(rcode, xcode, message)",
            "chgfrom": "smfi_chgfrom(mail, args)",
            "setsymlist": "smfi_setsymlist(stage, macros)",
            "setpriv": "an attribute of self",
            "smfi_getpriv": "an attribute of self",
            "smfi_add_header": "smfi_addheader",
            "smfi_getsymbol": "smfi_getsymval",
        }.items():
            for callback in ("xxfi_helo", "xxfi_close"):
                text = "\n".join(self.logged(callback, lambda self, name=name: getattr(self, name)))
                failure = self.events[-1]["log_failure"].getErrorMessage()
                self.assertIn("Wrong failed in " + callback, text)
                self.assertIn(f"no attribute '{name}'; here it is {right}", failure)

    def test_attributes_of_other_objects_are_told_as_they_are(self) -> None:
        """
        Names that are nobody's, and attributes of other objects, are told as they are.
        """
        for use in (
            lambda self: self.unheard_of,
            lambda self: self.smfi_,
            lambda self: self.factory.addheader,
            lambda self: (_ for _ in ()).throw(AttributeError("bare")),
        ):
            self.logged("xxfi_helo", use)
            self.assertNotIn("here it is", self.events[-1]["log_failure"].getErrorMessage())
