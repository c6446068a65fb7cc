"""One model of a folder: its small files, read once, and its weights.

A plain checkpoint is one part. A sentence-transformers folder has one part a module, a diffusers
folder one a component.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from paramdelta.checks.folder import MAX_VOCABULARY, Folder, is_inside
from paramdelta.checks.quantization import NESTED
from paramdelta.checks.weights import STEMS, Weights, read_weights
from paramdelta.planning.findings import Findings, Severity

_MAX_PARTS = 64


@dataclass(frozen=True)
class Part:
    """One model and what lies beside it.

    ``kind``: transformers, diffusers, adapter, module (of sentence-transformers), weights (without
    a config), companions (no weights are expected, as for a tokenizer or a scheduler), delta.
    ``roles``:
    special_tokens_map.json. ``added``: added_tokens.json. The mappings are empty where there is no
    such file.
    """

    folder: Folder
    kind: str
    weights: Weights
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    roles: Mapping[str, Any]
    added: Mapping[str, Any]

    def place(self, name: str = "config.json") -> str:
        """Where a finding is."""
        return self.folder.place(name)

    @property
    def architecture(self) -> str | None:
        """The first class that config.json names."""
        classes = self.config.get("architectures")
        first = classes[0] if isinstance(classes, list) and classes else None
        return first if isinstance(first, str) else None

    @property
    def generates(self) -> bool:
        """Whether the class is one that generates text, as far as its name tells."""
        return bool(
            re.search(r"(CausalLM|ConditionalGeneration|LMHeadModel)", self.architecture or "")
        )


def read_part(folder: Folder, kind: str, findings: Findings) -> Part:
    """Read the small files and the headers of one part."""
    config = folder.object("config.json", findings)
    weights = Weights()
    if kind == "weights":
        weights = read_weights(folder, "model", findings)
    elif kind in ("transformers", "module"):
        weights = read_weights(folder, "model", findings, config.get("transformers_weights"))
    elif kind == "delta":
        findings.add(
            Severity.NOTE,
            "no-model",
            "a stored Δ: its numbers are not those of a model, and were not checked",
            folder.place("paramdelta.delta.json"),
        )
    elif kind in STEMS:
        weights = read_weights(folder, STEMS[kind], findings)
    return Part(
        folder,
        kind,
        weights,
        config,
        folder.object("generation_config.json", findings),
        folder.object("tokenizer.json", findings, MAX_VOCABULARY),
        folder.object("tokenizer_config.json", findings),
        folder.object("special_tokens_map.json", findings),
        folder.object("added_tokens.json", findings),
    )


def find_parts(folder: Folder, findings: Findings) -> tuple[str, list[Part]]:
    """What the folder is, and its parts."""
    if "paramdelta.delta.json" in folder:  # a difference of models is none itself
        return "delta", [read_part(folder, "delta", findings)]
    if "model_index.json" in folder:
        return "diffusers", list(_components(folder, findings))
    if "modules.json" in folder:
        return "sentence-transformers", list(_modules(folder, findings))
    config = folder.object("config.json", Findings())
    weights = any(name.endswith((".safetensors", ".bin")) for name in folder.direct)
    if "adapter_config.json" in folder and not _is_model(folder, config):
        return "adapter", [read_part(folder, "adapter", findings)]
    if "_class_name" in config:
        return "diffusers component", [read_part(folder, "diffusers", findings)]
    if "config.json" in folder:
        return "transformers", [read_part(folder, "transformers", findings)]
    if weights:
        return "weights", [read_part(folder, "weights", findings)]
    findings.add(
        Severity.REFUSED,
        "no-model",
        "the folder holds neither config.json nor weights",
        ".",
        remedy=_hint(folder),
    )
    return "unknown", []


def _is_model(folder: Folder, config: Mapping[str, Any]) -> bool:
    """Whether a folder with an adapter also holds a whole model."""
    return "model_type" in config and any(
        name.startswith(("model", "pytorch_model")) and name.endswith((".safetensors", ".bin"))
        for name in folder.direct
    )


def _hint(folder: Folder) -> str:
    """What to give instead of a folder that is no model."""
    inner = sorted(
        {name.rpartition("/")[0] for name in folder.sizes if name.endswith("/config.json")}
    )
    if inner:
        return "give the folder of a model: " + ", ".join(inner[:3])
    gguf = [name for name in folder.direct if name.endswith(".gguf")]
    if gguf:
        return "GGUF files are not checked; give the safetensors checkpoint that they came from"
    return "give the folder that holds config.json and the weights"


def _modules(folder: Folder, findings: Findings) -> Iterator[Part]:
    """The modules of a sentence-transformers folder, in their order."""
    modules = folder.json("modules.json", findings)
    if not isinstance(modules, list) or not modules:
        _invalid(folder, "modules.json", "it is not a list of modules", findings)
        return
    seen: set[str] = set()
    for module in modules[:_MAX_PARTS]:
        path, kind = (
            (module.get(k) for k in ("path", "type")) if isinstance(module, dict) else (0, 0)
        )
        if not isinstance(path, str) or not isinstance(kind, str):
            _invalid(folder, "modules.json", "a module has no path or no type", findings)
            continue
        if (path and not is_inside(path)) or path in seen:
            _outside(folder, "modules.json", path, findings)
            continue
        seen.add(path)
        name = kind.rpartition(".")[2]
        if name in ("Router", "Asym"):
            yield from _routes(folder.sub(path), findings)
        else:
            yield from _module(folder, path, name, "modules.json", findings)


def _module(
    folder: Folder, path: str, name: str, listing: str, findings: Findings
) -> Iterator[Part]:
    """One module of class ``name``. ``listing``: the file that names it."""
    inner = folder.sub(path)
    if name in ("Transformer", "MLMTransformer"):
        yield read_part(inner, "transformers", findings)
    elif path and not folder.has_folder(path):
        if name != "Normalize":  # it has no files, and the Hub keeps no empty folders
            findings.add(
                Severity.REFUSED,
                "module-missing",
                f"{listing} names {path!r} ({name}), which is not there",
                folder.place(listing),
                remedy="copy the folder of the module",
            )
    else:
        yield read_part(inner, "module", findings)


def _routes(folder: Folder, findings: Findings) -> Iterator[Part]:
    """The modules of a router: those of all routes."""
    listing = "router_config.json" if "router_config.json" in folder else "config.json"
    types = folder.object(listing, findings).get("types")
    if not isinstance(types, Mapping) or not all(isinstance(k, str) for k in types.values()):
        _invalid(folder, listing, "it names no modules", findings)
        return
    for path, kind in list(types.items())[:_MAX_PARTS]:
        if is_inside(path):
            yield from _module(folder, path, kind.rpartition(".")[2], listing, findings)
        else:
            _outside(folder, listing, path, findings)


_COMPANIONS = re.compile(r".*(Scheduler|Tokenizer(Fast)?|Processor|Extractor)$")


def _components(folder: Folder, findings: Findings) -> Iterator[Part]:
    """The components of a diffusers folder."""
    index = folder.object("model_index.json", findings)
    for name, value in list(index.items())[:_MAX_PARTS]:
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        library, kind = value
        if not isinstance(kind, str):
            continue  # [null, null]: the component is left out
        if not is_inside(name) or "/" in name:
            _outside(folder, "model_index.json", name, findings)
        elif not folder.has_folder(name):
            findings.add(
                Severity.REFUSED,
                "component-missing",
                f"model_index.json names {name!r} ({kind}), which is not there",
                folder.place("model_index.json"),
                remedy="copy the folder of the component, or set it to [null, null]",
            )
        elif _COMPANIONS.fullmatch(kind):
            yield read_part(folder.sub(name), "companions", findings)
        else:
            known = "transformers" if library == "transformers" else "diffusers"
            inner = folder.sub(name)
            if library not in ("transformers", "diffusers"):
                known = "transformers" if "_class_name" not in inner.object(
                    "config.json", Findings()
                ) else "diffusers"  # fmt: skip
            yield read_part(inner, known, findings)


def _invalid(folder: Folder, name: str, problem: str, findings: Findings) -> None:
    findings.add(
        Severity.REFUSED,
        "file-invalid",
        f"the file cannot be used: {problem}",
        folder.place(name),
        remedy="get the file again",
    )


def _outside(folder: Folder, name: str, path: str, findings: Findings) -> None:
    findings.add(
        Severity.REFUSED,
        "path-outside",
        f"{name} names {path!r}, which is not one folder inside",
        folder.place(name),
        remedy="name folders of the model only, each once",
    )


def text_configs(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration, and its parts that describe the language model: prefix and mapping."""
    yield "", config
    for name in NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            yield name + ".", inner


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def ids_of(value: Any) -> list[int]:
    """Token ids of a value that is one id or a list of them; anything else is left out."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if is_id(each)]
