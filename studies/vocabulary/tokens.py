"""Tokenizers of a lineage: one that is trained, and what people make of it later.

All are byte-level BPE. The extended ones are real extensions: merges learned on new text, on top
of the old ones, as one does to continue a model in a new domain or language.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
RESERVED = tuple(f"<|reserved_special_token_{i}|>" for i in range(8))
SPECIAL = (BEGIN, END, PAD, *RESERVED)
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHAT = (IM_START, IM_END)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of `size` tokens at most; the special ones, reserved ones among them, first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _marked(tokenizer)


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    """Puts the begin mark in front of plain text by itself, as Llama's does."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def extended(
    tokenizer: Tokenizer, texts: Iterable[str], count: int, *, between: bool = False
) -> Tokenizer:
    """The tokenizer with `count` more tokens, learned from the texts.

    All old tokens stay. They also keep their ids, and the new ones follow; unless the new ones
    come `between` them, as when a tokenizer is trained anew with the old tokens kept: then the
    special tokens stand last and nearly every id is another.
    """
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    model = content["model"]
    old = [tuple(merge) for merge in model["merges"]]
    new = learned(tokenizer, texts, count)
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if between:
        made = {"".join(merge) for merge in old}
        letters = [n for n in names if n not in made and n not in SPECIAL]
        merges = _spread(old, new)
        names = [*letters, *dict.fromkeys("".join(m) for m in merges), *SPECIAL]
    else:
        merges = [*old, *new]
        names += ["".join(merge) for merge in new]
    model["merges"] = [list(merge) for merge in merges]
    model["vocab"] = {name: number for number, name in enumerate(names)}
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    content["post_processor"] = None  # it holds ids
    return _marked(Tokenizer.from_str(json.dumps(content)))


def _spread(old: Sequence[tuple[str, str]], new: Sequence[tuple[str, str]]) -> list[Any]:
    """Both lists in their order, the second spread evenly over the first."""
    places = [(i / len(old), merge) for i, merge in enumerate(old)]
    places += [(i / len(new), merge) for i, merge in enumerate(new)]
    return [merge for _, merge in sorted(places, key=lambda place: place[0])]


def learned(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The next `count` merges of BPE on these texts, if training went on from the tokenizer."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    words = [[piece.value for piece in tokenizer.model.tokenize(word)] for word in counts]
    often = list(counts.values())
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] += often[number]
            places[pair].add(number)
    known, merges = set(tokenizer.get_vocab()), []
    while len(merges) < count and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        joined = "".join(best)
        if joined in known:  # two ways to one string: the second would be no new token
            del pairs[best]
            continue
        for number in places.pop(best):
            word = words[number]
            for pair in itertools.pairwise(word):
                pairs[pair] -= often[number]
            words[number] = word = _merged(word, best)
            for pair in itertools.pairwise(word):
                pairs[pair] += often[number]
                places[pair].add(number)
        del pairs[best]
        known.add(joined)
        merges.append(best)
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            result.append("".join(pair))
            i += 2
        else:
            result.append(word[i])
            i += 1
    return result


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the two tokens of conversations added at the end."""
    result = Tokenizer.from_str(tokenizer.to_str())
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CHAT])
    return result


def renamed(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """The tokenizer with some special tokens under other names, at the same ids."""
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    model = content["model"]
    model["vocab"] = {names.get(name, name): number for name, number in model["vocab"].items()}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return Tokenizer.from_str(json.dumps(content))


def save(
    tokenizer: Tokenizer, folder: Path, *, eos: str = END, template: str | None = None
) -> None:
    """Write the tokenizer as transformers does."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=eos,
        pad_token=PAD,
        model_max_length=256,
    )
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows this name too
    settings.pop("backend", None)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
