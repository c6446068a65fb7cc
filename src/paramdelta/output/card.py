"""The model card: what the output is, where it comes from, under which licences, and how to make it
again.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from paramdelta.errors import ParamDeltaError
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.components import DIFFUSERS, MODULES, PIPELINE, SENTENCES
from paramdelta.output.lock import renamed
from paramdelta.planning.plan import Plan
from paramdelta.schemes.dare import Dare
from paramdelta.units import show_count
from paramdelta.version import __version__

if TYPE_CHECKING:
    from paramdelta.jobs.lowrank import MadeAdapter

PAPER = "https://arxiv.org/abs/2504.21023"
SKETCH = "https://doi.org/10.1137/090771806"
_INTRODUCTION = (
    "Made by weight arithmetic, with no training: the difference that post-training made to an old "
    "base, added to a newer one"
)
_DELTA = (
    "Not a model but what post-training made of one: the exact difference Θ_post − Θ_base, "
    "compressed without loss, to be added to a base"
)
_ADAPTER = (
    "What post-training made of a model, as nearly as a LoRA adapter can hold it: for each linear "
    f"weight the best product of thin matrices (ParamΔ, [Cao et al., ICLR 2025]({PAPER}); singular "
    f"values by [Halko, Martinsson and Tropp, 2011]({SKETCH}))"
)
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(plan: Plan, out: Path) -> str:
    """README.md of the output, with the Hub's metadata in front."""
    cards = [front_matter(source) for source in plan.sources]
    recipe = renamed(plan, _public)
    names = list(dict.fromkeys(source.location.name for source in plan.sources))
    metadata: dict[str, Any] = {
        "base_model": names,
        "base_model_relation": "merge",
        "library_name": _library(plan, cards),
        "tags": ["merge", "paramdelta"],
    }
    for key in _KEPT:  # of the new base, as are the weights' greater part; the text names all
        value = cards[0].get(
            key, cards[1].get(key) if key in ("language", "pipeline_tag") else None
        )
        if value is not None:
            metadata[key] = value
    mixed, copied = plan.mixed, plan.copied
    lines = [
        *_head(metadata, out),
        f"{_INTRODUCTION} (ParamΔ, [Cao et al., ICLR 2025]({PAPER})).",
        "",
        f"    {plan.recipe.symbols}",
        "",
        *_sparsity(plan),
        *_origins(plan.sources, cards),
        "",
        "The licences of all of them bind whoever uses this model; look at each.",
        "",
        f"{show_count(plan.parameters)} parameters: {mixed} tensors mixed, {copied} copied.",
        "",
        "## Recipe",
        "",
        "```yaml",
        recipe.to_yaml().strip(),
        "```",
        "",
        "## Make it again",
        "",
        "```",
        f"pip install paramdelta=={__version__}",
        "paramdelta mix recipe.yaml --out " + out.name,
        "paramdelta verify " + out.name + " --full",
        "```",
        "",
        "`paramdelta.lock.json` holds the digests of what was read.",
        "",
    ]
    return "\n".join(lines)


def _head(metadata: dict[str, Any], out: Path) -> list[str]:
    """The Hub's metadata, and the title."""
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()
    return ["---", text, "---", "", f"# {out.name}", ""]


def _origins(sources: Sequence[Checkpoint], cards: Sequence[dict[str, Any]]) -> list[str]:
    """What it was made from, as a table with the licences."""
    return [
        "| | model | licence |",
        "|---|---|---|",
        *(
            f"| {source.role} | {_cell(_public(source))} | {_cell(_licence(source, card))} |"
            for source, card in zip(sources, cards, strict=True)
        ),
    ]


def _sparsity(plan: Plan) -> list[str]:
    """The papers of what is left out of the Δ."""
    recipe = plan.recipe
    named = [Dare.citation] if any(delta.dare is not None for delta in recipe.deltas) else []
    named += [recipe.scheme.citation] if recipe.scheme.citation else []
    return ["; ".join(named) + ".", ""] if named else []


def delta_card(plan: Plan, out: Path, base_sha256: str) -> str:
    """README.md of a stored Δ; ``plan``: of a mix onto post; ``base_sha256``: see `extract`."""
    (post, base), *_ = plan.lineages
    assert base is not None
    cards = [front_matter(post), front_matter(base)]
    metadata: dict[str, Any] = {
        "base_model": [base.location.name],
        "base_model_relation": "adapter",
        "library_name": "paramdelta",
        "tags": ["delta", "paramdelta"],
    }
    metadata |= {key: cards[0][key] for key in _KEPT if key in cards[0]}
    lines = [
        *_head(metadata, out),
        f"{_DELTA} (ParamΔ, [Cao et al., ICLR 2025]({PAPER})).",
        "",
        *_origins((post, base), cards),
        "",
        "The licences of both bind whoever uses it; look at each.",
        "",
        "## Apply it",
        "",
        "```",
        f"pip install paramdelta=={__version__}",
        f"paramdelta mix --delta {out.name} --new-base NEW_BASE --out DIR",
        "```",
        "",
        "Onto the base that it was taken from, that gives post; with `--scale -1` onto post, base.",
        f"The base's numbers have the SHA-256 digest `{base_sha256}`;",
        "`paramdelta.delta.json` says what was read.",
        "",
    ]
    return "\n".join(lines)


def _public(source: Checkpoint) -> str:
    """An address for strangers: a Hub id with its commit, or the mere name of a folder."""
    return source.location.pinned if source.location.repo else source.location.name


def front_matter(source: Checkpoint) -> dict[str, Any]:
    """The metadata of a checkpoint's own card, {} if there is none that can be read."""
    if "README.md" not in source.folder:
        return {}
    try:
        match = _FRONT_MATTER.match(source.folder.text("README.md"))
        data = yaml.safe_load(match[1]) if match else None
    except (ParamDeltaError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _library(plan: Plan, cards: list[dict[str, Any]]) -> str:
    if any(companion.name == MODULES for companion in plan.companions):
        return SENTENCES
    if any(companion.name == PIPELINE for companion in plan.companions):
        return DIFFUSERS
    named = [card["library_name"] for card in cards if isinstance(card.get("library_name"), str)]
    return str(named[0]) if named else "transformers"


def _licence(source: Checkpoint, card: dict[str, Any]) -> str:
    licence = card.get("license_name") or card.get("license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if licence:
        return str(licence)
    name = next((name for name in ("LICENSE", "LICENSE.txt") if name in source.folder), None)
    if name is not None:
        first = source.folder.text(name).strip().splitlines()[:1]
        return f"see its LICENSE ({first[0].strip()})" if first else "see its LICENSE"
    return "not stated"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def adapter_card(plan: Plan, out: Path, made: "MadeAdapter", ranks: Sequence[int]) -> str:
    """README.md of a Δ as a LoRA adapter; ``ranks``: those that vLLM can be told."""
    post, base = plan.lineages[0]
    sources = [post] if base is None else [post, base]
    cards = [front_matter(source) for source in sources]
    metadata: dict[str, Any] = {
        "base_model": [sources[-1].location.name],
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["lora", "delta", "paramdelta"],
    }
    metadata |= {key: cards[0][key] for key in _KEPT if key in cards[0]}
    least = next((rank for rank in ranks if rank >= made.rank), None)
    vllm = (
        f"`vllm serve BASE --enable-lora --max-lora-rank {least} --lora-modules {out.name}=DIR`"
        if least is not None
        else f"Not with vLLM: its --max-lora-rank is at most {ranks[-1]}, and r is {made.rank}."
    )
    limits = (
        f"It takes a --max-lora-rank of {', '.join(map(str, ranks))}, at least r, which is "
        f"{made.rank} here; no modules_to_save and no biases, of which there are none here; one "
        "scaling for all modules, which is 1. So its source says (vllm/lora/peft_helper.py, "
        "vllm/config/lora.py); paramdelta did not run it."
    )
    if made.embeddings:
        limits += " Factors of embeddings it takes only for models whose class there says so."
    held = (
        f"**It holds {_percent(made.kept_of_modules)} of the energy of its modules' Δ, "
        f"{_percent(made.kept_of_all)} of the whole Δ's.** Energy is ‖Δ‖²_F, measured against Δ "
        f"with the factors as they are stored ({made.dtype}). How much of an ability that is, only "
        "a test of the ability says."
    )
    lost = [
        f"| {left.kind} | {len(left.tensors)} | {100 * left.energy / made.energy:.3g} % |"
        for left in made.left
    ]
    if made.alone:
        lost.append(f"| tensors that only post has | {len(made.alone)} | not known |")
    lines = [
        *_head(metadata, out),
        _ADAPTER + ".",
        "",
        "    Θ_post ≈ Θ_base + B·A,   B = U·√S,   A = √S·Vᵀ   (alpha = r: the scaling is 1)",
        "",
        *_origins(sources, cards),
        "",
        "The licences of both bind whoever uses it; look at each.",
        "",
        held,
        "",
        *(
            ["## What it leaves out", "", "| what | tensors | of the Δ's energy |", "|---|---|---|"]
            if lost
            else []
        ),
        *lost,
        *([""] if lost else []),
        "## Apply it",
        "",
        "PEFT: `PeftModel.from_pretrained(base, DIR)`, and `merge_and_unload()` for a plain model."
        + (
            " Merge it: the output head is tied to an embedding, and unmerged it stays base's."
            if made.tied
            else ""
        ),
        "",
        "Onto another base, exactly and streaming:",
        "",
        "```",
        f"pip install paramdelta=={__version__}",
        f"paramdelta mix --post {out.name} --new-base NEW_BASE --out DIR",
        "```",
        "",
        f"vLLM: {vllm}",
        limits,
        "",
        "## Modules",
        "",
        "| module | weight | rank | of | energy kept |",
        "|---|---|---|---|---|",
        *(
            f"| {_cell(one.module)} | {one.shape[0]} × {one.shape[1]} | {one.rank} | {one.full} | "
            f"{_percent(one.kept)} |"
            for one in made.kept
        ),
        f"| all | | | | {_percent(made.kept_of_modules)} |",
        "",
    ]
    if made.unchanged:
        lines += [
            f"{len(made.unchanged)} weights are those of base and have no factors.",
            "",
        ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.4f} %"
