"""
What ``yatxmilter doctor`` looks at in each milter, once it has been asked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from yatxmilter import constants as c
from yatxmilter._cli.doctor_findings import STAGES, Finding, InetAddress, Reading, Use, braced
from yatxmilter._cli.doctor_postfix import MACRO_PARAMETERS
from yatxmilter._cli.doctor_probe import Answer
from yatxmilter._cli.doctor_sendmail import MACRO_OPTIONS
from yatxmilter.client import Agreement

__all__ = [
    "check_action",
    "check_answer",
    "check_configured_macros",
    "check_lists",
    "check_macros",
    "check_network",
    "check_times",
]

#: What becomes of mail when the milter is down, by MTA and action: a level, words, and what to do.
_DOWN: Final = {
    ("postfix", "tempfail"): ("ok", "clients are told to try again later (451)", ""),
    ("postfix", "shutdown"): ("ok", "clients are sent away with 421, and try again later", ""),
    ("postfix", "accept"): (
        "note",
        "mail passes unfiltered, and nothing but a warning in the log tells of it",
        "write default_action=tempfail if no mail may pass unfiltered",
    ),
    ("postfix", "quarantine"): (
        "note",
        "mail is accepted and put on hold, until somebody lets it go with postsuper -H",
        "write default_action=tempfail if you do not look at mail on hold",
    ),
    ("postfix", "reject"): (
        "warning",
        "all mail is refused for good (550), and its senders get it back",
        "write default_action=tempfail, so that clients try again later",
    ),
    ("sendmail", "T"): ("ok", "clients are told to try again later (451)", ""),
    ("sendmail", "4"): ("ok", "clients are sent away with 421, and try again later", ""),
    ("sendmail", "R"): (
        "warning",
        "all mail is refused for good (550), and its senders get it back",
        "write F=T, so that clients try again later",
    ),
    ("sendmail", ""): (
        "warning",
        "mail passes unfiltered, because there is no F=",
        "write F=T if no mail may pass unfiltered",
    ),
}

#: The names of what a milter may do, in words.
_ABILITIES: Final = {
    c.SMFIF_ADDHDRS: "add header fields",
    c.SMFIF_CHGHDRS: "change header fields",
    c.SMFIF_CHGBODY: "replace the body",
    c.SMFIF_ADDRCPT: "add recipients",
    c.SMFIF_ADDRCPT_PAR: "add recipients with arguments",
    c.SMFIF_DELRCPT: "remove recipients",
    c.SMFIF_CHGFROM: "change the sender",
    c.SMFIF_QUARANTINE: "quarantine",
    c.SMFIF_SETSYMLIST: "choose its macros",
}

#: The macros that Postfix knows, and the first stage at which they can have a value.
_POSTFIX_MACROS: Final = {
    **dict.fromkeys(
        (
            *("j", "v", "_", "{daemon_name}", "{daemon_addr}", "{daemon_port}"),
            *("{client_addr}", "{client_connections}", "{client_name}", "{client_port}"),
            *("{client_ptr}", "{client_resolve}"),
        ),
        c.SMFIM_CONNECT,
    ),
    **dict.fromkeys(
        ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
        c.SMFIM_HELO,
    ),
    **dict.fromkeys(
        (
            *("i", "{auth_type}", "{auth_authen}", "{auth_author}"),
            *("{mail_addr}", "{mail_host}", "{mail_mailer}"),
        ),
        c.SMFIM_ENVFROM,
    ),
    **dict.fromkeys(("{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"), c.SMFIM_ENVRCPT),
}

_ORDER: Final = tuple(STAGES)

#: Sendmail's MAXFILTERMACROS.
_MOST_MACROS: Final = 50

# Below these a milter that asks others - DNS, a database, a virus scanner - is often late.
_SHORT_COMMAND: Final = 10.0
_SHORT_CONTENT: Final = 60.0

# RFC 5321, 4.5.3.2: how long an SMTP client waits, at least, for the answer to a command, and to
# the end of the message.
_CLIENT_COMMAND: Final = 300.0
_CLIENT_CONTENT: Final = 600.0


def check_action(reading: Reading, use: Use) -> Iterator[Finding]:
    """
    Say what becomes of mail when the milter is down.
    """
    if use.action.startswith("?"):
        yield Finding(
            "warning",
            "action-unknown",
            f"F={use.action[1:]} is unknown to Sendmail, which says nothing of it: while the milter"
            " is down mail passes unfiltered",
            "write F=T, F=R or F=4",
        )
        return
    level, words, todo = _DOWN[reading.mta, use.action]
    yield Finding(level, "when-down", f"while the milter is down {words}", todo)


def check_network(use: Use) -> Iterator[Finding]:
    """
    Say when mail leaves the machine.
    """
    if not isinstance(use.address, InetAddress):
        return
    host = use.address.host
    if host and host not in ("localhost", "::1") and not host.startswith("127."):
        yield Finding(
            "note",
            "network",
            f"mail goes to {host} as it is: the milter protocol has no encryption",
            "keep strangers out of this network, or use a tunnel",
        )


# ---- what it answered


def check_answer(use: Use, answer: Answer, full: Answer | None, action: str) -> Iterator[Finding]:
    """
    Say what came of asking the milter.

    :param full: What came of asking once more, with all that a newer MTA offers.
    :param action: What becomes of mail meanwhile.
    """
    agreement = answer.agreement
    if agreement is None:
        yield _failed(use, answer, action)
    else:
        can = [words for flag, words in _ABILITIES.items() if agreement.actions & flag]
        wants = f"may {', '.join(can)}" if can else "changes nothing"
        if len(can) == len(_ABILITIES):
            wants = "may change everything"
        yield Finding("ok", "answer", f"it answers: version {agreement.version}, {wants}")
    if use.offer.version < c.SMFI_PROT_VERSION:
        refused = agreement is None and full is not None and full.agreement is not None
        what = (
            "the milter answers version 6, and not this one"
            if refused
            else "SKIP, steps without an answer and all else that came later is not there"
        )
        yield Finding(
            "error" if refused else "warning",
            "version-low",
            f"milter_protocol is {use.offer.version}: {what}",
            "take milter_protocol out; the default is 6",
        )
    elif agreement is not None and agreement.version < use.offer.version:
        yield Finding(
            "note",
            "version-old",
            f"the milter speaks version {agreement.version} only, as those before Sendmail 8.14",
            "see whether there is a newer milter",
        )


_FAILURES: Final = {
    "unknown-host": (
        "the host has no address",
        "write the address, or correct the name; a chrooted Postfix also needs etc/hosts in its"
        " queue directory",
    ),
    "late": ("there is no connection", "see that no firewall drops packets on the way"),
    "unreachable": ("it cannot be reached", "see whether the host and the network are up"),
    "silent": (
        "it takes the connection and says nothing",
        "restart the milter; see in its log what it waits for",
    ),
    "closed": (
        "it closes the connection instead of answering",
        "look at the milter's log: this machine may not be allowed, there may be too many"
        " connections, or it wants what this MTA does not have",
    ),
    "foreign": (
        "it does not answer as a milter that this MTA can use",
        "see what listens there (ss -ltnp), and whether the milter is made for this MTA",
    ),
    "absent": ("the socket is gone", "start the milter, and see where it listens: ss -lxp"),
}


def _failed(use: Use, answer: Answer, action: str) -> Finding:
    if answer.kind == "denied":
        return Finding(
            "note",
            "answer-denied",
            "whether it answers is not known: the user who runs this may not connect to the socket",
            "run doctor as root",
        )
    if answer.kind == "refused" and isinstance(use.address, str):
        what = "no milter listens at the socket; a milter that has ended left it behind"
        todo = "start the milter"
    elif answer.kind == "refused":
        what = "no program listens there"
        todo = "start the milter, and see at which address it listens: ss -ltnp"
    else:
        what, todo = _FAILURES[answer.kind]
        what = f"{what} ({answer.text})"
    return Finding("error", f"answer-{answer.kind}", f"{what}; {action}", todo)


# ---- time-outs


def check_times(reading: Reading, use: Use) -> Iterator[Finding]:
    """
    Say whether the MTA's time-outs are long enough, and fit each other.
    """
    if reading.mta == "postfix":
        command, content = "command_timeout", "content_timeout"
        example = "NAME=SECONDSs in the braces of the milter, or milter_NAME = SECONDSs for all"
    else:
        command, content = "R", "E"
        example = "T=NAME:SECONDSs"
    for name, least in ((command, _SHORT_COMMAND), (content, _SHORT_CONTENT)):
        if use.seconds(name) < least:
            wanted = example.replace("NAME", name).replace("SECONDS", f"{least * 3:g}")
            yield Finding(
                "warning",
                "timeout-short",
                f"{name} is {use.seconds(name):g} s: a milter that asks DNS or a scanner is late,"
                " and taken to be down",
                f"write {wanted}",
            )
    if use.seconds(content) < use.seconds(command):
        yield Finding(
            "warning",
            "timeout-order",
            f"{content} ({use.seconds(content):g} s) is shorter than {command}"
            f" ({use.seconds(command):g} s), though the end of a message takes longest",
            f"make {content} the longer one",
        )
    if reading.mta == "sendmail":
        return
    for limit, seconds in sorted(reading.limits.items()):
        for name, value in use.times:
            if value >= seconds:
                yield Finding(
                    "warning",
                    "timeout-long",
                    f"{name} is {value:g} s, and {limit} is {seconds:g} s: Postfix gives its own"
                    " process up before the milter",
                    f"make {name} shorter than {limit}",
                )


# ---- macros


def check_macros(
    reading: Reading, use: Use, agreement: Agreement | None, needs: Sequence[str]
) -> Iterator[Finding]:
    """
    Say which macros the milter does not get.

    :param needs: Names of macros that all milters need.
    """
    asked = agreement.symbol_lists if agreement is not None else {}
    sent: dict[int, tuple[str, ...]] = dict(use.macros)
    for stage in _ORDER:
        names = tuple(asked.get(stage, ()))
        # An empty list is none to Postfix, and no macros to Sendmail.
        if names or (stage in asked and reading.mta == "sendmail"):
            sent[stage] = names
            yield from _check_names(reading, "the milter asks for", stage, names, own=True)
    if reading.mta == "sendmail" and c.SMFIM_EOM in asked and c.SMFIM_EOH not in asked:
        yield Finding(
            "warning",
            "macro-eom",
            "the milter asks for macros at the end of the message and names none for the end of"
            " the headers: Sendmail then forgets the former",
            "let the milter name both lists",
        )
    everything = {braced(name) for names in sent.values() for name in names}
    for name in map(braced, needs):
        if name not in everything:
            yield _needed(reading, name, asked, dict(use.macros))


def check_configured_macros(reading: Reading) -> Iterator[Finding]:
    """
    Say what is wrong with the lists of macros in the configuration, once for all milters.
    """
    said: set[Finding] = set()
    for use in reading.places():
        for stage, names in use.macros:
            subject = f"{_setting(reading, stage)} has"
            for finding in _check_names(reading, subject, stage, names, own=False):
                if finding not in said:
                    said.add(finding)
                    yield finding


def _setting(reading: Reading, stage: int) -> str:
    return MACRO_PARAMETERS[stage] if reading.mta == "postfix" else MACRO_OPTIONS[stage][0]


def _check_names(
    reading: Reading, subject: str, stage: int, names: tuple[str, ...], *, own: bool
) -> Iterator[Finding]:
    at = STAGES[stage]
    if len(names) > _MOST_MACROS and reading.mta == "sendmail":
        yield Finding(
            "warning",
            "macro-many",
            f"{subject} {len(names)} macros at {at}, and Sendmail takes {_MOST_MACROS}",
            "take some out",
        )
    for name in names:
        if len(name) > 1 and not name.startswith("{"):
            effect = (
                f"Sendmail reads ${name[0]} and forgets the rest"
                if reading.mta == "sendmail"
                else "it is sent without braces, where milters look for it with them"
            )
            yield Finding(
                "warning",
                "macro-braces",
                f"{subject} {name} at {at}, without braces: {effect}",
                f"write {{{name}}}",
            )
        elif reading.mta == "postfix" and name not in reading.defaults:
            yield from _check_postfix_name(subject, stage, name, own=own)


def _check_postfix_name(subject: str, stage: int, name: str, *, own: bool) -> Iterator[Finding]:
    at = STAGES[stage]
    if name not in _POSTFIX_MACROS:
        meant = difflib.get_close_matches(name, _POSTFIX_MACROS, 1)
        fixed = f"milter_macro_defaults = {name}=value in main.cf gives it a fixed one"
        yield Finding(
            "warning",
            "macro-unknown",
            f"{subject} {name} at {at}, and Postfix has no such macro: it is never sent",
            f"write {meant[0]}" if meant and not own else fixed,
        )
        return
    first = _POSTFIX_MACROS[name]
    if _ORDER.index(first) > _ORDER.index(stage):
        yield Finding(
            "note",
            "macro-early",
            f"{subject} {name} at {at}, and it has no value before {STAGES[first]}",
            f"ask for it at {STAGES[first]}" if own else f"put it into {MACRO_PARAMETERS[first]}",
        )


def _needed(
    reading: Reading,
    name: str,
    asked: Mapping[int, Sequence[str]],
    configured: Mapping[int, tuple[str, ...]],
) -> Finding:
    stage = _POSTFIX_MACROS.get(name, c.SMFIM_CONNECT)
    if reading.mta == "postfix" and name not in _POSTFIX_MACROS:
        todo = f"milter_macro_defaults = {name}=value in main.cf gives it a fixed value"
    elif asked.get(stage):
        todo = f"the milter chooses its macros of {STAGES[stage]} itself: it has to name {name}"
    elif reading.mta == "postfix":
        names = " ".join([*configured[stage], name])
        todo = f"write in main.cf: {MACRO_PARAMETERS[stage]} = {names}"
    else:
        names = ", ".join([*configured[stage], name])
        todo = f"write in sendmail.mc: define(`{MACRO_OPTIONS[stage][1]}', `{names}')dnl"
    return Finding(
        "warning", "macro-missing", f"{name} is needed, and this milter is not sent it", todo
    )


# ---- several milters


def check_lists(reading: Reading, answers: Mapping[Use, Answer]) -> Iterator[Finding]:
    """
    Say what is to be seen of the milters of a list together.
    """
    said: set[str] = set()
    for place, uses in reading.lists.items():
        for finding in _check_list(reading, place, uses, answers):
            # What several services have in common is said once.
            key = finding.what.removeprefix(place)
            if key not in said:
                said.add(key)
                yield finding


def _check_list(
    reading: Reading, place: str, uses: Sequence[Use], answers: Mapping[Use, Answer]
) -> Iterator[Finding]:
    texts = [use.text for use in uses]
    for text in sorted({text for text in texts if texts.count(text) > 1}):
        yield Finding(
            "warning",
            "milter-twice",
            f"{place}: {text} is there twice, and sees each message twice",
            "take one out",
        )
    commands, contents = (
        ("command_timeout", "content_timeout") if reading.mta == "postfix" else ("R", "E")
    )
    for name, most in ((commands, _CLIENT_COMMAND), (contents, _CLIENT_CONTENT)):
        total = sum(use.seconds(name) for use in uses)
        if total > most:
            yield Finding(
                "note",
                "timeout-sum",
                f"{place}: with {name} of all its milters together a client may wait {total:g} s,"
                f" and many give up after {most:g} s and send the message again",
                f"make {name} shorter",
            )
    yield from _check_order(place, uses, answers)


def _check_order(
    place: str, uses: Sequence[Use], answers: Mapping[Use, Answer]
) -> Iterator[Finding]:
    agreements = [(use, answers[use].agreement) for use in uses if use in answers]
    changing = c.SMFIF_CHGBODY | c.SMFIF_CHGHDRS
    adder: Use | None = None
    for use, agreement in agreements:
        if agreement is None:
            continue
        if adder is not None and agreement.actions & c.SMFIF_CHGBODY:
            yield Finding(
                "note",
                "order",
                f"{place}: {adder.title} adds header fields, and {use.title}, which comes after"
                " it, may replace the body: a signature of the former would not hold",
                "if the former signs (DKIM, ARC), put it last",
            )
            return
        if agreement.actions & c.SMFIF_ADDHDRS and not agreement.actions & changing:
            adder = use
