"""What can be known of a transfer before anything is evaluated: sizes, angles, loss barriers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from studies.lineage.model import Shape, Weights
from studies.lineage.train import loss_of


def flat(weights: Weights, base: Weights | None = None) -> Tensor:
    """All weights, or what they differ by from `base`, as one float64 vector."""
    return torch.cat(
        [
            (w.double() - base[name].double() if base else w.double()).flatten()
            for name, w in weights.items()
        ]
    )


@torch.no_grad()
def text_loss(
    weights: Weights, shape: Shape, text: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> float:
    """Mean loss on batches of text, in nats a token."""
    return math.fsum(float(loss_of(weights, shape, batch)) for batch in text) / len(text)


def barrier(
    start: Weights, end: Weights, shape: Shape, text: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> float:
    """How far the loss rises, on the straight line from start to end, above the line of losses.

    In nats a token, at a quarter, the half and three quarters of the way; never below 0.
    """
    first, last = text_loss(start, shape, text), text_loss(end, shape, text)
    rises = [0.0]
    for share in (0.25, 0.5, 0.75):
        between = {name: torch.lerp(w, end[name], share) for name, w in start.items()}
        rises.append(text_loss(between, shape, text) - (1 - share) * first - share * last)
    return max(rises)


def measure(
    base: Weights,
    post: Weights,
    new: Weights,
    shape: Shape,
    text: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> dict[str, float]:
    """Every predictor of transfer: norms, their ratios, the cosine, the barrier on `text`."""
    delta, shift = flat(post, base), flat(new, base)
    size, moved = float(delta.norm()), float(shift.norm())
    whole = float(flat(base).norm())
    return {
        "base norm": whole,
        "delta norm": size,
        "shift norm": moved,
        "shift / delta": moved / size,
        "shift / base": moved / whole,
        "cosine": float(delta @ shift) / (size * moved) if moved else 0.0,
        "barrier": barrier(base, new, shape, text),
    }
