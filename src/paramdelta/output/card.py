"""The model card: what the output is, where it comes from, its licenses, and how to make it again.

Names, addresses and licenses come from strangers. `text` makes them safe: the card shows them, and
a renderer does not act on them.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta.errors import ParamDeltaError
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.components import DIFFUSERS, MODULES, PIPELINE, SENTENCES
from paramdelta.output.lock import renamed
from paramdelta.planning.plan import Plan
from paramdelta.schemes.dare import Dare
from paramdelta.storage.filekinds import is_license
from paramdelta.text import block, code, markdown, shown
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
    "Not a model, but the difference that post-training made: Θ_post − Θ_base, exact and "
    "compressed without loss, for adding to a base"
)
_ADAPTER = (
    "The difference that post-training made, approximated by a LoRA adapter: for each linear "
    f"weight the best product of thin matrices (ParamΔ, [Cao et al., ICLR 2025]({PAPER}); singular "
    f"values by [Halko, Martinsson and Tropp, 2011]({SKETCH}))"
)
_MOST = 5_000_000  # bytes of a card or a license that are read
_TOPICS = ("language", "pipeline_tag")
_READ = ("license", "license_name", "license_link", *_TOPICS, "library_name")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SLUG = re.compile(r"[^a-z0-9.]+")
_REMOTE = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)  # a URL, which Path joins to one slash
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Origin:
    """What a card says about a source.

    ``metadata``: what its own card has of `_READ`. ``license``: Markdown. ``repo``: its id on the
    Hub, if it came from there.
    """

    role: str
    name: str
    address: str
    metadata: dict[str, Any]
    license: str
    repo: str | None = None


def origins_of(sources: Sequence[Checkpoint]) -> tuple[Origin, ...]:
    """Read what a card says about its sources. Files that cannot be read count as absent."""
    found = []
    for source in sources:
        stated = front_matter(source)
        values = {key: _plain(stated.get(key)) for key in _READ}
        metadata = {key: value for key, value in values.items() if value}
        found.append(
            Origin(
                source.role,
                shown(source.location.name),
                _public(source),
                metadata,
                _license(source, metadata),
                source.location.repo,
            )
        )
    return tuple(found)


def model_card(plan: Plan, out: Path) -> str:
    """README.md of the output, with the Hub's metadata in front."""
    origins = origins_of(plan.sources)
    recipe = renamed(plan, _public)
    metadata: dict[str, Any] = {
        **_bases(origins, "merge"),
        "library_name": _library(plan, origins),
        "tags": ["merge", "paramdelta"],
        **_licenses(origins),
    }
    for key in ("language", "pipeline_tag"):  # of the new base; the text names all
        value = origins[0].metadata.get(key, origins[1].metadata.get(key))
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
        *_origins(origins),
        "",
        "The licenses of all of them apply to this model; read each one.",
        *_terms(plan),
        "",
        f"{show_count(plan.parameters)} parameters: {mixed} tensors mixed, {copied} copied.",
        "",
        "## Recipe",
        "",
        block(recipe.to_yaml().strip(), "yaml"),
        "",
        "## Make it again",
        "",
        f"With paramdelta {__version__}, in this folder:",
        "",
        *_commands(
            ("paramdelta", "mix", RECIPE, "--out", "AGAIN"),
            ("paramdelta", "verify", ".", "--full"),
        ),
        "",
        "`paramdelta.lock.json` holds the digests of the files that were read.",
        "",
    ]
    return "\n".join(lines)


def recipe_file(plan: Plan, out: Path) -> str:
    """recipe.yaml of the output: what `mix` reads to make it again.

    Checkpoints of the Hub are named with their commits, folders by their path from the output, or
    by their mere name if the output is not on this machine.
    """
    header = f"# paramdelta mix {RECIPE} --out DIR\n"
    return header + renamed(plan, lambda source: _from(source, out)).to_yaml()


def _from(source: Checkpoint, out: Path) -> str:
    """An address that means the same from a folder."""
    location = source.location
    if location.repo is not None or location.path is None:
        return location.pinned
    if _REMOTE.match(out.as_posix()):  # no path of this machine leaves it
        return location.name
    try:
        path = os.path.relpath(location.path, os.path.abspath(out))  # noqa: PTH100 - keeps links
    except ValueError:  # another drive
        return location.pinned
    path = path.replace(os.sep, "/")
    return f"{path}#{location.branch}" if location.branch else path


def _bases(origins: Sequence[Origin], relation: str) -> dict[str, Any]:
    """The models of the Hub that it was made from. Nothing else is valid there."""
    ids = [each.repo for each in origins if each.repo is not None and _HUB_ID.fullmatch(each.repo)]
    return {"base_model": list(dict.fromkeys(ids)), "base_model_relation": relation} if ids else {}


def _licenses(origins: Sequence[Origin]) -> dict[str, Any]:
    """The license of what was made from several models: theirs if it is one, else "other"."""
    stated = [_stated(origin) for origin in origins]
    if not any(stated):
        return {}
    first = origins[0].metadata
    if len(set(stated)) == 1 and _LICENSE_ID.fullmatch(str(first.get("license"))):
        kept = {
            key: first[key] for key in ("license", "license_name", "license_link") if key in first
        }
        return {key: value for key, value in kept.items() if isinstance(value, str)}
    names = dict.fromkeys(_SLUG.sub("-", each.lower()).strip("-.") for each in stated if each)
    missing = [] if all(stated) else ["not-stated"]
    return {"license": "other", "license_name": "-and-".join([*filter(None, names), *missing])}


def _stated(origin: Origin) -> str:
    """The license that a source states; "" if it states none."""
    found = origin.metadata.get("license_name") or origin.metadata.get("license") or ""
    return found if isinstance(found, str) else "-or-".join(found)


def _terms(plan: Plan) -> list[str]:
    """The files that hold their terms."""
    found = [each for each in plan.companions if is_license(each.name.rpartition("/")[2])]
    return ["", *(f"- {code(each.name, 300)} from {each.giver}" for each in found)] if found else []


def _head(metadata: dict[str, Any], out: Path) -> list[str]:
    """The Hub's metadata, and the title."""
    from paramdelta.documents.yaml import to_yaml  # keeps yaml out of the start

    text = to_yaml(metadata).strip()
    return ["---", text, "---", "", f"# {markdown(out.name)}", ""]


def _origins(origins: Sequence[Origin]) -> list[str]:
    """What it was made from, as a table with the licenses."""
    return [
        "| | model | license |",
        "|---|---|---|",
        *(f"| {each.role} | {code(each.address, 300)} | {each.license} |" for each in origins),
    ]


def _sparsity(plan: Plan) -> list[str]:
    """The papers of what is left out of the Δ."""
    recipe = plan.recipe
    named = [Dare.citation] if any(delta.dare is not None for delta in recipe.deltas) else []
    named += [recipe.scheme.citation] if recipe.scheme.citation else []
    return ["; ".join(named) + ".", ""] if named else []


def delta_card(origins: Sequence[Origin], out: Path, base_sha256: str) -> str:
    """README.md of a stored Δ; ``origins``: post and base; ``base_sha256``: see `extract`."""
    post, base = origins
    metadata: dict[str, Any] = {
        **_bases([base], "adapter"),
        "library_name": "paramdelta",
        "tags": ["delta", "paramdelta"],
        **_licenses(origins),
    }
    metadata |= {key: post.metadata[key] for key in _TOPICS if key in post.metadata}
    lines = [
        *_head(metadata, out),
        f"{_DELTA} (ParamΔ, [Cao et al., ICLR 2025]({PAPER})).",
        "",
        *_origins(origins),
        "",
        "The licenses of both apply; read each one.",
        "",
        "## Apply it",
        "",
        *_commands(
            ("paramdelta", "mix", "--delta", out.name, "--new-base", "NEW_BASE", "--out", "DIR"),
        ),
        "",
        "Applied to its own base this gives post; applied to post with `--scale -1`, base.",
        f"The base's numbers have the SHA-256 digest `{base_sha256}`;",
        "`paramdelta.delta.json` lists the files that were read.",
        "",
    ]
    return "\n".join(lines)


def _public(source: Checkpoint) -> str:
    """An address for strangers: a Hub id with its commit, or the mere name of a folder."""
    return source.location.pinned if source.location.repo else source.location.name


def front_matter(source: Checkpoint) -> dict[str, Any]:
    """The metadata of a checkpoint's own card, {} if there is none that can be read."""
    from paramdelta.documents.yaml import parse_yaml

    first, *lines = _text(source, "README.md").splitlines() or [""]
    ends = (number for number, text in enumerate(lines) if text.rstrip() == "---")
    end = next(ends, None)
    if first.rstrip() != "---" or end is None:
        return {}
    # Results of benchmarks can make the whole as large as a book: try the wanted keys first.
    for part in (_wanted(lines[:end]), lines[:end]):
        with contextlib.suppress(ValueError):
            data = parse_yaml("\n".join(part))
            if isinstance(data, dict):
                return data
    return {}


def _wanted(lines: Sequence[str]) -> list[str]:
    """The lines of a YAML mapping that hold the keys of `_READ`."""
    found, keeps = [], False
    for text in lines:
        if text[:1] not in ("", " ", "-", "#", "\t"):
            keeps = text.partition(":")[0].strip().strip("\"'") in _READ
        if keeps:
            found.append(text)
    return found


def _text(source: Checkpoint, name: str) -> str:
    """The text of a small file; "" if it is absent, too large or cannot be read."""
    try:
        return source.folder.text(name, _MOST) if name in source.folder else ""
    except ParamDeltaError:
        return ""


def _plain(value: Any) -> str | list[str] | None:
    """A value of a card's metadata if it is a text or a list of texts, else None."""
    if isinstance(value, str):
        return shown(value.strip(), 300)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [shown(each.strip(), 300) for each in value[:100]]
    return None


def _license(source: Checkpoint, metadata: dict[str, Any]) -> str:
    """The license that a checkpoint states, as Markdown."""
    stated = metadata.get("license_name") or metadata.get("license")
    if isinstance(stated, list):
        stated = ", ".join(stated)
    if stated:
        return markdown(stated, 300)
    name = next((name for name in ("LICENSE", "LICENSE.txt") if name in source.folder), None)
    if name is None:
        return "not stated"
    first = _text(source, name).strip()[:1000].splitlines()[:1]
    return f"see its LICENSE ({markdown(first[0].strip(), 300)})" if first else "see its LICENSE"


def _library(plan: Plan, origins: Sequence[Origin]) -> str:
    if any(companion.name == MODULES for companion in plan.companions):
        return SENTENCES
    if any(companion.name == PIPELINE for companion in plan.companions):
        return DIFFUSERS
    named = [o.metadata["library_name"] for o in origins if "library_name" in o.metadata]
    return str(named[0]) if named and isinstance(named[0], str) else "transformers"


def _commands(*lines: Sequence[str]) -> list[str]:
    """Commands of a shell as a code block, each from its words."""
    return block("\n".join(map(shlex.join, lines))).splitlines()


def adapter_card(
    origins: Sequence[Origin],
    out: Path,
    made: "MadeAdapter",
    ranks: Sequence[int],
    files: Collection[str],
) -> str:
    """README.md of a Δ as a LoRA adapter.

    ``origins``: post, and base if there is one; ``ranks``: those that vLLM can be told; ``files``:
    the other files of the folder.
    """
    metadata: dict[str, Any] = {
        **_bases(
            [replace(origins[-1], repo=None if made.base.is_path else made.base.name)], "adapter"
        ),
        "library_name": "peft",
        "tags": ["lora", "delta", "paramdelta"],
        **_licenses(origins),
    }
    kept = origins[0].metadata
    metadata |= {key: kept[key] for key in _TOPICS if key in kept}
    least = next((rank for rank in ranks if rank >= made.rank), None)
    served = "BASE" if made.base.is_path else made.base.name
    vllm = (
        code(
            f"vllm serve {shlex.quote(served)} --enable-lora --max-lora-rank {least} "
            f"--lora-modules {shlex.quote(f'{out.name}=DIR')}{_conversation(files)}",
            1000,
        )
        if least is not None
        else f"Not with vLLM: its --max-lora-rank is at most {ranks[-1]}, and r is {made.rank}."
    )
    limits = (
        f"It takes a --max-lora-rank of {', '.join(map(str, ranks))}, at least r, which is "
        f"{made.rank} here; it takes no modules_to_save and no biases (none here), and one scaling "
        "for all modules (1 here). This is from its source (vllm/lora/peft_helper.py, "
        "vllm/config/lora.py); paramdelta did not run it."
    )
    if made.embeddings:
        limits += " It takes factors of embeddings only for models whose vLLM class supports them."
    held = (
        f"**It holds {_percent(made.kept_of_modules)} of the energy of its modules' Δ, "
        f"{_percent(made.kept_of_all)} of the whole Δ's.** Energy is ‖Δ‖²_F, measured against Δ "
        f"with the factors as they are stored ({made.dtype}). Only a test shows how much of an "
        "ability that is."
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
        *_origins(origins),
        "",
        "The licenses of both apply; read each one.",
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
        "PEFT: `PeftModel.from_pretrained(base, DIR)`"
        + (
            ". Do not call `merge_and_unload()`: PEFT 0.21 adds factors of an embedding that is "
            "tied to the output head twice. `paramdelta mix` onto the base gives a plain model."
            if made.peft_ties
            else ", and `merge_and_unload()` for a plain model."
            + " Merge it: the output head is tied to an embedding, and otherwise stays base's."
            * made.tied
        ),
        "",
        "Onto another base, exactly and streaming:",
        "",
        *_commands(
            ("paramdelta", "mix", "--post", out.name, "--new-base", "NEW_BASE", "--out", "DIR"),
        ),
        "",
        f"vLLM: {vllm}",
        limits,
        "",
        "## Modules",
        "",
        "| module | weight | rank | of | energy kept |",
        "|---|---|---|---|---|",
        *(
            f"| {code(one.module, 300)} | {one.shape[0]} × {one.shape[1]} | {one.rank} | "
            f"{one.full} | {_percent(one.kept)} |"
            for one in made.kept
        ),
        f"| all | | | | {_percent(made.kept_of_modules)} |",
        "",
    ]
    if made.unchanged:
        lines += [
            f"{len(made.unchanged)} weights are the same as in base and have no factors.",
            "",
        ]
    return "\n".join(lines)


def _conversation(files: Collection[str]) -> str:
    """Options of `vllm serve` that let it converse as post does, with the files of the folder.

    Without them it takes base's tokenizer, template and ends of a turn.
    """
    options = {
        "tokenizer_config.json": " --tokenizer DIR",
        "chat_template.jinja": " --chat-template DIR/chat_template.jinja",
        "generation_config.json": " --generation-config DIR",
    }
    return "".join(option for name, option in options.items() if name in files)


def _percent(share: float) -> str:
    return f"{100 * share:.4f} %"
