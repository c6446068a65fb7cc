"""Facts that more than one small file states, and which statement a loader believes.

`FACTS` is the one table of them: for each fact its places, in the order in which transformers
looks. `statements` finds what a folder says; `Statements.value` is what counts. Whoever writes a
fact writes all of its places (`companions`); whoever checks a folder compares them.

Sources: transformers 5.24 (tokenization_utils_base.py `_from_pretrained`, processing_utils.py
`get_processor_dict`, generation/utils.py `adjust_generation_fn`, configuration_utils.py
`get_text_config`) and vLLM 0.32 (`ModelConfig.try_get_generation_config`, `get_hf_text_config`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.storage.files import Files

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"
FAST = "tokenizer.json"
SPECIAL = "special_tokens_map.json"
JINJA = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"
PROCESSOR = "processor_config.json"
TEMPLATES = "additional_chat_templates"  # the folder for chat templates with names

ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
ROLE_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

TEXT_PARTS = (
    "text_config",
    "llm_config",
    "language_config",
    "text_model_config",
    "text_encoder",
    "decoder",
    "generator",
    "thinker_config",
)
"""Keys of config.json whose objects describe the text model; the first that is there does."""

_NOT_MODELS = ("quantization_config", "compression_config", "generation_config")


@dataclass(frozen=True)
class Place:
    """Where a fact can be stated: a key of a JSON file, or a whole text file (``key`` "").

    ``key``: with dots where it is inside other objects. ``inner``: in config.json, the key may also
    appear in the section that describes the text model ("text"), in any section ("any"), or only at
    the top ("").
    """

    file: str
    key: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Fact:
    """``places``: in the order in which transformers looks; the first statement counts."""

    name: str
    places: tuple[Place, ...]


def _ids(role: str) -> Fact:
    """vLLM and SGLang also stop at the tokenizer's eos_token."""
    return Fact(role, (Place(GENERATION, role), Place(CONFIG, role, "text")))


def _role(role: str) -> Fact:
    """special_tokens_map.json comes first unless tokenizer_config.json has added_tokens_decoder."""
    return Fact(role, (Place(SPECIAL, role), Place(TOKENIZER, role)))


FACTS: Mapping[str, Fact] = {
    fact.name: fact
    for fact in (
        *map(_ids, ROLE_IDS),
        *map(_role, ROLES),
        # A tokenizer reads the .jinja files, and only without them its config; a processor reads
        # chat_template.json first. llama.cpp's converter prefers the config.
        Fact(
            "chat_template",
            (
                Place(JINJA),
                Place(f"{TEMPLATES}/*.jinja"),
                Place(TOKENIZER, "chat_template"),
                Place(PROCESSOR_TEMPLATE, "chat_template"),
                Place(PROCESSOR, "chat_template"),
            ),
        ),
        Fact("vocab_size", (Place(CONFIG, "vocab_size", "text"),)),
        Fact("tie_word_embeddings", (Place(CONFIG, "tie_word_embeddings", "text"),)),
        Fact("dtype", (Place(CONFIG, "dtype", "any"), Place(CONFIG, "torch_dtype", "any"))),
        Fact(
            "quantization",
            (
                Place(CONFIG, "quantization_config", "any"),
                Place(CONFIG, "compression_config", "any"),
                Place("hf_quant_config.json", "quantization"),
                Place("quantize_config.json", "bits"),
                Place("quant_config.json", "w_bit"),
            ),
        ),
        Fact("padding_side", (Place(TOKENIZER, "padding_side"), Place(FAST, "padding.direction"))),
        Fact("model_max_length", (Place(TOKENIZER, "model_max_length"),)),
    )
}
"""By name, every fact that has more than one place or loader."""


@dataclass(frozen=True)
class Statement:
    """One statement of a fact: its file, the keys that lead to it ((): the whole file), a value."""

    file: str
    keys: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return ".".join((self.file, *self.keys))


def statements(name: str, files: Files) -> tuple[Statement, ...]:
    """All statements of a fact in a folder, those that transformers believes first.

    A null states nothing. Raises CheckpointError or StorageError where a file cannot be read.
    """
    places: Sequence[Place] = FACTS[name].places
    if name in ROLES and "added_tokens_decoder" in files.json(TOKENIZER):
        places = places[::-1]
    found: list[Statement] = []
    for place in places:
        if not place.key:
            prefix, star, suffix = place.file.partition("*")
            found += [
                Statement(file, (), files.text(file))
                for file in sorted(files)
                if (file.startswith(prefix) and file.endswith(suffix) if star else file == prefix)
            ]
            continue
        content = files.json(place.file)
        path = tuple(place.key.split("."))
        for keys, part in parts(content, place.inner):
            said = _at(part, path)
            if said is not None:
                found.append(Statement(place.file, (*keys, *path), said))
    return tuple(found)


def _at(part: Any, path: Sequence[str]) -> Any:
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part


def value(name: str, files: Files) -> Any:
    """What transformers takes a fact to be; None if nothing states it."""
    found = statements(name, files)
    return found[0].value if found else None


def parts(
    config: Mapping[str, Any], which: str
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """config.json and its parts, each with the keys that lead to it.

    ``which``: "" for the top alone, "text" for the top and what describes the text model, "any"
    for all objects that look like the config of a model.
    """
    yield (), config
    if which == "text":
        for key in TEXT_PARTS:
            inner = config.get(key)
            if isinstance(inner, Mapping):
                yield from (((key, *keys), part) for keys, part in parts(inner, which))
                return
    elif which == "any":
        for key, inner in config.items():
            if key in _NOT_MODELS or not isinstance(inner, Mapping):
                continue
            if key.endswith("_config") or "model_type" in inner:
                yield from (((key, *keys), part) for keys, part in parts(inner, which))


def changed(content: Mapping[str, Any], edits: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The top-level keys of an object that differ after edits, with their new values.

    ``edits``: by the keys that lead to it, a new value, or None to remove the key.
    """
    result: dict[str, Any] = {}
    for keys, new in edits.items():
        top, rest = keys[0], keys[1:]
        if not rest:
            if new != content.get(top):
                result[top] = new
            continue
        whole = result.get(top, content.get(top))
        edited = _edited(whole if isinstance(whole, Mapping) else {}, rest, new)
        if edited != content.get(top):
            result[top] = edited
    return result


def _edited(part: Mapping[str, Any], keys: tuple[str, ...], new: Any) -> dict[str, Any]:
    result = dict(part)
    if len(keys) > 1:
        inner = part.get(keys[0])
        result[keys[0]] = _edited(inner if isinstance(inner, Mapping) else {}, keys[1:], new)
    elif new is None:
        result.pop(keys[0], None)
    else:
        result[keys[0]] = new
    return result


# -- special tokens --------------------------------------------------------------------------------


def token_text(said: Any) -> str | None:
    """A token as the tokenizer's files write it: a string, or an object with its content."""
    if isinstance(said, Mapping):
        said = said.get("content")
    return said if isinstance(said, str) else None


def role_tokens(files: Files) -> dict[str, str]:
    """The texts of the special tokens that have a role (`ROLES`), as transformers takes them."""
    found = ((role, token_text(value(role, files))) for role in ROLES)
    return {role: text for role, text in found if text is not None}


def extra_tokens(files: Files) -> tuple[str, ...]:
    """Further special tokens that the tokenizer's files name, in their order."""
    config = files.json(TOKENIZER)
    sources = [config] if "added_tokens_decoder" in config else [config, files.json(SPECIAL)]
    found: list[str] = []
    for source in sources:
        for key in ("extra_special_tokens", "additional_special_tokens"):
            said = source.get(key)
            tokens = list(said.values()) if isinstance(said, Mapping) else said
            texts = map(token_text, tokens if isinstance(tokens, list) else ())
            found += [text for text in texts if text is not None]
    return tuple(dict.fromkeys(found))


def end_ids(files: Files) -> set[int]:
    """All ids that some file says end a turn."""
    found = (id_list(statement.value) for statement in statements("eos_token_id", files))
    return {token_id for ids in found for token_id in ids}


def id_list(said: Any) -> list[int]:
    """One id or a list of them, as a list; what is not an id is left out."""
    ids = said if isinstance(said, list) else [said]
    return [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]


def same_ids(one: Any, other: Any) -> bool:
    """Whether two statements of ids agree: one may list more than the other."""
    first, second = set(id_list(one)), set(id_list(other))
    return first <= second or second <= first


# -- chat templates --------------------------------------------------------------------------------


def chat_templates(files: Files) -> dict[str, str]:
    """The chat templates by name, the usual one "default", as transformers' tokenizers find them.

    Without any there, those of a processor. {} if there is none.
    """
    found = statements("chat_template", files)
    texts = [s for s in found if not s.keys]
    if texts:
        stems = {s.file: s.file.rpartition("/")[2].removesuffix(".jinja") for s in texts}
        return {("default" if s.file == JINJA else stems[s.file]): s.value for s in texts}
    return inline_templates(found[0].value) if found else {}


def inline_templates(said: Any) -> dict[str, str]:
    """The chat templates in a JSON file: one string, a list of named ones, or an object."""
    if isinstance(said, str):
        return {"default": said}
    if isinstance(said, Mapping):
        return {str(name): text for name, text in said.items() if isinstance(text, str)}
    named = (
        [entry for entry in said if isinstance(entry, Mapping)] if isinstance(said, list) else []
    )
    return {str(entry.get("name")): str(entry.get("template")) for entry in named}


def template_text(files: Files) -> str:
    """The text of every chat template in any place, "" if there is none."""
    texts: list[str] = []
    for statement in statements("chat_template", files):
        found = inline_templates(statement.value) if statement.keys else {"": statement.value}
        texts += [text for text in found.values() if text not in texts]
    return "\n".join(texts)
