"""
The names that 0.1.1 gave its users still mean what they meant.
"""

from __future__ import annotations

import warnings
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.conversation_helpers import MAIL, RCPT, Conversation, full, started
from yatxmilter import Milter
from yatxmilter import constants as c
from yatxmilter._engine.legacy import NegotiateFlags, NetworkTypes, ReturnCodes, take_old_names


def old(*_: Any) -> c.ReturnCode:
    """
    Be a callback under its old name.
    """
    return c.SMFIS_REJECT


def new(*_: Any) -> c.ReturnCode:
    """
    Be a callback under its new name.
    """
    return c.SMFIS_TEMPFAIL


class OldNamesTests(SynchronousTestCase):
    """
    `xxfi_env_from` and `xxfi_env_rcpt`.
    """

    def made(self, *bases: type, **members: Any) -> tuple[Any, list[str]]:
        """
        Make a class; give it with the warnings that came of it.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cls = type("Old", bases or (Milter,), members)
        for warning in caught:
            self.assertIs(warning.category, DeprecationWarning)
        return cls, [str(warning.message) for warning in caught]

    def test_one_warning_for_each_old_name_says_the_new_one(self) -> None:
        """
        One warning for each old name says the new one, and points at the user's line.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")

            class Old(Milter):
                def xxfi_env_from(self, argv: list[str]) -> None:
                    pass

        (warning,) = caught
        self.assertIn("Old.xxfi_env_from", str(warning.message))
        self.assertIn("xxfi_envfrom", str(warning.message))
        self.assertEqual(warning.filename, __file__)
        self.assertIs(vars(Old)["xxfi_envfrom"], vars(Old)["xxfi_env_from"])

    def test_where_class_has_both_names_libmilters_counts_without_warning(self) -> None:
        """
        Where a class has both names libmilter's counts, without a warning.
        """
        cls, said = self.made(xxfi_env_from=old, xxfi_envfrom=new)
        self.assertEqual(said, [])
        self.assertEqual(started(cls).letters(MAIL), "t")

    def test_subclass_inherits_and_may_override_under_either_name(self) -> None:
        """
        A subclass inherits, and may override under either name.
        """
        parent, _ = self.made(xxfi_env_from=old)
        child, said = self.made(parent)
        self.assertEqual(said, [])
        self.assertEqual(started(child).letters(MAIL), "r")
        other, said = self.made(parent, xxfi_env_from=new)
        self.assertEqual(len(said), 1)
        self.assertEqual(started(other).letters(MAIL), "t")
        modern, said = self.made(parent, xxfi_envfrom=new)
        self.assertEqual(said, [])
        self.assertEqual(started(modern).letters(MAIL), "t")

    def test_old_name_in_a_mixin_counts_too(self) -> None:
        """
        An old name in a mixin counts too.
        """
        mixin = type("Mixin", (), {"xxfi_env_rcpt": old})
        cls, said = self.made(mixin, Milter)
        self.assertEqual(len(said), 1)
        conversation = Conversation(cls)
        self.assertEqual(conversation.agree()[2], 0x37F & ~c.SMFIP_NORCPT)
        self.assertEqual(conversation.letters(RCPT), "r")

    def test_new_names_do_not_warn(self) -> None:
        """
        Who uses libmilter's names hears nothing.
        """
        self.assertEqual(self.made(xxfi_envfrom=new, xxfi_envrcpt=new)[1], [])

    def test_class_that_has_neither_name_is_left_as_it_is(self) -> None:
        """
        A class that has neither name is left as it is.
        """
        plain = type("Plain", (), {})
        before = dict(vars(plain))
        take_old_names(plain)
        self.assertEqual(dict(vars(plain)), before)

    def test_list_of_four_from_xxfi_negotiate_is_understood(self) -> None:
        """
        The list of four that `xxfi_negotiate` returned in 0.1.1 is understood.
        """
        cls = full(negotiate=[c.SMFIS_CONTINUE, 6, 0x11, NegotiateFlags.HELO])
        self.assertEqual(Conversation(cls).agree(), (6, 0x11, c.SMFIP_NOHELO))


class NamesTests(SynchronousTestCase):
    """
    The classes of names.
    """

    def test_milter_has_them_as_attributes(self) -> None:
        """
        `Milter` has them as attributes.
        """
        self.assertIs(Milter.ReturnCodes, ReturnCodes)
        self.assertIs(Milter.NetworkTypes, NetworkTypes)
        self.assertIs(Milter.NegotiateFlags, NegotiateFlags)

    def test_families_are_the_letters_of_the_wire(self) -> None:
        """
        The families are the letters of the wire.
        """
        table = {"UNKNOWN": "U", "UNIX": "L", "INET": "4", "INET6": "6"}
        for name, letter in table.items():
            value = getattr(NetworkTypes, name)
            self.assertEqual(value if isinstance(value, str) else chr(value), letter)

    def test_each_flag_is_one_bit_no_two_the_same(self) -> None:
        """
        Each flag is one bit, no two the same.
        """
        values = [value for name, value in vars(NegotiateFlags).items() if name.isupper()]
        self.assertEqual(len(values), len(set(values)))
        self.assertTrue(all(value.bit_count() == 1 for value in values))
