"""Plan -> slices, sized by the memory budget, in the order of the output."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from paramdelta.dtypes import DTYPES, FP8_SIDE
from paramdelta.errors import UsageError
from paramdelta.planning.plan import OutputTensor, Plan

MAX_BUFFER = 1 << 20  # bytes: larger reads are no faster and fall out of the processor's cache
MIN_BUFFER = 64 << 10  # bytes: below, the cost of a call outweighs the work
BLOCK = 1 << 14  # elements that the general arithmetic takes at a time: 16 bytes each of scratch
PLANNED = 1_200  # bytes: a tensor in each further plan of a sweep, and in its output's tables
DIGIT = 20  # bits of a magnitude by which the search for a threshold counts at a time
FOUND = 1 << 17  # magnitudes that it holds: of fewer, it takes the one that it wants
OVERHEAD = 48_000_000  # bytes: plan, threads, file tables; measured in tests


@dataclass(frozen=True)
class Slice:
    """A run of elements ``start`` to ``stop`` of output tensor number ``tensor``: whole rows where
    a row fits in a buffer.

    ``position``: first byte in the output's data, all tensors laid end to end. ``nbytes``: in the
    output. ``also``: of a tensor that is quantised, the run of its scales that is made with it.
    """

    tensor: int
    start: int
    stop: int
    position: int
    nbytes: int
    also: "Slice | None" = None

    @property
    def made(self) -> int:
        """Bytes of the output that are made: its own, and those of the scales with it."""
        return self.nbytes + (self.also.nbytes if self.also is not None else 0)


@dataclass(frozen=True)
class Budget:
    """How the memory is shared out: every worker has ``buffers`` of ``buffer`` bytes, and
    ``scratch`` bytes for what its operands need beside them. ``quantised``: the most elements of a
    slice that is quantised, which is held whole, as float64, codes and scales. ``outputs``: how
    many are made of the same operands; each has float64 of its own. ``plans``: bytes of the plans
    of all but the first.
    """

    workers: int
    buffers: int
    buffer: int
    scratch: int = 0
    quantised: int = 0
    outputs: int = 1
    plans: int = 0

    @property
    def projected(self) -> int:
        """Bytes that the engine will hold at the most, beyond the interpreter and its libraries."""
        sums = (13 + 8 * (self.outputs - 1)) * self.quantised
        each = self.buffers * self.buffer + self.scratch + 2 * 8 * BLOCK + sums
        return self.workers * each + OVERHEAD + self.plans


def share_out(plan: Plan, memory: int, workers: int, outputs: int = 1) -> Budget:
    """Choose the buffers' size so that all workers together stay under ``memory`` bytes.

    ``outputs``: how many are made of the plan's operands, by plans of their own.

    Raises:
        UsageError: too little memory for one worker with the smallest buffers.
    """
    buffers = 1 + max((len(tensor.views) for tensor in plan.tensors), default=1)
    views = [view for tensor in plan.tensors for view in tensor.views]
    scratch = max((view.scratch(MAX_BUFFER) for view in views), default=0)
    if any(tensor.sparse for tensor in plan.tensors):
        scratch += 6 * 8 * BLOCK
    if any(p.sparsity is not None and p.sparsity.trims for t in plan.tensors for p in t.pairs):
        scratch += 8 * ((1 << DIGIT) + FOUND)
    scaled = {tensor.scales_of for tensor in plan.tensors if tensor.derived}
    quantised = max((_band(t) for t in plan.tensors if t.name in scaled), default=0)
    plans = (outputs - 1) * PLANNED * len(plan.tensors)
    least = Budget(workers, buffers, MIN_BUFFER, scratch, quantised, outputs, plans)
    while least.workers > 1 and least.projected > memory:
        least = replace(least, workers=least.workers - 1)
    if least.projected > memory:
        why = f", {FP8_SIDE} whole rows of which are quantised at once" if quantised else ""
        raise UsageError(
            f"--memory {memory} is too little",
            expected=f"at least {least.projected} bytes for this recipe{why}",
        )
    spare = (memory - least.projected) // (least.workers * buffers)
    return replace(least, buffer=min(MAX_BUFFER, (MIN_BUFFER + spare) // 4096 * 4096))


def cut(plan: Plan, buffer: int) -> Iterator[Slice]:
    """All slices of a plan, none of whose operands is larger than ``buffer`` bytes.

    Of a tensor that is quantised, slices are whole blocks; the worker reads them run by run.
    """
    positions = [0, *accumulate(tensor.nbytes for tensor in plan.tensors)]
    scales = {t.scales_of: number for number, t in enumerate(plan.tensors) if t.derived}
    for number, tensor in enumerate(plan.tensors):
        size = DTYPES[tensor.dtype].size
        if tensor.elements == 0 or tensor.derived:
            continue
        position = positions[number]
        beside = scales.get(tensor.name)
        step = _elements(tensor, buffer) if beside is None else _band(tensor)
        for start in range(0, tensor.elements, step):
            stop = min(start + step, tensor.elements)
            also = None
            if beside is not None:
                also = _scales(tensor.shape[1], start, stop, beside, positions[beside])
            yield Slice(number, start, stop, position + start * size, (stop - start) * size, also)


def _elements(tensor: OutputTensor, buffer: int) -> int:
    sizes = (1,) if tensor.coded else (term.view.kind.size for term in tensor.terms)
    widest = max(DTYPES[tensor.dtype].size, *sizes)
    most = max(1, buffer // widest)
    row = tensor.elements // tensor.shape[0] if len(tensor.shape) > 1 else 1
    return most // row * row if row <= most else most


def _band(tensor: OutputTensor) -> int:
    """Elements of a slice of a tensor that is quantised: rows of whole blocks, some 1 MB of codes.

    Not a matter of memory: a scale needs the 128 rows of its block.
    """
    rows, columns = tensor.shape
    return min(rows, max(1, MAX_BUFFER // max(1, FP8_SIDE * columns)) * FP8_SIDE) * columns


def _scales(columns: int, start: int, stop: int, number: int, position: int) -> Slice:
    """The scales of elements ``start`` to ``stop``; ``position``: the scale tensor's first byte."""
    across = -(-columns // FP8_SIDE)
    first = start // columns // FP8_SIDE * across
    last = -(-stop // columns // FP8_SIDE) * across
    return Slice(number, first, last, position + 4 * first, 4 * (last - first))
