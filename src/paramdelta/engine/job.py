"""Jobs: work that is cut into independent tasks and run by any engine.

An engine knows nothing of tensors or files. It takes the tasks in order, gives them to workers,
hands each receipt back to the job, in the order of the tasks, and reports progress. `threads` is
one engine; another is one more file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from paramdelta.storage.readahead import Run
from paramdelta.storage.reader import Reader

Task = TypeVar("Task")
Receipt = TypeVar("Receipt")


class Job(Protocol[Task, Receipt]):
    """Work cut into tasks. Picklable; a task and its receipt are too.

    A task is a pure function of the job: the same bytes from any worker, in any order.
    """

    @property
    def lead(self) -> int | None:
        """How many tasks per worker may be started before the oldest one is collected; None for
        any number. Set it where receipts are large.
        """

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order in which their receipts are collected."""

    def cost(self, task: Task) -> int:
        """What the task adds to the progress."""

    def worker(self, reader: Reader, writers: Sequence[Any]) -> Callable[[Task], Receipt]:
        """A worker with its own buffers. It runs one task at a time.

        ``writers``: what the sinks of the run gave; see `output.sink.Writer`.
        """

    def collect(self, task: Task, receipt: Receipt) -> None:
        """Take a task's receipt. Called in one thread, in the order of the tasks."""


@runtime_checkable
class Reading(Protocol[Task]):  # type: ignore[misc]
    """A job that says what its tasks read, so that slow places are read ahead exactly."""

    def reads(self, task: Task) -> Iterable[Run]:
        """Bytes of blobs that a task will read, in order."""


class Engine(Protocol):
    """A way to run a job; `threads.run` is one."""

    def __call__(
        self,
        job: Job[Task, Receipt],
        reader: Reader,
        *,
        workers: int,
        writers: Sequence[Any] = (),
        skip: Callable[[Task], bool] | None = None,
        commit: Callable[[list[Receipt]], None] | None = None,
        progress: "Callable[[Progress], None] | None" = None,
    ) -> None:
        """Run every task that ``skip`` does not name; see `threads.run`."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    ``done`` and ``total``: the cost of tasks. ``resumed``: what of ``done`` an earlier run did.
    ``moved``: bytes read and written by this run. ``stage``: what happens before the first task
    is done, for people.
    """

    done: int
    total: int
    resumed: int
    moved: int
    stage: str = ""
