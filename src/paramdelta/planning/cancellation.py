"""Operands that cancel out of an output tensor, so they are never read.

``Θ' + a (P − B) − a (Q − B)`` is ``Θ' + a (P − Q)``; and where Θ' is B itself, ``B + (P − B)`` is P
alone, and ``B + ½ (P − B) + ½ (Q − B)`` is ``P + ½ (Q − P)``. As real numbers they are the same;
the shorter form is read, and rounded, once.
"""

from dataclasses import replace
from fractions import Fraction

from paramdelta.formats.view import View
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.pair import Pair


def cancelled(tensor: OutputTensor) -> OutputTensor:
    """The same tensor without the operands whose coefficients sum to zero."""
    if not tensor.pairs:
        return tensor
    new, pairs = tensor.new, [p for p in tensor.pairs if p.post != p.base]
    while (operand := _needless(new, pairs)) is not None:
        new, pairs = _without(operand, new, pairs)
    if len(pairs) == len(tensor.pairs):
        return tensor
    return replace(tensor, new=new, pairs=tuple(pairs), reduced=True)


def _needless(new: View, pairs: list[Pair]) -> View | None:
    """An operand whose coefficients sum to zero; no scale is zero."""
    operands = [new, *(view for pair in pairs for view in (pair.base, pair.post))]
    if len(set(operands)) == len(operands):
        return None
    sums: list[tuple[View, Fraction]] = [(new, Fraction(1))]
    for pair in pairs:
        scale = Fraction(pair.scale)
        for view, coefficient in ((pair.base, -scale), (pair.post, scale)):
            for number, (other, total) in enumerate(sums):
                if other == view:
                    sums[number] = (other, total + coefficient)
                    break
            else:
                sums.append((view, coefficient))
    return next((v for v, total in sums if total == 0 and v.parts), None)


def _without(operand: View, new: View, pairs: list[Pair]) -> tuple[View, list[Pair]]:
    """The formula with another operand, the pivot, in the place of one that cancels out.

    Every pair with it becomes ``± scale (other − pivot)``: what that takes away from the pivot is
    what the pivot's own pair, which goes, would have given. No coefficient is added to another, so
    none is rounded. The pivot is the one that is taken away most, for the sum of a pair at scale 1
    is the simplest.
    """
    touching = [
        replace(pair, post=other, scale=scale)
        for pair in pairs
        for here, other, scale in (
            (pair.base, pair.post, pair.scale),
            (pair.post, pair.base, -pair.scale),
        )
        if here == operand
    ]
    pivot = min(touching, key=lambda pair: pair.scale).post
    rest = [pair for pair in pairs if operand not in (pair.post, pair.base)]
    moved = [replace(pair, base=pivot) for pair in touching if pair.post != pivot]
    return (pivot if new == operand else new), [*rest, *moved]
