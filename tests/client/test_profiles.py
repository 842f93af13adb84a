"""
Tests of the MTAs' habits where a table of its own shows them best; the rest is tested with the MTA
in memory, and against the real ones in ``tests/mta``.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter import constants as c
from yatxmilter._wire.actions import Agreement, Response
from yatxmilter.client._profiles import FLAVOURS, Reply, find_flavour

REJECT = Response(c.SMFIS_REJECT, c.SMFIR_REJECT)
TEMPFAIL = Response(c.SMFIS_TEMPFAIL, c.SMFIR_TEMPFAIL)


def text(value: str) -> Response:
    """
    Make the response that carries an SMTP reply.
    """
    code = c.SMFIS_REJECT if value.startswith("5") else c.SMFIS_TEMPFAIL
    return Response(code, c.SMFIR_REPLYCODE, value)


class FlavourTests(SynchronousTestCase):
    """
    Postfix and Sendmail.
    """

    def test_flavour_is_found_by_its_name_which_it_has_itself(self) -> None:
        """
        A flavour is found by its name, which it has itself.
        """
        for name in FLAVOURS:
            self.assertEqual(find_flavour(name).name, name)
        error = self.assertRaises(ValueError, find_flavour, "exim")
        self.assertIn("'exim'", str(error))

    def test_refusal_reads_as_that_mta_writes_it(self) -> None:
        """
        A refusal reads as that MTA writes it.
        """
        table = [
            ("eom", REJECT, "550 5.7.1 Command rejected", "554 5.7.1 Command rejected"),
            ("mail", REJECT, "550 5.7.1 Command rejected", "550 5.7.1 <a>... Command rejected"),
            (
                "rcpt",
                TEMPFAIL,
                "451 4.7.1 Service unavailable - try again later",
                "451 4.3.2 Please try again later",
            ),
            ("connect", text("550 5.7.1 no"), "550 5.7.1 no", "550 5.0.0 Command rejected"),
            ("helo", REJECT, "550 5.7.1 Command rejected", "550 5.0.0 Command rejected"),
            ("data", text("450 later"), "450 later", "450 4.0.0 later"),
            ("eom", text("550 5.7.1 100%%"), "550 5.7.1 100%", "550 5.7.1 100%"),
            ("eom", text("550 5.7.1 1%"), "550 5.7.1 1", "554 5.7.1 Command rejected"),
            (
                "rcpt",
                text("550-5.7.1 a\r\n550 5.7.1 b"),
                "550 5.7.1 a | 5.7.1 b",
                "550 5.7.1 <a>... a | 5.7.1 b",
            ),
            (
                "eom",
                Response(c.SMFIS_TEMPFAIL, c.SMFIR_SHUTDOWN),
                "421 4.7.0 Service unavailable",
                "421 4.7.0 Service unavailable",
            ),
        ]
        for stage, response, postfix, sendmail in table:
            for name, expected in (("postfix", postfix), ("sendmail", sendmail)):
                reply = find_flavour(name).refusal(stage, response, "<a>")
                self.assertEqual(str(reply), expected, f"{name} {stage} {response}")

    def test_milters_list_counts_even_if_empty(self) -> None:
        """
        A milter's list counts; an empty one is none to Postfix and no macros to Sendmail.
        """
        lists = {c.SMFIM_CONNECT: ["{a}"], c.SMFIM_HELO: list[str]()}
        agreed = Agreement(6, 0, 0, lists)
        postfix, sendmail = (find_flavour(name) for name in ("postfix", "sendmail"))
        for flavour in (postfix, sendmail):
            self.assertEqual(flavour.macro_names(c.SMFIC_CONNECT, agreed), ("{a}",))
            self.assertIn("i", flavour.macro_names(c.SMFIC_MAIL, None) or ())
            self.assertIsNone(flavour.macro_names(c.SMFIC_QUIT, agreed))
        self.assertIn("{cipher}", postfix.macro_names(c.SMFIC_HELO, agreed) or ())
        self.assertIsNone(sendmail.macro_names(c.SMFIC_HELO, agreed))
        self.assertEqual(postfix.macro_names(c.SMFIC_UNKNOWN, agreed), ())
        self.assertIsNone(sendmail.macro_names(c.SMFIC_UNKNOWN, agreed))

    def test_replys_text_has_its_lines(self) -> None:
        """
        A reply's text has its lines.
        """
        self.assertEqual(Reply(250, ("a", "b")).text, "a\nb")
