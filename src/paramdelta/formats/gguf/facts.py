"""What the metadata of a GGUF file says, in the words of a checkpoint's small files.

The converter takes the metadata from config.json, generation_config.json and the tokenizer's files;
here it goes the way back, as far as the comparison of checkpoints needs it. It is not enough to run
a tokenizer. Source: ggml's docs/gguf.md; gguf-py's constants.py and gguf_writer.py.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.names import Architecture

# Of config.json, by what follows the architecture's name.
_CONFIG = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ROLES = {
    "bos_token": ("bos",),
    "eos_token": ("eos", "eot", "eom"),  # the end of a text, of a turn, of a message
    "pad_token": ("padding",),
    "unk_token": ("unknown",),
    "sep_token": ("seperator",),  # spelled so in files
    "mask_token": ("mask",),
}
_IDS = ("bos_token", "eos_token", "pad_token")
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # types of tokens
MOST_ADDED = 65_536  # tokens that are more than pieces of text; the largest known number is 6,400


def small_files(
    metadata: Mapping[str, Any], kind: Architecture, tied: bool, where: str
) -> dict[str, dict[str, Any]]:
    """The JSON objects of config.json, generation_config.json, tokenizer_config.json and, if there
    are tokens, tokenizer.json, by name. ``tied``: the file has no output head.

    Raises:
        CheckpointError: more control tokens than any model has.
    """
    tokens = _tokens(metadata)
    ids = {role: list(_ids(role, metadata, tokens)) for role in _ROLES}
    ends = {
        f"{role}_id": found[0] if len(found) == 1 else found
        for role, found in ids.items()
        if found and role in _IDS
    }
    files: dict[str, dict[str, Any]] = {
        "config.json": {**_config(metadata, kind), **ends, "tie_word_embeddings": tied},
        "generation_config.json": ends,
        "tokenizer_config.json": {
            **{role: tokens[found[0]] for role, found in ids.items() if found},
            **_templates(metadata),
        },
    }
    if tokens:
        files["tokenizer.json"] = _vocabulary(metadata, tokens, where)
    return files


def number(metadata: Mapping[str, Any], key: str) -> int | None:
    """A whole number of the architecture, such as ``attention.head_count``; None if there is none,
    or one for each layer.
    """
    found = metadata.get(f"{metadata.get('general.architecture')}.{key}")
    return found if type(found) is int else None


def _config(metadata: Mapping[str, Any], kind: Architecture) -> dict[str, Any]:
    name = metadata["general.architecture"]
    said = ((hf, metadata.get(f"{name}.{key}")) for key, hf in _CONFIG.items())
    config = {key: _short(value) for key, value in said if type(value) in (int, float)}
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads > 0:
        config.setdefault("num_key_value_heads", heads)
        if isinstance(config.get("hidden_size"), int):
            config.setdefault("head_dim", config["hidden_size"] // heads)
    if kind.model_type is not None:
        config["model_type"] = kind.model_type
    return config


def _short(value: Any) -> Any:
    """A number as config.json had it: files hold 1e-05 as the nearest float32."""
    short = float(f"{value:.7g}")
    is_near = isinstance(value, float) and abs(short - value) <= abs(value) * 2**-24
    return short if is_near else value


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    plain = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    return tokens if plain and isinstance(tokens, list) else []


def _ids(role: str, metadata: Mapping[str, Any], tokens: list[str]) -> Iterator[int]:
    """The ids of the tokens with a role, each once."""
    found = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ROLES[role])
    yield from dict.fromkeys(i for i in found if type(i) is int and 0 <= i < len(tokens))


def _templates(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template, or several with their names, as tokenizer_config.json has them."""
    prefix = "tokenizer.chat_template"
    default = metadata.get(prefix)
    found = {"default": default} if isinstance(default, str) else {}
    for key, text in metadata.items():
        if key.startswith(f"{prefix}.") and isinstance(text, str):
            found[key.removeprefix(f"{prefix}.")] = text
    if found.keys() <= {"default"}:
        return {"chat_template": default} if found else {}
    return {"chat_template": [{"name": n, "template": t} for n, t in found.items()]}


def _vocabulary(metadata: Mapping[str, Any], tokens: list[str], where: str) -> dict[str, Any]:
    """The tokens as a tokenizer.json has them, without how text is cut into them.

    The converter fills rows that no token has with names of the type "unused". In tokens that users
    defined it writes a space where SentencePiece has U+2581.
    """
    kinds = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, array) or len(kinds) != len(tokens):
        kinds = array("B", bytes(len(tokens)))
    pieces = metadata.get("tokenizer.ggml.model") == "llama"
    vocab: dict[str, int] = {}
    added: list[dict[str, Any]] = []
    for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _UNUSED and token.startswith("[PAD"):
            continue
        text = token.replace(" ", "\u2581") if pieces and kind == _USER_DEFINED else token
        vocab.setdefault(text, token_id)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and vocab[text] == token_id:
            if len(added) == MOST_ADDED:
                raise CheckpointError(
                    "a GGUF file has too many control tokens",
                    code="invalid-gguf",
                    where=where,
                    expected=f"at most {MOST_ADDED}",
                )
            special = kind != _USER_DEFINED
            added.append({"id": token_id, "content": text, "special": special})
    return {"model": {"vocab": vocab}, "added_tokens": added}
