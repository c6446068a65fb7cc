"""Runs programs that models wrote. They may be hostile.

Each program runs in a process of its own, as `sandbox.py`: system calls are limited to those that
computing and reading files need, by a seccomp filter. So it starts no process or thread, opens no
connection, writes, changes or deletes no file, and sends no signal. What it prints is thrown away.
Memory, processor time and wall time are limited, and the environment is empty. It can read files
that the user can read, but nothing that it reads can leave.

Linux on x86-64 or arm64 only; elsewhere nothing is executed.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from paramdelta.errors import UsageError

TIMEOUT = 20.0  # seconds of processor time
PATIENCE = 3  # times as much wall time, because other programs run as well
MEMORY = 1 << 30  # bytes of address space
_SANDBOX = Path(__file__).with_name("sandbox.py")


def passes(program: str, timeout: float = TIMEOUT) -> bool:
    """Whether a program runs to its end without an error, within the limits.

    A program that ends itself early has not passed: the verdict is a secret that only reaches the
    pipe after its last line. (It is in the same process: code written to fake a verdict could.)
    """
    if len(program) > 1_000_000 or "\0" in program:
        return False
    secret = secrets.token_bytes(16)
    reading, writing = os.pipe()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="paramdelta-") as empty,
            subprocess.Popen(  # noqa: S603 - our own file
                [
                    sys.executable,
                    "-I",
                    "-B",
                    str(_SANDBOX),
                    str(writing),
                    str(MEMORY),
                    str(timeout),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=empty,
                env={"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                pass_fds=(writing,),
                start_new_session=True,
            ) as process,
        ):
            os.close(writing)
            writing = -1
            try:
                process.communicate(
                    secret + program.encode("utf-8", "replace"), timeout=PATIENCE * timeout + 5
                )
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return False
            return process.returncode == 0 and os.read(reading, 64) == secret
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


@cache
def check_sandbox() -> None:
    """Raise UsageError if programs cannot be confined on this machine."""
    works = passes("assert 1 + 1 == 2")
    confined = not passes("import socket\nsocket.socket()") and not passes("open('x', 'w')")
    if not works or not confined:
        raise UsageError(
            "code cannot be executed safely on this machine",
            code="no-sandbox",
            expected="Linux on x86-64 or arm64, with seccomp",
            remedy="leave out the tasks that execute code",
        )
