"""Tokens and their ids while a tokenizer is put together, and the ids that a loader accepts."""

from collections.abc import Iterable, Mapping
from typing import Any

LARGEST = 1 << 24  # ids are below; the largest known vocabulary has a million tokens


class IdError(ValueError):
    """A token's id that is not a number of a row."""


class NumberingError(Exception):
    """A vocabulary of which it cannot be told which token has which id; the text says why."""


def checked_id(value: Any, token: object) -> int:
    """A token's id as a file states it; raises IdError if it is not a small integer."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST:
        shown = str(value) if isinstance(value, int) and abs(value) < 1 << 64 else repr(value)[:40]
        raise IdError(f"token {str(token)[:40]!r} has the id {shown}")
    return value


def key_id(key: str, token: object) -> int:
    """A token's id that is the key of a JSON object; raises IdError."""
    plain = key.isascii() and key.isdigit() and len(key) < 20
    return checked_id(int(key) if plain else key, token)


def checked_ids(vocabulary: Mapping[str, Any]) -> dict[str, int]:
    """A vocabulary ``{token: id}`` from a file; raises IdError."""
    bad = [token for token, i in vocabulary.items() if type(i) is not int or not 0 <= i < LARGEST]
    if bad:
        checked_id(vocabulary[bad[0]], bad[0])
    return dict(vocabulary)


class Table:
    """A vocabulary that tokens are added to.

    ``ids``: by token its id. ``size``: how many tokens the model has, from which added ones are
    numbered on; None for as many as there are. ``special``: the ids of special tokens. ``added``:
    the added tokens and their ids. ``counts``: whether added tokens are numbered as the tokenizers
    library does it, whatever id a file states; else as transformers' Python tokenizers do it, which
    keep stated ids.
    """

    def __init__(
        self, ids: Mapping[str, int], size: int | None = None, *, counts: bool = True
    ) -> None:
        self.ids = dict(ids)
        self.size = len(self.ids) if size is None else size
        self.added: dict[str, int] = {}
        self.special: set[int] = set()
        self.counts = counts
        self._new = 0  # added tokens that the model does not have

    def copy(self) -> "Table":
        """A table that can grow by itself."""
        other = Table(self.ids, self.size, counts=self.counts)
        other.added, other.special, other._new = dict(self.added), set(self.special), self._new
        return other

    def add(self, token: str, stated: int | None = None, *, special: bool = True) -> None:
        """Add a token, or mark one that is there as added. ``stated``: the id in the file."""
        if token == "":
            return
        if not self.counts and stated is not None:
            found = stated
        elif token in self.ids:
            found = self.ids[token]
        else:
            found = self.size + self._new if self.counts else len(self.ids)
            self._new += 1
        self.ids[token] = self.added[token] = found
        if special:
            self.special.add(found)

    def add_all(self, tokens: Iterable[str]) -> None:
        """Add special tokens that are missing."""
        for token in tokens:
            if token not in self.added:
                self.add(token)

    def tokens(self) -> dict[int, str]:
        """By id its token, in order; an added token hides another one of the same id."""
        found = {i: token for token, i in self.ids.items()}
        found |= {i: token for token, i in self.added.items()}
        return dict(sorted(found.items()))
