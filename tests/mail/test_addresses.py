"""
Lists of addresses: as RFC 5322 has them, as they come, and as they are written.
"""

from __future__ import annotations

from email.headerregistry import Address as TheirAddress
from email.headerregistry import Group as TheirGroup
from email.utils import getaddresses
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from tests.rfc2047 import shown_names, unfolded
from yatxmilter._mail.addresses import Address, Group
from yatxmilter._mail.fields import AddressesValue, read_field, write_field

NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12
)
DISPLAY = st.lists(NAMES, max_size=6).map(" ".join)
LOCALS = st.from_regex(r"\A[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,12}(\.[a-z0-9]{1,5})?\Z")
DOMAINS = st.sampled_from(["example.com", "mx.example.net"])
ADDRESSES = st.builds(Address, DISPLAY, LOCALS, DOMAINS)
#: What a list of addresses is made of, in no order.
PIECES = st.lists(
    st.sampled_from(
        ["<", ">", ",", ";", ":", "@", '"', "(", ")", "[", "]", "\\", " ", "a", "é", ".", "\t"]
        + ["=?utf-8?q?=2C?=", "=?utf-8?q?a?=", "a@b.example", "<c@d.example>", "\udce9"]
    ),
    max_size=25,
).map("".join)


def read(raw: str) -> AddressesValue:
    """
    Read a list of addresses.
    """
    value = read_field("To", raw)
    assert isinstance(value, AddressesValue)
    return value


def specs(value: AddressesValue) -> list[str]:
    """
    Give the addresses without their names.
    """
    return [address.addr_spec for address in value.addresses]


class ReadingTests(SynchronousTestCase):
    """
    Addresses of a raw value.
    """

    def test_names_quotes_comments_routes_and_groups_are_read(self) -> None:
        """
        Names, quotes, comments, routes, blanks around dots and groups are read as RFC 5322 says.
        """
        value = read(
            'Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>, "Joe Q. Public"'
            " <john.q.public@example.com>,\n Mary <@node.test,@x.test:mary@example.net> ,"
            ' jdoe@one.test, "j d"@example.org, one . two @ three . test,'
            " A Group(Some people):Chris <c@[192.0.2.1]>, joe@where.test;,"
            " Undisclosed recipients:;, who@one.test (Who)"
        )
        self.assertEqual(
            value.addresses,
            (
                Address("Pete", "pete", "silly.test"),
                Address("Joe Q. Public", "john.q.public", "example.com"),
                Address("Mary", "mary", "example.net"),
                Address("", "jdoe", "one.test"),
                Address("", "j d", "example.org"),
                Address("", "one.two", "three.test"),
                Address("Chris", "c", "[192.0.2.1]"),
                Address("", "joe", "where.test"),
                Address("Who", "who", "one.test"),
            ),
        )
        names = [group.display_name for group in value.groups if group.display_name is not None]
        self.assertEqual(names, ["A Group", "Undisclosed recipients"])
        self.assertEqual(value.defects, ())
        self.assertIsNone(value.address)
        self.assertEqual(read("<a@b>").address, Address("", "a", "b"))

    def test_encoded_words_in_names_and_comments_are_decoded(self) -> None:
        """
        Encoded words in names and comments are decoded, and never make another structure.
        """
        for raw, text, name in (
            (
                "=?utf-8?q?B=C3=BCrgerb=C3=BCro_M=C3=BCnch?=\n =?utf-8?q?en?= <b@example.org>",
                "Bürgerbüro München <b@example.org>",
                "Bürgerbüro München",
            ),
            (
                "=?utf-8?q?boss=40example=2Ecom=2C?= <b@example.org>",
                '"boss@example.com," <b@example.org>',
                "boss@example.com,",
            ),
            ("=?utf-8?q?a=22b?= c <b@example.org>", '"a\\"b" c <b@example.org>', 'a"b c'),
            ("=?utf-8?q??= <b@example.org>", " <b@example.org>", ""),
            ('"=?utf-8?q?x=2Cy?=" <b@example.org>', '"x,y" <b@example.org>', "x,y"),
            ('"=\\?utf-8?q?x?=" <b@example.org>', '"=\\?utf-8?q?x?=" <b@example.org>', None),
            ("b@example.org (=?utf-8?q?x=29?=)", "b@example.org (x\\))", "x)"),
            ("<b@example.org> (=?utf-8?q?x?=)", "<b@example.org> (x)", "x"),
        ):
            value = read(raw)
            self.assertEqual(value, text)
            self.assertEqual(specs(value), ["b@example.org"])
            self.assertEqual(
                value.addresses[0].display_name, name or "=?utf-8?q?x?=" * (name is None)
            )
        self.assertEqual(specs(read("<=?utf-8?q?a?=@example.org>")), ["=?utf-8?q?a?=@example.org"])

    def test_as_they_come(self) -> None:
        """
        Whatever is wrong with a list, each address that somebody might see is found, and the defect
        is told.
        """
        for raw, expected, defect in (
            ("a@b.test <c@d.test>", ["c@d.test"], ""),
            ("<a@b.test> <c@d.test>", ["a@b.test", "c@d.test"], "no comma"),
            ("a@b.test c@d.test", ["a@b.test", "c@d.test"], "no brackets"),
            ('"x" a@b.test c @ d.test', ["a@b.test", "c@d.test"], "no brackets"),
            ("Bob bob@b.test", ["bob@b.test"], "no brackets"),
            ("<a@b.test, c@d.test>", ["a@b.test", "c@d.test"], "not closed"),
            ("<a@b.test", ["a@b.test"], "not closed"),
            ("a@b.test>", ["a@b.test"], "not open"),
            ("a@b.test; c@d.test", ["a@b.test", "c@d.test"], ""),
            ("<a@b@c.test>", ['"a@b"@c.test'], "more than one @"),
            ("a@b@c.test", ['"a@b"@c.test'], "more than one @"),
            ('<"a"@b@c.test>', ['"a@b"@c.test'], "more than one @"),
            ('"a"@b@c.test', ['"a@b"@c.test'], "more than one @"),
            ("<a:b@c.test>", ['"a:b"@c.test'], ""),
            ("a@b.test: c", ["a@b.test:", "c"], "colon"),
            ("A: b@b.test", ["b@b.test"], "not closed"),
            ("A: B: c@c.test;", ["c@c.test"], "colon"),
            ("nobody", ["nobody"], "no @"),
            ("no body", ['"no body"'], "no @"),
            ('"no" body', ['"no body"'], "no @"),
            ('"x"', ["x"], "no @"),
            ("<a@b.test> x", ["a@b.test", "x"], "behind an address"),
            ("a@b.test (open", ["a@b.test"], "comment is not closed"),
            ('a@b.test, "open', ["a@b.test", "open"], "no @"),
            ("Name <>", [""], ""),
            ("A: <>;", [""], ""),
            ("A:<>;", [""], ""),
            ("(x)<>", [""], ""),
            ("(x) <>", [""], ""),
            ("<>, <>", ["", ""], ""),
            ("<", [], "not closed"),
            (",, ,", [], ""),
            ("a@b.test x", ["a@b.test", "x"], "no brackets"),
            ("a . b", ['"a . b"'], "no @"),
        ):
            value = read(raw)
            self.assertEqual(specs(value), expected, raw)
            self.assertIn(defect, " ".join(value.defects), raw)
        self.assertIn("not UTF-8", read("caf\udce9 <a@b.test>").defects[0])
        self.assertEqual(str(read("Name <>").addresses[0]), "Name <>")
        self.assertEqual(str(Address()), "<>")

    @STEADY
    @given(PIECES)
    def test_whatever_comes_is_read(self, raw: str) -> None:
        """
        Whatever comes is read; it can be set with a text in front, as one field that shows it so.
        """
        value = read(raw)
        self.assertIsInstance(value.defects, tuple)
        again = write_field("To", f"[x] {value}", raw)
        self.assertNotRegex(again, "\n(?![ \t])|[\r\0]")
        # Where words stood against all rules without blanks, there may be blanks and quotes now.
        bare = str.maketrans("", "", ' "\t\\')
        self.assertEqual(read(again).translate(bare), f"[x] {value}".translate(bare))

    def test_takes_time_linear_in_the_length(self) -> None:
        """
        It takes time linear in the length.
        """
        texts = ('"', "(", "<", ",", ":", "@", "[", '\\"', "a@b,", "a@b ", ";", "@:", "x;y:", "()")

        def work(size: int) -> Any:
            return lambda: [read(text * size).defects for text in texts]

        assert_linear(work, 100)

    def test_takes_time_linear_in_the_lengths_of_two_kinds(self) -> None:
        """
        It does so where much of one kind comes behind much of another, in brackets and outside.
        """
        texts = (" ", ",", "@a", "x", ":", ";", "<", "(")
        pairs = [(start, one, other) for start in ("", "<") for one in texts for other in texts]

        def work(size: int) -> Any:
            return lambda: [
                read(start + one * size + "@a" + other * size).defects
                for start, one, other in pairs
            ]

        assert_linear(work, 200)


class WritingTests(SynchronousTestCase):
    """
    Addresses that are set.
    """

    @STEADY
    @given(st.lists(ADDRESSES, min_size=1, max_size=5))
    def test_set_and_read(self, addresses: list[Address]) -> None:
        """
        What was set as addresses parses to the same addresses (law 6), also for another reader.
        """
        raw = write_field("To", ", ".join(map(str, addresses)))
        self.assertTrue(raw.isascii())
        self.assertEqual(list(read(raw).addresses), addresses)
        theirs = [spec for _, spec in getaddresses([unfolded(raw)])]
        self.assertEqual(theirs, [address.addr_spec for address in addresses])
        self.assertEqual(raw, write_field("To", addresses))

    @STEADY
    @given(DISPLAY)
    @example("Müller, Jörg")
    @example("=?utf-8?q?x?=")
    def test_name_that_is_set_is_what_independent_reader_shows_law_3(self, name: str) -> None:
        """
        A name that is set is what an independent reader shows (law 3).
        """
        text = f"{Address(name, 'a', 'example.com')}"
        shown = shown_names(write_field("From", text))
        self.assertIn(shown, (text, f"{name} <a@example.com>"))

    def test_names_phrases_and_comments_are_encoded_as_such(self) -> None:
        """
        Names, phrases and comments are encoded as such; ASCII stays as it is.
        """
        for text, expected in (
            ("Jörg <a@b.test>", "=?utf-8?q?J=C3=B6rg?= <a@b.test>"),
            ('"Müller, J" Ö <a@b.test>', "=?utf-8?q?M=C3=BCller=2C_J_=C3=96?= <a@b.test>"),
            ("a@b.test (Jörg (ü) x)", "a@b.test (=?utf-8?q?J=C3=B6rg?= (=?utf-8?q?=C3=BC?=) x)"),
            ("a@b.test (a\\é)", "a@b.test (=?utf-8?q?a=C3=A9?=)"),
            (
                "Ü: a@b.test, é<c@d.test>;",
                "=?utf-8?q?=C3=9C?= : a@b.test, =?utf-8?q?=C3=A9?= <c@d.test>;",
            ),
            (" é a@b.test", "=?utf-8?q?_=C3=A9?= a@b.test"),
            ("é a@b.test", "=?utf-8?q?=C3=A9?= a@b.test"),
            ("(c)é <a@b.test>", "(c) =?utf-8?q?=C3=A9?= <a@b.test>"),
            ("<a@b.test> é", "<a@b.test> =?utf-8?q?=C3=A9?="),
            ("é", "=?utf-8?q?=C3=A9?="),
            ("é, x", "=?utf-8?q?=C3=A9?= , x"),
            ('"x, y" <a@b.test>,c@d.test', '"x, y" <a@b.test>,c@d.test'),
            ("caf\udce9 <a@b.test>", "caf\udce9 <a@b.test>"),
        ):
            self.assertEqual(write_field("To", text), expected)

    def test_address_objects_of_either_library_can_be_set(self) -> None:
        """
        Address objects, ours and those of the standard library, can be set, alone and in lists.
        """
        ours = [Address("Jo, Q", "j d", "b.test"), Group("All", (Address("", "a", "b.test"),))]
        text = '"Jo, Q" <"j d"@b.test>, All: a@b.test;'
        self.assertEqual(write_field("To", ours), text)
        theirs = [
            TheirAddress("Jo, Q", "j d", "b.test"),
            TheirGroup("All", [TheirAddress("", "a", "b.test")]),
        ]
        self.assertEqual(write_field("To", theirs), text)
        self.assertEqual(
            str(Group(None, (Address("", "a", "b"), Address("", "c", "d")))), "a@b, c@d"
        )
        for value in ([1], 1, [Address(), None]):
            error = self.assertRaises(ValueError, write_field, "To", value)
            self.assertIn("header To", str(error))
        self.assertRaises(ValueError, write_field, "Subject", Address())

    def test_address_that_is_not_ascii_is_refused_by_name_of_its_field(self) -> None:
        """
        An address that is not ASCII is refused by the name of its field, unless it was read.
        """
        for text in ("jörg@b.test", "<jörg@b.test>", "é <a@bü.test>", "<é (x)@b.test>"):
            error = self.assertRaises(ValueError, write_field, "Cc", text)
            self.assertIn("header Cc", str(error))
            self.assertEqual(write_field("Cc", f"x, {text}", text).replace("\n", ""), f"x, {text}")

    def test_takes_time_linear_in_the_length(self) -> None:
        """
        It takes time linear in the length.
        """
        texts = ("é ", "é,", "é@x ", "(é", "<é", '"é" ', "é:", "é")

        def work(size: int) -> Any:
            return lambda: [write_field("To", text * size, text * size) for text in texts]

        assert_linear(work, 100)
