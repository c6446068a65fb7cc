"""DARE and TIES: against the papers' formulas in torch, and the same whatever the slices."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paramdelta import Delta, Recipe, extract, mix, plan, verify
from paramdelta.arithmetic import masks
from paramdelta.engine import thresholds
from paramdelta.engine.run import Worker
from paramdelta.engine.slices import Budget, share_out
from paramdelta.engine.threads import run
from paramdelta.errors import MisfitError, StorageError
from paramdelta.sparsity import Dare, Ties, hash_key
from tests.checkpoints import bf16, encode, fp8, llama, moved, save
from tests.engine.test_threads import Collect, linux

MASK = 2**64 - 1
NAME = "model.layers.0.mlp.up_proj.weight"


def splitmix(key: int, number: int) -> int:
    """Output ``number`` of SplitMix64, in whole numbers, as docs/recipes.md has it."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_hashes_are_those_of_splitmix64():
    """The published outputs for the seed 1234567, and the reference anywhere else."""
    out = np.empty(3, np.uint64)
    masks.hashed(np.uint64(1234567), np.uint64(0), out)
    assert out.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for key in (0, MASK, hash_key(7, 2, NAME)):
        masks.hashed(np.uint64(key), np.uint64(2**40), out)
        assert out.tolist() == [splitmix(key, 2**40 + i) for i in range(3)]


def f32(array):
    """Numbers of a test's checkpoint as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


@pytest.fixture(params=["BF16", "F32"])
def models(request, tmp_path):
    """Folders and tensors of a new base, a base and three posts of it."""
    base = llama()
    sets = {"base": base, "new": moved(base, 9)}
    sets |= {f"post{i}": moved(base, i) for i in (1, 2, 3)}
    if request.param == "F32":
        chance = np.random.default_rng(5)
        sets = {
            name: {n: f32(t) + chance.normal(0, 1e-4, t.shape).astype("f4") for n, t in s.items()}
            for name, s in sets.items()
        }
    for name, tensors in sets.items():
        save(tmp_path / name, tensors)
    return tmp_path, sets


def delta(folder, number: int, scale=1.0, **choices) -> Delta:
    """One of the posts over the base."""
    return Delta(str(folder / f"post{number}"), str(folder / "base"), scale, **choices)


def made(recipe: Recipe, buffer: int = 0, workers: int = 2):
    """A mix in memory, by name, as float64."""
    planned = plan(recipe)
    sink = Collect(planned.bytes_to_write)
    budget = Budget(workers, 9, buffer) if buffer else share_out(planned, 10**9, workers)
    run(planned, sink, budget)
    found, at = {}, 0
    for tensor in planned.tensors:
        stored = np.frombuffer(
            sink.data, "<u2" if tensor.dtype == "BF16" else "<f4", tensor.elements, at
        )
        found[tensor.name] = f32(stored).astype(np.float64).reshape(tensor.shape)
        at += tensor.nbytes
    return found, bytes(sink.data)


def assert_rounded(found, expected, digits: int, name: str = "") -> None:
    """Within half an ulp of a format of so many digits, but for the rounding of the reference."""
    expected = np.asarray(expected)
    ulp = 2.0 ** (np.frexp(expected)[1] - digits)
    np.testing.assert_array_less(np.abs(found - expected), 0.5001 * ulp + 1e-16, name)


def deltas64(torch, sets, numbers):
    """Every Δ in float64, by tensor: (number, …)."""
    return {
        name: torch.stack(
            [
                torch.from_numpy(f32(sets[f"post{i}"][name]).astype(np.float64))
                - torch.from_numpy(f32(base).astype(np.float64))
                for i in numbers
            ]
        )
        for name, base in sets["base"].items()
    }


def dare64(torch, value, key: int, drop: float):
    """DARE of the paper, (1 − m) ⊙ δ / (1 − p) with m ~ Bernoulli(p); m by its definition."""
    bound = -(-int(drop * 1000) * 2**64 // 1000)
    kept = [splitmix(key, i) >= bound for i in range(value.numel())]
    return torch.tensor(kept, dtype=torch.float64).reshape(value.shape) * value / (1 - drop)


def ties64(torch, values, weights, density: float, lam: float):
    """TIES of the paper (Algorithm 1) for one tensor, each task vector with a weight."""
    k = max(1, int(density * values[0].numel()))
    flat = values.reshape(len(values), -1)
    kth = flat.abs().topk(k, dim=1).values[:, -1:]
    trimmed = torch.where(flat.abs() >= kth, flat, 0.0)
    weighted = trimmed * torch.tensor(weights, dtype=torch.float64)[:, None]
    elected = torch.sign(weighted.sum(0))
    agree = (torch.sign(weighted) == elected) & (weighted != 0)
    total = torch.where(agree, weighted, 0.0).sum(0)
    share = (agree * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return lam * torch.where(share > 0, total / share, 0.0).reshape(values.shape[1:])


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.9])
def test_dare_is_the_papers_formula(models, drop):
    """Drop by the documented hash, rescale by 1 / (1 − p), scale, add, round once."""
    torch = pytest.importorskip("torch")
    folder, sets = models
    dares = [Dare(drop, 3), Dare(0.5, 4)]
    recipe = Recipe(
        str(folder / "new"),
        (delta(folder, 1, 0.7, dare=dares[0]), delta(folder, 2, -1.5, dare=dares[1])),
    )
    found, _ = made(recipe)
    digits = 8 if sets["base"][NAME].dtype == np.uint16 else 24
    for name, values in deltas64(torch, sets, (1, 2)).items():
        parts = [
            scale * dare64(torch, values[i], hash_key(dares[i].seed, i + 1, name), dares[i].drop)
            for i, scale in enumerate((0.7, -1.5))
        ]
        expected = f32(sets["new"][name]).astype(np.float64) + sum(parts).numpy()
        assert_rounded(found[name], expected, digits, name)


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 1.0, 0.375)])
def test_ties_is_the_papers_formula(models, density, weights):
    """Trim, elect, disjoint mean, λ: by Algorithm 1 of the paper, tensor by tensor."""
    torch = pytest.importorskip("torch")
    folder, sets = models
    deltas = tuple(delta(folder, i, w) for i, w in zip((1, 2, 3), weights, strict=True))
    recipe = Recipe(str(folder / "new"), deltas, ties=Ties(density, 0.8))
    found, _ = made(recipe)
    digits = 8 if sets["base"][NAME].dtype == np.uint16 else 24
    for name, values in deltas64(torch, sets, (1, 2, 3)).items():
        merged = ties64(torch, values, weights, density, 0.8).numpy()
        expected = f32(sets["new"][name]).astype(np.float64) + merged
        assert_rounded(found[name], expected, digits, name)


@pytest.fixture
def sparse(models) -> Recipe:
    """A recipe with everything: masks, thresholds, an election."""
    folder, _ = models
    return Recipe(
        str(folder / "new"),
        (
            delta(folder, 1, 0.9, dare=Dare(0.3, 1)),
            delta(folder, 2, density=0.5),
            delta(folder, 3, [{"match": "*.mlp.*", "value": 0.5}, 1], dare=Dare(0.5)),
        ),
        ties=Ties(0.8),
    )


@pytest.mark.parametrize(("workers", "buffer"), [(1, 64), (8, 104), (3, 4096), (8, 1 << 20)])
def test_slices_and_threads_cannot_be_seen(sparse, workers, buffer):
    """The same bytes from one worker with all the memory and from any others."""
    _, expected = made(sparse, workers=1)
    _, found = made(sparse, buffer, workers)
    assert found == expected


def test_a_mask_has_the_share_that_was_asked_for(models):
    """About p of the elements keep the new base's value, others of each Δ."""
    folder, sets = models
    recipe = Recipe(str(folder / "new"), (delta(folder, 1, dare=Dare(0.75)),))
    found, _ = made(recipe)
    same = sum(int((found[n] == f32(t)).sum()) for n, t in sets["new"].items())
    total = sum(t.size for t in sets["new"].values())
    assert 0.72 < same / total < 0.80  # a few change by less than an ulp


def test_where_the_signs_weigh_the_same_nobody_is_elected(tmp_path):
    """Θ' stays, whatever normalize says; one sign against none is elected."""

    def one(*values):
        return {"w": np.array(values, np.float32)}

    for name, values in {"base": (0, 0, 0), "a": (1, 1, 0), "b": (-1, 2, -3)}.items():
        save(tmp_path / name, one(*values))
    new = save(tmp_path / "new", one(8, 8, 8))
    deltas = tuple(Delta(str(tmp_path / n), str(tmp_path / "base")) for n in "ab")
    for normalize, expected in ((True, [8, 9.5, 5]), (False, [8, 11, 5])):
        found, _ = made(Recipe(str(new), deltas, ties=Ties(1.0, normalize=normalize)))
        assert found["w"].tolist() == expected


def test_base_prime_that_is_the_base_does_not_cancel(models):
    """B + DARE(P − B) is not P: nothing is put together where elements are left out."""
    folder, sets = models
    recipe = Recipe(str(folder / "base"), (delta(folder, 1, dare=Dare(0.5)),))
    planned = plan(recipe)
    assert not any(tensor.reduced for tensor in planned.tensors)
    found, _ = made(recipe)
    assert not np.array_equal(found[NAME], f32(sets["post1"][NAME]))


def test_verify_makes_it_again(sparse, tmp_path):
    """Every number is right by the second path; a changed one is found; the lock has the recipe."""
    out = tmp_path / "out"
    mix(sparse, out)
    assert verify(out, share=1).elements == plan(sparse).parameters
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-40] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(MisfitError, match="not what its sources give"):
        verify(out, share=1)


def test_what_is_sparse_is_in_the_digest(models):
    """Drop, seed, density, λ and normalize all make another plan; the plain one has none."""
    folder, _ = models
    choices = [{}, {"dare": Dare(0.5)}, {"dare": Dare(0.6)}, {"dare": Dare(0.5, 1)}]
    choices += [{"density": 0.5}, {"density": 0.6}]
    new = str(folder / "new")
    digests = [plan(Recipe(new, (delta(folder, 1, **choice),))).digest for choice in choices]
    ties = [Ties(), Ties(0.3), Ties(scale=0.5), Ties(normalize=False), Ties(1.0)]
    digests += [plan(Recipe(new, (delta(folder, 1),), ties=each)).digest for each in ties]
    assert len(set(digests)) == len(digests)


def test_a_resumed_run_looks_only_for_what_it_needs(sparse, monkeypatch):
    """Thresholds of tensors that are done are not looked for; the bytes are the same."""
    planned = plan(sparse)
    whole = Collect(planned.bytes_to_write)
    run(planned, whole, share_out(planned, 10**9, 2))
    again = Collect(planned.bytes_to_write)
    last = max(piece.position for piece in whole.pieces)
    again.wants = lambda piece: piece.position == last
    stages = []
    run(planned, again, share_out(planned, 10**9, 2), lambda now: stages.append(now.stage))
    assert again.data[last:] == whole.data[last:]
    assert "3 of 3 thresholds" in stages


def test_memory_for_thresholds_is_projected(sparse, models):
    """A recipe that trims projects more memory than the plain one."""
    folder, _ = models
    plain = Recipe(sparse.new_base, (delta(folder, 1),))
    budgets = [share_out(plan(recipe), 10**9, 2) for recipe in (plain, sparse)]
    assert budgets[1].scratch > budgets[0].scratch + 8 * 2**20


def test_nan_and_infinity_come_through(tmp_path):
    """They are the largest magnitudes: kept, reported, and in the result; the rest is untouched."""

    def one(*values):
        return {"w": bf16(values)}

    save(tmp_path / "base", one(1, 1, 1, 1))
    save(tmp_path / "a", one(np.inf, np.nan, 2, 1.5))
    save(tmp_path / "b", one(-np.inf, 1, 1, 3))
    deltas = tuple(Delta(str(tmp_path / n), str(tmp_path / "base")) for n in "ab")
    recipe = Recipe(str(save(tmp_path / "new", one(1, 1, 1, 1))), deltas, ties=Ties(0.5))
    result = mix(recipe, tmp_path / "out")
    assert ("w", "post 1") in result.not_finite
    found, _ = made(recipe)
    np.testing.assert_equal(found["w"], [np.nan, np.nan, 1, 3])


def adapter(folder: Path) -> str:
    """A LoRA adapter of rank 4 on two matrices of a layer."""
    folder.mkdir()
    chance = np.random.default_rng(3)
    tensors = {}
    for name, (rows, columns) in {"mlp.up_proj": (32, 16), "self_attn.q_proj": (16, 16)}.items():
        stem = f"base_model.model.model.layers.0.{name}.lora_"
        tensors[f"{stem}A.weight"] = chance.normal(0, 0.1, (4, columns)).astype("f4")
        tensors[f"{stem}B.weight"] = chance.normal(0, 0.1, (rows, 4)).astype("f4")
    (folder / "adapter_model.safetensors").write_bytes(encode(tensors))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_other_kinds_of_deltas(models, tmp_path):
    """An adapter and a stored Δ beside a plain one: trimmed, masked, elected, and right."""
    folder, _ = models
    stored = tmp_path / "stored"
    extract((str(folder / "post2"), str(folder / "base")), stored)
    recipe = Recipe(
        str(folder / "new"),
        (
            Delta(adapter(tmp_path / "adapter"), scale=0.7, dare=Dare(0.5), density=0.6),
            Delta(delta=str(stored)),
            delta(folder, 3, dare=Dare(0.2)),
        ),
        ties=Ties(0.4, 1.1),
    )
    mix(recipe, tmp_path / "out")
    assert verify(tmp_path / "out", share=1).elements == plan(recipe).parameters
    whole = (delta(folder, 2), delta(folder, 3, dare=Dare(0.2)))
    for one, other in zip(recipe.deltas[1:], whole, strict=True):
        same = [made(Recipe(recipe.new_base, (each,), ties=Ties(0.4)))[1] for each in (one, other)]
        assert same[0] == same[1]


def test_into_fp8_with_fresh_scales(tmp_path):
    """Sparse sums are quantised as others are, from any slices; `verify` agrees."""
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    for seed, role in enumerate(("base", "new", "a", "b")):
        save(tmp_path / role, fp8(seed, w=(300, 200)), config_json=config)
    deltas = tuple(
        Delta(str(tmp_path / role), str(tmp_path / "base"), 0.5, dare=Dare(0.25)) for role in "ab"
    )
    recipe = Recipe(str(tmp_path / "new"), deltas, "fp8-block", ties=Ties(0.5))
    for number, memory in enumerate(("256MB", "80MB")):
        mix(recipe, tmp_path / f"out{number}", memory=memory)
        verify(tmp_path / f"out{number}", share=1)
    one, other = (tmp_path / f"out{n}" / "model.safetensors" for n in (0, 1))
    assert one.read_bytes() == other.read_bytes()


def test_no_more_is_read_than_the_plan_says(sparse, tmp_path, monkeypatch):
    """Twice more for thresholds; tensors that fit at once are read once less."""
    planned = plan(sparse)
    whole = planned.bytes_to_read + planned.bytes_to_write
    trimmed = sum(p.post.nbytes + p.base.nbytes for t in planned.tensors for p in t.pairs)
    assert mix(planned, tmp_path / "small").moved == whole - trimmed
    monkeypatch.setattr(thresholds, "FOUND", 150)
    assert whole - trimmed < mix(planned, tmp_path / "large").moved <= whole


def test_a_run_that_broke_off_ends_in_the_same_bytes(sparse, tmp_path, monkeypatch):
    """What failed in the middle is resumed by the same call; what was made is kept."""
    mix(sparse, tmp_path / "whole")
    made_before, whole = [], Worker.make

    def fails(self, piece):
        if len(made_before) == 7:
            raise StorageError("no more")
        made_before.append(piece)
        whole(self, piece)

    monkeypatch.setattr(Worker, "make", fails)
    with pytest.raises(StorageError, match="no more"):
        mix(sparse, tmp_path / "out", workers=1)
    monkeypatch.setattr(Worker, "make", whole)
    assert mix(sparse, tmp_path / "out").resumed == sum(piece.made for piece in made_before)
    one, other = (tmp_path / n / "model.safetensors" for n in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()


MEASURE = """
import resource, sys
from paramdelta import plan, read_recipe
from paramdelta.engine.slices import share_out
from paramdelta.engine.threads import run
class Discard:
    def wants(self, piece): return True
    def write(self, piece, data): pass
small, large = (plan(read_recipe(path)) for path in sys.argv[1:])
run(small, Discard(), share_out(small, 100_000_000, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
budget = share_out(large, 100_000_000, 4)
run(large, Discard(), budget)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, budget.projected)
"""


@linux
def test_measured_memory_stays_under_the_projected(tmp_path):
    """Two trimmed Δ of 17 M numbers that are no zeros: both passes within the projected memory."""
    chance = np.random.default_rng(0)
    for size, rows in (("small", 8), ("large", 4096)):
        bits = chance.integers(0x3C00, 0x3D00, (rows, 4096)).astype(np.uint16)
        for step, name in enumerate(("base", "new", "a", "b")):
            save(tmp_path / size / name, {"w": bits + np.uint16(step) * (bits % 7).astype("u2")})
        deltas = [{"post": p, "base": "base", "dare": {"drop": 0.5}} for p in "ab"]
        recipe = {"new_base": "new", "deltas": deltas, "ties": {"density": 0.3}}
        (tmp_path / size / "recipe.yaml").write_text(json.dumps(recipe))
    paths = [str(tmp_path / size / "recipe.yaml") for size in ("small", "large")]
    result = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    grown, projected = map(int, result.stdout.split())
    assert grown <= projected <= 100_000_000
