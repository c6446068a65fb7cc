"""What a check gives: what was looked at, and what was found."""

from dataclasses import dataclass, replace
from typing import Any

from paramdelta.planning.findings import Finding, Severity
from paramdelta.text import shown

MOST = 600  # characters of one text


@dataclass(frozen=True)
class Report:
    """The result of `check`.

    ``folder``: as it was given. ``kind``: what the folder is. ``checked``: what was looked at, a
    phrase each. ``skipped``: what was not, with the reason. ``findings``: the gravest first.
    ``tensors``, ``nbytes``: what the weight files hold.
    """

    folder: str
    kind: str
    checked: tuple[str, ...]
    skipped: tuple[str, ...]
    findings: tuple[Finding, ...]
    tensors: int
    nbytes: int

    @property
    def passed(self) -> bool:
        """Whether nothing is refused."""
        return all(finding.severity is not Severity.REFUSED for finding in self.findings)

    @property
    def facts(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "folder": self.folder,
            "kind": self.kind,
            "passed": self.passed,
            "checked": list(self.checked),
            "skipped": list(self.skipped),
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "findings": [
                {
                    "severity": finding.severity.value,
                    "code": finding.code,
                    "what": finding.what,
                    "where": finding.where,
                    "tensors": list(finding.tensors),
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
        }


def printable(finding: Finding) -> Finding:
    """A finding whose texts, which hold names from foreign files, can be printed anywhere."""
    return replace(
        finding,
        what=shown(finding.what, MOST),
        where=shown(finding.where, MOST),
        tensors=tuple(shown(name, MOST) for name in finding.tensors),
        remedy=shown(finding.remedy, MOST) if finding.remedy is not None else None,
    )
