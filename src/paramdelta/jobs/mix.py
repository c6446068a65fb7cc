"""The mix: each slice of the operands is read once and combined for every output that needs it.

A mix is a sweep of one.
"""

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.finite import not_finite
from paramdelta.dtypes import DTYPES
from paramdelta.engine.memory import Need
from paramdelta.formats.view import View, fetch_from
from paramdelta.output.sink import Writer
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.sweep import Sweep, joint_views
from paramdelta.schemes.scheme import BLOCK, SCRATCH
from paramdelta.storage.blob import Blob
from paramdelta.storage.local import page_buffer
from paramdelta.storage.readahead import Run
from paramdelta.storage.reader import Reader

PLANNED = 1_200  # bytes: a tensor in each further plan of a sweep, and in its output's tables

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """Elements ``start`` to ``stop`` of output tensor number ``tensor``.

    Whole rows where a row fits in a buffer, and whole blocks of an encoding that has blocks.
    """

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class Receipt:
    """What a task wrote.

    ``ranges``: first byte and the byte behind the last of each stream's run, in all data of an
    output laid end to end. ``size``: bytes written to all outputs. ``not_finite``: by output,
    tensor and place, numbers that are infinite or NaN; see `MixJob.not_finite`.
    """

    ranges: tuple[tuple[int, int], ...]
    size: int
    not_finite: tuple[tuple[int, str, str, int], ...] = ()


class Tasks(Sequence[Task]):
    """All tasks of a job, made when they are asked for: a large model has a million of them."""

    def __init__(self, elements: Sequence[int], steps: Sequence[int]) -> None:
        """``elements``: of each tensor. ``steps``: elements of its tasks."""
        self._elements = elements
        self._steps = steps
        counts = [-(-n // step) for n, step in zip(self._elements, steps, strict=True)]
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: Any) -> Any:
        tensor = bisect.bisect_right(self._ends, number)
        if tensor == len(self._ends):
            raise IndexError(number)
        before = self._ends[tensor - 1] if tensor else 0
        start = (number - before) * self._steps[tensor]
        return Task(tensor, start, min(start + self._steps[tensor], self._elements[tensor]))


@dataclass(frozen=True)
class MixJob:
    """Mixes for all outputs of a sweep.

    ``members``: by output, its tensors; the outputs differ in values alone. ``alike``: by tensor,
    whether its values are the same in all outputs. ``stored``: by tensor, the numbers of its
    streams in the weight files. ``positions``: by stream, its first byte in all data end to end.
    ``roles``: whose a blob is, for reports. ``buffer``: bytes of one operand that a worker holds.
    ``only``: numbers of the tensors to mix; None for all.
    """

    members: tuple[tuple[OutputTensor, ...], ...]
    alike: tuple[bool, ...]
    stored: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    roles: Mapping[Blob, str]
    buffer: int
    only: frozenset[int] | None = None
    found: Counter[tuple[int, str, str]] = field(default_factory=Counter, compare=False)

    lead = None

    @classmethod
    def of(cls, sweep: Sweep, buffer: int) -> "MixJob":
        """The job of a sweep."""
        numbers = {(one.tensor, one.part): number for number, one in enumerate(sweep.stored)}
        sizes = accumulate((one.nbytes for one in sweep.stored), initial=0)
        first = sweep.plans[0]
        return cls(
            tuple(plan.tensors for plan in sweep.plans),
            sweep.alike,
            tuple(
                tuple(numbers[number, part] for part in range(len(tensor.streams)))
                for number, tensor in enumerate(first.tensors)
            ),
            tuple(sizes)[:-1],
            {file.blob: s.role for s in reversed(first.sources) for file in s.sources},
            buffer,
        )

    # -- what an engine asks -----------------------------------------------------------------------

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        tensors = self.members[0]
        steps = [self._step(number) for number in range(len(tensors))]
        elements = [
            tensor.elements if self.only is None or number in self.only else 0
            for number, tensor in enumerate(tensors)
        ]
        return Tasks(elements, steps)

    def holding(self, streams: Iterable[int]) -> "MixJob":
        """The job for the tensors that are stored in these streams alone."""
        wanted = frozenset(streams)
        return replace(
            self,
            only=frozenset(n for n, own in enumerate(self.stored) if not wanted.isdisjoint(own)),
        )

    def tasks_of(self, number: int) -> list[Task]:
        """The tasks of one tensor."""
        elements, step = self.members[0][number].elements, self._step(number)
        return [
            Task(number, start, min(start + step, elements)) for start in range(0, elements, step)
        ]

    def cost(self, task: Task) -> int:
        """Bytes of one output."""
        return sum(stop - start for start, stop in self.ranges(task))

    def reads(self, task: Task) -> Iterator[Run]:
        """See `Reading.reads`."""
        for view in self.views[task.tensor]:
            yield from view.runs(task.start, task.stop)

    def worker(self, reader: Reader, writers: Sequence[Writer]) -> "Worker":
        """See `Job.worker`. ``writers``: one for each output."""
        return Worker(self, reader, writers)

    def collect(self, task: Task, receipt: Receipt) -> None:
        """Count what is not finite."""
        for output, tensor, where, count in receipt.not_finite:
            self.found[output, tensor, where] += count

    def not_finite(self, output: int) -> dict[tuple[str, str], int]:
        """How many numbers of an output are infinite or NaN, by tensor and place.

        The place is the role of the checkpoint that has them, or "result" for finite operands whose
        sum the output's dtype cannot hold.
        """
        return {
            (tensor, where): count
            for (number, tensor, where), count in self.found.items()
            if number == output
        }

    # -- memory ------------------------------------------------------------------------------------

    def need(self, buffer: int) -> Need:
        """What a run holds with buffers of a size."""
        views = [view for found in self.views for view in found]
        buffers = 1 + max(map(len, self.views), default=1)
        scratch = max((view.scratch(buffer) for view in views), default=0)
        shared = {kind: size for view in views for kind, size in view.caches.items()}
        outputs = len(self.members)
        held = max((t.encoding.held(t.shape) for t in self.members[0]), default=0)
        values = 8 * (outputs - 1) * max(map(self._values, range(len(self.views))), default=0)
        each = buffers * buffer + scratch + 8 * SCRATCH * BLOCK + held + values
        plans = (outputs - 1) * PLANNED * len(self.views)
        return Need(each, sum(shared.values()) + plans)

    # -- the cut -----------------------------------------------------------------------------------

    @cached_property
    def views(self) -> tuple[tuple[View, ...], ...]:
        """By tensor, the operands of all outputs, each once: what is read."""
        columns = zip(*self.members, strict=True)
        return tuple(
            joint_views(tensors[:1] if alike else tensors)
            for alike, tensors in zip(self.alike, columns, strict=True)
        )

    def ranges(self, task: Task) -> tuple[tuple[int, int], ...]:
        """The task's bytes in every stream, in all data of an output laid end to end."""
        tensor = self.members[0][task.tensor]
        runs = tensor.encoding.runs(tensor.shape, task.start, task.stop)
        found = []
        for run, number, stream in zip(runs, self.stored[task.tensor], tensor.streams, strict=True):
            size, position = DTYPES[stream.dtype].size, self.positions[number]
            found.append((position + run.start * size, position + run.stop * size))
        return tuple(found)

    def _step(self, number: int) -> int:
        """Elements of a task."""
        tensor = self.members[0][number]
        packed = self._is_packed(number)
        sizes = [1] if packed else [view.kind.size for view in self.views[number]]
        widest = max(DTYPES[tensor.dtype].size, *sizes, 1)
        most = max(1, self.buffer // widest)
        row = tensor.elements // tensor.shape[0] if len(tensor.shape) > 1 and tensor.shape[0] else 1
        rows = most // row * row if 0 < row <= most else most
        return max(1, tensor.encoding.task(tensor.shape, rows))

    def _is_packed(self, number: int) -> bool:
        one = len(self.members) == 1 or self.alike[number]
        return one and self.members[0][number].packed

    def _values(self, number: int) -> int:
        """Elements that a worker holds at work width for each output."""
        tensor = self.members[0][number]
        plain = tensor.encoding.work == tensor.dtype
        return 0 if plain else tensor.encoding.task(tensor.shape, 0)


class Worker:
    """Runs one task at a time, with its own buffers."""

    def __init__(self, job: MixJob, reader: Reader, writers: Sequence[Writer]) -> None:
        self.job = job
        self.fetch = fetch_from(reader)
        self.writers = writers
        buffers = 1 + max(map(len, job.views), default=1)
        self.buffers = [page_buffer(job.buffer) for _ in range(buffers)]
        self.run = job.buffer // 8  # elements of float64 in a buffer
        self.scratch = np.empty((SCRATCH, BLOCK))
        most = max(map(job._values, range(len(job.views))), default=0)
        self.values = [np.empty(most) for _ in job.members] if most else []
        self.encoded = page_buffer(most) if most else memoryview(b"")
        self.bad: list[tuple[int, str, str, int]] = []
        self.size = 0

    def __call__(self, task: Task) -> Receipt:
        """Make a run of one tensor for every output."""
        job, number = self.job, task.tensor
        everyone = range(len(job.members))
        if job.alike[number]:
            groups = [(job.members[0][number], tuple(everyone))]
        else:
            groups = [(job.members[output][number], (output,)) for output in everyone]
        self.bad, self.size = [], 0
        tensor = groups[0][0]
        if tensor.encoding.work == tensor.dtype:
            self._plain(task, groups)
        else:
            self._encode(task, groups)
        return Receipt(job.ranges(task), self.size, tuple(self.bad))

    def _plain(self, task: Task, groups: Sequence[tuple[OutputTensor, tuple[int, ...]]]) -> None:
        """Results are rounded straight into the bytes of the output."""
        size = DTYPES[groups[0][0].dtype].nbytes(task.stop - task.start)
        data = self.buffers[-1][:size]
        result = np.frombuffer(data, DTYPES[groups[0][0].dtype].numpy)
        if len(groups) == 1 and groups[0][0].packed:
            tensor, outputs = groups[0]
            self._packed(tensor, outputs, task.start, task.stop, result)
            self._write(task, outputs, 0, data)
            return
        views = self.job.views[task.tensor]
        fetched = self._read(views, task.start, task.stop)
        for tensor, outputs in groups:
            places = [views.index(term.view) for term in tensor.terms]
            if tensor.stored is not None:
                self._write(task, outputs, 0, self.buffers[places[0]][:size])
                continue
            operands = [fetched[place] for place in places]
            self._combine(tensor, outputs, operands, task.start, result)
            self._write(task, outputs, 0, data)

    def _encode(self, task: Task, groups: Sequence[tuple[OutputTensor, tuple[int, ...]]]) -> None:
        """Sums at work width for a whole task, then the bytes of every stream."""
        shape, views = groups[0][0].shape, self.job.views[task.tensor]
        size = task.stop - task.start
        mixed = [group for group in groups if group[0].stored is None]
        columns = shape[1] if len(shape) > 1 else 1
        run = self.run // columns * columns or self.run  # whole rows where one fits in a buffer
        for first in range(0, size if mixed else 0, run):
            last = min(first + run, size)
            start, stop = task.start + first, task.start + last
            if len(groups) == 1 and mixed[0][0].packed:
                tensor, outputs = mixed[0]
                self._packed(tensor, outputs, start, stop, self.values[0][first:last])
                continue
            fetched = self._read(views, start, stop)
            for (tensor, outputs), values in zip(mixed, self.values, strict=False):
                operands = [fetched[views.index(term.view)] for term in tensor.terms]
                self._combine(tensor, outputs, operands, start, values[first:last])
        for (tensor, outputs), values in zip(mixed, self.values, strict=False):
            into, left = [], self.encoded[:]
            for begin, end in self.job.ranges(task):
                fits = end - begin <= len(left)
                part = left[: end - begin] if fits else memoryview(bytearray(end - begin))
                left = left[end - begin :] if fits else left
                into.append(part)
            self._report(
                outputs, tensor.name, "result", tensor.encoding.encode(values[:size], shape, into)
            )
            for at, encoded in enumerate(into):
                self._write(task, outputs, at, encoded)
        for tensor, outputs in groups:
            if tensor.stored is not None:
                runs = tensor.encoding.runs(shape, task.start, task.stop)
                for at, (view, elements) in enumerate(zip(tensor.stored, runs, strict=True)):
                    copied = memoryview(bytearray(len(elements) * view.kind.size))
                    view.read(elements.start, elements.stop, copied, self.fetch)
                    self._write(task, outputs, at, copied)

    def _packed(
        self,
        tensor: OutputTensor,
        outputs: Sequence[int],
        start: int,
        stop: int,
        result: Array,
    ) -> None:
        """Add operands as they are stored; where that is not exact, run by run in float64."""
        runs = [
            view.read_packed(start, stop, buffer[: stop - start], self.fetch)
            for view, buffer in zip(tensor.views, self.buffers, strict=False)
        ]
        if tensor.scheme.combine_packed(tensor.pairs, [runs[p] for p in tensor.places], result):
            return
        for first in range(start, stop, self.run):
            last = min(first + self.run, stop)
            fetched = self._read(tensor.views, first, last)
            operands = [fetched[place] for place in tensor.places]
            self._combine(tensor, outputs, operands, first, result[first - start : last - start])

    def _read(self, views: Sequence[View], start: int, stop: int) -> list[Array]:
        """A run of each operand's elements, in the buffers."""
        arrays = []
        for view, buffer in zip(views, self.buffers, strict=False):
            into = buffer[: (stop - start) * view.kind.size]
            view.read(start, stop, into, self.fetch)
            arrays.append(np.frombuffer(into, view.kind.numpy))
        return arrays

    def _combine(
        self,
        tensor: OutputTensor,
        outputs: Sequence[int],
        operands: list[Array],
        start: int,
        result: Array,
    ) -> None:
        """Combine operands from element ``start``; report what is not finite."""
        work = tensor.encoding.work
        if tensor.scheme.combine(tensor.pairs, operands, start, result, work, self.scratch):
            return
        clean = True
        seen: set[View] = set()
        for term, operand in zip(tensor.terms, operands, strict=True):
            if term.view not in seen:
                seen.add(term.view)
                count = not_finite(operand, term.view.dtype)
                clean &= count == 0
                parts = term.view.parts
                role = self.job.roles.get(parts[0].blob, "") if parts else ""
                self._report(outputs, tensor.name, role, count)
        if clean:
            self._report(outputs, tensor.name, "result", not_finite(result, work))

    def _report(self, outputs: Sequence[int], tensor: str, where: str, count: int) -> None:
        if count:
            self.bad += [(output, tensor, where, count) for output in outputs]

    def _write(self, task: Task, outputs: Sequence[int], part: int, data: memoryview) -> None:
        """Hand the bytes of one stream's run to the writers of some outputs."""
        begin, _ = self.job.ranges(task)[part]
        stream = self.job.stored[task.tensor][part]
        offset = begin - self.job.positions[stream]
        for output in outputs:
            self.size += self.writers[output].write(stream, offset, data)
