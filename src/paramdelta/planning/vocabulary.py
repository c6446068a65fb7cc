"""Which row of an embedding stands for which token, read from the tokenizer's files.

Here only the question whether rows correspond by number: they do where the vocabularies are equal,
or differ at most in how reserved tokens are called (Llama 3 -> 3.1).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.checkpoint.checkpoint import Checkpoint, read_json
from paramdelta.errors import CheckpointError
from paramdelta.storage.local import read_bytes

_RESERVED = re.compile(r"reserved|unused|extra_id|placeholder|^<.*>$|^\[.*\]$", re.IGNORECASE)


@dataclass(frozen=True)
class Comparison:
    """How two vocabularies agree.

    ``known``: both could be read. ``renamed``: ids with different names of which one at least is a
    special or reserved token. ``different``: ids whose tokens are really others, or that only one
    has.
    """

    known: bool
    renamed: tuple[int, ...] = ()
    different: tuple[int, ...] = ()
    example: str = ""

    @property
    def same_rows(self) -> bool:
        """Whether row i means the same in both, as far as can be told."""
        return not self.different


def compare(one: Checkpoint, other: Checkpoint) -> Comparison:
    """Compare the vocabularies of two checkpoints by id."""
    first, second = read_vocabulary(one), read_vocabulary(other)
    if first is None or second is None:
        return Comparison(known=False)
    renamed, different = [], []
    for token_id in sorted(first.keys() | second.keys()):
        a, b = first.get(token_id), second.get(token_id)
        if a == b:
            continue
        if a is not None and b is not None and (_RESERVED.search(a) or _RESERVED.search(b)):
            renamed.append(token_id)
        else:
            different.append(token_id)
    shown = (different or renamed)[:1]
    example = "".join(f"id {i}: {first.get(i)!r} and {second.get(i)!r}" for i in shown)
    return Comparison(True, tuple(renamed), tuple(different), example)


def read_vocabulary(checkpoint: Checkpoint) -> dict[int, str] | None:
    """The checkpoint's tokens by id, from tokenizer.json, vocab.json or vocab.txt.

    A SentencePiece model stands as one entry, its bytes, so that equal files are equal. None where
    there is no tokenizer.

    Raises:
        CheckpointError: a tokenizer file that cannot be understood.
    """
    try:
        return _read(checkpoint)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "the tokenizer's files cannot be understood",
            where=checkpoint.location.address,
            got=repr(error)[:120],
        ) from None


def _read(checkpoint: Checkpoint) -> dict[int, str] | None:
    if path := checkpoint.companion("tokenizer.json"):
        tokenizer = read_json(path)
        vocabulary = _by_id(tokenizer["model"].get("vocab", {}))
        for token in tokenizer.get("added_tokens", []):
            vocabulary[int(token["id"])] = str(token["content"])
        return vocabulary
    if path := checkpoint.companion("vocab.json"):
        return _by_id(read_json(path) | checkpoint.read_json("added_tokens.json"))
    if path := checkpoint.companion("vocab.txt"):
        return dict(enumerate(read_bytes(path).decode("utf-8").splitlines()))
    for name in ("tokenizer.model", "spiece.model"):
        if path := checkpoint.companion(name):
            return {-1: read_bytes(path).hex()}
    return None


def _by_id(vocabulary: Mapping[str, Any] | list[Any]) -> dict[int, str]:
    if isinstance(vocabulary, Mapping):  # BPE, WordPiece, WordLevel
        return {int(token_id): str(token) for token, token_id in vocabulary.items()}
    return {i: str(piece[0]) for i, piece in enumerate(vocabulary)}  # Unigram: [piece, score]
