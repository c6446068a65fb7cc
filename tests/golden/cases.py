"""The golden cases: small inputs, one call of the public API, and the digests of what it writes.

A case builds its inputs in a folder and says what to do with them. Everything that it does goes
through the public API, so the cases outlive any change of what is behind it.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import paramdelta.demo
from paramdelta import Delta, Recipe, extract, extract_adapter, mix, read_recipe, sweep
from paramdelta.schemes.ties import Ties
from tests.checkpoints import bf16, encode, save
from tests.golden import inputs
from tests.golden.inputs import CONFIG, EMBEDDING, FP8_CONFIG, HEAD, fp8, llama, outlines

# Files that hold versions, addresses or measurements. Everything else is digested.
UNDIGESTED = {
    "README.md",
    "recipe.yaml",
    "paramdelta.lock.json",
    "paramdelta.delta.json",
    "paramdelta.lora.json",
    "adapter_config.json",  # it names the base; `_lora` gives the rest of it
}
# The test runs the first; `record` requires the same bytes from all.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"workers": 2, "memory": "256MB"},
    {"workers": 1, "memory": "100MB"},
    {"workers": 5, "memory": "1GB"},
)
LINEAGE = Path(paramdelta.demo.__file__).parent / "lineage"
ROLES = ("new", "post", "base")
DTYPES = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True)
class Case:
    """Inputs and what to do with them.

    ``run(inputs, out, settings)``: fill the folder ``inputs``, write ``out``, and return facts
    about the run that have to stay the same as well. ``codec``: of what library the bytes depend,
    beyond paramdelta: "" (none), "zstd" or "blas". ``torch``: whether torch writes the inputs.
    """

    run: Callable[[Path, Path, dict[str, Any]], dict[str, Any]]
    codec: str = ""
    torch: bool = field(default=False)


@dataclass(frozen=True)
class Digests:
    """What a case gave: SHA-256 of its inputs as a whole and of every output file, and facts."""

    inputs: str
    files: dict[str, str]
    facts: dict[str, Any]


def carry_out(case: Case, folder: Path, settings: dict[str, Any]) -> Digests:
    """Run a case in an empty folder."""
    given, out = folder / "inputs", folder / "out"
    given.mkdir(parents=True)
    facts = case.run(given, out, settings)
    joined = hashlib.sha256()
    for name, digest in sorted(_digests(given, set()).items()):
        joined.update(f"{name} {digest}\n".encode())
    return Digests("" if case.torch else joined.hexdigest(), _digests(out, UNDIGESTED), facts)


def _digests(folder: Path, but: set[str]) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


# -- what is done ----------------------------------------------------------------------------------

Build = Callable[[Path], Recipe]


def _mixed(build: Build, folder: Path, out: Path, settings: dict[str, Any], **options: Any):
    result = mix(build(folder), out, **settings, **options)
    return {"not finite": _counts(result.not_finite)}


def _swept(build: Build, scales, folder: Path, out: Path, settings, **options: Any):
    result = sweep(build(folder), scales, out, **settings, **options)
    return {
        "shared": [member.shared for member in result.members],
        "not finite": [_counts(member.not_finite) for member in result.members],
    }


def _counts(found: dict[tuple[str, str], int]) -> dict[str, int]:
    return {" / ".join(place): count for place, count in sorted(found.items())}


def _extracted(build, folder: Path, out: Path, settings: dict[str, Any], **options: Any):
    made = extract(build(folder), out, **settings, **options).made
    return {"base": made.base_sha256}


def _extracted_and_mixed(build, scale, folder: Path, out: Path, settings, **options: Any):
    """The stored Δ is an input of the mix; its bytes are not compared, only what it gives."""
    build(folder)
    source = str(folder / "post"), str(folder / "base")
    extract(source, out.parent / "delta", **settings, **options)
    stored = Delta(delta=str(out.parent / "delta"), scale=scale)
    mix(Recipe(str(folder / "new"), (stored,)), out, **settings)
    return {}


def _lora(build, folder: Path, out: Path, settings: dict[str, Any], **options: Any):
    made = extract_adapter(build(folder), out, **settings, **options).made
    config = json.loads((out / "adapter_config.json").read_text())
    del config["base_model_name_or_path"], config["revision"]
    ranks = {one.module: one.rank for one in made.kept}
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"kept": made.kept_of_all, "ranks": ranks, "config": digest}


def mixes(build: Build, torch: bool = False, **options: Any) -> Case:
    """A mix; ``options`` of `paramdelta.mix`."""
    return Case(partial(_mixed, build, **options), torch=torch)


def sweeps(build: Build, scales=(0, 0.5, 1, 1.5), **options: Any) -> Case:
    """A sweep; ``options`` of `paramdelta.sweep`."""
    return Case(partial(_swept, build, scales, **options))


def extracts(build: Callable[[Path], tuple[str, str]], **options: Any) -> Case:
    """A stored Δ; ``options`` of `paramdelta.extract`."""
    return Case(partial(_extracted, build, **options), "zstd")


def stores(build: Callable[[Path], Any], scale: float, **options: Any) -> Case:
    """A mix of a Δ that was stored before from ``post`` and ``base``."""
    return Case(partial(_extracted_and_mixed, build, scale, **options))


def loras(build: Callable[[Path], tuple[str, str]], **options: Any) -> Case:
    """A LoRA adapter; ``options`` of `paramdelta.extract_adapter`."""
    return Case(partial(_lora, build, **options), "blas")


# -- recipes ---------------------------------------------------------------------------------------


def _plain(choices: dict[str, Any]) -> dict[str, Any]:
    """Choices of a recipe; ``ties``, parameters by name, as its scheme."""
    others = {name: value for name, value in choices.items() if name != "ties"}
    return others if "ties" not in choices else {**others, "scheme": Ties(**choices["ties"])}


def of(folder: Path, scale: Any = 1.0, *, new: str = "new", **choices: Any) -> Recipe:
    """The recipe of ``new``, ``post`` and ``base`` in a folder; choices of the Δ or the recipe."""
    own = {name: choices.pop(name) for name in ("dare", "density") if name in choices}
    delta = Delta(str(folder / "post"), str(folder / "base"), scale, **own)
    return Recipe(str(folder / new), (delta,), **_plain(choices))


def several(folder: Path, *deltas: dict[str, Any], new: str = "new", **choices: Any) -> Recipe:
    """A recipe of several Δ, each ``post`` and ``base`` by name and choices of `Delta`."""
    made = [
        Delta(
            str(folder / delta.get("post", "post")),
            str(folder / delta.get("base", "base")),
            **{name: value for name, value in delta.items() if name not in ("post", "base")},
        )
        for delta in deltas
    ]
    return Recipe(str(folder / new), tuple(made), **_plain(choices))


def tiny(kind: str = "BF16", scale: Any = 1.0, **choices: Any) -> Build:
    """A tiny Llama lineage in one dtype."""

    def build(folder: Path) -> Recipe:
        inputs.write_llamas(folder, kind)
        return of(folder, scale, **choices)

    return build


def three(*deltas: dict[str, Any], kind: str = "BF16", layers: int = 2, **choices: Any) -> Build:
    """Three posts, of which the third has a base of its own."""

    def build(folder: Path) -> Recipe:
        roles = ("base", "new", "post", "post2", "post3", "base3")
        inputs.write_llamas(folder, kind, roles, layers=layers)
        return several(folder, *deltas, **_plain(choices))

    return build


def recorded(model: str, scale: Any = 1.0, **choices: Any) -> Build:
    """A recorded model in all roles."""

    def build(folder: Path) -> Recipe:
        inputs.write_model(folder, model)
        return of(folder, scale, **choices)

    return build


def by_role(models: dict[str, str], **choices: Any) -> Build:
    """Another recorded model in each role."""

    def build(folder: Path) -> Recipe:
        for role, model in models.items():
            inputs.write_model(folder, model, roles=[role])
        return of(folder, **choices)

    return build


def pair(build: Build) -> Callable[[Path], tuple[str, str]]:
    """Post and base of what is built."""

    def both(folder: Path) -> tuple[str, str]:
        build(folder)
        return str(folder / "post"), str(folder / "base")

    return both


# -- families, layouts, heads ----------------------------------------------------------------------


def families() -> Iterator[tuple[str, Case]]:
    """Every family of tests/integration/families.py."""
    for model in outlines():
        kind, _, name = model.partition("/")
        if kind == "family":
            yield model, mixes(recorded(model))
            yield f"{model} at 0.37", mixes(recorded(model, 0.37))
    for name in ("Llama 3", "Qwen3-MoE", "GPT-2", "T5", "RT-DETR", "Gemma 3 with vision"):
        model = f"family/{name}"
        yield f"{model} sweep", sweeps(recorded(model))
        ties = {"density": 0.3, "scale": 1.1}
        yield f"{model} TIES", mixes(recorded(model, ties=ties, dare={"drop": 0.25}))
    model = "family/DeepSeek-R1-Distill-Qwen"
    yield f"{model} head=drop", mixes(recorded(model, head="drop"))


NORMS = ("*.LayerNorm.gamma -> *.LayerNorm.weight", "*.LayerNorm.beta -> *.LayerNorm.bias")
BACK = tuple(" -> ".join(reversed(rule.split(" -> "))) for rule in NORMS)
MAPS = {
    ("Gemma 3 with vision", "original"): ("auto",),
    ("Gemma 3 with vision", "other"): ("auto",),
    ("BERT", "original"): NORMS,
    ("BERT", "other"): BACK,
}


def layouts() -> Iterator[tuple[str, Case]]:
    """Post and base in one layout, the new base in another; text towers."""
    names = [m.split("/")[1] for m in outlines() if m.startswith("layout/") and "/other" in m]
    for name in names:
        for theirs, ours in (("original", "other"), ("other", "original")):
            models = dict.fromkeys(("post", "base"), f"layout/{name}/{theirs}")
            models["new"] = f"layout/{name}/{ours}"
            maps = MAPS.get((name, ours), ())
            yield f"layout/{name}/{theirs} onto {ours}", mixes(by_role(models, maps=maps))
    for theirs, ours in (("original-fp8", "other"), ("other", "original-fp8")):
        models = dict.fromkeys(("post", "base"), f"layout/Qwen3-MoE/{theirs}")
        models["new"] = f"layout/Qwen3-MoE/{ours}"
        yield f"layout/Qwen3-MoE/{theirs} onto {ours}", mixes(by_role(models))
    for model, rule in itertools.product(
        [m for m in outlines() if m.startswith("tower/")], ("{0}* -> {1}*", "auto")
    ):
        tower = model.partition("/")[2]
        maps = (rule.format("model.", tower),)
        yield f"{model} {rule}", mixes(recorded(model, maps=maps))


def heads() -> Iterator[tuple[str, Case]]:
    """Tied heads, stored tied heads and untied ones in every combination."""
    for kinds in itertools.product(("tied", "stored", "untied"), repeat=3):

        def build(folder: Path, kinds=kinds, **choices: Any) -> Recipe:
            for role, kind in zip(ROLES, kinds, strict=True):
                alias = {HEAD: EMBEDDING} if kind == "stored" else {}
                inputs.write_outline(folder / role, outlines()[f"tie/{kind}"][role], role, alias)
            return of(folder, 0.75, **choices)

        yield f"head/{'-'.join(kinds)}", mixes(build)
        if kinds[0] == "tied" and "untied" in kinds:
            yield f"head/{'-'.join(kinds)} drop", mixes(partial(build, head="drop"))


# -- number formats --------------------------------------------------------------------------------


def formats() -> Iterator[tuple[str, Case]]:
    """FP8 in and out, dtypes in and out."""
    for scales in ("block", "row", "tensor"):
        for roles in (("new",), ("post",), ("post", "base"), ROLES):
            models = dict.fromkeys(ROLES, "fp8/DeepSeek-V3/plain")
            models |= dict.fromkeys(roles, f"fp8/DeepSeek-V3/{scales}")
            yield f"fp8/DeepSeek-V3 {scales} {' '.join(roles)}", mixes(by_role(models))
        for model in ("DeepSeek-V3", "wide", "blocks"):
            build = recorded(f"fp8/{model}/{scales}", dtype="fp8-block")
            yield f"fp8/{model} {scales} to fp8-block", mixes(build)
        yield f"fp8/wide {scales}", mixes(recorded(f"fp8/wide/{scales}", -0.6))
    plain = dict.fromkeys(("post", "base"), "fp8/wide/plain") | {"new": "fp8/wide/block"}
    yield "fp8/wide plain onto block to fp8-block", mixes(by_role(plain, dtype="fp8-block"))
    for dtype, out in itertools.product((*DTYPES, "mixed"), (None, *DTYPES)):
        name = f"dtype/{dtype} to {out or 'auto'}"
        yield name, mixes(tiny(dtype, dtype=out))
        yield f"{name} at 0.37", mixes(tiny(dtype, 0.37, dtype=out))


SHAPES = {"a": (300, 200), "b": (128, 256), "c": (1, 5), "d": (257, 3000), "e": (2100, 129)}


def blocks(scale: Any = 1.0, roles=("base", "post", "new", "post2"), **choices: Any) -> Build:
    """FP8 matrices of awkward shapes beside BF16; fresh scales in the output."""

    def build(folder: Path) -> Recipe:
        for role in roles:
            norm = {"norm.weight": bf16(inputs.weights(role, "norm", (64,)))}
            only = fp8(role, only=(130, 140)) if role == "new" else {}
            save(folder / role, fp8(role, **SHAPES) | norm | only, config_json=FP8_CONFIG)
        own = {"dtype": "fp8-block"} | choices
        second = own.pop("second", None)
        if second is None:
            return of(folder, scale, **own)
        return several(folder, {"scale": scale}, {"post": "post2", **second}, **own)

    return build


def requantized() -> Iterator[tuple[str, Case]]:
    """Into FP8 with fresh scales: scales, sparse sums, several Δ, shards, sweeps."""
    for scale in (1.0, -1.0, 0.0, 0.37):
        yield f"fp8-block/scale {scale}", mixes(blocks(scale))
    yield "fp8-block/onto base", mixes(blocks(new="base"))
    yield "fp8-block/onto post", mixes(blocks(0.5, new="post"))
    yield "fp8-block/shards", mixes(blocks(0.37), shard_size="1MB")
    yield "fp8-block/auto", mixes(blocks(0.37, dtype=None))
    yield "fp8-block/F32", mixes(blocks(0.37, dtype="F32"))
    yield "fp8-block/two", mixes(blocks(0.7, second={"scale": -0.4}))
    yield "fp8-block/DARE", mixes(blocks(dare={"drop": 0.5}))
    yield "fp8-block/density", mixes(blocks(density=0.2))
    dare = {"drop": 0.25, "seed": 9}
    both = blocks(0.7, second={"dare": dare}, ties={"density": 0.5})
    yield "fp8-block/TIES and DARE", mixes(both)
    yield "fp8-block/sweep", sweeps(blocks())
    yield "fp8-block/sweep onto base", sweeps(blocks(new="base"))
    yield "fp8-block/sweep TIES and DARE", sweeps(both)
    rules = [{"match": "a.*", "value": 0}, 1]
    yield "fp8-block/sweep shared", sweeps(blocks(rules), shard_size="1MB")

    def broken(folder: Path) -> Recipe:
        """NaN codes, scales beyond what a float32 holds, blocks of zeros."""
        for role in ROLES:
            tensors = fp8(role, a=(130, 140), b=(4, 4), c=(128, 128), d=(3, 3))
            if role == "new":
                tensors["a.weight"][1, 1] = 0x7F
            if role != "base":
                tensors["b.weight_scale_inv"][:] = 3e38
                tensors["b.weight"][:] = 0x7E
            tensors["c.weight"][:] = 0x80
            tensors["d.weight_scale_inv"][:] = np.inf if role == "post" else 1e-45
            save(folder / role, tensors, config_json=FP8_CONFIG)
        return of(folder, dtype="fp8-block")

    yield "fp8-block/not finite", mixes(broken)
    yield "fp8-block/not finite sweep", sweeps(broken)


# -- files -----------------------------------------------------------------------------------------


def files() -> Iterator[tuple[str, Case]]:
    """Shards in and out, single weight files, recipes from YAML, many slices."""

    def medium(folder: Path, scale: Any = 0.7) -> Recipe:
        inputs.write_llamas(folder, hidden=128, vocab=4001)
        return of(folder, scale)

    for size in ("1MB", "1.5MB"):
        yield f"files/shards of {size}", mixes(medium, shard_size=size)
        yield f"files/sweep in shards of {size}", sweeps(medium, (0.5, 1), shard_size=size)
    build = partial(medium, scale="linear-only")
    yield "files/sweep with shared shards", sweeps(build, (0.5, 1), shard_size="1MB")
    yield "delta/shards", extracts(pair(medium), shard_size="1MB")
    yield "delta/shards mixed", stores(medium, 1.0, shard_size="1MB")

    def single(folder: Path) -> Recipe:
        for role in ROLES:
            tensors = llama(role, "F32", tied=True)
            (folder / f"{role}.safetensors").write_bytes(encode(tensors, {"format": "pt"}))
        delta = Delta(str(folder / "post.safetensors"), str(folder / "base.safetensors"), 0.6)
        return Recipe(str(folder / "new.safetensors"), (delta,))

    yield "files/single", mixes(single)

    def yaml(folder: Path) -> Recipe:
        inputs.write_llamas(folder)
        text = "new_base: new\ndeltas:\n  - {post: post, base: base, scale: 0.3}\ndtype: f32\n"
        (folder / "recipe.yaml").write_text(text)
        return read_recipe(folder / "recipe.yaml")

    yield "files/yaml", mixes(yaml)

    def large(folder: Path, scale: Any = 0.9, **choices: Any) -> Recipe:
        for role in ROLES:
            save(folder / role, llama(role, hidden=384, layers=1, vocab=9001), config_json=CONFIG)
        return of(folder, scale, **choices)

    yield "files/large", mixes(large)
    yield "files/large TIES", mixes(partial(large, ties={"density": 0.1}, dare={"drop": 0.5}))
    yield "files/large sweep", sweeps(partial(large, scale="linear-only"), (0.5, 1))

    def odd(folder: Path, **choices: Any) -> Recipe:
        """Scalars, empty tensors, integers, booleans, names that are strange, many axes."""
        for role in ROLES:
            tensors = {
                "scalar": inputs.weights(role, "scalar", ()).astype(np.float32),
                "empty": np.zeros((0, 4), np.float32),
                "one": bf16(inputs.weights(role, "one", (1,))),
                "steps": inputs.filled(role, "steps", "I64", (5,)),
                "flags": inputs.filled(role, "flags", "BOOL", (9,)),
                "a name / of Ω": inputs.weights(role, "strange", (3, 5)),
                "conv.weight": inputs.stored(inputs.weights(role, "c", (4, 3, 2, 5)), "F16"),
                "layers.0.attn.bias": np.tril(np.ones((1, 1, 8, 8), np.float32)),
            }
            if role == "new":
                tensors["vision.weight"] = bf16(inputs.weights(role, "vision", (7, 7)))
            if role == "post":
                tensors["extra.weight"] = bf16(inputs.weights(role, "extra", (7, 7)))
            save(folder / role, tensors)
        return of(folder, 0.8, allow=("only-in-post",), **choices)

    yield "files/odd tensors", mixes(odd)
    yield "files/odd tensors in F16", mixes(partial(odd, dtype="F16"))
    yield "files/odd tensors sweep", sweeps(odd)

    def companions(folder: Path) -> Recipe:
        inputs.write_llamas(folder)
        tokens = inputs.vocabulary(f"t{i}" for i in range(32))
        for role in ROLES:
            (folder / role / "tokenizer.json").write_text(tokens)
            settings = {"eos_token": f"t{len(role)}", "chat_template": f"{{{{ {role} }}}}"}
            (folder / role / "tokenizer_config.json").write_text(json.dumps(settings))
            generation = {"eos_token_id": [len(role), 9], "temperature": 0.5 + len(role) / 8}
            (folder / role / "generation_config.json").write_text(json.dumps(generation))
            (folder / role / "modeling_own.py").write_text(f"# code of {role}\n")
            (folder / role / "preprocessor_config.json").write_text(json.dumps({"of": role}))
        return of(folder)

    yield "files/companions", mixes(companions)
    yield "files/companions stored", stores(companions, 1.0)
    yield "files/companions sweep", sweeps(companions)


def pickles() -> Iterator[tuple[str, Case]]:
    """Post, base and new base as torch.save writes them, every name of a shared tensor in it."""
    # Imported by the test modules that use it; here only when a case runs.

    def state(outline, role: str):
        import torch

        kinds = {"BF16": torch.bfloat16}
        made: dict[str, Any] = {}
        for name, (dtype, shape) in outline["weights"]["pytorch_model.bin"].items():
            first = outline["alias"][name]
            if first in made:
                made[name] = made[first]
                continue
            array = inputs.filled(role, name, dtype, shape)
            signed = array.view(np.int16) if dtype == "BF16" else array
            value = torch.from_numpy(np.ascontiguousarray(signed)).reshape(tuple(shape))
            made[name] = value.view(kinds[dtype]) if dtype in kinds else value
        return made

    def build(name: str, roles: tuple[str, ...], zipped: bool, folder: Path) -> Recipe:
        import torch

        inputs.write_model(folder, f"family/{name}")
        for role in roles:
            (folder / role / "model.safetensors").unlink()
            values = state(outlines()[f"state/{name}"][role], role)
            path = folder / role / "pytorch_model.bin"
            torch.save(values, path, _use_new_zipfile_serialization=zipped)
        return of(folder)

    names = [model.partition("/")[2] for model in outlines() if model.startswith("state/")]
    for name, roles in itertools.product(
        names, (("new",), ("post",), ("base",), ("post", "base"), ROLES)
    ):
        for zipped in (True, False) if roles == ROLES else (True,):
            title = f"pickle/{name} {' '.join(roles)} {'zip' if zipped else 'legacy'}"
            yield title, mixes(partial(build, name, roles, zipped), torch=True)

    def turned(zipped: bool, sharded: bool, folder: Path) -> Recipe:
        """Transposed tensors, slices of one storage, two shards with an index."""
        import torch

        for role in ROLES:
            whole = torch.from_numpy(inputs.weights(role, "whole", (50, 30)).astype(np.float32))
            tensors = {
                "a.weight": whole.T,
                "b.weight": whole[10:20],
                "c.weight": whole[20:24].T,
                "d.bias": whole[49],
                "e.weight": torch.from_numpy(inputs.weights(role, "e", (5, 7))),
            }
            folder.joinpath(role).mkdir()
            parts = [tensors]
            if sharded:
                parts = [{n: tensors[n] for n in list(tensors)[i::2]} for i in (0, 1)]
            weight_map: dict[str, str] = {}
            for number, part in enumerate(parts, 1):
                name = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
                name = name if sharded else "pytorch_model.bin"
                path = folder / role / name
                torch.save(part, path, _use_new_zipfile_serialization=zipped)
                weight_map |= dict.fromkeys(part, name)
            if sharded:
                index = folder / role / "pytorch_model.bin.index.json"
                index.write_text(json.dumps({"weight_map": weight_map}))
        return of(folder, 0.9)

    for zipped, sharded in itertools.product((True, False), repeat=2):
        title = f"pickle/turned {'zip' if zipped else 'legacy'} {'shards' if sharded else 'one'}"
        yield title, mixes(partial(turned, zipped, sharded), torch=True)


# -- vocabularies ----------------------------------------------------------------------------------

CHAT = ("<|im_start|>", "<|im_end|>")
LOST = ("post-only-tokens",)


def vocabularies() -> Iterator[tuple[str, Case]]:
    """Rows by token and by id, grafted and taken tokens, padding, tied and untied heads."""
    for model in [m for m in outlines() if m.startswith("vocabulary/")]:
        extended = model.split("/")[1] in ("appended", "between", "words", "padded")
        for mode in ("auto", "token", "id", "new-base"):
            yield f"{model} {mode}", mixes(recorded(model, vocabulary=mode, allow=LOST))
            if extended:
                build = recorded(model, vocabulary=mode, graft=CHAT, allow=LOST)
                yield f"{model} {mode} graft", mixes(build)
        graft = CHAT if extended else ()
        taken = ("<|end_of_text|>", "de")
        build = recorded(model, 0.75, graft=graft, take=taken, allow=LOST)
        yield f"{model} take", mixes(build)
        yield f"{model} take sweep", sweeps(build)
        yield f"{model} onto base", mixes(recorded(model, new="base", graft=graft, allow=LOST))
        if extended:
            back = recorded(model, graft=CHAT[::-1], allow=LOST)
            yield f"{model} graft turned round", mixes(back)
            sparse = recorded(model, graft=CHAT, allow=LOST, ties={"density": 0.5})
            yield f"{model} graft TIES", mixes(sparse)

    def shuffled(folder: Path) -> Recipe:
        tokens = [f"t{i}" for i in range(40)]
        orders = {
            "base": tokens[:30],
            "post": [*tokens[:30], "<post>"],
            "new": [*reversed(tokens[5:30]), *tokens[30:]],
        }
        for role, own in orders.items():
            tensors = {
                EMBEDDING: bf16(inputs.weights(role, EMBEDDING, (len(own), 8))),
                "model.norm.weight": bf16(inputs.weights(role, "norm", (8,))),
            }
            save(folder / role, tensors, tokenizer_json=inputs.vocabulary(own))
        return of(folder, allow=LOST)

    yield "vocabulary/shuffled", mixes(shuffled)
    yield "vocabulary/shuffled stored", stores(shuffled, 0.7)


# -- adapters and stored Δ -------------------------------------------------------------------------


# Adapters that replace a tensor which they adapt as well: refused where a Δ is to be sparse.
REPLACING = ("adapter/3", "adapter/6", "adapter/10")


def adapters() -> Iterator[tuple[str, Case]]:
    """LoRA adapters as PEFT writes them, onto their base and onto another."""

    def build(model: str, dtype: str | None, scale: Any, new: str, folder: Path, **choices: Any):
        inputs.write_outline(folder / "post", outlines()[model]["post"], "post")
        for role in ("base", "new"):
            inputs.write_outline(folder / role, outlines()[model]["base"], role)
        own = {name: choices.pop(name) for name in ("dare", "density") if name in choices}
        delta = Delta(str(folder / "post"), str(folder / "base"), scale, **own)
        return Recipe(str(folder / new), (delta,), dtype, **_plain(choices))

    for model in [m for m in outlines() if m.startswith("adapter/")]:
        yield model, mixes(partial(build, model, None, 1.0, "new"))
        yield f"{model} onto base", mixes(partial(build, model, "F32", -0.5, "base"))
        yield f"{model} in BF16", mixes(partial(build, model, "BF16", 0.37, "new"))
        if model.split()[0] not in REPLACING:
            sparse = partial(build, model, "F32", 1.0, "new", dare={"drop": 0.5}, density=0.5)
            yield f"{model} DARE", mixes(sparse)
        yield f"{model} sweep", sweeps(partial(build, model, "BF16", 1.0, "new"))

    def without_base(folder: Path) -> Recipe:
        inputs.write_llamas(folder, roles=("new",))
        tensors, config = {}, {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
        for name, (rows, columns) in {
            "layers.0.mlp.up_proj": (32, 16),
            "layers.1.self_attn.q_proj": (16, 16),
        }.items():
            stem = f"base_model.model.model.{name}.lora_"
            tensors[f"{stem}A.weight"] = bf16(inputs.uniform(f"{name}A", (4, columns)))
            tensors[f"{stem}B.weight"] = bf16(0.1 * inputs.uniform(f"{name}B", (rows, 4)))
        (folder / "post").mkdir()
        (folder / "post" / "adapter_model.safetensors").write_bytes(encode(tensors))
        config |= {"base_model_name_or_path": None, "target_modules": ["up_proj", "q_proj"]}
        (folder / "post" / "adapter_config.json").write_text(json.dumps(config))
        return Recipe(str(folder / "new"), (Delta(str(folder / "post"), scale=0.8),))

    yield "adapter/without base", mixes(without_base)


def blocky(folder: Path) -> Recipe:
    """Tensors of several blocks of a stored Δ, in three dtypes; rows that cut blocks."""
    shape = (700, 301)
    for role, dtype in (("new", "F16"), ("post", "F32"), ("base", "BF16")):
        save(folder / role, {"w": inputs.stored(inputs.weights(role, "w", shape), dtype)})
    return of(folder)


def whole(folder: Path) -> Recipe:
    """Integers, and tensors that base lacks: stored whole."""
    inputs.write_llamas(folder, roles=("new", "base"))
    extra = {"steps": np.arange(5), "only.weight": np.ones((2, 2), np.float32)}
    save(folder / "post", llama("post") | extra, config_json=CONFIG)
    return of(folder, allow=("only-in-post",))


def stored_deltas() -> Iterator[tuple[str, Case]]:
    """Δ as folders: their bytes, and the mixes that they give."""
    for dtype in (*DTYPES, "mixed"):
        yield f"delta/{dtype}", extracts(pair(tiny(dtype)))
        for scale in (1, 0.7, -1):
            yield f"delta/{dtype} mixed at {scale}", stores(tiny(dtype), scale)
    yield "delta/blocks", extracts(pair(blocky), shard_size="1MB")
    for scale in (1, 0.3):
        yield f"delta/blocks mixed at {scale}", stores(blocky, scale, shard_size="1MB")
    yield "delta/whole tensors", extracts(pair(whole))
    for name in ("family/DeepSeek-V3", "family/Qwen2.5", "family/GPT-2", "family/RT-DETR"):
        yield f"delta/{name}", extracts(pair(recorded(name)))
        yield f"delta/{name} mixed", stores(recorded(name), 0.6)
    for dtype in DTYPES:
        yield f"delta/special {dtype}", extracts(pair(special(dtype)))
        for scale in (1, -1, 0.7):
            yield f"delta/special {dtype} mixed at {scale}", stores(special(dtype), scale)

    def two(folder: Path, **choices: Any) -> Recipe:
        """A stored Δ beside a plain one."""
        inputs.write_llamas(folder, roles=("new", "base", "post", "post2"))
        extract((str(folder / "post"), str(folder / "base")), folder.parent / "delta")
        deltas = (
            Delta(delta=str(folder.parent / "delta"), scale=0.5, dare=choices.pop("dare", None)),
            Delta(str(folder / "post2"), str(folder / "base"), -0.25),
        )
        return Recipe(str(folder / "new"), deltas, **_plain(choices))

    yield "delta/beside another", mixes(two)
    yield "delta/TIES and DARE", mixes(partial(two, dare={"drop": 0.3}, ties={"density": 0.4}))
    yield "delta/sweep", sweeps(two)


def low_rank() -> Iterator[tuple[str, Case]]:
    """LoRA extraction: by rank, by energy, with embeddings, in every dtype of the factors."""
    for dtype in ("auto", "f32", "f16", "bf16", "f64"):
        yield f"lora/rank 4 {dtype}", loras(pair(tiny()), rank=4, dtype=dtype)
    for energy in (0.5, 0.8, 0.95):
        yield f"lora/energy {energy}", loras(pair(tiny()), energy=energy)
    yield "lora/energy and embeddings", loras(pair(tiny()), energy=0.7, embeddings=True)
    yield "lora/full", loras(pair(tiny("F32")), rank=1000)
    for name in ("family/GPT-2", "family/Llama 3", "family/BERT", "family/Qwen3-MoE"):
        yield f"lora/{name}", loras(pair(recorded(name)), rank=3)


# -- scales, schedules, sparsity -------------------------------------------------------------------

SCALES = (1.0, -1.0, 0.0, 0.37, 2.0, 1e-3, -0.0, 1e30)


def scales() -> Iterator[tuple[str, Case]]:
    """One Δ at several scales; several Δ; operands that cancel out."""
    for dtype, scale in itertools.product((*DTYPES, "mixed"), SCALES):
        yield f"scale/{dtype} {scale}", mixes(tiny(dtype, scale))
    for scale in (1.0, 0.0, 0.37):
        yield f"scale/onto base {scale}", mixes(tiny("BF16", scale, new="base"))
        yield f"scale/onto post {scale}", mixes(tiny("BF16", scale, new="post"))
    some = {
        "two": ({"scale": 0.8}, {"post": "post2", "scale": -0.4}),
        "three": ({}, {"post": "post2", "scale": 0.5}, {"post": "post3", "base": "base3"}),
        "twice the same": ({"scale": 0.3}, {"scale": 0.3}),
        "opposite": ({"scale": 0.3}, {"scale": -0.3}),
        "chain": ({"post": "post2", "base": "post"}, {}),
    }
    for name, deltas in some.items():
        for dtype in ("BF16", "F32", "mixed"):
            yield f"several/{name} {dtype}", mixes(three(*deltas, kind=dtype))
        yield f"several/{name} onto base", mixes(three(*deltas, new="base"))
        yield f"several/{name} sweep", sweeps(three(*deltas))
    for dtype in (*DTYPES, "mixed"):
        yield f"sweep/{dtype}", sweeps(tiny(dtype))
        yield f"sweep/{dtype} to F32", sweeps(tiny(dtype, dtype="F32"))
    yield "sweep/negative", sweeps(tiny(), (-1, -0.5, 0.3))
    yield "sweep/onto base", sweeps(tiny(new="base"), (0.5, 1, 0))


SCHEDULES: dict[str, Any] = {
    "rules": [
        {"match": "*embed*", "value": 0},
        {"match": "*.mlp.*", "layers": {"0-1": 0.75, "2-5": [0.5, 0.1]}},
        {"match": ["*.q_proj.*", "*norm*"], "value": -0.4},
        0.5,
    ],
    "layers": [{"match": "*", "layers": {"0": 0.3, "1-4": [0.9, 0.2]}}, 1],
    "preset and rules": [{"preset": "mlp-only", "layers": {"0-5": [0, 1]}}, 0.25],
    "zero everywhere": [{"match": "*", "value": 0}],
}
PRESETS = ("linear-only", "skip-embeddings", "attention-only", "mlp-only")
DENSITIES = [{"match": "*.mlp.*", "layers": {"0-1": [0.9, 0.1]}}, {"match": "*norm*", "value": 1}]


def schedules() -> Iterator[tuple[str, Case]]:
    """Scales by tensor and layer, presets."""
    for name, rules in SCHEDULES.items():
        build = three({"scale": rules}, layers=6)
        yield f"schedule/{name}", mixes(build)
        yield f"schedule/{name} sweep", sweeps(build)
    two = three({"scale": SCHEDULES["rules"]}, {"post": "post2", "scale": "mlp-only"}, layers=6)
    yield "schedule/of two", mixes(two)
    yield "schedule/of two sweep", sweeps(two)
    for preset in PRESETS:
        yield f"preset/{preset}", mixes(tiny(scale=preset))
        yield f"preset/{preset} sweep", sweeps(tiny(scale=preset))
        for family in ("GPT-2", "BERT", "Qwen3-MoE", "T5"):
            yield f"preset/{preset} {family}", mixes(recorded(f"family/{family}", preset))
    for family in ("Qwen3-MoE", "Mixtral", "Llama 4", "gpt-oss"):
        build = recorded(f"family/{family}", "experts-only")
        yield f"preset/experts-only {family}", mixes(build)


def sparsity() -> Iterator[tuple[str, Case]]:
    """DARE, TIES, both, densities by tensor; mixes and sweeps."""
    trio = (
        {"scale": 0.9, "dare": {"drop": 0.3, "seed": 1}},
        {"post": "post2", "density": 0.5},
        {
            "post": "post3",
            "scale": [{"match": "*.mlp.*", "value": 0.5}, 1],
            "dare": {"drop": 0.5, "seed": 0},
        },
    )
    plain = tuple({"post": post} for post in ("post", "post2", "post3"))
    weighted = tuple(
        {"post": post, "scale": scale}
        for post, scale in (("post", 0.5), ("post2", -1.0), ("post3", 0.375))
    )
    ways: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = {
        "DARE 0.1": (({"dare": {"drop": 0.1}},), {}),
        "DARE 0.9": (({"dare": {"drop": 0.9, "seed": 7}, "scale": 0.6},), {}),
        "DARE 0": (({"dare": {"drop": 0.0}},), {}),
        "DARE of two": (trio[::2], {}),
        "density 0.2": (({"density": 0.2},), {}),
        "density by tensor": (({"density": [*DENSITIES, 0.3]},), {}),
        "density and DARE": (({"density": 0.5, "dare": {"drop": 0.25}, "scale": -0.7},), {}),
        "TIES of one": (plain[:1], {"ties": {}}),
        "TIES": (plain, {"ties": {"density": 0.2}}),
        "TIES weighted": (weighted, {"ties": {"density": 0.4, "scale": 0.8}}),
        "TIES summed": (weighted, {"ties": {"density": 0.4, "normalize": False}}),
        "TIES of all": (plain, {"ties": {"density": 1.0, "scale": 1.3}}),
        "TIES negative": (plain, {"ties": {"density": 0.05, "scale": -0.5}}),
        "TIES and DARE": (trio, {"ties": {"density": 0.8}}),
        "TIES by tensor": (
            ({"density": [*DENSITIES, 0.3]}, {"post": "post2", "scale": 0.5}),
            {"ties": {"density": 0.6}},
        ),
    }
    for name, (deltas, choices) in ways.items():
        for dtype in ("BF16", "F32"):
            build = three(*deltas, kind=dtype, **choices)
            yield f"sparse/{name} {dtype}", mixes(build)
        yield f"sparse/{name} mixed", mixes(three(*deltas, kind="mixed", **choices))
        yield f"sparse/{name} sweep", sweeps(three(*deltas, **choices), (0, 0.5, 1, 2))
        yield f"sparse/{name} onto base", mixes(three(*deltas, new="base", **choices))


# -- numbers that are not finite -------------------------------------------------------------------


def special(kind: str, scale: Any = 1.0, **choices: Any) -> Build:
    """All triples of special values of a dtype."""

    def build(folder: Path) -> Recipe:
        for role, tensors in inputs.specials(kind).items():
            save(folder / role, tensors)
        return of(folder, scale, **choices)

    return build


def not_finite() -> Iterator[tuple[str, Case]]:
    """NaN, infinities, subnormals, the largest numbers and zeros of both signs, in all triples."""
    for dtype in DTYPES:
        for scale in (1.0, -1.0, 0.0, 0.37, 2.0):
            yield f"special/{dtype} {scale}", mixes(special(dtype, scale))
        for out in DTYPES:
            yield f"special/{dtype} to {out}", mixes(special(dtype, 0.7, dtype=out))
        yield f"special/{dtype} sweep", sweeps(special(dtype))
        yield f"special/{dtype} onto base", mixes(special(dtype, new="base"))
        yield f"special/{dtype} DARE", mixes(special(dtype, dare={"drop": 0.5}))
        yield f"special/{dtype} TIES", mixes(special(dtype, ties={"density": 0.5}))
        both = special(dtype, 0.4, dare={"drop": 0.25}, ties={"density": 0.7})
        yield f"special/{dtype} TIES and DARE", mixes(both)
        yield f"special/{dtype} TIES and DARE sweep", sweeps(both)


# -- the shipped lineage ---------------------------------------------------------------------------


def shipped() -> Iterator[tuple[str, Case]]:
    """The lineage of models that the package ships."""

    def build(folder: Path, *deltas: dict[str, Any], new: str = "new-base", **choices: Any):
        return several(LINEAGE, *deltas, new=new, **choices)

    def recipe(*deltas: dict[str, Any], **choices: Any) -> Build:
        return lambda folder: build(folder, *deltas, **_plain(choices))

    second = {"post": "second-post", "scale": 0.5}
    ties = {"density": 0.3}
    yield "shipped/plain", mixes(recipe({}))
    yield "shipped/onto base", mixes(recipe({}, new="base"))
    yield "shipped/0.37", mixes(recipe({"scale": 0.37}), shard_size="1MB")
    yield "shipped/several", mixes(recipe({}, second))
    yield "shipped/F32", mixes(recipe({}, second, dtype="F32"), shard_size="1MB")
    yield "shipped/linear-only", mixes(recipe({"scale": "linear-only"}))
    yield "shipped/DARE", mixes(recipe({"dare": {"drop": 0.9}}, second))
    yield "shipped/TIES", mixes(recipe({}, second, ties=ties))
    yield "shipped/TIES and DARE", mixes(recipe({"dare": {"drop": 0.5}}, second, ties=ties))
    yield "shipped/sweep", sweeps(recipe({}))
    yield "shipped/sweep linear-only", sweeps(recipe({"scale": "linear-only"}), shard_size="1MB")
    yield "shipped/sweep TIES", sweeps(recipe({}, second, ties=ties))
    source = str(LINEAGE / "post"), str(LINEAGE / "base")
    yield "shipped/delta", extracts(lambda folder: source)
    yield "shipped/delta in shards", extracts(lambda folder: source, shard_size="1MB")
    yield "shipped/lora", loras(lambda folder: source, rank=8)
    yield "shipped/lora by energy", loras(lambda folder: source, energy=0.3, max_rank=16)


def _all() -> Iterator[tuple[str, Case]]:
    yield from families()
    yield from layouts()
    yield from heads()
    yield from formats()
    yield from requantized()
    yield from files()
    yield from pickles()
    yield from vocabularies()
    yield from adapters()
    yield from stored_deltas()
    yield from low_rank()
    yield from scales()
    yield from schedules()
    yield from sparsity()
    yield from not_finite()
    yield from shipped()


def table() -> dict[str, Case]:
    """All cases by name; every name once."""
    found: dict[str, Case] = {}
    for name, case in _all():
        assert name not in found, name
        found[name] = case
    return found


CASES = table()
