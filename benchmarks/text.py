"""
What mail text costs: fields of 60 KB, headers set and shown, and a small message.

    python -m benchmarks.text [laws [NUMBER] | fields | message]

``laws`` sets texts in many headers and counts those that an independent reader shows as they were
set; ``fields`` reads the worst fields that we know, with the CPU time of each; ``message`` plays a
small message to a `MessageMilter` and to a milter of the same work in callbacks, in this process.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator

from tests.corpus import random_message
from tests.rfc2047 import shown
from yatxmilter import Milter
from yatxmilter.message import MessageMilter
from yatxmilter.testing import InMemoryMTA

MESSAGE = (
    b"From: Sender <sender@client.example>\r\nTo: Reader <reader@example.com>\r\n"
    b"Subject: =?utf-8?q?caf=C3=A9?= on Monday\r\nDate: Thu, 26 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <1@client.example>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nX-Mailer: example\r\n\r\n"
    + b"A line of text.\r\n"
    * 40
)
#: What a stranger may fill a field with.
WORST = (
    *('"', "(", "<", ",", ":", "@", "[", "\\", '\\"', ";", "=?", "=?utf-8?q?a?= ", "a@b,", "a@b "),
    *("=?x1?q?=41?=", "a=b;", "*0*=", "x*0=1;", "()", "<>", "x;y:", '"a@b",', "\udcff", "\u00e9 "),
)
NAMES = ("From", "Subject", "Content-Type", "Date", "Message-ID", "Received", "List-Id")
_WORDS = (
    *("plain", "[list]", "re:", "cz\u0142onk\u00f3w", "\u0442\u0440\u0435\u0442\u0438\u0439"),
    *("d\u00e9plac\u00e9e", "\u65e5\u672c\u8a9e", "=?utf-8?q?x?=", "a=b", "x" * 90, "\u00e9" * 50),
    *("_", "?=", "\U0001f600", "e\u0301", "a,b", "(c)", '"d"'),
)


def texts(number: int) -> Iterator[str]:
    """
    Make texts, the same each time.
    """
    dice = random.Random(2047)
    for _ in range(number):
        words = [dice.choice(_WORDS) for _ in range(dice.randrange(1, 14))]
        yield "".join(word + dice.choice((" ", " ", " ", "  ", "\t")) for word in words).strip()


def laws(number: int = 10_000) -> None:
    """
    Count what holds.
    """
    told: dict[str, int] = {}
    wanted: list[str] = []

    class Sets(MessageMilter):
        def message(self, msg):  # type: ignore[no-untyped-def]
            msg.headers["Subject"] = wanted[-1]

    class Tags(MessageMilter):
        def message(self, msg):  # type: ignore[no-untyped-def]
            wanted.append("[list] " + msg.headers.get("Subject", ""))
            msg.headers["Subject"] = wanted[-1]

    def count(law: str, holds: bool) -> None:
        told[law] = told.get(law, 0) + holds

    for text in texts(number):
        wanted.append(text)
        sent = InMemoryMTA(Sets).send(b"From: a@example.org\r\nSubject: x\r\n\r\ntext\r\n")
        values = sent.delivered.values("Subject") if sent.accepted else []
        count("set text is shown (law 3)", [_shown(value) for value in values] == [text])
    for seed in range(number):
        message = random_message(seed)
        before = len(wanted)
        sent = InMemoryMTA(Tags).send(message)
        values = sent.delivered.values("Subject") if sent.accepted else []
        kept = len(wanted) > before and [_shown(value) for value in values] == [wanted[-1]]
        count("a prefix can be set, and is shown (law 2)", kept)
    for law, held in told.items():
        print(f"{law}: {held} of {number}")


def _shown(raw: str) -> str | None:
    try:
        return shown(raw)
    except (LookupError, ValueError):
        return None


def fields(size: int = 60_000) -> None:
    """
    Read the worst fields.
    """
    worst = (0.0, "")
    for name in NAMES:
        for text in WORST:
            octets = (text * size)[:size].encode("utf-8", "surrogateescape")
            took = _reading(name, octets)
            worst = max(worst, (took, f"{name}: {text!r}..."))
    number = len(NAMES) * len(WORST)
    print(f"{number} fields of {size} characters: at most {worst[0] * 1000:.0f} ms, {worst[1]}")


def _reading(name: str, octets: bytes) -> float:
    took = [0.0]

    class Reads(MessageMilter):
        def message(self, msg):  # type: ignore[no-untyped-def]
            start = time.process_time()
            value = msg.headers[name]
            for attribute in ("addresses", "datetime", "params", "ids", "defects"):
                getattr(value, attribute, None)
            took.append(time.process_time() - start)

    sizes = []
    for _ in range(3):
        InMemoryMTA(Reads).send(name.encode() + b": " + octets + b"\r\n\r\n\r\n")
        sizes.append(took[-1])
    return min(sizes)


class InMessages(MessageMilter):
    """
    Tag a subject, seen as a message.
    """

    def message(self, msg):  # type: ignore[no-untyped-def]
        """
        Tag it, or do what the class says.
        """
        msg.headers["Subject"] = "[list] " + msg.headers.get("Subject", "")


class InCallbacks(Milter):
    """
    Do the same in callbacks, as well as it can be done there: the subject is left encoded.
    """

    def xxfi_envfrom(self, argv):  # type: ignore[no-untyped-def]
        """
        Begin a message.
        """
        self.subject = ""

    def xxfi_header(self, headerf, headerv):  # type: ignore[no-untyped-def]
        """
        See a field.
        """
        if headerf.lower() == "subject":
            self.subject = headerv

    def xxfi_body(self, bodyp):  # type: ignore[no-untyped-def]
        """
        See some of the body.
        """

    def xxfi_eom(self):  # type: ignore[no-untyped-def]
        """
        End the message.
        """
        self.smfi_chgheader("Subject", 1, "[list] " + self.subject)


class Nothing(MessageMilter):
    """
    Look at nothing.
    """

    def message(self, msg):  # type: ignore[no-untyped-def]
        """
        Tag it, or do what the class says.
        """


class Parses(MessageMilter):
    """
    Make the object of the email package, and put it back.
    """

    def message(self, msg):  # type: ignore[no-untyped-def]
        """
        Tag it, or do what the class says.
        """
        msg.replace(msg.email())


class Floor(Milter):
    """
    Look at nothing, in callbacks.
    """

    def xxfi_header(self, headerf, headerv):  # type: ignore[no-untyped-def]
        """
        See a field.
        """

    def xxfi_body(self, bodyp):  # type: ignore[no-untyped-def]
        """
        See some of the body.
        """

    def xxfi_eom(self):  # type: ignore[no-untyped-def]
        """
        End the message.
        """


def message(number: int = 400) -> None:
    """
    Play a small message.
    """
    for milter in (Floor, Nothing, InCallbacks, InMessages, Parses):
        least = min(_playing(milter, number) for _ in range(5))
        print(f"{milter.__name__:12} {least * 1e6:6.0f} microseconds of CPU a message")


def _playing(milter: type[Milter], number: int) -> float:
    mta = InMemoryMTA(milter)
    with mta.session() as session:
        mta.send(MESSAGE, session=session)
        start = time.process_time()
        for _ in range(number):
            mta.send(MESSAGE, session=session)
        return (time.process_time() - start) / number


TASKS: dict[str, Callable[..., None]] = {"laws": laws, "fields": fields, "message": message}


def main(argv: list[str]) -> None:
    """
    Do what is named, or all.
    """
    if argv:
        TASKS[argv[0]](*map(int, argv[1:]))
    else:
        for task in TASKS.values():
            task()


if __name__ == "__main__":
    main(sys.argv[1:])
