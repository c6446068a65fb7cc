"""Which tokens a conversation with a checkpoint needs: those of its chat template, and its ends."""

from collections.abc import Iterable
from typing import Any

from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.planning.vocabulary import Vocabulary

ROLES = ("bos_token", "eos_token", "pad_token")


def chat_template(checkpoint: Checkpoint) -> str:
    """The text of all chat templates of a checkpoint, "" if there is none."""
    inline = checkpoint.read_json("tokenizer_config.json").get("chat_template")
    texts = [str(part) for part in (inline if isinstance(inline, list) else [inline]) if part]
    names = ("chat_template.jinja", "chat_template.json")
    texts += [checkpoint.files.text(name) for name in names if name in checkpoint.files]
    return "\n".join(texts)


def role_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """The texts of the special tokens that tokenizer_config.json names, by role (`ROLES`)."""
    said = checkpoint.read_json("tokenizer_config.json")
    return {role: text for role in ROLES if (text := token_text(said.get(role))) is not None}


def token_text(value: Any) -> str | None:
    """A token as the tokenizer's files write it: a string, or an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def end_ids(checkpoint: Checkpoint) -> set[int]:
    """The ids that end a turn, by config.json and generation_config.json."""
    found: set[int] = set()
    for said in (checkpoint.config, checkpoint.read_json("generation_config.json")):
        value = said.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and not isinstance(token_id, bool):
                found.add(token_id)
    return found


def needed(checkpoint: Checkpoint, vocabulary: Vocabulary, ids: Iterable[int]) -> tuple[int, ...]:
    """Those of the given ids without which the checkpoint's conversations do not work."""
    template = chat_template(checkpoint)
    ends = end_ids(checkpoint)
    roles = set(role_tokens(checkpoint).values())
    return tuple(
        i
        for i in ids
        if i in ends
        or vocabulary.tokens[i] in roles
        or (i in vocabulary.special and vocabulary.tokens[i] in template)
    )
