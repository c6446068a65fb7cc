"""The mix: every element once, from any number of workers, in bounded memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, UsageError, plan
from paramdelta.api import budget_for
from paramdelta.encodings.plain import Plain
from paramdelta.engine.memory import OVERHEAD
from paramdelta.errors import CheckpointError, StorageError
from paramdelta.formats.view import Tensor
from paramdelta.jobs.mix import MixJob
from paramdelta.output.memory import MemorySink
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.sweep import sweep_of_one
from paramdelta.schemes.pair import Pair
from tests import ggufs
from tests.checkpoints import bf16, llama, moved, save
from tests.footprint import grown_and_projected, sparse
from tests.memory import linux
from tests.mixing import mixed


class Recording(MemorySink):
    """A sink that also keeps which bytes it was given."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, stream, offset, data):
        """Keep them."""
        self.writes.append((stream, offset, len(data)))
        return super().write(stream, offset, data)


def contents(sink):
    """The bytes of every tensor."""
    return {name: array.tobytes() for name, array in sink.tensors.items()}


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_all_workers_give_the_same_bytes(lineage, workers):
    """The output does not depend on the number of workers or the buffers' size."""
    made = plan(lineage.recipe())
    one, _ = mixed(made, workers=1)
    other, _ = mixed(made, workers=workers, buffer=100, sink=Recording())
    assert contents(one) == contents(other)
    assert len(set(other.writes)) == len(other.writes) > 21
    assert sum(size for *_, size in other.writes) == made.bytes_to_write


def test_progress_ends_at_the_total(lineage):
    """The last call says that all is done; what is skipped counts as resumed."""
    made, calls = plan(lineage.recipe()), []
    mixed(made, buffer=4096, skip=lambda task: task.tensor == 0, progress=calls.append)
    assert calls[-1].done == calls[-1].total == made.bytes_to_write
    assert calls[-1].resumed == made.tensors[0].nbytes
    read = sum(view.nbytes for tensor in made.tensors[1:] for view in tensor.views)
    assert calls[-1].moved == read + made.bytes_to_write - made.tensors[0].nbytes


def test_a_failing_sink_stops_all(lineage):
    """Its error is raised."""

    class Failing(Recording):
        def write(self, stream, offset, data):
            if len(self.writes) > 3:
                raise StorageError("no", code="no")
            return super().write(stream, offset, data)

    sink = Failing()
    with pytest.raises(StorageError, match="no"):
        mixed(plan(lineage.recipe()), workers=4, buffer=200, sink=sink)
    assert len(sink.writes) < 30


def test_a_file_that_changes_after_planning_is_noticed(lineage):
    """A source that loses bytes is an error with its name, not zeros."""
    made = plan(lineage.recipe())
    path = lineage.new / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises((CheckpointError, StorageError), match="00001-of-00003"):
        mixed(made, buffer=4096)


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
    paths = {r: str(save(tmp_path / r, t)) for r, t in sets.items()}
    made = plan(Recipe(paths["new base"], (Delta(paths["post"], paths["base"]),)))
    _, job = mixed(made, buffer=4096)
    assert job.not_finite(0) == {("model.norm.weight", role): 2}


def test_overflow_of_the_output_is_found(tmp_path):
    """Finite operands whose sum F16 cannot hold are counted against the result."""
    folder = str(save(tmp_path / "m", {"w": np.full((4, 4), 1e5, np.float32)}))
    made = plan(Recipe(folder, (Delta(folder, folder),), "F16"))
    _, job = mixed(made, workers=1, buffer=4096)
    assert job.not_finite(0) == {("w", "result"): 16}


# -- tasks -----------------------------------------------------------------------------------------


def planned(*shapes, dtype="BF16", post="F32", deltas=1):
    """A plan of tensors with these shapes, without files."""
    tensors = []
    for number, shape in enumerate(shapes):
        new, other = (Tensor(f"t{number}", d, shape, None, 0, 0) for d in (dtype, post))
        pairs = tuple(Pair(i, other, replace(new, offset=1 + i), 0.5) for i in range(deltas))
        tensors.append(OutputTensor(f"t{number}", Plain(dtype), shape, new, pairs))
    return Plan(None, None, (), tuple(tensors), (), ())


def a_job(made, buffer):
    """The job of a plan without files."""
    sweep = sweep_of_one(made)
    numbers = tuple((number,) for number in range(len(made.tensors)))
    positions = np.cumsum([0, *(tensor.nbytes for tensor in made.tensors)]).tolist()[:-1]
    return MixJob((made.tensors,), sweep.alike, numbers, tuple(positions), {}, buffer)


SHAPES = st.lists(
    st.one_of(
        st.tuples(),
        st.tuples(st.integers(0, 5000)),
        st.tuples(st.integers(0, 60), st.integers(0, 60)),
        st.tuples(*[st.integers(0, 12)] * 3),
    ),
    max_size=5,
)


@given(SHAPES, st.integers(16, 5000))
def test_every_element_once_in_order(shapes, buffer):
    """Tasks follow each other without gap or overlap, and no operand is larger than a buffer."""
    made = planned(*shapes)
    job = a_job(made, buffer)
    tasks, position = job.tasks(), 0
    seen = dict.fromkeys(range(len(shapes)), 0)
    for task in tasks:
        ((begin, end),) = job.ranges(task)
        assert begin == position
        assert task.start == seen[task.tensor] < task.stop
        assert (task.stop - task.start) * 4 <= max(buffer, 4)  # post is F32
        assert job.cost(task) == end - begin == 2 * (task.stop - task.start)
        seen[task.tensor] = task.stop
        position = end
    assert position == made.bytes_to_write
    assert all(seen[i] == t.elements for i, t in enumerate(made.tensors))
    assert len(tasks) == len(list(tasks))
    assert list(tasks) == [t for number in range(len(shapes)) for t in job.tasks_of(number)]
    with pytest.raises(IndexError):
        tasks[len(tasks)]


def test_tasks_are_whole_rows_where_rows_fit():
    """An embedding is cut between rows; a row larger than a buffer is cut too."""
    tasks = list(a_job(planned((1000, 300), post="BF16"), 4096).tasks())
    assert all(task.start % 300 == 0 for task in tasks)
    tasks = a_job(planned((2, 10_000)), 4096).tasks()
    assert max(task.stop - task.start for task in tasks) == 1024


# -- memory ----------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 5), st.integers(64, 1 << 20))
def test_what_a_worker_holds_is_projected(deltas, outputs, buffer):
    """A buffer for every operand and one for the result, for each output of a sweep."""
    need = a_job(planned((4, 4), deltas=deltas), 0).need
    assert need(buffer).each - need(0).each == (3 + deltas) * buffer
    many = replace(a_job(planned((4, 4)), 0), members=(planned((4, 4)).tensors,) * outputs)
    assert many.need(buffer).shared < 10_000 * outputs


def test_too_little_memory_is_refused(lineage):
    """A limit under the fixed cost names the least that works."""
    with pytest.raises(UsageError, match="too little") as caught:
        budget_for(plan(lineage.recipe()), OVERHEAD, 1)
    assert "for this recipe" in caught.value.expected


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
    assert grown <= projected <= memory


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
        for number in range(4):
            for part in ("gate_proj", "up_proj"):
                entries[f"{stem}.{number}.{part}.weight"] = ("BF16", (2048, 2048), 2)
            entries[f"{stem}.{number}.down_proj.weight"] = ("BF16", (2048, 2048), 2)
        sparse(folder / name / "model.safetensors", entries)
    joined = {
        f"{stem}.gate_up_proj": ("BF16", (4, 2048, 4096), 2),
        f"{stem}.down_proj": ("BF16", (4, 2048, 2048), 2),
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


def quantized(folder):
    """A GGUF post: a matrix in Q4_K, and a query in Q8_0 whose rows are put back in order."""
    shape = (8192, 8192)
    tensors = {
        "blk.0.ffn_up.weight": (ggufs.Q4_K, shape),
        "blk.0.attn_q.weight": (ggufs.Q8_0, shape),
    }
    keys = ggufs.metadata("llama", heads=64, key_heads=64)
    ggufs.sparse(folder / "post.gguf", keys, tensors)
    for name in ("base", "new"):
        entries = {
            f"model.layers.0.{module}.weight": ("BF16", shape, 2)
            for module in ("mlp.up_proj", "self_attn.q_proj")
        }
        sparse(folder / name / "model.safetensors", entries)
    return [folder / "post.gguf", folder / "base", folder / "new"]


@linux
@pytest.mark.parametrize("build", [fp8, turned, shuffled, quantized])
def test_memory_of_views_stays_under_the_projected(tmp_path, build):
    """FP8, turned matrices and rows in any order keep to the projected memory as well."""
    grown, projected = grown_and_projected(build(tmp_path), 256_000_000)
    assert grown <= projected <= 256_000_000
