"""Numbers of the output against the formula: plain dtypes, FP8 blocks, and what decides ties."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from paramdelta import Delta, MisfitError, Recipe, mix, verify
from paramdelta.encodings.plain import Plain
from paramdelta.formats.lowrank import LowRank
from paramdelta.formats.view import Zeros
from paramdelta.jobs.verify import comparison
from paramdelta.jobs.verify.comparison import OutputTarget
from paramdelta.jobs.verify.stored import Stored
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import Scheme, register
from paramdelta.storage.reader import Reader
from tests import opening
from tests.checkpoints import bf16, encode, fp8, save
from tests.numbers import fp8_values
from tests.views import NAMES

VALUES = fp8_values("F8_E4M3")
SHAPES = {"a": (300, 200), "b": (128, 256), "c": (1, 5), "d": (257, 1500)}
CONFIG = {
    "model_type": "deepseek_v3",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def recipe(folder, scale=1.0, dtype="fp8-block", **choices):
    """The recipe of three folders."""
    delta = Delta(folder / "post", folder / "base", scale)
    return Recipe(str(folder / "new"), (delta,), dtype, **choices)


@pytest.fixture
def quantized(tmp_path):
    """Matrices in FP8, cut blocks among them, and a norm in BF16."""
    for seed, role in enumerate(("base", "post", "new")):
        tensors = fp8(seed, **SHAPES) | {"norm.weight": bf16(np.full(64, 1 + seed / 8))}
        save(tmp_path / role, tensors, config_json=CONFIG)
    return tmp_path


def flipped(folder, name, element, size):
    """Flip the lowest bit of one element of an output."""
    tensor = opening.checkpoint(folder, "output").tensors[name]
    path = folder / tensor.blob.name
    data = bytearray(path.read_bytes())
    data[tensor.offset + element * size] ^= 1
    path.write_bytes(data)


def compared(tensor, written):
    """The first difference of a whole tensor."""
    with Reader() as reader:
        target = OutputTarget(tensor, (written,))
        return target.compare(0, tensor.elements, 1 << 17, Stored(reader))


def held(path, **arrays):
    """Stored tensors of a file, by name."""
    path.write_bytes(encode(arrays))
    return {tensor.name: tensor for tensor in opening.header(path)}


# -- plain dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "small", "right"),
    [(256.0, 2**-53, True), (258.0, 2**-53, True), (260.0, 2**-53, False), (256.0, 2**-30, False)],
)
def test_only_a_tie_is_a_matter_of_the_last_bits(tmp_path, got, small, right):
    """256 + (1 + 2⁻⁵³ + 2⁻⁵³) in bfloat16: summed in order the Δ is 1 and the tie goes to 256,
    exactly it is a little more and goes to 258. Both are right; nothing else is, and nothing is
    where the sum has room.
    """
    found = held(
        tmp_path / "f",
        b=np.array([[1, small, small]], np.float32),
        a=np.ones((3, 1), np.float32),
        new=bf16([[256.0]]),
        got=bf16([[got]]),
    )
    delta = LowRank("w", "F64", (1, 1), found["b"], found["a"], 1.0)
    pair = Pair(0, delta, Zeros("w", "F64", (1, 1)), 1.0)
    tensor = OutputTensor("w", Plain("BF16"), (1, 1), found["new"], (pair,))
    assert (compared(tensor, found["got"]) is None) is right


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_tie_goes_to_even(tmp_path, scale, dtype):
    """At scale 1 the sum is correctly rounded: the odd neighbor of a tie is wrong."""
    kind, step = (bf16, 2.0**-7) if dtype == "BF16" else (np.float32, 2.0**-23)
    tensors = {
        "new": kind([1.0, 1.0]),
        "post": kind([step / 2 * scale] * 2),
        "base": kind([0.0, 0.0]),
        "even": kind([1.0, 1.0]),
        "odd": kind([1.0, 1.0 + step]),
    }
    found = held(tmp_path / "f", **tensors)
    pair = Pair(0, found["post"], found["base"], scale)
    tensor = OutputTensor("w", Plain(dtype), (2,), found["new"], (pair,))
    assert compared(tensor, found["even"]) is None
    assert compared(tensor, found["odd"]).element == 1


def test_every_neighbor_of_every_number_is_wrong(tmp_path):
    """One step up or down from a mixed number, in each dtype and at any scale, is found."""
    chance = np.random.default_rng(0)
    for dtype, kind in {"BF16": bf16, "F16": np.float16, "F32": np.float32}.items():
        operands = {n: kind(chance.normal(0, 1, 300)) for n in ("new", "post", "base")}
        for scale in (1.0, 0.37):
            folder = tmp_path / f"{dtype} {scale}"
            for role, values in operands.items():
                save(folder / role, {"w": values}, config_json={})
            out = mix(recipe(folder, scale, None), folder / "out").folder
            (tensor,) = opening.checkpoint(out, "output").tensors.values()
            (planned,) = __import__("paramdelta").plan(recipe(folder, scale, None)).tensors
            right = (out / "model.safetensors").read_bytes()
            size = tensor.kind.size
            for element in range(0, 300, 23):
                for way in (1, -1):
                    data = bytearray(right)
                    at = tensor.offset + element * size
                    number = int.from_bytes(data[at : at + size], "little")
                    data[at : at + size] = (number + way).to_bytes(size, "little")
                    (out / "model.safetensors").write_bytes(data)
                    fresh = opening.checkpoint(out, "output").tensors["w"]
                    assert compared(planned, fresh).element == element
    assert NAMES["int16"] == "F16"


def test_infinities_and_nan(tmp_path):
    """What the formula gives of them is compared as well, NaN with NaN."""
    inf, nan = math.inf, math.nan
    found = held(
        tmp_path / "f",
        new=np.array([inf, nan, 1, -inf, 3e38], np.float32),
        post=np.array([1, 1, inf, 0, 3e38], np.float32),
        base=np.array([0, 0, 0, 0, 0], np.float32),
        right=np.array([inf, nan, inf, -inf, inf], np.float32),
        wrong=np.array([inf, nan, inf, inf, inf], np.float32),
        finite=np.array([inf, 1, inf, -inf, inf], np.float32),
    )
    pair = Pair(0, found["post"], found["base"], 1.0)
    tensor = OutputTensor("w", Plain("F32"), (5,), found["new"], (pair,))
    assert compared(tensor, found["right"]) is None
    assert compared(tensor, found["wrong"]).element == 3
    assert compared(tensor, found["finite"]).element == 1


def test_copies_are_compared_bit_by_bit(tmp_path):
    """The payload of a NaN, the sign of a zero, and integers beyond float64."""
    found = held(
        tmp_path / "f",
        new=np.array([2**60, 2**60 + 1, -1]),
        same=np.array([2**60, 2**60 + 1, -1]),
        other=np.array([2**60, 2**60, -1]),
        zero=np.array([0.0, math.nan], np.float32),
        minus=np.array([-0.0, math.nan], np.float32),
    )
    integers = OutputTensor("w", Plain("I64"), (3,), found["new"])
    assert compared(integers, found["same"]) is None
    assert compared(integers, found["other"]).element == 1
    floats = OutputTensor("w", Plain("F32"), (2,), found["zero"])
    difference = compared(floats, found["minus"])
    assert (difference.element, difference.got) == (0, "-0.0 (0x80000000)")


def test_a_scheme_without_an_exact_form_is_verified_too(tmp_path, monkeypatch):
    """`Scheme.reference` alone is enough: float64 decides, with its own error allowed for."""
    from dataclasses import dataclass

    from paramdelta.schemes import scheme as registry

    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))

    @register
    @dataclass(frozen=True)
    class Largest(Scheme):
        """The Δ of the largest magnitude."""

        name = "largest"

        def reference(self, terms, pairs):
            return terms[np.abs(terms).argmax(0), np.arange(terms.shape[1])]

    chance = np.random.default_rng(0)
    for role in ("new", "post", "base", "other"):
        save(tmp_path / role, {"w": chance.normal(size=(50, 20))}, config_json={})
    deltas = [Delta(tmp_path / name, tmp_path / "base", 0.3) for name in ("post", "other")]
    out = mix(Recipe(str(tmp_path / "new"), tuple(deltas), scheme=Largest()), tmp_path / "out")
    assert verify(out.folder, share=1.0).elements == 1000
    flipped(out.folder, "w", 77, 8)
    flipped(out.folder, "w", 78, 8)
    with pytest.raises(MisfitError):
        verify(out.folder, share=1.0)


# -- FP8 in blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_quantized_outputs_pass(quantized, scale, share):
    """Codes and scales of whole and cut blocks; a sample takes at least one run of each tensor."""
    mix(recipe(quantized, scale), quantized / "out", memory="80MB")
    found = verify(quantized / "out", share=share)
    assert found.tensors == 9
    everything = sum(
        tensor.elements for tensor in opening.checkpoint(quantized / "out").tensors.values()
    )
    assert found.elements == found.total == everything


@pytest.mark.parametrize("element", [0, 59_999, 31_415])
def test_one_altered_code_is_found(quantized, element):
    """The lowest bit of one code is enough, and is named by tensor and element."""
    mix(recipe(quantized), quantized / "out")
    flipped(quantized / "out", "a.weight", element, 1)
    with pytest.raises(MisfitError, match=rf"'a\.weight', element {element}"):
        verify(quantized / "out", share=1.0)


@pytest.mark.parametrize("element", [0, 5])
def test_one_altered_scale_is_found(quantized, element):
    """The last bit of one scale is enough, though no code would be another one beside it."""
    mix(recipe(quantized), quantized / "out")
    flipped(quantized / "out", "a.weight_scale_inv", element, 4)
    with pytest.raises(MisfitError, match=rf"'a\.weight_scale_inv', element {element}"):
        verify(quantized / "out", share=1.0)


@pytest.mark.parametrize("size", [7, 200, 1 << 14])
def test_scales_do_not_depend_on_how_a_block_is_read(quantized, monkeypatch, size):
    """Runs within a row, of rows, and of blocks."""
    mix(recipe(quantized, 0.37), quantized / "out")
    monkeypatch.setattr(comparison, "size_of", lambda views, most: size)
    assert verify(quantized / "out", share=1.0).elements > 0


def test_codes_that_were_copied_are_compared_as_they_are(quantized):
    """A matrix that only the new base has keeps codes and scales, whatever its largest code."""
    weights = (quantized / "new" / "model.safetensors").read_bytes()
    assert weights
    tensors = fp8(2, **SHAPES) | fp8(9, mtp=(130, 140)) | {"norm.weight": bf16(np.ones(64))}
    save(quantized / "new", tensors, config_json=CONFIG)
    mix(recipe(quantized), quantized / "out")
    verify(quantized / "out", share=1.0)
    flipped(quantized / "out", "mtp.weight_scale_inv", 1, 4)
    with pytest.raises(MisfitError, match=r"'mtp\.weight_scale_inv', element 1"):
        verify(quantized / "out", share=1.0)


def test_what_float64_cannot_hold_is_left_to_fractions(tmp_path):
    """A sum that cancels, at a scale that float64 rounds: verify's plain float64 gives other codes
    than the exact sum, which decides.
    """
    chance = np.random.default_rng(0)
    sets = {
        "new": fp8(0, a=(128, 128)),
        "post": {"a.weight": chance.normal(1e13, 1, (128, 128))},
        "base": {"a.weight": chance.normal(1e13, 1, (128, 128))},
    }
    for role, tensors in sets.items():
        save(tmp_path / role, tensors, config_json=CONFIG)
    out = mix(recipe(tmp_path, 1 / 3), tmp_path / "out").folder
    verify(out, share=1.0)
    tensors = opening.checkpoint(out, "output").tensors
    with Reader() as reader:
        stored = Stored(reader)
        scale = Fraction(float(stored.run(tensors["a.weight_scale_inv"], 0, 1)[0]))
        codes = stored.run(tensors["a.weight"], 0, 128 * 128).reshape(128, 128)
    new = sets["new"]
    for at in [(0, 0), (3, 70), (127, 127)]:
        post, base = (Fraction(float(sets[role]["a.weight"][at])) for role in ("post", "base"))
        start = Fraction(float(VALUES[new["a.weight"][at]])) * Fraction(
            float(new["a.weight_scale_inv"][0, 0])
        )
        exact = (start + Fraction(1 / 3) * (post - base)) / scale
        code = min(range(0x7F), key=lambda c: abs(Fraction(float(VALUES[c])) - abs(exact)))
        assert int(codes[at]) & 0x7F == code


def test_numbers_that_no_code_can_hold(tmp_path):
    """NaN of a source, and sums beyond the largest scale."""
    new, post, base = (fp8(seed, a=(4, 4), b=(4, 4)) for seed in range(3))
    new["a.weight"][1, 1] = 0x7F
    new["b.weight_scale_inv"][:] = post["b.weight_scale_inv"][:] = 3e38
    new["b.weight"][:] = post["b.weight"][:] = 0x7E
    for role, tensors in (("new", new), ("post", post), ("base", base)):
        save(tmp_path / role, tensors, config_json=CONFIG)
    mix(recipe(tmp_path), tmp_path / "out")
    verify(tmp_path / "out", share=1.0)


def test_a_scale_of_nothing_is_a_difference_and_no_crash(quantized):
    """Zero, infinity and NaN where a scale should be."""
    out = mix(recipe(quantized), quantized / "out").folder
    tensor = opening.checkpoint(out, "output").tensors["a.weight_scale_inv"]
    path = out / "model.safetensors"
    right = path.read_bytes()
    lock = json.loads((out / "paramdelta.lock.json").read_text())
    assert lock["outputs"]["model.safetensors"]["size"] == len(right)
    for scale in (0.0, math.inf, math.nan, -1.0):
        data = bytearray(right)
        data[tensor.offset : tensor.offset + 4] = np.float32(scale).tobytes()
        path.write_bytes(data)
        with pytest.raises(MisfitError, match="not what its sources give"):
            verify(out, share=1.0)
