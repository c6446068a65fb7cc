"""Progress for people: a live bar on a terminal or in a notebook, a line now and then elsewhere."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from paramdelta.engine.job import Progress
from paramdelta.text import line
from paramdelta.units import show_duration, show_size

LINE_EVERY = 5.0  # seconds between two lines where there is no terminal
DRAW_EVERY = 0.1  # seconds between two pictures of a bar
LEFT_AFTER = 1.0  # seconds of work before the time left is estimated
BAR = 24  # columns


def progress_bar(verb: str = "mixing", stream: TextIO | None = None) -> "Reporter":
    """Progress for `mix`, `sweep`, `extract`, `extract_adapter`, `verify` and `check`.

    Use it as a context manager, and pass it as ``progress``:

    >>> with progress_bar("mixing") as bar:  # doctest: +SKIP
    ...     mix(recipe, "out", progress=bar)

    ``verb``: what is being done. ``stream``: by default standard error, and standard output in a
    notebook. On a terminal and in a notebook it is one live line; elsewhere a line every 5 s.
    """
    notebook = "ipykernel" in sys.modules
    chosen = stream or (sys.stdout if notebook else sys.stderr)
    live = notebook if stream is None and notebook else _is_live(chosen)
    return Bar(verb, chosen) if live else Lines(verb, chosen)


def _is_live(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


class Reporter:
    """Shows how much is done. Call it with `Progress`, or with bytes done and bytes in all."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.began = time.monotonic()
        self._first: tuple[float, int] | None = None  # when work was first seen, and how much

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, now: Progress | int, total: int = 0) -> None:
        """Show that something is done: progress of an engine, or bytes of a total."""
        if isinstance(now, Progress):
            self.mix(now)
        else:
            self.check(now, total)

    def mix(self, now: Progress) -> None:
        """Progress of an engine."""
        self.update(now, self._left(now))

    def check(self, done: int, total: int) -> None:
        """Progress of a check, in bytes."""
        self.mix(Progress(done, total, 0, 0))

    def update(self, now: Progress, left: float | None) -> None:
        """Show progress. ``left``: seconds, or None if they are not known yet."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what is only live."""

    def text(self, now: Progress, left: float | None) -> str:
        """The progress in words."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        parts = [now.stage or f"{show_size(now.done)} of {show_size(now.total)}"]
        if not now.stage and now.done <= now.resumed and _is_compiling():
            parts = ["compiling kernels for this machine"]
        elif now.moved and not now.stage:
            parts.append(f"{show_size(now.moved / seconds)}/s read and written")
        if left is not None:
            parts.append(f"{show_duration(left)} left")
        return ", ".join(parts)

    def _left(self, now: Progress) -> float | None:
        """Seconds left, from the pace since the first task was done: compiling is not counted."""
        if now.stage or now.done <= now.resumed or not now.total:
            return None
        moment = time.monotonic()
        if self._first is None or self._first[1] > now.done:
            self._first = moment, now.done
        began, before = self._first
        if moment - began < LEFT_AFTER or now.done <= before:
            return None
        return (now.total - now.done) * (moment - began) / (now.done - before)


class Lines(Reporter):
    """A plain line every few seconds."""

    def __init__(self, verb: str, stream: TextIO | None) -> None:
        super().__init__(verb)
        self._stream = stream
        self._last = self.began

    def update(self, now: Progress, left: float | None) -> None:
        """Print at the first call after every `LINE_EVERY` seconds."""
        moment = time.monotonic()
        if moment - self._last >= LINE_EVERY and self._stream is not None:
            self._last = moment
            percent = 100 * now.done // max(now.total, 1)
            with contextlib.suppress(OSError):  # the reader of a pipe has gone; the work goes on
                text = line(f"{self.verb}: {percent} %, {self.text(now, left)}")
                self._stream.write(text + "\n")
                self._stream.flush()


class Bar(Reporter):
    """One live line, drawn again and again. Others write between `paused`."""

    def __init__(self, verb: str, stream: TextIO) -> None:
        super().__init__(verb)
        self._stream = stream
        self._drawn = 0  # columns
        self._last = 0.0
        self._text = ""
        self._blocks = _can_encode("━╸", stream)

    def __enter__(self) -> "Bar":
        global _live
        _live = self
        return self

    def close(self) -> None:
        """Remove the bar."""
        global _live
        _live = None
        self.erase()
        self._text = ""

    def update(self, now: Progress, left: float | None) -> None:
        """Draw the bar, at most every `DRAW_EVERY` seconds."""
        moment = time.monotonic()
        if moment - self._last < DRAW_EVERY:
            return
        self._last = moment
        share = min(now.done / now.total, 1.0) if now.total > 0 else 0.0
        percent = f"{100 * share:3.0f} %"
        self._text = f"{self.verb} {self._bar(share)} {percent}  {line(self.text(now, left))}"
        self.draw()

    def draw(self) -> None:
        """Draw the last picture again."""
        room = shutil.get_terminal_size().columns - 1  # in the last column some terminals wrap
        text = self._text[:room]
        if text:
            self._put("\r" + text + " " * (self._drawn - len(text)))
            self._drawn = len(text)

    def erase(self) -> None:
        """Leave an empty line and the cursor at its start."""
        if self._drawn:
            room = shutil.get_terminal_size().columns - 1
            self._put("\r" + " " * min(self._drawn, room) + "\r")
            self._drawn = 0

    def _bar(self, share: float) -> str:
        done = round(share * BAR)
        if not self._blocks:
            return "#" * done + "." * (BAR - done)
        return "━" * done + ("╺" if done < BAR else "") + "─" * (BAR - done - 1)

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal has gone; the work goes on
            self._stream.write(text)
            self._stream.flush()


_live: Bar | None = None


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Remove the live bar while something else is written, if there is one."""
    bar = _live
    if bar is not None:
        bar.erase()
    try:
        yield
    finally:
        if bar is not None:
            bar.draw()


def _is_compiling() -> bool:
    """Whether numba is at work at this moment, which it is once for each kernel and machine."""
    module = sys.modules.get("numba.core.compiler_lock")
    return module is not None and bool(module.global_compiler_lock.is_locked())


def _can_encode(text: str, stream: TextIO) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
