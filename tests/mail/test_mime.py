"""
The parts of a message, found in its body.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.growth import assert_linear
from tests.helpers import STEADY
from yatxmilter._mail import mime
from yatxmilter._mail.bounds import MAX_MIME_DEPTH
from yatxmilter._mail.mime import Part, decode_content, find_parts

MIXED = [("Content-Type", ' Multipart/Mixed; boundary="b"')]
LINES = st.sampled_from(
    [b"--b", b"--b--", b"--c", b"--c--", b"--b  ", b"", b"text", b"Content-Type: multipart/x;"]
    + [b"Content-Type: multipart/y; boundary=c", b" boundary=b", b"Content-Type: message/rfc822"]
    + [b"--", b"-", b"X: y"]
)
BODIES = st.lists(st.tuples(LINES, st.sampled_from([b"\r\n", b"\n", b"\r"])), max_size=30).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def parts(body: bytes, fields: Any = MIXED) -> list[Part]:
    """
    Find all parts.
    """
    return list(find_parts(body, fields).walk())


class FindingTests(SynchronousTestCase):
    """
    Where parts are.
    """

    def test_parts_are_given_in_order_each_with_its_header(self) -> None:
        """
        Parts are given in order, each with its header, and with its content to the octet.
        """
        body = (
            b"preamble\r\n--b\r\nContent-Type: text/html; charset=ISO-8859-1\r\n\r\n<p>\xe9\r\n\r\n"
            b"--b \t\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\nin\r\n--c--\r\nend"
            b"\r\n--b\r\nContent-Disposition: attachment; filename*=utf-8''%C3%A9\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\nY2Fm\r\nw6k=\r\n--b--\r\nepilogue\r\n--b\r\n"
        )
        root, html, inner, leaf, file = parts(body)
        self.assertEqual([part.depth for part in (root, html, inner, leaf, file)], [0, 1, 1, 2, 1])
        self.assertEqual((root.content_type, root.octets), ("multipart/mixed", body))
        self.assertEqual((html.octets, html.text), (b"<p>\xe9\r\n", "<p>é\n"))
        self.assertEqual((html.charset, html.size, html.disposition), ("iso-8859-1", 6, None))
        self.assertEqual(
            (leaf.content_type, leaf.octets, leaf.charset), ("text/plain", b"in", None)
        )
        self.assertEqual(
            (file.filename, file.disposition, file.content), ("é", "attachment", "café".encode())
        )
        self.assertEqual(repr(leaf), "<Part text/plain at depth 2, 2 bytes>")
        self.assertIsNone(leaf.filename)
        self.assertEqual([part.defects for part in (root, inner, file)], [[], [], []])
        self.assertEqual(file.get("content-DISPOSITION"), file.get("Content-Disposition"))

    def test_message_in_a_message_has_its_own_parts(self) -> None:
        """
        A message in a message has its own parts; one that is encoded has none.
        """
        kind = [("Content-Type", "message/rfc822")]
        root, inner = parts(b"Subject: in\r\n\tside\r\n\r\ntext\r\n", kind)
        self.assertEqual((inner.get("Subject"), inner.octets), ("in\tside", b"text\r\n"))
        self.assertEqual(root.size, 28)
        self.assertEqual(
            len(parts(b"QQ==\r\n", [*kind, ("Content-Transfer-Encoding", "base64")])), 1
        )

    def test_boundary_that_is_used_again_inside_counts_there_first(self) -> None:
        """
        A boundary that is used again inside counts there first, and outside again behind its end.
        """
        inner = b"--b\r\n\r\n1\r\n--b--\r\n"
        body = b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n" + inner
        body += b"--b\r\n\r\n2\r\n--b--\r\n"
        self.assertEqual([part.octets for part in parts(body) if not part.parts], [b"1", b"2"])

    def test_what_is_wrong_is_told_and_all_of_body_is_in_some_part(self) -> None:
        """
        What is wrong is told, and all of the body is in some part.
        """
        for fields, body, defect in (
            ([("Content-Type", "multipart/mixed")], b"--b\r\n\r\nx\r\n", "no boundary"),
            ([("Content-Type", "multipart/mixed; boundary=" + "b" * 600)], b"x\r\n", "no boundary"),
            (MIXED, b"text\r\n", "no parts"),
            (MIXED, b"--b\r\n\r\ntext\r\n", "not closed"),
            (MIXED, b"--b\r\nno field\r\n--b--\r\n", "empty line"),
            (MIXED, b"--b\r\nA: b\r\n--b--\r\n", ""),
            (MIXED, b"--b\r\n", "not closed"),
            (MIXED, b"--b\n\nx\n--b--\n", ""),
            (MIXED, b"--b" + b" " * 600 + b"\r\n\r\nx\r\n--b--", ""),
            (MIXED, b"--b" + b" " * 600 + b"x\r\n\r\nx\r\n--b--", "no parts"),
            (MIXED, b"--b" + b" " * 600, "not closed"),
        ):
            told = [told for part in parts(body, fields) for told in part.defects]
            self.assertIn(defect, " ".join(told), body)
            self.assertEqual(bool(defect), bool(told), body)

    def test_what_lies_deeper_than_bound_is_part_of_leaf_with_defect(self) -> None:
        """
        What lies deeper than the bound is part of a leaf with a defect.
        """
        for kind, last in (
            (b"multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", b"b299"),
            (b"message/rfc822; x=%d; y=%d\r\n\r\n", b"text"),
        ):
            body = b"".join(b"Content-Type: " + kind % (n, n) for n in range(1, 300))
            found = parts(body + b"\r\ntext\r\n", [("Content-Type", "message/rfc822")])
            self.assertEqual(len(found), MAX_MIME_DEPTH + 1)
            self.assertIn("deeper than 100", found[-1].defects[0])
            self.assertIn(last, found[-1].octets)

    def test_of_parts_beyond_bound_rest_is_last_parts(self) -> None:
        """
        Of parts beyond the bound the rest is the last part's.
        """
        self.patch(mime, "MAX_MIME_PARTS", 4)
        found = parts(b"--b\r\n\r\nx\r\n" * 10 + b"--b--\r\n")
        self.assertEqual(len(found), 4)
        self.assertTrue(found[-1].octets.endswith(b"--b--\r\n"))
        self.assertIn("more than", found[-1].defects[0])
        nested = b"Content-Type: multipart/x; boundary=c\r\n\r\n"
        nested += b"--c\r\n\r\n1\r\n--c\r\n\r\n2\r\n--c--\r\n"
        found = parts(b"--b\r\n" + nested + b"--b\r\n\r\n3\r\n--b--\r\n")
        self.assertEqual(len(found), 2)
        body = b"Content-Type: message/rfc822\r\n\r\n" * 9
        found = parts(body, [("Content-Type", "message/rfc822")])
        self.assertEqual((len(found), len(found[-1].defects)), (4, 1))
        self.patch(mime, "MAX_MIME_PARTS", 1)
        (found_one,) = parts(b"--b\r\n\r\nx\r\n--b--\r\n")
        self.assertIn("more than", found_one.defects[0])

    def test_headers_of_parts_are_kept_up_to_bound(self) -> None:
        """
        Headers of parts are kept up to a bound.
        """
        self.patch(mime, "MAX_HEADER_BYTES", 100)
        found = parts(
            b"--b\r\nA: "
            + b"x" * 50
            + b"\r\n\r\n1\r\n--b\r\nB: "
            + b"y" * 80
            + b"\r\n\r\n2\r\n--b--\r\n"
        )
        self.assertEqual([len(part.fields) for part in found], [1, 1, 0])
        self.assertIn("more than 100 bytes", found[2].defects[0])
        self.assertIn(b"2", found[2].octets)

    @STEADY
    @given(BODIES, st.sampled_from(["multipart/mixed; boundary=b", "message/rfc822", "text/plain"]))
    def test_any_body_has_parts_those_of_one_lie_in_it_in_order(
        self, body: bytes, kind: str
    ) -> None:
        """
        Any body has parts; those of one lie in it, in order, and do not overlap.
        """
        for part in parts(body, [("Content-Type", kind)]):
            place = part.start
            for inner in part.parts:
                self.assertTrue(place <= inner.head <= inner.start <= inner.end <= part.end)
                place = inner.end
            self.assertEqual(part.size, len(part.octets))
            self.assertIsInstance(part.text, str)

    def test_body_in_file_is_looked_through_there(self) -> None:
        """
        A body in a file is looked through there.
        """
        with tempfile.TemporaryFile() as file:
            file.write(b"--b\r\n\r\nx\r\n--b--\r\n")
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.assertEqual([part.octets for part in parts(data)][1], b"x")  # type: ignore[arg-type]

    def test_transfer_encodings_are_taken_off(self) -> None:
        """
        Transfer encodings are taken off; what is broken in them is left out.
        """
        for encoding, octets, expected in (
            ("base64", b"Y2Fm\r\nw6k=\r\n", "café".encode()),
            ("base64", b"Y2Fm!w6k", "café".encode()),
            ("base64", b"Y2Fmw", b"caf"),
            ("quoted-printable", b"a=3Db=\r\nc\r\n", b"a=bc\r\n"),
            ("x-unknown", b"a=3Db", b"a=3Db"),
        ):
            self.assertEqual(decode_content(octets, encoding), expected)

    def test_takes_time_linear_in_the_length(self) -> None:
        """
        It takes time linear in the length.
        """
        pieces = (
            b"--b\r\n",
            b"--\r\n",
            b"--b\r\nX: y\r\n",
            b"--b\r\n\r\n",
            b"X: y\r\n",
            b"--b--\r\n",
        )

        def work(size: int) -> Any:
            return lambda: [parts(b"--b\r\n" + piece * size) for piece in pieces]

        assert_linear(work, 200)
