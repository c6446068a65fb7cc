"""Who gives which of the small files beside the weights, and what is changed in them.

The rule: whatever describes the weights' shape and positions comes from the new base; whatever
makes a model converse (chat template, special-token roles, end-of-sequence ids, generation
settings) comes from post. Here it is decided and can be printed; `output.companions` writes it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paramdelta.dtypes import torch_name
from paramdelta.errors import UsageError
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.planning.facts import (
    CONFIG,
    FAST,
    GENERATION,
    JINJA,
    PROCESSOR,
    PROCESSOR_TEMPLATE,
    ROLE_IDS,
    SPECIAL,
    TEMPLATES,
    TOKENIZER,
    changed,
    chat_templates,
    parts,
    role_tokens,
    same_ids,
    statements,
    token_text,
    value,
)
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.tokenaxes import size_places
from paramdelta.planning.tokenizer import ADDED, is_tokenizer_file, is_vocabulary_file
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.blob import Blob

_SMALL_FILE = re.compile(r".*\.(json|txt|jinja|model|tiktoken|py)")
_NOT_COMPANIONS = re.compile(
    r"(.*\.index\.json|README\.md|paramdelta\.(lock|delta|lora)\.json|adapter_.*|"
    r"trainer_state\.json|all_results\.json|train_results\.json|eval_results\.json|"
    r"requirements\.txt|\..*)"
)
_SUBFOLDERS = re.compile(r"\d+_\w+|additional_chat_templates")  # sentence-transformers' modules
# How weights were quantised. The output's are not, or config.json says how.
_QUANTISED = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
# Settings of a tokenizer that belong to how a model was trained to be used.
_USE = ("truncation_side", "add_bos_token", "add_eos_token")
# What tokenizer_config.json says of the vocabulary that it lies beside.
_OF_ITS_OWN = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "auto_map",
    "tokenizer_class",
)
# Keys of generation_config.json whose values are ids, however nested.
_IDS = re.compile(
    r".*_tokens?_ids?|(begin_)?suppress_tokens|bad_words_ids|force_words_ids|(lang|task)_to_id"
)

Edits = dict[tuple[str, ...], Any]


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
    of embeddings and heads that have grown, by how many rows they had. ``quantised``: the
    quantization_config of an output that is quantised. ``head``: keys of config.json that describe
    a head that is taken from post; None for those that are removed.
    """

    dtype: str | None
    tied: bool | None
    rows: Mapping[int, int]
    quantised: Mapping[str, Any] | None = None
    head: Mapping[str, Any] = field(default_factory=dict)


def choose(
    new: Checkpoint, post: Checkpoint, settlement: Settlement, facts: Facts
) -> tuple[Companion, ...]:
    """Decide every companion of the output.

    Raises:
        UsageError: a graft that no file of the new base's tokenizer can hold.
        CheckpointError, StorageError: a file cannot be read.
    """
    ours, theirs = _companions(new), _companions(post)
    chosen: list[Companion] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name == CONFIG:
            if name in ours:
                chosen.append(_config(ours[name], new, post, settlement, facts))
        elif name == GENERATION:
            chosen.append(_generation(ours.get(name), theirs.get(name), new, post, settlement))
        elif name in _QUANTISED or _is_template(name) or is_tokenizer_file(name):
            continue
        elif name.endswith(".py"):
            if name in ours:
                chosen.append(
                    Companion(name, ours[name], "new base", "model code: copied, never run")
                )
        else:
            giver, files = ("post", theirs) if name in theirs else ("new base", ours)
            chosen.append(Companion(name, files[name], giver, "how the model is used"))
    chosen += _tokenizer(ours, theirs, new, post, settlement)
    return tuple(sorted(_templates(chosen, ours, theirs, new, post), key=_by_name))


def _by_name(companion: Companion) -> str:
    return companion.name


def _companions(checkpoint: Checkpoint) -> dict[str, Blob]:
    return {
        name: blob
        for name, blob in checkpoint.files.items()
        if ("/" not in name or _SUBFOLDERS.fullmatch(name.rpartition("/")[0]))
        and (_SMALL_FILE.fullmatch(name) or is_tokenizer_file(name))
        and not _NOT_COMPANIONS.fullmatch(name)
        and blob.size <= MOST
    }


# -- config.json and generation_config.json --------------------------------------------------------


def _config(
    source: Blob, new: Checkpoint, post: Checkpoint, settlement: Settlement, facts: Facts
) -> Companion:
    """The new base's config.json; every place in it that states one fact states it alike."""
    edits: Edits = {}
    for role in ROLE_IDS:
        ids = _role_ids(role, post, settlement)
        if ids is not None:
            edits |= dict.fromkeys(_places(role, new), ids)
    roles = bool(changed(new.config, edits))
    if facts.dtype is not None:
        places = _places("dtype", new)
        edits |= dict.fromkeys(places, torch_name(facts.dtype))
    if facts.tied is not None:
        sections = [keys for keys, _ in parts(new.config, "text")]
        edits |= {(*keys, "tie_word_embeddings"): facts.tied for keys in sections}
    if facts.rows:
        size = settlement.new.size if settlement.new is not None else None
        most = max(facts.rows.values())
        for keys, rows in size_places(new.config, size).items():
            edits[keys] = facts.rows.get(rows, max(rows, most))
    stated = [s.keys for s in statements("quantization", new.files) if s.file == CONFIG]
    edits |= dict.fromkeys(stated, None)
    if facts.quantised is not None:
        edits[("quantization_config",)] = facts.quantised
    edits[("_name_or_path",)] = None
    edits |= {(key,): stated for key, stated in facts.head.items()}
    why = "architecture, positions and context length"
    if roles:
        why += "; special-token ids from post"
    if facts.head:
        why += "; architecture and labels of the head from post"
    if facts.quantised is not None:
        why += "; FP8 with fresh scales of its blocks"
    return Companion(CONFIG, source, "new base", why, tuple(changed(new.config, edits).items()))


def _places(fact: str, checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The keys under which config.json states a fact; its usual key if it does not."""
    found = [s.keys for s in statements(fact, checkpoint.files) if s.file == CONFIG]
    return found or [(fact,)]


def _role_ids(role: str, post: Checkpoint, settlement: Settlement) -> Any:
    """What config.json says of a role: what post stops, starts or pads with, as the output's ids.

    As post's config.json says it, unless its generation_config.json contradicts it, which counts
    then; in the form of the former, since models that compare ids with this one expect a number.
    """
    said = value(role, post.files)
    own = next((s.value for s in statements(role, post.files) if s.file == CONFIG), said)
    if not same_ids(own, said):
        own = said[0] if isinstance(own, int) and isinstance(said, list) and said else said
    return _output_ids(own, settlement)


def _output_ids(value: Any, settlement: Settlement) -> Any:
    """Ids of post as the output's, without those of tokens that it lacks; None if none is left."""
    if isinstance(value, Mapping):
        pairs = ((key, _output_ids(item, settlement)) for key, item in value.items())
        return {key: ids for key, ids in pairs if ids is not None} or None
    if isinstance(value, list):
        found = [(item, _output_ids(item, settlement)) for item in value]
        return [ids for item, ids in found if ids is not None and _is_whole(item, ids)] or None
    if isinstance(value, int) and not isinstance(value, bool):
        return settlement.output_id(value)
    return None


def _is_whole(given: Any, ids: Any) -> bool:
    """Whether a sequence within a list has lost none of its ids."""
    return not isinstance(given, list) or len(given) == len(ids)


def _generation(
    ours: Blob | None,
    theirs: Blob | None,
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> Companion:
    """Post's generation settings, its token ids as those of the output.

    Where it has none, the new base's, which must stop where post stops: transformers looks into
    this file only, if it is there.
    """
    if theirs is None:
        assert ours is not None
        settings: Mapping[str, Any] = new.read_json(GENERATION)
        said = {role: _role_ids(role, post, settlement) for role in ROLE_IDS}
        edits: Edits = {(role,): ids for role, ids in said.items() if ids is not None}
        changes = changed(settings, edits)
        why = "post has none" + ("; special-token ids from post" if changes else "")
        return Companion(GENERATION, ours, "new base", why, tuple(changes.items()))
    settings = post.read_json(GENERATION)
    edits = {
        (key,): _output_ids(value, settlement)
        for key, value in settings.items()
        if _IDS.fullmatch(key) and value is not None
    }
    for role in ROLE_IDS:  # rather the new base's end of sequence than none
        if edits.get((role,), 0) is None and new.config.get(role) is not None:
            edits[(role,)] = new.config[role]
    changes = changed(settings, edits)
    why = "how the model is used" + ("; ids by token" if changes else "")
    return Companion(GENERATION, theirs, "post", why, tuple(changes.items()))


# -- tokenizer -------------------------------------------------------------------------------------


def _tokenizer(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> list[Companion]:
    """The tokenizer's files, all from one giver so that they agree with each other.

    Post's where it is the new base's own vocabulary, for its roles and template are wanted.
    Otherwise the new base's, with post's roles and settings, and grafted tokens, put in.
    """
    our_files = {n: blob for n, blob in ours.items() if is_tokenizer_file(n)}
    their_files = {n: blob for n, blob in theirs.items() if is_tokenizer_file(n)}
    if _is_posts(our_files, their_files, new, post, settlement):
        return [_of_post(name, blob, new, post) for name, blob in their_files.items()]
    chosen = []
    holders = 0
    for name, blob in our_files.items():
        each = Companion(name, blob, "new base", "vocabulary of the new base")
        if settlement.given:
            given: Edits = {(key,): v for key, v in _given(name, new, post, settlement).items()}
            holders += bool(given)
            each = _edited(each, given, new, "tokens of post")
        edits = _edits(name, new, post, settlement)
        chosen.append(_edited(each, edits, new, "roles and use of post"))
    if TOKENIZER in their_files and TOKENIZER not in our_files:
        known = settlement.ids
        unknown = {role for role, t in role_tokens(post.files).items() if t not in known}
        dropped: Edits = {(key,): None for key in (*unknown, *_OF_ITS_OWN)}
        each = Companion(TOKENIZER, their_files[TOKENIZER], "post", "roles and use of post")
        chosen.append(_edited(each, dropped, post, "ids of the new base"))
    if settlement.given and our_files and not holders:
        raise UsageError(
            "no file of the new base's tokenizer can hold a token of post",
            code="token-without-file",
            where=new.location.address,
            remedy="save the tokenizer with transformers, which writes a tokenizer.json",
        )
    return chosen


def _of_post(name: str, blob: Blob, new: Checkpoint, post: Checkpoint) -> Companion:
    """A tokenizer file of post, with its roles alike and the new base's context length."""
    found = Companion(name, blob, "post", "same vocabulary; roles of post")
    if name not in (TOKENIZER, SPECIAL):
        return found
    stated = {role for role, said in post.read_json(name).items() if said is not None}
    roles = {role: token for role, token in role_tokens(post.files).items() if role in stated}
    found = _edited(found, _role_edits(post.read_json(name), roles), post, "one role, one token")
    length = value("model_max_length", new.files)
    if name == SPECIAL or length is None:
        return found
    return _edited(found, {("model_max_length",): length}, post, "context length of the new base")


def _role_edits(content: Mapping[str, Any], roles: Mapping[str, str]) -> Edits:
    """The roles of which a file names another token."""
    return {
        (role,): token for role, token in roles.items() if token_text(content.get(role)) != token
    }


def _edited(companion: Companion, edits: Edits, owner: Checkpoint, why: str) -> Companion:
    """A companion with more changes. ``owner``: the checkpoint that it comes from."""
    if not edits:
        return companion
    content = {**owner.read_json(companion.name), **dict(companion.changes)}
    changes = changed(content, edits)
    if not changes:
        return companion
    return Companion(
        companion.name,
        companion.source,
        companion.giver,
        f"{companion.why}; {why}",
        tuple({**dict(companion.changes), **changes}.items()),
    )


def _is_posts(
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
    settlement: Settlement,
) -> bool:
    """Whether the output has post's tokenizer; an adapter may have a template and no vocabulary."""
    our_words = {n: blob for n, blob in ours.items() if is_vocabulary_file(n)}
    their_words = {n: blob for n, blob in theirs.items() if is_vocabulary_file(n)}
    if not theirs or (our_words and not their_words):
        return False
    if not ours:
        return True
    if settlement.mode == "new-base" or not settlement.same:
        return False
    if settlement.new is not None and settlement.post is not None:
        return True
    # The vocabularies were not compared. Equal files or not fewer rows: post's tokenizer knows all.
    if our_words.keys() == their_words.keys() and all(
        blob.size == their_words[name].size
        and new.files.bytes(name, MOST) == post.files.bytes(name, MOST)
        for name, blob in our_words.items()
    ):
        return True
    rows, others = (value("vocab_size", each.files) for each in (new, post))
    return not (isinstance(rows, int) and isinstance(others, int) and rows > others)


def _edits(name: str, new: Checkpoint, post: Checkpoint, settlement: Settlement) -> Edits:
    """What post's roles and use change in one of the tokenizer files of the new base.

    Where the vocabularies were not read, no tokenizer.json is read here either.
    """
    was_read = settlement.new is not None and settlement.post is not None
    if name not in (TOKENIZER, SPECIAL) and not (name == FAST and FAST in post.files and was_read):
        return {}
    known = settlement.ids if was_read else _named(new)
    content = new.read_json(name)
    roles = {role: token for role, token in role_tokens(post.files).items() if token in known}
    said = post.read_json(TOKENIZER)
    stated = value("padding_side", post.files) if was_read else said.get("padding_side")
    side = str(stated).lower() if str(stated).lower() in ("left", "right") else None
    edits = _role_edits(content, roles) if name in (TOKENIZER, SPECIAL) else {}
    if name == TOKENIZER:
        edits |= {(key,): said[key] for key in _USE if said.get(key) is not None}
        if side is not None:
            edits[("padding_side",)] = side
    if name == FAST:
        if side is not None and isinstance(content.get("padding"), Mapping):
            pad = roles.get("pad_token")
            edits[("padding", "direction")] = side.capitalize()
            if pad is not None:
                edits[("padding", "pad_token")] = pad
                edits[("padding", "pad_id")] = known[pad]
        processor = _processor(post.read_json(FAST).get("post_processor"), known)
        if processor is not None:
            edits[("post_processor",)] = processor
    return edits


def _named(checkpoint: Checkpoint) -> dict[str, int]:
    """The special tokens that tokenizer_config.json names; where vocabularies were not read."""
    decoder = checkpoint.read_json(TOKENIZER).get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, Mapping) else ()
    named = ((token_text(token), str(key)) for key, token in entries)
    return {text: int(key) for text, key in named if text is not None and key.isdecimal()}


def _processor(said: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor of tokenizer.json with the output's ids; None if the output lacks a token,
    or where its form is not known.
    """
    if not isinstance(said, Mapping):
        return None
    kind = said.get("type")
    if kind == "ByteLevel":
        return dict(said)
    if kind == "Sequence":
        inner = [_processor(each, ids) for each in said.get("processors") or []]
        return None if None in inner else {**said, "processors": inner}
    if kind in ("BertProcessing", "RobertaProcessing"):
        pairs = {key: said.get(key) for key in ("sep", "cls")}
        tokens = {k: str(p[0]) if isinstance(p, list) and p else "" for k, p in pairs.items()}
        if any(token not in ids for token in tokens.values()):
            return None
        return {**said, **{key: [token, ids[token]] for key, token in tokens.items()}}
    if kind == "TemplateProcessing" and isinstance(said.get("special_tokens"), Mapping):
        special = {}
        for key, entry in said["special_tokens"].items():
            texts = entry.get("tokens") or []
            if any(text not in ids for text in texts):
                return None
            special[key] = {**entry, "ids": [ids[text] for text in texts]}
        return {**said, "special_tokens": special}
    return None


# -- chat templates --------------------------------------------------------------------------------


def _is_template(name: str) -> bool:
    return name in (JINJA, PROCESSOR_TEMPLATE) or name.startswith(f"{TEMPLATES}/")


def _templates(
    chosen: list[Companion],
    ours: Mapping[str, Blob],
    theirs: Mapping[str, Blob],
    new: Checkpoint,
    post: Checkpoint,
) -> list[Companion]:
    """All chat templates from one giver, in every place: post's, or else the new base's.

    ``chosen``: the other companions. Some loaders look at the tokenizer's config first, some at a
    file of its own.
    """
    is_posts = bool(statements("chat_template", post.files))
    giver, files, blobs = ("post", post, theirs) if is_posts else ("new base", new, ours)
    found = [
        Companion(name, blob, giver, f"chat template of {giver}")
        for name, blob in blobs.items()
        if _is_template(name)
    ]
    templates = chat_templates(files.files)
    if not templates:
        return chosen + found
    inline: Any = [{"name": name, "template": text} for name, text in templates.items()]
    if templates.keys() == {"default"}:
        inline = templates["default"]
    edits: Edits = {("chat_template",): inline}
    others = []
    for each in chosen:
        owner = post if each.giver == "post" else new
        content = owner.read_json(each.name) if each.name in (TOKENIZER, PROCESSOR) else {}
        stated = content.get("chat_template") is not None
        if stated or (each.name == TOKENIZER and not found):
            others.append(_edited(each, edits, owner, f"chat template of {giver}"))
        else:
            others.append(each)
    return found + others


def _given(name: str, new: Checkpoint, post: Checkpoint, settlement: Settlement) -> dict[str, Any]:
    """What the tokens that post gives change in one of the tokenizer's files."""
    assert settlement.post is not None
    tokens = {out: settlement.post.tokens[p] for out, p in settlement.given.items()}
    entries = {
        out: {**_plain(token), "special": settlement.given[out] in settlement.post.special}
        for out, token in tokens.items()
    }
    if name == FAST:
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
    if name == TOKENIZER:
        decoder = new.read_json(name).get("added_tokens_decoder")
        if not decoder and FAST in new.files:
            return {}
        if not decoder:  # the loader reads added_tokens.json only where there is no decoder
            decoder = {
                str(i): {**_plain(token), "special": True}
                for token, i in new.read_json(ADDED).items()
            }
        theirs = post.read_json(name).get("added_tokens_decoder") or {}
        added_here = {
            str(out): theirs.get(str(settlement.given[out]), entry)
            for out, entry in entries.items()
        }
        return {"added_tokens_decoder": {**decoder, **added_here}}
    if name == ADDED:
        return {token: out for out, token in tokens.items()}
    return {}


def _plain(token: str) -> dict[str, Any]:
    """An added token as tokenizer_config.json writes it, without its speciality."""
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
