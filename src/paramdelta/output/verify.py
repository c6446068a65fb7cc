"""Recomputes an output from its sources by a second, independent path, and compares bytes.

Independent means: numpy in float64 instead of the compiled kernels, memory maps instead of
positional reads, the formula written out once more. Where float64 cannot hold the sum, exact
fractions decide.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.checkpoint.blockscaled import BlockScaled
from paramdelta.checkpoint.checkpoint import Checkpoint, open_checkpoint
from paramdelta.checkpoint.tensor import (
    Part,
    Rows,
    Tensor,
    Transposed,
    View,
    Wide,
    Zeros,
)
from paramdelta.dtypes import DTYPES
from paramdelta.errors import MisfitError
from paramdelta.output.lock import locked_recipe, read_lock
from paramdelta.planning.plan import OutputTensor, Plan, make_plan

CHUNK = 1 << 18  # elements compared at a time
TOLERANCE = Fraction(51, 100)  # ulp, for scales other than 1; at scale 1 the result is exact

Floats = npt.NDArray[np.float64]
Rows64 = npt.NDArray[np.int64]
# Largest finite value's exponent, least normal exponent, by dtype (IEEE 754 and bfloat16).
_RANGE = {"F64": (1023, -1022), "F32": (127, -126), "F16": (15, -14), "BF16": (127, -126)}


@dataclass(frozen=True)
class Verification:
    """What was compared: ``tensors`` and ``elements`` of ``total`` in the output."""

    tensors: int
    elements: int
    total: int


def verify(
    folder: Path,
    share: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> Verification:
    """Compare a share (0 to 1] of every tensor's elements with what they should be.

    Tensors of at most `CHUNK` elements are compared whole; of larger ones, runs at random places.
    ``progress`` is called with elements compared and elements to compare.

    Raises:
        MisfitError: something differs: tensor, element, expected and got; or the sources are no
            longer those that the lock names.
    """
    recipe = locked_recipe(lock := read_lock(folder), folder)
    plan = make_plan(recipe)
    if plan.digest != lock.get("plan_sha256"):
        raise MisfitError(
            "the sources are not those that the output was made from",
            where=_changed(plan, lock) or str(folder),
            remedy="put the same files or revisions back",
        )
    output = open_checkpoint(str(folder), "output")
    _compare_names(plan, output)
    runs = list(_runs(plan, share, random.Random(seed)))
    total = sum(stop - start for _, start, stop in runs)
    done = 0
    for tensor, start, stop in runs:
        _compare(tensor, output.tensors[tensor.name], start, stop)
        done += stop - start
        if progress is not None:
            progress(done, total)
    return Verification(
        len({tensor.name for tensor, _, _ in runs}), done, sum(t.elements for t in plan.tensors)
    )


def _changed(plan: Plan, lock: dict[str, Any]) -> str:
    changed = []
    for source, locked in zip(plan.sources, lock.get("sources", []), strict=False):
        digests = [file.header_sha256 for file in source.files]
        if digests != [file.get("header_sha256") for file in locked.get("files", [])]:
            changed.append(str(source))
    return ", ".join(changed)


def _compare_names(plan: Plan, output: Checkpoint) -> None:
    wanted = {t.name: (t.dtype, t.shape) for t in plan.tensors}
    found = {t.name: (t.dtype, t.shape) for t in output.tensors.values()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise MisfitError(
                "the output's tensors are not those of the plan",
                where=f"{output.location.path}, tensor {name!r}",
                expected=str(wanted.get(name, "absent")),
                got=str(found.get(name, "absent")),
            )


def _runs(
    plan: Plan, share: float, chance: random.Random
) -> Iterator[tuple[OutputTensor, int, int]]:
    for tensor in plan.tensors:
        starts = list(range(0, tensor.elements, CHUNK))
        if share < 1 and len(starts) > 1:
            starts = sorted(chance.sample(starts, math.ceil(len(starts) * share)))
        for start in starts:
            yield tensor, start, min(start + CHUNK, tensor.elements)


def _compare(tensor: OutputTensor, output: Tensor, start: int, stop: int) -> None:
    got = _stored(output, start, stop)
    if not tensor.pairs and isinstance(tensor.new, Tensor) and tensor.dtype == tensor.new.dtype:
        expected = _stored(tensor.new, start, stop)
        wrong = np.flatnonzero(got != expected)
        if got.dtype.kind == "f":  # compare bits: NaN differs from itself
            bits = np.dtype(f"u{got.itemsize}")
            wrong = np.flatnonzero(got.view(bits) != expected.view(bits))
        if wrong.size:
            at = int(wrong[0])
            raise _differs(output, start + at, str(expected[at]), str(got[at]))
        return
    operands = [_value(term.view, start, stop) for term in tensor.terms]
    with np.errstate(all="ignore"):
        total = operands[0].copy()
        for number, pair in enumerate(tensor.pairs):
            total += pair.scale * (operands[1 + 2 * number] - operands[2 + 2 * number])
        expected = rounded(total, tensor.dtype)
    actual = _float64(got, tensor.dtype)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    for at in map(int, np.flatnonzero(~same)):
        exact = exact_sum(tensor, [float(operand[at]) for operand in operands])
        if exact is None or not _close(exact, float(actual[at]), tensor):
            raise _differs(
                output, start + int(at), repr(float(expected[at])), repr(float(actual[at]))
            )


def _differs(output: Tensor, element: int, expected: str, got: str) -> MisfitError:
    return MisfitError(
        "the output is not what its sources give",
        where=f"{output.file}, tensor {output.name!r}, element {element}",
        expected=expected,
        got=got,
        remedy="the file was changed or damaged after it was written: mix again",
    )


def _stored(tensor: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    if start == stop:
        return np.empty(0, tensor.kind.numpy)
    offset = tensor.offset + start * tensor.kind.size
    return np.memmap(tensor.file, tensor.kind.numpy, "r", offset, (stop - start,))


def _value(view: View, start: int, stop: int) -> Floats:
    """A run of a view's elements, by what the view means and not by how the engine reads it."""
    if isinstance(view, Tensor):
        return _float64(_stored(view, start, stop), view.dtype)
    if isinstance(view, Zeros):
        return np.zeros(stop - start)
    if isinstance(view, Wide):
        return _value(view.view, start, stop)
    if isinstance(view, Part):
        return _value(view.view, view.first + start, view.first + stop)
    element = np.arange(start, stop)
    if isinstance(view, Rows):
        row, column = np.divmod(element, view.width)
        if view.rows is not None:
            row = np.frombuffer(view.rows, np.int32)[row].astype(np.int64)
        return _picked(view.views, row, column)
    row, column = np.divmod(element, view.shape[1])
    if isinstance(view, Transposed):
        return _gathered(view.view, column * view.view.shape[1] + row)
    if isinstance(view, BlockScaled):
        across = -(-view.shape[1] // view.block[1])
        block = row // view.block[0] * across + column // view.block[1]
        return _gathered(view.weight, element) * _gathered(view.scale, block)
    raise NotImplementedError(type(view).__name__)


def _picked(views: tuple[View, ...], row: Rows64, column: Rows64) -> Floats:
    """Elements of views whose rows are numbered through; zero in absent rows."""
    result = np.zeros(len(row))
    first = 0
    for view in views:
        rows = view.elements // max(1, column_count(view))
        here = np.flatnonzero((row >= first) & (row < first + rows))
        if here.size:
            result[here] = _gathered(view, (row[here] - first) * column_count(view) + column[here])
        first += rows
    return result


def column_count(view: View) -> int:
    """Elements of a row."""
    return math.prod(view.shape[1:])


def _gathered(view: View, elements: Rows64) -> Floats:
    """A view's elements by their numbers."""
    if isinstance(view, Tensor):
        stored = _stored(view, 0, view.elements)
        return _float64(stored[elements], view.dtype)
    if isinstance(view, Part):
        return _gathered(view.view, elements + view.first)
    whole, where = np.unique(elements, return_inverse=True)
    if not len(whole):
        return np.empty(0)
    first = int(whole[0])
    return _value(view, first, int(whole[-1]) + 1)[whole - first][where]


def _float64(stored: npt.NDArray[Any], dtype: str) -> Floats:
    """Stored elements of any dtype that holds numbers, as float64."""
    stored = np.asarray(stored)
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "F16":
        return stored.view(np.float16).astype(np.float64)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (stored.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    if dtype == "F8_E4M3":  # a float16 whose exponent is 8 too small; 0x7f is NaN
        magnitude = ((stored & 0x7F).astype(np.uint16) << 7).view(np.float16).astype(np.float64)
        value = np.where((stored & 0x7F) == 0x7F, np.nan, magnitude * 256)
        return np.where(stored & 0x80, -value, value)
    if dtype == "F8_E8M0":
        return np.where(stored == 255, np.nan, 2.0 ** (stored.astype(np.float64) - 127))
    return stored.astype(np.float64)


def rounded(value: Floats, dtype: str) -> Floats:
    """float64 rounded to nearest even in another dtype, as float64 again; overflow is infinite."""
    digits = DTYPES[dtype].digits
    highest, least = _RANGE[dtype]
    if dtype == "F64":
        return value
    _, exponent = np.frexp(value)
    quantum = np.maximum(exponent - digits, least - digits + 1)
    result: Floats = np.ldexp(np.rint(np.ldexp(value, -quantum)), quantum)
    limit = math.ldexp(2 - 2.0 ** (1 - digits), highest)
    result = np.where(np.abs(result) > limit, np.copysign(np.inf, value), result)
    return np.where(np.isfinite(value), result, value)


def exact_sum(tensor: OutputTensor, operands: list[float]) -> Fraction | None:
    """The formula in exact arithmetic; None if an operand is not finite."""
    if not all(math.isfinite(operand) for operand in operands):
        return None
    total = Fraction(operands[0])
    for number, pair in enumerate(tensor.pairs):
        difference = Fraction(operands[1 + 2 * number]) - Fraction(operands[2 + 2 * number])
        total += Fraction(pair.scale) * difference
    return total


def _close(exact: Fraction, got: float, tensor: OutputTensor) -> bool:
    """Whether ``got`` is the exact value correctly rounded; at scales other than 1, nearly so."""
    digits = DTYPES[tensor.dtype].digits
    highest, least = _RANGE[tensor.dtype]
    if math.isinf(got):
        limit = Fraction(2) ** (highest + 1) - Fraction(2) ** (highest - digits)
        return abs(exact) >= limit and (exact > 0) == (got > 0)
    _, exponent = math.frexp(got)
    ulp = Fraction(2) ** max(exponent - digits, least - digits + 1)
    simple = len(tensor.pairs) == 1 and tensor.pairs[0].scale == 1 and tensor.dtype != "F64"
    allowed = Fraction(1, 2) if simple else TOLERANCE
    return abs(exact - Fraction(got)) <= allowed * ulp
