"""Mixes a tiny model of every architecture of transformers: `python -m tests.architectures`.

Each model is built from its own configuration class with small sizes and random weights; post and
the new base are the base with small random changes. The mix is right if transformers loads it with
no missing, unexpected or mismatched key, and every floating-point tensor of the loaded model is the
float64 sum of the three loaded models, rounded once. `paramdelta check` must find nothing in the
output that it does not find in the new base, whose configuration names token ids, for example, that
so small a model does not have.

Configurations that cannot be made small by changing sizes are counted as not built. Nothing is
downloaded. Writes a JSON report with the machine; `tests/test_architectures.py` runs a few.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import machine

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "architectures.json"
LARGEST = 30_000_000  # parameters
SECONDS = 60  # for one architecture
MAPPINGS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
)
_SIZES = {
    32: "hidden_size d_model n_embd dim embedding_size",
    48: "intermediate_size ffn_dim n_inner d_ff encoder_ffn_dim decoder_ffn_dim",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_experts num_local_experts n_routed_experts qk_rope_head_dim",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers "
    "num_key_value_heads num_experts_per_tok num_codebooks eos_token_id",
    8: "head_dim kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim state_size d_kv",
    1: "n_group topk_group bos_token_id",
    0: "pad_token_id",
    96: "vocab_size",
    64: "max_position_embeddings n_positions",
}
SIZES = {key: size for size, keys in _SIZES.items() for key in keys.split()}
_HEADS = {"head_dim", "v_head_dim", "d_kv", "n_group", "topk_group"}
_BY_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")
_PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "backbone_config")


def architectures() -> dict[str, str]:
    """Names of model classes, and the model type of each."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for mapping in MAPPINGS:
        for kind, classes in getattr(modeling_auto, mapping).items():
            for each in (classes,) if isinstance(classes, str) else classes:
                found.setdefault(each, kind)
    return found


def _is_settable(config: Any, key: str) -> bool:
    found = getattr(type(config), key, None)
    return not isinstance(found, property) or found.fset is not None


def _small(said: dict[str, Any], heads: bool) -> dict[str, Any]:
    """The sizes that a configuration has, made small."""
    return {
        key: min(size, said[key])
        for key, size in SIZES.items()
        if (heads or key not in _HEADS)
        and isinstance(said.get(key), int)
        and not isinstance(said[key], bool)
    }


def _configs(kind: str) -> Iterator[Any]:
    """Small configurations of a model type: not every way to make one small is allowed by all."""
    import transformers

    made = transformers.CONFIG_MAPPING[kind]
    plain = made()
    said = plain.to_dict()
    for heads, cut, whole in itertools.product((True, False), (True, False), (True, False)):
        with contextlib.suppress(Exception):
            keys = {k: v for k, v in _small(said, heads).items() if _is_settable(plain, k)}
            parts: dict[str, Any] = {}
            for name in _PARTS:
                inner = getattr(plain, name, None)
                if hasattr(inner, "to_dict"):
                    part = inner.to_dict()
                    small = _small(part, heads)
                    if cut:
                        small |= {k: part[k][:2] for k in _BY_LAYER if part.get(k)}
                    parts[name] = part | small if whole else small
                    if not whole and "model_type" in part:
                        parts[name]["model_type"] = part["model_type"]
            if cut:
                keys |= {
                    k: said[k][:2] for k in _BY_LAYER if said.get(k) and _is_settable(plain, k)
                }
            config = made(**keys, **parts)
            config.dtype = "float32"
            yield config


def _build(name: str, kind: str) -> Any:
    """A tiny model on the CPU, or None, and why."""
    import torch
    import transformers

    cls, why = getattr(transformers, name), "no small configuration"
    for config in _configs(kind):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(config).parameters())
            if size > LARGEST:
                why = f"{size / 1e6:.0f} M parameters"
                continue
            torch.manual_seed(0)
            return cls(config).to(torch.float32), ""
        except Exception as error:  # noqa: BLE001 - a configuration may be refused anywhere
            why = type(error).__name__
    return None, why


def survey(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """Build, save, mix, check and compare one architecture.

    ``verdict``: "right", "wrong", "refused" or "not built"; ``why``: in words.
    """
    import torch

    import paramdelta
    from paramdelta import Delta, Recipe, Severity

    try:
        model, why = _build(name, kind)
        if model is None:
            return {"verdict": "not built", "why": why}
        cls, start = type(model), {k: v.clone() for k, v in model.state_dict().items()}
        for seed, role in enumerate(("base", "post", "new")):
            torch.manual_seed(seed)
            model.load_state_dict(start)
            with torch.no_grad():
                for parameter in model.parameters() if seed else ():
                    if parameter.is_floating_point():
                        parameter.add_(0.02 * torch.randn_like(parameter))
            model.save_pretrained(folder / role)
        loaded = {r: cls.from_pretrained(folder / r).state_dict() for r in ("base", "post", "new")}
    except Exception as error:  # noqa: BLE001 - transformers cannot save or load it itself
        return {"verdict": "not built", "why": f"transformers: {type(error).__name__}"}
    recipe = Recipe(str(folder / "new"), (Delta(str(folder / "post"), str(folder / "base")),))
    plan = paramdelta.plan(recipe)
    refused = [each for each in plan.findings if each.severity is Severity.REFUSED]
    if refused:
        return {"verdict": "refused", "why": f"{refused[0].code}: {refused[0].what}"}
    paramdelta.mix(plan, folder / "out")
    out, info = cls.from_pretrained(folder / "out", output_loading_info=True)
    keys = [f"{kind} {sorted(names)[0]}" for kind, names in info.items() if names]
    unequal = list(_unequal(out.state_dict(), loaded))
    before, after = _findings(folder / "new"), _findings(folder / "out")
    found = sorted(after - before)
    if keys or unequal or found:
        return {"verdict": "wrong", "why": "; ".join([*keys, *unequal[:3], *found])}
    return {"verdict": "right", "tensors": len(out.state_dict())}


def _findings(folder: Path) -> set[str]:
    """What the check finds in a folder, notes excepted."""
    from paramdelta.checks.checker import check

    with mock.patch("paramdelta.checks.architecture.run_child", _here):
        found = check(folder).findings
    return {f"{each.code}: {each.what}" for each in found if each.severity.name != "NOTE"}


def _here(task: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A task of the check in this process: to import transformers anew takes seconds each time."""
    from paramdelta.checks import child

    return child._answer(child._TASKS[task], request)


def _unequal(out: dict[str, Any], loaded: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Tensors of the output that are not the sum of the three, rounded once."""
    import torch

    for name, value in out.items():
        if value.is_floating_point():
            post, base, new = (loaded[role][name].double() for role in ("post", "base", "new"))
            wanted = torch.where(post == base, new, new + (post - base)).to(value.dtype)
            if not torch.equal(wanted, value):
                yield f"unequal {name}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers offline and without a word."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)


def _too_late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main() -> None:
    """Survey all, or again those whose name holds a word; the report is written anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="")
    word = parser.parse_args().word
    import torch
    import transformers

    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    signal.signal(signal.SIGALRM, _too_late)
    with quiet(), tempfile.TemporaryDirectory() as name:
        for number, (cls, kind) in enumerate(sorted(architectures().items())):
            if word.lower() not in cls.lower():
                continue
            folder = Path(name) / str(number)
            signal.alarm(SECONDS)
            try:
                results[cls] = {"model_type": kind} | survey(cls, kind, folder)
            except Exception as error:  # noqa: BLE001 - a crash is a result
                why = f"{type(error).__name__}: {error}"
                results[cls] = {"model_type": kind, "verdict": "wrong", "why": why[:300]}
            finally:
                signal.alarm(0)
            shutil.rmtree(folder, ignore_errors=True)
            verdict = results[cls]["verdict"]
            if verdict != "right":
                print(f"{verdict:9} {cls} ({kind}): {results[cls]['why']}", file=sys.stderr)
    print(dict(Counter(each["verdict"] for each in results.values())))
    before = json.loads(RESULT.read_text(encoding="utf-8")) if word else {"right": [], "others": {}}
    right = set(before["right"]) - results.keys()
    right |= {name for name, each in results.items() if each["verdict"] == "right"}
    others = {name: why for name, why in before["others"].items() if name not in results} | {
        name: f"{each['verdict']}: {each['why']}"
        for name, each in results.items()
        if each["verdict"] != "right"
    }
    kinds = architectures()
    done = {
        "machine": machine.describe(Path.cwd()),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "model types": len({kinds[name] for name in right}),
        "right": sorted(right),
        "others": dict(sorted(others.items())),
    }
    RESULT.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
