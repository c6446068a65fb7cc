"""Who gives which of the small files beside the weights, and what is changed in them.

The rule: whatever describes the weights' shape and positions comes from the new base; whatever
makes a model converse (chat template, special-token roles, end-of-sequence ids, generation
settings) comes from post. Here it is decided and can be printed; `output.companions` writes it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.dtypes import torch_name
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.planning.roles import role_tokens
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.blob import Blob

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|"
    r"merges\.txt|spiece\.model|sentencepiece\.bpe\.model|.*\.tiktoken|"
    r"chat_template\.(jinja|json)|additional_chat_templates/.*\.jinja"
)
_SMALL_FILE = re.compile(r".*\.(json|txt|jinja|model|tiktoken|py)")
_NOT_COMPANIONS = re.compile(
    r"(.*\.index\.json|README\.md|paramdelta\.(lock|delta|lora)\.json|adapter_.*|trainer_state\.json|all_results\.json|"
    r"train_results\.json|eval_results\.json|requirements\.txt|\..*)"
)
_SUBFOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")  # sentence-transformers' modules


@dataclass(frozen=True)
class Companion:
    """A small file of the output.

    ``name``: its path in the output, with slashes. ``source``: the file that is copied.
    ``giver``: "new base" or "post". ``changes``: keys of the JSON object that are set (to None:
    removed). ``why``: for the plan and the card.
    """

    name: str
    source: Blob
    giver: str
    why: str
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the small files must say of the output's weights.

    ``dtype``: the one floating-point dtype (safetensors name), None if there are several. ``tied``:
    whether the output head is the input embedding; None to leave config.json as it is. ``rows``:
    of a vocabulary that has grown, else None. ``dequantised``: the quantisation is gone.
    ``quantised``: the quantization_config of an output that is quantised.
    """

    dtype: str | None
    tied: bool | None
    rows: int | None
    dequantised: bool
    quantised: Mapping[str, Any] | None = None


def choose(
    new: Checkpoint, post: Checkpoint, settlement: Settlement, facts: Facts
) -> tuple[Companion, ...]:
    """Decide every companion of the output."""
    ours, theirs = _companions(new), _companions(post)
    chosen: list[Companion] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name == "config.json":
            if name in ours:
                chosen.append(_config(ours[name], new, post, settlement, facts))
        elif name == "generation_config.json" and name in theirs:
            chosen.append(_generation(theirs[name], new, post, settlement))
        elif name.endswith(".py"):
            if name in ours:
                chosen.append(
                    Companion(name, ours[name], "new base", "model code: copied, never run")
                )
        elif not _TOKENIZER.fullmatch(name):
            giver, files = ("post", theirs) if name in theirs else ("new base", ours)
            chosen.append(Companion(name, files[name], giver, "how the model is used"))
    return tuple(sorted(chosen + _tokenizer(ours, theirs, new, post, settlement), key=_by_name))


def _by_name(companion: Companion) -> str:
    return companion.name


def _companions(checkpoint: Checkpoint) -> dict[str, Blob]:
    return {
        name: blob
        for name, blob in checkpoint.files.items()
        if ("/" not in name or _SUBFOLDERS.fullmatch(name.rpartition("/")[0]))
        and _SMALL_FILE.fullmatch(name)
        and not _NOT_COMPANIONS.fullmatch(name)
        and blob.size <= MOST
    }


def _config(
    source: Blob, new: Checkpoint, post: Checkpoint, settlement: Settlement, facts: Facts
) -> Companion:
    changes: dict[str, Any] = {}
    for role in ROLES:
        ids = _output_ids(post.config.get(role), settlement)
        if ids is not None and ids != new.config.get(role):
            changes[role] = ids
    if facts.dtype is not None:
        key = "torch_dtype" if "torch_dtype" in new.config else "dtype"
        if new.config.get(key) != torch_name(facts.dtype):
            changes[key] = torch_name(facts.dtype)
    if facts.tied is not None:
        _set(changes, new.config, "tie_word_embeddings", facts.tied)
    if facts.rows is not None:
        _set(changes, new.config, "vocab_size", facts.rows)
    if facts.dequantised and "quantization_config" in new.config:
        changes["quantization_config"] = None
    if facts.quantised not in (None, new.config.get("quantization_config")):
        changes["quantization_config"] = facts.quantised
    if "_name_or_path" in new.config:
        changes["_name_or_path"] = None
    why = "architecture, positions and context length"
    if set(changes) & set(ROLES):
        why += "; special-token ids from post"
    if facts.quantised is not None:
        why += "; FP8 with fresh scales of its blocks"
    return Companion("config.json", source, "new base", why, tuple(changes.items()))


def _set(changes: dict[str, Any], config: Mapping[str, Any], key: str, value: Any) -> None:
    """Change a key where config.json has it: at the top, in the text part, or at both."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and key in inner:
        changes["text_config"] = {**inner, **changes.get("text_config", {}), key: value}
    if key in config or "text_config" not in changes:
        changes[key] = value


def _output_ids(value: Any, settlement: Settlement) -> Any:
    """Ids of post as the output's, without those of tokens that it lacks; None if none is left."""
    if isinstance(value, list):
        ids = [i for item in value if (i := _output_ids(item, settlement)) is not None]
        return ids or None
    if isinstance(value, int) and not isinstance(value, bool):
        return settlement.output_id(value)
    return None


def _generation(
    source: Blob, new: Checkpoint, post: Checkpoint, settlement: Settlement
) -> Companion:
    """Post's generation settings, its token ids as those of the output."""
    settings = post.read_json("generation_config.json")
    changes = {
        key: _output_ids(value, settlement)
        for key, value in settings.items()
        if re.search(r"_tokens?_ids?$|^suppress_tokens$|^begin_suppress_tokens$", key)
        and value is not None
        and value != _output_ids(value, settlement)
    }
    for role in ROLES:  # rather the new base's end of sequence than none
        if role in changes and changes[role] is None and new.config.get(role) is not None:
            changes[role] = new.config[role]
    why = "how the model is used" + ("; ids by token" if changes else "")
    return Companion("generation_config.json", source, "post", why, tuple(changes.items()))


def _tokenizer(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> list[Companion]:
    """The tokenizer's files, all from one giver so that they agree with each other.

    Post's where it is the new base's own vocabulary, for its roles and template are wanted.
    Otherwise the new base's, with post's chat template and roles, and grafted tokens, put in.
    """
    our_files = {n: p for n, p in ours.items() if _TOKENIZER.fullmatch(n)}
    their_files = {n: p for n, p in theirs.items() if _TOKENIZER.fullmatch(n)}
    whose = settlement.same and settlement.mode != "new-base"
    if their_files and (whose or not our_files):
        return _posts_tokenizer(their_files, new, post)
    chosen: list[Companion] = []
    template = post.read_json("tokenizer_config.json").get("chat_template")
    for name, path in our_files.items():
        if name in their_files and name.startswith("chat_template"):
            continue
        changes: dict[str, Any] = {}
        if name == "tokenizer_config.json":
            if template is not None:
                changes["chat_template"] = template
            changes |= _roles(new, post, settlement)
        elif name == "special_tokens_map.json":
            changes |= _roles(new, post, settlement)
        if settlement.given:
            changes |= _given(name, new, post, settlement)
        why = "vocabulary of the new base"
        if changes:
            why += "; " + ", ".join(_READABLE.get(key, key) for key in changes) + " of post"
        chosen.append(Companion(name, path, "new base", why, tuple(changes.items())))
    for name, path in their_files.items():
        if name.startswith(("chat_template", "additional_chat_templates")):
            chosen.append(Companion(name, path, "post", "chat template of post"))
    return chosen


_READABLE = {
    "chat_template": "chat template",
    "added_tokens": "tokens",
    "added_tokens_decoder": "tokens",
    "model": "their names",
}


def _posts_tokenizer(
    files: Mapping[str, Blob], new: Checkpoint, post: Checkpoint
) -> list[Companion]:
    length = new.read_json("tokenizer_config.json").get("model_max_length")
    chosen = []
    for name, path in files.items():
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


def _roles(new: Checkpoint, post: Checkpoint, settlement: Settlement) -> dict[str, str]:
    """Post's special-token roles, as far as the output has the tokens."""
    known, before = settlement.ids, role_tokens(new)
    return {
        role: token
        for role, token in role_tokens(post).items()
        if token in known and before.get(role) != token
    }


def _given(name: str, new: Checkpoint, post: Checkpoint, settlement: Settlement) -> dict[str, Any]:
    """What the tokens that post gives change in one of the tokenizer's files."""
    assert settlement.post is not None
    tokens = {out: settlement.post.tokens[p] for out, p in settlement.given.items()}
    entries = {
        out: {
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": settlement.given[out] in settlement.post.special,
        }
        for out, token in tokens.items()
    }
    if name == "tokenizer.json":
        ours = new.read_json(name)
        theirs = {
            token.get("content"): token for token in post.read_json(name).get("added_tokens") or []
        }
        kept = [t for t in ours.get("added_tokens") or [] if t.get("id") not in tokens]
        added = [{**theirs.get(tokens[out], entry), "id": out} for out, entry in entries.items()]
        changes: dict[str, Any] = {"added_tokens": sorted(kept + added, key=lambda t: t["id"])}
        vocab = ours["model"].get("vocab")
        if isinstance(vocab, dict):
            renamed = {tokens.get(i, token): i for token, i in vocab.items()}
            assert settlement.new is not None
            if len(settlement.new.tokens) < settlement.new.size:
                # The library numbers what only added_tokens has by counting: a gap would shift it.
                renamed |= {token: out for out, token in tokens.items()}
            if renamed.keys() != vocab.keys():
                changes["model"] = {**ours["model"], "vocab": renamed}
        return changes
    if name == "tokenizer_config.json":
        decoder = new.read_json(name).get("added_tokens_decoder")
        if not decoder and new.companion("tokenizer.json") is not None:
            return {}
        theirs = post.read_json(name).get("added_tokens_decoder") or {}
        added_here = {
            str(out): theirs.get(str(settlement.given[out]), entry)
            for out, entry in entries.items()
        }
        return {"added_tokens_decoder": {**(decoder or {}), **added_here}}
    if name == "added_tokens.json":
        return {token: out for out, token in tokens.items()}
    return {}
