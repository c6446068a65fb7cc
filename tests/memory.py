"""How much a process grows while it does something, measured in a process of its own.

Not by ``ru_maxrss``: a child's begins at what its parent held when it started the child, and a test
run that has loaded torch holds more than any of these measurements.
"""

import subprocess
import sys

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak there")

_METER = """
import gc, pathlib, sys

class Growth:
    # Bytes by which the resident set grew at its peak, since the block began.
    def __enter__(self):
        gc.collect()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before = self.read("VmRSS")
        return self

    def __exit__(self, *error):
        self.bytes = self.read("VmHWM") - self.before

    def read(self, key):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
"""


def printed(code: str, *arguments: object) -> list[int]:
    """The whole numbers that Python code prints in a process of its own.

    ``code`` may use ``with Growth() as growth: ...`` and then ``growth.bytes``; its
    ``arguments`` are in ``sys.argv`` from 1 on.
    """
    command = [sys.executable, "-c", _METER + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]
