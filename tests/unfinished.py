"""Unfinished runs."""

import pytest

from paramdelta.jobs.mix import Worker


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Make a mix or sweep raise KeyboardInterrupt after so many tasks, as Ctrl-C would."""
    call = Worker.__call__
    count = iter(range(10**9))

    def stopping(self, task):
        if next(count) >= after:
            raise KeyboardInterrupt
        return call(self, task)

    monkeypatch.setattr(Worker, "__call__", stopping)
