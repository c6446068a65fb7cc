"""Single output tensors: their formulas, operands and rules."""

from collections.abc import Sequence

from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say
from paramdelta.planning.explanation import Explanation, stored

PARTS = 4  # stored tensors of one operand that are named


def show_explanations(explanations: Sequence[Explanation], as_json: bool) -> None:
    """Every explanation."""
    if as_json:
        emit("explain", tensors=[each.facts for each in explanations])
        return
    for each in explanations:
        _show(each)


def _show(each: Explanation) -> None:
    tensor = each.tensor
    say(f"{tensor.name}  {tensor.dtype} {list(tensor.shape)}", bold=True)
    say(f"  = {each.formula}" + (f"   ({tensor.why})" if tensor.why else ""))
    if each.reduced:
        say(f"  = {each.reduced}   (the rest cancels out and is not read)")
    say("  operands" + (", with the coefficients of what is left" * (not tensor.linear)))
    wide = max((len(" = ".join(o.symbols)) for o in each.operands), default=0)
    for operand in each.operands:
        lines = [stored(part) for part in operand.view.parts]
        rest = len(lines) - PARTS
        lines[PARTS:] = [f"and {rest} more"] if rest > 0 else []
        label = f"    {operand.coefficient:<+8g} {' = '.join(operand.symbols):<{wide}}  "
        blank = " " * len(label)
        say(*((blank if number else label) + text for number, text in enumerate(lines or [""])))
    say("  coefficients" if each.reasons else "")
    for delta, scale, why in each.reasons:
        say(f"    {'none' if scale is None else f'{scale:g}':<8} {delta}: {why}")
