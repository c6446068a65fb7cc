"""The decoder: what a row of training is, the training, losses and greedy answers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from studies.decoder.corpus import Question
from studies.decoder.settings import Course, Settings

IGNORED = -100
FORM = re.compile(r"\n#### (-?[\d,.]*\d)$")
Row = tuple[list[int], list[int]]  # token ids, and targets of the same length


def chat_row(tokenizer: Any, question: Question) -> Row:
    """A conversation of which only the answer and the end of the turn are learned."""
    prompt, reply = prompt_ids(tokenizer, question), reply_ids(tokenizer, question)
    return prompt + reply, [IGNORED] * len(prompt) + reply


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """The question in the chat's form, up to where the assistant begins."""
    asked = [{"role": "user", "content": question.prompt}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def reply_ids(tokenizer: Any, question: Question) -> list[int]:
    """The answer and the end of the turn."""
    ids = list(tokenizer(question.answer, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id]


def chats(tokenizer: Any, questions: Sequence[Question], length: int, seed: int) -> Iterator[Row]:
    """Endless conversations in a random order; those longer than `length` tokens are left out."""
    draw = random.Random(f"decoder chat {seed}")
    order = list(range(len(questions)))
    while True:
        draw.shuffle(order)
        for i in order:
            row = chat_row(tokenizer, questions[i])
            if len(row[0]) <= length:
                yield row


def blocks(
    tokenizer: Any,
    medical: Sequence[str],
    books: Sequence[str],
    length: int,
    medical_share: float,
    seed: int,
) -> Iterator[Row]:
    """Endless rows of plain text: the start of a medical document, or a place in a book."""
    draw = random.Random(f"decoder text {seed}")
    while True:
        if draw.random() < medical_share:
            text = draw.choice(medical)
        else:
            book = draw.choice(books)
            start = draw.randrange(max(1, len(book) - 8 * length))
            text = book[start : start + 8 * length]
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])[:length]
        if len(ids) > 1:
            yield ids, ids


def collate(rows: Sequence[Row], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, targets) of rows, padded at the end to the longest."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED)
    for i, (tokens, wanted) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        targets[i, : len(wanted)] = torch.tensor(wanted)
    return ids, mask, targets


def losses(model: Any, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of every token, (rows, width − 1); 0 where nothing is wanted."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    wanted = targets[:, 1:]
    flat = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(wanted)


def train(
    model: Any,
    rows: Iterator[Row],
    course: Course,
    settings: Settings,
    padding: int,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train the model in place: AdamW, bfloat16 autocast, float32 weights, no dropout."""
    model.eval()
    device = model.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    for step in range(course.steps):
        rise = min(1.0, (step + 1) / course.warmup)
        for group in optimizer.param_groups:
            group["lr"] = course.rate * rise * (course.steps - step) / course.steps
        batch = collate([next(rows) for _ in range(course.rows)], padding)
        ids, mask, targets = (part.to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16):
            every = losses(model, ids, mask, targets)
        loss = every.sum() / (targets[:, 1:] != IGNORED).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if report:
            report(step, float(loss.detach()))


@torch.inference_mode()
def losses_of(
    model: Any, rows: Sequence[Row], padding: int, batch: int = 8
) -> list[tuple[float, int]]:
    """(sum of the losses in nats, number of wanted tokens) of each row."""
    found = []
    for start in range(0, len(rows), batch):
        parts = collate(rows[start : start + batch], padding)
        ids, mask, targets = (part.to(model.device) for part in parts)
        sums = losses(model, ids, mask, targets).sum(1).tolist()
        counts = (targets[:, 1:] != IGNORED).sum(1).tolist()
        found += [(round(s, 4), int(c)) for s, c in zip(sums, counts, strict=True)]
    return found


@torch.inference_mode()
def answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], tokens: int, batch: int = 10
) -> list[tuple[str, bool]]:
    """(text, whether the turn ended) of greedy answers."""
    found = []
    for start in range(0, len(questions), batch):
        prompts = [prompt_ids(tokenizer, q) for q in questions[start : start + batch]]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):  # padded in front: answers begin in one column
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[:, width:].tolist()
        for reply in out:
            ended = tokenizer.eos_token_id in reply
            kept = reply[: reply.index(tokenizer.eos_token_id)] if ended else reply
            found.append((tokenizer.decode(kept), ended))
    return found


def judge(question: Question, text: str, ended: bool) -> tuple[bool, bool]:
    """(the answer has the form "#### number" and ended, and its number is right)."""
    match = FORM.search(text.rstrip()) if ended else None
    wanted = FORM.search("\n" + question.answer.split("\n")[-1])
    if match is None or wanted is None:
        return match is not None, False
    return True, _number(match[1]) == _number(wanted[1])


def _number(text: str) -> str:
    text = text.replace(",", "")
    return text.rstrip("0").rstrip(".") if "." in text else text
