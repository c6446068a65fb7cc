"""A mix whose memory is measured, and files that take no disk."""

import json
import struct
from pathlib import Path

import numpy as np

from tests.memory import printed

MIX = """
import numpy as np
from paramdelta import Delta, Recipe, plan
from paramdelta.api import budget_for
from paramdelta.arithmetic import kernels
from tests.footprint import Discard
from tests.mixing import mixed
small = [np.zeros(8, np.uint16) for _ in range(4)]
kernels.mix_exact(*small, np.float32(0))
kernels.quantize(np.zeros((1, 8)), np.zeros((1, 8), np.uint8), np.zeros((1, 1), np.float32))
made = plan(Recipe(sys.argv[3], (Delta(sys.argv[1], sys.argv[2]),), *sys.argv[5:]))
budget = budget_for(made, int(sys.argv[4]), 4)
with Growth() as growth:
    mixed(made, workers=budget.workers, buffer=budget.buffer, sink=Discard())
print(growth.bytes, budget.projected)
"""


class Discard:
    """A sink that keeps nothing."""

    def begin(self, layout):
        """Nothing is there."""

    def writer(self):
        """Itself."""
        return self

    def write(self, stream, offset, data):
        """Forget."""
        return len(data)


def grown_and_projected(paths: list[Path], memory: int, *dtype: str) -> list[int]:
    """Bytes by which a mix of post, base and new base grew its process; and those projected."""
    return printed(MIX, *paths, memory, *dtype)


def sparse(path: Path, entries: dict[str, tuple[str, tuple[int, ...], int]]) -> None:
    """A safetensors file of tensors ``name: (dtype, shape, bytes of an element)``, all zeros that
    take no disk.
    """
    header, end = {}, 0
    for name, (dtype, shape, size) in entries.items():
        begin, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
