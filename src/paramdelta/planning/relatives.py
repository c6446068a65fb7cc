"""Which checkpoints of a plan descend from one another, by a sample of their weights."""

from functools import cache

from paramdelta.planning.depth import find_moved_layers
from paramdelta.planning.facts import template_text
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.lineage import (
    RELATED,
    Likeness,
    Shift,
    likeness,
    read_samples,
    sample,
    shift,
)
from paramdelta.planning.sources import Lineage, Source, Sources
from paramdelta.recipe import Recipe

FAR = 1.5  # shift / Δ from which less than half came across in docs/study.md, section 3
ALONG = 0.4  # cosine of shift and Δ; at most 0.33 in that study, 0.48 with another post as base
NEARER = 0.8  # of the distances to post and to base
SHIFT_CODES = frozenset(
    {
        "delta-along-shift",
        "new-base-is-base",
        "new-base-is-post",
        "post-base-swapped",
        "shift-far",
    }
)
"""Codes of the findings about the place of the new base."""


def compare_relatives(
    sources: Sources, recipe: Recipe, findings: Findings
) -> tuple[dict[str, Likeness], dict[str, Shift]]:
    """How base, post and new base lie to one another.

    Returns how much every base is like the new base and its post, by pair of roles, and the shift
    of the new base beside each Δ, by the role of post. Findings say where checkpoints do not share
    an ancestor, hold the same weights, or seem to be given in the wrong places.
    """
    whole = [sources.new, *(source for each in sources.lineages for source in _models(each))]
    chosen = sample(list(sources.new.views), [source.views for source in whole])
    read = cache(lambda source: read_samples(chosen, source.views, sources.fetch))
    likenesses: dict[str, Likeness] = {}
    shifts: dict[str, Shift] = {}
    for each, delta in zip(sources.lineages, recipe.deltas, strict=True):
        if each.base is None:
            continue
        for other in [sources.new] if each.is_adapter else [sources.new, each.post]:
            found = likeness(read(each.base), read(other))
            if found is not None:
                likenesses[f"{each.base.checkpoint.role} ~ {other.checkpoint.role}"] = found
                _report(found, each, other, findings)
        if each.is_adapter:
            continue
        moved = shift(read(each.base), read(each.post), read(sources.new))
        if moved is not None:
            shifts[each.post.checkpoint.role] = moved
            _report_shift(moved, each, sources.new, delta.scale, findings)
        _report_templates(each, findings)
        find_moved_layers(each.base, sources.new, sources.fetch, findings)
    return likenesses, shifts


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


def _report_shift(
    moved: Shift, each: Lineage, new: Source, scale: object, findings: Findings
) -> None:
    """Say what the places of the three checkpoints tell about the recipe."""
    if moved.ratio == 0:
        findings.add(
            Severity.WARNING if scale == 1 else Severity.NOTE,
            "new-base-is-base",
            f"equal to {each.base} on the sample: "
            + ("the result is post" if scale == 1 else "the result lies between base and post"),
            new,
        )
    elif moved.nearness == 0:
        findings.add(
            Severity.WARNING,
            "new-base-is-post",
            f"equal to {each.post} on the sample: the Δ is in it already, and is added again",
            new,
            remedy="give the new base that was not post-trained",
        )
    elif moved.nearness < NEARER:
        findings.add(
            Severity.WARNING,
            "post-base-swapped",
            f"nearer to {each.post} than to {each.base} (distances {moved.nearness:.2f} : 1)",
            new,
            remedy="check that post and base are not swapped, and that the new base has not been "
            "post-trained",
        )
    elif moved.cosine > ALONG:
        findings.add(
            Severity.WARNING,
            "delta-along-shift",
            f"the new base differs from {each.base} in the direction of the Δ (cosine "
            f"{moved.cosine:.2f}): another base, or another post, seems to stand in its place",
            each.post,
            remedy="check that base is what post was trained from, and that post and base are not "
            "swapped",
        )
    if moved.ratio >= FAR:
        findings.add(
            Severity.WARNING,
            "shift-far",
            f"it moved {moved.ratio:.1f} times as far from base as post did; in the study on small "
            f"models, less than half came across from {FAR:g} times on",
            new,
            remedy="measure the result; post-training the new base directly may be needed",
        )


def _report_templates(each: Lineage, findings: Findings) -> None:
    """A chat template that only base has."""
    if each.base is None:
        return
    if template_text(each.base.checkpoint.files) and not template_text(each.post.checkpoint.files):
        findings.add(
            Severity.WARNING,
            "template-only-in-base",
            f"no chat template, and {each.base} has one",
            each.post,
            remedy="check that post and base are not swapped",
        )
