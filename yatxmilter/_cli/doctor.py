"""
``python -m yatxmilter doctor``: check an MTA's configuration for its milters.

Nothing is changed, and nobody is spoken to but the milters in the configuration.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Final, TextIO

from twisted.internet.defer import Deferred, gatherResults

from yatxmilter._cli.doctor_checks import (
    check_action,
    check_answer,
    check_configured_macros,
    check_lists,
    check_macros,
    check_network,
    check_times,
)
from yatxmilter._cli.doctor_findings import (
    FULL_OFFER,
    ConfigurationError,
    Finding,
    InetAddress,
    Reading,
    Use,
)
from yatxmilter._cli.doctor_paths import check_socket, identity_of
from yatxmilter._cli.doctor_postfix_reading import find_postconf, read_postfix
from yatxmilter._cli.doctor_probe import Answer, Target, probe
from yatxmilter._cli.doctor_report import Patient, Report, as_json, tell
from yatxmilter._cli.doctor_sendmail import read_sendmail
from yatxmilter._cli.running import Interrupted, run_reactor
from yatxmilter._cli.send_options import read_seconds
from yatxmilter._cli.terminal import Page

__all__ = ["DESCRIPTION", "add_arguments", "examine", "run"]

DESCRIPTION: Final = """\
Read the configuration of Postfix or Sendmail, and check each milter in it, in whatever
language it is written: can the MTA read its address, is its socket where the MTA looks for
it (in a chroot, too), may the MTA's user connect, does the milter answer a negotiation, do
time-outs fit, which macros does it not get, and what happens to mail while it is down. For
each mistake it says what to do.

It changes nothing and sends no mail. It connects to each configured milter, negotiates,
and leaves. Run it as root, because only root may look into every folder on the way to a
socket.

  python -m yatxmilter doctor
      the Postfix in /etc/postfix, or else the Sendmail in /etc/mail
  python -m yatxmilter doctor --postfix /etc/postfix-out
      another instance of Postfix
  python -m yatxmilter doctor --sendmail /etc/mail/sendmail.cf --needs client_ptr
      do the milters get the macro {client_ptr}, and if not, which line adds it?
  python -m yatxmilter doctor --json
      one JSON object, for programs

The exit status is that of the worst finding: 0 if all is well or there are notes only,
1 for warnings, 2 for errors, wrong arguments and a configuration that cannot be read;
130 after Ctrl-C."""

_POSTFIX: Final = Path("/etc/postfix")
_SENDMAIL: Final = Path("/etc/mail/sendmail.cf")

_INTERRUPTED: Final = 130


def add_arguments(parser: ArgumentParser) -> None:
    """
    Declare the command's arguments.
    """
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--postfix",
        metavar="DIR",
        type=Path,
        help=f"the folder with main.cf and master.cf (default: {_POSTFIX}, if it is there)",
    )
    which.add_argument(
        "--sendmail", metavar="FILE", type=Path, help=f"a sendmail.cf (default: {_SENDMAIL})"
    )
    parser.add_argument(
        "--needs",
        metavar="MACRO",
        action="append",
        default=[],
        help="a macro that the milters need by their manuals, such as client_ptr; repeat for more",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_seconds,
        default=5.0,
        help="to connect to a milter, and to wait for its answer (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: Namespace, *, reactor: Any = None, out: TextIO | None = None) -> int:
    """
    Run the command, and give the exit status.
    """
    out = out or sys.stdout
    reading = _read(arguments.postfix, arguments.sendmail)

    async def play(reactor: Any) -> Report:
        return await examine(reactor, reading, arguments.timeout, arguments.needs)

    try:
        report = run_reactor(play, reactor)
    except Interrupted:
        return _INTERRUPTED
    if arguments.json:
        out.write(as_json(report) + "\n")
    else:
        tell(Page(out), report)
    return report.status


def _read(postfix: Path | None, sendmail: Path | None) -> Reading:
    """
    Read the configuration that is meant; one that cannot be read has that for a finding.
    """
    if postfix is None and sendmail is None:
        if (_POSTFIX / "main.cf").exists() or not _SENDMAIL.exists():
            postfix = _POSTFIX
        else:
            sendmail = _SENDMAIL
    try:
        if sendmail is not None:
            return read_sendmail(sendmail)
        assert postfix is not None
        return read_postfix(postfix, find_postconf())
    except ConfigurationError as error:
        reading = Reading(
            "postfix" if sendmail is None else "sendmail", "", str(postfix or sendmail)
        )
        todo = "name the folder with --postfix, or the sendmail.cf with --sendmail"
        reading.findings.append(Finding("error", "configuration", str(error), todo))
        return reading


async def examine(reactor: Any, reading: Reading, seconds: float, needs: list[str]) -> Report:
    """
    Look at every milter of a configuration.

    :param seconds: To connect to a milter, and to wait for its answer.
    :param needs: Names of macros that the milters need.
    """
    report = Report(reading, general=list(reading.findings))
    broken: dict[tuple[str, Finding], list[str]] = {}
    for text, place, finding in reading.broken:
        broken.setdefault((text, finding), []).append(place)
    for (text, finding), where in broken.items():
        report.patients.append(Patient(text, where, [finding]))
    places = reading.places()
    found: dict[Use, list[Finding]] = {}
    targets: dict[Use, Target] = {}
    for use in places:
        found[use], address = _locate(reading, use)
        # What is not there, or is not a socket, need not be asked.
        if address is not None:
            targets[use] = address, use.offer
    # What does not answer an old version may answer the newest one.
    asked = {*targets.values(), *((address, FULL_OFFER) for address, _ in targets.values())}
    answers = await _ask_all(reactor, sorted(asked, key=repr), seconds)
    for use, where in places.items():
        findings = found[use]
        down = list(check_action(reading, use))
        agreement = None
        if use in targets:
            address, _ = targets[use]
            answer = answers[targets[use]]
            agreement = answer.agreement
            meanwhile = down[0].what.removeprefix("while the milter is down ")
            findings += check_answer(use, answer, answers[address, FULL_OFFER], meanwhile)
        findings += check_network(use)
        findings += down
        findings += check_times(reading, use)
        findings += check_macros(reading, use, agreement, needs)
        report.patients.append(Patient(use.title, where, findings))
    by_use = {use: answers[target] for use, target in targets.items()}
    report.general += check_configured_macros(reading)
    report.general += check_lists(reading, by_use)
    return report


async def _ask_all(reactor: Any, targets: list[Target], seconds: float) -> dict[Target, Answer]:
    asking = [Deferred.fromCoroutine(probe(reactor, target, seconds)) for target in targets]
    return dict(zip(targets, await gatherResults(asking), strict=True))


def _locate(reading: Reading, use: Use) -> tuple[list[Finding], InetAddress | str | None]:
    """
    Find where a milter is; say what is wrong with the way to it.
    """
    if isinstance(use.address, InetAddress):
        return [], use.address
    try:
        who = identity_of(use.view.user, use.view.group)
    except KeyError:
        findings, path = check_socket(reading, use, None)
        what = f"{use.view.user} is not a user of this machine: whether it may connect is not known"
        todo = "run doctor on the machine of the MTA"
        return [*findings, Finding("note", "user-unknown", what, todo)], path
    return check_socket(reading, use, who)
