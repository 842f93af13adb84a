"""
What ``yatxmilter doctor`` prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from yatxmilter._cli.doctor_findings import LEVELS, Finding, Reading, worst
from yatxmilter._cli.terminal import Page

__all__ = ["Patient", "Report", "as_json", "tell"]

_COLOURS: Final = {"ok": "good", "note": "place", "warning": "soft", "error": "bad"}


@dataclass
class Patient:
    """
    A milter, where it is configured, and what was found about it.
    """

    title: str
    places: list[str]
    findings: list[Finding] = field(default_factory=list)


@dataclass
class Report:
    """
    Everything that was found.
    """

    reading: Reading
    patients: list[Patient] = field(default_factory=list)
    general: list[Finding] = field(default_factory=list)

    def findings(self) -> Iterator[Finding]:
        """
        Give the findings about milters, then the others.
        """
        for patient in self.patients:
            yield from patient.findings
        yield from self.general

    @property
    def level(self) -> str:
        """
        The level of the worst finding.
        """
        return worst(self.findings())

    @property
    def status(self) -> int:
        """
        The exit status: 0 for notes at most, 1 for warnings, 2 for errors.
        """
        return max(LEVELS.index(self.level) - 1, 0)


def tell(page: Page, report: Report) -> None:
    """
    Print a report for people to read.
    """
    reading = report.reading
    name = " ".join(filter(None, (reading.mta.capitalize(), reading.version)))
    page.line(f"{name}, {reading.source}", "head")
    for patient in report.patients:
        page.title(patient.title)
        for place in patient.places:
            page.line(f"  {place}", "dim")
        _tell_findings(page, patient.findings)
    if report.general:
        page.title("The configuration")
        _tell_findings(page, report.general)
    page.line()
    counts = dict.fromkeys(LEVELS, 0)
    for finding in report.findings():
        counts[finding.level] += 1
    count = len(report.patients)
    page.line(
        f"{count} milter{'' if count == 1 else 's'}: "
        + ", ".join(f"{counts[level]} {level}" for level in reversed(LEVELS)),
        _COLOURS[report.level],
    )


def _tell_findings(page: Page, findings: list[Finding]) -> None:
    for finding in findings:
        page.line(f"  {finding.level:<8} {finding.what}", _COLOURS[finding.level])
        if finding.todo:
            page.line(f"           -> {finding.todo}")


def as_json(report: Report) -> str:
    """
    Write it as a JSON object on one line.
    """
    reading = report.reading
    return json.dumps(
        {
            "mta": reading.mta,
            "version": reading.version,
            "configuration": reading.source,
            "level": report.level,
            "milters": [
                {
                    "milter": patient.title,
                    "places": patient.places,
                    "level": worst(patient.findings),
                    "findings": [finding._asdict() for finding in patient.findings],
                }
                for patient in report.patients
            ],
            "findings": [finding._asdict() for finding in report.general],
        }
    )
