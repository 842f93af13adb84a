"""
The message as it is delivered: modification actions applied to it by an MTA's rules.

The header follows the rules of the model that ``merge="chain"`` uses, so what is tried here is what
milters in a chain see. Fields that only the MTA knows are not in the result.
"""

from __future__ import annotations

from collections.abc import Iterable

from yatxmilter._mail.header_models import header_model
from yatxmilter._mail.rfc5322 import Mail, split_mail, wire_body
from yatxmilter._wire.actions import Edit, ReplaceBody

__all__ = ["apply_edits"]


def apply_edits(
    message: bytes,
    edits: Iterable[Edit],
    *,
    leading_space: bool | None = None,
    flavour: str = "postfix",
) -> bytes:
    """
    Edit a message as an MTA does.

    Envelope edits and quarantine leave the message's bytes alone.

    :param message: What the milter saw, in either kind of line end; the result has the same.
    :param leading_space: Whether SMFIP_HDR_LEADSPC was agreed, so that the milter gave the blank
        after the colon itself. By default what the edits of an `Outcome` say; of others, not.
    :param flavour: Whose rules: ``"postfix"`` or ``"sendmail"``.
    :raises ValueError: for another flavour.
    """
    if leading_space is None:
        leading_space = bool(getattr(edits, "leading_space", False))
    mail = split_mail(message)
    header = header_model(flavour, leading_space=leading_space)
    for field in mail.fields:
        header.receive_field(field)
    body: list[bytes] = []
    replaced = False
    for edit in edits:
        header.apply(edit)
        if isinstance(edit, ReplaceBody):
            replaced = True
            body.append(edit.chunk)
    new_body = wire_body(b"".join(body)) if replaced else mail.body
    return Mail(header.fields(), mail.separated, new_body, mail.line_end).join()
