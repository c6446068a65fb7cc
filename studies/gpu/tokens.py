"""The tokenizer, and documents packed into rows of equal length.

A document is `<|begin|>` and its text. A chat is
`<|begin|><|user|>question<|assistant|>answer<|end|>`; only the answer and its end are learned.
The three chat tokens never occur in a document, so a base has untrained rows for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from studies.gpu.corpus import Corpus, Question

SPECIAL = ("<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")
BEGIN, USER, ASSISTANT, END = range(4)
NOT_LEARNED = -100
PIECE = 20_000  # characters a document is cut to before it is encoded, to use every core


@dataclass(frozen=True)
class Rows:
    """Inputs (rows, length) and the token wanted after each, or NOT_LEARNED; int32."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.inputs)


def train_tokenizer(corpus: Corpus, vocabulary: int, chars: int) -> Tokenizer:
    """Byte-level BPE with single digits, on at most `chars` characters of all kinds of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(corpus, chars), trainer)
    return tokenizer


def _sample(corpus: Corpus, chars: int) -> Iterator[str]:
    """The same share of every kind of document."""
    whole = sum(sum(map(len, d)) for d in corpus.documents.values())
    for documents in corpus.documents.values():
        left = int(min(1.0, chars / whole) * sum(map(len, documents)))
        for text in documents:
            for piece in _pieces(text):
                if left <= 0:
                    break
                yield piece[:left]
                left -= len(piece)


def _pieces(text: str) -> Iterator[str]:
    """A text cut at line ends into pieces of about PIECE characters."""
    start = 0
    while start < len(text):
        end = start + PIECE
        cut = text.rfind("\n", start, end) if end < len(text) else len(text)
        cut = cut if cut > start else end
        yield text[start:cut]
        start = cut


def document_rows(tokenizer: Tokenizer, documents: Iterable[str], length: int) -> Rows:
    """Documents one after another, cut into rows; the last incomplete row is dropped."""
    starts, pieces = [], []
    for text in documents:
        for number, piece in enumerate(_pieces(text)):
            starts.append(number == 0)
            pieces.append(piece)
    stream: list[int] = []
    for start, encoded in zip(
        starts, tokenizer.encode_batch_fast(pieces, add_special_tokens=False), strict=True
    ):
        if start:
            stream.append(BEGIN)
        stream += encoded.ids
    count = (len(stream) - 1) // length
    if count < 1:
        raise ValueError(f"{len(stream)} tokens do not fill one row of {length}")
    flat = np.array(stream[: count * length + 1], dtype=np.int32)
    return Rows(flat[:-1].reshape(count, length), flat[1:].reshape(count, length))


@dataclass(frozen=True)
class Chat:
    """A question as tokens: the prompt up to and with `<|assistant|>`, and the answer with END."""

    prompt: list[int]
    answer: list[int]


def encode_chats(
    tokenizer: Tokenizer, questions: list[Question], length: int, answer_tokens: int
) -> list[Chat]:
    """Chats, without those whose answer is longer than asked for or that do not fit in a row."""
    prompts = tokenizer.encode_batch_fast([q.prompt for q in questions], add_special_tokens=False)
    answers = tokenizer.encode_batch_fast([q.answer for q in questions], add_special_tokens=False)
    chats = [
        Chat([BEGIN, USER, *p.ids, ASSISTANT], [*a.ids, END])
        for p, a in zip(prompts, answers, strict=True)
    ]
    return [
        c
        for c in chats
        if len(c.answer) <= answer_tokens and len(c.prompt) + len(c.answer) <= length
    ]


def chat_rows(chats: list[Chat], length: int, *, packed: bool) -> Rows:
    """Chats in rows with only answers learned: as many as fit in a row, or one in each."""
    lines: list[tuple[list[int], list[int]]] = []
    for chat in chats:
        tokens = chat.prompt + chat.answer
        wanted = [NOT_LEARNED] * (len(chat.prompt) - 1) + [*chat.answer, NOT_LEARNED]
        if packed and lines and len(lines[-1][0]) + len(tokens) <= length:
            lines[-1][0].extend(tokens)
            lines[-1][1].extend(wanted)
        else:
            lines.append((tokens, wanted))
    rows = Rows(
        np.full((len(lines), length), BEGIN, dtype=np.int32),
        np.full((len(lines), length), NOT_LEARNED, dtype=np.int32),
    )
    for number, (tokens, wanted) in enumerate(lines):
        rows.inputs[number, : len(tokens)] = tokens
        rows.labels[number, : len(wanted)] = wanted
    return rows
