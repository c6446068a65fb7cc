"""Inputs of the golden cases: the same bytes on every machine and with every library version.

Numbers come from SHA-256 and raw PCG64 output, whose streams NumPy guarantees, by exact
floating-point operations. Names, shapes and companion files of real architectures come from
`outlines`, so neither torch nor transformers takes part.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from tests.checkpoints import bf16, encode, save
from tests.golden.outlines import Outline, outlines

Tensors = dict[str, np.ndarray]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CONFIG = {"model_type": "llama", "hidden_size": 16, "tie_word_embeddings": False}
FP8_CONFIG = {
    "model_type": "deepseek_v3",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def raw(key: str, shape: Iterable[int]) -> np.ndarray:
    """Uniform uint64 words that depend on the key alone."""
    shape = tuple(shape)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    words = np.random.PCG64(seed).random_raw(int(np.prod(shape, dtype=np.int64)))
    return np.asarray(words, np.uint64).reshape(shape)


def uniform(key: str, shape: Iterable[int]) -> np.ndarray:
    """float64 numbers in [-1, 1), exact multiples of 2⁻⁵²."""
    return (raw(key, shape) >> np.uint64(11)) * 2.0**-52 - 1


def weights(role: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 weights of a role: those of "base", moved a little by the role's training."""
    small = np.prod(shape) < 20_000
    found = (_weights if small else _weights.__wrapped__)(role, name, shape)
    found.setflags(write=False)
    return found


@cache  # many cases have the same small tensors
def _weights(role: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    start = 0.1 * uniform(f"start/{name}", shape)
    return start if role == "base" else start + 0.01 * uniform(f"{role}/{name}", shape)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values as `tests.checkpoints.encode` stores a dtype."""
    if dtype == "BF16":
        return bf16(values)
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])


def filled(role: str, name: str, dtype: str, shape: Iterable[int]) -> np.ndarray:
    """A tensor of an outline with numbers: weights, FP8 codes, scales, variances or counters."""
    shape = tuple(shape)
    if dtype == "F8_E4M3":
        codes = (raw(f"{role}/{name}", shape) >> np.uint64(32)).astype(np.uint8)
        return np.where(codes & 0x7F == 0x7F, codes ^ 1, codes).astype(np.uint8)
    if dtype in ("I64", "BOOL"):
        words = raw(f"{role}/{name}", shape) >> np.uint64(56)
        return words.astype(np.int64) if dtype == "I64" else words > 99
    if name.endswith(("_scale_inv", "_scale")):
        return stored(1e-4 * (1.5 + 0.5 * uniform(f"{role}/{name}", shape)), dtype)
    if name.endswith("running_var"):
        return stored(2 + 0.25 * uniform(f"{role}/{name}", shape), dtype)
    return stored(weights(role, name, shape), dtype)


def write_outline(
    folder: Path, outline: Outline, role: str, alias: Mapping[str, str] | None = None
) -> Path:
    """Write a checkpoint or an adapter of an outline, filled with a role's numbers.

    ``alias``: tensors that have the numbers of another.
    """
    folder.mkdir(parents=True)
    for file, tensors in outline["weights"].items():
        arrays = {
            name: filled(role, (alias or {}).get(name, name), dtype, shape)
            for name, (dtype, shape) in tensors.items()
        }
        (folder / file).write_bytes(encode(arrays, {"format": "pt"}))
    for file, text in outline["files"].items():
        (folder / file).write_bytes(text.encode())
    return folder


def write_model(
    folder: Path, model: str, *, roles: Iterable[str] = ("new", "post", "base")
) -> None:
    """Write ``folder/role`` for every role of a recorded model."""
    for role in roles:
        write_outline(folder / role, outlines()[model][role], role)


def llama(
    role: str,
    dtype: str = "BF16",
    *,
    hidden: int = 16,
    layers: int = 2,
    vocab: int = 32,
    tied: bool = False,
) -> Tensors:
    """A tiny Llama. ``dtype`` "mixed": four dtypes in turn, another order for each role."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab, hidden)}
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{stem}self_attn.{name}.weight"] = (hidden, hidden)
        shapes[f"{stem}mlp.gate_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{stem}mlp.up_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{stem}mlp.down_proj.weight"] = (hidden, 2 * hidden)
        shapes[f"{stem}input_layernorm.weight"] = (hidden,)
        shapes[f"{stem}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes[HEAD] = (vocab, hidden)
    kinds = ("BF16", "F32", "F16", "F64")
    turn = {"new": 0, "post": 1, "base": 2}.get(role, 3)
    return {
        name: stored(
            weights(role, name, shape), kinds[(i + turn) % 4] if dtype == "mixed" else dtype
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def fp8(role: str, **shapes: tuple[int, int]) -> Tensors:
    """FP8 matrices with a scale for each block of 128 × 128, cut blocks among them."""
    tensors: Tensors = {}
    for name, (rows, columns) in shapes.items():
        blocks = (-(-rows // 128), -(-columns // 128))
        tensors[f"{name}.weight"] = filled(role, f"{name}.weight", "F8_E4M3", (rows, columns))
        scales = filled(role, f"{name}.weight_scale_inv", "F32", blocks)
        tensors[f"{name}.weight_scale_inv"] = scales
    return tensors


def write_llamas(
    folder: Path, dtype: str = "BF16", roles: Iterable[str] = ("base", "post", "new"), **sizes: int
) -> None:
    """``folder/role`` for tiny Llamas; the new base in three shards, post in two."""
    for role in roles:
        shards = {"new": 3, "post": 2}.get(role, 1)
        save(folder / role, llama(role, dtype, **sizes), shards=shards, config_json=CONFIG)


# Bit patterns that arithmetic treats specially, by dtype: zeros, subnormals, ones, largest
# numbers, infinities and NaNs of both signs, and two ordinary numbers.
def special(dtype: str) -> np.ndarray:
    """Special values of a dtype, as `tests.checkpoints.encode` stores them."""
    bits, mantissa, word = {
        "BF16": (16, 7, np.uint16),
        "F16": (16, 10, np.uint16),
        "F32": (32, 23, np.uint32),
        "F64": (64, 52, np.uint64),
    }[dtype]
    top = (1 << (bits - 1 - mantissa)) - 1
    one = (top >> 1) << mantissa
    positive = [0, 1, (1 << mantissa) - 1, 1 << mantissa, one, one + 1, one + (3 << (mantissa - 2))]
    positive += [(top << mantissa) - 1, top << mantissa, (top << mantissa) | (1 << (mantissa - 1))]
    positive += [(top << mantissa) | 1, one - (5 << mantissa) + 3]
    patterns = np.array([p | sign << (bits - 1) for sign in (0, 1) for p in positive], word)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return patterns if dtype == "BF16" else patterns.view(kinds[dtype])


def specials(dtype: str) -> dict[str, Tensors]:
    """Every special value against every other: all triples of new base, post and base."""
    values = special(dtype)
    new, post, base = np.meshgrid(*[np.arange(values.size)] * 3, indexing="ij")
    return {
        role: {"w": values[places].reshape(values.size, -1)}
        for role, places in (("new", new), ("post", post), ("base", base))
    }


def vocabulary(tokens: Iterable[str], added: Iterable[str] = ()) -> str:
    """A tokenizer.json of these tokens by id; ``added``: special tokens at the end."""
    known = list(tokens)
    vocab = {token: number for number, token in enumerate(known)}
    more = [
        {"id": len(known) + i, "content": token, "special": True} for i, token in enumerate(added)
    ]
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": more}
    return json.dumps(content)
