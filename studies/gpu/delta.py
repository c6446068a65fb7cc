"""The arithmetic of the paper, its controls, and the norms that may tell when it works.

Θ_ParamΔ = Θ'_base + α (Θ_post − Θ_base)
"""

from __future__ import annotations

import torch

from studies.gpu.training import State


def difference(one: State, other: State) -> State:
    """One state less another, tensor by tensor."""
    return {name: one[name] - other[name] for name in one}


def add(state: State, delta: State, alpha: float) -> State:
    """A state and α times a Δ."""
    return {name: state[name] + alpha * delta[name] for name in state}


def random_like(delta: State, seed: int) -> State:
    """Gaussian noise with the norm of Δ in every tensor."""
    torch.manual_seed(seed)
    noise = {name: torch.randn_like(tensor) for name, tensor in delta.items()}
    return {name: noise[name] * (delta[name].norm() / noise[name].norm()) for name in delta}


def permuted(delta: State, seed: int) -> State:
    """The numbers of Δ in another order within every tensor."""
    torch.manual_seed(seed)
    return {
        name: tensor.flatten()[torch.randperm(tensor.numel(), device=tensor.device)].view_as(tensor)
        for name, tensor in delta.items()
    }


def norm(state: State) -> float:
    """The Euclidean norm of all numbers together."""
    return float(torch.stack([t.double().square().sum() for t in state.values()]).sum().sqrt())


def cosine(one: State, other: State) -> float:
    """The cosine of the angle between two states; 0 where one of them is nothing."""
    product = float(torch.stack([(one[n].double() * other[n].double()).sum() for n in one]).sum())
    scale = norm(one) * norm(other)
    return product / scale if scale else 0.0
