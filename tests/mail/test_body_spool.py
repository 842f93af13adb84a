"""
Tests of `yatxmilter._mail.body_spool`: a body that is kept, read in chunks and replaced.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from yatxmilter._mail.body_spool import BodySpool


class SpoolTests(SynchronousTestCase):
    """
    The body, in memory and on disk.
    """

    def spool(self, memory: int = 1000, flavour: str = "postfix") -> BodySpool:
        """
        Make a spool that is closed at the end.
        """
        spool = BodySpool(memory, flavour)
        self.addCleanup(spool.close)
        return spool

    def test_what_was_written_is_read_in_chunks_of_size(self) -> None:
        """
        What was written is read in chunks of a size, whichever chunks it was written in.
        """
        for memory in (4, 1000):
            spool = self.spool(memory)
            for piece in (b"one", b"", b"twothree"):
                spool.write(piece)
            self.assertEqual(list(spool.chunks(4)), [b"onet", b"woth", b"ree"])
            self.assertEqual(list(spool.chunks(100)), [b"onetwothree"])

    def test_empty_body_has_no_chunks(self) -> None:
        """
        An empty body has no chunks.
        """
        self.assertEqual(list(self.spool().chunks(10)), [])

    def test_two_may_read_at_time(self) -> None:
        """
        Two may read at a time.
        """
        spool = self.spool()
        spool.write(b"abcd")
        self.assertEqual(
            list(zip(spool.chunks(2), spool.chunks(2), strict=True))[1], (b"cd", b"cd")
        )

    def test_beyond_its_size_in_memory_it_goes_to_disk(self) -> None:
        """
        Beyond its size in memory it goes to disk.
        """
        for memory, on_disk in ((10, True), (100, False)):
            spool = self.spool(memory)
            spool.write(3 * b"x")
            self.assertIsNone(spool._file)
            spool.write(50 * b"x")
            self.assertEqual(spool._file._rolled, on_disk)  # type: ignore[attr-defined]
            self.assertEqual(list(spool.chunks(100)), [53 * b"x"])

    def test_single_chunk_needs_no_file_unless_it_is_large(self) -> None:
        """
        A single chunk needs no file, unless it is larger than what is kept in memory.
        """
        for size, in_file in ((10, False), (11, True)):
            spool = self.spool(10)
            spool.write(size * b"x")
            self.assertEqual(spool._file is not None, in_file)
            self.assertEqual(list(spool.chunks(7)), [7 * b"x", (size - 7) * b"x"])
            spool.replace([b"new"])
            self.assertEqual(list(spool.chunks(7)), [b"new\r\n"])

    def test_new_body_takes_place_of_old_one_be_it_longer_or_shorter(self) -> None:
        """
        A new body takes the place of the old one, be it longer or shorter.
        """
        spool = self.spool()
        spool.write(100 * b"x")
        spool.replace([b"new\r\n", b"body\r\n"])
        self.assertEqual(list(spool.chunks(100)), [b"new\r\nbody\r\n"])
        spool.replace([b""])
        self.assertEqual(list(spool.chunks(100)), [])

    def test_new_body_is_shown_with_line_ends_that_mta_gives_it(self) -> None:
        """
        A new body is shown with the line ends that the MTA gives it.
        """
        table = {
            b"a\nb\n": (b"a\r\nb\r\n", b"a\r\nb\r\n"),
            b"none": (b"none\r\n", b"none"),
            b"a\rb\r\n": (b"a\rb\r\n", b"a\rb\r\n"),
            b"a\r\r\n": (b"a\r\r\n", b"a\r\n"),
            b"end\r": (b"end\r\r\n", b"end\r"),
            b".\n\0": (b".\r\n\0\r\n", b".\r\n\0"),
        }
        for body, expected in table.items():
            for flavour, shown in zip(("postfix", "sendmail"), expected, strict=True):
                spool = self.spool(flavour=flavour)
                spool.replace([body[:1], body[1:]])
                self.assertEqual(b"".join(spool.chunks(100)), shown, f"{body!r} {flavour}")

    def test_closing_gives_file_back(self) -> None:
        """
        Closing gives the file back.
        """
        spool = self.spool(1)
        spool.write(b"on disk")
        file = spool._file
        assert file is not None
        spool.close()
        self.assertTrue(file.closed)

    def test_closed_body_is_not_taken_for_an_empty_one(self) -> None:
        """
        A body that is closed while it is read is not taken for one that is over.
        """
        for memory in (1, 1000):
            spool = self.spool(memory)
            spool.write(b"abcdef")
            chunks = spool.chunks(2)
            self.assertEqual(next(chunks), b"ab")
            spool.close()
            with self.assertRaises(ValueError):
                next(chunks)

    def test_closed_body_is_neither_read_nor_written(self) -> None:
        """
        A body that is closed is neither read nor written: a thread that is late must not take it
        for one that has no more bytes.
        """
        for memory, body in ((1, b"abcdef"), (1000, b"abcdef"), (1000, b"")):
            spool = self.spool(memory)
            spool.write(body)
            spool.close()
            with self.assertRaises(ValueError):
                spool.read_at(len(body), 2)
            with self.assertRaises(ValueError):
                spool.write(b"more")
            with self.assertRaises(ValueError):
                spool.replace([b"new"])

    def test_shorter_file_than_was_written_is_not_read_for_ever(self) -> None:
        """
        A file that has become shorter than what was written is an error.
        """
        spool = self.spool(1)
        spool.write(b"abcdef")
        assert spool._file is not None
        spool._file.truncate(4)
        with self.assertRaises(ValueError):
            list(spool.chunks(4))

    def test_closed_on_a_full_disk(self) -> None:
        """
        What cannot be written when it is closed is lost, and nothing else.
        """
        spool = self.spool(1)
        spool.write(b"on disk")

        def close() -> None:
            raise OSError("No space left on device")

        self.patch(spool._file, "close", close)
        spool.close()

    def test_another_one_of_same_kind_is_empty(self) -> None:
        """
        Another one of the same kind is empty.
        """
        spool = self.spool(flavour="sendmail")
        spool.write(b"old")
        other = spool.another()
        self.addCleanup(other.close)
        other.replace([b"new\n"])
        self.assertEqual(list(other.chunks(100)), [b"new\r\n"])
