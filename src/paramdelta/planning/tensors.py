"""One output tensor: its operands, what the recipe asks for it, and what is left of the formula."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramdelta.encodings.encoding import Encoding
from paramdelta.encodings.plain import Plain
from paramdelta.errors import UsageError
from paramdelta.formats.view import View
from paramdelta.planning.cancellation import cancelled
from paramdelta.planning.coefficients import Coefficient, Factors
from paramdelta.planning.constants import why_copied
from paramdelta.planning.findings import Findings
from paramdelta.planning.pairs import fits, pairs_of
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.quantization import encoding_of
from paramdelta.planning.rows import by_token, correspond_by_number
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.sources import Sources
from paramdelta.recipe import Recipe
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.sum import SUM

NO_DELTA = "no Δ for it"


@dataclass(frozen=True)
class Decisions:
    """What was decided about the whole model before its tensors.

    ``factors``: by number of the Δ. ``axes``: of the tokens, by name of each tensor with a row (or
    column) for each token. ``whole``: no operand is left out, although it cancels out.
    """

    recipe: Recipe
    sources: Sources
    settlement: Settlement
    factors: tuple[Factors, ...]
    axes: Mapping[str, int]
    whole: bool = False


def plan_tensor(name: str, decided: Decisions, findings: Findings) -> OutputTensor:
    """Decide one output tensor.

    Raises:
        UsageError: the recipe cannot be applied to it.
    """
    new = decided.sources.new.views[name]
    scales = [each.scales.get(name) for each in decided.factors]
    changes = {n for n, chosen in enumerate(scales) if chosen is not None and chosen.scale != 0}
    why = why_copied(name, decided.sources, changes, findings)
    operand, pairs = new, list[Pair]()
    encoding: Encoding = Plain(new.dtype)
    if not why:
        encoding = encoding_of(new, decided.recipe.dtype)
        operand, pairs, why = _mixed(name, decided, findings)
    asked, why = _asked(scales, pairs, why)
    scheme = decided.recipe.scheme if pairs else SUM
    sparse = tuple(_sparsified(name, pairs, decided))
    tensor = OutputTensor(name, encoding, operand.shape, operand, sparse, scheme, why, asked)
    return cancelled(tensor) if tensor.linear and not decided.whole else tensor


def taken_tensor(name: str, view: View, decided: Decisions) -> OutputTensor:
    """An output tensor that is one of post's."""
    encoding = encoding_of(view, decided.recipe.dtype) if view.kind.mixable else Plain(view.dtype)
    asked, why = _asked([each.scales.get(name) for each in decided.factors], [], "taken from post")
    return OutputTensor(name, encoding, view.shape, view, why=why, asked=asked)


def _mixed(name: str, decided: Decisions, findings: Findings) -> tuple[View, list[Pair], str]:
    """The new base's operand of a weight, all Δs that it has, and why it has none."""
    sources, settlement = decided.sources, decided.settlement
    new = sources.new.views[name]
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
    return operand, kept, "vocabulary of the new base" if as_is else "" if kept else NO_DELTA


def _asked(
    found: list[Coefficient | None], pairs: list[Pair], why: str
) -> tuple[tuple[Coefficient | None, ...], str]:
    """The coefficient that the recipe asks of every Δ, and why the tensor is only copied."""
    there = {pair.number for pair in pairs}
    asked = tuple(
        chosen if number in there or (chosen is not None and chosen.scale == 0) else None
        for number, chosen in enumerate(found)
    )
    if why == NO_DELTA and all(chosen is not None and chosen.scale == 0 for chosen in found):
        why = f"scale 0: {found[0]}"
    return asked, why


def _sparsified(name: str, pairs: list[Pair], decided: Decisions) -> list[Pair]:
    """The Δs of a tensor with the filters that drop elements of them."""
    recipe = decided.recipe
    densities = [decided.factors[pair.number].densities[name].scale for pair in pairs]
    filters = [
        recipe.filters(pair.number, name, density)
        for pair, density in zip(pairs, densities, strict=True)
    ]
    if any(filters):
        pairs = [replace(pair, filters=f) for pair, f in zip(pairs, filters, strict=True)]
    twice = len({pair.number for pair in pairs}) < len(pairs)
    if twice and not (recipe.scheme.linear and not any(filters)):
        raise UsageError(
            "an adapter both replaces and adapts a tensor, which sparse Δs do not allow",
            code="adapter-replaces-sparse",
            where=name,
            remedy="merge the adapter into its base first",
        )
    return pairs
