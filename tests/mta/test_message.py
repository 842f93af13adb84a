"""
Milters written in messages behind a real Postfix and a real Sendmail: what is delivered is the
message as the milter has left it.
"""

from __future__ import annotations

import json
import time
from threading import Thread
from typing import ClassVar

from .bench import MESSAGE
from .hosting import HostCase
from .mta import Mta
from .postfix import Postfix
from .sendmail import Sendmail

#: A milter that does what the message's X-Case says, and writes down what the message is then.
_EDITOR = """
import json, sys
from twisted.internet import reactor
from twisted.python import log
from yatxmilter import MilterFactory, MilterProtocolFactory
from yatxmilter.message import MessageMilter

log.startLogging(sys.stderr)

def nothing(msg):
    msg.replace(msg.email())

def header(msg):
    headers = msg.headers
    headers["subject"] = "[x] caf\\u00e9 " + "and a long line " * 10 + headers["Subject"]
    headers.insert(0, "X-Top", "top")
    headers.insert(4, "X-Middle", "middle")
    headers.fields("X-Octets")[0].raw = "raw \\udce4\\n\\tfolded"
    headers.replace("X-Dup", "second", 2)
    headers.fields("X-Dup")[0].remove()
    headers.insert(len(headers), "X-Dup", "last")
    headers.add("X-Added", "added")
    del headers["X-Blanks"]

def mail(msg):
    mail = msg.email()
    mail.set_content("banner \\u00e9\\n" + mail.get_content())
    del mail["X-Dup"]
    mail["X-Dup"] = "one"
    msg.replace(mail)

def envelope(msg):
    msg.sender = "other@client.example"
    msg.recipients.add("added@sink.example")
    msg.recipients.remove("rcpt@sink.example")
    msg.body = b"short\\n"

def octets(msg):
    # As it came to the octet, and put on top of itself.
    msg.headers.insert(0, "X-Header", msg.header_bytes().hex(), raw=True)

def prefixed(msg):
    for field in list(msg.headers):
        if field.name not in ("X-Case", "Received"):
            field.value = "x " + field.value
    msg.headers["Subject"] = "[list] cz\\u0142onk\\u00f3w: " + msg.headers["Subject"]

def one_part(msg):
    mail = msg.email()
    mail.get_payload()[0].set_payload("new\\n")
    msg.replace(mail)

def slow(msg):
    str(msg.headers["From"].addresses) + str(msg.headers["X-Long"]) + str(msg.email().keys())

def dated(msg):
    del msg.headers["X-Dup"]
    msg.headers["Date"] = "Fri, 03 Jan 2025 03:04:05 +0000"
    msg.headers["Message-Id"] = "<2@client.example>"

class Editor(MessageMilter):
    def message(self, msg):
        globals()[str(msg.headers["X-Case"])](msg)
        left = {
            "sender": msg.sender,
            "recipients": [recipient.address for recipient in msg.recipients],
            "fields": [[field.name, field.full] for field in msg.headers],
            "body": msg.body.decode("latin-1"),
        }
        with open(sys.argv[2], "w") as file:
            json.dump(left, file)

factory = MilterProtocolFactory(MilterFactory(Editor))
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
reactor.run()
"""

_DUPLICATES = b"X-Dup: 1\r\nX-Dup: 2\r\nX-Dup: 3\r\n"


#: White space of all kinds behind the colon, and odd values.
_ODD = (
    # Sendmail writes fields with addresses anew itself.
    b"From: <sender@client.example>\r\nTo: Reader <rcpt@sink.example>\r\nDate: Fri, 03 Jan 2025"
    b" 03:04:05 +0000\r\nMessage-Id: <1@client.example>\r\nSubject:\r\n folded =?utf-8?q?=C3=A9?="
    b"\r\nX-None:x\r\nX-Tab:\tx\r\nX-Two:  x\r\nX-Raw: \xe1rv\xedz\r\nX-Word: =?utf-8?b?aGkNCg==?="
    b"\r\n\r\nbody\r\n"
)
_PARTS = (
    b"From: <sender@client.example>\r\nTo: <rcpt@sink.example>\r\nDate: Fri, 03 Jan 2025 03:04:05"
    b" +0000\r\nMessage-Id: <1@client.example>\r\nMIME-Version: 1.0\r\nContent-Type:"
    b" multipart/mixed; boundary=b\r\n\r\npre\r\n--b\r\nX: 1\r\n\r\nold\r\n--b\r\nX:2\r\n\r\n"
    b"odd\r\n--b--\r\nend\r\n"
)


class _Messages(HostCase):
    """
    A test with that milter.
    """

    mta_class: ClassVar[type[Mta]]

    def assertDeliveredAsLeft(self, case: str, message: bytes = MESSAGE, tops: int = 0) -> None:
        """
        Send a message for a case, and compare what is delivered with what the milter has left.

        :param tops: How many fields come where the MTA wants them.
        """
        self.sink.clear()
        name = f"X-Case: {case}\r\n".encode()
        delivery = self.deliver(name + _DUPLICATES + message, door="example")
        left = json.loads((self.folder / "left").read_text())
        expected = [
            (name, full.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n"))
            for name, full in left["fields"]
        ]
        got = [field for field in delivery.fields if field[0] != "Received"]
        if tops:
            expected.sort()
            got.sort()
        self.assertEqual(got, expected, case)
        self.assertEqual(delivery.body, left["body"].encode("latin-1"), case)
        self.assertEqual(delivery.sender.address, f"<{left['sender']}>")
        recipients = [path.address for path in delivery.recipients]
        self.assertEqual(recipients, [f"<{address}>" for address in left["recipients"]])

    def test_header_body_and_envelope_are_delivered_as_milter_has_left_them(self) -> None:
        """
        Header, body and envelope are delivered as the milter has left them.
        """
        port = self.mta.addresses.example_port
        self.run_program("-c", _EDITOR, str(port), self.folder / "left")
        for case in ("nothing", "header", "mail", "envelope"):
            self.assertDeliveredAsLeft(case)
        for case, message in (("octets", _ODD), ("prefixed", _ODD), ("one_part", _PARTS)):
            self.assertDeliveredAsLeft(case, message)
        # Fields that the MTA would make itself: the message is to have one of each.
        bare = b"From: <sender@client.example>\r\n\r\nbody\r\n"
        self.assertDeliveredAsLeft("dated", bare, tops=2)
        self.assertNotIn("Traceback", self.log.read_text())


class PostfixTests(_Messages):
    """
    Behind Postfix.
    """

    mta_class = Postfix

    def test_message_with_the_longest_possible_fields_is_accepted(self) -> None:
        """
        A message whose fields are as long as they can be, and are read one after the other, is
        accepted, and so is the mail of others meanwhile.

        How long these wait is printed: ``python -m pytest -s``.
        """
        port = self.mta.addresses.example_port
        self.run_program("-c", _EDITOR, str(port), self.folder / "left")
        small = b"X-Case: nothing\r\n" + MESSAGE
        alone = self.longest_wait(small)
        for text in (b'"', b"a@b,", b"=?utf-8?q?=41?= ", b";"):
            long = text * (43_000 // len(text))
            message = b"X-Case: slow\r\nFrom: " + long + b" <sender@client.example>\r\n"
            message += b"X-Long: " + long + b"\r\nContent-Type: text/plain" + long
            message += b"\r\n\r\nx\r\n"
            replies: list[object] = []

            def send(message: bytes = message, replies: list[object] = replies) -> None:
                replies.extend(self.send(message, door="example").code for _ in range(5))

            sender = Thread(target=send)
            sender.start()
            wait = self.longest_wait(small)
            sender.join()
            self.assertEqual(replies, [250] * 5)
            print(f"43 kB of {text!r}: others wait {wait:.2f} s at most, {alone:.2f} s without it")
        self.assertNotIn("Traceback", self.log.read_text())

    def longest_wait(self, message: bytes) -> float:
        """
        Send some messages; give the longest time that one took.
        """
        longest = 0.0
        for _ in range(10):
            start = time.monotonic()
            self.assertEqual(self.send(message, door="example").code, 250)
            longest = max(longest, time.monotonic() - start)
        return longest


class SendmailTests(_Messages):
    """
    Behind Sendmail.
    """

    mta_class = Sendmail


del _Messages
