"""Plan -> slices, sized by the memory budget, in the order of the output."""

from collections.abc import Iterator
from dataclasses import dataclass

from paramdelta.dtypes import DTYPES
from paramdelta.errors import UsageError
from paramdelta.planning.plan import OutputTensor, Plan

MAX_BUFFER = 1 << 20  # bytes: larger reads are no faster and fall out of the processor's cache
MIN_BUFFER = 64 << 10  # bytes: below, the cost of a call outweighs the work
BLOCK = 1 << 14  # elements that the general arithmetic takes at a time: 16 bytes each of scratch
OVERHEAD = 48_000_000  # bytes: plan, threads, file tables; measured in tests


@dataclass(frozen=True)
class Slice:
    """A run of elements ``start`` to ``stop`` of output tensor number ``tensor``: whole rows where
    a row fits in a buffer.

    ``position``: first byte in the output's data, all tensors laid end to end. ``nbytes``: in the
    output.
    """

    tensor: int
    start: int
    stop: int
    position: int
    nbytes: int


@dataclass(frozen=True)
class Budget:
    """How the memory is shared out: every worker has ``buffers`` of ``buffer`` bytes, and
    ``scratch`` bytes for what its operands need beside them.
    """

    workers: int
    buffers: int
    buffer: int
    scratch: int = 0

    @property
    def projected(self) -> int:
        """Bytes that the engine will hold at the most, beyond the interpreter and its libraries."""
        each = self.buffers * self.buffer + self.scratch + 2 * 8 * BLOCK
        return self.workers * each + OVERHEAD


def share_out(plan: Plan, memory: int, workers: int) -> Budget:
    """Choose the buffers' size so that all workers together stay under ``memory`` bytes.

    Raises:
        UsageError: too little memory for one worker with the smallest buffers.
    """
    buffers = 1 + max((len(tensor.terms) for tensor in plan.tensors), default=1)
    views = [term.view for tensor in plan.tensors for term in tensor.terms]
    scratch = max((view.scratch(MAX_BUFFER) for view in views), default=0)
    while workers > 1 and Budget(workers, buffers, MIN_BUFFER, scratch).projected > memory:
        workers -= 1
    least = Budget(workers, buffers, MIN_BUFFER, scratch)
    if least.projected > memory:
        raise UsageError(
            f"--memory {memory} is too little",
            expected=f"at least {least.projected} bytes for this recipe",
        )
    spare = (memory - least.projected) // (workers * buffers)
    buffer = min(MAX_BUFFER, (MIN_BUFFER + spare) // 4096 * 4096)
    return Budget(workers, buffers, buffer, scratch)


def cut(plan: Plan, buffer: int) -> Iterator[Slice]:
    """All slices of a plan, none of whose operands is larger than ``buffer`` bytes."""
    position = 0
    for number, tensor in enumerate(plan.tensors):
        size = DTYPES[tensor.dtype].size
        if tensor.elements == 0:
            continue
        step = _elements(tensor, buffer)
        for start in range(0, tensor.elements, step):
            stop = min(start + step, tensor.elements)
            yield Slice(number, start, stop, position + start * size, (stop - start) * size)
        position += tensor.nbytes


def _elements(tensor: OutputTensor, buffer: int) -> int:
    widest = max(DTYPES[tensor.dtype].size, *(t.view.kind.size for t in tensor.terms))
    most = max(1, buffer // widest)
    row = tensor.elements // tensor.shape[0] if len(tensor.shape) > 1 else 1
    return most // row * row if row <= most else most
