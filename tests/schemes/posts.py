"""Posts of one base, their Δs in float64, and mixes of them in memory."""

import numpy as np

from paramdelta import Delta, Recipe, plan
from tests.checkpoints import llama, moved, save
from tests.mixing import mixed

NAME = "model.layers.0.mlp.up_proj.weight"
MASK = 2**64 - 1


def splitmix(key: int, number: int) -> int:
    """Output ``number`` of SplitMix64, in whole numbers, as docs/recipes.md has it."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def f32(array):
    """Numbers of a test's checkpoint as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def save_posts(folder, dtype):
    """Save a new base, a base and three posts of it; their tensors by folder."""
    base = llama()
    sets = {"base": base, "new": moved(base, 9)}
    sets |= {f"post{i}": moved(base, i) for i in (1, 2, 3)}
    if dtype == "F32":
        chance = np.random.default_rng(5)
        sets = {
            name: {n: f32(t) + chance.normal(0, 1e-4, t.shape).astype("f4") for n, t in s.items()}
            for name, s in sets.items()
        }
    for name, tensors in sets.items():
        save(folder / name, tensors)
    return sets


def delta(folder, number: int, scale=1.0, **choices) -> Delta:
    """One of the posts over the base."""
    return Delta(str(folder / f"post{number}"), str(folder / "base"), scale, **choices)


def made(recipe: Recipe, buffer: int = 1 << 20, workers: int = 2):
    """A mix in memory, by name, as float64; and its bytes."""
    sink, _ = mixed(plan(recipe), workers=workers, buffer=buffer)
    found = {name: f32(array).astype(np.float64) for name, array in sink.tensors.items()}
    return found, {name: array.tobytes() for name, array in sink.tensors.items()}


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
