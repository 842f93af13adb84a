"""
The habits of the two MTAs as data: what Postfix and Sendmail do differently with the same milter.

All of it was seen with Postfix 3.7 and Sendmail 8.17. How each edits a header is in
`yatxmilter._mail.header_models`, with what else is more than a table can say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from yatxmilter import constants as c
from yatxmilter._wire.actions import Agreement, Response
from yatxmilter._wire.negotiation import DEFAULT_SYMBOLS
from yatxmilter._wire.payloads import Offer

__all__ = ["CLIENT", "FLAVOURS", "SERVER", "Flavour", "Reply", "find_flavour"]

_TLS_MACROS: Final = (
    "{tls_version}",
    "{cipher}",
    "{cipher_bits}",
    "{cert_subject}",
    "{cert_issuer}",
)


class Reply(NamedTuple):
    """
    A reply to the SMTP client.

    :ivar lines: What follows the code on each line.
    """

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """
        The lines, separated by LF.
        """
        return "\n".join(self.lines)

    def __str__(self) -> str:
        return f"{self.code} {' | '.join(self.lines)}"


class Flavour(NamedTuple):
    """
    One MTA's habits.

    :ivar name: ``"postfix"`` or ``"sendmail"``; what `yatxmilter._mail.header_models` takes.
    :ivar offer: What it offers in negotiation.
    :ivar symbols: The macros that it sends where no list was asked for, by ``SMFIM_*`` stage.
    :ivar stages: The commands that macros go with, by letter, and the stage whose list counts;
        ``None`` where there are never any names.
    :ivar sends_empty: Whether macros are announced where there are no names for the stage.
    :ivar early_queue_id: Whether the queue id is known at MAIL; if not, it is once a recipient is
        accepted.
    :ivar aborts_finished: Whether ABORT follows each message, a finished one too.
    :ivar keeps_helo_refusal: Whether a refusal of HELO stands, whatever HELO comes behind it.
    :ivar skips: What is kept from a milter that answers SKIP: by the letter of the command that was
        answered, the letter of the commands that are not sent any more.
    :ivar whole_unknown: Whether an unknown command comes as a whole line, not its first word.
    :ivar content_code: Of the reply to the end of data after a bare REJECT.
    :ivar tempfail: The text after a bare TEMPFAIL.
    :ivar shows_address: Whether the address is put into the reply to a refused MAIL or RCPT.
    :ivar merges_recipients: Whether one that is added and there already gets one copy.
    :ivar needs_status: Whether a text without enhanced status code gets one.
    :ivar keeps_connect_text: Whether the text of a reply given at connect is shown.
    :ivar accepted: What the client is told when all is well, by stage.
    """

    name: str
    offer: Offer
    symbols: Mapping[int, tuple[str, ...]]
    stages: Mapping[int, int | None]
    sends_empty: bool
    early_queue_id: bool
    aborts_finished: bool
    keeps_helo_refusal: bool
    skips: Mapping[int, int]
    whole_unknown: bool
    content_code: int
    tempfail: str
    shows_address: bool
    merges_recipients: bool
    needs_status: bool
    keeps_connect_text: bool
    accepted: Mapping[str, Reply]

    def macro_names(self, letter: int, agreement: Agreement | None) -> tuple[str, ...] | None:
        """
        Tell which macros go with a command, as far as they have values.

        :param letter: The command's (``SMFIC_*``).
        :return: ``None`` where no macros are announced.
        """
        if letter not in self.stages:
            return None
        stage = self.stages[letter]
        if stage is None:
            return ()
        lists = agreement.symbol_lists if agreement is not None else {}
        if self.sends_empty:
            # An empty list is none to Postfix.
            return tuple(lists.get(stage) or self.symbols[stage])
        names = tuple(lists[stage]) if stage in lists else self.symbols[stage]
        return names or None

    def refusal(self, stage: str, response: Response, address: str = "") -> Reply:
        """
        Say what the client is told when a milter has refused.

        :param stage: ``connect``, ``helo``, ``mail``, ``rcpt``, ``data``, ``unknown``, ``header``,
            ``eoh``, ``body`` or ``eom``.
        :param address: The sender or recipient that was refused, in angle brackets.
        """
        if response.closes and response.text is None:
            return Reply(421, ("4.7.0 Service unavailable",))
        text = response.text
        if stage == "connect" and not self.keeps_connect_text:
            text = None
        reply = self._bare(stage, response) if text is None else self._given(stage, response, text)
        shows = text is not None or response.code == c.SMFIS_REJECT
        if self.shows_address and shows and address and stage in ("mail", "rcpt"):
            first, *rest = reply.lines
            reply = Reply(reply.code, (_addressed(first, address), *rest))
        return reply

    def _bare(self, stage: str, response: Response) -> Reply:
        if response.code != c.SMFIS_REJECT:
            return Reply(451, (self.tempfail,))
        content = stage in ("header", "eoh", "body", "eom")
        early = stage in ("connect", "helo") and not self.keeps_connect_text
        status = "5.0.0" if early else "5.7.1"
        return Reply(self.content_code if content else 550, (f"{status} Command rejected",))

    def _given(self, stage: str, response: Response, text: str) -> Reply:
        if self.needs_status and re.search("%(?!%)", text.replace("%%", "")):
            # Sendmail does not trust it at all.
            return self._bare(stage, response)
        text = text.replace("%%", "\0").replace("%", "").replace("\0", "%")
        lines = text.split("\r\n")
        rest = [line[4:] for line in lines]
        if self.needs_status:
            rest = [_with_status(lines[0][0], line) for line in rest]
        return Reply(int(lines[-1][:3]), tuple(rest))


def _with_status(kind: str, line: str) -> str:
    if re.match(r"[245]\.\d{1,3}\.\d{1,3}(\s|$)", line):
        return line
    return f"{kind}.0.0 {line}"


def _addressed(line: str, address: str) -> str:
    status, _, text = line.partition(" ")
    return f"{status} {address}... {text}"


_OFFER: Final = Offer(c.SMFI_PROT_VERSION, c.SMFI_CURR_ACTS, c.SMFI_CURR_PROT)

_POSTFIX: Final = Flavour(
    name="postfix",
    offer=_OFFER,
    symbols={
        c.SMFIM_CONNECT: ("j", "{daemon_name}", "{daemon_addr}", "v", "_"),
        c.SMFIM_HELO: _TLS_MACROS,
        c.SMFIM_ENVFROM: (
            *("i", "{auth_type}", "{auth_authen}", "{auth_author}"),
            *("{mail_addr}", "{mail_host}", "{mail_mailer}"),
        ),
        c.SMFIM_ENVRCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
        c.SMFIM_DATA: ("i",),
        c.SMFIM_EOH: ("i",),
        c.SMFIM_EOM: ("i",),
    },
    stages={
        c.SMFIC_CONNECT: c.SMFIM_CONNECT,
        c.SMFIC_HELO: c.SMFIM_HELO,
        c.SMFIC_MAIL: c.SMFIM_ENVFROM,
        c.SMFIC_RCPT: c.SMFIM_ENVRCPT,
        c.SMFIC_DATA: c.SMFIM_DATA,
        c.SMFIC_HEADER: c.SMFIM_EOH,
        c.SMFIC_EOH: c.SMFIM_EOH,
        c.SMFIC_BODY: c.SMFIM_EOM,
        c.SMFIC_BODYEOB: c.SMFIM_EOM,
        c.SMFIC_UNKNOWN: None,
    },
    sends_empty=True,
    early_queue_id=False,
    aborts_finished=True,
    keeps_helo_refusal=True,
    skips={
        c.SMFIC_RCPT: c.SMFIC_RCPT,
        c.SMFIC_HEADER: c.SMFIC_HEADER,
        c.SMFIC_BODY: c.SMFIC_BODY,
    },
    whole_unknown=False,
    content_code=550,
    tempfail="4.7.1 Service unavailable - try again later",
    shows_address=False,
    merges_recipients=False,
    needs_status=False,
    keeps_connect_text=True,
    accepted={
        "mail": Reply(250, ("2.1.0 Ok",)),
        "rcpt": Reply(250, ("2.1.5 Ok",)),
        "data": Reply(354, ("End data with <CR><LF>.<CR><LF>",)),
        "eom": Reply(250, ("2.0.0 Ok: queued as {i}",)),
        "unknown": Reply(500, ("5.5.2 Error: command not recognized",)),
        "no recipients": Reply(554, ("5.5.1 Error: no valid recipients",)),
    },
)

_SENDMAIL: Final = Flavour(
    name="sendmail",
    offer=_OFFER,
    symbols={
        c.SMFIM_CONNECT: ("j", "_", "{daemon_name}", "{if_name}", "{if_addr}"),
        c.SMFIM_HELO: _TLS_MACROS,
        c.SMFIM_ENVFROM: (
            *("i", "{auth_type}", "{auth_authen}", "{auth_ssf}", "{auth_author}"),
            *("{mail_mailer}", "{mail_host}", "{mail_addr}"),
        ),
        c.SMFIM_ENVRCPT: ("{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}"),
        c.SMFIM_DATA: (),
        c.SMFIM_EOH: (),
        c.SMFIM_EOM: ("{msg_id}",),
    },
    stages={
        c.SMFIC_CONNECT: c.SMFIM_CONNECT,
        c.SMFIC_HELO: c.SMFIM_HELO,
        c.SMFIC_MAIL: c.SMFIM_ENVFROM,
        c.SMFIC_RCPT: c.SMFIM_ENVRCPT,
        c.SMFIC_DATA: c.SMFIM_DATA,
        c.SMFIC_EOH: c.SMFIM_EOH,
        c.SMFIC_BODYEOB: c.SMFIM_EOM,
    },
    sends_empty=False,
    early_queue_id=True,
    aborts_finished=False,
    keeps_helo_refusal=True,
    skips=dict.fromkeys((c.SMFIC_HEADER, c.SMFIC_EOH, c.SMFIC_BODY), c.SMFIC_BODY),
    whole_unknown=True,
    content_code=554,
    tempfail="4.3.2 Please try again later",
    shows_address=True,
    merges_recipients=True,
    needs_status=True,
    keeps_connect_text=False,
    accepted={
        "mail": Reply(250, ("2.1.0 {address}... Sender ok",)),
        "rcpt": Reply(250, ("2.1.5 {address}... Recipient ok",)),
        "data": Reply(354, ("End data with <CR><LF>.<CR><LF>",)),
        "eom": Reply(250, ("2.0.0 {i} Message accepted for delivery",)),
        "unknown": Reply(500, ('5.5.1 Command unrecognized: "{line}"',)),
        "no recipients": Reply(503, ("5.0.0 Need RCPT (recipient)",)),
    },
)

#: `MilterClient.send_message`: as Postfix, with the default macros of both MTAs, and all that the
#: caller knows from the start.
CLIENT: Final = _POSTFIX._replace(
    symbols={stage: tuple(names.split()) for stage, names in DEFAULT_SYMBOLS.items()}
)

#: `yatxmilter.smtp`, likewise; its messages have a queue id at once, it sends ABORT for what is
#: given up only, and lets a client try another name after a refused HELO.
SERVER: Final = CLIENT._replace(
    early_queue_id=True, aborts_finished=False, keeps_helo_refusal=False, whole_unknown=True
)

#: By name.
FLAVOURS: Final[Mapping[str, Flavour]] = {"postfix": _POSTFIX, "sendmail": _SENDMAIL}


def find_flavour(name: str) -> Flavour:
    """
    Look an MTA's habits up.

    :raises ValueError: for a name that is not there.
    """
    if name not in FLAVOURS:
        raise ValueError(f'flavour is {name!r}, expected "postfix" or "sendmail"')
    return FLAVOURS[name]
