"""
Tests of `yatxmilter.client._command_queue`: what the agreement changes, and SKIP.

Everything is done through the client, whose lower half the exchange is.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.milterside import CONTINUE, NOTHING, V4, Rig, packet
from yatxmilter import constants as c
from yatxmilter.errors import ValueNotSendable


class AgreementTests(SynchronousTestCase):
    """
    What was negotiated is honoured.
    """

    CALLS: tuple[tuple[str, tuple[Any, ...], str, int, int], ...] = (
        ("connect", ("h", V4), "C", c.SMFIP_NOCONNECT, c.SMFIP_NR_CONN),
        ("helo", ("h",), "H", c.SMFIP_NOHELO, c.SMFIP_NR_HELO),
        ("mail", ("<>",), "M", c.SMFIP_NOMAIL, c.SMFIP_NR_MAIL),
        ("rcpt", ("<a>",), "R", c.SMFIP_NORCPT, c.SMFIP_NR_RCPT),
        ("data", (), "T", c.SMFIP_NODATA, c.SMFIP_NR_DATA),
        ("unknown", ("X",), "U", c.SMFIP_NOUNKNOWN, c.SMFIP_NR_UNKN),
        ("header", ("A", "b"), "L", c.SMFIP_NOHDRS, c.SMFIP_NR_HDR),
        ("eoh", (), "N", c.SMFIP_NOEOH, c.SMFIP_NR_EOH),
        ("body", (b"x",), "B", c.SMFIP_NOBODY, c.SMFIP_NR_BODY),
    )

    def test_declined_command_is_not_sent_and_counts_as_continue(self) -> None:
        """
        A declined command is not sent and counts as CONTINUE; its macros are sent, as by Postfix.
        """
        for name, arguments, letter, no, _ in self.CALLS:
            rig = Rig()
            rig.agree(no)
            result = getattr(rig.client, name)(*arguments, macros={"i": "1"})
            self.assertEqual(self.successResultOf(result), NOTHING)
            self.assertEqual(rig.sent(), [("D", letter.encode() + b"i\x001\0")])
            self.assertEqual(self.successResultOf(getattr(rig.client, name)(*arguments)), NOTHING)
            self.assertEqual(rig.sent(), [])

    def test_command_that_needs_no_reply_is_sent_and_not_waited_for(self) -> None:
        """
        A command that needs no reply is sent and not waited for.
        """
        for name, arguments, letter, _, nr in self.CALLS:
            rig = Rig()
            rig.agree(nr)
            result = getattr(rig.client, name)(*arguments)
            self.assertEqual(self.successResultOf(result), NOTHING)
            self.assertEqual(rig.letters(), letter)
            self.assertNoResult(rig.client.end_of_message())
            self.assertEqual(rig.letters(), "E")

    def test_command_is_not_sent_to_milter_whose_version_does_not_have_it(self) -> None:
        """
        A command is not sent to a milter whose version does not have it.
        """
        table = {2: "E", 3: "UE", 4: "TUE", 5: "TUE", 6: "TUKE"}
        for version, expected in table.items():
            rig = Rig()
            rig.agree(version=version)
            results: list[Deferred[Any]] = [
                rig.client.data({"i": "1"}), rig.client.unknown("X"), rig.client.quit_nc(),
                rig.client.end_of_message(),
            ]  # fmt: skip
            sent = [one for one in rig.serve() + rig.serve() if one[0] != "D"]
            self.assertEqual("".join(letter for letter, _ in sent), expected)
            for result in results:
                self.successResultOf(result)

    def test_old_version_gets_no_macros(self) -> None:
        """
        Macros for a command that the version does not have are not sent either.
        """
        rig = Rig()
        rig.agree(version=3)
        rig.client.data({"i": "1"})
        self.assertEqual(rig.sent(), [])

    def test_after_skip_no_more_of_this_messages_body_is_sent(self) -> None:
        """
        After SKIP no more of this message's body is sent; the next message's is.
        """
        for end in ("end_of_message", "abort", "mail"):
            rig = Rig()
            client = rig.client
            first = client.body(b"one")
            second = client.body(b"two", {"i": "1"})
            self.assertEqual(rig.letters(), "B")
            rig.answer("s")
            self.assertEqual(self.successResultOf(first).code, c.SMFIS_SKIP)
            self.assertEqual(self.successResultOf(second), NOTHING)
            self.assertEqual(rig.letters(), "")
            getattr(client, end)(*(("<>",) if end == "mail" else ()))
            if end != "abort":
                rig.answer("c")
            rig.written()
            client.body(b"three")
            self.assertEqual(rig.sent(), [("B", b"three")])

    def test_body_larger_than_agreed_data_size_is_cut(self) -> None:
        """
        A body larger than the agreed data size is cut, and a chunk's answer is awaited.
        """
        body = bytes(range(256)) * 600
        sizes = {0: 65535, c.SMFIP_MDS_256K: 262143, c.SMFIP_MDS_1M: 1048575}
        for step, size in sizes.items():
            rig = Rig()
            rig.agree(step)
            result = rig.client.body(body, {"i": "1"})
            seen = rig.serve()
            chunks = [payload for letter, payload in seen if letter == "B"]
            self.assertEqual(b"".join(chunks), body)
            self.assertEqual([len(chunk) for chunk in chunks[:-1]], [size] * (len(chunks) - 1))
            self.assertEqual(len(chunks), -(-len(body) // size))
            self.assertEqual([one[0] for one in seen], ["D", "B"] * len(chunks))
            self.assertEqual(self.successResultOf(result), CONTINUE)

    def test_settled_between_chunks(self) -> None:
        """
        An answer other than CONTINUE keeps back the chunks after it.
        """
        for letter, code in (("s", c.SMFIS_SKIP), ("r", c.SMFIS_REJECT), ("a", c.SMFIS_ACCEPT)):
            rig = Rig()
            result = rig.client.body(bytes(200000))
            seen = rig.serve({"B": [packet("c"), packet(letter)]})
            self.assertEqual("".join(one for one, _ in seen), "BB")
            self.assertEqual(self.successResultOf(result).code, code)

    def test_chunks_without_reply(self) -> None:
        """
        Chunks that need no reply are sent one behind the other.
        """
        rig = Rig()
        rig.agree(c.SMFIP_NR_BODY)
        result = rig.client.body(bytes(131071))
        self.assertEqual([len(payload) for _, payload in rig.sent()], [65535, 65535, 1])
        self.assertEqual(self.successResultOf(result), NOTHING)

    def test_any_other_payload_over_agreed_size_fails_its_command_alone(self) -> None:
        """
        Any other payload over the agreed size fails its command alone.
        """
        rig = Rig()
        longest = rig.client.header("N", "v" * 65532)
        too_long = rig.client.header("N", "v" * 65533)
        after = rig.client.eoh()
        self.assertEqual([len(payload) for _, payload in rig.sent()], [65535])
        rig.answer("c")
        rig.answer("c")
        self.assertEqual(self.successResultOf(longest), CONTINUE)
        self.failureResultOf(too_long, ValueNotSendable)
        self.assertEqual(self.successResultOf(after), CONTINUE)
