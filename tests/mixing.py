"""Mixes in memory, for tests: the job of a plan as the engine runs it, without files."""

from paramdelta.engine import threads
from paramdelta.engine.memory import Budget
from paramdelta.jobs.mix import MixJob
from paramdelta.jobs.outputs import measured
from paramdelta.output.layout import Layout, make_layout
from paramdelta.output.memory import MemorySink
from paramdelta.planning.plan import Plan
from paramdelta.planning.sweep import sweep_of_one
from paramdelta.storage.reader import Reader


def layout_of(made: Plan) -> Layout:
    """The tensors of a plan in one file."""
    streams = [stored.stream for stored in sweep_of_one(made).stored]
    return make_layout(streams, made.parameters, 1 << 60, components=made.components)


def job_of(made: Plan, buffer: int = 1 << 20) -> MixJob:
    """The job of a plan, with buffers of so many bytes."""
    return MixJob.of(sweep_of_one(made), buffer)


def mixed(
    made: Plan, *, workers: int = 2, buffer: int = 1 << 20, sink=None, skip=None, progress=None
) -> tuple[MemorySink, MixJob]:
    """A sink with the tensors of a mix, and the job that made them.

    ``skip``: which tasks are not run. ``sink``: in place of a new one in memory.
    """
    chosen = Budget(workers, buffer, 0)
    sink = sink or MemorySink()
    sink.begin(layout_of(made))
    job = job_of(made, buffer)
    job, _ = measured(job, skip or (lambda _: False), chosen, progress, made.bytes_to_write)
    with Reader() as reader:
        threads.run(
            job, reader, workers=workers, writers=[sink.writer()], skip=skip, progress=progress
        )
    return sink, job
