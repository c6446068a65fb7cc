"""Carries out slices: read, combine, hand to the Sink. Knows nothing of threads or file names."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES, FP8_SIDE
from paramdelta.engine import sparsify
from paramdelta.engine.slices import BLOCK, Budget, Slice
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.view import View, fetch_from
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.storage.local import page_buffer
from paramdelta.storage.reader import Reader


class Sink(Protocol):
    """Where finished slices go. Every method may be called from many threads at once."""

    def wants(self, piece: Slice) -> bool:
        """Whether the slice is still to be made; False where a resumed run already has it, and the
        scales that are made with it.
        """

    def write(self, piece: Slice, data: memoryview) -> None:
        """Take the slice's bytes. ``data`` is reused as soon as this returns."""


@dataclass
class Report:
    """What the weights turned out to hold: ``(tensor, where)`` -> numbers that are not finite.

    ``where`` is a checkpoint's role, or "result" for finite operands whose sum the output's dtype
    cannot hold.
    """

    not_finite: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tensor: str, where: str, count: int) -> None:
        """Count numbers that are not finite."""
        if count:
            with self.lock:
                self.not_finite[tensor, where] += count


class Inputs:
    """The weight files of a plan, each opened once, when it is first needed.

    ``once``: no byte is read twice; see `Reader`. ``fetch``: reads stored tensors.
    """

    def __init__(self, once: bool = True) -> None:
        self.reader = Reader(once=once)
        self.fetch = fetch_from(self.reader)

    @property
    def read(self) -> int:
        """Bytes that were read."""
        return self.reader.count

    def close(self) -> None:
        """Close all files."""
        self.reader.close()


class Worker:
    """One pair of hands with buffers of its own: makes a slice at a time."""

    def __init__(
        self, plan: Plan, budget: Budget, inputs: Inputs, sink: Sink, report: Report
    ) -> None:
        self.plan = plan
        self.inputs = inputs
        self.sink = sink
        self.report = report
        self.buffers = [page_buffer(budget.buffer) for _ in range(budget.buffers)]
        self.high, self.low = np.empty(BLOCK), np.empty(BLOCK)
        self.run = budget.buffer // 8  # elements of float64 in a buffer
        self.values = np.empty(budget.quantised)
        self.codes = page_buffer(budget.quantised)

    def make(self, piece: Slice) -> None:
        """Make one slice and hand it to the sink."""
        tensor = self.plan.tensors[piece.tensor]
        if piece.also is not None:
            self._quantise(tensor, piece, piece.also)
            return
        out = self.buffers[-1]
        if not tensor.pairs and tensor.dtype == tensor.new.dtype:
            self._fetch(tensor.new, piece.start, piece.stop, out)
            self.sink.write(piece, out[: piece.nbytes])
            return
        data = out[: piece.nbytes]
        self._mix(tensor, piece.start, piece.stop, np.frombuffer(data, DTYPES[tensor.dtype].numpy))
        self.sink.write(piece, data)

    def _quantise(self, tensor: OutputTensor, piece: Slice, beside: Slice) -> None:
        """Make a slice of codes and the scales beside it: the sum in float64, run by run, then its
        blocks.
        """
        columns = tensor.shape[1]
        values = self.values[: piece.stop - piece.start]
        run = self.run // columns * columns or self.run  # whole rows where one fits in a buffer
        for first in range(0, values.size, run):
            last = min(first + run, values.size)
            self._mix(tensor, piece.start + first, piece.start + last, values[first:last])
        self._round(tensor, piece, beside, values)

    def _round(
        self, tensor: OutputTensor, piece: Slice, beside: Slice, values: npt.NDArray[np.float64]
    ) -> None:
        """Hand the codes of a slice's sums, and their scales, to the sink."""
        from paramdelta.arithmetic import kernels

        columns = tensor.shape[1]
        rows = values.reshape(-1, columns)
        data = self.codes[: piece.nbytes]
        codes = np.frombuffer(data, np.uint8).reshape(rows.shape)
        scales = np.empty((-(-len(rows) // FP8_SIDE), -(-columns // FP8_SIDE)), np.float32)
        self.report.add(tensor.name, "result", kernels.quantise(rows, codes, scales))
        self.sink.write(beside, scales.data.cast("B"))
        self.sink.write(piece, data)

    def _mix(self, tensor: OutputTensor, start: int, stop: int, result: npt.NDArray[Any]) -> None:
        """Fill ``result`` with a run of a tensor's elements; report what is not finite."""
        if tensor.coded and self._add_codes(tensor, start, stop, result):
            return
        step = self.run if tensor.coded else stop - start  # codes take less room than numbers
        for first in range(start, stop, step):
            last = min(first + step, stop)
            fetched = self._read(tensor.views, first, last)
            operands = [fetched[place] for place in tensor.places]
            self._sum(tensor, operands, first, result[first - start : last - start])

    def _add_codes(
        self, tensor: OutputTensor, start: int, stop: int, result: npt.NDArray[Any]
    ) -> bool:
        """Fill ``result`` from the codes of FP8 operands; False if that cannot be done."""
        from paramdelta.arithmetic import kernels

        runs = [
            view.codes(start, stop, buffer[: stop - start], self.inputs.fetch)
            for view, buffer in zip(tensor.views, self.buffers, strict=False)
            if isinstance(view, BlockScaled)
        ]
        new, post, base = (runs[place] for place in tensor.places)
        plus, minus = (post, base) if tensor.pairs[0].scale == 1 else (base, post)
        return bool(kernels.mix_codes(new, plus, minus, result))

    def _read(self, views: Sequence[View], start: int, stop: int) -> list[npt.NDArray[Any]]:
        """A run of each operand's elements, in the buffers."""
        return [
            self._fetch(view, start, stop, buffer)
            for view, buffer in zip(views, self.buffers, strict=False)
        ]

    def _sum(
        self,
        tensor: OutputTensor,
        operands: list[npt.NDArray[Any]],
        start: int,
        result: npt.NDArray[Any],
    ) -> None:
        """Combine operands from element ``start`` on; report what is not finite."""
        if tensor.sparse:
            finite = sparsify.combine(tensor, operands, start, result)
        else:
            finite = combine(tensor, operands, result, self.high, self.low)
        if not finite:
            self._inspect(tensor, operands, result)

    def _fetch(self, operand: View, start: int, stop: int, buffer: memoryview) -> npt.NDArray[Any]:
        """A run of one operand's elements, read into a buffer."""
        into = buffer[: (stop - start) * operand.kind.size]
        operand.read(start, stop, into, self.inputs.fetch)
        return np.frombuffer(into, operand.kind.numpy)

    def _inspect(
        self, tensor: OutputTensor, operands: list[npt.NDArray[Any]], result: npt.NDArray[Any]
    ) -> None:
        clean = True
        for number, view in enumerate(tensor.views):
            count = not_finite(operands[tensor.places.index(number)], view.dtype)
            clean &= count == 0
            self.report.add(tensor.name, self.plan.role(view), count)
        if clean:
            self.report.add(tensor.name, "result", not_finite(result, tensor.dtype))


def combine(
    tensor: OutputTensor,
    operands: list[npt.NDArray[Any]],
    out: npt.NDArray[Any],
    high: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
) -> bool:
    """``out = new + Σ scale (post − base)`` on arrays of one length; True if all of it is finite.

    ``operands``: new, then post and base of every pair, viewed as `dtypes` says. ``out``: of the
    tensor's dtype, or float64 where it is still to be quantised. ``high`` and ``low``: float64
    scratch of `BLOCK` elements.
    """
    from paramdelta.arithmetic import kernels  # compiled code, not needed for planning

    broken = None
    if len(tensor.pairs) == 1 and abs(tensor.pairs[0].scale) == 1:
        narrow = all(array.itemsize == 2 for array in (*operands, out))
        wide = np.float32(0) if narrow else np.float64(0)
        new, post, base = operands
        plus, minus = (post, base) if tensor.pairs[0].scale == 1 else (base, post)
        if kernels.mix_exact(new, plus, minus, out, wide):
            return True
        # Made again, but only where it went wrong: the sign of a zero is mix_exact's own promise.
        broken, out, whole = not_finite_mask(out, tensor.dtype), np.empty_like(out), out
    finite = True
    for start in range(0, out.size, BLOCK):
        block = slice(start, min(start + BLOCK, out.size))
        size = block.stop - start
        kernels.begin(operands[0][block], high, low)
        for number, pair in enumerate(tensor.pairs):
            post, base = operands[1 + 2 * number], operands[2 + 2 * number]
            kernels.add(post[block], base[block], pair.scale, high, low)
        finite &= kernels.finish(high[:size], low[:size], out[block])
    if broken is not None:
        whole[broken] = out[broken]
    return finite


def not_finite(array: npt.NDArray[Any], dtype: str) -> int:
    """How many numbers of an array, viewed as `dtypes` says, are infinite or NaN."""
    return int(np.count_nonzero(not_finite_mask(array, dtype)))


def not_finite_mask(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    """Which numbers of an array, viewed as `dtypes` says, are infinite or NaN."""
    masks: Mapping[str, int] = {"BF16": 0x7F80, "F16": 0x7C00}
    if dtype in masks:
        return (array & masks[dtype]) == masks[dtype]  # type: ignore[no-any-return]
    finite: npt.NDArray[np.bool_] = np.isfinite(array)
    return ~finite
