"""The lineage's tokenizer: byte-level BPE, trained on the base's text and on nothing later."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from studies.lineage import text
from studies.lineage.world import World

PAD, BEGIN, END, USER, ASSISTANT, END_OF_TURN = SPECIALS = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|user|>",
    "<|assistant|>",
    "<|end_of_turn|>",
)
PAD_ID, BEGIN_ID, END_ID, USER_ID, ASSISTANT_ID, END_OF_TURN_ID = range(len(SPECIALS))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end_of_turn|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(world: World, seed: str, size: int, documents: int = 6000) -> Tokenizer:
    """A tokenizer of at most `size` tokens, trained on the base's text after its primer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    read = itertools.islice(text.base_text(world, seed), text.PRIMER, text.PRIMER + documents)
    tokenizer.train_from_iterator(read, trainer)
    return tokenizer


def document_ids(tokenizer: Tokenizer, document: str) -> list[int]:
    """A pretraining document between its marks. The space in front makes words look alike."""
    return [BEGIN_ID, *tokenizer.encode(" " + document).ids, END_ID]


def turn_ids(tokenizer: Tokenizer, turn: text.Turn) -> tuple[list[int], list[int]]:
    """(prompt, reply) of a conversation, as the chat template writes them."""
    question, answer = turn
    prompt = [BEGIN_ID, USER_ID, *tokenizer.encode(" " + question).ids, END_OF_TURN_ID]
    reply = [*tokenizer.encode(" " + answer).ids, END_OF_TURN_ID]
    return [*prompt, ASSISTANT_ID], reply


def save_tokenizer(tokenizer: Tokenizer, folder: Path, chat: bool) -> None:
    """Write the tokenizer as transformers does; with the chat roles and template if `chat`.

    As saved, it puts the begin mark in front of plain text by itself, as Llama's does.
    """
    from transformers import PreTrainedTokenizerFast

    marked = Tokenizer.from_str(tokenizer.to_str())
    marked.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    saved = PreTrainedTokenizerFast(
        tokenizer_object=marked,
        bos_token=BEGIN,
        eos_token=END_OF_TURN if chat else END,
        pad_token=PAD,
        model_max_length=256,
    )
    if chat:
        saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows this name too
    settings.pop("backend", None)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
