"""Who gives which of the small files beside the weights, and what is changed in them.

The rule: whatever describes the weights' shape and positions comes from the new base; whatever
makes a model converse (chat template, special-token roles, end-of-sequence ids, generation
settings) comes from post. Here it is decided and can be printed; `output.companions` writes it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta.checkpoint.checkpoint import Checkpoint
from paramdelta.dtypes import torch_name
from paramdelta.planning.vocabulary import Comparison

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|"
    r"merges\.txt|spiece\.model|sentencepiece\.bpe\.model|.*\.tiktoken|"
    r"chat_template\.(jinja|json)|additional_chat_templates/.*\.jinja"
)
_SMALL_FILE = re.compile(r".*\.(json|txt|jinja|model|tiktoken|py)")
_NOT_COMPANIONS = re.compile(
    r"(.*\.index\.json|README\.md|paramdelta\.lock\.json|trainer_state\.json|all_results\.json|"
    r"train_results\.json|eval_results\.json|requirements\.txt|\..*)"
)
_SUBFOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")  # sentence-transformers' modules
_MAX_SIZE = 256_000_000  # bytes; the largest tokenizers have some 30 MB


@dataclass(frozen=True)
class Companion:
    """A small file of the output.

    ``name``: its path in the output, with slashes. ``source``: the file that is copied.
    ``giver``: "new base" or "post". ``changes``: keys of the JSON object that are set (to None:
    removed). ``why``: for the plan and the card.
    """

    name: str
    source: Path
    giver: str
    why: str
    changes: tuple[tuple[str, Any], ...] = ()


def choose(
    new: Checkpoint,
    post: Checkpoint,
    vocabulary: Comparison,
    dtype: str | None,
    tied: bool | None,
) -> tuple[Companion, ...]:
    """Decide every companion of the output.

    ``dtype``: the output's one floating-point dtype (safetensors name), None if there are several.
    ``tied``: what config.json must say about the output head; None to leave it as it is.
    """
    ours, theirs = _companions(new), _companions(post)
    chosen: list[Companion] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name == "config.json":
            if name in ours:
                chosen.append(_config(ours[name], new, post, vocabulary, dtype, tied))
        elif name.endswith(".py"):
            if name in ours:
                chosen.append(
                    Companion(name, ours[name], "new base", "model code: copied, never run")
                )
        elif not _TOKENIZER.fullmatch(name):
            giver, files = ("post", theirs) if name in theirs else ("new base", ours)
            chosen.append(Companion(name, files[name], giver, "how the model is used"))
    return tuple(sorted(chosen + _tokenizer(ours, theirs, new, post, vocabulary), key=_by_name))


def _by_name(companion: Companion) -> str:
    return companion.name


def _companions(checkpoint: Checkpoint) -> dict[str, Path]:
    folder = checkpoint.location.folder
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _SUBFOLDERS.fullmatch(path.name):
            found |= {f"{path.name}/{inner.name}": inner for inner in sorted(path.iterdir())}
        else:
            found[path.name] = path
    return {
        name: path
        for name, path in found.items()
        if path.is_file()
        and _SMALL_FILE.fullmatch(name)
        and not _NOT_COMPANIONS.fullmatch(name)
        and path.stat().st_size <= _MAX_SIZE
    }


def _config(
    source: Path,
    new: Checkpoint,
    post: Checkpoint,
    vocabulary: Comparison,
    dtype: str | None,
    tied: bool | None,
) -> Companion:
    changes: dict[str, Any] = {}
    if vocabulary.same_rows:
        for role in ROLES:
            if post.config.get(role) is not None and post.config[role] != new.config.get(role):
                changes[role] = post.config[role]
    if dtype is not None:
        key = "torch_dtype" if "torch_dtype" in new.config else "dtype"
        if new.config.get(key) != torch_name(dtype):
            changes[key] = torch_name(dtype)
    if tied is not None and new.config.get("tie_word_embeddings") != tied:
        changes["tie_word_embeddings"] = tied
    if "_name_or_path" in new.config:
        changes["_name_or_path"] = None
    why = "architecture, positions and context length"
    if set(changes) & set(ROLES):
        why += "; special-token ids from post"
    return Companion("config.json", source, "new base", why, tuple(changes.items()))


def _tokenizer(
    ours: Mapping[str, Path],
    theirs: Mapping[str, Path],
    new: Checkpoint,
    post: Checkpoint,
    vocabulary: Comparison,
) -> list[Companion]:
    """The tokenizer's files, all from one giver so that they agree with each other.

    Post's where rows correspond by id: its vocabulary is then the new base's own, and its roles and
    template are wanted. Otherwise the new base's, with post's chat template put in.
    """
    our_files = {n: p for n, p in ours.items() if _TOKENIZER.fullmatch(n)}
    their_files = {n: p for n, p in theirs.items() if _TOKENIZER.fullmatch(n)}
    chosen: list[Companion] = []
    if their_files and (vocabulary.same_rows or not our_files):
        our_config = new.read_json("tokenizer_config.json")
        length = our_config.get("model_max_length")
        for name, path in their_files.items():
            changes: tuple[tuple[str, Any], ...] = ()
            why = "same vocabulary; roles and chat template of post"
            if (
                name == "tokenizer_config.json"
                and length is not None
                and length != post.read_json(name).get("model_max_length")
            ):
                changes = (("model_max_length", length),)
                why += "; context length of the new base"
            chosen.append(Companion(name, path, "post", why, changes))
        return chosen
    template = post.read_json("tokenizer_config.json").get("chat_template")
    for name, path in our_files.items():
        if name in their_files and name.startswith("chat_template"):
            continue
        changes = ()
        if name == "tokenizer_config.json" and template is not None:
            changes = (("chat_template", template),)
        chosen.append(Companion(name, path, "new base", "vocabulary of the new base", changes))
    for name, path in their_files.items():
        if name.startswith(("chat_template", "additional_chat_templates")):
            chosen.append(Companion(name, path, "post", "chat template of post"))
    return chosen
