"""What an output tensor is made of, and why: its formula in numbers, operands and rules."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.formats.view import Tensor, View
from paramdelta.planning.coefficients import matching, near
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.recipe.formula import combined
from paramdelta.storage.blob import Blob


@dataclass(frozen=True)
class Operand:
    """What is read: a view, the symbols of its checkpoints, and its coefficient in the sum."""

    symbols: tuple[str, ...]
    coefficient: float
    view: View


@dataclass(frozen=True)
class Explanation:
    """One output tensor.

    ``formula``: as the recipe asks. ``reduced``: what is left of it if operands cancel out; else
    empty. ``reasons``: for every Δ its symbol, its coefficient and the rule that gives it.
    """

    tensor: OutputTensor
    formula: str
    reduced: str
    operands: tuple[Operand, ...]
    reasons: tuple[tuple[str, float | None, str], ...]

    @property
    def facts(self) -> dict[str, Any]:
        """The explanation as plain values, for JSON."""
        return {
            "name": self.tensor.name,
            "dtype": self.tensor.dtype,
            "shape": list(self.tensor.shape),
            "formula": self.formula,
            "reduced": self.reduced or None,
            "why": self.tensor.why,
            "operands": [
                {
                    "symbols": list(operand.symbols),
                    "coefficient": operand.coefficient,
                    "stored": [
                        {
                            "file": str(part.blob),
                            "name": part.name,
                            "dtype": part.dtype,
                            "shape": list(part.shape),
                        }
                        for part in operand.view.parts
                    ],
                }
                for operand in self.operands
            ],
            "coefficients": [
                {"delta": delta, "coefficient": scale, "why": why}
                for delta, scale, why in self.reasons
            ],
        }


def explain(plan: Plan, pattern: str) -> tuple[Explanation, ...]:
    """Explain the output tensors whose names a glob matches.

    Raises:
        UsageError: it matches none.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    found = matching(pattern, tensors)
    if not found:
        raise UsageError(
            f"no tensor of the output matches {pattern!r}",
            code="no-such-tensor",
            expected="a name, or a glob such as '*.0.mlp*'",
            remedy=near(pattern, tensors),
        )
    owners: dict[Blob, list[str]] = {}
    apart = {post.role for post, base in plan.lineages if base is None}
    for source in plan.sources:
        role = source.role.replace(" ", "")
        symbol = role.replace("post", "Δ") if source.role in apart else f"Θ_{role}"
        for file in source.sources:
            owned = owners.setdefault(file.blob, [])
            owned.append(symbol if source is not plan.new_base else "Θ'_base")
    return tuple(_explain(plan, tensors[name], owners) for name in found)


def _explain(plan: Plan, tensor: OutputTensor, owners: dict[Blob, list[str]]) -> Explanation:
    written: list[tuple[str, tuple[int, str], int]] = []
    left = {pair.number: pair.filters for pair in tensor.pairs if pair.filters}
    reasons: list[tuple[str, float | None, str]] = []
    several = len(plan.lineages) > 1
    for number, chosen in enumerate(tensor.asked, 1):
        tag = str(number) if several else ""
        if chosen is None:
            reasons.append((f"Δ{tag}", None, "the tensor has no such Δ"))
            continue
        filters = " and of these ".join(map(str, left.get(number - 1, ())))
        thinned = f"; of its elements, {filters}" if filters else ""
        reasons.append((f"Δ{tag}", chosen.scale, f"{chosen}{thinned}"))
        if chosen.scale != 0:
            apart = plan.lineages[number - 1][1] is None
            what = f"Δ{tag}" if apart else f"(Θ_post{tag} − Θ_base{tag})"
            factor = "" if abs(chosen.scale) == 1 else f"{abs(chosen.scale):g}·"
            written.append((what, (-1 if chosen.scale < 0 else 1, factor), number - 1))
    whats, factors, numbers = zip(*written, strict=True) if written else ((), (), ())
    formula = combined(plan.recipe, "Θ'_base", whats, factors, numbers)
    sums = [Fraction(0)] * len(tensor.views)
    for place, term in zip(tensor.places, tensor.terms, strict=True):
        sums[place] += Fraction(term.coefficient)
    operands = tuple(
        Operand(_symbols(view, owners), float(total), view)
        for view, total in zip(tensor.views, sums, strict=True)
        if view.parts
    )
    reduced = ""
    if tensor.reduced:
        reduced = _symbols(tensor.new, owners)[0]
        for pair in tensor.pairs:
            post, base = (_symbols(view, owners)[0] for view in (pair.post, pair.base))
            reduced += _added(pair.scale, f"({post} − {base})")
    return Explanation(tensor, formula, reduced, operands, tuple(reasons))


def _added(scale: float, difference: str) -> str:
    factor = "" if abs(scale) == 1 else f"{abs(scale):g}·"
    return f" {'−' if scale < 0 else '+'} {factor}{difference}"


def _symbols(view: View, owners: dict[Blob, list[str]]) -> tuple[str, ...]:
    return tuple(owners.get(view.parts[0].blob, ["?"])) if view.parts else ("0",)


def stored(part: Tensor) -> str:
    """A stored tensor, for people: file, name, dtype and shape."""
    return f"{part.blob.folder}/{part.blob.name}  {part.name}  {part.dtype} {list(part.shape)}"
