"""The engine: every slice once, errors and non-finite numbers reported, memory bounded."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from paramdelta import plan
from paramdelta.engine.slices import Budget, share_out
from paramdelta.engine.threads import run
from paramdelta.errors import CheckpointError, StorageError
from tests.checkpoints import bf16, llama, moved, save


class Collect:
    """A sink in memory."""

    def __init__(self, size, skip=()):
        self.data = bytearray(size)
        self.skip = skip
        self.lock = threading.Lock()
        self.pieces = []

    def wants(self, piece):
        """All but those to be skipped."""
        return piece.position not in self.skip

    def write(self, piece, data):
        """Keep a slice."""
        with self.lock:
            self.pieces.append(piece)
        self.data[piece.position : piece.position + piece.nbytes] = data


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_all_workers_give_the_same_bytes(lineage, workers):
    """The output does not depend on the number of workers or the buffers' size."""
    made = plan(lineage.recipe())
    one, other = Collect(made.bytes_to_write), Collect(made.bytes_to_write)
    run(made, one, share_out(made, 256_000_000, 1))
    run(made, other, Budget(workers, 4, 100))
    assert one.data == other.data
    assert len({(p.tensor, p.start) for p in other.pieces}) == len(other.pieces)


def test_progress_ends_at_the_total(lineage):
    """The last call says that all is done; skipped slices count as resumed."""
    made = plan(lineage.recipe())
    calls = []
    run(made, Collect(made.bytes_to_write, skip={0}), Budget(2, 4, 4096), calls.append)
    assert calls[-1].done == calls[-1].total == made.bytes_to_write
    assert calls[-1].resumed > 0


def test_a_failing_sink_stops_all(lineage):
    """The first error of a worker is raised and the others end."""

    class Failing(Collect):
        def write(self, piece, data):
            if len(self.pieces) > 3:
                raise StorageError("no")
            super().write(piece, data)

    made = plan(lineage.recipe())
    before = threading.active_count()
    with pytest.raises(StorageError, match="no"):
        run(made, Failing(made.bytes_to_write), Budget(4, 4, 200))
    assert threading.active_count() == before


def test_a_file_that_shrinks_is_noticed(lineage):
    """A source that loses bytes after planning is an error with its name, not zeros."""
    made = plan(lineage.recipe())
    path = lineage.new / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match="00001-of-00003"):
        run(made, Collect(made.bytes_to_write), Budget(2, 4, 4096))


@pytest.mark.parametrize(
    ("role", "bad"), [("post", np.nan), ("base", np.inf), ("new base", -np.inf)]
)
def test_not_finite_numbers_are_found(tmp_path, role, bad):
    """NaN and infinity are counted by tensor and checkpoint."""
    base = llama()
    sets = {"base": base, "post": moved(base, 1), "new base": moved(base, 2)}
    spoiled = sets[role]["model.norm.weight"].copy()
    spoiled[3:5] = bf16([bad, bad])
    sets[role]["model.norm.weight"] = spoiled
    from paramdelta import Delta, Recipe

    paths = {r: str(save(tmp_path / r, t)) for r, t in sets.items()}
    made = plan(Recipe(paths["new base"], (Delta(paths["post"], paths["base"]),)))
    report = run(made, Collect(made.bytes_to_write), Budget(2, 4, 4096))
    assert dict(report.not_finite) == {("model.norm.weight", role): 2}


def test_overflow_of_the_output_is_found(tmp_path):
    """Finite operands whose sum F16 cannot hold are counted against the result."""
    from paramdelta import Delta, Recipe

    tensors = {"w": np.full((4, 4), 1e5, np.float32)}
    folder = str(save(tmp_path / "m", tensors))
    made = plan(Recipe(folder, (Delta(folder, folder),), "F16"))
    report = run(made, Collect(made.bytes_to_write), Budget(1, 4, 4096))
    assert dict(report.not_finite) == {("w", "result"): 16}


MEASURE = """
import resource, sys
import numpy, numba
from paramdelta import Delta, Recipe, plan
from paramdelta.engine import kernels
from paramdelta.engine.slices import share_out
from paramdelta.engine.threads import run
import numpy as np
small = [np.zeros(8, np.uint16) for _ in range(4)]
kernels.mix_exact(*small, np.float32(0))
class Discard:
    def wants(self, piece): return True
    def write(self, piece, data): pass
made = plan(Recipe(sys.argv[3], (Delta(sys.argv[1], sys.argv[2]),)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
budget = share_out(made, int(sys.argv[4]), 4)
run(made, Discard(), budget)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, budget.projected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted otherwise elsewhere")
@pytest.mark.parametrize(
    ("rows", "memory"),
    [
        (8192, 60_000_000),
        (8192, 256_000_000),
        pytest.param(128256, 256_000_000, marks=pytest.mark.slow),
    ],
)
def test_measured_memory_stays_under_the_projected(tmp_path, rows, memory):
    """A sparse embedding of up to 128256 × 16384 (4.2 GB) is read within the projected memory."""
    import json
    import struct

    columns = 16384
    nbytes = rows * columns * 2
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, nbytes]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    paths = []
    for name in ("post", "base", "new"):
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + nbytes)
        paths.append(str(path))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths, str(memory)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    grown, projected = map(int, result.stdout.split())
    assert grown <= projected <= memory
