"""What the user should know before the mix: severity, place, remedy."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Severity(str, Enum):
    """``refused``: nothing is mixed; ``warning``: probably not what was meant; ``note``: a fact."""

    REFUSED = "refused"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know.

    ``code``: a short stable name, for machines and for ``--allow``. ``what``: one sentence.
    ``where``: the checkpoint. ``tensors``: all names concerned. ``remedy``: what to do.
    ``allowed``: what ``--allow CODE`` does instead of refusing; None if it cannot be allowed.
    """

    severity: Severity
    code: str
    what: str
    where: str
    tensors: tuple[str, ...] = ()
    remedy: str | None = None
    allowed: str | None = None

    def sample(self, most: int = 3) -> str:
        """The first few tensor names, and how many more there are."""
        names = ", ".join(self.tensors[:most])
        rest = len(self.tensors) - most
        return f"{names} and {rest} more" if rest > 0 else names


def apply_allowances(findings: Iterable[Finding], allow: Iterable[str]) -> tuple[Finding, ...]:
    """Turn refusals that the user accepted into warnings; the gravest come first."""
    allow = set(allow)
    accepted = [
        replace(f, severity=Severity.WARNING, what=f"{f.what}; allowed: {f.allowed}", remedy=None)
        if f.severity is Severity.REFUSED and f.allowed is not None and f.code in allow
        else f
        for f in findings
    ]
    order = list(Severity)
    return tuple(sorted(accepted, key=lambda f: order.index(f.severity)))
