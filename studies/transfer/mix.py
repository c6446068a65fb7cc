"""The formula on weights in memory, rounded as paramdelta rounds it: wide, and once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studies.lineage.model import Weights

Term = tuple[Weights, Weights, float]  # post, base, scale


def mix(new: Weights, terms: Sequence[Term]) -> Weights:
    """new + Σ scale · (post − base), each tensor rounded to bf16 and returned as float32.

    The sum is exact for scales of few binary digits (1, 0.75, −1). With others the float64 sum
    can fall on a tie that the exact sum just misses (0.7 · 5 is not 3.5 in binary), and goes the
    wrong way there: with 0.7 for 4 values in a hundred of the shipped lineage, by one bf16 step.
    The command keeps twice the digits and rounds these right; to the study they are noise.
    """
    result = {}
    for name, start in new.items():
        total = start.double()
        for post, base, scale in terms:
            total = total + scale * (post[name].double() - base[name].double())
        result[name] = to_bf16(total).float()
    return result


def to_bf16(wide: Tensor) -> Tensor:
    """The float64 values rounded once to the nearest bf16, ties to even.

    torch goes from float64 to bf16 by way of float32, which rounds twice. That matters only
    where the float32 is a tie between two bf16 but the float64 was not: there it is moved a
    hair back towards the float64 first.
    """
    narrow = wide.float()
    rest = wide - narrow.double()
    tie = (narrow.view(torch.int32) & 0xFFFF) == 0x8000
    towards = torch.where(rest > 0, torch.inf, -torch.inf).float()
    moved = torch.nextafter(narrow, towards)
    return torch.where(tie & (rest != 0), moved, narrow).to(torch.bfloat16)


def without(post: Weights, base: Weights, part: str) -> Weights:
    """post, but with the base's values in `part`: so its Δ is nothing there."""
    return {name: base[name] if part_of(name) == part else w for name, w in post.items()}


def part_of(name: str) -> str:
    """Which part of the model a tensor is: embedding, attention, mlp or norms."""
    if "embed_tokens" in name:
        return "embedding"
    if "self_attn" in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    return "norms"


def permuted(post: Weights, base: Weights, seed: int) -> Weights:
    """A post whose Δ has the same values in every tensor, at other places."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: base[name]
        + (w - base[name]).flatten()[torch.randperm(w.numel(), generator=generator)].view_as(w)
        for name, w in post.items()
    }


def randomised(post: Weights, base: Weights, seed: int) -> Weights:
    """A post whose Δ is normal noise with, in every tensor, the norm of the true Δ."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, w in post.items():
        noise = torch.randn(w.shape, generator=generator)
        result[name] = base[name] + noise * ((w - base[name]).norm() / noise.norm())
    return result
