"""The checkpoints that the benchmarks are measured on are what they say they are."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks import make_checkpoints, make_sparse
from benchmarks.agreement import Values, compare, round_once, widen
from benchmarks.llama import BENCH, SIZES, Llama

TINY = Llama(hidden=64, layers=2, intermediate=128, heads=4, kv_heads=2, vocab=512)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("1B", 1_235_814_400), ("3B", 3_212_749_824), ("8B", 8_030_261_248), ("70B", 70_553_706_496)],
)
def test_true_sizes(size: str, parameters: int) -> None:
    """The published parameter counts come out of the shapes."""
    assert SIZES[size].parameters() == parameters
    assert 1.39e9 < BENCH.parameters() < 1.41e9


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Two makings agree to the byte; another seed does not."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_checkpoints.make(tmp_path / name, TINY, seed=seed, shard_size=100_000)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a != c


def test_loads_and_looks_trained(tmp_path: Path) -> None:
    """safetensors accepts every shard; names and shapes are the Llama's; post is near base."""
    make_checkpoints.make(tmp_path, TINY, shard_size=100_000)
    seen = {}
    for path in (tmp_path / "post").glob("*.safetensors"):
        with safe_open(path, "np") as file:
            seen |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert seen == TINY.tensors()
    name = "model.embed_tokens.weight"
    post, base, new = (widen(Values(tmp_path / k).bits(name)) for k in ("post", "base", "new"))
    assert 0.019 < base.std() < 0.021
    assert 0.0004 < (post - base).std() < 0.0006
    assert 0.0009 < (new - base).std() < 0.0011


def test_sparse_files_take_no_disk(tmp_path: Path) -> None:
    """An 8B checkpoint has its true size, valid headers, and next to no blocks."""
    make_sparse.make(tmp_path, SIZES["8B"])
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    names = set()
    for path in files:
        with safe_open(path, "np") as file:
            names |= set(file.keys())
    assert names == SIZES["8B"].tensors().keys()
    assert sum(path.stat().st_size for path in files) > 2 * SIZES["8B"].parameters()
    assert sum(path.stat().st_blocks * 512 for path in files) < 1 << 20


def test_rounding_of_the_judge() -> None:
    """`round_once` keeps bfloat16 as it is, breaks ties to even and does not round twice."""
    bits = np.arange(0x7F7F, dtype=np.uint16)
    assert np.array_equal(round_once(widen(bits)), bits)
    assert np.array_equal(round_once(-widen(bits)), bits | 0x8000)
    one = widen(np.array([0x3F80], np.uint16))  # 1; the step above it is 2⁻⁷
    assert round_once(one + 2**-8) == 0x3F80
    assert round_once(one + 3 * 2**-8) == 0x3F82
    assert round_once(one + 2**-8 + 2**-40) == 0x3F81  # lost if it stopped at float32


def test_agreement_sees_one_wrong_bit(tmp_path: Path) -> None:
    """With base as post, the new base is the right output; one bit off is not."""
    make_checkpoints.make(tmp_path, TINY)
    base, new = tmp_path / "base", tmp_path / "new"
    assert compare(base, base, new, new)["exact_share"] == 1
    assert compare(base, base, new, new)["largest_error"] == 0
    (path,) = new.glob("*.safetensors")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    (wrong / path.name).write_bytes(data)
    assert compare(base, base, new, wrong)["exact_share"] < 1
