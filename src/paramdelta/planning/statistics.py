"""Running statistics of normalization layers: means and variances of activations, not weights.

Their sum is only an estimate of what the mixed model's would be. A variance can even get negative,
and its square root, and with it every output, is then NaN.
"""

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from paramdelta.formats.view import Fetch
from paramdelta.planning.constants import same_bytes
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.sources import Source

_STATISTICS = re.compile(r"(^|\.)(running|moving)_(mean|var|variance)$")
MOST = 1 << 22  # numbers of all variances that are added beforehand

_KEEP = "rules of the scale: [{match: '*running_*', value: 0}, 1.0]"


def check_statistics(
    tensors: Iterable[OutputTensor], new: Source, fetch: Fetch, findings: Findings
) -> None:
    """Refuse variances whose sum is negative; warn of statistics that are sums.

    Statistics that no post changed, as those of frozen layers, are the new base's, and right.

    Raises:
        StorageError: a tensor cannot be read.
    """
    left = MOST
    for tensor in tensors:
        if not _STATISTICS.search(tensor.name):
            continue
        if all(same_bytes(pair.post, pair.base, fetch) for pair in tensor.pairs):
            continue  # no Δ: a frozen layer
        findings.add(
            Severity.WARNING,
            "statistics-mixed",
            "running statistics of activations are sums, which is only an estimate",
            new,
            tensor=tensor.name,
            remedy="measure them again by running the mix on data in training mode",
        )
        elements = int(np.prod(tensor.shape))
        left -= elements
        if "_var" not in tensor.name or left < 0 or not tensor.scheme.linear:
            continue
        if bool((_sum(tensor, elements, fetch) < 0).any()):
            findings.add(
                Severity.REFUSED,
                "variance-negative",
                "the sum is negative in some places: outputs would be NaN",
                new,
                tensor=tensor.name,
                remedy=f"keep the new base's statistics ({_KEEP}), and measure them again on data",
            )


def _sum(tensor: OutputTensor, elements: int, fetch: Fetch) -> npt.NDArray[np.float64]:
    terms = [
        pair.scale * (pair.post.float64(0, elements, fetch) - pair.base.float64(0, elements, fetch))
        for pair in tensor.pairs
    ]
    added = tensor.scheme.reference(np.array(terms), tensor.pairs)
    return tensor.new.float64(0, elements, fetch) + added
