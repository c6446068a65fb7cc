"""Recipes: formulas, and scales that differ between tensors as tables."""

from collections import Counter
from collections.abc import Sequence

from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.recipe import Recipe, Schedule
from paramdelta.recipe.formula import factor, written


def show_recipe(recipe: Recipe, as_json: bool) -> None:
    """A recipe in symbols, the addresses that they stand for, and its choices."""
    if as_json:
        emit("recipe", formula=recipe.symbols, **recipe.to_dict())
        return
    say(recipe.symbols, "")
    for symbol, address in _addresses(recipe):
        say(f"  {symbol:<10} {address}")
    show_schedules(recipe)
    plain = recipe.to_dict()
    choices = {key: plain[key] for key in plain if key not in ("new_base", "deltas")}
    if choices:
        say()
    for key, value in choices.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            text = ", ".join(f"{name} {part}" for name, part in value.items())
        say(f"  {key:<10} {text}")


def show_schedules(recipe: Recipe, tensors: Sequence[OutputTensor] = ()) -> None:
    """Scales and densities that differ between tensors, as tables.

    ``tensors``: of a plan; then the table says how many tensors each rule applies to.
    """
    for number, delta in enumerate(recipe.deltas):
        if isinstance(delta.scale, Schedule):
            say("", f"{factor(recipe, number, '')[1]}: by the first rule that applies")
            asked = (tensor.asked[number] for tensor in tensors if tensor.asked)
            counts = Counter(id(chosen.rule) for chosen in asked if chosen is not None)
            _show_table(delta.scale, counts if tensors else None)
    for number, delta in enumerate(recipe.deltas, 1):
        if isinstance(delta.density, Schedule):
            tag = number if len(recipe.deltas) > 1 else ""
            say("", f"density of Δ{tag}: by the first rule that applies")
            _show_table(delta.density, None)


def formula_of(plan: Plan) -> str:
    """A plan's formula with the short names of its checkpoints."""
    differences = [
        f"({post.location.name}" + (f" − {base.location.name})" if base is not None else ")")
        for post, base in plan.lineages
    ]
    return written(plan.recipe, plan.new_base.location.name, differences, " · ")


def _addresses(recipe: Recipe) -> list[tuple[str, str]]:
    """What the symbols of a recipe's formula stand for."""
    found = [("Θ'_base", str(recipe.new_base))]
    for number, delta in enumerate(recipe.deltas, 1):
        tag = str(number) if len(recipe.deltas) > 1 else ""
        if delta.base is None:
            found.append((f"Δ{tag}", delta.address))
        else:
            found += [(f"Θ_post{tag}", delta.address), (f"Θ_base{tag}", str(delta.base))]
    return found


def _show_table(schedule: Schedule, counts: Counter[int] | None) -> None:
    """One line for each rule and span. ``counts``: tensors by the id of their rule."""
    rows = schedule.table
    wide = max(len(subject) for subject, _, _ in rows)
    rules = iter(schedule.rules)
    for subject, layers, scale in rows:
        where, count = f"layers {layers}" if layers else "", ""
        if subject and counts is not None:  # the first line of a rule
            number = counts[id(next(rules))]
            count = f"{number:>6} tensor{'s' * (number != 1)}"
        say(f"  {subject:<{wide}}  {where:<13}  {scale:<14}{count}".rstrip())
