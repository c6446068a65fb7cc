"""One child process, measured: wall time, CPU time, peak memory.

wait4 gives this child's own figures, where RUSAGE_CHILDREN would give the largest of all so far.
A child is born with its parent's resident size as its peak, so whoever measures must stay small:
this module and compare.py import nothing but the standard library.
"""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]  # where `python -m benchmarks...` works
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Reading:
    """Seconds and bytes. Anonymous memory leaves out mapped files, which the kernel can drop; bytes
    read and written are those of all calls, program files and the page cache included (Linux).
    """

    wall_s: float
    user_s: float
    system_s: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int | None
    output: str
    read_bytes: int | None = None
    written_bytes: int | None = None


class ChildFailedError(Exception):
    """A measured command ended with another status than 0; the message has its last words."""


UNCHECKED = {"PARAMDELTA_CHECK": "0"}  # the finished folder is not looked at: mixing is measured


def measure(command: list[str], environment: dict[str, str] | None = None) -> Reading:
    """Run `command` in the repository to its end, measured; ChildFailedError if it fails."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **UNCHECKED, **(environment or {})},
    )
    sampler = _AnonymousPeak(child.pid)
    sampler.start()
    words = child.stdout.read() if child.stdout else ""
    moved = _moved(child.pid)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    sampler.stop()
    if child.stdout:
        child.stdout.close()
    if child.returncode:
        raise ChildFailedError(f"{' '.join(command)}: {child.returncode}\n{words[-2000:]}")
    return Reading(
        wall,
        usage.ru_utime,
        usage.ru_stime,
        usage.ru_maxrss * 1024,
        sampler.peak or None,
        words,
        moved.get("rchar"),
        moved.get("wchar"),
    )


def _moved(pid: int) -> dict[str, int]:
    """What the kernel counted of a child's reads and writes; asked when it has ended but has not
    been waited for, while there is still somebody to ask for. Linux only, else {}.
    """
    counts = Path(f"/proc/{pid}/io")
    if not counts.exists():
        return {}
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        lines = counts.read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


class _AnonymousPeak(threading.Thread):
    """Look at a process's anonymous memory every few milliseconds; Linux only, else 0."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
