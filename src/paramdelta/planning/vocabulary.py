"""Vocabularies: which row of an embedding is which token, and how two vocabularies agree."""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paramdelta.errors import UsageError
from paramdelta.formats.view import ABSENT

Map = npt.NDArray[np.int32]

MOST = 256_000_000  # bytes of a tokenizer file; the largest have some 40 MB

_PLACEHOLDER = re.compile(r"reserved|unused|extra_id|placeholder", re.IGNORECASE)
_MARKED = re.compile(r"<.*>|\[.*\]")


@dataclass(frozen=True)
class Opaque:
    """A tokenizer of which it is not known which token has which id.

    ``why``: for messages. ``digest``: of its files; with the same files the ids are the same.
    """

    why: str
    digest: bytes


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint's tokens by id; ``special``: ids of special tokens.

    ``is_cut``: whether the tokenizer has further tokens, for which the checkpoint has no rows.
    """

    tokens: Mapping[int, str]
    special: frozenset[int] = frozenset()
    is_cut: bool = False
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
    post has given them other names (R1's distillation of Llama). Two more kinds of tokens go by id:
    tokens that differ only in white space at their ends, which some loaders strip; and tokens whose
    text leads to another id.
    """
    if new.tokens == other.tokens:
        rows = np.full(new.size, ABSENT, np.int32)
        rows[list(new.tokens)] = list(new.tokens)
        return Agreement(rows, (), 0, (), ())
    places = {i: other.ids.get(token, ABSENT) for i, token in new.tokens.items()}
    for token_id, token in new.tokens.items():
        if new.ids[token] != token_id:
            places[token_id] = token_id if other.tokens.get(token_id) == token else ABSENT
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
        if any(elsewhere):
            continue
        special = new.is_special(token_id) and other.is_special(token_id)
        inherited = base is not None and base.tokens.get(token_id) == token
        if special and (any(placeholders) or inherited):
            places[token_id] = token_id
            renamed.append(token_id)
        elif token.strip() == found.strip():
            places[token_id] = token_id
    rows = np.full(new.size, ABSENT, np.int32)
    rows[list(places)] = list(places.values())
    matched = set(places.values())
    return Agreement(
        rows,
        tuple(sorted(renamed)),
        int(np.count_nonzero((rows != ABSENT) & (rows != np.arange(new.size)))),
        tuple(i for i in sorted(new.ids.values()) if places[i] == ABSENT),
        tuple(i for i in sorted(other.ids.values()) if i not in matched),
    )


def find_token(token: str, vocabulary: Vocabulary, option: str, where: str) -> int:
    """A token's id; raises UsageError with near misses."""
    if token in vocabulary.ids:
        return vocabulary.ids[token]
    special = [t for i, t in vocabulary.tokens.items() if i in vocabulary.special]
    near = difflib.get_close_matches(token, special or list(vocabulary.ids), 3, 0.5)
    raise UsageError(
        f"{option}: there is no token {token!r}",
        code="no-such-token",
        where=where,
        expected="one of its tokens" + (f", such as {', '.join(near)}" if near else ""),
    )


def first_tokens(vocabulary: Vocabulary, ids: Iterable[int], most: int = 4) -> tuple[str, ...]:
    """The first few of these ids' tokens."""
    known = (vocabulary.tokens[i] for i in ids if i in vocabulary.tokens)
    return tuple(itertools.islice(known, most))
