"""
Tests of `yatxmilter._wire.negotiation`: the macro names that several milters ask for.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS, Request, merge
from yatxmilter._wire.payloads import Offer


class SymbolListTests(SynchronousTestCase):
    """
    Symbol lists are joined stage by stage.
    """

    @staticmethod
    def _merged(*lists: dict[int, bytes]) -> dict[int, bytes]:
        return merge(Offer(6, 0x1FF, 0x1FFFFF), [Request(0, 0, one) for one in lists]).symbol_lists

    def test_where_nobody_asks_for_list_none_is_sent(self) -> None:
        """
        Where nobody asks for a list none is sent.
        """
        self.assertEqual(self._merged({}), {})
        self.assertEqual(self._merged({}, {}), {})

    def test_one_milters_lists_go_out_as_it_wrote_them_empty_ones_too(self) -> None:
        """
        One milter's lists go out as it wrote them, empty ones too.
        """
        lists = {0: b"j {client_port}", 1: b"", 5: b"i,{msg_id}"}
        self.assertEqual(self._merged(lists), lists)

    def test_where_all_ask_each_name_is_asked_for_once(self) -> None:
        """
        Where all ask, each name is asked for once, in the order in which it was first asked for.
        """
        merged = self._merged({2: b"{b} i a", 3: b"x"}, {2: b"a,c  {b}", 3: b""}, {2: b"", 3: b"y"})
        self.assertEqual(merged, {2: b"{b} i a c", 3: b"x y"})

    def test_stage_for_which_all_ask_for_nothing_has_empty_list(self) -> None:
        """
        A stage for which all ask for nothing has an empty list.
        """
        self.assertEqual(self._merged({1: b""}, {1: b""}), {1: b""})

    def test_defaults_are_kept(self) -> None:
        """
        Where some milter relies on the MTA's own list, its names are asked for too.
        """
        for stage, default in DEFAULT_SYMBOLS.items():
            merged = self._merged({stage: b"{own} i"}, {})
            names = merged[stage].decode().split()
            self.assertEqual(list(merged), [stage])
            self.assertEqual(names[:2], ["{own}", "i"])
            self.assertEqual(sorted(names), sorted({"{own}", "i", *default.split()}))

    def test_whether_defaults_are_kept_is_decided_for_each_stage_by_itself(self) -> None:
        """
        Whether defaults are kept is decided for each stage by itself.
        """
        merged = self._merged({2: b"i", 4: b"a"}, {4: b"b"})
        self.assertEqual(merged[4], b"a b")
        self.assertIn(b"{mail_addr}", merged[2])

    def test_names_that_are_no_text_survive(self) -> None:
        """
        Names that are no text survive.
        """
        self.assertEqual(
            self._merged({0: b"\xff i"}, {0: b"\xc3\xbc \xff"}), {0: b"\xff i \xc3\xbc"}
        )

    DEFAULTS = {
        # Postfix's and Sendmail's default lists, name by name.
        0: "j {daemon_name} {daemon_addr} v _ {if_name} {if_addr}",
        1: "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}",
        2: "i {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer}"
        " {auth_ssf}",
        3: "i {rcpt_addr} {rcpt_host} {rcpt_mailer}",
        4: "i",
        5: "i {msg_id}",
        6: "i",
    }

    def test_names_kept_are_those_that_postfix_and_sendmail_send_unasked(self) -> None:
        """
        The names kept are those that Postfix and Sendmail send unasked, all braced as they must be.
        """
        self.assertEqual(
            {stage: sorted(names.split()) for stage, names in DEFAULT_SYMBOLS.items()},
            {stage: sorted(names.split()) for stage, names in self.DEFAULTS.items()},
        )
