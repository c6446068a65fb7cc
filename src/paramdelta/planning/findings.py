"""What the user should know before the mix: severity, place, remedy."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from paramdelta.errors import UsageError, did_you_mean


class Severity(str, Enum):
    """``refused`` prevents the mix; ``warning``: probably a mistake; ``note``: a fact."""

    REFUSED = "refused"
    WARNING = "warning"
    NOTE = "note"


ALLOWABLE = frozenset(
    {
        "adapted-embedding",
        "architecture-differs",
        "component-vocabulary",
        "integer-changed",
        "layers-moved",
        "missing-in-base",
        "missing-in-new-base",
        "missing-in-post",
        "only-in-post",
        "post-only-tokens",
        "shape-differs",
        "taken-from-another-family",
        "taken-rows",
        "tokenizer-unknown",
        "tokens-without-rows",
        "vocabulary-unrelated",
    }
)
"""Codes of refused findings that `Recipe.allow` can accept."""


def check_allowed(codes: Iterable[str]) -> None:
    """Raise UsageError if a code is not the code of a finding that can be accepted."""
    for code in codes:
        if code not in ALLOWABLE:
            raise UsageError(
                f"{code!r} is not the code of a finding that can be accepted",
                code="unknown-allow",
                expected=f"one of {', '.join(sorted(ALLOWABLE))}",
                remedy=did_you_mean(code, sorted(ALLOWABLE))
                or "plan prints the code of each finding in brackets",
            )


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know.

    ``code``: a stable name, for programs and for `Recipe.allow`. ``what``: one sentence.
    ``where``: the checkpoint. ``tensors``: all names concerned. ``remedy``: what to do.
    ``allowed``: what happens instead if the code is allowed; None if it cannot be allowed.
    """

    severity: Severity
    code: str
    what: str
    where: str
    tensors: tuple[str, ...] = ()
    remedy: str | None = None
    allowed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain values, for JSON."""
        return {
            "severity": self.severity.value,
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "tensors": list(self.tensors),
            "remedy": self.remedy,
            "allowed": self.allowed,
        }

    def sample(self, most: int = 3) -> str:
        """The first few tensor names, and how many more there are."""
        names = ", ".join(self.tensors[:most])
        rest = len(self.tensors) - most
        return f"{names} and {rest} more" if rest > 0 else names


@dataclass
class Findings:
    """Collects findings; those of one code and place that name a tensor become one."""

    _plain: list[Finding] = field(default_factory=list)
    _grouped: dict[tuple[str, str], tuple[Finding, list[str]]] = field(default_factory=dict)

    def add(
        self,
        severity: Severity,
        code: str,
        what: str,
        where: object,
        *,
        tensor: str | None = None,
        remedy: str | None = None,
        allowed: str | None = None,
    ) -> None:
        """Add a finding. ``where``: a checkpoint, or text."""
        finding = Finding(severity, code, what, str(where), (), remedy, allowed)
        if tensor is None:
            self._plain.append(finding)
        else:
            self._grouped.setdefault((code, str(where)), (finding, []))[1].append(tensor)

    def all(self, allow: Iterable[str]) -> tuple[Finding, ...]:
        """All findings, the most severe first. Refusals with an allowed code are warnings."""
        allow = set(allow)
        grouped = [replace(f, tensors=tuple(names)) for f, names in self._grouped.values()]
        accepted = [
            replace(
                f, severity=Severity.WARNING, what=f"{f.what}; allowed: {f.allowed}", remedy=None
            )
            if f.severity is Severity.REFUSED and f.allowed is not None and f.code in allow
            else f
            for f in self._plain + grouped
        ]
        order = list(Severity)
        return tuple(sorted(accepted, key=lambda f: order.index(f.severity)))
