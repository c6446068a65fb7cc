"""A recipe as a formula on one line: with its addresses, or in the paper's symbols."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from paramdelta.recipe.schedule import Schedule

if TYPE_CHECKING:
    from paramdelta.recipe.model import Recipe

MINUS = "−"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def with_addresses(recipe: "Recipe") -> str:
    """``new-base + 0.5 · (post - base)``, in characters that can be typed as far as possible."""
    differences = [
        f"({delta.address} - {delta.base})" if delta.base is not None else f"({delta.address})"
        for delta in recipe.deltas
    ]
    return written(recipe, str(recipe.new_base), differences, " · ", "-")


def in_symbols(recipe: "Recipe") -> str:
    """``Θ = Θ'_base + 0.5·(Θ_post − Θ_base)``.

    ``s(name)`` is a scale that differs between tensors; ``Δ`` an adapter or a stored Δ.
    """
    differences = []
    for number, delta in enumerate(recipe.deltas, 1):
        tag = str(number) if len(recipe.deltas) > 1 else ""
        differences.append(
            f"Δ{tag}" if delta.base is None else f"(Θ_post{tag} {MINUS} Θ_base{tag})"
        )
    return written(recipe, "Θ = Θ'_base", differences)


def written(
    recipe: "Recipe",
    first: str,
    differences: Sequence[str],
    times: str = "·",
    minus: str = MINUS,
) -> str:
    """``first`` and all Δs of a recipe. ``differences``: the text of each, sums in parentheses."""
    factors = [factor(recipe, number, times) for number in range(len(differences))]
    return combined(recipe, first, differences, factors, range(len(differences)), minus)


def combined(
    recipe: "Recipe",
    first: str,
    differences: Iterable[str],
    factors: Iterable[tuple[int, str]],
    numbers: Iterable[int],
    minus: str = MINUS,
) -> str:
    """``first`` and some Δs of a recipe, combined as its scheme writes it.

    ``differences``, ``factors`` and ``numbers``: of each Δ its text, its sign and factor (see
    `factor`), and its number from 0.
    """
    terms = []
    for difference, (sign, times), number in zip(differences, factors, numbers, strict=True):
        shown = difference
        for name in _filters(recipe, number):
            shown = f"{name}{shown}" if shown.startswith("(") else f"{name}({shown})"
        terms.append((minus if sign < 0 else "+", times + shown))
    return recipe.scheme.formula(first, terms, minus)


def factor(recipe: "Recipe", number: int, times: str = "·") -> tuple[int, str]:
    """Sign and size of a Δ's scale, as a factor before it. ``number``: from 0.

    ``times`` stands behind the factor. A factor of 1 is empty.
    """
    scale = recipe.deltas[number].scale
    if isinstance(scale, Schedule):
        index = str(number + 1).translate(_SUBSCRIPTS) if len(recipe.deltas) > 1 else ""
        return 1, f"s{index}(name){times}"
    return (-1 if scale < 0 else 1), "" if abs(scale) == 1 else f"{abs(scale):g}{times}"


def _filters(recipe: "Recipe", number: int) -> list[str]:
    """The filters of a Δ in the order in which they apply. ``number``: from 0."""
    found = []
    density = recipe.density(number)
    if isinstance(density, Schedule):
        found.append("top%")
    elif density < 1:
        found.append(f"top{100 * density:g}%")
    dare = recipe.deltas[number].dare
    if dare is not None:
        found.append(f"DARE{dare.drop:g}")
    return found
