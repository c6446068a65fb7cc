"""What every row of the output must be, worked out one row at a time from the tokenizers alone.

It shares no code with paramdelta. The vocabularies are those that the tokenizers library says it
loads; the sum is in float64, exact for these numbers, and is rounded to bfloat16 once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from studies.transfer.mix import to_bf16
from studies.vocabulary.lineage import EMBEDDING, ROWS

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """Where the numbers of one row come from: the row's number in each checkpoint, or None.

    new, post and base: new + scale · (post − base). Only new: the new base's row as it is. Only
    post: post's row as it is.
    """

    new: int | None = None
    post: int | None = None
    base: int | None = None


def vocabulary(folder: Path) -> dict[str, int]:
    """All tokens, the added ones too, with their ids."""
    return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())


def rows(
    folders: dict[str, Path],
    counts: dict[str, int],
    by: str,
    graft: Sequence[str] = (),
    take: Sequence[str] = (),
) -> list[Row]:
    """One Row for every row of the output.

    ``counts``: rows of the embedding of "base", "post" and "new-base". ``by``: "token", "id",
    "number" (padding too) or "new-base" (no row of a token is mixed).
    """
    new, post, base = (vocabulary(folders[role]) for role in ("new-base", "post", "base"))
    tokens = {number: token for token, number in new.items()}
    same = new == post == base and len(set(counts.values())) == 1
    result = []
    for number in range(counts["new-base"]):
        token = tokens.get(number)
        if by == "new-base":
            row = Row(number)
        elif by == "number":
            there = number < min(counts["post"], counts["base"])
            row = Row(number, number, number) if there else Row(number)
        elif by == "id":
            # Padding of the new base keeps its numbers, unless there is nothing to tell apart.
            there = number < min(counts["post"], counts["base"])
            row = Row(number, number, number) if there and (token or same) else Row(number)
        elif token in post and token in base:
            row = Row(number, post[token], base[token])
        else:
            row = Row(number)
        if token in take:
            row = Row(post=post[token])
        result.append(row)
    free = [number for number in range(counts["new-base"]) if number not in tokens]
    for token in graft:
        if free:
            result[free.pop(0)] = Row(post=post[token])
        else:
            result.append(Row(post=post[token]))
    return result


def mixed(
    folders: dict[str, Path],
    by: str,
    graft: Sequence[str] = (),
    take: Sequence[str] = (),
    scale: float = 1.0,
) -> Weights:
    """All tensors of the output in bfloat16: rows as `rows` says, the others number by number."""
    new, post, base = (load(folders[role]) for role in ("new-base", "post", "base"))
    counts = {role: row_count(load(folder)) for role, folder in folders.items()}
    where = rows(folders, counts, by, graft, take)
    result: Weights = {}
    for name, ours in new.items():
        theirs, olds = post[name].double(), base[name].double()
        if name not in ROWS:
            result[name] = to_bf16(ours.double() + scale * (theirs - olds))
            continue
        made = [numbers(row, ours.double(), theirs, olds, scale) for row in where]
        result[name] = to_bf16(torch.stack(made))
    return result


def numbers(row: Row, new: Tensor, post: Tensor, base: Tensor, scale: float) -> Tensor:
    """The numbers of one row, from the float64 tensors of new base, post and base."""
    if row.new is None:
        return post[row.post]
    if row.post is None or row.base is None:
        return new[row.new]
    return new[row.new] + scale * (post[row.post] - base[row.base])


def load(folder: Path) -> Weights:
    """The tensors of a checkpoint folder, whatever its files are called."""
    tensors: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def row_count(weights: Weights) -> int:
    """Rows of the input embedding."""
    return weights[EMBEDDING].shape[0]
