"""Recomputes an output from its sources by a second, independent path, and compares bytes.

Independent means: numpy in float64 instead of the compiled kernels, memory maps instead of
positional reads, the formula written out once more. Where float64 cannot hold the sum, exact
fractions decide. What they leave open is said: at scales other than 1 `TOLERANCE`, where a Δ is a
product of matrices, the rounding of its float64 sum (`rounding_of_product`), and where the sum is
quantised, its rounding to float64 before (`ROUNDED_BEFORE`).

Where TIES trims, the thresholds are found again, for which post and base are read in whole.
"""

import math
import random
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES, FP8_SIDE
from paramdelta.errors import MisfitError
from paramdelta.formats import delta
from paramdelta.formats.adapter import LowRank
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.view import (
    Part,
    Rows,
    Tensor,
    Transposed,
    View,
    Wide,
    Zeros,
)
from paramdelta.output.lock import locked_recipe, open_output, read_lock
from paramdelta.planning.plan import OutputTensor, Pair, Plan
from paramdelta.planning.planner import make_plan

CHUNK = 1 << 18  # elements compared at a time
TOLERANCE = Fraction(51, 100)  # ulp, for scales other than 1; at scale 1 the result is exact
ROUNDED_BEFORE = Fraction(1, 2**50)  # of a value: its float64, and what is computed with that

Floats = npt.NDArray[np.float64]
Rows64 = npt.NDArray[np.int64]
# Largest finite value's exponent, least normal exponent, by dtype (IEEE 754 and bfloat16).
_RANGE = {"F64": (1023, -1022), "F32": (127, -126), "F16": (15, -14), "BF16": (127, -126)}
_RANGE["F8_E4M3"] = (8, -6)
E4M3_MOST = 448.0


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
    output = open_output(folder)
    _compare_names(plan, output)
    plan = with_thresholds(plan)
    scales = {tensor.scales_of: tensor.name for tensor in plan.tensors if tensor.derived}
    runs = list(_runs(plan, scales.keys(), share, random.Random(seed)))
    total = sum(stop - start for _, start, stop in runs)
    done = beside = 0
    for tensor, start, stop in runs:
        written = output.tensors[tensor.name]
        assert isinstance(written, Tensor)  # `mix` writes safetensors
        if tensor.name in scales:
            scale = output.tensors[scales[tensor.name]]
            assert isinstance(scale, Tensor)
            beside += _compare_quantised(tensor, written, scale, start, stop)
        else:
            _compare(tensor, written, start, stop)
        done += stop - start
        if progress is not None:
            progress(done, total)
    compared = {tensor.name for tensor, _, _ in runs}
    return Verification(
        len(compared) + len(compared & scales.keys()),
        done + beside,
        sum(t.elements for t in plan.tensors),
    )


def _changed(plan: Plan, lock: dict[str, Any]) -> str:
    changed = []
    for source, locked in zip(plan.sources, lock.get("sources", []), strict=False):
        digests = [file.header_sha256 for file in source.sources]
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
                where=f"{output.location.url}, tensor {name!r}",
                expected=str(wanted.get(name, "absent")),
                got=str(found.get(name, "absent")),
            )


def _runs(
    plan: Plan, quantised: Container[str], share: float, chance: random.Random
) -> Iterator[tuple[OutputTensor, int, int]]:
    """Runs of elements; of quantised tensors, rows of whole blocks, their scales with them."""
    for tensor in plan.tensors:
        step = CHUNK
        if tensor.derived:
            continue
        if tensor.name in quantised:
            rows = FP8_SIDE * tensor.shape[1]
            step = max(1, CHUNK // max(1, rows)) * max(1, rows)
        starts = list(range(0, tensor.elements, step))
        if share < 1 and len(starts) > 1:
            starts = sorted(chance.sample(starts, math.ceil(len(starts) * share)))
        for start in starts:
            yield tensor, start, min(start + step, tensor.elements)


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
    operands = _operands(tensor, start, stop)
    with np.errstate(all="ignore"):
        expected = rounded(_total(tensor, operands, start), tensor.dtype)
    actual = _float64(got, tensor.dtype)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    for at in map(int, np.flatnonzero(~same)):
        exact = exact_sum(tensor, start + at, [float(operand[at]) for operand in operands])
        if exact is None or not _close(*exact, float(actual[at]), tensor):
            raise _differs(
                output, start + int(at), repr(float(expected[at])), repr(float(actual[at]))
            )


def _operands(tensor: OutputTensor, start: int, stop: int) -> list[Floats]:
    return [_value(term.view, start, stop) for term in tensor.terms]


def _total(tensor: OutputTensor, operands: list[Floats], start: int) -> Floats:
    """The formula in float64. ``start``: the first element's number in the tensor."""
    total: Floats = operands[0].copy()
    with np.errstate(all="ignore"):
        terms = [
            pair.coefficient * left_of(pair, post - base, start)
            for pair, post, base in zip(tensor.pairs, operands[1::2], operands[2::2], strict=True)
        ]
        if tensor.ties is not None:
            return total + _elected(tensor, np.array(terms))
        for term in terms:
            total += term
    return total


def left_of(pair: Pair, difference: Floats, start: int) -> Floats:
    """A run of a Δ with zeros where elements are left out, as docs/recipes.md defines it."""
    sparsity = pair.sparsity
    if sparsity is None:
        return difference
    kept = np.ones(len(difference), bool)
    if sparsity.drop:
        number = np.arange(start + 1, start + 1 + len(difference), dtype=np.uint64)
        z = np.uint64(sparsity.key) + number * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        kept = (z ^ z >> np.uint64(31)) >= np.uint64(sparsity.cutoff)
    if sparsity.threshold is not None:
        kept &= ~(np.abs(difference) < sparsity.threshold)
    return np.where(kept, difference, 0.0)


def _elected(tensor: OutputTensor, terms: Floats) -> Floats:
    """What TIES merges of terms (one row a Δ), in float64."""
    assert tensor.ties is not None
    agree = (terms != 0) & (np.sign(terms) == np.sign(terms.sum(0)))
    merged = np.where(agree, terms, 0.0).sum(0)
    if tensor.ties.normalize:
        weights = np.array([[abs(pair.scale)] for pair in tensor.pairs])
        merged /= np.maximum((weights * agree).sum(0), np.finfo(np.float64).tiny)
    return tensor.ties.scale * np.where(np.isnan(terms.sum(0)), np.nan, merged)


def with_thresholds(plan: Plan) -> Plan:
    """The plan with the least magnitude that TIES keeps of every Δ, found once more by numpy: a
    histogram over coarse magnitudes, and a partition of those about the one that is wanted.
    """
    tensors = []
    for tensor in plan.tensors:
        pairs = []
        for pair in tensor.pairs:
            if pair.sparsity is not None and pair.sparsity.trims:
                least = _threshold(pair, tensor.elements)
                pair = replace(pair, sparsity=replace(pair.sparsity, threshold=least))
            pairs.append(pair)
        tensors.append(replace(tensor, pairs=tuple(pairs)))
    return replace(plan, tensors=tuple(tensors))


def _threshold(pair: Pair, elements: int) -> float:
    def magnitudes() -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, elements, CHUNK):
            stop = min(start + CHUNK, elements)
            with np.errstate(all="ignore"):
                size = np.abs(_value(pair.post, start, stop) - _value(pair.base, start, stop))
            yield size.view(np.int64)

    assert pair.sparsity is not None
    smaller = elements - pair.sparsity.kept(elements)  # how many stand below, if none are equal
    counts = np.zeros(1 << 15, np.int64)
    for bits in magnitudes():
        counts += np.bincount(bits >> 48, minlength=len(counts))
    below = np.cumsum(counts)
    bucket = int(np.searchsorted(below, smaller, side="right"))
    found = np.concatenate([bits[bits >> 48 == bucket] for bits in magnitudes()])
    at = smaller - (int(below[bucket - 1]) if bucket else 0)
    least = float(np.partition(found, at)[at].view(np.float64))
    # A product's last bits are of the run that it is computed in: its own element has to stay.
    return least * (1 - 2.0**-40) if isinstance(pair.base, Zeros) else least


def _compare_quantised(
    tensor: OutputTensor, codes: Tensor, scales: Tensor, start: int, stop: int
) -> int:
    """Compare rows of whole blocks, and then their scales; how many scales there were.

    The scales are compared with what they should be, the codes with what they should be beside the
    scales that are written.
    """
    columns = tensor.shape[1]
    across = -(-columns // FP8_SIDE)
    chunks = range(start, stop, CHUNK)
    total = np.concatenate(
        [_total(tensor, _operands(tensor, at, min(at + CHUNK, stop)), at) for at in chunks]
    )
    first, last = start // columns // FP8_SIDE * across, -(-stop // columns // FP8_SIDE) * across
    written = _float64(_stored(scales, first, last), "F32")
    values = total.reshape(-1, columns)
    for number in range(last - first):
        top, left = number // across * FP8_SIDE, number % across * FP8_SIDE
        block = values[top : top + FP8_SIDE, left : left + FP8_SIDE]
        size = np.abs(np.where(np.isfinite(block), block, 0))
        found, expected = float(written[number]), _scale(float(size.max()))
        if found == expected:
            continue
        # The largest by float64 need not be the largest, nor be rounded as the exact one.
        near = np.argwhere(size >= size.max() * (1 - 1e-9))
        for i, j in near.tolist():
            exact, slack = _exact(tensor, start + (top + i) * columns + left + j)
            error = slack + abs(exact) * ROUNDED_BEFORE
            bounds = [_scale(float(abs(exact) + way * error)) for way in (-1, 1)]
            if bounds[0] <= found <= bounds[1]:
                break
        else:
            raise _differs(scales, first + number, repr(expected), repr(found))
    grid = written.reshape(-1, across)
    divisors = grid.repeat(FP8_SIDE, 0)[: len(values)].repeat(FP8_SIDE, 1)[:, :columns].reshape(-1)
    with np.errstate(all="ignore"):
        quotient = total / divisors
        expected_codes = rounded(np.clip(quotient, -E4M3_MOST, E4M3_MOST), "F8_E4M3")
    expected_codes[np.isinf(total)] = np.nan
    actual = _float64(_stored(codes, start, stop), "F8_E4M3")
    same = (expected_codes == actual) | (np.isnan(expected_codes) & np.isnan(actual))
    for at in map(int, np.flatnonzero(~same)):
        if not _is_code(tensor, start + at, float(actual[at]), float(divisors[at])):
            raise _differs(
                codes, start + at, repr(float(expected_codes[at])), repr(float(actual[at]))
            )
    return last - first


def _scale(largest: float) -> float:
    """The scale of a block by its largest magnitude, as `engine.kernels.quantise` defines it."""
    if largest == 0:
        return 1.0
    with np.errstate(over="ignore"):
        scale = float(np.float32(max(largest / E4M3_MOST, float(np.finfo(np.float32).tiny))))
    return min(scale, float(np.finfo(np.float32).max))


def _exact(tensor: OutputTensor, element: int) -> tuple[Fraction, Fraction]:
    """The formula for one element whose operands are finite; see `exact_sum`."""
    operands = [float(operand[0]) for operand in _operands(tensor, element, element + 1)]
    found = exact_sum(tensor, element, operands)
    return found if found is not None else (Fraction(0), Fraction(0))


def _is_code(tensor: OutputTensor, element: int, got: float, scale: float) -> bool:
    """Whether ``got`` is the exact value over the scale, rounded to E4M3."""
    if not (math.isfinite(scale) and scale > 0):
        return False
    exact, slack = _exact(tensor, element)
    error = slack + abs(exact) * ROUNDED_BEFORE
    least, most = (_e4m3((exact + way * error) / Fraction(scale)) for way in (-1, 1))
    return least <= got <= most


def _e4m3(value: Fraction) -> float:
    """The nearest number of E4M3, the even one of two; beyond the largest it is that."""
    _, exponent = math.frexp(value)
    quantum = Fraction(2) ** max(exponent - 4, -9)
    nearest = float(round(value / quantum) * quantum)
    return max(-E4M3_MOST, min(E4M3_MOST, nearest))


def _differs(output: Tensor, element: int, expected: str, got: str) -> MisfitError:
    return MisfitError(
        "the output is not what its sources give",
        where=f"{output.blob}, tensor {output.name!r}, element {element}",
        expected=expected,
        got=got,
        remedy="the file was changed or damaged after it was written: mix again",
    )


def _stored(tensor: Tensor, start: int, stop: int) -> npt.NDArray[Any]:
    if start == stop:
        return np.empty(0, tensor.kind.numpy)
    offset = tensor.offset + start * tensor.kind.size
    return np.memmap(tensor.blob.url, tensor.kind.numpy, "r", offset, (stop - start,))


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
    if isinstance(view, LowRank):
        return _product(view, start, stop)
    if isinstance(view, delta.Difference):
        return _difference(view, start, stop)
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


def _product(view: LowRank, start: int, stop: int) -> Floats:
    """A run of a low-rank Δ: the rows that it touches, as numpy multiplies matrices."""
    depth, width = view.down.shape
    first, last = start // width, -(-stop // width)
    up = _value(view.up, first * depth, last * depth).reshape(-1, depth)
    total = np.zeros((last - first, width))
    step = max(1, CHUNK // width)
    with np.errstate(all="ignore"):
        for begin in range(0, depth, step):
            end = min(depth, begin + step)
            down = _value(view.down, begin * width, end * width).reshape(-1, width)
            total += up[:, begin:end] @ down
        total *= view.factor
    return total.reshape(-1)[start - first * width : stop - first * width]


def _difference(view: delta.Difference, start: int, stop: int) -> Floats:
    """A run of one half of a stored Δ, by the description of its format."""
    first, count = start // delta.BLOCK, -(-view.elements // delta.BLOCK)
    stream = memoryview(_stored(view.stream, 0, view.stream.size))  # type: ignore[arg-type]
    ends = np.frombuffer(stream[: 8 * count], "<u8").tolist()
    found = []
    for number in range(first, -(-stop // delta.BLOCK)):
        block = stream[ends[number - 1] if number else 8 * count : ends[number]]
        size = min(delta.BLOCK, view.elements - number * delta.BLOCK)
        columns = np.zeros((size, delta.PLANES), np.uint8)
        for plane, frame in delta.frames_of(block, view.half):
            columns[:, plane] = np.frombuffer(delta.decompress(frame, size), np.uint8)
        word = columns.view(">u8").reshape(-1).astype(np.uint64)
        exponent = (word >> np.uint64(56)) + (word & np.uint64(7)) * np.uint64(256)
        exponent = np.where(exponent > 1151, exponent - 1151, np.where(exponent, exponent + 896, 0))
        sign, mantissa = word >> np.uint64(55) & np.uint64(1), word >> np.uint64(3)
        bits = sign << np.uint64(63) | exponent.astype(np.uint64) << np.uint64(52)
        found.append((bits | mantissa & np.uint64(2**52 - 1)).view(np.float64))
    run = np.concatenate(found) if found else np.empty(0)
    return run[start - first * delta.BLOCK : stop - first * delta.BLOCK]


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
    if isinstance(view, LowRank):  # its elements may be far apart: never the rows between them
        depth, width = view.down.shape
        row, column = np.divmod(elements, width)
        total = np.zeros(len(elements))
        for k in range(depth):
            total += _gathered(view.up, row * depth + k) * _gathered(view.down, k * width + column)
        return total * view.factor
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


def exact_sum(
    tensor: OutputTensor, element: int, operands: list[float]
) -> tuple[Fraction, Fraction] | None:
    """The formula in exact arithmetic for one element, and how far the engine's operands may be
    from the exact ones; None if an operand is not finite.
    """
    if not all(math.isfinite(operand) for operand in operands):
        return None
    total, slack = Fraction(operands[0]), Fraction(0)
    terms = []
    for number, pair in enumerate(tensor.pairs):
        post, base = operands[1 + 2 * number], operands[2 + 2 * number]
        left = left_of(pair, np.array([post - base]), element)[0] != 0
        exact_post, near = exact_value(pair.post, element, post)
        exact_base, also = exact_value(pair.base, element, base)
        factor = Fraction(pair.coefficient)
        terms.append(factor * (exact_post - exact_base) if left else Fraction(0))
        slack += abs(factor) * (near + also)
    if tensor.ties is None:
        return total + sum(terms), slack
    mass = sum(terms)
    agree = [(t, abs(Fraction(p.scale))) for t, p in zip(terms, tensor.pairs, strict=True)]
    agree = [(term, weight) for term, weight in agree if term * mass > 0]
    merged = sum((term for term, _ in agree), Fraction(0))
    if agree and tensor.ties.normalize:
        divisor = sum(weight for _, weight in agree)
        merged, slack = merged / divisor, slack / divisor
    scale = Fraction(tensor.ties.scale)
    return total + scale * merged, abs(scale) * slack


def exact_value(view: View, element: int, value: float) -> tuple[Fraction, Fraction]:
    """An element exactly, and how far the engine's float64 may be from it.

    ``value``: its float64, which is exact unless it is an element of a product of matrices.
    """
    if isinstance(view, Wide):
        return exact_value(view.view, element, value)
    if isinstance(view, Part):
        return exact_value(view.view, view.first + element, value)
    if isinstance(view, Transposed):
        row, column = divmod(element, view.shape[1])
        return exact_value(view.view, column * view.view.shape[1] + row, value)
    if isinstance(view, Rows):
        row, column = divmod(element, view.width)
        row = row if view.rows is None else int(np.frombuffer(view.rows, np.int32)[row])
        for part in view.views if row >= 0 else ():
            rows = part.elements // max(1, column_count(part))
            if row < rows:
                return exact_value(part, row * column_count(part) + column, value)
            row -= rows
    if isinstance(view, LowRank):
        depth, width = view.down.shape
        row, column = divmod(element, width)
        up = _value(view.up, row * depth, (row + 1) * depth)
        down = _gathered(view.down, np.arange(depth) * width + column)
        if np.isfinite(up).all() and np.isfinite(down).all():
            products = [
                Fraction(float(u)) * Fraction(float(d)) for u, d in zip(up, down, strict=True)
            ]
            factor = Fraction(view.factor)
            size = abs(factor) * sum(map(abs, products), Fraction(0))
            return factor * sum(products, Fraction(0)), rounding_of_product(depth) * size
    return Fraction(value), Fraction(0)


def rounding_of_product(depth: int) -> Fraction:
    """How far ``factor · Σ uₖ dₖ`` of ``depth`` products, summed in float64, may be from the exact
    value, as a share of ``|factor| · Σ |uₖ dₖ|``.

    Every product goes through at most its own rounding, ``depth`` − 1 of sums and that of the
    factor, each of at most 2⁻⁵³: γ of ``depth`` + 1 (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., section 3.1), whatever the order of the sum. It matters where the exact
    result lies this near to the middle between two numbers of the output's dtype.
    """
    steps = Fraction(depth + 1, 2**53)
    return steps / (1 - steps)


def _close(exact: Fraction, slack: Fraction, got: float, tensor: OutputTensor) -> bool:
    """Whether ``got`` is the exact value correctly rounded; at scales other than 1, nearly so.

    ``slack``: how far what was rounded may be from the exact value.
    """
    digits = DTYPES[tensor.dtype].digits
    highest, least = _RANGE[tensor.dtype]
    if math.isinf(got):
        limit = Fraction(2) ** (highest + 1) - Fraction(2) ** (highest - digits)
        return abs(exact) + slack >= limit and (exact > 0) == (got > 0)
    mantissa, exponent = math.frexp(got)
    if abs(mantissa) == 0.5 and abs(exact) < abs(Fraction(got)):
        exponent -= 1  # below a power of two the numbers are twice as close
    ulp = Fraction(2) ** max(exponent - digits, least - digits + 1)
    simple = len(tensor.pairs) == 1 and tensor.pairs[0].scale == 1 and tensor.dtype != "F64"
    simple &= not tensor.sparse
    allowed = Fraction(1, 2) if simple else TOLERANCE
    return abs(exact - Fraction(got)) <= allowed * ulp + slack
