"""Ways to combine two Δ: each takes Δ₁ and Δ₂ (and what it needs besides) and gives one Δ."""

from __future__ import annotations

import torch

from studies.lineage.model import Weights
from studies.transfer.mix import to_bf16

Delta = dict[str, torch.Tensor]  # float64, by tensor name


def delta(post: Weights, base: Weights) -> Delta:
    """post − base in float64."""
    return {name: post[name].double() - base[name].double() for name in base}


def added(new: Weights, change: Delta) -> Weights:
    """new + change, each tensor rounded once to BF16 and returned as float32."""
    return {name: to_bf16(w.double() + change[name]).float() for name, w in new.items()}


def scaled(change: Delta, scale: float) -> Delta:
    """scale · Δ."""
    return {name: scale * d for name, d in change.items()}


def total(*changes: Delta) -> Delta:
    """The sum of several Δ."""
    return {name: sum(c[name] for c in changes[1:]) + changes[0][name] for name in changes[0]}


def common(first: Delta, second: Delta) -> Delta:
    """Per weight, the smaller of the two in magnitude if their signs agree, else 0."""
    return {
        name: torch.where(
            d.sign() == second[name].sign(),
            d.sign() * torch.minimum(d.abs(), second[name].abs()),
            0.0,
        )
        for name, d in first.items()
    }


def norm(change: Delta) -> float:
    """The length of Δ over all tensors."""
    return float(sum(d.square().sum() for d in change.values()) ** 0.5)
