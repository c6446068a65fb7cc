"""The result of `check`."""

from collections import Counter

from paramdelta.checks.report import Report
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.findings import show_findings
from paramdelta.cli.show.terminal import say
from paramdelta.planning.findings import Severity
from paramdelta.units import show_size

_PLURALS = {
    Severity.REFUSED: "refused",
    Severity.WARNING: "warnings",
    Severity.NOTE: "notes",
}


def show_check(report: Report, as_json: bool) -> None:
    """What was looked at, what was left out, and what was found."""
    if as_json:
        emit("check", **report.facts)
        return
    say(f"{report.folder}: {report.kind}, {report.tensors} tensors, {show_size(report.nbytes)}")
    say(f"  looked at  {', '.join(report.checked)}")
    for text in report.skipped:
        say(f"  left out   {text}")
    show_findings(report.findings)
    counts = Counter(finding.severity for finding in report.findings)
    found = [
        f"{counts[severity]} {word}" for severity, word in _PLURALS.items() if counts[severity]
    ]
    say(", ".join(found) or "no findings")
