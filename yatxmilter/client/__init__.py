"""
The MTA's side of the milter protocol.
"""

from yatxmilter.client._client import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    EndOfMessage,
    InsertHeader,
    MilterClient,
    MilterClientFactory,
    Outcome,
    PeerError,
    Quarantine,
    Recipient,
    ReplaceBody,
    Response,
    apply_edits,
    connect_milter,
    select_macros,
)

__all__ = [
    "AddHeader",
    "AddRecipient",
    "Agreement",
    "ChangeHeader",
    "ChangeSender",
    "DeleteRecipient",
    "Edit",
    "EndOfMessage",
    "InsertHeader",
    "MilterClient",
    "MilterClientFactory",
    "Outcome",
    "PeerError",
    "Quarantine",
    "Recipient",
    "ReplaceBody",
    "Response",
    "apply_edits",
    "connect_milter",
    "select_macros",
]
