"""
Tests of `yatxmilter._wire.macros`: what C{smfi_getsymval} finds, and when a macro ends.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._wire.macros import MacroLimits, MacroStore, RecipientMissed, mta_flavour
from yatxmilter.errors import ProtocolError

#: The letters of the stages that have macros, in the order of look-up, from the end.
STAGES = b"CHMRTNE"


def _store(*payloads: bytes) -> MacroStore:
    store = MacroStore()
    for payload in payloads:
        store.put(payload)
    return store


class StoringTests(SynchronousTestCase):
    """
    A macro packet replaces the macros of its stage.
    """

    def test_macros_of_connect_helo_envfrom_envrcpt_data(self) -> None:
        """
        Macros of connect, helo, envfrom, envrcpt, data, end of headers and of message are kept.
        """
        for letter in STAGES:
            store = _store(bytes([letter]) + b"i\x004Xyz\x00{mail_addr}\x00s@example.org\x00")
            self.assertEqual(store.get("i"), "4Xyz")
            self.assertEqual(store.get("{mail_addr}"), "s@example.org")

    def test_macros_of_any_other_command_are_ignored(self) -> None:
        """
        Macros of any other command are ignored.
        """
        for letter in range(256):
            if letter not in STAGES:
                store = _store(b"Ci\x001\x00", bytes([letter]) + b"i\x002\x00j\x003\x00")
                self.assertEqual((store.get("i"), store.get("j")), ("1", None), chr(letter))

    def test_second_packet_for_stage_replaces_all_macros_of_first(self) -> None:
        """
        A second packet for a stage replaces all macros of the first.
        """
        store = _store(b"Mi\x001\x00j\x002\x00")
        self.assertEqual((store.get("i"), store.get("j")), ("1", "2"))
        store.put(b"Mi\x003\x00")
        self.assertEqual((store.get("i"), store.get("j")), ("3", None))

    def test_packets_without_strings(self) -> None:
        """
        A packet of the stage's letter alone, or without any NUL, leaves the old macros.
        """
        for payload in (b"M", b"Mi", b"Mi=2"):
            store = _store(b"Mi\x001\x00", payload)
            self.assertEqual(store.get("i"), "1", payload)

    def test_odd_last_name_has_no_value_bytes_behind_last_nul_are_dropped(self) -> None:
        """
        An odd last name has no value, bytes behind the last NUL are dropped, the first of two wins.
        """
        store = _store(b"Mi\x001\x00i\x002\x00k\x00\x00j\x003\x00odd\x00rest")
        self.assertEqual(
            {name: store.get(name) for name in ("i", "j", "k", "odd", "rest")},
            {"i": "1", "j": "3", "k": "", "odd": None, "rest": None},
        )

    def test_look_up_before_any_packet(self) -> None:
        """
        A store without macros finds nothing.
        """
        self.assertEqual(_store().get("i"), None)
        self.assertEqual(_store().all(), {})


class LimitTests(SynchronousTestCase):
    """
    An MTA cannot make a connection keep more macros than any MTA has.
    """

    def test_number_in_a_stage(self) -> None:
        """
        A stage may have 512 macros, and not one more; other stages are not counted.
        """
        most = b"".join(b"%d\x00\x00" % number for number in range(512))
        store = _store(b"C" + most, b"H" + most)
        self.assertEqual((store.get("0"), store.get("511")), ("", ""))
        error = self.assertRaises(ProtocolError, store.put, b"M" + most + b"m\x00\x00")
        self.assertEqual(str(error), "513 macros for one stage, at most 512 are taken")

    def test_macros_without_name_and_value_are_counted_like_others(self) -> None:
        """
        Macros without name and value are counted like others.
        """
        store = _store(b"C" + b"\x00\x00" * 512)
        self.assertRaises(ProtocolError, store.put, b"C" + b"\x00\x00" * 513)

    def test_bytes_of_all_stages(self) -> None:
        """
        The macros of all stages together have a limit in bytes; a stage's old ones do not count.
        """
        store = MacroStore()
        store.limits = MacroLimits(most_bytes=70)
        payloads = [bytes([letter]) + b"n\x00" + b"v" * 14 + b"\x00" for letter in STAGES]
        for payload in (*payloads[:3], *payloads[:3], b"Ri\x001\x00"):
            store.put(payload)
        self.assertRaises(ProtocolError, store.put, payloads[4])
        store = MacroStore()
        store.limits = MacroLimits(most_bytes=72)
        for payload in payloads[:4]:
            store.put(payload)
        error = self.assertRaises(ProtocolError, store.put, payloads[4])
        self.assertEqual(str(error), "macros of 90 bytes, at most 72 are taken")

    def test_by_default_each_stage_may_have_as_large_a_packet_as_can_be(self) -> None:
        """
        By default each stage may have a packet as large as a packet can be.
        """
        store = MacroStore()
        for letter in STAGES:
            store.put(bytes([letter]) + b"n\x00" + b"v" * 65531 + b"\x00")
        self.assertEqual(len(store.get("n") or ""), 65531)


class LookUpTests(SynchronousTestCase):
    """
    Macros are found from the last stage to the first, by their exact name.
    """

    def test_latest_stage_that_has_macro_wins_in_order_c_h_m_r_t_n_e(self) -> None:
        """
        The latest stage that has the macro wins, in the order C H M R T N E.
        """
        for older, newer in zip(STAGES, STAGES[1:], strict=False):
            old, new = bytes([older]) + b"i\x00old\x00", bytes([newer]) + b"i\x00new\x00"
            self.assertEqual(_store(old, new).get("i"), "new")
            self.assertEqual(_store(new, old).get("i"), "new")

    def test_earlier_stages_shine_through(self) -> None:
        """
        A macro that a later stage does not have is found in an earlier one.
        """
        store = _store(b"Cj\x00mx.example.net\x00", b"Ei\x001\x00")
        self.assertEqual((store.get("j"), store.get("i")), ("mx.example.net", "1"))

    def test_name_without_value_hides(self) -> None:
        """
        A name that came without a value hides that of an earlier stage, as in libmilter.
        """
        store = _store(b"Ci\x001\x00", b"Mi\x00")
        self.assertEqual(store.get("i"), None)

    NAMES = {
        "j": "one", "{j}": "one",
        "k": "braced", "{k}": "braced",
        "{daemon_name}": "MTA", "daemon_name": None, "{{daemon_name}}": None,
        "plain": "unbraced", "{plain}": None,
        "J": None, "{DAEMON_NAME}": None, "{j": None, "j}": None, "{}": None, "": None,
        "\xfc": "utf8", "{\xfc}": None,
        "\udcff": "byte", "{\udcff}": "byte",
    }  # fmt: skip

    def test_braces_are_optional_round_a_name_of_one_byte_only(self) -> None:
        """
        Braces are optional round a name of one byte only; else names match exactly.
        """
        store = _store(
            b"Cj\x00one\x00{k}\x00braced\x00{daemon_name}\x00MTA\x00plain\x00unbraced\x00"
            b"\xc3\xbc\x00utf8\x00\xff\x00byte\x00"
        )
        self.assertEqual({name: store.get(name) for name in self.NAMES}, self.NAMES)

    def test_letter_with_and_without_braces_is_one_macro_first_that_came_wins(self) -> None:
        """
        A letter with and without braces is one macro; the first that came wins.
        """
        self.assertEqual(_store(b"Ci\x001\x00{i}\x002\x00").get("i"), "1")
        self.assertEqual(_store(b"C{i}\x002\x00i\x001\x00").get("i"), "2")

    def test_empty_name_finds_nothing_even_if_mta_sent_one(self) -> None:
        """
        An empty name finds nothing, even if the MTA sent one.
        """
        self.assertEqual(_store(b"C\x00v\x00").get(""), None)

    def test_name_that_no_bytes_can_have_finds_nothing(self) -> None:
        """
        A name that no bytes can have finds nothing.
        """
        self.assertEqual(_store(b"C{v}\x001\x00").get("{\ud800}"), None)

    def test_name_is_found_however_it_is_written(self) -> None:
        """
        A name of one byte is found with its braces and without, a longer one as it came; a part of
        a name, or a value that looks like one, is not.
        """
        store = _store(b"C{v}\x001\x00{long}\x002\x00bare\x003\x00x\x00{y}\x00\xff\x004\x00")
        names = (
            "v",
            "{v}",
            "{long}",
            "long",
            "bare",
            "{bare}",
            "x",
            "{y}",
            "{lon",
            "\udcff",
            "{\udcff}",
            "{",
        )
        self.assertEqual(
            {name: store.get(name) for name in names if store.get(name) is not None},
            {
                "v": "1",
                "{v}": "1",
                "{long}": "2",
                "bare": "3",
                "x": "{y}",
                "\udcff": "4",
                "{\udcff}": "4",
            },
        )

    def test_values_are_text(self) -> None:
        """
        Values are text in which every byte survives.
        """
        store = _store(b"C_\x00gr\xc3\xbcn \xff\x00")
        self.assertEqual(store.get("_"), "gr\xfcn \udcff")

    def test_all_macros_together_are_those_that_look_up_of_each_would_find(self) -> None:
        """
        All macros together are those that a look-up of each would find.
        """
        store = _store(b"Cj\x00mx\x00i\x001\x00", b"E{i}\x002\x00", b"Rx\x00\x00odd\x00")
        found = store.all()
        self.assertEqual(found, {"j": "mx", "i": "2", "x": "", "odd": None})
        self.assertEqual({name: store.get(name) for name in found}, found)


class ClearingTests(SynchronousTestCase):
    """
    Macros end from a stage on.
    """

    def test_clearing_from_stage_ends_its_macros_and_those_after_it(self) -> None:
        """
        Clearing from a stage ends its macros and those after it, and leaves those before it.
        """
        packets = [bytes([letter]) + b"{m%c}\x00v\x00" % letter for letter in STAGES]
        names = [f"{{m{chr(letter)}}}" for letter in STAGES]
        for first in range(8):
            store = _store(*packets)
            self.assertEqual([name for name in names if store.get(name)], names)
            store.clear_from(first)
            self.assertEqual([name for name in names if store.get(name)], names[:first])
            self.assertEqual(sorted(store.all()), sorted(names[:first]))

    def test_cleared_stage_fills_again(self) -> None:
        """
        A stage whose macros were looked at and cleared takes new ones, and the old are gone.
        """
        store = _store(b"Mi\x001\x00j\x002\x00")
        self.assertEqual(store.get("i"), "1")
        store.clear_from(2)
        self.assertEqual(store.get("i"), None)
        store.put(b"M")
        self.assertEqual(store.get("i"), None)
        store.put(b"Mi\x003\x00")
        self.assertEqual((store.get("i"), store.get("j")), ("3", None))


class FlavourTests(SynchronousTestCase):
    """
    How the MTAs are told apart.
    """

    def test_sendmails_v_begins_with_release_of_sendmails_or_is_missing(self) -> None:
        """
        Sendmail's ``v`` begins with a release of Sendmail's, or is missing; all else is a Postfix.
        """
        for version in ("8.17.1.9", "8.18.1/8.18.1/Debian", "10.0"):
            self.assertEqual(mta_flavour(version, "mta.example.com"), "sendmail")
        for version in ("Postfix 3.7.11", "3.7.11", "Example 9", "7", "\u0668.1", "20 mails"[2:]):
            self.assertEqual(mta_flavour(version, "mta.example.com"), "postfix")
        for version in (None, ""):
            self.assertEqual(mta_flavour(version, "mta.example.com"), "sendmail")
            self.assertEqual(mta_flavour(version, None), "postfix")


class RecipientMissedTests(SynchronousTestCase):
    """
    The macros for a milter that was not shown a recipient.
    """

    def test_macros_of_recipients_stay_those_of_last_one_that_it_was_shown(self) -> None:
        """
        Macros of recipients stay those of the last one that it was shown; all others are as they
        come, also later.
        """
        store = MacroStore()
        store.put(b"R{rcpt_addr}\0a\0")
        seen = store.recipient
        store.put(b"R{rcpt_addr}\0b\0")
        missed = RecipientMissed(store, seen)
        self.assertEqual((store.get("{rcpt_addr}"), missed.get("{rcpt_addr}")), ("b", "a"))
        self.assertIsNone(missed.get("i"))
        store.put(b"Ti\0ID\0")
        self.assertEqual(missed.get("i"), "ID")
        self.assertEqual(missed.get("i"), "ID")
        self.assertEqual(missed.of_stage(ord("R")), {"{rcpt_addr}": "a"})
        self.assertIsNone(RecipientMissed(store, None).of_stage(ord("R")))
