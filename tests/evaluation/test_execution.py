"""Programs that models wrote are confined; hostile ones are harmless and do not pass."""

import os
import sys

import pytest

from paramdelta.evaluation.execution import check_sandbox, passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def test_the_sandbox_works_here():
    """Otherwise the commands refuse, and the tests below say nothing."""
    check_sandbox()


def test_what_passes():
    """A program that ends without an error: it may import, compute, print and read."""
    assert passes(
        "import collections, datetime, hashlib, heapq, itertools, math, random, re, typing\n"
        "print('x' * 100_000)\nassert math.isqrt(hashlib.md5(b'').digest_size) == 4\n"
    )


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "this is no Python",
        "def f(): return f()\nf()",
        "x = 'a\0b'",
        "import threading\nt = threading.Thread(target=print)\nt.start()",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_what_does_not_pass(program):
    """Errors, and ends before the last line."""
    assert not passes(program, 5)


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "memory": "x = bytearray(1 << 34)",
    "memory, slowly": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "infinite output": "while True:\n    print('x' * 100_000)",
    "endless": "while True:\n    pass",
    "delete a file": "import os\nos.unlink({victim!r})",
    "delete a folder": "import shutil\nshutil.rmtree({folder!r})",
    "overwrite a file": "open({victim!r}, 'w').write('x')",
    "truncate a file": "import os\nos.truncate({victim!r}, 0)",
    "change its mode": "import os\nos.chmod({victim!r}, 0)",
    "rename it": "import os\nos.rename({victim!r}, {victim!r} + '2')",
    "link it": "import os\nos.symlink('/', {folder!r} + '/l')",
    "write a new file": "open({folder!r} + '/new', 'x')",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "socket": "import socket\nsocket.socketpair()",
    "environment": "import os\nassert 'PARAMDELTA_SECRET' in os.environ",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everyone": "import os\nos.kill(-1, 9)",
    "command": "import os\nassert os.system('true') == 0",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "raw call": "import ctypes\nassert ctypes.CDLL(None).kill({parent}, 0) == 0",
    "shared memory": "import mmap\nfrom multiprocessing import shared_memory as s\n"
    "s.SharedMemory(create=True, size=10)",
    "priority": "import os\nos.setpriority(0, 0, 19)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_programs_do_nothing(what, tmp_path, monkeypatch):
    """No process, no connection, no change of a file, no signal; and an end within the limits."""
    monkeypatch.setenv("PARAMDELTA_SECRET", "x")
    victim = tmp_path / "victim"
    victim.write_text("kept")
    facts = {"victim": str(victim), "folder": str(tmp_path), "parent": os.getpid()}
    assert not passes(HOSTILE[what].format(**facts), 1)
    assert victim.read_text() == "kept"
    assert os.access(victim, os.W_OK)
    assert list(tmp_path.iterdir()) == [victim]
