"""
A message as an MTA keeps it while filters edit it.

One milter's edits are applied, and what the next one would be shown is read off. The two MTAs keep
the header differently, so there is a class for each: Postfix has lines, of which the first is a
``Received`` of its own that it never shows; Sendmail has slots, which stay when their field is
deleted. The body is spooled: in memory up to a size, on disk beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Final

from yatxmilter.responses import AddHeader, ChangeHeader, Edit, InsertHeader
from yatxmilter.rfc5322 import Field, wire_body
from yatxmilter.wire import from_text, to_text

__all__ = ["BodySpool", "PostfixHeader", "SendmailHeader", "header_model"]


def _raw_value(value: str, leading_space: bool) -> bytes:
    first, *rest = from_text(value).split(b"\n")
    # A line that does not start with a blank would be a field of its own: MTAs fold it.
    folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in rest]
    return (b"" if leading_space else b" ") + b"\n".join([first, *folded])


class PostfixHeader:
    """
    A header as Postfix keeps it.

    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed: values come and are shown with the
        blank after the colon.
    """

    def __init__(self, *, leading_space: bool = False) -> None:
        self.leading_space = leading_space
        # The Received that the MTA puts on top before any filter is asked. Filters never see it
        # and cannot change it, but it counts as a place.
        self._own: Final = Field(b"Received", b"")
        self._fields = [self._own]

    def receive(self, name: str, value: str) -> None:
        """
        Take a field as the MTA shows it to the first filter.
        """
        self._fields.append(self._field(name, value))

    def receive_field(self, field: Field) -> None:
        """
        Take a field as it stands in a message file.
        """
        self._fields.append(field)

    def _field(self, name: str, value: str) -> Field:
        return Field(from_text(name), _raw_value(value, self.leading_space))

    def apply(self, edit: Edit) -> None:
        """
        Make one edit of a filter; one that is not about the header changes nothing.
        """
        match edit:
            case AddHeader(name, value):
                self.add(self._field(name, value))
            case InsertHeader(index, name, value):
                self.insert(index, self._field(name, value))
            case ChangeHeader(index, name, value):
                self.change(index, self._field(name, value), delete=not value)

    def has(self, name: str, index: int) -> bool:
        """
        Tell whether CHGHEADER of this name and index finds a field.
        """
        return max(index, 1) <= len(self._places(from_text(name)))

    def add(self, field: Field) -> None:
        """
        ADDHEADER: at the end.
        """
        self._fields.append(field)

    def insert(self, index: int, field: Field) -> None:
        """
        INSHEADER: above the line after ``index`` others; at the end when there are fewer.
        """
        self._fields.insert(index, field)

    def change(self, index: int, field: Field, *, delete: bool) -> None:
        """
        CHGHEADER: the index-th of that name, 0 being 1; one that is not there is added.
        """
        places = self._places(field.name)
        wanted = max(index, 1) - 1
        if wanted < len(places):
            self._fields[places[wanted] : places[wanted] + 1] = [] if delete else [field]
        elif not delete:
            self._fields.append(field)

    def _places(self, name: bytes) -> list[int]:
        lower = name.lower()
        return [
            place
            for place, field in enumerate(self._fields)
            if field is not self._own and field.name.lower() == lower
        ]

    def fields(self) -> list[Field]:
        """
        Give the fields that filters see, as in a message file.
        """
        return [field for field in self._fields if field is not self._own]

    def shown(self) -> Iterator[tuple[str, str]]:
        """
        Give names and values as the MTA shows them to the next filter.
        """
        for field in self.fields():
            value = field.value if self.leading_space else field.bare_value()
            yield to_text(field.name), to_text(value)


class SendmailHeader(PostfixHeader):
    """
    A header as Sendmail keeps it.
    """


def header_model(flavour: str, *, leading_space: bool) -> PostfixHeader:
    """
    Make the header model of an MTA: ``"postfix"`` or ``"sendmail"``.
    """
    kind = PostfixHeader if flavour == "postfix" else SendmailHeader
    return kind(leading_space=leading_space)


class BodySpool:
    """
    A body: in memory up to a size, in a temporary file beyond it.

    :param memory: How many bytes are kept in memory.
    """

    def __init__(self, memory: int) -> None:
        self._file = SpooledTemporaryFile(memory)  # noqa: SIM115 (closed by close)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """
        Append bytes.
        """
        self._file.write(chunk)
        self.size += len(chunk)

    def chunks(self, size: int) -> Iterator[bytes]:
        """
        Read all, in chunks as an MTA sends them; nothing for an empty body.
        """
        position = 0
        while position < self.size:
            # Another reader may have moved the file's position between two chunks.
            self._file.seek(position)
            chunk = self._file.read(size)
            position += len(chunk)
            yield chunk

    def replace(self, chunks: Iterable[bytes]) -> None:
        """
        Take a filter's new body, with the line ends that the MTA gives it.
        """
        self._file.seek(0)
        self._file.truncate()
        self.size = 0
        self.write(wire_body(b"".join(chunks)))

    def close(self) -> None:
        """
        Give the memory, or the file, back.
        """
        self._file.close()
