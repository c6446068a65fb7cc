"""Operands that cancel out: what is left is the same sum, and is read less."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, mix, plan, verify
from paramdelta.encodings.plain import Plain
from paramdelta.formats.view import Tensor
from paramdelta.planning.cancellation import cancelled
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import BLOCK, SCRATCH
from tests.checkpoints import bf16, encode, llama, moved, save
from tests.numbers import BITS, FORMATS, VIEWS, array, decode, nearest
from tests.views import Store

LENT = np.empty((SCRATCH, BLOCK))
# Simple scales often cancel; any of the others does so with its own negative.
SCALES = st.sampled_from([0.5, -0.5, 1.0, -1.0, 0.25, 0.75, 2.0, 0.1, -0.1, 0.7])


def weights(dtype):
    """Eight bit patterns of numbers of about one size, as weights are."""
    digits, highest, _ = FORMATS[dtype]
    one, sign = highest << (digits - 1), 1 << (8 * BITS[dtype]().itemsize - 1)
    low, high = one - (12 << (digits - 1)), one + (3 << (digits - 1))
    number = st.tuples(st.integers(low, high), st.sampled_from((0, sign))).map(sum)
    return st.lists(number, min_size=8, max_size=8)


def output(new, *pairs, dtype="BF16"):
    """An output tensor of pairs (post, base, scale)."""
    made = [Pair(number, *pair) for number, pair in enumerate(pairs)]
    return OutputTensor("w", Plain(dtype), new.shape, new, tuple(made))


def mixed(tensor, operands):
    """The engine's numbers for a tensor; ``operands``: array by view's name."""
    out = np.empty(tensor.elements, VIEWS[tensor.dtype])
    found = [operands[term.view.name] for term in tensor.terms]
    tensor.scheme.combine(tensor.pairs, found, 0, out, tensor.dtype, LENT)
    return out


def test_what_cancels():
    """The cases of the module's docstring, as terms."""
    store = Store()
    n, b, p, q, r = (store.tensor(name, np.zeros(4, np.float32)) for name in "nbpqr")

    def left(new, *pairs):
        tensor = cancelled(output(new, *pairs))
        return tensor.new.name, [(x.post.name, x.base.name, x.scale) for x in tensor.pairs]

    assert left(n, (p, b, 0.7), (q, b, -0.7)) == ("n", [("p", "q", 0.7)])
    assert left(n, (p, b, -1), (q, b, 1)) == ("n", [("q", "p", 1)])
    assert left(n, (p, b, 0.5), (q, b, 0.5), (r, b, -1)) == (
        "n",
        [("p", "r", 0.5), ("q", "r", 0.5)],
    )
    assert left(b, (p, b, 1)) == ("p", [])
    assert left(b, (p, b, 0.5), (q, b, 0.5)) == ("p", [("q", "p", 0.5)])
    assert left(b, (p, b, 1), (q, p, 1)) == ("q", [])  # a chain
    assert left(n, (p, b, 1), (b, n, 1)) == ("p", [])
    assert left(n, (p, p, 0.3)) == ("n", [])
    assert left(b, (p, b, 0.5)) == ("b", [("p", "b", 0.5)])
    assert left(n, (p, b, 0.1), (q, b, 0.2), (r, b, -0.3)) == (  # not zero as float64 are
        "n",
        [("p", "b", 0.1), ("q", "b", 0.2), ("r", "b", -0.3)],
    )


@given(st.data())
def test_the_sum_is_the_same(data):
    """Any formula over a few operands: nothing that is left sums to zero, the coefficient of each
    operand is exactly what it was, and there are never more operands.
    """
    views = [Tensor(name, "F32", (2,), None, 0, 8) for name in "abcd"]
    operand = st.sampled_from(views)
    pairs = data.draw(st.lists(st.tuples(operand, operand, SCALES), max_size=4))
    tensor = output(data.draw(operand), *pairs)
    left = cancelled(tensor)

    def sums(of):
        total = dict.fromkeys("abcd", Fraction(0))
        total[of.new.name] += 1
        for pair in of.pairs:
            total[pair.post.name] += Fraction(pair.scale)
            total[pair.base.name] -= Fraction(pair.scale)
        return total

    assert sums(left) == sums(tensor)
    assert all(sums(left)[view.name] != 0 for view in left.views)
    assert len(left.views) <= len(tensor.views)
    assert left.mixed == bool(pairs)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@given(st.data(), st.sampled_from([1.0, 0.5, 0.7, -0.3]), st.booleans())
def test_bits_are_those_of_the_whole_formula(dtype, data, scale, on_base):
    """Where the formula is finite, the shorter form gives its bits (of zeros, perhaps not the
    sign), and both are the exact sum rounded once.

    With numbers further apart than weights are, the longer form loses digits first.
    """
    bits = {name: data.draw(weights(dtype)) for name in "nbpq"}
    store = Store()
    views = {n: store.tensor(n, array(values, dtype), dtype) for n, values in bits.items()}
    n, b, p, q = (views[name] for name in "nbpq")
    if on_base:
        whole = output(b, (p, b, scale), (q, b, 1 - scale), dtype=dtype)
    else:
        whole = output(n, (p, b, scale), (q, b, -scale), dtype=dtype)
    left = cancelled(whole)
    if not on_base or Fraction(scale) + Fraction(1 - scale) == 1:
        assert len(left.views) < len(whole.views)
    one, other = mixed(whole, store.arrays), mixed(left, store.arrays)
    for at in range(8):
        value = {name: Fraction(decode(values[at], dtype)) for name, values in bits.items()}
        exact = value[whole.new.name] + sum(
            Fraction(x.scale) * (value[x.post.name] - value[x.base.name]) for x in whole.pairs
        )
        wanted = nearest(exact, dtype)
        if math.isfinite(wanted):
            for found in (one, other):
                raw = int(found[at : at + 1].view(f"u{found.itemsize}")[0])
                assert decode(raw, dtype) == wanted


def test_a_new_base_that_is_the_base_gives_post_byte_for_byte(tmp_path):
    """NaN with its payload, infinities and zeros of both signs included; base is not read at all,
    whatever it holds.
    """
    special = np.array(
        [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFAB, 0x0001, 0x3F80], np.uint16
    ).reshape(2, 4)
    tensors = {"a": special, "b": bf16(np.ones((2, 4)))}
    base = {"a": bf16(np.full((2, 4), np.nan)), "b": bf16(np.zeros((2, 4)))}
    save(tmp_path / "post", tensors)
    save(tmp_path / "base", base)
    recipe = Recipe(str(tmp_path / "base"), (Delta(tmp_path / "post", tmp_path / "base"),))
    made = plan(recipe)
    assert [(t.mixed, t.why, len(t.views)) for t in made.tensors] == [(True, "", 1)] * 2
    assert made.bytes_to_read == made.bytes_to_write
    mix(recipe, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert encode(tensors)[-32:] == written[-32:]
    verify(tmp_path / "out", share=1.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_n_deltas_are_at_most_2n_and_1_reads(tmp_path, count):
    """Each operand's bytes are read once, however many Δ share it; with one base, N + 2 in all."""
    base = llama()
    save(tmp_path / "base", base)
    save(tmp_path / "new", moved(base, 99))
    deltas = []
    for number in range(count):
        post = save(tmp_path / f"post{number}", moved(base, number))
        own = save(tmp_path / f"base{number}", moved(base, 50 + number))
        deltas.append(Delta(post, own, 0.25))
    for chosen, reads in (
        (deltas, 2 * count + 1),
        ([replace(delta, base=str(tmp_path / "base")) for delta in deltas], count + 2),
    ):
        recipe = Recipe(str(tmp_path / "new"), tuple(chosen))
        made = plan(recipe)
        assert made.bytes_to_read == reads * made.bytes_to_write
        result = mix(made, tmp_path / "out", overwrite=True, workers=2)
        assert result.moved == (reads + 1) * made.bytes_to_write
        verify(tmp_path / "out", share=1.0)
