"""
Milters for those who think in messages: one method that gets the whole message as an object.

Override `MessageMilter.message`. What is edited on the object is sent as the least modification
actions that do it, once the message has ended.
"""

from yatxmilter._mail.addresses import Address, Group
from yatxmilter._mail.fields import FieldValue
from yatxmilter._mail.mime import Part
from yatxmilter.message._envelope import Client, Recipient, Recipients
from yatxmilter.message._headers import HeaderField, Headers
from yatxmilter.message._mail import Message
from yatxmilter.message._milter import MessageMilter

__all__ = [
    "Address",
    "Client",
    "FieldValue",
    "Group",
    "HeaderField",
    "Headers",
    "Message",
    "MessageMilter",
    "Part",
    "Recipient",
    "Recipients",
]
