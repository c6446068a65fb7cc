"""Progress of commands: for people as `paramdelta.progress` shows it, or as events."""

import time

from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import is_quiet
from paramdelta.engine.job import Progress
from paramdelta.progress import Reporter, progress_bar

EVENT_EVERY = 0.5  # seconds between two events


class Events(Reporter):
    """An event a few times a second."""

    last = 0.0

    def update(self, now: Progress, left: float | None) -> None:
        """Print at most every `EVENT_EVERY` seconds, and the last one."""
        moment = time.monotonic()
        if moment - self.last >= EVENT_EVERY or now.done == now.total:
            self.last = moment
            emit(
                "progress",
                done=now.done,
                total=now.total,
                bytes_moved=now.moved,
                bytes_resumed=now.resumed,
                seconds_left=left,
                stage=now.stage or None,
            )


class Silent(Reporter):
    """Nothing."""

    def update(self, now: Progress, left: float | None) -> None:
        """Show nothing."""


def reporter(verb: str, as_json: bool) -> Reporter:
    """The reporter for where the output goes; a context manager."""
    if as_json:
        return Events(verb)
    return Silent(verb) if is_quiet() else progress_bar(verb)
