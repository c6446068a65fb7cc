"""Threads: every task once, receipts in order, and the first error ends the run."""

import threading
import time
from dataclasses import dataclass, field

import pytest

from paramdelta.engine.threads import run
from paramdelta.errors import StorageError
from paramdelta.storage.reader import Reader


@dataclass
class Squares:
    """A job of ``count`` numbers, each squared. ``broken`` tasks raise ``error``.

    ``taken``: tasks that a worker began. ``collected``: tasks and receipts, as they came.
    """

    count: int
    broken: frozenset = frozenset()
    error: BaseException = field(default_factory=lambda: StorageError("no", code="no"))
    lead: int | None = None
    pause: float = 0.0
    taken: list = field(default_factory=list)
    collected: list = field(default_factory=list)
    workers: int = 0

    def tasks(self):
        """The numbers."""
        return range(self.count)

    def cost(self, task):
        """Each number costs itself."""
        return task

    def worker(self, reader, writers):
        """Squares a number and hands it to the writers."""
        self.workers += 1

        def square(task):
            self.taken.append((task, len(self.collected)))
            if task in self.broken:
                raise self.error
            time.sleep(self.pause * (task % 3))  # later tasks finish first
            for writer in writers:
                writer.append(task)
            return task * task

        return square

    def collect(self, task, receipt):
        """Keep it."""
        self.collected.append((task, receipt))


def started(job, **options):
    """A run with two workers unless told otherwise."""
    options.setdefault("workers", 2)
    run(job, Reader(), **options)


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("lead", [None, 1, 2])
def test_every_task_once_and_in_order(workers, lead):
    """Receipts are collected in the order of the tasks, whoever is first."""
    job = Squares(100, lead=lead, pause=0.001)
    started(job, workers=workers)
    assert job.collected == [(n, n * n) for n in range(100)]
    assert sorted(task for task, _ in job.taken) == list(range(100))
    assert job.workers == workers


def test_skipped_tasks_are_not_run():
    """They count as done by an earlier run and reach neither the job nor a commit."""
    job, receipts, calls = Squares(10), [], []
    started(job, skip=lambda task: task % 2 == 0, commit=receipts.extend, progress=calls.append)
    assert [task for task, _ in job.collected] == [1, 3, 5, 7, 9]
    assert receipts == [1, 9, 25, 49, 81]
    assert calls[-1].resumed == 20
    assert calls[-1].done == calls[-1].total == 45


def test_nothing_to_do():
    """No task at all: progress says so, and nothing is committed."""
    for job in (Squares(0), Squares(5)):
        calls, commits = [], []
        started(job, skip=lambda _: True, commit=commits.append, progress=calls.append)
        assert calls[-1].done == calls[-1].total == calls[-1].resumed == sum(range(job.count))
        assert not commits


def test_progress_counts_what_is_written():
    """Costs of fresh tasks count as moved if there is a writer, and not otherwise."""
    for writers, moved in (([[]], 45 - 20), ([], 0)):
        calls = []
        started(
            Squares(10),
            skip=lambda task: task % 2 == 0,
            writers=writers,
            progress=calls.append,
        )
        assert calls[-1].moved == moved


def test_no_task_is_started_far_ahead():
    """With a lead, no task begins before all but so many per worker are collected."""
    job = Squares(60, lead=2, pause=0.002)
    started(job, workers=3)
    assert all(task < collected + 2 * 3 for task, collected in job.taken)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_error_stops_all(workers):
    """It is raised, no thread stays, and what was finished before is committed."""
    job, receipts = Squares(1000, frozenset({7}), pause=0.001), []
    before = threading.active_count()
    with pytest.raises(StorageError, match="no"):
        started(job, workers=workers, commit=receipts.extend)
    assert threading.active_count() == before
    collected = [task for task, _ in job.collected]
    assert collected == list(range(7 if workers == 1 else len(collected)))
    assert 7 not in collected
    assert len(job.taken) < 50
    finished = {task * task for task, _ in job.taken if task != 7}
    assert set(receipts) == finished
    assert len(receipts) == len(finished)


def test_an_error_before_the_first_task():
    """A worker that cannot be made ends the run."""
    job = Squares(10)
    job.worker = lambda reader, writers: 1 / 0
    with pytest.raises(ZeroDivisionError):
        started(job)


def test_an_error_on_the_driver():
    """What `collect` raises ends the run; finished receipts are committed."""
    job, receipts = Squares(100), []

    def collect(task, receipt):
        if task == 3:
            raise StorageError("no", code="no")

    job.collect = collect
    before = threading.active_count()
    with pytest.raises(StorageError, match="no"):
        started(job, commit=receipts.extend)
    assert threading.active_count() == before
    assert {0, 1, 4} <= set(receipts)


def test_interrupted():
    """Ctrl-C in the main thread or on a worker: raised, no thread stays, receipts are committed."""

    def stop(_):
        raise KeyboardInterrupt

    before = threading.active_count()
    for job, progress in (
        (Squares(500, pause=0.001), stop),
        (Squares(500, frozenset({20}), KeyboardInterrupt()), None),
    ):
        receipts = []
        with pytest.raises(KeyboardInterrupt):
            started(job, commit=receipts.extend, progress=progress)
        assert threading.active_count() == before
        assert len(job.taken) < 500
        assert set(receipts) >= {receipt for task, receipt in job.collected}


def test_every_receipt_is_committed_once():
    """In several calls or one, in the order of the tasks."""
    receipts = []
    started(Squares(300), workers=4, commit=receipts.extend)
    assert receipts == [n * n for n in range(300)]


def test_a_commit_that_fails_ends_the_run():
    """Whether it fails meanwhile or at the end, its error is raised; no more is committed."""
    calls = []

    def commit(receipts):
        calls.append(receipts)
        raise StorageError("the disk is full", code="disk-full")

    with pytest.raises(StorageError, match="full"):
        started(Squares(10), commit=commit)
    job = Squares(2000, pause=0.001)
    job.cost = lambda task: 1 << 30  # commits follow each other closely
    with pytest.raises(StorageError, match="full"):
        started(job, commit=commit)
    assert len(job.taken) < 2000
    assert len(calls) == 2


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_fewer_threads_than_asked_for(monkeypatch, allowed):
    """Where the system allows only some threads, those do all the work; none is an error."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    job = Squares(20)
    if not allowed:
        with pytest.raises(StorageError, match="no more threads"):
            run(job, Reader(), workers=4)
        return
    run(job, Reader(), workers=4)
    assert len(job.collected) == 20
