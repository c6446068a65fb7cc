"""What an output is worth: are its rows right, and do they agree with its own tokenizer?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from studies.vocabulary import reference
from studies.vocabulary.lineage import EMBEDDING, ROWS, Case
from studies.vocabulary.reference import Weights
from studies.vocabulary.tokens import CHAT, IM_END

MESSAGES = [
    {"role": "user", "content": "What is leukemia ?"},
    {"role": "assistant", "content": "A cancer of the blood."},
]


@dataclass(frozen=True)
class Figures:
    """Counts of one output. A row is right if it is so in embedding and head.

    ``embedding``: its shape. ``vocab_size``: of config.json. ``tokens``: of the tokenizer.
    ``shared``: tokens of all three checkpoints whose row is the reference's, and how many there
    are. ``domain``: tokens that only the new base has whose row is the new base's. ``chat``: chat
    tokens whose row is the reference's. ``others``: all other tensors are the reference's.
    ``same_text``: held-out texts of the domain that are cut into the same tokens as by the new
    base's tokenizer, of how many. ``template``: the chat template is there, and each chat token in
    what it writes is one id. ``special``: the chat tokens are known to be special. ``stops``: the
    end of a turn ends generation. ``fits``: every id of the tokenizer has a row, and config.json
    agrees with the embedding.
    """

    embedding: tuple[int, int]
    vocab_size: int
    tokens: int
    shared: tuple[int, int]
    domain: tuple[int, int]
    chat: tuple[int, int]
    others: bool
    same_text: tuple[int, int]
    template: bool
    special: bool
    stops: bool
    fits: bool

    @property
    def all_right(self) -> bool:
        """Nothing is left to wish for."""
        counts = (self.shared, self.domain, self.chat, self.same_text)
        flags = (self.others, self.template, self.special, self.stops, self.fits)
        return all(flags) and all(right == of for right, of in counts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"all_right": self.all_right}


def measure(
    case: Case, folders: dict[str, Path], expected: Weights, out: Path, held: list[str]
) -> Figures:
    """Compare an output with what the row-by-row reference expects, found by the output's own
    tokenizer.
    """
    from transformers import AutoTokenizer, GenerationConfig

    new, post, base = (reference.vocabulary(folders[role]) for role in ("new-base", "post", "base"))
    weights, ours, theirs = (
        reference.load(folder) for folder in (out, folders["new-base"], folders["post"])
    )
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    own = tokenizer.get_vocab()

    def right(names: Sequence[str], wanted: Weights, numbers: Mapping[str, int]) -> int:
        """How many of these tokens have, where the output's tokenizer puts them, the wanted row."""
        known = [t for t in names if own.get(t, len(weights[EMBEDDING])) < len(weights[EMBEDDING])]
        at, there = [own[t] for t in known], [numbers[t] for t in known]
        equal = torch.ones(len(known), dtype=torch.bool)
        for name in ROWS:
            if name in wanted:
                equal &= (weights[name][at] == wanted[name][there]).all(1)
        return int(equal.sum())

    # Where ids decide, names are only looked up: the new base's, or post's if it gives them.
    names = post if case.by == "id" and not new.keys() <= own.keys() else new
    shared = [t for t in names if case.by == "id" or (t in post and t in base)]
    domain = [t for t in names if case.by == "token" and t not in post]
    chat = right(CHAT, theirs, post) if case.graft else right(CHAT, expected, names)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if (out / "generation_config.json").exists():
        ends = GenerationConfig.from_pretrained(out).eos_token_id
    else:
        ends = config.get("eos_token_id")
    fast = AutoTokenizer.from_pretrained(out)
    before = Tokenizer.from_file(str(folders["new-base"] / "tokenizer.json"))
    rows, width = weights[EMBEDDING].shape
    same = sum(tokenizer.encode(t).tokens == before.encode(t).tokens for t in held)
    return Figures(
        (rows, width),
        config["vocab_size"],
        len(own),
        (right(shared, expected, names), len(shared)),
        (right(domain, ours, new), len(domain)),
        (chat, len(CHAT)),
        all(
            name in weights and torch.equal(weights[name], value)
            for name, value in expected.items()
            if name not in ROWS
        ),
        (same, len(held)),
        template_works(fast),
        all(t in fast.all_special_tokens or _special(fast, t) for t in CHAT),
        own.get(IM_END) is not None and own[IM_END] in (ends if isinstance(ends, list) else [ends]),
        max(own.values()) < rows == config["vocab_size"],
    )


def template_works(tokenizer: Any) -> bool:
    """The chat template writes both chat tokens for every message, each as one id."""
    if not tokenizer.chat_template:
        return False
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    return all(pieces.count(token) == len(MESSAGES) for token in CHAT)


def _special(tokenizer: Any, token: str) -> bool:
    number = tokenizer.get_vocab().get(token)
    added = tokenizer.added_tokens_decoder.get(number)
    return added is not None and added.special
