"""What becomes of the rows of tokens: embedding, output head and its bias.

Rows correspond by id where the vocabularies agree, or differ only in what reserved tokens are
called (Llama 3 -> 3.1), and else by token. A row without a counterpart keeps the new base's values.
Tokens that only post has can be grafted on, and rows of others taken from post outright.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from paramdelta.errors import UsageError, parameter
from paramdelta.formats.view import ABSENT, Part, Rows, Transposed, View
from paramdelta.planning.vocabulary import (
    Agreement,
    Map,
    Opaque,
    Vocabulary,
    compare,
    find_token,
    first_tokens,
)


@dataclass(frozen=True)
class Case:
    """Rows of one fate: how many, and the first few tokens."""

    name: str
    count: int
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Doubt:
    """Why rows of a source may not be the new base's of the same number.

    ``missing``: there is no tokenizer; else there is one, and how it numbers tokens is not known.
    """

    why: str
    missing: bool


@dataclass(frozen=True)
class Settlement:
    """What becomes of the rows of tokens in the output.

    ``mode``: "id", "token" or "new-base"; "unknown" where no tokenizer tells. ``forced``: "id" was
    asked for, whatever the tokenizers say. ``vocabularies`` and ``agreements``: by source; None
    where nothing is known, and for the new base's agreement with itself. ``grafts`` and ``takes``:
    by output id, the id in the first post whose row it gets; a graft is a token that the new base
    lacks, a take one that it has. ``doubts``: by source, None where nothing is in doubt; () if
    nothing is at all.
    """

    mode: str
    forced: bool
    vocabularies: tuple[Vocabulary | None, ...]
    agreements: tuple[Agreement | None, ...]
    grafts: Mapping[int, int] = field(default_factory=dict)
    takes: Mapping[int, int] = field(default_factory=dict)
    doubts: tuple[Doubt | None, ...] = ()

    @property
    def new(self) -> Vocabulary | None:
        """The new base's vocabulary."""
        return self.vocabularies[0]

    @property
    def post(self) -> Vocabulary | None:
        """That of the first post."""
        return self.vocabularies[1]

    @property
    def same(self) -> bool:
        """Whether the first post's tokenizer is the new base's, as far as can be told."""
        return self.agreements[1] is None or self.agreements[1].same

    def plain(self, heights: Sequence[int]) -> bool:
        """Whether tensors of so many rows, the new base's first, correspond row by row.

        They do, padding too, where all have equally many and one vocabulary: then base = new base
        gives back post, byte for byte.
        """
        if len(set(heights)) > 1 or self.grafts or self.takes or self.mode == "new-base":
            return False
        return self.forced or all(a is None or a.same for a in self.agreements)

    def height(self, rows: int) -> int:
        """Rows of the output's tensor where the new base's has ``rows``."""
        return max((rows, *(out + 1 for out in (*self.grafts, *self.takes))))

    def rows(self, at: int, height: int, new: int, own: int) -> Map:
        """For each of ``height`` output rows the row of source number ``at``, or ABSENT.

        ``new`` and ``own``: how many rows the new base's and the source's tensor have.
        """
        result = np.full(height, ABSENT, np.int32)
        agreement = self.agreements[at]
        if self.mode == "new-base":
            return result
        if self.forced or agreement is None:
            shared = min(new, own, height)
            result[:shared] = np.arange(shared, dtype=np.int32)
        else:
            count = min(new, len(agreement.rows))
            result[:count] = agreement.rows[:count]
            result[result >= own] = ABSENT
        for out in (*self.grafts, *self.takes):
            if out < height:
                result[out] = ABSENT  # no Δ: the row is post's own
        return result

    def outright(self, height: int, new: int, post: int) -> Map | None:
        """The new base's operand: for each output row one of its own, or post's, numbered on from
        ``new``. None if every row is its own.
        """
        moved = {o: p for o, p in {**self.grafts, **self.takes}.items() if p < post and o < height}
        if not moved and height == new:
            return None
        result = np.full(height, ABSENT, np.int32)
        result[:new] = np.arange(new, dtype=np.int32)
        for out, post_id in moved.items():
            result[out] = new + post_id
        return result

    def output_id(self, post_id: int) -> int | None:
        """The output's id of a token of post; None if the output lacks it."""
        agreement = self.agreements[1]
        if self.post is not None and self.post.is_cut and post_id not in self.post.tokens:
            return None
        if agreement is None or agreement.same:
            return post_id
        for out, post in self.grafts.items():
            if post == post_id:
                return out
        found = np.flatnonzero(agreement.rows == post_id)
        return int(found[0]) if len(found) else None

    @property
    def given(self) -> Mapping[int, int]:
        """By output id, post's id of the tokens whose names the output's tokenizer has from post:
        the grafts, and what post calls a reserved token.
        """
        agreement = self.agreements[1]
        renamed = agreement.renamed if agreement is not None else ()
        return {**{i: i for i in renamed}, **self.grafts}

    @property
    def ids(self) -> Mapping[str, int]:
        """The output's ids by token."""
        if self.new is None or self.post is None:
            return {}
        return {**self.new.ids, **{self.post.tokens[p]: out for out, p in self.given.items()}}

    @property
    def only_in_post(self) -> tuple[int, ...]:
        """Post's ids of the tokens that the output does not get."""
        agreement = self.agreements[1]
        if agreement is None:
            return ()
        grafted = set(self.grafts.values())
        return tuple(i for i in agreement.only_other if i not in grafted)

    def cases(self, heights: Sequence[int]) -> tuple[Case, ...]:
        """The rows of the output by their fate; ``heights``: rows of new base, post and base."""
        new, post, base = (*heights[:2], heights[2] if len(heights) > 2 else heights[1])
        if self.new is None or self.post is None:
            return (Case("same id", new),)
        height = self.height(new)
        rows = [self.rows(1, height, new, post)]
        rows.append(self.rows(2, height, new, base) if len(self.agreements) > 2 else rows[0])
        at = np.arange(height)
        token = np.zeros(height, np.bool_)
        token[[i for i in self.new.tokens if i < height]] = True
        special = np.zeros(height, np.bool_)
        special[[i for i in (*self.grafts, *self.takes) if i < height]] = True
        mixed = (rows[0] != ABSENT) & (rows[1] != ABSENT)
        by_id = mixed & (rows[0] == at) & (rows[1] == at)
        fates = {
            "same id": by_id,
            "same token": mixed & ~by_id,
            "new base only": token & ~mixed & ~special & (rows[0] == ABSENT),
            "not in base": token & ~mixed & ~special & (rows[0] != ABSENT),
            "padding": ~token & ~mixed & ~special,
        }
        found = [
            Case(name, int(fate.sum()), first_tokens(self.new, np.flatnonzero(fate).tolist()))
            for name, fate in fates.items()
        ]
        found += [
            Case("post's row, taken", len(self.takes), first_tokens(self.new, sorted(self.takes))),
            Case("grafted", len(self.grafts), first_tokens(self.post, self.grafts.values())),
            Case("post only", len(self.only_in_post), first_tokens(self.post, self.only_in_post)),
        ]
        return tuple(case for case in found if case.count)


def settle(
    vocabularies: Sequence[Vocabulary | Opaque | None],
    mode: str,
    graft: Iterable[str],
    take: Iterable[str],
    where: str,
) -> Settlement:
    """Decide how rows correspond. ``vocabularies``: the new base's, then post's and base's of each
    Δ. ``mode``: "auto", "id", "token" or "new-base". ``where``: the first post, for messages.

    Raises:
        UsageError: a token to graft or take is not there, or cannot be.
    """
    given = list(vocabularies)
    for at in range(1, len(given) - 1, 2):  # a base often has no tokenizer of its own
        given[at + 1] = given[at + 1] or given[at]
        given[at] = given[at] or given[at + 1]
    known = [each if isinstance(each, Vocabulary) else None for each in given]
    new = known[0]
    if new is None or any(vocabulary is None for vocabulary in known):
        if graft or take or mode == "token":
            reasons = [each.why for each in given if isinstance(each, Opaque)]
            raise UsageError(
                "the vocabularies cannot be compared: "
                + (reasons or ["a tokenizer is missing"])[0],
                code="no-tokenizer",
                where=where,
                expected="tokenizer files beside the weights of the new base and of post",
                remedy="save the tokenizer with transformers, which writes a tokenizer.json"
                if reasons
                else None,
            )
        return Settlement(
            mode if mode != "auto" else "unknown",
            mode == "id",
            (new, *known[1:]),
            (None,) * len(known),
            doubts=_doubts(given) if mode == "auto" else (),
        )
    agreements: list[Agreement | None] = [None]
    for at in range(1, len(known) - 1, 2):
        post, base = known[at], known[at + 1]
        assert post is not None
        assert base is not None
        theirs = compare(new, post, base)
        agreements += [theirs, theirs if post is base else compare(new, base)]
    by_id = all(a is None or not a.moved for a in agreements)
    chosen = mode if mode != "auto" else "id" if by_id else "token"
    settlement = Settlement(chosen, mode == "id", tuple(known), tuple(agreements))
    first = known[1]
    assert first is not None
    grafts: dict[int, int] = {}
    takes: dict[int, int] = {}
    free = new.size
    for token in dict.fromkeys(graft):
        post_id = find_token(token, first, "graft", where)
        if token in new.ids:
            raise UsageError(
                f"graft: the new base has the token {token!r} already",
                code="token-exists",
                where=where,
                remedy=f"pass {parameter('take', (token,))} to give it post's row",
            )
        grafts[free] = post_id
        free += 1
    for token in dict.fromkeys(take):
        takes[find_token(token, new, "take", "the new base")] = find_token(
            token, first, "take", where
        )
    return replace(settlement, grafts=grafts, takes=takes)


def _doubts(given: Sequence[Vocabulary | Opaque | None]) -> tuple[Doubt | None, ...]:
    """What is in doubt by source: nothing between equal files, nor if nobody has a tokenizer."""
    new = given[0]
    if all(each is None for each in given):
        return ()
    return (None, *(_doubt(new, each) for each in given[1:]))


def _doubt(new: Vocabulary | Opaque | None, other: Vocabulary | Opaque | None) -> Doubt | None:
    if isinstance(other, Opaque):
        same = isinstance(new, Opaque) and new.digest == other.digest
        return None if same else Doubt(other.why, missing=False)
    if isinstance(new, Opaque):
        return Doubt(f"in the new base, {new.why}", missing=False)
    if new is None or other is None:
        who = "the new base" if new is None else "it"
        return Doubt(f"{who} has no tokenizer", missing=True)
    return None


# -- views by token --------------------------------------------------------------------------------


def fitting(shape: tuple[int, ...], other: tuple[int, ...], axis: int) -> bool:
    """Whether two shapes differ at most in how many tokens they have, which are on this axis."""
    return (*shape[:axis], *shape[axis + 1 :]) == (*other[:axis], *other[axis + 1 :]) and len(
        shape
    ) == len(other)


def by_rows(view: View, axis: int) -> View:
    """A tensor whose tokens are on the given axis, with its tokens on the first axis."""
    if axis == 0:
        return view
    depth, height = view.shape
    if depth == 1:
        return Part(view.name, view.dtype, (height, 1), view, 0)
    return Transposed(view.name, view.dtype, (height, depth), view)


def on_axis(view: View, axis: int) -> View:
    """The inverse of `by_rows`."""
    if axis == 0:
        return view
    height, depth = view.shape
    if depth == 1:
        return Part(view.name, view.dtype, (1, height), view, 0)
    return Transposed(view.name, view.dtype, (depth, height), view)


def picked(name: str, shape: tuple[int, ...], views: Sequence[View], rows: Map) -> Rows:
    """A view of the given shape whose rows are picked from views of one row width."""
    return replace(Rows.joined(name, shape, views), rows=rows.tobytes())
