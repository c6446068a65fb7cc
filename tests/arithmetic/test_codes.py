"""One Δ of matrices in FP8, added out of their codes: the same bits as decoded and added."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, mix, plan, verify
from paramdelta.arithmetic import kernels
from paramdelta.arithmetic.fp8 import Codes, decode
from paramdelta.dtypes import DTYPES
from tests.checkpoints import bf16, fp8, save
from tests.numbers import decode as number
from tests.numbers import fp8_values, nearest

VALUES = fp8_values("F8_E4M3")
SIDES = ((128, 128), (3, 40), (1, 70), (50, 70), (2, 33))  # of blocks; the matrix is 50 × 70


def run_of(matrix, scales, block, start, stop, mantissa=3):
    """A run of a matrix as the engine reads it: the scales from the first block that it touches."""
    height, width = block
    row, column = divmod(start, matrix.shape[1])
    top, bottom = row // height, -(-stop // matrix.shape[1] // height)
    codes = matrix.reshape(-1)[start:stop]
    wide = scales[top:bottom].astype(np.float64)
    columns = matrix.shape[1]
    return Codes(codes, wide, row - top * height, column, columns, height, width, mantissa)


def both(runs, out):
    """What comes out of codes and of decoded numbers, as bits, and whether the first was done."""
    operands = []
    for run in runs:
        operands.append(np.empty(run.codes.size))
        decode(run, operands[-1])
    one, two = (np.empty(runs[0].codes.size, DTYPES[out].numpy) for _ in range(2))
    done = kernels.mix_codes(*runs, one)
    kernels.mix_exact(*operands, two, np.float64(0))
    return one.view(np.uint8).tolist(), two.view(np.uint8).tolist(), done


@pytest.mark.parametrize("out", ["BF16", "F16", "F32", "F64"])
def test_out_of_codes_or_out_of_numbers(out):
    """Any run, any blocks, scales of any size near each other: the same bits, zeros' signs too."""

    @settings(max_examples=150, deadline=None)
    @given(
        st.integers(0, 2**32 - 1),
        st.tuples(*[st.sampled_from(SIDES)] * 3),
        st.integers(-126, 118),
        st.sampled_from((0, 2, 9)),
        st.tuples(st.integers(0, 3500), st.integers(0, 3500)),
        st.booleans(),
    )
    def check(seed, blocks, exponent, spread, ends, alike):
        chance = np.random.default_rng(seed)
        start, stop = min(ends), max(ends)
        runs = []
        pool = np.append(chance.integers(0, 0x7F, 3), 0) if alike else np.arange(0x7F)
        for height, width in blocks:
            codes = chance.choice(pool, (50, 70)) | chance.integers(0, 2, (50, 70)) << 7
            grid = -(-50 // height), -(-70 // width)
            exponents = exponent + chance.integers(0, spread + 1, grid)
            fractions = 1.0 if alike else 1 + chance.integers(0, 2**23, grid) / 2**23
            scales = np.ldexp(np.broadcast_to(fractions, grid), exponents).astype(np.float32)
            matrix = codes.astype(np.uint8)
            runs.append(run_of(matrix, scales, (height, width), start, stop))
        one, two, done = both(runs, out)
        assert one == two or not done
        finite = {"BF16": 116, "F16": 4, "F32": 116, "F64": 127}[out]
        assert done or exponent < -94 or exponent + spread > finite

    check()


def test_the_rounding_is_that_of_the_exact_sum():
    """Against fractions: scales as far apart as they may be, and no further."""
    chance = np.random.default_rng(0)
    for far, expected in ((9, True), (-9, True), (10, False), (-10, False)):
        runs, exact = [], [Fraction(0)] * 70
        for sign, exponent in ((1, 0), (1, far), (-1, 0)):
            codes = chance.integers(0, 0x7F, (1, 70)).astype(np.uint8)
            scale = np.float32(np.ldexp(1 + (2**23 - 1) / 2**23, exponent))
            runs.append(run_of(codes, np.full((1, 1), scale), (1, 70), 0, 70))
            for i, code in enumerate(codes[0]):
                exact[i] += sign * Fraction(float(VALUES[code])) * Fraction(float(scale))
        result = np.empty(70, np.uint16)
        assert kernels.mix_codes(*runs, result) == expected
        if expected:
            for bits, value in zip(result, exact, strict=True):
                assert number(int(bits), "BF16") == nearest(value, "BF16")


def test_subnormal_sums_are_rounded_once():
    """Half of BF16's least number and 2^-155, which float32 would lose, come out as that number."""
    code = np.ones((1, 1), np.uint8)  # 2^-9
    scales = [np.float32(s) for s in (2.0**-125, 2.0**-124 * (1 + 2.0**-22), 2.0**-124)]
    runs = [run_of(code, np.full((1, 1), s), (1, 1), 0, 1) for s in scales]
    one, two, done = both(runs, "BF16")
    assert two == [1, 0]
    assert one == two or not done


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "bad", ["NaN", "-NaN", "E5M2", 0.0, np.inf, np.nan, 2.0**-100, 1 / 3, 2.0**128]
)
def test_what_is_not_sure_is_not_done(place, bad):
    """NaN, another format, and scales that say nothing of the sums, in any operand."""
    runs = []
    for at in range(3):
        codes = np.full((4, 64), 0x38, np.uint8)
        scales = np.ones((1, 2))
        if at == place and isinstance(bad, float):
            scales[0, 1] = bad
        elif at == place and bad != "E5M2":
            codes[3, 63] = 0x7F if bad == "NaN" else 0xFF
        mantissa = 2 if at == place and bad == "E5M2" else 3
        run = run_of(codes, scales, (4, 32), 0, 256, mantissa)
        runs.append(run._replace(scales=scales))
    assert not kernels.mix_codes(*runs, np.empty(256, np.uint16))
    assert kernels.mix_codes(runs[place - 1], runs[place - 1], runs[place - 1], np.empty(256))


def a_lineage(folder, spoil=None):
    """Three checkpoints in FP8, of matrices with cut blocks, larger than a slice and small."""
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    for seed, role in enumerate(("base", "post", "new")):
        tensors = fp8(seed, large=(1100, 1000), small=(3, 200)) | {"norm": bf16(np.ones(8))}
        if role == spoil:
            tensors["large.weight"][700, 3] = 0x7F
            tensors["large.weight_scale_inv"][0, 2] = 0
            tensors["small.weight_scale_inv"][0, 1] *= 2**20
        save(folder / role, tensors, config_json={"model_type": "x", **config})
    return Recipe(
        str(folder / "new"), (Delta(str(folder / "post"), str(folder / "base")),), dtype=None
    )


@pytest.mark.parametrize("memory", ["70MB", "256MB"])
@pytest.mark.parametrize("spoil", [None, "base", "post", "new"])
def test_a_mix_of_checkpoints_in_fp8(tmp_path, monkeypatch, spoil, memory):
    """Codes are added as they are, and where that is not sure they are decoded: every number is
    right, and NaN is reported. Scale -1 exchanges post and base.
    """
    done = []
    real = kernels.mix_codes

    def watched(*runs_and_out):
        done.append(real(*runs_and_out))
        return done[-1]

    monkeypatch.setattr(kernels, "mix_codes", watched)
    recipe = a_lineage(tmp_path, spoil)
    assert [t.packed for t in plan(recipe).tensors if t.dtype == "BF16"].count(True) == 2
    made = mix(recipe, tmp_path / "out", memory=memory)
    assert len(done) >= 2
    assert all(done) == (spoil is None)
    role = "new base" if spoil == "new" else spoil
    assert made.not_finite == ({} if spoil is None else {("large.weight", role): 1})
    assert verify(tmp_path / "out", share=1.0).elements == 1100 * 1000 + 3 * 200 + 8
    done.clear()
    other = Recipe(recipe.new_base, (Delta(recipe.deltas[0].base, recipe.deltas[0].post, -1.0),))
    mix(other, tmp_path / "other", memory=memory)
    assert len(done) >= 2
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "other"))
    assert one[len(one) - 2 * 1_100_608 :] == two[len(two) - 2 * 1_100_608 :]


def test_only_one_whole_delta_is_packed(tmp_path):
    """At another scale, with several Δ, or with an operand that is no matrix in FP8, numbers are
    decoded first.
    """
    recipe = a_lineage(tmp_path)
    (delta,) = recipe.deltas
    bfloat = {"large.weight": bf16(np.zeros((1100, 1000))), "norm": bf16(np.ones(8))}
    save(tmp_path / "wide", bfloat | {"small.weight": bf16(np.zeros((3, 200)))}, config_json={})
    for other in (
        Recipe(recipe.new_base, (Delta(delta.post, delta.base, 0.5),)),
        Recipe(recipe.new_base, (delta, Delta(str(tmp_path / "wide"), delta.base))),
        Recipe(str(tmp_path / "wide"), (delta,)),
    ):
        assert not any(tensor.packed for tensor in plan(other).tensors)
