"""The first pass of TIES: for each tensor and Δ, the least magnitude that its density keeps.

The k-th largest ``|post − base|``, exactly, in bounded memory, by radix select: magnitudes are
ordered as the bits of their float64 are. A pass counts them by their first 20 bits; the next looks
only at those of the bucket that has the k-th, and so on, until the bucket's numbers fit into memory
or have no further bits. Two passes, but for a tensor that fits at once.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.engine.run import Inputs
from paramdelta.engine.slices import DIGIT, FOUND, Budget
from paramdelta.formats.view import View
from paramdelta.planning.plan import OutputTensor, Pair, Plan
from paramdelta.storage.local import page_buffer

TICK = 0.1  # seconds between two calls of the progress function


def with_thresholds(
    plan: Plan,
    wanted: frozenset[int],
    budget: Budget,
    inputs: Inputs,
    progress: Callable[[int, int], None],
) -> Plan:
    """The same plan with the thresholds of the tensors of these numbers; reads what it takes.

    ``progress`` is called with how many are found and how many there are. The first error stops
    all and is raised.
    """
    jobs = [
        (number, at)
        for number in sorted(wanted)
        for at, pair in enumerate(plan.tensors[number].pairs)
        if pair.sparsity is not None and pair.sparsity.trims
    ]
    if not jobs:
        return plan
    search = _Search(budget, inputs)
    tensors = list(plan.tensors)
    with ThreadPoolExecutor(budget.workers, "paramdelta-thresholds") as pool:
        running = {
            pool.submit(search.threshold, tensors[number], tensors[number].pairs[at]): (number, at)
            for number, at in jobs
        }
        left = set(running)
        try:
            while left:
                done, left = wait(left, TICK, FIRST_EXCEPTION)
                for future in done:
                    number, at = running[future]
                    tensors[number] = _with(tensors[number], at, future.result())
                progress(len(jobs) - len(left), len(jobs))
        except BaseException:
            search.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return replace(plan, tensors=tuple(tensors))


def _with(tensor: OutputTensor, at: int, threshold: float) -> OutputTensor:
    pairs = list(tensor.pairs)
    sparsity = pairs[at].sparsity
    assert sparsity is not None
    pairs[at] = replace(pairs[at], sparsity=replace(sparsity, threshold=threshold))
    return replace(tensor, pairs=tuple(pairs))


class _Search:
    """What the threads of one pass share; each has buffers of its own."""

    def __init__(self, budget: Budget, inputs: Inputs) -> None:
        self.inputs = inputs
        self.size = budget.buffer
        self.stop = threading.Event()
        self.own = threading.local()

    def threshold(self, tensor: OutputTensor, pair: Pair) -> float:
        """The least magnitude of one Δ that is kept."""
        from paramdelta.arithmetic import masks

        assert pair.sparsity is not None
        if not hasattr(self.own, "counts"):
            self.own.buffers = [page_buffer(self.size) for _ in range(2)]
            self.own.counts = np.empty(1 << DIGIT, np.int64)
            self.own.found = np.empty(FOUND, np.int64)
        counts, found = self.own.counts, self.own.found
        state = np.empty(2, np.int64)
        rank = pair.sparsity.kept(tensor.elements)  # of the wanted one, from the largest
        prefix, width = 0, 63
        while not self.stop.is_set():
            step = max(0, width - DIGIT)
            counts.fill(0)
            state[:] = 0
            for start, stop in self.runs(tensor):
                post, base = (
                    self.fetch(view, start, stop, buffer)
                    for view, buffer in zip((pair.post, pair.base), self.own.buffers, strict=True)
                )
                masks.look(post, base, prefix, width, step, counts, found, state)
            inside, used = state.tolist()
            if inside <= FOUND:
                return _float(int(np.partition(found[:inside], inside - rank)[inside - rank]))
            above = np.cumsum(counts[::-1])
            bucket = int(np.searchsorted(above, rank))  # from the largest, the first to reach it
            rank -= int(above[bucket - 1]) if bucket else 0
            digit = len(counts) - 1 - bucket
            prefix, width = prefix << (width - step) | digit, step
            if not used & ((1 << step) - 1):  # of 16-bit operands there is hardly ever more
                return _float(prefix << step)
        return 0.0

    def runs(self, tensor: OutputTensor) -> Iterator[tuple[int, int]]:
        """Runs of elements that fit in a buffer as float64; whole rows where one does."""
        most = max(1, self.size // 8)
        row = tensor.elements // tensor.shape[0] if len(tensor.shape) > 1 else 1
        step = most // row * row or most
        for start in range(0, tensor.elements, step):
            if self.stop.is_set():
                return
            yield start, min(start + step, tensor.elements)

    def fetch(self, view: View, start: int, stop: int, buffer: memoryview) -> npt.NDArray[Any]:
        """A run of one operand's elements, read into a buffer."""
        into = buffer[: (stop - start) * view.kind.size]
        view.read(start, stop, into, self.inputs.fetch)
        return np.frombuffer(into, view.kind.numpy)


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
