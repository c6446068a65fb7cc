"""One output tensor: its operands, what the recipe asks for it, and what is left of the formula."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramdelta.encodings.plain import Plain
from paramdelta.errors import UsageError
from paramdelta.planning.cancellation import cancelled
from paramdelta.planning.coefficients import Factors
from paramdelta.planning.constants import why_copied
from paramdelta.planning.findings import Findings
from paramdelta.planning.pairs import fits, pairs_of
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.quantization import encoding_of
from paramdelta.planning.rows import by_token, correspond_by_number
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.sources import Sources
from paramdelta.recipe import Recipe
from paramdelta.schemes.sum import SUM

NO_DELTA = "no Δ for it"


@dataclass(frozen=True)
class Decisions:
    """What was decided about the whole model before its tensors.

    ``factors``: by number of the Δ. ``axes``: of the tokens, by name of each tensor with a row (or
    column) for each token.
    """

    recipe: Recipe
    sources: Sources
    settlement: Settlement
    factors: tuple[Factors, ...]
    axes: Mapping[str, int]


def plan_tensor(name: str, decided: Decisions, findings: Findings) -> OutputTensor:
    """Decide one output tensor.

    Raises:
        UsageError: the recipe cannot be applied to it.
    """
    new = decided.sources.new.views[name]
    changes = {n for n, each in enumerate(decided.factors) if each.scales[name].scale != 0}
    why = why_copied(name, decided.sources, changes, findings)
    if why:
        tensor = OutputTensor(name, Plain(new.dtype), new.shape, new, why=why)
    else:
        tensor = _mixed(name, decided, findings)
    tensor = _sparsified(_asked(tensor, decided.factors), decided)
    return cancelled(tensor) if tensor.linear else tensor


def _mixed(name: str, decided: Decisions, findings: Findings) -> OutputTensor:
    """A weight with all Δs that it has."""
    sources, settlement = decided.sources, decided.settlement
    new = sources.new.views[name]
    encoding = encoding_of(new, decided.recipe.dtype)
    pairs = [
        pair
        for each, factors in zip(sources.lineages, decided.factors, strict=True)
        for pair in pairs_of(name, each, factors.scales[name].scale, sources.new, findings)
    ]
    operand, kept = new, pairs
    as_is = False
    axis = decided.axes.get(name)
    if axis is not None and not correspond_by_number(name, axis, settlement, sources):
        operand, kept = by_token(name, axis, pairs, settlement, sources, findings)
        as_is = settlement.mode == "new-base"
    else:
        kept = [p for p in pairs if fits(p, sources.lineages[p.number], new, findings)]
    why = "vocabulary of the new base" if as_is else "" if kept else NO_DELTA
    return OutputTensor(name, encoding, operand.shape, operand, tuple(kept), why=why)


def _asked(tensor: OutputTensor, factors: tuple[Factors, ...]) -> OutputTensor:
    """The tensor with the coefficient that the recipe asks of every Δ."""
    found = [each.scales.get(tensor.name) for each in factors]
    there = {pair.number for pair in tensor.pairs}
    asked = tuple(
        chosen if number in there or (chosen is not None and chosen.scale == 0) else None
        for number, chosen in enumerate(found)
    )
    zero = all(chosen is not None and chosen.scale == 0 for chosen in found)
    why = f"scale 0: {found[0]}" if zero and tensor.why == NO_DELTA else tensor.why
    return replace(tensor, asked=asked, why=why)


def _sparsified(tensor: OutputTensor, decided: Decisions) -> OutputTensor:
    """The tensor with the recipe's scheme, and filters that drop elements of its Δs."""
    recipe = decided.recipe
    pairs = tuple(
        replace(
            pair,
            filters=recipe.filters(
                pair.number,
                tensor.name,
                decided.factors[pair.number].densities[tensor.name].scale,
            ),
        )
        for pair in tensor.pairs
    )
    twice = len({pair.number for pair in pairs}) < len(pairs)
    if twice and not (recipe.scheme.linear and not any(pair.filters for pair in pairs)):
        raise UsageError(
            "an adapter both replaces and adapts a tensor, which sparse Δs do not allow",
            code="adapter-replaces-sparse",
            where=tensor.name,
            remedy="merge the adapter into its base first",
        )
    return replace(tensor, pairs=pairs, scheme=recipe.scheme if pairs else SUM)
