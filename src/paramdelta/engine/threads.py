"""The engine on one machine: a pool of threads that take slices from one list, in order."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from paramdelta.engine.run import Inputs, Report, Sink, Worker
from paramdelta.engine.slices import Budget, Slice, cut
from paramdelta.engine.thresholds import with_thresholds
from paramdelta.planning.plan import Plan
from paramdelta.storage.local import raise_open_file_limit

TICK = 0.1  # seconds between two calls of the progress function


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``done`` and ``total``: output bytes; ``resumed``: those of ``done`` that
    an earlier run made; ``moved``: bytes read and written by this one. ``stage``: what is done
    before the first byte of output, for people.
    """

    done: int
    total: int
    resumed: int
    moved: int
    stage: str = ""


def default_workers() -> int:
    """Threads: enough to keep the disk busy while some compute, no more than pay."""
    return max(4, min(16, os.cpu_count() or 1))


def run(
    plan: Plan,
    sink: Sink,
    budget: Budget,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Make every slice that the sink wants. Returns what the weights turned out to hold.

    The first error of any worker stops all and is raised. Ctrl-C raises KeyboardInterrupt after
    every worker has finished its slice.
    """
    report = Report()
    plan, looked = trimmed(plan, sink.wants, budget, progress)

    def watch(now: Progress) -> None:
        if progress is not None:
            progress(replace(now, moved=looked + now.moved))

    def worker(inputs: Inputs) -> Worker:
        return Worker(plan, budget, inputs, sink, report)

    carry_out(plan, sink.wants, budget, worker, watch)
    return report


def trimmed(
    plan: Plan,
    wants: Callable[[Slice], bool],
    budget: Budget,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Plan, int]:
    """A plan with the thresholds that its sparse tensors need, of those that are still to be made,
    and how many bytes were read for them; raises as `run`.
    """
    if not any(p.sparsity is not None and p.sparsity.trims for t in plan.tensors for p in t.pairs):
        return plan, 0
    raise_open_file_limit()
    inputs = Inputs()

    def say(done: int, total: int) -> None:
        if progress is not None:
            stage = f"{done} of {total} thresholds"
            progress(Progress(0, plan.bytes_to_write, 0, inputs.read, stage))

    wanted = frozenset(piece.tensor for piece in cut(plan, budget.buffer) if wants(piece))
    try:
        return with_thresholds(plan, wanted, budget, inputs, say), inputs.read
    finally:
        inputs.close()


def carry_out(
    plan: Plan,
    wants: Callable[[Slice], bool],
    budget: Budget,
    worker: Callable[[Inputs], Worker],
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Have every wanted slice made, each thread by a worker of its own; raises as `run`."""
    raise_open_file_limit()
    inputs = Inputs()
    pool = _Pool(plan, wants, budget, inputs, worker)
    try:
        pool.run(progress or (lambda _: None))
    finally:
        inputs.close()


class _Pool:
    def __init__(
        self,
        plan: Plan,
        wants: Callable[[Slice], bool],
        budget: Budget,
        inputs: Inputs,
        worker: Callable[[Inputs], Worker],
    ) -> None:
        self.wants = wants
        self.worker = worker
        self.slices = cut(plan, budget.buffer)
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.finished = threading.Event()
        self.errors: list[BaseException] = []
        self.total = plan.bytes_to_write
        self.inputs = inputs
        self.done = self.resumed = 0
        self.running = budget.workers
        self.threads = [
            threading.Thread(
                target=self._work,
                name=f"paramdelta-{i}",
                daemon=True,
            )
            for i in range(budget.workers)
        ]

    def run(self, progress: Callable[[Progress], None]) -> None:
        for thread in self.threads:
            thread.start()
        try:
            while not self.finished.wait(TICK):
                progress(self._state())
        finally:
            self.stop.set()
            for thread in self.threads:
                thread.join()
        if self.errors:
            raise self.errors[0]
        progress(self._state())

    def _state(self) -> Progress:
        with self.lock:
            moved = self.done - self.resumed + self.inputs.read
            return Progress(self.done, self.total, self.resumed, moved)

    def _next(self) -> Slice | None:
        with self.lock:
            for piece in self.slices:
                if self.wants(piece):
                    return piece
                self.done += piece.made
                self.resumed += piece.made
        return None

    def _work(self) -> None:
        try:
            worker = self.worker(self.inputs)
            while not self.stop.is_set() and (piece := self._next()) is not None:
                worker.make(piece)
                with self.lock:
                    self.done += piece.made
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self.errors.append(error)
            self.stop.set()
        finally:
            with self.lock:
                self.running -= 1
                if self.running == 0:
                    self.finished.set()
