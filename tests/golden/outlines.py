"""Real checkpoints without their numbers: names, shapes, dtypes and companion files.

`models.json.gz` holds them as transformers and PEFT once wrote them, so that the golden cases
neither need these libraries nor change with them. `python -m tests.golden.outlines` builds the file
again; every digest of a case that uses it may change then.
"""

import gzip
import json
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("models.json.gz")

# {"weights": {file: {tensor: [dtype, shape]}}, "files": {file: text}}
Outline = dict[str, Any]


@cache
def outlines() -> dict[str, dict[str, Outline]]:
    """Outlines by model and role."""
    held = json.loads(gzip.decompress(FILE.read_bytes()))
    texts, models = held["texts"], held["models"]
    for roles in models.values():
        for outline in roles.values():
            outline["files"] = {name: texts[n] for name, n in outline["files"].items()}
    return models


def outline_of(folder: Path) -> Outline:
    """The outline of a folder of safetensors files."""
    weights: dict[str, Any] = {}
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            data = path.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + size])
            header.pop("__metadata__", None)
            weights[path.name] = {n: [e["dtype"], e["shape"]] for n, e in header.items()}
        elif path.name != "README.md":
            files[path.name] = path.read_text(encoding="utf-8")
    return {"weights": weights, "files": files}


def save(models: dict[str, dict[str, Outline]]) -> None:
    """Write outlines, each text once."""
    texts: list[str] = []
    plain = {
        model: {
            role: outline | {"files": {n: _place(texts, t) for n, t in outline["files"].items()}}
            for role, outline in roles.items()
        }
        for model, roles in models.items()
    }
    text = json.dumps({"texts": texts, "models": plain}, ensure_ascii=False)
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _place(texts: list[str], text: str) -> int:
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def build(folder: Path) -> dict[str, dict[str, Outline]]:
    """Build every model with transformers and PEFT, and take the outlines."""
    return {
        **_families(folder / "families"),
        **_layouts(folder / "layouts"),
        **_ties(folder / "ties"),
        **_fp8(folder / "fp8"),
        **_adapters(folder / "adapters"),
        **_vocabularies(folder / "vocabularies"),
        **_states(folder / "states"),
    }


def _roles(folder: Path, roles: Any = ("new", "post", "base")) -> dict[str, Outline]:
    return {role: outline_of(folder / role) for role in roles}


def _families(folder: Path) -> dict[str, dict[str, Outline]]:
    from tests.integration.families import FAMILIES, save_family

    found = {}
    for name, family in FAMILIES.items():
        save_family(family, folder / name)
        found[f"family/{name}"] = _roles(folder / name)
    return found


def _layouts(folder: Path) -> dict[str, dict[str, Outline]]:
    from tests.integration.families import quantize
    from tests.integration.test_layouts import LAYOUTS, save_layouts, save_towers

    found = {}
    for name in LAYOUTS:
        save_layouts(name, folder / name)
        for kind in ("original", "other"):
            roles = {r: outline_of(folder / name / f"{r}-{kind}") for r in ("new", "post", "base")}
            found[f"layout/{name}/{kind}"] = roles
    experts = folder / "Qwen3-MoE"
    for role in ("new", "post", "base"):
        quantize(experts / f"{role}-original", "block")
    found["layout/Qwen3-MoE/original-fp8"] = {
        role: outline_of(experts / f"{role}-original") for role in ("new", "post", "base")
    }
    for number, tower in enumerate(("language_model.model.", "model.language_model.")):
        save_towers(folder / f"tower{number}", tower)
        found[f"tower/{tower}"] = _roles(folder / f"tower{number}")
    return found


def _ties(folder: Path) -> dict[str, dict[str, Outline]]:
    from tests.integration.test_ties import make

    found = {}
    for kind in ("tied", "stored", "untied"):
        make(folder / kind, dict.fromkeys(("new", "post", "base"), kind))
        found[f"tie/{kind}"] = _roles(folder / kind)
    return found


def _fp8(folder: Path) -> dict[str, dict[str, Outline]]:
    import torch
    import transformers

    from tests.integration.families import (
        BLOCKS,
        FAMILIES,
        WIDE,
        Family,
        build_models,
        quantize,
    )

    wide = Family("AutoModelForCausalLM", transformers.LlamaConfig, WIDE)
    blocks = Family("AutoModelForCausalLM", transformers.LlamaConfig, BLOCKS)
    found = {}
    for name, family in (
        ("DeepSeek-V3", FAMILIES["DeepSeek-V3"]),
        ("wide", wide),
        ("blocks", blocks),
    ):
        for scales in ("plain", "block", "row", "tensor"):
            place = folder / name / scales
            for role, model in build_models(family).items():
                model.to(torch.bfloat16).save_pretrained(place / role)
                if scales != "plain":
                    quantize(place / role, scales)
            found[f"fp8/{name}/{scales}"] = _roles(place)
    return found


def _adapters(folder: Path) -> dict[str, dict[str, Outline]]:
    from safetensors.numpy import save_file

    from tests.checkpoint import test_adapter

    # The parameters of the test against PEFT, so that no configuration is forgotten here.
    marks = {
        mark.args[0]: mark.args[1] for mark in _marks(test_adapter.test_the_same_as_peft_merges)
    }
    found = {}
    for number, (make, config) in enumerate(marks[("make", "config")]):
        place = folder / str(number)
        base, _ = test_adapter.trained(make(), place / "post", True, **config)
        (place / "base").mkdir()
        save_file(base, place / "base" / "model.safetensors")
        found[f"adapter/{number} {make.__name__}"] = _roles(place, ("post", "base"))
    return found


def _marks(test: Any) -> list[Any]:
    return [mark for mark in test.pytestmark if mark.name == "parametrize"]


def _vocabularies(folder: Path) -> dict[str, dict[str, Outline]]:
    from studies.vocabulary import lineage
    from tests.integration.test_vocabulary import DOMAIN, GENERAL

    found = {}
    for name, case in lineage.cases(GENERAL, DOMAIN, 300, 20).items():
        for tied in (True, False):
            place = folder / f"{name}-{tied}"
            lineage.build(case, place, tied=tied)
            key = f"vocabulary/{name}/{'tied' if tied else 'untied'}"
            found[key] = {
                "new": outline_of(place / "new-base"),
                **_roles(place, ("post", "base")),
            }
    return found


def _states(folder: Path) -> dict[str, dict[str, Outline]]:
    """State dicts as torch.save pickles them: every name, and the first name of shared memory."""
    from tests.integration.families import FAMILIES, build_models

    kinds = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    kinds |= {"torch.int64": "I64", "torch.bool": "BOOL"}
    found: dict[str, dict[str, Outline]] = {}
    for name in ("Qwen2.5", "GPT-2", "BERT", "T5", "Whisper", "Gemma 3"):
        found[f"state/{name}"] = {}
        for role, model in build_models(FAMILIES[name]).items():
            first: dict[int, str] = {}
            tensors, alias = {}, {}
            for key, value in model.state_dict().items():
                tensors[key] = [kinds[str(value.dtype)], list(value.shape)]
                alias[key] = first.setdefault(value.data_ptr(), key)
            model.config.save_pretrained(folder / name / role)
            files = outline_of(folder / name / role)["files"]
            weights = {"pytorch_model.bin": tensors}
            found[f"state/{name}"][role] = {"weights": weights, "files": files, "alias": alias}
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        save(build(Path(place)))
