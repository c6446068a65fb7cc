"""Commands that die at a chosen system call: crash tests that do not depend on time.

A process runs a command once, so that everything is imported and compiled, and then forks a child
for each other one. The child counts the calls that change files: writes, syncs, renames, links,
removals, openings for writing. At the call that it was told it ends itself by a signal; of a write
it writes half first, and waits a moment so that other threads go on. So every moment between two
changes of the disk can be tried, however fast the machine is and whatever else it does.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
HANG = 30.0  # seconds after which a traced child is ended
_SERVER = Path(__file__).with_name("server.py")


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


def is_ready(stream: IO[str], seconds: float) -> bool:
    """Whether something can be read within a time, whatever the number of the descriptor."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(seconds))


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
            [sys.executable, "-W", "ignore::DeprecationWarning", str(_SERVER)],
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

    def warm_up(self, arguments: Sequence[str], cwd: str | None = None) -> None:
        """Run a command in the process that forks, so that later ones find everything compiled."""
        ended = self._do(arguments, 0, signal.SIGKILL, here=True, cwd=cwd)
        assert ended.code == 0, ended.err

    def run(
        self,
        arguments: Sequence[str],
        at: int = 0,
        how: signal.Signals = signal.SIGKILL,
        cwd: str | None = None,
    ) -> Ended:
        """Run a command; it sends itself a signal at its call number ``at``, from 1, if it comes
        so far. 0: it is left alone.
        """
        return self._do(arguments, at, how, here=False, cwd=cwd)

    def trace(
        self, arguments: Sequence[str], options: Sequence[str], log: Path, cwd: str | None = None
    ) -> Ended:
        """Run a command under strace. ``options``: of strace, such as faults to inject; what it
        says goes to ``log``.
        """
        strace = (*options, "-o", str(log))
        return self._do(arguments, 0, signal.SIGKILL, here=False, strace=strace, cwd=cwd)

    def _do(
        self,
        arguments: Sequence[str],
        at: int,
        how: signal.Signals,
        here: bool,
        strace: Sequence[str] = (),
        cwd: str | None = None,
    ) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        paths = {name: self._folder / name for name in ("stdout", "stderr", "calls")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        job = {name: str(path) for name, path in paths.items()}
        job |= {"arguments": list(arguments), "at": at, "how": int(how), "here": here}
        job |= {"settings": self._settings, "traced": bool(strace), "cwd": cwd}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        child = self._server.stdout.readline().strip()
        tracer = None
        if strace:
            tracer = subprocess.Popen(["strace", "-f", "-qq", *strace, "-p", child])
            while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
                assert tracer.poll() is None, "strace cannot trace"
                time.sleep(0.001)
            self._server.stdin.write("\n")
            self._server.stdin.flush()
            if not is_ready(self._server.stdout, HANG):
                os.kill(int(child), signal.SIGABRT)  # the caller sees how it ended
        code = self._server.stdout.readline()
        if tracer is not None:
            tracer.wait()
        assert code, "the process that runs the commands ended"
        said = {n: path.read_text("utf-8") if path.exists() else "" for n, path in paths.items()}
        calls = int(said["calls"] or 0)
        return Ended(int(code), calls, said["stdout"], said["stderr"])


def spread(calls: int, runs: int) -> list[int]:
    """So many call numbers from the first to the last, evenly."""
    return sorted({1 + round(i * (calls - 1) / max(1, runs - 1)) for i in range(runs)})
