"""
Postfix's configuration as it is in force, read without changing anything.

``postconf`` is asked where it is installed, because it knows the defaults of its version; else
main.cf and master.cf are read, with the defaults of Postfix 3.7.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from yatxmilter import constants as c
from yatxmilter._cli.doctor_addresses import postfix_address
from yatxmilter._cli.doctor_findings import (
    FULL_OFFER,
    ConfigurationError,
    Finding,
    Misspelt,
    Reading,
    Use,
    View,
    braced,
)
from yatxmilter._cli.doctor_postfix import (
    MACRO_PARAMETERS,
    Service,
    expand,
    read_entry,
    read_main,
    read_master,
    read_seconds,
    references,
    split_list,
    split_words,
)
from yatxmilter._wire.payloads import Offer
from yatxmilter.client._profiles import FLAVOURS

__all__ = ["DEFAULTS", "find_postconf", "read_postfix"]

# Seconds that postconf may take.
_PATIENCE: Final = 15.0

#: What counts where nothing is said, in Postfix 3.7.
DEFAULTS: Final = {
    "compatibility_level": "0",
    "daemon_timeout": "18000s",
    "inet_protocols": "all",
    "ipc_timeout": "3600s",
    "mail_owner": "postfix",
    "milter_command_timeout": "30s",
    "milter_connect_timeout": "30s",
    "milter_content_timeout": "300s",
    "milter_default_action": "tempfail",
    "milter_header_checks": "",
    "milter_macro_daemon_name": "$myhostname",
    "milter_macro_defaults": "",
    "milter_macro_v": "$mail_name $mail_version",
    "milter_protocol": "6",
    "milter_unknown_command_macros": "",
    "non_smtpd_milters": "",
    "queue_directory": "/var/spool/postfix",
    "receive_override_options": "",
    "smtpd_milter_maps": "",
    "smtpd_milters": "",
    **{
        parameter: " ".join(FLAVOURS["postfix"].symbols[stage])
        for stage, parameter in MACRO_PARAMETERS.items()
    },
}

#: By version: the steps that Postfix offers.
_STEPS: Final = {2: 0x7F, 3: 0x17F, 4: 0x37F, 6: c.SMFI_CURR_PROT}

_ACTIONS: Final = ("accept", "reject", "tempfail", "quarantine", "shutdown")

#: The newest version in which "shutdown" was seen to be unknown.
_WITHOUT_SHUTDOWN: Final = (3, 7)

#: Tables that are text, in which there is a key and a value in each line.
_TEXT_TABLES: Final = ("cidr", "texthash", "regexp", "pcre")


def find_postconf(environ: Mapping[str, str] = os.environ) -> str | None:
    """
    Find the program, which few users have in their PATH.
    """
    return shutil.which("postconf", path=f"{environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def read_postfix(folder: Path, postconf: str | None) -> Reading:
    """
    Read a folder with a main.cf and a master.cf.

    :param postconf: The program to ask; ``None`` to read the files alone.
    :raises ConfigurationError: for what cannot be read.
    """
    written = read_main(_file(folder / "main.cf"))
    if postconf is None:
        settings, master = {**DEFAULTS, **written}, _file(folder / "master.cf")
    else:
        settings = {**DEFAULTS, **read_main(_ask(postconf, folder))}
        master = _ask(postconf, folder, "-M")
    return _Reader(folder, settings, written, read_master(master)).read()


def _file(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def _ask(postconf: str, folder: Path, *words: str) -> str:
    try:
        run = subprocess.run(
            [postconf, "-c", folder, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run {postconf}: {error}") from error
    if run.returncode:
        said = run.stderr.decode("utf-8", "surrogateescape").strip()
        last = [f"status {run.returncode}", *said.splitlines()][-1]
        raise ConfigurationError(f"postconf -c {folder} fails: {last}")
    return run.stdout.decode("utf-8", "surrogateescape")


class _Reader:
    """
    Makes a `Reading` of settings and services.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str],
        written: dict[str, str],
        services: list[Service],
    ) -> None:
        self._settings = settings
        self._written = written
        self._services = services
        version = self._value("mail_version")
        self._reading = Reading("postfix", version, str(folder))

    def read(self) -> Reading:
        """
        Read everything.
        """
        reading = self._reading
        reading.findings.extend(self._unused())
        for name in ("ipc_timeout", "daemon_timeout"):
            reading.limits[name] = self._seconds(name, None)
        reading.defaults = tuple(
            braced(item.strip("{ ").partition("=")[0].strip())
            for item in split_words(self._value("milter_macro_defaults"))
        )
        for service in self._services:
            program = PurePosixPath(service.command).name
            if program == "smtpd":
                reading.findings.extend(self._stray(service))
                if self._has_milters(service):
                    self._list("smtpd_milters", service)
                    self._maps(service)
            elif program == "cleanup":
                reading.findings.extend(self._stray(service))
                self._list("non_smtpd_milters", service)
        reading.findings.extend(self._local_mail())
        return reading

    # ---- values

    def _value(self, name: str, service: Service | None = None) -> str:
        overrides = service.overrides if service is not None else {}

        def lookup(name: str) -> str | None:
            return overrides.get(name, self._settings.get(name))

        return expand(lookup(name) or "", lookup).strip()

    def _seconds(self, name: str, service: Service | None) -> float:
        try:
            return read_seconds(self._value(name, service), name)
        except Misspelt as error:
            finding = Finding("error", "timeout-invalid", error.what, error.todo)
            if finding not in self._reading.findings:
                self._reading.findings.append(finding)
            return read_seconds(DEFAULTS[name], name)

    def _place(self, parameter: str, service: Service) -> str:
        return f"{parameter} of {service.label}"

    # ---- what is said of the configuration

    def _unused(self) -> Iterator[Finding]:
        values = [*self._written.values()]
        values += [value for each in self._services for value in each.overrides.values()]
        used = set().union(*map(references, values), self._settings.keys() - self._written.keys())
        overridden = {name for each in self._services for name in each.overrides}
        names = sorted({*self._written, *overridden})
        for name in names:
            if "milter" in name and name not in used and name not in DEFAULTS:
                meant = difflib.get_close_matches(name, DEFAULTS, 1)
                yield Finding(
                    "warning",
                    "parameter-unknown",
                    f"{name} is not a parameter of Postfix, and nothing refers to it: it has no"
                    " effect",
                    f"write {meant[0]}" if meant else "take it out, or correct its name",
                )

    def _stray(self, service: Service) -> Iterator[Finding]:
        for word in service.stray:
            yield Finding(
                "error",
                "master-cf-argument",
                f"master.cf: {service.label} gets the argument {word!r}, not a setting; its"
                " program ends at once",
                "put a setting with blanks in braces: -o { name = value, value }, and no blanks"
                " around = without them",
            )

    def _has_milters(self, service: Service) -> bool:
        options = re.split(r"[\s,]+", self._value("receive_override_options", service))
        if "no_milters" not in options:
            return True
        if self._value("smtpd_milters", service):
            self._reading.findings.append(
                Finding(
                    "note",
                    "milters-off",
                    f"{service.label} has no_milters in receive_override_options: its mail passes"
                    " no milter",
                    "take no_milters out if it should",
                )
            )
        return False

    def _local_mail(self) -> Iterator[Finding]:
        by_name: dict[str, set[str]] = {"smtpd_milters": set(), "non_smtpd_milters": set()}
        for place, uses in self._reading.lists.items():
            by_name[place.partition(" ")[0]].update(use.text for use in uses)
        smtpd, local = by_name["smtpd_milters"], by_name["non_smtpd_milters"]
        if not smtpd and not local and not self._reading.broken:
            yield Finding(
                "warning",
                "no-milters",
                "no mail passes a milter: smtpd_milters and non_smtpd_milters are empty",
                "name the milter: smtpd_milters = inet:127.0.0.1:9900",
            )
        elif smtpd and not local:
            yield Finding(
                "note",
                "local-mail",
                "mail from the local sendmail command passes no milter: non_smtpd_milters is empty",
                "set non_smtpd_milters if such mail is to be signed or filtered",
            )
        elif local and not smtpd:
            yield Finding(
                "note",
                "local-mail",
                "mail that comes in by SMTP passes no milter: smtpd_milters is empty",
                "set smtpd_milters if it should",
            )
        elif smtpd != local:
            only = sorted(smtpd ^ local)
            yield Finding(
                "note",
                "local-mail",
                "mail by SMTP and local mail pass different milters: only one of the two has"
                f" {', '.join(only)}",
                "see whether smtpd_milters and non_smtpd_milters are meant to differ",
            )

    # ---- milters

    def _list(self, parameter: str, service: Service) -> None:
        self._read_list(self._value(parameter, service), self._place(parameter, service), service)

    def _read_list(self, text: str, place: str, service: Service) -> None:
        try:
            items = split_list(text)
        except Misspelt as error:
            self._break(text, place, "list-syntax", error)
            return
        for item in items:
            try:
                use = self._use(item, service)
            except Misspelt as error:
                self._break(item, place, "address", error)
            else:
                self._reading.lists.setdefault(place, []).append(use)

    def _break(self, text: str, place: str, check: str, error: Misspelt) -> None:
        finding = Finding("error", check, error.what, error.todo)
        self._reading.broken.append((text, place, finding))

    def _use(self, item: str, service: Service) -> Use:
        entry = read_entry(item)
        protocols = frozenset(re.split(r"[\s,]+", self._value("inet_protocols")))
        address = postfix_address(entry.address, protocols)
        times = []
        for name in ("connect", "command", "content"):
            own = entry.options.get(f"{name}_timeout")
            if own is None:
                seconds = self._seconds(f"milter_{name}_timeout", service)
            else:
                seconds = read_seconds(own, f"{name}_timeout")
            times.append((f"{name}_timeout", seconds))
        action = entry.options.get("default_action", self._value("milter_default_action", service))
        self._check_action(action)
        protocol = entry.options.get("protocol", self._value("milter_protocol", service))
        macros = tuple(
            (stage, tuple(re.findall(r"[^\s,]+", self._value(parameter, service))))
            for stage, parameter in MACRO_PARAMETERS.items()
        )
        return Use(
            text=entry.address,
            address=address,
            action=action.split()[0],
            times=tuple(times),
            offer=_offer(protocol),
            macros=macros,
            view=self._view(service),
        )

    def _check_action(self, action: str) -> None:
        word = action.split()[0] if action.split() else ""
        version = tuple(map(int, re.findall(r"\d+", self._reading.version)[:2]))
        known = _ACTIONS[:-1] if version and version <= _WITHOUT_SHUTDOWN else _ACTIONS
        if word not in known:
            raise Misspelt(
                f"the default action {action!r} is unknown to Postfix {self._reading.version}:"
                " when the milter fails, clients get 451 4.3.5 Server configuration problem",
                f"write one of {', '.join(known)}",
            )

    def _view(self, service: Service) -> View:
        queue = self._value("queue_directory")
        # What "-" means has changed with compatibility level 1.
        old = self._value("compatibility_level").partition(".")[0] == "0"
        chrooted = service.chroot == "y" or (service.chroot == "-" and old)
        user = "root" if service.privileged else self._value("mail_owner")
        return View(queue if chrooted else "", queue, user)

    # ---- tables

    def _maps(self, service: Service) -> None:
        place = self._place("smtpd_milter_maps", service)
        value = self._value("smtpd_milter_maps", service)
        for table in split_words(value):
            rows = self._table(table)
            if rows is None:
                self._reading.findings.append(
                    Finding(
                        "note",
                        "maps-unread",
                        f"{place}: what {table} gives is not looked at",
                        f"ask it for a client's address: postmap -q 192.0.2.1 {table}",
                    )
                )
                continue
            for key, milters in rows:
                if milters.upper() != "DISABLE":
                    self._read_list(
                        milters,
                        f"smtpd_milters of {service.label} for {key} (milter maps)",
                        service,
                    )

    def _table(self, table: str) -> list[tuple[str, str]] | None:
        kind, _, name = table.strip("{}").partition(":")
        if kind == "inline":
            items = split_words(name[1:-1] if name.startswith("{") else name)
            pairs = [item.strip("{} ").partition("=") for item in items]
            return [(key.strip(), value.strip()) for key, _, value in pairs]
        if kind not in _TEXT_TABLES:
            return None
        try:
            text = Path(name).read_text("utf-8", "surrogateescape")
        except OSError:
            return None
        rows = [line.split(None, 1) for line in text.splitlines() if line[:1] not in " \t#"]
        return [(row[0], row[1].strip()) for row in rows if len(row) == 2]


def _offer(protocol: str) -> Offer:
    """
    Give what Postfix offers with a value of ``milter_protocol``.

    :raises Misspelt: for one that it does not know.
    """
    words = re.split(r"[\s,]+", protocol)
    versions = [int(word) for word in words if word.isdecimal() and int(word) in _STEPS]
    extra = [word for word in words if not word.isdecimal()]
    known = {"no_header_reply": c.SMFIP_NR_HDR}
    if len(versions) != 1 or len(versions) + len(extra) != len(words) or set(extra) - known.keys():
        raise Misspelt(
            f"milter_protocol is {protocol!r}, which Postfix does not know: clients get 451 4.3.5"
            " Server configuration problem",
            "leave it out; the default is 6",
        )
    steps = _STEPS[versions[0]]
    for word in extra:
        steps |= known[word]
    return Offer(versions[0], FULL_OFFER.actions, steps)
