"""The stored numbers: finite, and not negative where they cannot be.

Every number is read once, in blocks, so memory stays bounded whatever the files' size.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.checks.folder import Folder
from paramdelta.checks.part import Part
from paramdelta.checks.weights import Stored
from paramdelta.dtypes import DTYPES
from paramdelta.planning.findings import Findings, Severity

BLOCK = 8 << 20  # bytes read at a time
WORKERS = 4
Progress = Callable[[int, int], None]

_VARIANCE = re.compile(r"(^|[._])(running_var|moving_variance|running_variance)$")
_ACTIVATION = re.compile(r"(input|activation)_scale$")
# How a number that is not finite looks in formats that numpy does not know: the bits that are
# looked at, the least pattern of them that is not finite.
_BITS = {
    "BF16": (0x7FFF, 0x7F80),
    "F8_E5M2": (0x7F, 0x7C),
    "F8_E4M3": (0x7F, 0x7F),
    "F8_E8M0": (0xFF, 0xFF),
}
_EXACT = {"F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80}  # the one pattern that is NaN
_READ = {"F64", "F32", "F16", "C64", *_BITS, *_EXACT}


def check_values(
    parts: list[Part],
    positive: list[frozenset[str]],
    findings: Findings,
    strict: bool,
    progress: Progress | None = None,
) -> None:
    """Read every floating-point number.

    ``positive``: for each part, the names of its scales. ``progress``: called with bytes read and
    bytes to read.
    """
    blocks = list(_blocks(parts, positive))
    total = sum(block.length for block in blocks)
    bad: Counter[tuple[str, str, str]] = Counter()
    done = 0
    pending = iter(blocks)
    with ThreadPoolExecutor(WORKERS) as pool:
        while group := list(islice(pending, 4 * WORKERS)):
            for block, found in zip(group, pool.map(_look, group), strict=True):
                for code, count in found.items():
                    bad[code, block.folder.place(block.tensor.file), block.tensor.name] += count
                done += block.length
            if progress is not None:
                progress(done, total)
    for (code, place, name), count in bad.items():
        severity, what, remedy = _FINDINGS[code]
        severity = Severity.WARNING if code == "not-finite" and not strict else severity
        findings.add(severity, code, what, place, tensor=f"{name} ({count})", remedy=remedy)


_FINDINGS = {
    "not-finite": (
        Severity.REFUSED,
        "numbers that are NaN or infinite (how many)",
        "look where they come from: one is enough to spoil every output",
    ),
    "negative-variance": (
        Severity.REFUSED,
        "variances below zero (how many): batch norm takes their root, and every output is NaN",
        "take the running statistics of one model as they are",
    ),
    "negative-scale": (
        Severity.REFUSED,
        "scales of quantized weights or activations below zero (how many)",
        "take codes and scales from one model as they are",
    ),
}


@dataclass(frozen=True)
class _Block:
    """A run of one tensor's bytes; ``below_zero``: the code of the finding for negative numbers."""

    folder: Folder
    tensor: Stored
    offset: int
    length: int
    below_zero: str | None


def _blocks(parts: list[Part], positive: list[frozenset[str]]) -> Iterator[_Block]:
    for part, scales in zip(parts, positive, strict=True):
        ordered = sorted(part.weights.tensors.values(), key=lambda t: (t.file, t.offset))
        for tensor in ordered:
            if tensor.dtype not in _READ:
                continue
            code = "negative-variance" if _VARIANCE.search(tensor.name) else None
            if tensor.name in scales or _ACTIVATION.search(tensor.name):
                code = "negative-scale"
            for offset in range(0, tensor.nbytes, BLOCK):
                length = min(BLOCK, tensor.nbytes - offset)
                yield _Block(part.folder, tensor, tensor.offset + offset, length, code)


def _look(block: _Block) -> dict[str, int]:
    """How many numbers of a block are wrong, by code."""
    data = bytearray(block.length)
    block.folder.read_into(block.tensor.file, block.offset, memoryview(data))
    found = {"not-finite": not_finite(data, block.tensor.dtype)}
    if block.below_zero is not None:
        found[block.below_zero] = _negative(data, block.tensor.dtype)
    return {code: count for code, count in found.items() if count}


def not_finite(data: bytes | bytearray, dtype: str) -> int:
    """How many numbers are NaN or infinite."""
    if dtype in _EXACT:
        return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _EXACT[dtype]))
    if dtype in _BITS:
        mask, least = _BITS[dtype]
        kind = np.uint16 if DTYPES[dtype].bits == 16 else np.uint8
        bits: npt.NDArray[Any] = np.frombuffer(data, kind) & kind(mask)
        return int(np.count_nonzero(bits >= least)) if bits.max(initial=0) >= least else 0
    if dtype == "C64":
        dtype = "F32"
    if dtype in ("F64", "F32", "F16"):
        values = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
        # The sum of finite numbers may overflow, but only then need they be looked at one by one.
        with np.errstate(all="ignore"):
            if math.isfinite(float(np.add.reduce(values, dtype=np.float64))):
                return 0
        return int(np.count_nonzero(~np.isfinite(values)))
    return 0


def _negative(data: bytes | bytearray, dtype: str) -> int:
    """How many numbers are below zero, minus zero not counted."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if dtype in kinds:
        return int(np.count_nonzero(np.frombuffer(data, kinds[dtype]) < 0))
    if dtype == "BF16":
        return int(np.count_nonzero(np.frombuffer(data, np.uint16) > 0x8000))
    return 0
