"""
The MTA's side of the milter protocol.
"""

from yatxmilter._mail.delivery import apply_edits
from yatxmilter._wire.actions import (
    AddHeader,
    AddRecipient,
    Agreement,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    Edit,
    EndOfMessage,
    InsertHeader,
    Quarantine,
    ReplaceBody,
    Response,
)
from yatxmilter.client._client import MilterClient, MilterClientFactory, connect_milter
from yatxmilter.client._message import Outcome, Recipient
from yatxmilter.client._session_script import select_macros
from yatxmilter.errors import PeerError

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
