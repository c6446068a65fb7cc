"""The engine on one machine: threads that take tasks from one list, in order."""

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Generic

from paramdelta.engine.job import Job, Progress, Reading, Receipt, Task
from paramdelta.storage.readahead import Run
from paramdelta.storage.reader import Reader

TICK = 0.1  # seconds between two calls of the progress function
COMMIT_SECONDS = 2.0  # commit receipts at the latest after this time …
COMMIT_COST = 256_000_000  # … or this cost: what a kill can lose


def run(
    job: Job[Task, Receipt],
    reader: Reader,
    *,
    workers: int,
    writers: Sequence[Any] = (),
    skip: Callable[[Task], bool] | None = None,
    commit: Callable[[list[Receipt]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    commit_seconds: float = COMMIT_SECONDS,
) -> None:
    """Run every task of a job, except those that ``skip`` names: an earlier run did them.

    ``commit`` makes the work of some receipts durable; it is called in a separate thread, every
    ``commit_seconds`` and at the end, also when the run fails.

    The first error of any worker stops all of them and is raised. Ctrl-C raises KeyboardInterrupt
    after every worker has finished its task.
    """
    committer = _Committer(commit, commit_seconds) if commit is not None else None
    _Run(job, reader, workers, writers, skip, committer, progress or (lambda _: None)).run()


class _Run(Generic[Task, Receipt]):
    """The state that the threads of one run share."""

    def __init__(
        self,
        job: Job[Task, Receipt],
        reader: Reader,
        workers: int,
        writers: Sequence[Any],
        skip: Callable[[Task], bool] | None,
        committer: "_Committer[Receipt] | None",
        progress: Callable[[Progress], None],
    ) -> None:
        self.job, self.reader, self.writers, self.progress = job, reader, writers, progress
        self.before = reader.count
        self.changed = threading.Condition()
        self.stopping = False
        self.errors: list[BaseException] = []
        self.receipts: dict[int, Receipt] = {}
        self.tasks = job.tasks()
        self.total = self.done = 0
        self.pending = array("Q")  # numbers of the tasks to run: there may be a million
        self.costs = array("Q")  # of the tasks to run
        for number, task in enumerate(self.tasks):
            cost = job.cost(task)
            self.total += cost
            if skip is not None and skip(task):
                self.done += cost
            else:
                self.pending.append(number)
                self.costs.append(cost)
        self.resumed = self.done
        if isinstance(job, Reading):
            reader.follow(lambda: self._runs(job))
        self.prompt = job.lead is not None  # else receipts can wait for a tick: a switch between
        # threads costs more than to collect one
        self.lead = job.lead * workers if job.lead is not None else len(self.pending)
        self.taken = self.collected = 0
        self.shown = 0.0
        self.running = workers
        self.committer = committer
        self.threads = [
            threading.Thread(target=self._work, name=f"paramdelta-{number}", daemon=True)
            for number in range(workers)
        ]

    def _runs(self, job: Reading[Task]) -> Iterator[Run]:
        """What the tasks will read."""
        for number in self.pending:
            yield from job.reads(self.tasks[number])

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        try:
            try:
                for number, receipt in self._receipts():
                    self._collect(number, receipt)
            finally:
                with self.changed:
                    self.stopping = True
                    self.changed.notify_all()
                for thread in self.threads:
                    thread.join()
            for _, receipt in sorted(self.receipts.items()):  # finished after an error or Ctrl-C
                if self.committer is not None:
                    self.committer.add(receipt, 0)
        except BaseException:
            self._commit_rest(failed=True)
            raise
        self._commit_rest(failed=bool(self.errors))
        if self.errors:
            raise self.errors[0]
        self.progress(self._state())

    def _receipts(self) -> Iterator[tuple[int, Receipt]]:
        """Receipts in the order of the tasks, as they come; progress meanwhile."""
        while self.collected < len(self.pending):
            if self.collected in self.receipts:
                yield self.collected, self.receipts.pop(self.collected)
            else:
                with self.changed:
                    over = bool(self.errors) or not self.running
                    if not over and self.collected not in self.receipts:
                        self.changed.wait(TICK)
                if over and self.collected not in self.receipts:
                    return
            self._tick()

    def _collect(self, number: int, receipt: Receipt) -> None:
        task = self.tasks[self.pending[number]]
        self.job.collect(task, receipt)
        cost = self.costs[number]
        with self.changed:
            self.collected += 1
            self.done += cost
            if self.prompt:
                self.changed.notify_all()
        if self.committer is not None:
            self.committer.add(receipt, cost)
            if self.committer.error is not None:
                raise self.committer.error

    def _tick(self) -> None:
        now = monotonic()
        if now - self.shown >= TICK:
            self.shown = now
            self.progress(self._state())

    def _state(self) -> Progress:
        fresh = self.done - self.resumed
        moved = self.reader.count - self.before + (fresh if self.writers else 0)
        return Progress(self.done, self.total, self.resumed, moved)

    def _next(self) -> int | None:
        with self.changed:
            while not self.stopping and not self.errors:
                if self.taken >= len(self.pending):
                    return None
                if self.taken < self.collected + self.lead:
                    self.taken += 1
                    return self.taken - 1
                self.changed.wait(TICK)
        return None

    def _work(self) -> None:
        try:
            worker = self.job.worker(self.reader, self.writers)
            while (number := self._next()) is not None:
                receipt = worker(self.tasks[self.pending[number]])
                with self.changed:
                    self.receipts[number] = receipt
                    if self.prompt and number == self.collected:
                        self.changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            with self.changed:
                self.errors.append(error)
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def _commit_rest(self, failed: bool) -> None:
        if self.committer is not None:
            self.committer.stop()
            if self.committer.error is not None and not failed:
                raise self.committer.error


class _Committer(Generic[Receipt]):
    """Commits receipts behind the workers, so that they never wait for the disk."""

    def __init__(self, commit: Callable[[list[Receipt]], None], seconds: float) -> None:
        self.error: BaseException | None = None
        self._commit = commit
        self._seconds = seconds
        self._receipts: list[Receipt] = []
        self._cost = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="paramdelta-commit", daemon=True)
        self._thread.start()

    def add(self, receipt: Receipt, cost: int) -> None:
        """Take a receipt."""
        with self._changed:
            self._receipts.append(receipt)
            self._cost += cost
            if self._cost >= COMMIT_COST:
                self._changed.notify()

    def stop(self) -> None:
        """Commit the rest and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._stopping:
                    self._changed.wait(self._seconds)
                receipts, self._receipts, self._cost = self._receipts, [], 0
                last = self._stopping
            if receipts and self.error is None:
                try:
                    self._commit(receipts)
                except BaseException as error:  # noqa: BLE001 - `run` raises it
                    self.error = error
            if last:
                return
