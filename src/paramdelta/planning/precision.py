"""How exact quantized sources are: their number formats, and what a Δ made from them is worth.

The error of rounding to levels a step apart is spread evenly over one step, so its mean square is a
twelfth of the step's. The step follows from the numbers of a group that share a scale: the
quantizer puts the levels between the least and the greatest of them, or around zero.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from paramdelta.formats.gguf.types import Type
from paramdelta.formats.gguf.views import Quantized
from paramdelta.formats.view import Fetch, View, leaves
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.lineage import ELEMENTS, Likeness, sample
from paramdelta.planning.sources import Source, Sources


def report_precision(
    sources: Sources, likeness: Mapping[str, Likeness], findings: Findings
) -> None:
    """Warn of quantized sources, and say how much of a Δ is their error.

    ``likeness``: as `relatives.compare_relatives` gives it. Reads a few MB of each.
    """
    errors: dict[Source, float] = {}
    for source in sources.others:
        if source in errors:
            continue
        kinds = _kinds(source)
        if not kinds:
            continue
        names = sample(list(sources.new.views), [sources.new.views, source.views])
        errors[source] = error_of([source.views[name] for name in names], sources.fetch)
        found = ", ".join(f"{count} × {name}" for name, count in kinds.most_common())
        findings.add(
            Severity.WARNING,
            "gguf-precision",
            f"quantized ({found} tensors; {_bits(source):.1f} bits per weight): the weights are "
            f"off by about {100 * errors[source]:.2g} %, and Δ = post − base holds that error",
            source,
            remedy="use the safetensors release if there is one",
        )
    for each in sources.lineages:
        if each.base is None or each.is_adapter:
            continue
        error = sum(errors.get(source, 0.0) ** 2 for source in (each.post, each.base)) ** 0.5
        pair = f"{each.base.checkpoint.role} ~ {each.post.checkpoint.role}"
        if not error or pair not in likeness or not likeness[pair].distance:
            continue
        distance = likeness[pair].distance
        findings.add(
            Severity.WARNING,
            "gguf-noise",
            f"about {100 * min(1.0, error / distance) ** 2:.0f} % of the Δ's energy must be "
            f"expected to be error of quantization: that is {100 * error:.2g} % of the weights, "
            f"and post and base differ by {100 * distance:.2g} %",
            each.post,
            remedy="use the original checkpoints, or files with more bits per weight",
        )


def error_of(views: Sequence[View], fetch: Fetch) -> float:
    """The expected error of quantized numbers, ‖error‖ / ‖numbers‖, over a sample of some views."""
    error = energy = 0.0
    for view in views:
        for leaf in leaves(view):
            count = min(leaf.elements, ELEMENTS)
            if not isinstance(leaf, Quantized):
                energy += _energy(leaf.float64(0, count, fetch))
                continue
            start = (leaf.elements - count) // 2 // leaf.type.elements * leaf.type.elements
            found = leaf.float64(start, start + count, fetch)
            groups = found.reshape(-1, leaf.type.group)
            if not np.isfinite(groups).all():
                continue
            error += _energy(steps(groups, leaf.type)) * leaf.type.group / 12
            energy += _energy(found)
    return (error / energy) ** 0.5 if energy else 0.0


def steps(groups: npt.NDArray[np.float64], kind: Type) -> npt.NDArray[np.float64]:
    """The distance of two levels in each group: (groups,), from numbers (groups, numbers)."""
    greatest = np.abs(groups).max(axis=1) * 2 if kind.signed else np.ptp(groups, axis=1)
    return np.asarray(greatest / kind.levels)


def _energy(values: npt.NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.dot(values.reshape(-1), values.reshape(-1)))
    return found if np.isfinite(found) else 0.0


def _kinds(source: Source) -> Counter[str]:
    """How many tensors are quantized in which way."""
    found = (leaf for view in source.views.values() for leaf in leaves(view))
    return Counter(leaf.type.name for leaf in found if isinstance(leaf, Quantized))


def _bits(source: Source) -> float:
    views = source.checkpoint.tensors.values()
    return 8 * sum(view.nbytes for view in views) / sum(view.elements for view in views)
