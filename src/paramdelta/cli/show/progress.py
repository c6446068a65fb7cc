"""Progress: a live bar on a terminal, a line now and then elsewhere, or events."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say
from paramdelta.engine.job import Progress
from paramdelta.text import line
from paramdelta.units import show_duration, show_size

if TYPE_CHECKING:
    from paramdelta.evaluation.evaluator import Now

LINE_EVERY = 5.0  # seconds between two lines where there is no terminal
EVENT_EVERY = 0.5  # seconds between two events


class Reporter:
    """Shows how much of something is done. ``verb``: what is being done, for people."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.began = time.monotonic()

    def mix(self, now: Progress) -> None:
        """Progress of an engine."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        fresh = now.done - now.resumed
        left = (now.total - now.done) * seconds / fresh if fresh else None
        self.update(
            now.done,
            now.total,
            (now.stage or f"{show_size(now.done)} of {show_size(now.total)}")
            + f", {now.moved / seconds / 1e9:.2f} GB/s"
            + (f", {show_duration(left)} left" if left is not None else ""),
            {"bytes_moved": now.moved, "bytes_resumed": now.resumed, "seconds_left": left}
            | ({"stage": now.stage} if now.stage else {}),
        )

    def check(self, done: int, total: int) -> None:
        """Progress of a check, in bytes."""
        self.update(done, total, f"{show_size(done)} of {show_size(total)}", {})

    def evaluation(self, now: "Now") -> None:
        """Progress of an evaluation, in models × tasks."""
        left = f", {show_duration(now.left)} left" if now.left is not None else ""
        self.update(
            now.done,
            now.total,
            f"{now.model}, {now.task}{left}",
            {"model": now.model, "task": now.task, "seconds_left": now.left},
        )

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Show that ``done`` of ``total`` is done."""
        raise NotImplementedError


class Lines(Reporter):
    """A plain line every few seconds."""

    last = 0.0

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Print at the first call after every `LINE_EVERY` seconds."""
        now = time.monotonic()
        if now - max(self.last, self.began) >= LINE_EVERY:
            self.last = now
            say(f"{self.verb}: {100 * done // max(total, 1)} %, {text}")


class Events(Reporter):
    """An event a few times a second."""

    last = 0.0

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Print at most every `EVENT_EVERY` seconds, and the last one."""
        now = time.monotonic()
        if now - self.last >= EVENT_EVERY or done == total:
            self.last = now
            emit("progress", done=done, total=total, **facts)


class Bar(Reporter):
    """A live bar on a terminal."""

    def __init__(self, verb: str) -> None:
        super().__init__(verb)
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[text]}", markup=False),
            transient=True,
        )
        self.task = self.bar.add_task(verb, total=None, text="")

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=done, total=total, text=line(text))


@contextmanager
def reporter(verb: str, as_json: bool) -> Iterator[Reporter]:
    """The reporter for where the output goes."""
    if as_json:
        yield Events(verb)
    elif sys.stdout is not None and sys.stdout.isatty():
        bar = Bar(verb)
        with bar.bar:
            yield bar
    else:
        yield Lines(verb)
