"""Vocabularies: which row of an embedding stands for which token, read from the tokenizer's files,
and how two of them agree.
"""

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.errors import CheckpointError, UsageError
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.view import ABSENT
from paramdelta.planning.sentencepiece import pieces
from paramdelta.storage.files import parse_json

Map = npt.NDArray[np.int32]

MOST = 256_000_000  # bytes of a tokenizer file; the largest have some 30 MB

_PLACEHOLDER = re.compile(r"reserved|unused|extra_id|placeholder", re.IGNORECASE)
_MARKED = re.compile(r"<.*>|\[.*\]")
_TENSORS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared|lm_head|embed_out|"
    r"proj_out|embed_tokens_per_layer|predictions\.decoder)\.(weight|bias)$|"
    r"^output\.weight$|(^|\.)predictions\.bias$"
)


def has_rows_of_tokens(name: str) -> bool:
    """Whether the first axis of a tensor of this name counts tokens: embedding, head, its bias."""
    return _TENSORS.search(name) is not None


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint's tokens by id; ``special``: ids of tokens that stand outside the text."""

    tokens: Mapping[int, str]
    special: frozenset[int] = frozenset()
    ids: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {token: i for i, token in self.tokens.items()})

    @property
    def size(self) -> int:
        """Rows that an embedding for it needs."""
        return max(self.tokens, default=-1) + 1

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a special one, by the tokenizer or by its looks."""
        return token_id in self.special or bool(_MARKED.fullmatch(self.tokens[token_id]))


def read_vocabulary(checkpoint: Checkpoint, known: dict[bytes, Vocabulary]) -> Vocabulary | None:
    """The checkpoint's tokens, from the first of tokenizer.json, tokenizer.model or spiece.model,
    vocab.json and vocab.txt that is there. None where there is no tokenizer.

    ``known``: vocabularies by the digest of their tokenizer.json, which is large and often the same
    in several checkpoints; one that is read is added.

    Raises:
        CheckpointError: a tokenizer file that cannot be understood.
    """
    try:
        if "tokenizer.json" not in checkpoint.files:
            return _read(checkpoint)
        data = checkpoint.files.bytes("tokenizer.json", MOST)
        digest = hashlib.sha256(data).digest()
        if digest not in known:
            known[digest] = _of_tokenizer(parse_json(data, f"{checkpoint}, tokenizer.json"))
        return known[digest]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            "the tokenizer's files cannot be understood",
            where=checkpoint.location.address,
            got=repr(error)[:120],
            remedy="get them again, or choose --vocabulary id",
        ) from None


def _of_tokenizer(tokenizer: Mapping[str, Any]) -> Vocabulary:
    """The tokens of a tokenizer.json."""
    tokens = _by_id(tokenizer["model"].get("vocab", {}))
    added = tokenizer.get("added_tokens") or []
    tokens |= {int(token["id"]): str(token["content"]) for token in added}
    special = frozenset(int(token["id"]) for token in added if token.get("special"))
    return Vocabulary(tokens, special)


def _read(checkpoint: Checkpoint) -> Vocabulary | None:
    """The tokens of the files that tokenizers had before tokenizer.json."""
    added = _added_tokens(checkpoint)
    special = frozenset(added)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if name in checkpoint.files:
            found = pieces(checkpoint.files.bytes(name, MOST))
            return Vocabulary(dict(enumerate(found)) | added, special)
    if "vocab.json" in checkpoint.files:
        return Vocabulary(_by_id(checkpoint.files.json("vocab.json")) | added, special)
    if "vocab.txt" in checkpoint.files:
        words = checkpoint.files.bytes("vocab.txt", MOST).decode("utf-8").splitlines()
        return Vocabulary(dict(enumerate(words)) | added, special)
    return None


def _added_tokens(checkpoint: Checkpoint) -> dict[int, str]:
    decoder = checkpoint.read_json("tokenizer_config.json").get("added_tokens_decoder") or {}
    added = {int(i): str(token["content"]) for i, token in decoder.items()}
    return added | {int(i): t for t, i in checkpoint.read_json("added_tokens.json").items()}


def _by_id(vocabulary: Mapping[str, Any] | list[Any]) -> dict[int, str]:
    if isinstance(vocabulary, Mapping):  # BPE, WordPiece, WordLevel
        return {int(token_id): str(token) for token, token_id in vocabulary.items()}
    return {i: str(piece[0]) for i, piece in enumerate(vocabulary)}  # Unigram: [piece, score]


@dataclass(frozen=True)
class Agreement:
    """How another vocabulary agrees with the new base's.

    ``rows``: for each id of the new base the other's id of the same token, or ABSENT. ``renamed``:
    ids at which a reserved token has another name. ``moved``: how many tokens have another id.
    ``only_new``, ``only_other``: ids whose token the other one lacks, in each numbering.
    """

    rows: Map
    renamed: tuple[int, ...]
    moved: int
    only_new: tuple[int, ...]
    only_other: tuple[int, ...]

    @property
    def by_id(self) -> bool:
        """Whether every token that both have has one id."""
        return not self.moved

    @property
    def same(self) -> bool:
        """Whether the two are one vocabulary, but for the names of reserved tokens."""
        return not (self.moved or self.only_new or self.only_other)


def compare(new: Vocabulary, other: Vocabulary, base: Vocabulary | None = None) -> Agreement:
    """Find each token of the new base in another vocabulary: by its text.

    Special tokens that are placeholders ("reserved") go by id as long as no other token has moved:
    when one of them gets a name, the numbers in the names of the rest shift (Llama 3 -> 3.1). So do
    special tokens that ``base``, from which the other was trained, has as the new base has them:
    post has given them other names (R1's distillation of Llama).
    """
    if new.tokens == other.tokens:
        rows = np.full(new.size, ABSENT, np.int32)
        rows[list(new.tokens)] = list(new.tokens)
        return Agreement(rows, (), 0, (), ())
    places = [ABSENT] * new.size
    for token_id, token in new.tokens.items():
        places[token_id] = other.ids.get(token, ABSENT)
    moved = any(
        places[i] not in (ABSENT, i) and not _PLACEHOLDER.search(token)
        for i, token in new.tokens.items()
    )
    renamed: list[int] = []
    for token_id, token in new.tokens.items():
        found = other.tokens.get(token_id)
        if found is None or found == token or (moved and places[token_id] != ABSENT):
            continue
        placeholders = bool(_PLACEHOLDER.search(token)), bool(_PLACEHOLDER.search(found))
        elsewhere = (
            not placeholders[0] and token in other.ids,
            not placeholders[1] and found in new.ids,
        )
        special = new.is_special(token_id) and other.is_special(token_id)
        inherited = base is not None and base.tokens.get(token_id) == token
        if special and (any(placeholders) or inherited) and not any(elsewhere):
            places[token_id] = token_id
            renamed.append(token_id)
    rows = np.array(places, np.int32)
    matched = set(places)
    return Agreement(
        rows,
        tuple(sorted(renamed)),
        int(np.count_nonzero((rows != ABSENT) & (rows != np.arange(new.size)))),
        tuple(i for i in sorted(new.tokens) if places[i] == ABSENT),
        tuple(i for i in sorted(other.tokens) if i not in matched),
    )


def find_token(token: str, vocabulary: Vocabulary, option: str, where: str) -> int:
    """A token's id; raises UsageError with near misses."""
    if token in vocabulary.ids:
        return vocabulary.ids[token]
    special = [t for i, t in vocabulary.tokens.items() if i in vocabulary.special]
    near = difflib.get_close_matches(token, special or list(vocabulary.ids), 3, 0.5)
    raise UsageError(
        f"{option} {token!r}: no such token",
        where=where,
        expected="one of its tokens" + (f", such as {', '.join(near)}" if near else ""),
    )


def first_tokens(vocabulary: Vocabulary, ids: Iterable[int], most: int = 4) -> tuple[str, ...]:
    """The first few of these ids' tokens."""
    known = (vocabulary.tokens[i] for i in ids if i in vocabulary.tokens)
    return tuple(itertools.islice(known, most))
