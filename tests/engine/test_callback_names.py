"""
Tests of `yatxmilter._engine.callback_names`: what is checked when a milter class is made.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import Milter, noreply
from yatxmilter._engine.member import CALLBACKS


def nothing(*_: Any) -> None:
    """
    Be a callback.
    """


class NamingTests(SynchronousTestCase):
    """
    A class whose names or flags are wrong cannot be made.
    """

    def refusal(self, *bases: type, **members: Any) -> str:
        """
        Give the words with which a class is refused.
        """
        with self.assertRaises(TypeError) as caught:
            type("Wrong", bases or (Milter,), members)
        return str(caught.exception)

    def test_each_real_name_is_taken_under_functions_of_any_kind(self) -> None:
        """
        Each real name is taken, under functions of any kind.
        """
        for name in CALLBACKS:
            type("Right", (Milter,), {name: nothing})
            type("Right", (Milter,), {name: staticmethod(nothing)})

    def test_callback_that_nobody_could_call_is_refused_by_its_name(self) -> None:
        """
        A callback that nobody could call is refused, by its name; what gives one later is not.
        """
        for name in CALLBACKS:
            words = self.refusal(**{name: None})
            self.assertEqual(words, f"Wrong.{name} is None, expected a function")
        type("Right", (Milter,), {"xxfi_helo": property(lambda self: nothing)})

    def test_name_that_is_wrong_is_named_with_its_class(self) -> None:
        """
        A name that is wrong is named with its class, and the nearest that is right.
        """
        table = {
            "xxfi_heloo": "xxfi_helo",
            "xxfi_Body": "xxfi_body",
            "xxfi_header_field": "xxfi_header",
            "xxfi_rcpt": "xxfi_envrcpt",
            "xxfi_flag": "xxfi_flags",
            "xxfi_": "xxfi_eo",
        }
        for wrong, right in table.items():
            words = self.refusal(**{wrong: nothing})
            self.assertIn(f"Wrong.{wrong} ", words)
            self.assertIn(f"the nearest is {right}", words)

    def test_wrong_name_in_mixin_is_found_where_milter_class_is_made(self) -> None:
        """
        A wrong name in a mixin is found where the milter class is made.
        """
        mixin = type("Mixin", (), {"xxfi_bdoy": nothing})
        self.assertIn("xxfi_body", self.refusal(mixin, Milter))

    def test_names_that_do_not_begin_like_callbacks_are_the_users_own(self) -> None:
        """
        Names that do not begin like callbacks are the user's own.
        """
        type("Right", (Milter,), {"_xxfi_helper": nothing, "helper_xxfi_": 1, "smfi_own": nothing})

    def test_noreply_is_for_callbacks_that_have_an_smfip_nr_flag(self) -> None:
        """
        `noreply` is for callbacks that have an SMFIP_NR_* flag.
        """
        type("Right", (Milter,), {"xxfi_helo": noreply(lambda self, helohost: None)})
        for name in ("xxfi_eom", "xxfi_abort", "xxfi_close", "xxfi_negotiate", "xxfi_mta_connect"):
            words = self.refusal(**{name: noreply(lambda *_: None)})
            self.assertIn(name, words)
            self.assertIn("noreply", words)

    def test_xxfi_flags_are_a_number_or_none(self) -> None:
        """
        `xxfi_flags` are a number or None.
        """
        for right in (None, 0, 0x1FF):
            type("Right", (Milter,), {"xxfi_flags": right})
        for wrong in ("0", True, 1.0, [1]):
            self.assertIn(repr(wrong), self.refusal(xxfi_flags=wrong))
        for number in (-1, 1 << 32):
            with self.assertRaisesRegex(ValueError, f"Wrong.xxfi_flags is {number}, expected"):
                type("Wrong", (Milter,), {"xxfi_flags": number})

    def test_xxfi_name_is_a_text(self) -> None:
        """
        `xxfi_name` is a text that says something, or a property.
        """
        for right in ("mine", property(lambda self: "its own")):
            type("Right", (Milter,), {"xxfi_name": right})
        for wrong in (5, b"x", None):
            self.assertIn(f"xxfi_name is {wrong!r}, expected text", self.refusal(xxfi_name=wrong))
        with self.assertRaisesRegex(ValueError, "Wrong.xxfi_name is empty"):
            type("Wrong", (Milter,), {"xxfi_name": ""})
