"""The process that forks the commands; `tests.crash` starts it and talks to it by lines of JSON.

Run as a script. The functions of ``os`` are replaced before paramdelta is imported.
"""

import importlib
import itertools
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

CHANGES = ("fsync", "fdatasync", "posix_fallocate", "ftruncate", "rename", "replace", "link")
CHANGES += ("unlink", "remove", "rmdir", "mkdir")
READY, START = 1, 2
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Countdown:
    """Counts calls; at number ``limit`` the process sends itself the signal ``how``."""

    def __init__(self) -> None:
        self.begin(0, 0)

    def begin(self, limit: int, how: int) -> None:
        """Count from 1 again. ``limit`` 0: no signal."""
        self.limit, self.how = limit, how
        self.numbers = itertools.count(1)  # next() is atomic, whatever threads there are

    def strikes(self) -> bool:
        """Count a call; whether SIGKILL is due. Any other signal is sent here."""
        if next(self.numbers) != self.limit:
            return False
        if self.how != signal.SIGKILL:
            os.kill(os.getpid(), self.how)
            return False
        return True

    def die(self) -> None:
        """As a power cut for the process."""
        os.kill(os.getpid(), signal.SIGKILL)


countdown = Countdown()


def counted(function: Any) -> Any:
    """A function of ``os`` before which the process may die."""

    def call(*arguments: Any, **options: Any) -> Any:
        if countdown.strikes():
            countdown.die()
        return function(*arguments, **options)

    return call


def halved(function: Any) -> Any:
    """``os.pwrite``, of which half is written if the process dies."""

    def call(descriptor: int, data: Any, offset: int) -> Any:
        if countdown.strikes():
            function(descriptor, memoryview(data)[: len(data) // 2], offset)
            time.sleep(0.05)  # a disk that stalls: other threads go on
            countdown.die()
        return function(descriptor, data, offset)

    return call


def opened(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: openings for writing count as well."""
    if event == "open" and arguments[2] & WRITES and countdown.strikes():
        countdown.die()


def run(job: dict[str, Any]) -> int:
    """Run a job's command and return its exit code."""
    from paramdelta.cli.app import main

    for place, value in job["settings"].items():
        home, _, name = place.rpartition(".")
        module = importlib.import_module(home)
        assert hasattr(module, name), place
        setattr(module, name, value)
    countdown.begin(job["at"], job["how"])
    try:
        main(job["arguments"])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def carried_out(job: dict[str, Any], start: Callable[[], None] | None = None) -> int:
    """Run a job with its output in files; note how many calls it made.

    ``start``: waits for the sign to start. Then nothing but the command makes system calls.
    """
    code = 70
    kept = [os.dup(number) for number in (1, 2)]
    for number, path in ((1, job["stdout"]), (2, job["stderr"])):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        if job["cwd"]:
            os.chdir(job["cwd"])
        if start is not None:
            start()
        code = run(job)
        if start is None:
            calls = next(countdown.numbers) - 1
            countdown.begin(0, 0)
            with open(job["calls"], "w") as file:
                file.write(str(calls))
    except BaseException:  # noqa: BLE001 - told in the job's standard error
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as the interpreter
    if start is not None:
        os._exit(code)
    for number, descriptor in zip((1, 2), kept, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return code


class Waiting:
    """Tells another process, by a byte of shared memory, that this one is ready, and waits."""

    def __init__(self, sign: mmap.mmap) -> None:
        self.sign = sign

    def __call__(self) -> None:
        """Return when the other process says so."""
        self.sign[0] = READY
        while self.sign[0] != START:
            time.sleep(0.001)


def serve() -> None:
    """Carry out jobs, one a line: here, or in a child of its own; answer with the exit code."""
    for name in CHANGES:
        if hasattr(os, name):
            setattr(os, name, counted(getattr(os, name)))
    os.pwrite = halved(os.pwrite)
    sys.addaudithook(opened)
    # Ignored by some who start this: in the background, under nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        if job["here"]:
            print(0, carried_out(job), sep="\n", flush=True)
            continue
        sign = mmap.mmap(-1, 1)  # shared with the child
        child = os.fork()
        if child == 0:
            os._exit(carried_out(job, Waiting(sign) if job["traced"] else None))
        if job["traced"]:
            while sign[0] != READY:
                time.sleep(0.001)
        print(child, flush=True)
        if job["traced"]:
            sys.stdin.readline()  # it is traced now
            sign[0] = START
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
