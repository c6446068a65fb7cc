"""Several mixes of the same operands: each slice is read once, then made for every output."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from paramdelta.dtypes import DTYPES
from paramdelta.engine import threads
from paramdelta.engine.run import Inputs, Report, Sink, Worker
from paramdelta.engine.slices import Budget, Slice
from paramdelta.engine.threads import Progress
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.sweep import Sweep


def trimmed(
    sweep: Sweep,
    wants: Callable[[Slice], bool],
    budget: Budget,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Sweep, int]:
    """A sweep with the thresholds that its sparse tensors need, and how many bytes were read for
    them: they are the Δ's, at any scale, and looked for once; raises as `threads.run`.
    """
    fullest = max(sweep.members, key=lambda plan: sum(len(t.pairs) for t in plan.tensors))
    found, read = threads.trimmed(fullest, wants, budget, progress)
    if found is fullest:
        return sweep, read
    members = tuple(
        replace(
            member,
            tensors=tuple(
                _with_thresholds(tensor, other)
                for tensor, other in zip(member.tensors, found.tensors, strict=True)
            ),
        )
        for member in sweep.members
    )
    return replace(sweep, members=members), read


def _with_thresholds(tensor: OutputTensor, found: OutputTensor) -> OutputTensor:
    known = {pair.number: pair.sparsity for pair in found.pairs}
    pairs = tuple(
        replace(p, sparsity=known[p.number]) if p.sparsity is not None else p for p in tensor.pairs
    )
    return replace(tensor, pairs=pairs)


class Sinks(Sink, Protocol):
    """The outputs of a sweep. `write` gives the same bytes to all that are to get them."""

    def takers(self, piece: Slice) -> Sequence[int]:
        """The numbers of the outputs that are to get the slice."""

    def at(self, number: int) -> Sink:
        """One output alone."""


class SweepWorker(Worker):
    """A pair of hands that makes a slice for all outputs that want it, one after the other.

    One buffer serves them all; only where the sum is quantised, each has its float64 sums.
    ``reports``: by output. ``shared``: of the tensors that are the same in all.
    """

    def __init__(
        self,
        sweep: Sweep,
        budget: Budget,
        inputs: Inputs,
        sinks: Sinks,
        reports: Sequence[Report],
        shared: Report,
    ) -> None:
        super().__init__(sweep.joint, budget, inputs, sinks, shared)
        self.sweep = sweep
        self.sinks = sinks
        self.reports = reports
        self.shared = shared
        further = len(sweep.members) - 1
        self.sums = [self.values, *(np.empty(budget.quantised) for _ in range(further))]

    def make(self, piece: Slice) -> None:
        """Make one slice for every output that wants it."""
        if self.sweep.alike[piece.tensor]:
            self.sink, self.report = self.sinks, self.shared
            super().make(piece)
        elif piece.also is not None:
            self._quantise_each(piece, piece.also)
        else:
            self._make_each(piece)

    def _make_each(self, piece: Slice) -> None:
        fetched = self._read(self.plan.tensors[piece.tensor].views, piece.start, piece.stop)
        data = self.buffers[-1][: piece.nbytes]
        for number in self.sinks.takers(piece):
            tensor, places = self._member(number, piece.tensor)
            if not tensor.pairs and tensor.dtype == tensor.new.dtype:
                whole = self.buffers[places[0]][: piece.nbytes]
                self.sink.write(piece, whole)
                continue
            result = np.frombuffer(data, DTYPES[tensor.dtype].numpy)
            self._sum(tensor, [fetched[place] for place in places], piece.start, result)
            self.sink.write(piece, data)

    def _quantise_each(self, piece: Slice, beside: Slice) -> None:
        """As `_quantise`, the sums of all outputs from the same runs of operands."""
        joint = self.plan.tensors[piece.tensor]
        takers = self.sinks.takers(piece)
        columns, size = joint.shape[1], piece.stop - piece.start
        run = self.run // columns * columns or self.run
        mixed = [n for n in takers if self.sweep.members[n].tensors[beside.tensor].derived]
        for first in range(0, size, run):
            last = min(first + run, size)
            fetched = self._read(joint.views, piece.start + first, piece.start + last)
            for at, number in enumerate(mixed):
                tensor, places = self._member(number, piece.tensor)
                operands = [fetched[place] for place in places]
                self._sum(tensor, operands, piece.start + first, self.sums[at][first:last])
        for at, number in enumerate(mixed):
            tensor, _ = self._member(number, piece.tensor)
            self._round(tensor, piece, beside, self.sums[at][:size])
        for number in takers:
            if number not in mixed:  # at scale 0, say: codes and scales as they are stored
                for part in (beside, piece):
                    tensor, _ = self._member(number, part.tensor)
                    data = memoryview(bytearray(part.nbytes))
                    tensor.new.read(part.start, part.stop, data, self.inputs.fetch)
                    self.sink.write(part, data)

    def _member(self, number: int, tensor: int) -> tuple[OutputTensor, tuple[int, ...]]:
        """One output's tensor and the places of its operands; what follows is for that output."""
        self.sink, self.report = self.sinks.at(number), self.reports[number]
        return self.sweep.members[number].tensors[tensor], self.sweep.places[number][tensor]
