"""Findings, for people and as events."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from paramdelta.cli.flags import with_flags
from paramdelta.cli.show.terminal import say
from paramdelta.planning.findings import Finding, Severity

_COLORS = {Severity.REFUSED: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
SAMPLE = 3  # tensors of a finding that are named


def show_findings(
    findings: Iterable[Finding],
    *,
    notes: bool = True,
    all_tensors: bool = False,
    err: bool = False,
) -> None:
    """Print findings with their place and remedy. ``notes``: also those that are only notes.

    ``err``: to standard error.
    """
    for finding in findings:
        if notes or finding.severity is not Severity.NOTE:
            _show(flagged(finding), all_tensors, err)


def finding_facts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for an event."""
    return [flagged(finding).to_dict() for finding in findings]


def flagged(finding: Finding) -> Finding:
    """A finding whose text names the options of the command line."""
    return replace(
        finding,
        what=with_flags(finding.what),
        remedy=with_flags(finding.remedy),
        allowed=with_flags(finding.allowed),
    )


def _show(finding: Finding, all_tensors: bool, err: bool) -> None:
    label = f"  {finding.severity.value:<9}"
    say(f" {finding.what}  [{finding.code}]", head=label, color=_COLORS[finding.severity], err=err)
    names = finding.sample(len(finding.tensors) if all_tensors else SAMPLE)
    say(f"            in {finding.where}" + (f": {names}" if names else ""), err=err)
    if finding.remedy:
        say(f"            {finding.remedy}", err=err)
    if finding.allowed and finding.severity is Severity.REFUSED:
        say(f"            --allow {finding.code}: {finding.allowed}", err=err)
