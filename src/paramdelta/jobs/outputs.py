"""Writes the outputs of a sweep into sinks: measuring pass, mix, digests, small files."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from paramdelta.engine import threads
from paramdelta.engine.job import Engine, Progress
from paramdelta.engine.memory import Budget
from paramdelta.errors import MisfitError
from paramdelta.jobs.measure import MeasureJob
from paramdelta.jobs.mix import MixJob, Receipt, Task
from paramdelta.output.layout import Layout
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
) -> Written:
    """Write every output of a sweep, the first one whole before the next.

    ``small_files``: gives the small files of an output, by its number and the content digests of
    the sources; called when all weights are durable.

    Raises:
        MisfitError: a source changed while it was read, or a sink refused.
        CheckpointError, StorageError: reading or writing failed; the same call resumes.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    found = []
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.abort)
            found.append(sink.begin(layout))
        digests = Digests(found[0].leaves)
        job = MixJob.of(sweep, budget.buffer)

        def skip(task: Task) -> bool:
            ranges = job.ranges(task)
            return all(run in durable.ranges for durable in found for run in ranges)

        job, looked = measured(job, skip, budget, progress, layout.nbytes, engine)
        written = resumed = 0

        def commit(receipts: list[Receipt]) -> None:
            nonlocal written
            ranges = [run for receipt in receipts for run in receipt.ranges]
            written += sum(receipt.size for receipt in receipts)
            leaves = digests.news()
            for number, sink in enumerate(sinks):
                sink.commit(ranges, leaves if number == 0 else None)

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
        known = _source_digests(sweep, digests)
        for number, sink in enumerate(sinks):
            for name, data in small_files(number, known).items():
                sink.put(name, data)
            sink.finish()
    reports = tuple(job.not_finite(number) for number in range(len(sinks)))
    return Written(looked + read, written, resumed, reports)


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
        for file in sweep.plans[0].files:
            blob = file.blob
            if blob not in reader.list(blob.url).values():
                raise MisfitError(
                    "a source changed while it was read; the output would be a mixture",
                    code="source-changed",
                    where=str(blob),
                    remedy="run it again from the start, with `fresh=True`, when nothing writes to "
                    "the source",
                )
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
