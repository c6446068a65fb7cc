"""What a check gives: what was looked at, and what was found."""

import unicodedata
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from paramdelta.planning.findings import Finding, Severity

MOST = 600  # characters of one text
_Text = TypeVar("_Text", str, Finding)


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


def printable(value: _Text) -> _Text:
    """A text from foreign files, or a finding with such texts, as it can be printed anywhere.

    Control and formatting characters (which can move the cursor or turn the direction of writing)
    and lone surrogates become escapes; what is very long is cut.
    """
    if isinstance(value, Finding):
        return replace(
            value,
            what=printable(value.what),
            where=printable(value.where),
            tensors=tuple(map(printable, value.tensors)),
            remedy=printable(value.remedy) if value.remedy is not None else None,
        )
    text = value if len(value) <= MOST else value[: MOST - 1] + "…"
    return "".join(
        character if unicodedata.category(character)[0] != "C" else ascii(character)[1:-1]
        for character in text
    )
