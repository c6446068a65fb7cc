"""Base, post and new base with real tokenizers, in the cases that people meet.

The models are small Llamas. Their numbers are random, and moved a little where training would have
moved them: what is asked here is which row goes where, and for that they need not be good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from studies.vocabulary import tokens
from studies.vocabulary.tokens import CHAT, CHAT_TEMPLATE, END, IM_END, RESERVED

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = (EMBEDDING, HEAD)  # tensors with a row for every token
HIDDEN = 32
ROLES = ("base", "post", "new-base")


@dataclass(frozen=True)
class Case:
    """Three tokenizers, the rows of their embeddings, and what makes rows correspond.

    ``rows``: of base, post and new base; more than tokens where the embedding is padded. ``by``:
    "id" or "token". ``graft``: tokens that only post has and that a chat needs.
    """

    name: str
    what: str
    tokenizers: tuple[Tokenizer, Tokenizer, Tokenizer]
    rows: tuple[int, int, int]
    by: str
    graft: tuple[str, ...] = ()


def cases(general: Iterable[str], domain: Iterable[str], size: int, more: int) -> dict[str, Case]:
    """Every case, with a tokenizer of `size` tokens that learns `more` in the domain."""
    domain = list(domain)
    old = tokens.train(general, size)
    chat = tokens.with_chat(old)
    longer = tokens.extended(old, domain, more)
    between = tokens.extended(old, domain, more, between=True)
    words = with_words(old, domain, more)
    settled = tokens.renamed(old, dict(zip(RESERVED, CHAT, strict=False)))
    # As Llama 3.1 did to Llama 3: two reserved tokens get names, and those after them move up.
    named = ["<|finetune_right_pad_id|>", *RESERVED[2:4], "<|python_tag|>", *RESERVED[4:6]]
    later = tokens.renamed(settled, dict(zip(RESERVED[2:], named, strict=True)))

    def plain(*three: Tokenizer) -> tuple[int, int, int]:
        a, b, c = (tokenizer.get_vocab_size() for tokenizer in three)
        return a, b, c

    def case(name: str, what: str, new: Tokenizer) -> Case:
        three = (old, chat, new)
        return Case(name, what, three, plain(*three), "token", CHAT)

    a, p, n = plain(old, chat, longer)
    found = [
        case("appended", "new tokens after the old ones, which keep their ids", longer),
        case("between", "new tokens between the old ones: nearly every id is another", between),
        case("words", "whole words added with `add_tokens`, no merges", words),
        Case(
            "padded",
            "as appended, and embeddings padded to a multiple of 128 (post: of 64)",
            (old, chat, longer),
            (_padded(a, 128), _padded(p, 64), _padded(n + 2, 128)),
            "token",
            CHAT,
        ),
        Case(
            "padding",
            "one vocabulary, which has the chat tokens already; only the padding differs (Qwen)",
            (chat, chat, chat),
            (_padded(p, 64), _padded(p, 64) + 64, _padded(p, 64) + 128),
            "id",
        ),
        Case(
            "renamed",
            "the same ids; two reserved tokens got names and the others moved up (Llama 3.1)",
            (settled, settled, later),
            plain(settled, settled, later),
            "id",
        ),
    ]
    return {case.name: case for case in found}


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def with_words(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> Tokenizer:
    """The tokenizer with the most frequent words that it has to cut added whole, as people do."""
    often: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            if word.isalpha() and len(word) > 5:
                often[word] = often.get(word, 0) + 1
    known = tokenizer.get_vocab()
    words = sorted(often, key=lambda word: (-often[word], word))
    words = [word for word in words if word not in known and len(tokenizer.encode(word).ids) > 2]
    result = Tokenizer.from_str(tokenizer.to_str())
    result.add_tokens(words[:count])
    return result


def build(case: Case, folder: Path, *, tied: bool, seed: int = 0) -> dict[str, Path]:
    """Write the three checkpoints of a case; the folders by role."""
    from transformers import GenerationConfig

    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    folders = {role: folder / role for role in ROLES}
    for role, tokenizer, rows in zip(ROLES, case.tokenizers, case.rows, strict=True):
        eos = IM_END if role == "post" else END
        model = small_llama(tokenizer, rows, eos, tied)
        for name, parameter in model.named_parameters():
            fresh = 0.1 * torch.randn(parameter.shape, generator=generator)
            if role != "base":
                moved = 0.01 * torch.randn(weights[name].shape, generator=generator)
                moved += weights[name]
                if name in ROWS:
                    for to, at in _pairs(case, tokenizer, rows, moved):
                        fresh[to] = moved[at]
                else:
                    fresh = moved
            parameter.data.copy_(fresh)
            if role == "base":
                weights[name] = fresh
        model.to(torch.bfloat16).save_pretrained(folders[role])
        template = CHAT_TEMPLATE if role == "post" else None
        tokens.save(tokenizer, folders[role], eos=eos, template=template)
        ends = [tokenizer.token_to_id(END)]
        if role == "post":
            ends = [tokenizer.token_to_id(IM_END), *ends]
        GenerationConfig(
            bos_token_id=tokenizer.token_to_id(tokens.BEGIN),
            eos_token_id=ends if role == "post" else ends[0],
            pad_token_id=tokenizer.token_to_id(tokens.PAD),
        ).save_pretrained(folders[role])
    return folders


def _pairs(case: Case, tokenizer: Tokenizer, rows: int, base: Tensor) -> list[tuple[int, int]]:
    """(row here, row of the base) for all tokens that both have."""
    if case.by == "id":
        return [(i, i) for i in range(min(rows, len(base)))]
    old = case.tokenizers[0].get_vocab()
    return [(i, old[name]) for name, i in tokenizer.get_vocab().items() if name in old]


def small_llama(tokenizer: Tokenizer, rows: int, eos: str, tied: bool, **sizes: int) -> Any:
    """A Llama for a tokenizer, with whatever numbers transformers gives it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.token_to_id(tokens.BEGIN),
        eos_token_id=tokenizer.token_to_id(eos),
        pad_token_id=tokenizer.token_to_id(tokens.PAD),
        **{
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            **sizes,
        },
    )
    return LlamaForCausalLM(config)
