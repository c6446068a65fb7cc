"""What the measures say: a paragraph for each Δ, and flags with their thresholds and sources."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paramdelta.analysis.measures import DeltaMeasures, Group
from paramdelta.analysis.prediction import known_cases
from paramdelta.planning.findings import Severity
from paramdelta.planning.lineage import RELATED
from paramdelta.planning.relatives import ALONG, FAR

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis

ORTHOGONAL = 0.2  # cosines up to this are called nearly orthogonal
OPPOSED = -0.1  # cosine of Δ and S in a layer
LOST = 0.5  # share of the changed elements that the output's dtype rounds away
OUTLIER = 10.0  # a row of tokens beside the median row
ENERGY = 0.95  # share in a low rank
SHARED = 0.2  # cosine of two Δs
_WARNING, _NOTE = Severity.WARNING.value, Severity.NOTE.value
_STUDY = "docs/study.md"


@dataclass(frozen=True)
class Flag:
    """One thing that stands out.

    ``delta``: the Δ's number in the recipe; None if it is about several. ``value`` crossed
    ``threshold``, which has its reason in ``source``. ``where``: layers, tensors or tokens.
    ``remedy``: what to try.
    """

    code: str
    severity: str
    what: str
    delta: int | None
    value: float
    threshold: float
    source: str
    remedy: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """``paragraphs``: one for each Δ. ``flags``: the warnings first."""

    paragraphs: tuple[str, ...]
    flags: tuple[Flag, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def verdict(analysis: "Analysis") -> Verdict:
    """The verdict on an analysis."""
    paragraphs = []
    flags: list[Flag] = []
    for number in range(len(analysis.deltas)):
        found = analysis.all.of(number)
        if found is None:
            continue
        tag = f" {number + 1}" if len(analysis.deltas) > 1 else ""
        paragraphs.append(" ".join(_sentences(analysis, found, tag)))
        for flag in (
            _lineage, _far, _opposed, _along, _resolution, _outliers, _low_rank, _zero,
        ):  # fmt: skip
            flags += flag(analysis, found)
    flags += _common_part(analysis.all, len(analysis.deltas))
    flags += _not_finite(analysis)
    flags.sort(key=lambda flag: flag.severity != _WARNING)
    return Verdict(tuple(paragraphs), tuple(flags))


def _sentences(analysis: "Analysis", found: DeltaMeasures, tag: str) -> Iterator[str]:
    size = "zero" if not found.norm else f"{100 * (found.relative or 0):.3g} % of base's norm"
    yield f"Δ{tag} is {size}, in {found.tensors} tensors."
    yield f"{100 * found.unchanged:.2g} % of its numbers are 0."
    kinds = [(cell.kind, m) for cell in analysis.kinds if (m := cell.group.of(found.delta))]
    matrices = [
        (kind, m.relative) for kind, m in kinds if kind not in ("norm", "bias") and m.relative
    ]
    if len(matrices) > 1:
        kind, most = max(matrices, key=lambda each: each[1])
        other, least = min(matrices, key=lambda each: each[1])
        yield (
            f"Relative to its weights it is largest in {kind} ({100 * most:.3g} %) and smallest in "
            f"{other} ({100 * least:.3g} %)."
        )
    shift = found.shift
    if shift is None:
        if analysis.new_base is not None:
            yield "Its base is not known, so nothing can be said of the shift."
        return
    if not shift.norm:
        yield "The new base is base."
        return
    if shift.bases is not None and shift.bases < RELATED:
        yield (
            f"Base and new base have the cosine {shift.bases:.3f}: they are not one lineage, and "
            "the Δ has no meaning on this new base."
        )
        return
    if shift.ratio is not None and shift.cosine is not None:
        yield (
            f"The new base moved {shift.ratio:.2g} times as far from base as post did. Δ and the "
            f"shift are {_angle(shift.cosine)} (cosine {shift.cosine:.3f})."
        )
        yield known_cases(shift.ratio)


def _angle(cosine: float) -> str:
    if abs(cosine) <= ORTHOGONAL:
        return "nearly orthogonal"
    if cosine < 0:
        return "partly opposed"
    return "partly aligned" if cosine < ALONG else "largely in one direction"


# -- flags -----------------------------------------------------------------------------------------


def _lineage(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    cosine = found.shift.bases if found.shift is not None else None
    if cosine is not None and cosine < RELATED:
        yield Flag(
            "not-one-lineage",
            _WARNING,
            f"base and new base have the cosine {cosine:.3f}: they do not share an ancestor",
            found.delta,
            cosine,
            RELATED,
            f"{_STUDY}, section 6: with the Δ of an unrelated base no question was answered",
            "check that all of them are the right checkpoints",
        )


def _far(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    ratio = found.shift.ratio if found.shift is not None else None
    if ratio is not None and ratio >= FAR and not any(_lineage(analysis, found)):
        yield Flag(
            "shift-far",
            _WARNING,
            f"the new base moved {ratio:.2f} times as far from base as post did",
            found.delta,
            ratio,
            FAR,
            f"{_STUDY}, section 3: the first run below 50 % of direct is at 1.5; up to 0.29 every "
            "run kept 95 %",
            "measure the result; post-training the new base directly may be needed",
        )


def _opposed(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    cosines = {
        cell.name: m.shift.cosine
        for cell in analysis.layers
        if (m := cell.group.of(found.delta)) and m.shift and m.shift.cosine is not None
    }
    opposed = {name: cosine for name, cosine in cosines.items() if cosine < OPPOSED}
    if opposed:
        least = min(opposed, key=lambda name: opposed[name])
        yield Flag(
            "shift-opposed",
            _WARNING,
            f"Δ and the shift are opposed in {len(opposed)} of {len(cosines)} layers, most in "
            f"layer {least} (cosine {opposed[least]:.3f}): there the new base takes back a part "
            "of Δ",
            found.delta,
            opposed[least],
            OPPOSED,
            f"chosen: in {_STUDY}, section 3, no cosine over all layers is below 0.01",
            "compare the result with one that has a smaller scale in these layers",
            tuple(opposed),
        )


def _along(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    cosine = found.shift.cosine if found.shift is not None else None
    if cosine is not None and cosine > ALONG:
        yield Flag(
            "delta-along-shift",
            _WARNING,
            f"the new base moved in the direction of the Δ (cosine {cosine:.2f}): it may have been "
            "post-trained already, or another checkpoint stands in its place",
            found.delta,
            cosine,
            ALONG,
            f"{_STUDY}, section 3: at most 0.4 in 75 runs",
            "check the checkpoints; a smaller scale avoids counting the common part twice",
        )


def _resolution(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    changed = 1 - found.unchanged
    share = found.rounded_away / changed if changed else 0.0
    if share >= LOST:
        yield Flag(
            "delta-below-resolution",
            _WARNING,
            f"{100 * share:.0f} % of the numbers that Δ changes stay as they are in the output, "
            "whose dtype is too coarse for them",
            found.delta,
            share,
            LOST,
            "chosen: half of Δ's numbers",
            "write the output with `dtype='float32'`, or apply the Δ where the weights are kept in "
            "float32",
        )


def _outliers(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    there = [tensor for tensor in analysis.tensors if tensor.rows.get(found.delta)]
    named = [tensor for tensor in there if tensor.rows[found.delta][0].token is not None]
    for tensor in named or there:  # not positions, where tokens are known
        rows = [
            row
            for row in tensor.rows.get(found.delta, ())
            if row.median > 0 and row.norm >= OUTLIER * row.median
        ]
        if rows:
            most = rows[0].norm / rows[0].median
            names = tuple(row.token if row.token is not None else f"row {row.row}" for row in rows)
            yield Flag(
                "embedding-outliers",
                _NOTE,
                f"{_at_least(len(rows), len(tensor.rows[found.delta]))} of {tensor.name} changed "
                f"at least {OUTLIER:g} times as much as the median row, the first {most:.0f} times",
                found.delta,
                most,
                OUTLIER,
                "chosen: in the shipped lineage the most is 2.4",
                "these are the tokens of the post-training, often some that base never saw, such "
                "as those of a chat template; `take` gives the output post's own row of a token",
                names,
            )


def _at_least(count: int, known: int) -> str:
    """So many rows, or more, of which no more are known."""
    if count == known:
        return f"at least {count} rows"
    return "1 row" if count == 1 else f"{count} rows"


def _low_rank(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    spectra = [s for t in analysis.tensors for s in t.spectra if s.delta == found.delta]
    ranks = [s.rank_of(ENERGY) for s in spectra]
    small = [
        rank is not None and 4 * rank <= s.full for rank, s in zip(ranks, spectra, strict=True)
    ]
    if spectra and all(small):
        rank = max(rank for rank in ranks if rank is not None)
        yield Flag(
            "low-rank",
            _NOTE,
            f"a rank of {rank} holds {100 * ENERGY:.0f} % of ‖Δ‖² in every matrix",
            found.delta,
            float(rank),
            ENERGY,
            "docs/lora.md: 96 % of the energy kept nearly all answers, embedding included",
            f"`rank={rank}` of extract stores it as a LoRA adapter",
        )


def _zero(analysis: "Analysis", found: DeltaMeasures) -> Iterator[Flag]:
    if not found.norm:
        yield Flag(
            "zero-delta",
            _WARNING,
            "Δ is zero: post and base hold the same numbers",
            found.delta,
            0.0,
            0.0,
            "by definition",
            "check that post and base are the right checkpoints",
        )


def _common_part(everything: Group, deltas: int) -> Iterator[Flag]:
    pairs = [p for p in everything.pairs if p.cosine is not None and p.cosine >= SHARED]
    if pairs:
        most = max(pairs, key=lambda pair: pair.cosine or 0)
        weights = without_counting_twice(everything)
        shown = ", ".join(f"{weight:.2f} for Δ {n + 1}" for n, weight in weights)
        yield Flag(
            "common-part",
            _WARNING,
            f"Δ {most.one + 1} and Δ {most.two + 1} share a part (cosine {most.cosine:.2f}), which "
            "their sum contains twice",
            None,
            most.cosine or 0.0,
            SHARED,
            f"{_STUDY}, section 1, several Δ: the plain sum kept 22 % of direct, "
            "weights of 0.75 kept 36 %, and 1 and 0.5 kept 46 %",
            f"scales nearest to counting it once: {shown}; try several with sweep",
            tuple(f"Δ {p.one + 1}, Δ {p.two + 1}: {p.cosine:.2f}" for p in pairs),
        )


def without_counting_twice(group: Group) -> tuple[tuple[int, float], ...]:
    """The weights with which Δs that share one part come nearest to having it once.

    With Δᵢ = c + uᵢ, where c and all u are orthogonal, ``Σ wᵢ Δᵢ`` is nearest to c + Σ uᵢ for G w =
    diag(G), where G holds the scalar products of the Δs. For two of one norm, w = 1 / (1 + cosine).
    """
    numbers = [m.delta for m in group.deltas if m.norm]
    norms = {m.delta: m.norm for m in group.deltas}
    cosines = {(p.one, p.two): p.cosine or 0.0 for p in group.pairs}
    unit = np.array(
        [[1.0 if i == j else cosines[min(i, j), max(i, j)] for j in numbers] for i in numbers]
    )
    sizes = np.array([norms[n] for n in numbers])
    gram = unit * np.outer(sizes, sizes)
    weights = np.linalg.lstsq(gram, np.diag(gram), rcond=None)[0]
    return tuple(zip(numbers, weights.tolist(), strict=True))


def _not_finite(analysis: "Analysis") -> Iterator[Flag]:
    broken = [tensor for tensor in analysis.tensors if tensor.group.not_finite]
    if broken:
        count = sum(tensor.group.not_finite for tensor in broken)
        yield Flag(
            "not-finite",
            _WARNING,
            f"{count} numbers are infinite or NaN in a checkpoint; they count as unchanged",
            None,
            float(count),
            0.0,
            "by definition",
            "get the checkpoint again, or leave these tensors out with a rule of the scale",
            tuple(tensor.name for tensor in broken),
        )


def codes() -> Sequence[str]:
    """All codes of flags."""
    return (
        "common-part", "delta-along-shift", "delta-below-resolution", "embedding-outliers",
        "low-rank", "not-finite", "not-one-lineage", "shift-far", "shift-opposed", "zero-delta",
    )  # fmt: skip
