"""Whether layer k of the new base is layer k of base: models are made deeper by repeating layers.

Layers of a depth-upscaled model (SOLAR, LLaMA-Pro) have the names of others, so each would get the
Δ of another layer. A sample of one matrix of every layer shows it.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import Fetch, View
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.lineage import RELATED, dot, prefetch_samples, read_sample
from paramdelta.planning.presets import layer_of, stack_of
from paramdelta.planning.sources import Source

PROBES = 6  # layers that are compared where the depths are equal
_Vector = npt.NDArray[np.float64]


def find_moved_layers(base: Source, new: Source, fetch: Fetch, findings: Findings) -> None:
    """Refuse a new base with a layer that is another layer of base.

    Where the number of layers differs, every layer is compared, else a few. A layer counts as moved
    if it is unlike its namesake and like another layer.
    """
    ours, theirs = _layers(new.views), _layers(base.views)
    for stack, layers in ours.items():
        own = theirs.get(stack, {})
        both = sorted(layers.keys() & own.keys())
        if both and len(layers) == len(own):
            both = both[:: max(1, len(both) // PROBES)]
        moved: dict[str, tuple[int, int]] = {}
        samples: dict[tuple[str, tuple[int, ...]], dict[int, _Vector]] = {}
        found = (next((n for n in layers[m] if _alike(n, new, base)), None) for m in both)
        named = {m: name for m, name in zip(both, found, strict=True) if name is not None}
        prefetch_samples((s.views[name] for name in named.values() for s in (new, base)), fetch)
        for number, name in named.items():
            vector = _unit(new.views[name], fetch)
            if dot(vector, _unit(base.views[name], fetch)) >= RELATED:
                continue
            ending, shape = name[len(stack) + len(str(number)) :], new.views[name].shape
            key = ending, shape  # "layers" of a backbone can have different widths
            if key not in samples:
                candidates = {
                    other: base.views[candidate]
                    for other in own
                    if (candidate := f"{stack}{other}{ending}") in base.views
                    and base.views[candidate].shape == shape
                }
                prefetch_samples(candidates.values(), fetch)
                samples[key] = {o: _unit(view, fetch) for o, view in candidates.items()}
            likeness = {o: dot(each, vector) for o, each in samples[key].items()}
            best = max(likeness, key=lambda other: likeness[other])
            if likeness[best] >= RELATED:
                moved[name] = number, best
        first = next(iter(moved.values()), (0, 0))
        for name in moved:
            findings.add(
                Severity.REFUSED,
                "layers-moved",
                f"layer {first[0]} of {stack}* is layer {first[1]} of {base}; {len(moved)} of "
                f"{len(both)} layers that were compared are other layers there",
                new,
                tensor=name,
                remedy="give these layers scale 0 by rules of the scale, or mix onto the model "
                "before it was made deeper",
                allowed="the Δ of a layer is added to the layer of the same number",
            )


def _layers(views: Mapping[str, View]) -> dict[str, dict[int, list[str]]]:
    """The matrices of each layer, by stack and number."""
    found: dict[str, dict[int, list[str]]] = {}
    for name, view in views.items():
        number, stack = layer_of(name), stack_of(name)
        # `lineage.is_matrix`, without a call for each tensor of a large model.
        matrix = len(view.shape) == 2 and min(view.shape) > 1 and view.kind.mixable
        if number is not None and stack is not None and matrix:
            found.setdefault(stack, {}).setdefault(number, []).append(name)
    return found


def _alike(name: str, new: Source, base: Source) -> bool:
    """Whether base has a tensor of this name and shape."""
    return name in base.views and base.views[name].shape == new.views[name].shape


def _unit(view: View, fetch: Fetch) -> _Vector:
    """The finite numbers of a sample of a tensor, with norm 1; zeros stay."""
    vector = read_sample(view, fetch)
    vector = np.where(np.isfinite(vector), vector, 0.0)
    with np.errstate(over="ignore"):
        norm = dot(vector, vector) ** 0.5
    return vector / norm if 0 < norm < float("inf") else np.zeros_like(vector)
