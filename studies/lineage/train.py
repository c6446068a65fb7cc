"""Training: documents or conversations in packed rows, AdamW, one learning-rate curve."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from tokenizers import Tokenizer
from torch import Tensor

from studies.lineage.model import Shape, Weights, hidden_states, logits
from studies.lineage.text import Turn
from studies.lineage.tokenizer import document_ids, turn_ids

IGNORED = -100
Sequence = tuple[list[int], int]  # token ids, and how many at the start are not to be learned


@dataclass(frozen=True)
class Course:
    """How to train: a warm-up, then a straight line down to `final` of the peak rate."""

    steps: int
    rate: float
    rows: int = 12
    length: int = 120
    warmup: int = 50
    final: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.rate * rise * (1 - (1 - self.final) * step / self.steps)


@dataclass
class Log:
    """What a training reports: every so many steps the mean loss, in nats a token."""

    every: int = 100
    lines: list[dict[str, float]] = field(default_factory=list)
    show: bool = False

    def add(self, step: int, loss: float, seconds: float) -> None:
        """Note a figure."""
        self.lines.append({"step": step, "loss": round(loss, 4), "seconds": round(seconds, 1)})
        if self.show:
            print(f"  step {step:5d}  loss {loss:.3f}  {seconds:.0f} s", flush=True)


def documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Sequence]:
    """Documents to be learned whole."""
    for text in texts:
        yield document_ids(tokenizer, text), 1


def conversations(tokenizer: Tokenizer, turns: Iterable[Turn]) -> Iterator[Sequence]:
    """Conversations of which only the reply is to be learned."""
    for turn in turns:
        prompt, reply = turn_ids(tokenizer, turn)
        yield prompt + reply, len(prompt)


def batches(
    sequences: Iterator[Sequence], rows: int, length: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Whole sequences packed into rows: (ids, targets, allowed), the last as in hidden_states.

    A sequence sees only itself. Each row is filled from a few waiting sequences, the first that
    fits next; every sequence has to fit into a row.
    """
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    waiting = list(itertools.islice(sequences, 24))
    while True:
        ids = torch.zeros(rows, length, dtype=torch.long)
        owner = torch.zeros(rows, length, dtype=torch.long)
        targets = torch.full((rows, length), IGNORED)
        for row in range(rows):
            start, count = 0, 0
            while (place := _first_that_fits(waiting, length - start)) is not None:
                tokens, given = waiting.pop(place)
                waiting.append(next(sequences))
                end, count = start + len(tokens), count + 1
                ids[row, start:end] = torch.tensor(tokens)
                owner[row, start:end] = count
                targets[row, start + given - 1 : end - 1] = torch.tensor(tokens[given:])
                start = end
        allowed = (owner[:, :, None] == owner[:, None, :]) & causal
        yield ids, targets, allowed[:, None]


def _first_that_fits(waiting: list[Sequence], room: int) -> int | None:
    return next((i for i, (tokens, _) in enumerate(waiting) if len(tokens) <= room), None)


def loss_of(weights: Weights, shape: Shape, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean loss of a batch in nats a learned token."""
    ids, targets, allowed = batch
    features = hidden_states(weights, shape, ids, allowed)
    learned = targets != IGNORED
    return F.cross_entropy(logits(weights, features[learned]), targets[learned])


def train(
    weights: Weights,
    shape: Shape,
    sequences: Iterator[Sequence],
    course: Course,
    log: Log | None = None,
    at_step: Callable[[int, Weights], None] | None = None,
    device: str = "cpu",
) -> Weights:
    """Train a copy of `weights` for the course and return it, in float32.

    `at_step` is called with the number of steps done and the weights after each step.
    """
    trained = {name: w.detach().clone().to(device).requires_grad_() for name, w in weights.items()}
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    began, total = time.monotonic(), 0.0
    packed = batches(sequences, course.rows, course.length)
    for step in range(course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.rate_at(step)
        loss = loss_of(trained, shape, tuple(part.to(device) for part in next(packed)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += float(loss.detach())
        if log and (step + 1) % log.every == 0:
            log.add(step + 1, total / log.every, time.monotonic() - began)
            total = 0.0
        if at_step:
            at_step(step + 1, trained)
    return {name: w.detach().cpu() for name, w in trained.items()}
