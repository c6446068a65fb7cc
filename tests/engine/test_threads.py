"""The engine: every slice once, errors and non-finite numbers reported, memory bounded."""

import json
import struct
import threading

import numpy as np
import pytest

from paramdelta import plan
from paramdelta.engine.slices import Budget, share_out
from paramdelta.engine.threads import run
from paramdelta.errors import CheckpointError, StorageError
from tests.checkpoints import bf16, llama, moved, save
from tests.memory import linux, printed


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
import numpy, numba
from paramdelta import Delta, Recipe, plan
from paramdelta.engine import kernels
from paramdelta.engine.slices import share_out
from paramdelta.engine.threads import run
import numpy as np
small = [np.zeros(8, np.uint16) for _ in range(4)]
kernels.mix_exact(*small, np.float32(0))
kernels.quantise(np.zeros((1, 8)), np.zeros((1, 8), np.uint8), np.zeros((1, 1), np.float32))
class Discard:
    def wants(self, piece): return True
    def write(self, piece, data): pass
made = plan(Recipe(sys.argv[3], (Delta(sys.argv[1], sys.argv[2]),), *sys.argv[5:]))
budget = share_out(made, int(sys.argv[4]), 4)
with Growth() as growth:
    run(made, Discard(), budget)
print(growth.bytes, budget.projected)
"""


def sparse(path, entries):
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


def grown_and_projected(paths, memory, *dtype):
    """Bytes by which a run grew its process, and those that were projected."""
    return printed(MEASURE, *paths, memory, *dtype)


@linux
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
    paths = [tmp_path / f"{name}.safetensors" for name in ("post", "base", "new")]
    for path in paths:
        sparse(path, {"model.embed_tokens.weight": ("BF16", (rows, 16384), 2)})
    grown, projected = grown_and_projected(paths, memory)
    assert 0 < grown <= projected <= memory


def fp8(folder):
    """Matrices with a scale for each block."""
    for name in ("post", "base", "new"):
        entries = {
            "w.weight": ("F8_E4M3", (8192, 16384), 1),
            "w.weight_scale_inv": ("F32", (64, 128), 4),
        }
        sparse(folder / name / "model.safetensors", entries)
    return [folder / name for name in ("post", "base", "new")]


def turned(folder):
    """Experts that post and base have one by one, and the new base joined and turned."""
    stem = "model.layers.0.mlp.experts"
    for name in ("post", "base"):
        entries = {}
        for number in range(2):
            for part in ("gate_proj", "up_proj"):
                entries[f"{stem}.{number}.{part}.weight"] = ("BF16", (2048, 2048), 2)
            entries[f"{stem}.{number}.down_proj.weight"] = ("BF16", (2048, 2048), 2)
        sparse(folder / name / "model.safetensors", entries)
    joined = {
        f"{stem}.gate_up_proj": ("BF16", (2, 2048, 4096), 2),
        f"{stem}.down_proj": ("BF16", (2, 2048, 2048), 2),
    }
    sparse(folder / "new" / "model.safetensors", joined)
    return [folder / name for name in ("post", "base", "new")]


def shuffled(folder):
    """An embedding whose rows all have other places in the new base."""
    rows = 32768
    order = np.random.default_rng(0).permutation(rows).tolist()
    for name in ("post", "base", "new"):
        entries = {"model.embed_tokens.weight": ("BF16", (rows, 2048), 2)}
        sparse(folder / name / "model.safetensors", entries)
        ids = order if name == "new" else range(rows)
        vocab = {f"t{token}": i for i, token in enumerate(ids)}
        tokenizer = {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    return [folder / name for name in ("post", "base", "new")]


@linux
@pytest.mark.parametrize("build", [fp8, turned, shuffled])
def test_memory_of_views_stays_under_the_projected(tmp_path, build):
    """FP8, turned matrices and rows in any order keep to the projected memory as well."""
    grown, projected = grown_and_projected(build(tmp_path), 256_000_000)
    assert 0 < grown <= projected <= 256_000_000
