"""Filtered Δs and elections: the same whatever the slices, resumed, verified, in bounded memory."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, extract, mix, plan, verify
from paramdelta.api import budget_for
from paramdelta.errors import MisfitError, StorageError
from paramdelta.formats.view import Tensor
from paramdelta.jobs import measure
from paramdelta.jobs.mix import Worker
from paramdelta.jobs.verify.formula import MERGED
from paramdelta.schemes.dare import Dare, Drop
from paramdelta.schemes.filter import Filter
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import BLOCK, SCRATCH
from paramdelta.schemes.sum import SUM
from paramdelta.schemes.ties import Ties
from paramdelta.schemes.trim import Trim
from tests.checkpoints import encode, fp8, save
from tests.memory import linux, printed
from tests.mixing import mixed
from tests.numbers import BITS, array, decode, patterns, ulp
from tests.schemes.posts import delta, made


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
        scheme=Ties(0.8),
    )


@pytest.mark.parametrize(("workers", "buffer"), [(1, 64), (8, 104), (3, 4096), (8, 1 << 20)])
def test_slices_and_threads_cannot_be_seen(sparse, workers, buffer):
    """The same bytes from one worker with all the memory and from any others."""
    _, expected = made(sparse, workers=1)
    _, found = made(sparse, buffer, workers)
    assert found == expected


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
    digests += [plan(Recipe(new, (delta(folder, 1),), scheme=each)).digest for each in ties]
    assert len(set(digests)) == len(digests)


def test_a_resumed_run_looks_only_for_what_it_needs(sparse):
    """Thresholds of tensors that are done are not looked for; the bytes are the same."""
    planned = plan(sparse)
    whole, _ = mixed(planned)
    last, stages = len(planned.tensors) - 1, []
    again, _ = mixed(
        planned,
        skip=lambda task: task.tensor != last,
        progress=lambda now: stages.append(now.stage),
    )
    name = planned.tensors[last].name
    assert again.tensors[name].tobytes() == whole.tensors[name].tobytes()
    assert "3 of 3 thresholds" in stages


def test_memory_for_thresholds_is_projected(sparse, models):
    """A recipe that trims projects the tables of the measuring pass; sums hold less."""
    folder, _ = models
    plain = Recipe(sparse.new_base, (delta(folder, 1),))
    projected = [budget_for(plan(recipe), 10**9, 2).projected for recipe in (plain, sparse)]
    assert projected[1] > projected[0]
    tables = 8 * ((1 << measure.DIGIT) + measure.FOUND)
    assert projected[1] > 2 * tables


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
        scheme=Ties(0.4, 1.1),
    )
    mix(recipe, tmp_path / "out")
    assert verify(tmp_path / "out", share=1).elements == plan(recipe).parameters
    whole = (delta(folder, 2), delta(folder, 3, dare=Dare(0.2)))
    for one, other in zip(recipe.deltas[1:], whole, strict=True):
        same = [
            made(Recipe(recipe.new_base, (each,), scheme=Ties(0.4)))[1] for each in (one, other)
        ]
        assert same[0] == same[1]


def test_into_fp8_with_fresh_scales(tmp_path):
    """Sparse sums are quantized as others are, from any slices; `verify` agrees."""
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    for seed, role in enumerate(("base", "new", "a", "b")):
        save(tmp_path / role, fp8(seed, w=(300, 200)), config_json=config)
    deltas = tuple(
        Delta(str(tmp_path / role), str(tmp_path / "base"), 0.5, dare=Dare(0.25)) for role in "ab"
    )
    recipe = Recipe(str(tmp_path / "new"), deltas, "fp8-block", scheme=Ties(0.5))
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
    monkeypatch.setattr(measure, "FOUND", 150)
    assert whole - trimmed < mix(planned, tmp_path / "large").moved <= whole


def test_a_run_that_broke_off_ends_in_the_same_bytes(sparse, tmp_path, monkeypatch):
    """What failed in the middle is resumed by the same call; what was made is kept."""
    mix(sparse, tmp_path / "whole")
    receipts, run = [], Worker.__call__

    def fails(self, task):
        if len(receipts) == 7:
            raise StorageError("no more", code="no-more")
        receipts.append(run(self, task))
        return receipts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__call__", fails)
        with pytest.raises(StorageError, match="no more"):
            mix(sparse, tmp_path / "out", workers=1)
    assert mix(sparse, tmp_path / "out").resumed == sum(receipt.size for receipt in receipts) > 0
    one, other = (tmp_path / n / "model.safetensors" for n in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()


MEASURE = """
from paramdelta import plan, read_recipe
from paramdelta.api import budget_for
from tests.footprint import Discard
from tests.mixing import mixed
small, large = (plan(read_recipe(path)) for path in sys.argv[1:])
def run(made, workers):
    budget = budget_for(made, 100_000_000, workers)
    mixed(made, workers=budget.workers, buffer=budget.buffer, sink=Discard())
    return budget.projected
run(small, 1)
with Growth() as growth:
    projected = run(large, 4)
print(growth.bytes, projected)
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
    paths = [tmp_path / size / "recipe.yaml" for size in ("small", "large")]
    grown, projected = printed(MEASURE, *paths)
    assert grown <= projected <= 100_000_000


class Even(Filter):
    """A filter that no compiled code knows: every second element counts."""

    def keep(self, difference, start):
        """By number."""
        return (np.arange(start, start + len(difference)) & 1) == 0

    @property
    def plain(self):
        """Its name."""
        return "even"

    def __str__(self):
        return "every second one"


def finite(dtype):
    """Bit patterns of finite numbers that are far from overflow."""
    return patterns(dtype).filter(
        lambda bits: math.isfinite(decode(bits, dtype)) and abs(decode(bits, dtype)) < 1e30
    )


@pytest.mark.parametrize("scheme", [SUM, Ties(0.5, 0.75), Ties(normalize=False)], ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_any_filters_in_any_order(scheme, dtype):
    """Against exact fractions: filters that the compiled code knows, others, and some twice.

    An election may round its result as far as `verify` allows.
    """
    drops = [Drop(0.5, 3), Drop(0.25, 4), Trim(0.5, 0.5), Trim(0.5, 2.0), Even()]

    @settings(max_examples=100)
    @given(
        st.lists(st.tuples(*[finite(dtype)] * 5), min_size=1, max_size=30),
        st.lists(st.lists(st.sampled_from(drops), max_size=3), min_size=2, max_size=2),
        st.integers(0, 2**40),
    )
    def check(rows, filters, start):
        operands = [array([row[i] for row in rows], dtype) for i in range(5)]
        views = [Tensor(str(i), dtype, (len(rows),), None, 0, 0) for i in range(5)]
        pairs = [
            Pair(i, views[1 + 2 * i], views[2 + 2 * i], 0.5 + i, tuple(filters[i]))
            for i in range(2)
        ]
        out = np.empty(len(rows), operands[0].dtype)
        scheme.combine(pairs, operands, start, out, dtype, np.empty((SCRATCH, BLOCK)))
        for at, row in enumerate(rows):
            new, *others = (Fraction(decode(bits, dtype)) for bits in row)
            terms = []
            for pair, post, base in zip(pairs, others[::2], others[1::2], strict=True):
                kept = all(f.keep(np.array([float(post - base)]), start + at) for f in pair.filters)
                terms.append(kept * Fraction(pair.coefficient) * (post - base))
            merged = scheme.exact(terms, pairs)
            exact = new + merged
            found = Fraction(decode(int(out.view(BITS[dtype])[at]), dtype))
            # An election divides in double-double, of which the new base can leave only the end.
            share = 0 if scheme == SUM else MERGED * abs(merged)
            assert abs(found - exact) <= Fraction(51, 100) * ulp(exact, dtype) + share, row

    check()
