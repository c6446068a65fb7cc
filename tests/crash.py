"""Commands that die at a chosen system call: crash tests that do not depend on time.

A process runs a command once, so that everything is imported and compiled, and then forks a child
for each other one. The child counts the calls
that change files (writes, syncs, renames, links, removals, openings for writing), and ends itself
by a signal at the one that it was told; a write it does by half before, and waits while others go
on. So every moment between
two changes of the disk can be tried, however fast the machine is and whatever else it does.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

_SERVER = r"""
import importlib, itertools, json, os, signal, sys, time

count, limit, how = itertools.count(1), 0, 0

def dies():
    number = next(count)
    if number == limit:
        if how == signal.SIGKILL:
            return True
        os.kill(os.getpid(), how)
    return False

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(function):
    def call(*arguments, **options):
        if dies():
            kill()
        return function(*arguments, **options)
    return call

def halved(function):
    def call(descriptor, data, offset):
        if dies():
            function(descriptor, memoryview(data)[: len(data) // 2], offset)
            time.sleep(0.05)  # a disk that stalls: other threads go on
            kill()
        return function(descriptor, data, offset)
    return call

CHANGES = ("fsync", "fdatasync", "posix_fallocate", "ftruncate", "rename", "replace", "link")
CHANGES += ("unlink", "remove", "rmdir", "mkdir")
for name in CHANGES:
    if hasattr(os, name):
        setattr(os, name, counted(getattr(os, name)))
os.pwrite = halved(os.pwrite)

def opened(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and dies():
        kill()

sys.addaudithook(opened)
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background

from paramdelta.cli.app import main

def run(job):
    global count, limit, how
    for place, value in job["settings"].items():
        module, _, name = place.rpartition(".")
        module = importlib.import_module(module)
        assert hasattr(module, name), place
        setattr(module, name, value)
    sys.argv = ["paramdelta", *job["arguments"]]
    count, limit, how = itertools.count(1), job["at"], job["how"]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    return code

def carried_out(job):
    global limit
    code = 70
    kept = [os.dup(number) for number in (1, 2)]
    for number, path in ((1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        code = run(job)
        limit = 0
        with open(job["calls"], "w") as file:
            file.write(str(next(count) - 2))  # but for this and the opening
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, descriptor in zip((1, 2), kept):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return code

for line in sys.stdin:
    job = json.loads(line)
    if job["here"]:
        print(carried_out(job), flush=True)
        continue
    child = os.fork()
    if child == 0:
        os._exit(carried_out(job))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    ``code``: its exit code, or minus the signal's number. ``calls``: how many calls that change
    files it made; 0 if it was killed. ``out`` and ``err``: what it printed.
    """

    code: int
    calls: int
    out: str
    err: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL


class Program:
    """The command line, ready to be run and killed; a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        """``folder``: for what is printed. ``settings``: values of modules, by full name."""
        self._folder = folder
        self._settings = dict(settings or {})
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Program":
        # More threads than Python's own would be lost in a fork.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def warm_up(self, arguments: Sequence[str]) -> None:
        """Run a command in the process that forks, so that later ones find everything compiled."""
        ended = self._do(arguments, 0, signal.SIGKILL, here=True)
        assert ended.code == 0, ended.err

    def run(
        self, arguments: Sequence[str], at: int = 0, how: signal.Signals = signal.SIGKILL
    ) -> Ended:
        """Run a command; it sends itself a signal at its call number ``at``, from 1, if it comes
        so far. 0: it is left alone.
        """
        return self._do(arguments, at, how, here=False)

    def _do(self, arguments: Sequence[str], at: int, how: signal.Signals, here: bool) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        paths = {name: self._folder / name for name in ("stdout", "stderr", "calls")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        job = {name: str(path) for name, path in paths.items()}
        job |= {"arguments": list(arguments), "at": at, "how": int(how), "here": here}
        job |= {"settings": self._settings}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code = self._server.stdout.readline()
        assert code, "the process that runs the commands ended"
        said = {n: path.read_text("utf-8") if path.exists() else "" for n, path in paths.items()}
        calls = int(said["calls"] or 0)
        return Ended(int(code), calls, said["stdout"], said["stderr"])


def spread(calls: int, runs: int) -> list[int]:
    """So many call numbers from the first to the last, evenly."""
    return sorted({1 + round(i * (calls - 1) / max(1, runs - 1)) for i in range(runs)})
