"""
The edits of several milters in a row as those of one filter.

An MTA makes edits in the order in which they come, so those of the milters after one another, in
their order, have the effect that they would have if each milter were a filter by itself. Those of
the envelope are sent just so: which spellings are one address, what it expands to and what becomes
of ESMTP arguments is known to the MTA alone. Of the header, two things are done differently: a
value that a later edit replaces is left out; and since an MTA may count fields differently once
another filter has begun, the list is tried on a model of the MTA's header, and when something else
comes out than the milters meant, their edits of the header are written anew. Bodies cannot follow
one another, since the MTA would join them: the last one counts, and goes in one row because Postfix
wants it so.
"""

from __future__ import annotations

from collections.abc import Generator

from yatxmilter._mail.header_models import HeaderModel, Snapshot
from yatxmilter._mail.pieces import done_at_once
from yatxmilter._wire.actions import ChangeHeader, Edit, OfHeader, edit_packet

__all__ = ["ChainEdits"]


class ChainEdits:
    """
    What the milters of a chain have made of one message so far.
    """

    def __init__(self) -> None:
        # The header as the MTA has shown it to the first milter; it stays `None` when it is not
        # known, so that edits can only be sent as they were made.
        self._received: Snapshot | None = None
        # `None` stands where an edit was that is left out.
        self._edits: list[tuple[Edit, bytes] | None] = []
        self._body: list[bytes] = []
        # Where the last edit of a field is, by the name of the field in lower case.
        self._last: dict[str, int] = {}
        # The filters that have edited the header, by their numbers.
        self._editors: set[int] = set()
        self._shortened = False

    def add(self, edit: Edit, packet: bytes, header: HeaderModel | None) -> None:
        """
        Add an edit other than one of the body.

        :param packet: The edit as it goes over the wire.
        :param header: The header as it is before the edit; ``None`` when it is not known.
        """
        if header is not None and isinstance(edit, OfHeader):
            if self._received is None:
                self._received = header.snapshot()
            self._editors.add(header.filters)
            name = edit.name.lower()
            if isinstance(edit, ChangeHeader):
                self._drop_change(edit, self._last.get(name), header)
            self._last[name] = len(self._edits)
        self._edits.append((edit, packet))

    def replace_body(self, packets: list[bytes]) -> None:
        """
        Take a milter's new body in place of what there was.
        """
        self._body = packets

    def packets(self, header: HeaderModel | None) -> list[bytes]:
        """
        Give all edits as packets, in an order that MTAs apply right.

        :param header: The header as all the milters have left it.
        """
        return done_at_once(self.work(header))

    def work(self, header: HeaderModel | None) -> Generator[None, None, list[bytes]]:
        """
        Do the same as `packets`, in pieces: an edit each, or all fields gone through for one thing;
        the list is what is returned.
        """
        pairs = [pair for pair in self._edits if pair is not None]
        if header is not None and self._received is not None and self._may_differ(header):
            received = yield from header.copying(self._received)
            tried = yield from received.copying()
            for edit, _ in pairs:
                yield from tried.prepare(edit)
                tried.apply(edit)
                yield
            found = tried.state()
            yield
            if found != header.state():
                pairs = [pair for pair in pairs if not isinstance(pair[0], OfHeader)]
                for edit in (yield from header.finding_edits(received)):
                    pairs.append((edit, edit_packet(edit)))
                    yield
        return [packet for _, packet in pairs] + self._body

    def _may_differ(self, header: HeaderModel) -> bool:
        return self._shortened or header.counts_by_filter and len(self._editors) > 1

    def _drop_change(self, change: ChangeHeader, last: int | None, header: HeaderModel) -> None:
        # The last edit of a field of this name, if it gave the very field another value: that
        # value is not seen any more. Anything else may have moved the count.
        if last is None:
            return
        earlier = self._edits[last]
        assert earlier is not None
        if (
            isinstance(earlier[0], ChangeHeader)
            and earlier[0].index == change.index
            and earlier[0].value
            and header.finds(change.name, change.index)
        ):
            self._edits[last] = None
            self._shortened = True
