"""
The message as it is delivered: modification actions applied to it by Postfix's rules.

The MTA puts a ``Received`` field of its own on top before it applies anything. Milters never see
it and cannot change it, yet it counts as a place when a field is inserted; so it stands in the
list of fields here too, as `_OWN`, and is taken out at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from yatxmilter.responses import AddHeader, ChangeHeader, Edit, InsertHeader, ReplaceBody
from yatxmilter.rfc5322 import Field, Mail, split_mail, wire_body
from yatxmilter.wire import from_text

__all__ = ["apply_edits"]

_OWN: Final = Field(b"Received", b"")


def apply_edits(message: bytes, edits: Iterable[Edit], *, leading_space: bool = False) -> bytes:
    """
    Edit a message as Postfix does.

    Envelope edits and quarantine leave the message's bytes alone.

    :param message: What the milter saw, in either kind of line end; the result has the same.
    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed, so that the milter gave the blank
        after the colon itself.
    """
    mail = split_mail(message)
    fields = [_OWN, *mail.fields]
    body: list[bytes] = []
    replaced = False
    for edit in edits:
        match edit:
            case AddHeader(name, value):
                fields.append(_field(name, value, leading_space))
            case InsertHeader(index, name, value):
                fields.insert(index, _field(name, value, leading_space))
            case ChangeHeader(index, name, value):
                _change(fields, index, _field(name, value, leading_space), delete=not value)
            case ReplaceBody(chunk):
                replaced = True
                body.append(chunk)
    visible = [field for field in fields if field is not _OWN]
    new_body = wire_body(b"".join(body)) if replaced else mail.body
    return Mail(visible, mail.separated, new_body, mail.line_end).join()


def _field(name: str, value: str, leading_space: bool) -> Field:
    first, *rest = from_text(value).split(b"\n")
    # A line that does not start with a blank would be a field of its own: Postfix folds it.
    folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in rest]
    blank = b"" if leading_space else b" "
    return Field(from_text(name), blank + b"\n".join([first, *folded]))


def _change(fields: list[Field], index: int, new: Field, *, delete: bool) -> None:
    """
    Change the index-th field of the new one's name, counted from 1; 0 is taken for 1.
    """
    name = new.name.lower()
    places = [
        place
        for place, field in enumerate(fields)
        if field.name.lower() == name and field is not _OWN
    ]
    wanted = max(index, 1) - 1
    if wanted < len(places):
        fields[places[wanted] : places[wanted] + 1] = [] if delete else [new]
    elif not delete:
        fields.append(new)
