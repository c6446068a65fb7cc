"""How checkpoints lie to one another, by a small sample of their weights.

A continued or post-trained model keeps a cosine near 1 with its base. Two models that were trained
separately have a cosine near 0. The *shift* is what continued training changed: new base − base.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import Fetch, View, float64, prefetch

TENSORS = 8  # matrices that are sampled
ELEMENTS = 65536  # at most this many numbers of each, in one run from the middle
Samples = Mapping[str, npt.NDArray[np.float64]]
"""Numbers of some tensors of one checkpoint, by name."""
RELATED = 0.5  # a cosine below this: no common ancestor
CLOSE = 0.9  # continued and post-trained models are seldom below this
ACROSS = 0.3  # |cosine| of shift and Δ below which they are called independent


@dataclass(frozen=True)
class Likeness:
    """Cosine and relative distance ‖a − b‖ / ‖a‖ of two checkpoints over the sample."""

    cosine: float
    distance: float
    tensors: int

    @property
    def reading(self) -> str:
        """What the cosine means, in words."""
        if self.distance == 0:
            return "the same weights"
        if self.cosine >= CLOSE:
            return "close relatives"
        return "relatives" if self.cosine >= RELATED else "no common ancestor"


@dataclass(frozen=True)
class Shift:
    """The shift (new base − base) beside the Δ (post − base), over the sample.

    ``ratio``: ‖shift‖ / ‖Δ‖. ``cosine``: of the two; 0 if one of them is zero. ``nearness``:
    ‖new base − post‖ / ‖shift‖, below 1 if the new base is nearer to post than to base.
    """

    ratio: float
    cosine: float
    nearness: float

    @property
    def reading(self) -> str:
        """What the cosine means, in words."""
        if abs(self.cosine) < ACROSS:
            return "in another direction"
        return "partly in its direction" if self.cosine > 0 else "partly against it"


def sample(tensors: Sequence[str], checkpoints: Sequence[Mapping[str, View]]) -> list[str]:
    """Choose matrices that all the checkpoints have in equal shape, spread over the model."""
    usable = []
    for name in tensors:
        found = [c[name] for c in checkpoints if name in c]
        # Norms and biases say nothing: in every model they are near one and near zero.
        if (
            len(found) == len(checkpoints)
            and is_matrix(found[0])
            and all(t.shape == found[0].shape and t.kind.mixable for t in found)
        ):
            usable.append(name)
    step = max(1, len(usable) / TENSORS)
    return [usable[int(i * step)] for i in range(min(TENSORS, len(usable)))]


def read_samples(names: Sequence[str], views: Mapping[str, View], fetch: Fetch) -> Samples:
    """Samples of the named tensors; a few MB."""
    prefetch_samples([views[name] for name in names], fetch)
    return {name: read_sample(views[name], fetch) for name in names}


def likeness(one: Samples, other: Samples) -> Likeness | None:
    """Compare samples of the same tensors of two checkpoints.

    None without a sample, or if its numbers are too large to compare.
    """
    both = norm_one = norm_other = apart = 0.0
    for name, a in one.items():
        b = other[name]
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            both += dot(a, b)
            norm_one += dot(a, a)
            norm_other += dot(b, b)
            apart += dot(a - b, a - b)
    if norm_one == 0 or norm_other == 0 or not np.isfinite([norm_one, norm_other, apart]).all():
        return None
    return Likeness(both / (norm_one * norm_other) ** 0.5, (apart / norm_one) ** 0.5, len(one))


def shift(base: Samples, post: Samples, new: Samples) -> Shift | None:
    """Compare shift and Δ on samples of the same tensors. None if the Δ is zero there."""
    delta = moved = both = 0.0
    for name, start in base.items():
        end, other = post[name], new[name]
        finite = np.isfinite(start) & np.isfinite(end) & np.isfinite(other)
        start, end, other = start[finite], end[finite], other[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            one, two = end - start, other - start
            delta += dot(one, one)
            moved += dot(two, two)
            both += dot(one, two)
    if delta == 0 or not np.isfinite([delta, moved, both]).all():
        return None
    apart = max(delta + moved - 2 * both, 0.0)
    return Shift(
        (moved / delta) ** 0.5,
        both / (delta * moved) ** 0.5 if moved else 0.0,
        (apart / moved) ** 0.5 if moved else float("inf"),
    )


def read_sample(view: View, fetch: Fetch) -> npt.NDArray[np.float64]:
    """A run of at most `ELEMENTS` numbers from the middle of a tensor, as float64."""
    return view.float64(*_sampled(view), fetch)


def prefetch_samples(views: Iterable[View], fetch: Fetch) -> None:
    """Begin to read the samples of some tensors, many at once where requests take long."""
    prefetch(((view, *_sampled(view)) for view in views), fetch)


def _sampled(view: View) -> tuple[int, int]:
    count = min(view.elements, ELEMENTS)
    start = (view.elements - count) // 2
    return start, start + count


def same_sample(one: View, other: View, fetch: Fetch) -> bool:
    """Whether two tensors have one shape and hold the same numbers on a sample."""
    return one.shape == other.shape and np.array_equal(
        read_sample(one, fetch), read_sample(other, fetch), equal_nan=True
    )


def row_norms(view: View, rows: Sequence[int], fetch: Fetch) -> npt.NDArray[np.float64]:
    """Euclidean norms of some rows of a matrix. All rows of a file are requested at once."""
    values = np.empty((len(rows), view.width), view.kind.numpy)
    if values.size:
        starts = np.asarray(rows, np.int64) * view.width
        view.gather(starts, values.data.cast("B"), fetch)
    wide = float64(values.reshape(-1), view.dtype).reshape(values.shape)
    norms: npt.NDArray[np.float64] = np.linalg.norm(wide, axis=1)
    return norms


def is_matrix(tensor: View) -> bool:
    """Whether a tensor has two axes longer than 1. Norms and biases are alike in every model."""
    return len(tensor.shape) == 2 and min(tensor.shape) > 1


def dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """The scalar product. Not by ``a @ b``: the threads of a BLAS spin for a while after it."""
    return float((a * b).sum())
