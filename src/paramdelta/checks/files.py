"""The files that configurations name, and those that a kind of folder needs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta.checks.folder import is_inside
from paramdelta.checks.part import Part, is_id
from paramdelta.planning.findings import Findings, Severity

_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json",
            "preprocessor_config.json", "video_preprocessor_config.json",
            "generation_config.json")  # fmt: skip
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_IMPORT = re.compile(  # \s would also match the line ends of a whole file, from each of its lines
    r"^[ \t]*(?:from[ \t]+\.(\w+)[ \t]+import|import[ \t]+\.(\w+)|"
    r"from[ \t]+\.[ \t]+import[ \t]+(\w+))",
    re.MULTILINE,
)
_RELATION = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_CODE = 1 << 20  # bytes of a file of code


def check_files(part: Part, findings: Findings) -> None:
    """Look for everything that the small files of one part name."""
    _check_code(part, findings)
    if part.kind == "transformers":
        _check_transformers(part, findings)
    elif part.kind == "diffusers":
        _check_weights(part, findings)
    elif part.kind == "module":
        _check_module(part, findings)


def _check_code(part: Part, findings: Findings) -> None:
    """Code that auto_map names, and what that code imports from its own folder."""
    named: dict[str, str] = {}
    for name in _CONFIGS:
        content = part.config if name == "config.json" else {}
        if name == "tokenizer_config.json":
            content = part.tokenizer_config
        elif name != "config.json" and name in part.folder:
            content = part.folder.object(name, findings)
        for reference in _references(content.get("auto_map")):
            if "--" not in reference:  # else the code is in another repository
                named.setdefault(reference.rpartition(".")[0] + ".py", name)
    if any(name.startswith("custom_generate/") for name in part.folder.sizes):
        named.setdefault("custom_generate/generate.py", "custom_generate")
    pending = list(named)
    while pending:
        file = pending.pop()
        if not is_inside(file) or file not in part.folder:
            findings.add(
                Severity.REFUSED,
                "code-missing",
                f"{named[file]} needs {file}, which is not there",
                part.place(named[file]),
                remedy="copy the code files beside the weights",
            )
            continue
        text = part.folder.text(file, findings, _MAX_CODE) or ""
        inner = file.rpartition("/")[0]
        for found in _IMPORT.finditer(text):
            wanted = next(group for group in found.groups() if group) + ".py"
            wanted = f"{inner}/{wanted}" if inner else wanted
            if wanted not in named and len(named) < 200:
                named[wanted] = file
                pending.append(wanted)


def _references(mapped: Any) -> Iterator[str]:
    """Class references of auto_map: a text, or a pair of them for slow and fast tokenizers."""
    values = mapped.values() if isinstance(mapped, Mapping) else [mapped]
    for value in values:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and "." in each:
                yield each


def _check_transformers(part: Part, findings: Findings) -> None:
    _check_weights(part, findings)
    if part.config and part.architecture is None:
        findings.add(
            Severity.WARNING,
            "architecture-unstated",
            "config.json names no class in architectures: vLLM does not know what to load",
            part.place(),
            remedy="name the class, for example LlamaForCausalLM",
        )
    sees = any(isinstance(part.config.get(k), Mapping) for k in ("vision_config", "audio_config"))
    if sees and part.generates and not any(name in part.folder for name in _PROCESSORS):
        findings.add(
            Severity.WARNING,
            "processor-missing",
            "the model reads images or sounds, and there is no processor",
            part.place(),
            remedy="copy preprocessor_config.json and processor_config.json",
        )
    if "adapter_config.json" in part.folder and part.weights.found:
        findings.add(
            Severity.REFUSED,
            "adapter-beside-weights",
            "an adapter lies beside whole weights: transformers loads the adapter and the base "
            "model that it names, vLLM the weights alone",
            part.place("adapter_config.json"),
            remedy="move the adapter to a folder of its own, or merge it and remove it",
        )


def _check_weights(part: Part, findings: Findings) -> None:
    if not part.weights.found and part.config:
        findings.add(
            Severity.REFUSED,
            "no-weights",
            "there is a configuration and no weights",
            part.place(),
            remedy="copy or download the weights",
        )


# What the layers of sentence-transformers keep, by the tensor that holds it: keys of config.json
# for its sizes.
_DENSE = {"linear.weight": ("out_features", "in_features"), "linear.bias": ("out_features",)}


def _check_module(part: Part, findings: Findings) -> None:
    """A module of sentence-transformers: Dense has weights, the others a configuration."""
    if not {"in_features", "out_features"} <= part.config.keys():
        return
    _check_weights(part, findings)
    tensors = part.weights.tensors
    if not tensors:
        return
    for name, keys in _DENSE.items():
        wanted = tuple(part.config[key] for key in keys)
        if name == "linear.bias" and part.config.get("bias") is False:
            continue
        if name not in tensors:
            findings.add(
                Severity.REFUSED,
                "missing-tensors",
                "the layer has tensors that are not stored: they would be random",
                part.place(),
                tensor=name,
                remedy="copy the weights of the module",
            )
        elif tensors[name].shape != wanted:
            findings.add(
                Severity.REFUSED,
                "wrong-shapes",
                "tensors have other shapes than this config.json",
                part.place(),
                tensor=f"{name} {list(tensors[name].shape)}, expected {list(wanted)}",
                remedy="take config.json and weights from one module",
            )


def check_chain(parts: list[Part], findings: Findings) -> None:
    """Whether each module of a sentence-transformers folder takes what the one before gives."""
    width: int | None = None
    for part in parts:
        config = part.config
        if part.kind == "transformers":
            width = config.get("hidden_size", config.get("dim", config.get("d_model")))
            continue
        taken = config.get("word_embedding_dimension", config.get("embedding_dimension"))
        taken = config.get("in_features", taken)
        single = sum(bool(v) for k, v in config.items() if k.startswith("pooling_mode_")) <= 1
        if is_id(width) and is_id(taken) and width != taken:
            findings.add(
                Severity.REFUSED,
                "wrong-shapes",
                f"the module takes vectors of {taken} numbers, the one before gives {width}",
                part.place(),
                remedy="take all modules from one model",
            )
        width = config.get("out_features", width if single else None)


def check_adapter(part: Part, findings: Findings) -> None:
    """A PEFT adapter: its base, and that its tensors come in pairs of the rank it states."""
    config = part.folder.object("adapter_config.json", findings)
    place = part.place("adapter_config.json")
    if not part.weights.found:
        findings.add(
            Severity.REFUSED,
            "no-weights",
            "there is an adapter_config.json and no adapter_model.safetensors",
            place,
            remedy="copy or download the weights",
        )
    base = config.get("base_model_name_or_path")
    known = isinstance(base, str) and (_RELATION.fullmatch(base) or part.folder.is_elsewhere(base))
    if not base or not known:
        findings.add(
            Severity.WARNING,
            "base-unknown",
            f"base_model_name_or_path is {str(base)[:80]!r}: neither a repository of the Hub nor a "
            "folder that is here",
            place,
            remedy="name the base model as organization/name",
        )
    tensors = part.weights.tensors
    if config.get("peft_type") != "LORA":
        return
    for name, tensor in tensors.items():
        if "lora_A" in name or "lora_embedding_A" in name:
            other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            if other not in tensors:
                _unpaired(place, name, findings)
            elif tensor.shape[:1] != tensors[other].shape[1:2]:
                findings.add(
                    Severity.REFUSED,
                    "wrong-shapes",
                    "the two factors of a LoRA layer have different ranks",
                    place,
                    tensor=f"{name} {list(tensor.shape)}, {list(tensors[other].shape)}",
                    remedy="save the adapter again",
                )
        elif ("lora_B" in name or "lora_embedding_B" in name) and not name.endswith(".bias"):
            other = name.replace("lora_B", "lora_A").replace("lora_embedding_B", "lora_embedding_A")
            if other not in tensors:
                _unpaired(place, name, findings)
    ranks = {t.shape[0] for n, t in tensors.items() if "lora_A" in n and t.shape}
    patterns = config.get("rank_pattern")
    said = {config.get("r"), *(patterns.values() if isinstance(patterns, Mapping) else ())}
    experts = any("target_parameters" in key and value for key, value in config.items())
    if ranks and not experts and not ranks & {each for each in said if is_id(each)}:
        findings.add(
            Severity.REFUSED,
            "rank-untrue",
            f"adapter_config.json says rank {config.get('r')}, and the tensors have rank "
            + ", ".join(map(str, sorted(ranks)[:4])),
            place,
            remedy="take adapter_config.json and weights from one adapter",
        )


def _unpaired(place: str, name: str, findings: Findings) -> None:
    findings.add(
        Severity.REFUSED,
        "missing-tensors",
        "one of the two factors of a LoRA layer is not stored",
        place,
        tensor=name,
        remedy="save the adapter again",
    )
