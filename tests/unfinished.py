"""Unfinished runs: how they come about, and what they leave beside the output."""

from pathlib import Path

import pytest

from paramdelta.jobs.mix import Worker


def staging_of(out: Path) -> Path:
    """The folder in which an output is made."""
    return out.with_name(f".{out.name}.paramdelta-partial")


def journal_of(out: Path) -> Path:
    """The journal of an unfinished run."""
    return out.with_name(f".{out.name}.paramdelta-journal")


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Make a mix or sweep raise KeyboardInterrupt after so many tasks, as Ctrl-C would."""
    call = Worker.__call__
    count = iter(range(10**9))

    def stopping(self, task):
        if next(count) >= after:
            raise KeyboardInterrupt
        return call(self, task)

    monkeypatch.setattr(Worker, "__call__", stopping)
