"""Decoding of ggml's blocks: two independent implementations agree, and both with the reference."""

import numpy as np
import pytest

from paramdelta.arithmetic import ggml
from paramdelta.formats.gguf.types import TYPES
from paramdelta.jobs.verify import ggml as plain

QUANTIZED = [kind for kind in TYPES.values() if kind.levels]


def same(one, other):
    """Whether two arrays have the same bits, but for NaN."""
    bits = one.view(np.uint32) == other.view(np.uint32)
    return bool((bits | (np.isnan(one) & np.isnan(other))).all())


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_kernel_numpy_and_reference_agree(kind):
    """Random bytes, so every bit of every field matters; scales of any size, infinite and NaN."""
    gguf = pytest.importorskip("gguf")
    blocks = np.random.default_rng(0).integers(0, 256, (400, kind.size), dtype=np.uint8)
    found = np.empty((400, kind.elements), np.float32)
    ggml.decode(kind.name, blocks, found)
    assert same(found, plain.numbers(kind.name, blocks))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    assert same(found, expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_zero_keeps_its_sign(kind):
    """A code of zero times a negative scale, where nothing is added, is negative zero."""
    blocks = np.zeros((1, kind.size), np.uint8)
    found = np.empty((1, kind.elements), np.float32)
    ggml.decode(kind.name, blocks, found)
    expected = plain.numbers(kind.name, blocks)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
