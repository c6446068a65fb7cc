"""Which checkpoints of a plan descend from one another, by a sample of their weights."""

from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.lineage import RELATED, Likeness, likeness, sample
from paramdelta.planning.sources import Lineage, Source, Sources


def compare_relatives(sources: Sources, findings: Findings) -> dict[str, Likeness]:
    """How much every base is like the new base and its post, by pair of roles.

    Warns where two checkpoints do not share an ancestor, or hold the same weights.
    """
    whole = [sources.new, *(source for each in sources.lineages for source in _models(each))]
    chosen = sample(list(sources.new.views), [source.views for source in whole])
    result: dict[str, Likeness] = {}
    for each in sources.lineages:
        if each.base is None:
            continue
        for other in [sources.new] if each.is_adapter else [sources.new, each.post]:
            found = likeness(chosen, each.base.views, other.views, sources.fetch)
            if found is not None:
                result[f"{each.base.checkpoint.role} ~ {other.checkpoint.role}"] = found
                _report(found, each, other, findings)
    return result


def _models(each: Lineage) -> list[Source]:
    """Post and base as far as they hold a whole model."""
    if each.base is None:
        return []
    return [each.base] if each.is_adapter else [each.post, each.base]


def _report(found: Likeness, each: Lineage, other: Source, findings: Findings) -> None:
    if found.cosine < RELATED:
        findings.add(
            Severity.WARNING,
            "unrelated",
            f"cosine {found.cosine:.3f} with {each.base}: they do not share an "
            "ancestor, so the Δ has no meaning here",
            other,
            remedy="check that all of them are the right checkpoints",
        )
    elif found.distance == 0 and other is each.post:
        findings.add(
            Severity.WARNING,
            "no-delta",
            f"equal to {each.base} on the sample: the Δ seems to be zero",
            other,
        )
