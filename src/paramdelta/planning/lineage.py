"""Whether two checkpoints share an ancestor: the cosine of a small sample of their weights.

A continued or post-trained model keeps a cosine near 1 with its base. Two models that were trained
separately have a cosine near 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import Fetch, View, float64

TENSORS = 8  # matrices that are sampled
ELEMENTS = 65536  # at most this many numbers of each, in one run from the middle
RELATED = 0.5  # a cosine below this: no common ancestor


@dataclass(frozen=True)
class Likeness:
    """Cosine and relative distance ‖a − b‖ / ‖a‖ of two checkpoints over the sample."""

    cosine: float
    distance: float
    tensors: int


def sample(tensors: Sequence[str], checkpoints: Sequence[Mapping[str, View]]) -> list[str]:
    """Choose matrices that all the checkpoints have in equal shape, spread over the model."""
    usable = []
    for name in tensors:
        found = [c[name] for c in checkpoints if name in c]
        # Norms and biases say nothing: in every model they are near one and near zero.
        if (
            len(found) == len(checkpoints)
            and _is_matrix(found[0])
            and all(t.shape == found[0].shape and t.kind.mixable for t in found)
        ):
            usable.append(name)
    step = max(1, len(usable) / TENSORS)
    return [usable[int(i * step)] for i in range(min(TENSORS, len(usable)))]


def likeness(
    names: Sequence[str], one: Mapping[str, View], other: Mapping[str, View], fetch: Fetch
) -> Likeness | None:
    """Compare two checkpoints on the named tensors; reads a few MB.

    None without a sample, or if its numbers are too large to compare.
    """
    dot = norm_one = norm_other = apart = 0.0
    for name in names:
        a, b = read_sample(one[name], fetch), read_sample(other[name], fetch)
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            # Not `a @ b`: the threads of a BLAS spin for a while after each product.
            dot += float((a * b).sum())
            norm_one += float((a * a).sum())
            norm_other += float((b * b).sum())
            apart += float(((a - b) ** 2).sum())
    if norm_one == 0 or norm_other == 0 or not np.isfinite([norm_one, norm_other, apart]).all():
        return None
    return Likeness(dot / (norm_one * norm_other) ** 0.5, (apart / norm_one) ** 0.5, len(names))


def read_sample(view: View, fetch: Fetch) -> npt.NDArray[np.float64]:
    """A run of at most `ELEMENTS` numbers from the middle of a tensor, as float64."""
    count = min(view.elements, ELEMENTS)
    start = (view.elements - count) // 2
    return view.float64(start, start + count, fetch)


def row_norms(view: View, rows: Sequence[int], fetch: Fetch) -> npt.NDArray[np.float64]:
    """Euclidean norms of some rows of a matrix. All rows of a file are requested at once."""
    values = np.empty((len(rows), view.width), view.kind.numpy)
    if values.size:
        starts = np.asarray(rows, np.int64) * view.width
        view.gather(starts, values.data.cast("B"), fetch)
    wide = float64(values.reshape(-1), view.dtype).reshape(values.shape)
    norms: npt.NDArray[np.float64] = np.linalg.norm(wide, axis=1)
    return norms


def _is_matrix(tensor: View) -> bool:
    return len(tensor.shape) == 2 and min(tensor.shape) > 1
