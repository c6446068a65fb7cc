"""One stage of training: a state and rows in, another state out.

There is one model object, compiled once for one shape of batch; stages load their weights into it.
A state is a dict of float32 tensors on the device, under Hugging Face names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the name that everybody knows)

from studies.gpu.model import Llama
from studies.gpu.sizes import Size
from studies.gpu.tokens import NOT_LEARNED, Rows

State = dict[str, Tensor]
WARM_UP = 0.05  # share of the steps over which the rate rises
LAST_RATE = 0.1  # share of the rate at the last step; it falls linearly


@dataclass(frozen=True)
class Source:
    """Rows, and the share of every batch that is drawn from them."""

    rows: Rows
    share: float


@dataclass(frozen=True)
class Stage:
    """What a stage was and how it went; losses are nats a learned token."""

    name: str
    steps: int
    rate: float
    seed: int
    seconds: float
    tokens_a_second: float
    first_loss: float
    last_loss: float  # mean of the last tenth

    def as_json(self) -> dict[str, object]:
        """Rounded for the results file."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


class Trainer:
    """Trains states of one size on one device, and scores batches with the same model."""

    def __init__(self, size: Size, device: torch.device, *, compiled: bool) -> None:
        self.size = size
        self.device = device
        self.model = Llama(size).to(device)
        self._loss = torch.compile(self._plain_loss) if compiled else self._plain_loss
        self._score = torch.compile(self._plain_score) if compiled else self._plain_score

    def fresh(self, seed: int) -> State:
        """Random weights."""
        torch.manual_seed(seed)
        return {k: v.to(self.device) for k, v in Llama(self.size).state_dict().items()}

    def _logits(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            return self.model(inputs).float().flatten(0, 1)

    def _plain_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            self._logits(inputs), labels.flatten().long(), ignore_index=NOT_LEARNED
        )

    def _plain_score(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits, wanted = self._logits(inputs), labels.flatten().long()
        learned = wanted != NOT_LEARNED
        loss = F.cross_entropy(logits, wanted, ignore_index=NOT_LEARNED, reduction="sum")
        right = ((logits.argmax(-1) == wanted) & learned).sum()
        return torch.stack((loss, right.float(), learned.sum().float()))

    def train(
        self, name: str, state: State, sources: list[Source], steps: int, rate: float, seed: int
    ) -> tuple[State, Stage]:
        """AdamW with warm-up and linear decay from `state`, which is left as it was."""
        self.model.load_state_dict(state)
        self.model.train()
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        vectors = [p for p in self.model.parameters() if p.dim() != 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        losses: list[Tensor] = []
        began = time.perf_counter()
        for step, (inputs, labels) in enumerate(self._batches(sources, steps, seed)):
            rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * rise * (1 - (1 - LAST_RATE) * step / steps)
            loss = self._loss(inputs, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        course = torch.stack(losses).tolist()
        seconds = time.perf_counter() - began
        tail = course[-max(1, steps // 10) :]
        stage = Stage(
            name=name,
            steps=steps,
            rate=rate,
            seed=seed,
            seconds=seconds,
            tokens_a_second=steps * self.size.rows * self.size.length / seconds,
            first_loss=course[0],
            last_loss=sum(tail) / len(tail),
        )
        return {k: v.clone() for k, v in self.model.state_dict().items()}, stage

    def _batches(
        self, sources: list[Source], steps: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of fixed make-up; every source is gone through in a new order each time."""
        generator = torch.Generator().manual_seed(seed)
        counts = [round(s.share * self.size.rows) for s in sources]
        counts[0] += self.size.rows - sum(counts)
        drawn = []
        for source, count in zip(sources, counts, strict=True):
            order: list[Tensor] = []
            while sum(map(len, order)) < count * steps:
                order.append(torch.randperm(len(source.rows), generator=generator))
            picks = torch.cat(order)[: count * steps].view(steps, count).numpy()
            drawn.append((source.rows, picks))
        for step in range(steps):
            parts = [
                [torch.from_numpy(array[picks[step]]) for array in (rows.inputs, rows.labels)]
                for rows, picks in drawn
            ]
            inputs, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            if self.device.type == "cuda":
                inputs, labels = inputs.pin_memory(), labels.pin_memory()
            yield (
                inputs.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    @torch.no_grad()
    def score(self, rows: Rows) -> tuple[float, float]:
        """Loss in nats and share of right tokens, over the learned tokens, of the loaded state."""
        self.model.eval()
        batch = self.size.rows
        sums = torch.zeros(3, device=self.device)
        for start in range(0, len(rows), batch):
            inputs = torch.from_numpy(rows.inputs[start : start + batch])
            labels = torch.from_numpy(rows.labels[start : start + batch])
            missing = batch - len(inputs)  # the batch keeps its shape: padded with nothing learned
            inputs = F.pad(inputs, (0, 0, 0, missing))
            labels = F.pad(labels, (0, 0, 0, missing), value=NOT_LEARNED)
            sums += self._score(inputs.to(self.device), labels.to(self.device))
        loss, right, learned = sums.tolist()
        return loss / learned, right / learned
