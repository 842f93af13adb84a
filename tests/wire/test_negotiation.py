"""
Tests of `yatxmilter._wire.negotiation`: truth tables of what is asked for, offered and settled.
"""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.helpers import STEADY, outcome, table_of
from yatxmilter import constants as c
from yatxmilter._wire.negotiation import (
    Agreement,
    Request,
    check_request,
    data_size,
    effective_offer,
    merge,
)
from yatxmilter._wire.payloads import Offer
from yatxmilter.errors import NegotiationError, ProtocolError

#: What Postfix and Sendmail offer.
OFFER = Offer(6, 0x1FF, 0x1FFFFF)
#: What an MTA of the first version with milters can do.
OLD_OFFER = Offer(2, 0x3F, 0x7F)

#: Declining step -> the no-reply step of the same command.
STEPS = {
    c.SMFIP_NOCONNECT: c.SMFIP_NR_CONN,
    c.SMFIP_NOHELO: c.SMFIP_NR_HELO,
    c.SMFIP_NOMAIL: c.SMFIP_NR_MAIL,
    c.SMFIP_NORCPT: c.SMFIP_NR_RCPT,
    c.SMFIP_NODATA: c.SMFIP_NR_DATA,
    c.SMFIP_NOHDRS: c.SMFIP_NR_HDR,
    c.SMFIP_NOEOH: c.SMFIP_NR_EOH,
    c.SMFIP_NOBODY: c.SMFIP_NR_BODY,
    c.SMFIP_NOUNKNOWN: c.SMFIP_NR_UNKN,
}
#: Steps that are on when one milter asks for them.
ABILITIES = (c.SMFIP_SKIP, c.SMFIP_RCPT_REJ, c.SMFIP_HDR_LEADSPC)


def _request(steps: int = 0, actions: int = 0, lists: dict[int, bytes] | None = None) -> Request:
    return Request(actions, steps, lists or {})


def _steps(*requests: int, offered: int = OFFER.steps) -> int:
    """
    Merge requests of these steps; answer with the steps that the MTA is told.
    """
    agreement = merge(Offer(6, 0x1FF, offered), [_request(steps) for steps in requests])
    return agreement.steps


class EffectiveOfferTests(SynchronousTestCase):
    """
    An MTA's offer is read as libmilter reads it.
    """

    ROWS = {
        Offer(6, 0x1FF, 0x1FFFFF): Offer(6, 0x1FF, 0x1FFFFF),
        Offer(7, 0x1FF, 0x1FFFFF): Offer(6, 0x1FF, 0x1FFFFF),
        Offer(0x7FFFFFFF, 1, 1): Offer(6, 1, 1),
        Offer(5, 0x3F, 0x37F): Offer(5, 0x3F, 0x37F),
        Offer(2, 0, 0): Offer(2, 0x0F, 0x3F),
        Offer(2, 0, 1): Offer(2, 0x0F, 1),
        Offer(2, 1, 0): Offer(2, 1, 0x3F),
        Offer(6, 0x1FF, 0x401FFFFF): Offer(6, 0x1FF, 0x1FFFFF),
        Offer(6, 0x1FF, 0x301FFFFF): Offer(6, 0x1FF, 0x301FFFFF),
        Offer(6, 0x1FF, 0x002FFFFF): Offer(6, 0x1FF, 0x2FFFFF),
        Offer(6, 0xFFFFFFFF, 0xFFFFFFFF): Offer(6, 0xFFFFFFFF, 0xBFFFFFFF),
        Offer(1, 0x1FF, 0x1FFFFF): ProtocolError,
        Offer(0, 0x1FF, 0x1FFFFF): ProtocolError,
        Offer(0x80000006, 0x1FF, 0x1FFFFF): ProtocolError,
        Offer(0xFFFFFFFF, 0x1FF, 0x1FFFFF): ProtocolError,
    }

    def test_lower_version_counts_below_2_is_refused(self) -> None:
        """
        The lower version counts, below 2 is refused; no flags at all are those of version 1.
        """
        self.assertEqual(table_of(effective_offer, self.ROWS), self.ROWS)

    def test_error_says_which_version_the_mta_speaks(self) -> None:
        """
        The error says which version the MTA speaks.
        """
        error = self.assertRaises(ProtocolError, effective_offer, Offer(1, 0, 0))
        self.assertIn("version 1, 2 to 6 are known", str(error))


class CheckRequestTests(SynchronousTestCase):
    """
    One milter's request is held against the offer.
    """

    #: (actions asked, steps asked), (actions offered, steps offered) that go together.
    ACCEPTED = (
        ((0, 0), (0x0F, 0x3F)),
        ((0x1FF, 0x1FFFFF), (0x1FF, 0x1FFFFF)),
        ((0x0F, 0), (0x0F, 0x3F)),
        # No-reply steps can be done without the MTA; NODATA and NOUNKNOWN are of no use to it.
        ((0, c.ALL_NR_STEPS), (0x1FF, 0x7F)),
        ((0, c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN), (0x1FF, 0x7F)),
        ((0, c.SMFIP_NR_HDR), (0x1FF, 0x3F)),
        # A flag without a name yet, if the MTA knows it.
        ((0x200, 0x200000), (0x3FF, 0x3FFFFF)),
        ((0, c.SMFIP_MDS_1M), (0x1FF, 0x301FFFFF)),
    )
    REFUSED = {
        ((0x20, 0), (0x0F, 0x3F)): "SMFIF_QUARANTINE",
        ((0x1C1, 0), (0x3F, 0x7F)): "SMFIF_CHGFROM|SMFIF_ADDRCPT_PAR|SMFIF_SETSYMLIST",
        ((0x200, 0), (0x1FF, 0x1FFFFF)): "0x200",
        ((0, c.SMFIP_NOEOH), (0x1FF, 0x3F)): "SMFIP_NOEOH",
        ((0, c.SMFIP_SKIP), (0x3F, 0x7F)): "SMFIP_SKIP",
        ((0, c.SMFIP_RCPT_REJ), (0x3F, 0x7F)): "SMFIP_RCPT_REJ",
        ((0, c.SMFIP_HDR_LEADSPC), (0x3F, 0x7F)): "SMFIP_HDR_LEADSPC",
        ((0, 0x200000), (0x1FF, 0x1FFFFF)): "0x200000",
        ((0, c.SMFIP_MDS_256K), (0x1FF, 0x1FFFFF)): "SMFIP_MDS_256K",
        ((0, c.SMFIP_SKIP | c.SMFIP_NODATA | c.SMFIP_NR_HDR), (0x1FF, 0x7F)): "SMFIP_SKIP",
    }

    def test_what_is_offered_may_be_asked_for_so_may_what_can_be_done(self) -> None:
        """
        What is offered may be asked for; so may what can be done, or done without, by ourselves.
        """
        for (actions, steps), offered in self.ACCEPTED:
            request = _request(steps, actions)
            self.assertEqual(check_request(request, Offer(6, *offered)), request)

    def test_anything_else_that_is_not_offered_fails(self) -> None:
        """
        Anything else that is not offered fails, and the error names just what is missing.
        """
        for ((actions, steps), offered), names in self.REFUSED.items():
            error = self.assertRaises(
                NegotiationError, check_request, _request(steps, actions), Offer(6, *offered)
            )
            self.assertTrue(str(error).startswith(f"asks for {names}, the MTA offers "), error)

    def test_of_all_steps_that_have_name_only_no_reply_steps(self) -> None:
        """
        Of all steps that have a name, only no-reply steps, NODATA and NOUNKNOWN need no offer.
        """
        nothing = Offer(6, 0x1FF, 0)
        results = {1 << n: outcome(check_request, _request(1 << n), nothing) for n in range(32)}
        free = [bit for bit, result in results.items() if result is not NegotiationError]
        self.assertEqual(sum(free), c.ALL_NR_STEPS | c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN)


class OneMilterTests(SynchronousTestCase):
    """
    With one milter the agreement is what libmilter would answer for it.
    """

    @STEADY
    @given(st.integers(0, 0x1FF), st.integers(0, 0x1FFFFF))
    def test_exactly_its_request(self, actions: int, steps: int) -> None:
        """
        What a milter asks for, and the MTA offers, is what the MTA is told.
        """
        agreement = merge(OFFER, [_request(steps, actions, {2: b"i,j  {x}"})])
        self.assertEqual(
            agreement,
            Agreement(6, actions, steps, {2: b"i,j  {x}"}, OFFER, steps & c.ALL_NO_STEPS),
        )

    def test_silent_steps_that_are_not_offered_are_left_out_of_the_answer(self) -> None:
        """
        No-reply steps, NODATA and NOUNKNOWN that are not offered are left out of the answer.
        """
        asked = c.ALL_NR_STEPS | c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN | c.SMFIP_NOHELO
        agreement = merge(OLD_OFFER, [_request(asked)])
        self.assertEqual((agreement.version, agreement.steps), (2, c.SMFIP_NOHELO))

    def test_declined_all_the_same(self) -> None:
        """
        What the MTA does not know how to leave out still counts as declined here.
        """
        agreement = merge(Offer(2, 0x3F, 0x7F), [_request(c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN)])
        self.assertEqual(agreement.steps, 0)
        self.assertEqual(agreement.declined, c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN)

    def test_both_data_sizes(self) -> None:
        """
        Of two larger data sizes asked for, the MTA is told the larger one alone.
        """
        both = c.SMFIP_MDS_256K | c.SMFIP_MDS_1M
        self.assertEqual(_steps(both, offered=0x301FFFFF), c.SMFIP_MDS_1M)
        self.assertEqual(_steps(c.SMFIP_MDS_256K, offered=0x301FFFFF), c.SMFIP_MDS_256K)


class SeveralMiltersTests(SynchronousTestCase):
    """
    Several requests become one agreement.
    """

    def test_actions_are_the_union_of_what_all_ask_for(self) -> None:
        """
        Actions are the union of what all ask for.
        """
        requests = [_request(0, actions) for actions in (0x01, 0x20, 0x21, 0)]
        self.assertEqual(merge(OFFER, requests).actions, 0x21)

    def test_command_is_declined_where_every_milter_declines_it_and_only_there(self) -> None:
        """
        A command is declined where every milter declines it, and only there.
        """
        for step in STEPS:
            for choices in product((0, step), repeat=3):
                expected = step if all(choices) else 0
                self.assertEqual(_steps(*choices), expected, c.step_names(step))
                requests = [_request(choice) for choice in choices]
                self.assertEqual(merge(OFFER, requests).declined, expected)

    def test_command_goes_unanswered_where_every_milter_promises_silence(self) -> None:
        """
        A command goes without answer where every milter that wants it promises not to answer.
        """
        for no, nr in STEPS.items():
            #: what two milters ask for -> whether the command goes unanswered
            table = {
                (0, 0): False,
                (nr, 0): False,
                (nr, nr): True,
                (no, 0): False,
                (no, nr): True,
                (no | nr, nr): True,
                (no | nr, 0): False,
            }
            for (first, second), unanswered in table.items():
                for pair in ((first, second), (second, first)):
                    self.assertEqual(bool(_steps(*pair) & nr), unanswered, c.step_names(nr))
                    # Whatever they promise, an MTA that does not know it is not told of it.
                    self.assertFalse(_steps(*pair, offered=OFFER.steps & ~nr) & nr)

    def test_one_who_answers_is_enough(self) -> None:
        """
        Of three milters that want a command one that answers makes the MTA wait for answers.
        """
        nr = c.SMFIP_NR_HDR
        self.assertEqual(_steps(nr, nr, nr), nr)
        self.assertEqual(_steps(nr, 0, nr), 0)
        self.assertEqual(_steps(nr, c.SMFIP_NOHDRS, nr), nr)

    def test_skip_rcpt_rej_and_hdr_leadspc_are_on_where_one_milter_asks(self) -> None:
        """
        SKIP, RCPT_REJ and HDR_LEADSPC are on where one milter asks for them.
        """
        for step in (*ABILITIES, 0x200000):
            for choices in product((0, step), repeat=2):
                expected = step if any(choices) else 0
                self.assertEqual(_steps(*choices, offered=0x3FFFFF), expected)

    def test_of_data_sizes_asked_for_largest_counts_alone(self) -> None:
        """
        Of the data sizes asked for the largest counts, alone.
        """
        small, large = c.SMFIP_MDS_256K, c.SMFIP_MDS_1M
        table = {
            (0, 0): 0, (small, 0): small, (large, 0): large, (small, small): small,
            (small, large): large, (large, large): large, (small | large, 0): large,
        }  # fmt: skip
        for (first, second), expected in table.items():
            self.assertEqual(_steps(first, second, offered=0x301FFFFF), expected)
            self.assertEqual(_steps(second, first, offered=0x301FFFFF), expected)

    @STEADY
    @given(st.lists(st.integers(0, 0x1FFFFF), min_size=1, max_size=4), st.integers(0, 0x1FFFFF))
    def test_never_more_than_offered(self, asked: list[int], offered: int) -> None:
        """
        The MTA is never told a step that it did not offer, whatever was asked for and accepted.
        """
        offer = Offer(6, 0x1FF, offered)
        free = offered | c.ALL_NR_STEPS | c.SMFIP_NODATA | c.SMFIP_NOUNKNOWN
        requests = [check_request(_request(steps & free), offer) for steps in asked]
        self.assertEqual(merge(offer, requests).steps & ~offered, 0)

    @STEADY
    @given(st.lists(st.integers(0, 0x1FFFFF), min_size=1, max_size=4), st.integers())
    def test_order_does_not_matter(self, asked: list[int], place: int) -> None:
        """
        Steps and actions come out the same in whatever order the milters stand.
        """
        requests = [_request(steps, steps & 0x1FF) for steps in asked]
        place %= len(requests)
        turned = requests[place:] + requests[:place]
        self.assertEqual(merge(OFFER, turned), merge(OFFER, requests))

    def test_version_and_offer(self) -> None:
        """
        The agreement has the offer's version, and keeps the offer.
        """
        for offer in (OFFER, OLD_OFFER):
            agreement = merge(offer, [_request(), _request()])
            self.assertEqual((agreement.version, agreement.offer), (offer.version, offer))


class NoMilterTests(SynchronousTestCase):
    """
    A connection without milters.
    """

    def test_everything_that_mta_can_leave_out_is_declined(self) -> None:
        """
        Everything that the MTA can leave out is declined, no action and nothing else asked for.
        """
        for offered in (0x1FFFFF, 0x7F, 0x3F, 0x301FFFFF):
            agreement = merge(Offer(6, 0x1FF, offered), [])
            self.assertEqual(
                agreement[1:4] + agreement[5:],
                (0, offered & c.ALL_NO_STEPS, {}, c.ALL_NO_STEPS),
            )


class DataSizeTests(SynchronousTestCase):
    """
    The steps say how large a packet may be.
    """

    def test_without_flag_65535_bytes_with_one_262143_or_1048575_of_both_larger(self) -> None:
        """
        Without a flag 65535 bytes, with one 262143 or 1048575, of both the larger.
        """
        small, large = c.SMFIP_MDS_256K, c.SMFIP_MDS_1M
        table = {0: 65535, 0x1FFFFF: 65535, small: 262143, large: 1048575, small | large: 1048575}
        self.assertEqual(table_of(data_size, table), table)
