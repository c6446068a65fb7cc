"""Writes the outputs of a sweep into sinks: measuring pass, mix, digests, small files."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from paramdelta.engine import threads
from paramdelta.engine.job import Engine, Progress
from paramdelta.engine.memory import Budget
from paramdelta.errors import MisfitError
from paramdelta.jobs.measure import MeasureJob
from paramdelta.jobs.mix import MixJob, Receipt, Task
from paramdelta.output.layout import Layout
from paramdelta.output.shipping import ShippingSink
from paramdelta.output.sink import Sink
from paramdelta.planning.sweep import Sweep
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.reader import Reader

SMALL = 64_000_000  # bytes: a file that small is read in whole for its digest …
SHARE = 1 / 8  # … and of a larger one at most this share, beside what the mix reads


@dataclass(frozen=True)
class Written:
    """What a run did. ``read`` and ``written``: bytes of weights. ``resumed``: bytes of one output
    that an earlier run had made. ``not_finite``: by output; see `MixJob.not_finite`.
    """

    read: int
    written: int
    resumed: int
    not_finite: tuple[dict[tuple[str, str], int], ...]


def write_outputs(
    sweep: Sweep,
    layout: Layout,
    sinks: Sequence[Sink],
    budget: Budget,
    small_files: Callable[[int, Mapping[Blob, str | None]], Mapping[str, bytes]],
    progress: Callable[[Progress], None] | None = None,
    engine: Engine = threads.run,
    shards: Collection[int] | None = None,
) -> Written:
    """Write every output of a sweep, the first one whole before the next.

    ``small_files``: gives the small files of an output, by its number and the content digests of
    the sources; called when all weights are durable. ``shards``: those whose tensors are mixed; the
    sinks have the others, or refuse. None for all.

    Raises:
        MisfitError: a source changed while it was read, or a sink refused.
        CheckpointError, StorageError: reading or writing failed; the same call resumes.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.abort)
        digests, written = _write_weights(sweep, layout, sinks, budget, progress, engine, shards)
        known = _source_digests(sweep, digests)
        for number, sink in enumerate(sinks):
            for name, data in small_files(number, known).items():
                sink.put(name, data)
            sink.finish()
    return written


def write_shards(
    sweep: Sweep,
    layout: Layout,
    sink: ShippingSink,
    budget: Budget,
    shards: Collection[int],
    progress: Callable[[Progress], None] | None = None,
    engine: Engine = threads.run,
) -> Written:
    """Make some shards of an output, and leave it unfinished; raises as `write_outputs`."""
    with ExitStack() as stack:
        stack.callback(sink.abort)
        _, written = _write_weights(sweep, layout, [sink], budget, progress, engine, shards)
        sink.drain()
        with Reader() as reader:
            _check_sources(sweep, reader)
    return written


def _write_weights(
    sweep: Sweep,
    layout: Layout,
    sinks: Sequence[Sink],
    budget: Budget,
    progress: Callable[[Progress], None] | None,
    engine: Engine,
    shards: Collection[int] | None,
) -> tuple[Digests, Written]:
    """Bring the weights into the sinks; the digests of what was read, and what was done."""
    found = [sink.begin(layout) for sink in sinks]
    digests = Digests(found[0].leaves)
    job = MixJob.of(sweep, budget.buffer)
    if shards is not None:
        chosen = [layout.shards[number] for number in shards]
        job = job.holding(n for shard in chosen for n in range(shard.first, shard.last))

    def skip(task: Task) -> bool:
        ranges = job.ranges(task)
        return all(run in durable.ranges for durable in found for run in ranges)

    job, looked = measured(job, skip, budget, progress, layout.nbytes, engine)
    written = resumed = 0

    def commit(receipts: list[Receipt]) -> None:
        nonlocal written
        ranges = [run for receipt in receipts for run in receipt.ranges]
        written += sum(receipt.size for receipt in receipts)
        bad: list[Counter[tuple[str, str]]] = [Counter() for _ in sinks]
        for receipt in receipts:
            for number, tensor, where, count in receipt.not_finite:
                bad[number][tensor, where] += count
        leaves = digests.news()
        for number, sink in enumerate(sinks):
            sink.commit(ranges, leaves if number == 0 else None, bad[number])

    def watch(now: Progress) -> None:
        nonlocal resumed
        resumed = now.resumed
        if progress is not None:
            progress(replace(now, moved=looked + now.moved))

    with Reader(once=True, ahead=True, digests=digests) as reader:
        writers = [sink.writer() for sink in sinks]
        engine(
            job,
            reader,
            workers=budget.workers,
            writers=writers,
            skip=skip if any(any(durable.ranges) for durable in found) else None,
            commit=commit,
            progress=watch,
        )
        read = reader.count
    reports = tuple(
        {**durable.not_finite, **job.not_finite(number)} for number, durable in enumerate(found)
    )
    return digests, Written(looked + read, written, resumed, reports)


def measured(
    job: MixJob,
    skip: Callable[[Task], bool],
    budget: Budget,
    progress: Callable[[Progress], None] | None = None,
    total: int = 0,
    engine: Engine = threads.run,
) -> tuple[MixJob, int]:
    """The job with the thresholds that its tensors need, and the bytes read for them."""
    pending: set[int] = set()
    if any(pair.needs_threshold for tensors in job.members for t in tensors for pair in t.pairs):
        pending = {task.tensor for task in job.tasks() if not skip(task)}
    measure = MeasureJob.of(job.members, pending.__contains__, budget.buffer)
    if not measure.wanted:
        return job, 0
    with Reader(ahead=True) as reader:

        def watch(now: Progress) -> None:
            if progress is not None:
                stage = f"{now.done} of {now.total} thresholds"
                progress(Progress(0, total, 0, reader.count, stage))

        engine(measure, reader, workers=budget.workers, progress=watch)
        members = tuple(measure.applied(tensors) for tensors in job.members)
        return replace(job, members=members), reader.count


def _source_digests(sweep: Sweep, digests: Digests) -> dict[Blob, str | None]:
    """The content digest of every source file; None where too little of it was read.

    Raises:
        MisfitError: a file is no longer the one that was planned with.
    """
    found: dict[Blob, str | None] = {}
    with Reader() as reader:
        _check_sources(sweep, reader)
        for file in sweep.plans[0].files:
            blob = file.blob
            digest = digests.adopt(blob.url, blob.size)
            if digest.unread > max(SMALL, blob.size * SHARE):
                found[blob] = None
                continue
            for offset, length in digest.missing:
                data = bytearray(length)
                reader.read(blob, offset, memoryview(data))
                digest.update(offset, memoryview(data))
            found[blob] = digest.hexdigest()
    digests.news()  # compares with an earlier run
    return found


def _check_sources(sweep: Sweep, reader: Reader) -> None:
    """Raise MisfitError if a file is no longer the one that was planned with."""
    for file in sweep.plans[0].files:
        if file.blob not in reader.list(file.blob.url).values():
            raise MisfitError(
                "a source changed while it was read; the output would be a mixture",
                code="source-changed",
                where=str(file.blob),
                remedy="run it again from the start, with `fresh=True`, when nothing writes to "
                "the source",
            )
