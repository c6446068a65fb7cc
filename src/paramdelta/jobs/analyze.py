"""The analysis: one pass over all operands that measures every Δ, tensor by tensor.

A task is a run of elements of one tensor, of a length that the tensor alone decides. Its receipt
holds sums that are added exactly, so the result is the same for any number of workers and any size
of buffers. See `arithmetic.measures` for the sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.measures import BLOCK, BUCKETS, NONE, ROW, Rounding, Sums, Vectors, empty
from paramdelta.dtypes import DTYPES
from paramdelta.engine.memory import Need
from paramdelta.formats.delta import Difference
from paramdelta.formats.view import ABSENT, Rows, View, Zeros, fetch_from, leaves
from paramdelta.jobs.mix import Task, Tasks
from paramdelta.jobs.tally import Tally
from paramdelta.planning.attention import head_size
from paramdelta.planning.kinds import kind_of
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.presets import layer_of, stack_of
from paramdelta.storage.local import page_buffer
from paramdelta.storage.reader import Reader

Array = npt.NDArray[Any]

LENGTH = 1 << 20  # elements of a task, about
RUN = 1 << 17  # elements of each operand that are read at a time
LEAST = 4  # elements of a block
LEADING = 20  # rows of tokens that are kept for each Δ: those that changed most
_LEAST = {"F16": 2.0**-14}  # the smallest normal number; others have float32's
_QUANTA = {"F16": 2.0**-24, "BF16": 2.0**-133, "F32": 2.0**-149}


@dataclass(frozen=True)
class Triple:
    """The rows of one Δ among the vectors of a tensor; −1 for one that is not there.

    ``number``: of the Δ in the recipe. ``shift``: new base − base.
    """

    number: int
    delta: int
    new: int
    base: int = -1
    shift: int = -1


@dataclass(frozen=True, eq=False)
class Subject:
    """A tensor that has a Δ, and what is measured of it.

    ``views``: its operands. ``rows``: the vectors that are made of them. ``segments``: how many
    parts have sums of their own, ``inner`` consecutive elements at a time: the heads of an
    attention, or the rows of tokens (``by_token``). ``block``, ``step``: elements that are summed
    together, and those of a task.
    """

    name: str
    kind: str
    layer: int | None
    stack: str | None
    shape: tuple[int, ...]
    elements: int
    views: tuple[View, ...]
    triples: tuple[Triple, ...]
    rows: Vectors
    rounding: Rounding
    segments: int
    inner: int
    by_token: bool
    block: int
    step: int

    @property
    def width(self) -> int:
        """Bytes of one element of an operand as the measures get it."""
        return self.views[0].kind.size if len({v.dtype for v in self.views}) == 1 else 8

    def operands(self, row: int) -> tuple[View, View | None]:
        """What a row of a single difference is made of."""
        (_, plus, minus, _), *_ = (term for term in self.rows.terms.tolist() if term[0] == row)
        if plus <= ROW:
            plus = self.operands(ROW - plus)[0]
        if minus <= ROW:
            minus = self.operands(ROW - minus)[0]
        first = plus if isinstance(plus, View) else self.views[plus]
        if minus == NONE:
            return first, None
        return first, minus if isinstance(minus, View) else self.views[minus]

    def pair(self, one: int, two: int) -> int:
        """The number of the product of two rows."""
        return int(np.flatnonzero((self.rows.pairs == (one, two)).all(axis=1))[0])


@dataclass(frozen=True)
class Row:
    """A row of an embedding: its number, and ‖Δ‖ and ‖Θ_base‖ of it."""

    number: int
    norm: float
    base: float


@dataclass(frozen=True, eq=False)
class Receipt:
    """The sums of a task. ``high``, ``low``: (segments or 1, products). ``leading``: by Δ, the rows
    of tokens that changed most. ``norms``: (D, `BUCKETS`), a histogram of the rows' ‖Δ‖.
    """

    sums: Sums
    leading: tuple[tuple[Row, ...], ...] = ()
    norms: Array | None = None


@dataclass(frozen=True)
class Head:
    """One head of an attention: ‖Δ‖, ‖Δ‖ / ‖Θ_base‖, and the cosine of Δ and S, if there is one."""

    norm: float
    relative: float
    cosine: float | None


@dataclass(frozen=True, eq=False)
class Measured:
    """A tensor's sums. ``heads``, ``leading``: by number of the Δ. ``median``: ‖Δ‖ of the median
    row of tokens, by number of the Δ.
    """

    subject: Subject
    tally: Tally
    heads: Mapping[int, tuple[Head, ...]]
    leading: Mapping[int, tuple[Row, ...]]
    median: Mapping[int, float]


class AnalyzeJob:
    """Measures all ``subjects``. ``finish``: called with each tensor when all of it is measured."""

    lead = 8

    def __init__(
        self,
        subjects: Sequence[Subject],
        deltas: int,
        buffer: int,
        finish: Callable[[Measured], None],
    ) -> None:
        self.subjects, self.deltas, self.buffer, self.finish = subjects, deltas, buffer, finish
        self._open: list[Receipt] = []

    @classmethod
    def of(cls, plan: Plan, buffer: int, finish: Callable[[Measured], None]) -> "AnalyzeJob":
        """The job for a plan that was made with all operands (``whole``)."""
        config = plan.new_base.config
        made = [subject_of(tensor, config) for tensor in plan.tensors if tensor.pairs]
        return cls([one for one in made if one.elements], len(plan.recipe.deltas), buffer, finish)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "finish": None}

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        return Tasks([one.elements for one in self.subjects], [one.step for one in self.subjects])

    def cost(self, task: Task) -> int:
        """Bytes of the operands."""
        subject = self.subjects[task.tensor]
        read = sum(view.nbytes for view in subject.views)
        return read * (task.stop - task.start) // subject.elements

    def need(self, buffer: int) -> Need:
        """What a run holds with buffers of a size."""
        each = 0
        for one in self.subjects:
            scratch = max((view.scratch(buffer) for view in one.views), default=0)
            segments = min(one.segments, one.step // one.inner + 2)
            sums = 16 * segments * len(one.rows.pairs) + 4 * BUCKETS * len(one.triples)
            held = (len(one.views) + 1) * buffer + 8 * BLOCK * (one.rows.height + 1)
            each = max(each, held + scratch + (2 + self.lead) * sums)
        views = [view for one in self.subjects for view in one.views]
        caches = {kind: size for view in views for kind, size in view.caches.items()}
        groups = 8 * BUCKETS * self.deltas * len({(one.stack, one.layer) for one in self.subjects})
        return Need(each, sum(caches.values()) + groups)

    def worker(self, reader: Reader, writers: Sequence[Any]) -> "Worker":
        """See `Job.worker`."""
        return Worker(self, reader)

    def collect(self, task: Task, receipt: Receipt) -> None:
        """Keep the receipts of a tensor until it is complete."""
        self._open.append(receipt)
        subject = self.subjects[task.tensor]
        if task.stop == subject.elements:
            receipts, self._open = self._open, []
            self.finish(_measured(subject, receipts, self.deltas))


class Worker:
    """Runs one task at a time, with its own buffers."""

    def __init__(self, job: AnalyzeJob, reader: Reader) -> None:
        self.job = job
        self.fetch = fetch_from(reader)
        most = max((len(one.views) for one in job.subjects), default=1)
        self.buffer = page_buffer(most * job.buffer)
        self.stored = page_buffer(job.buffer)
        self.scratch = np.empty((max((one.rows.height for one in job.subjects), default=1), BLOCK))
        self.places = np.empty(BLOCK, np.uint32)

    def __call__(self, task: Task) -> Receipt:
        """Measure a run of one tensor."""
        from paramdelta.arithmetic.measures import measure

        one = self.job.subjects[task.tensor]
        first = 0 if not one.by_token else task.start // one.inner
        last = one.segments if not one.by_token else -(-task.stop // one.inner)
        sums = empty(last - first, one.rows)
        run = min(RUN, self.job.buffer // one.width) // one.block * one.block
        for start in range(task.start, task.stop, run):
            stop = min(start + run, task.stop)
            operands = self._read(one, start, stop)
            measure(
                operands, stop - start, one.block, one.inner, one.segments, start, first,
                one.rows, one.rounding, sums, self.scratch, self.places,
            )  # fmt: skip
        return _rows_of_tokens(one, first, sums) if one.by_token else Receipt(sums)

    def _read(self, one: Subject, start: int, stop: int) -> Array:
        """The operands' elements, (K, N), in one dtype."""
        from paramdelta.arithmetic.measures import widen

        size, width = stop - start, one.width
        data = self.buffer[: len(one.views) * size * width]
        mixed = len({view.dtype for view in one.views}) > 1
        kind = np.dtype(np.float64) if mixed else one.views[0].kind.numpy
        operands = np.frombuffer(data, kind).reshape(len(one.views), size)
        for number, view in enumerate(one.views):
            into = data[number * size * width : (number + 1) * size * width]
            if mixed:
                into = self.stored[: size * view.kind.size]
            view.read(start, stop, into, self.fetch)
            if mixed:
                widen(np.frombuffer(into, view.kind.numpy), operands[number])
        return operands


# -- what is measured ------------------------------------------------------------------------------


def subject_of(tensor: OutputTensor, config: Mapping[str, Any]) -> Subject:
    """What is measured of an output tensor that has a Δ. ``config``: the new base's config.json."""
    made = _Vectors()
    triples = []
    for number in dict.fromkeys(pair.number for pair in tensor.pairs):
        pairs = [pair for pair in tensor.pairs if pair.number == number]
        known = next((p.base for p in pairs if _is_base(p.base)), None)
        new = tensor.new if known is None else _shared(tensor.new, known)
        base = made.alone(known) if known is not None else -1
        new_row = made.alone(new)
        delta = made.difference([(p.post, p.base) for p in pairs])
        triple = Triple(number, delta, new_row, base)
        if known is not None and known != new:
            triple = replace(triple, shift=made.difference([(new, known)]))
        triples.append(triple)
    signed, plain = [], [(row, row) for row in range(made.count)]
    for at, one in enumerate(triples):
        if one.shift >= 0:
            signed.append((one.delta, one.shift))
            plain.append((one.base, one.new))
        signed += [(one.delta, two.delta) for two in triples[at + 1 :]]
    signed = list(dict.fromkeys(signed))
    scales = {pair.number: pair.scale for pair in tensor.pairs}
    rows = Vectors(
        made.count,
        np.array(made.terms, np.int64).reshape(-1, 4),
        np.array([*signed, *dict.fromkeys(plain)], np.int64).reshape(-1, 2),
        len(signed),
        np.array([one.delta for one in triples], np.int64),
        np.array([one.new for one in triples], np.int64),
        np.array([scales[one.number] for one in triples], np.float64),
    )
    kind = kind_of(tensor.name, len(tensor.shape))
    segments, inner, by_token = _segments(tensor, kind, config)
    block = _divisor(inner, BLOCK) if segments > 1 else BLOCK
    step = max(1, LENGTH // (inner if by_token else block)) * (inner if by_token else block)
    return Subject(
        tensor.name,
        kind,
        layer_of(tensor.name),
        stack_of(tensor.name),
        tensor.shape,
        tensor.elements,
        tuple(made.views),
        tuple(triples),
        rows,
        _rounding(tensor),
        segments,
        inner,
        by_token,
        block,
        step,
    )


class _Vectors:
    """Numbers the operands, and the rows that are made of them; each once."""

    def __init__(self) -> None:
        self.views: list[View] = []
        self.terms: list[tuple[int, int, int, int]] = []
        self.count = 0
        self._rows: dict[Any, int] = {}

    def alone(self, view: View) -> int:
        """The row that is an operand."""
        return self._row(view, [(self._at(view), NONE)])

    def difference(self, pairs: Sequence[tuple[View, View]]) -> int:
        """The row that is a sum of differences."""
        single = len(pairs) == 1
        terms = []
        for post, base in pairs:
            plus = self._at(post)
            minus = NONE if isinstance(base, Zeros) else self._at(base)
            if single and base in self._rows:  # which is in the cache, and wide
                minus = ROW - self._rows[base]
                plus = ROW - self._rows[post] if post in self._rows else plus
            terms.append((plus, minus))
        return self._row(tuple(pairs), terms)

    def _row(self, key: Any, terms: Sequence[tuple[int, int]]) -> int:
        if key not in self._rows:
            self._rows[key] = self.count
            self.terms += [
                (self.count, plus, minus, int(at == 0)) for at, (plus, minus) in enumerate(terms)
            ]
            self.count += 1
        return self._rows[key]

    def _at(self, view: View) -> int:
        if view not in self.views:
            self.views.append(view)
        return self.views.index(view)


def _is_base(view: View) -> bool:
    """Whether an operand is a base, and not half of a Δ that is stored as such."""
    return not any(isinstance(leaf, (Zeros, Difference)) for leaf in leaves(view))


def _shared(new: View, base: View) -> View:
    """The new base's numbers, with zeros in the rows of tokens that base lacks."""
    if not isinstance(base, Rows) or base.rows is None:
        return new
    rows = np.frombuffer(base.rows, np.int32)
    absent = rows == ABSENT
    if not absent.any():
        return new
    there = np.where(absent, ABSENT, np.arange(len(rows), dtype=np.int32)).astype(np.int32)
    return Rows(new.name, new.dtype, new.shape, (new,), there.tobytes())


def _segments(tensor: OutputTensor, kind: str, config: Mapping[str, Any]) -> tuple[int, int, bool]:
    """How many segments, elements of one, and whether they are rows of tokens.

    Segments that cannot be cut into blocks of a fair size are not told apart: that would take long.
    """
    one = 1, tensor.elements, False
    if len(tensor.shape) != 2 or not tensor.elements:
        return one
    height, width = tensor.shape
    if kind in ("embedding", "head"):
        fits = width <= LENGTH and height > 1 and _divisor(width, BLOCK) >= LEAST
        return (height, width, True) if fits else one
    size = head_size(config, kind, tensor.shape)
    if size is None:
        return one
    inner, heads = (size, width // size) if kind == "o" else (size * width, height // size)
    return (heads, inner, False) if _divisor(inner, BLOCK) >= LEAST else one


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to a limit."""
    return next(each for each in range(min(number, most), 0, -1) if number % each == 0)


def _rounding(tensor: OutputTensor) -> Rounding:
    """How the output rounds. FP8 numbers are taken as if none were subnormal."""
    kind = DTYPES[tensor.dtype]
    quantum = _QUANTA.get(tensor.dtype, 0.0)
    least = _LEAST.get(tensor.dtype, 2.0**-126) if quantum else 0.0
    exact = tensor.new.dtype == tensor.dtype
    return Rounding(exact, 53 - kind.digits, least, 1.5 * quantum * 2.0**52)


# -- from sums to a tally --------------------------------------------------------------------------


def _rows_of_tokens(one: Subject, first: int, sums: Sums) -> Receipt:
    """Reduce the sums of rows to the leading rows, and to one sum."""
    values = sums.high + sums.low
    leading = []
    norms = np.zeros((len(one.triples), BUCKETS), np.int64)
    for at, triple in enumerate(one.triples):
        squares = values[:, one.pair(triple.delta, triple.delta)]
        reference = triple.base if triple.base >= 0 else triple.new
        bases = values[:, one.pair(reference, reference)]
        order = np.argsort(-squares, kind="stable")[:LEADING]
        leading.append(
            tuple(
                Row(first + row, math.sqrt(squares[row]), math.sqrt(bases[row]))
                for row in order.tolist()
                if squares[row] > 0
            )
        )
        with np.errstate(over="ignore"):
            places = np.sqrt(squares).astype(np.float32).view(np.uint32) >> 19
        norms[at] = np.bincount(places, minlength=BUCKETS)[:BUCKETS]
    total = sums._replace(high=_added([sums.high]), low=_added([sums.low]))
    return Receipt(total, tuple(leading), norms)


def _added(parts: Sequence[Array]) -> Array:
    """The sum over parts and their rows, each rounded once: (1, M)."""
    columns = np.concatenate(parts).T
    return np.array([[_sum(column) for column in columns]])


def _sum(values: Array) -> float:
    try:
        return math.fsum(values.tolist())
    except (OverflowError, ValueError):  # infinite on the way, or infinities of both signs
        return math.nan


def _measured(one: Subject, receipts: Sequence[Receipt], deltas: int) -> Measured:
    """The tally of a tensor from the receipts of all its tasks."""
    found = [receipt.sums for receipt in receipts]
    high, low = np.stack([s.high for s in found]), np.stack([s.low for s in found])
    both = np.concatenate((high, low))
    sums = np.array(
        [[_sum(both[:, s, m]) for m in range(both.shape[2])] for s in range(both.shape[1])]
    )
    whole = np.array([_sum(column) for column in both.reshape(-1, both.shape[2]).T])
    fourth = np.concatenate([s.fourth for s in found])
    tally = Tally.empty(deltas)
    tally.broken[:] = sum(int(s.broken[0]) for s in found)
    for at, triple in enumerate(one.triples):
        n = triple.number

        def square(row: int) -> float:
            return float(whole[one.pair(row, row)])

        tally.tensors[n], tally.elements[n] = 1, one.elements
        tally.delta[n], tally.new[n] = square(triple.delta), square(triple.new)
        tally.base[n] = square(triple.base if triple.base >= 0 else triple.new)
        tally.fourth[n] = _sum(fourth[:, at])
        tally.largest[n] = max(np.int64(s.top[at]).view(np.float64) for s in found)
        tally.zero[n] = sum(int(s.zero[at]) for s in found)
        tally.lost[n] = sum(int(s.lost[at]) for s in found)
        tally.histogram[n] = sum(s.histogram[at].astype(np.int64) for s in found)
        if triple.base >= 0:
            same = triple.shift < 0  # the new base is base
            tally.shifted[n], tally.moved[n] = one.elements, tally.delta[n]
            tally.kept_base[n], tally.kept_new[n] = tally.base[n], tally.new[n]
            tally.kept[n] = tally.base[n] if same else whole[one.pair(triple.base, triple.new)]
            if not same:
                tally.shift[n] = square(triple.shift)
                tally.along[n] = whole[one.pair(triple.delta, triple.shift)]
                sign = one.pair(triple.delta, triple.shift)
                tally.agree[n] = sum(int(s.same[sign]) for s in found)
                tally.signed[n] = sum(int(s.both[sign]) for s in found)
        for other in one.triples[at + 1 :]:
            cross = whole[one.pair(triple.delta, other.delta)]
            sign = one.pair(triple.delta, other.delta)
            for i, j in ((n, other.number), (other.number, n)):
                tally.cross[i, j] = cross
                tally.cross_agree[i, j] = sum(int(s.same[sign]) for s in found)
                tally.cross_signed[i, j] = sum(int(s.both[sign]) for s in found)
    heads = _heads(one, sums) if one.segments > 1 and not one.by_token else {}
    return Measured(one, tally, heads, *_leading(one, receipts))


def _heads(one: Subject, sums: Array) -> dict[int, tuple[Head, ...]]:
    found = {}
    for triple in one.triples:
        reference = triple.base if triple.base >= 0 else triple.new
        delta = sums[:, one.pair(triple.delta, triple.delta)]
        base = sums[:, one.pair(reference, reference)]
        cosines: list[float | None] = [None] * one.segments
        if triple.shift >= 0:
            along = sums[:, one.pair(triple.delta, triple.shift)]
            shift = sums[:, one.pair(triple.shift, triple.shift)]
            cosines = [
                float(a / math.sqrt(d * s)) if d > 0 and s > 0 else None
                for a, d, s in zip(along, delta, shift, strict=True)
            ]
        found[triple.number] = tuple(
            Head(math.sqrt(d), math.sqrt(d / b) if b > 0 else math.nan, cosine)
            for d, b, cosine in zip(delta.tolist(), base.tolist(), cosines, strict=True)
        )
    return found


def _leading(
    one: Subject, receipts: Sequence[Receipt]
) -> tuple[dict[int, tuple[Row, ...]], dict[int, float]]:
    """The rows of tokens that changed most, and the median of the rows that changed."""
    if not one.by_token:
        return {}, {}
    leading, median = {}, {}
    for at, triple in enumerate(one.triples):
        rows = [row for receipt in receipts for row in receipt.leading[at]]
        rows.sort(key=lambda row: (-row.norm, row.number))
        leading[triple.number] = tuple(rows[:LEADING])
        tally = Tally.empty(1)
        tally.histogram[0] = sum(r.norms[at] for r in receipts if r.norms is not None)
        median[triple.number] = tally.quantile(0, 0.5)
    return leading, median
