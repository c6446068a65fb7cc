"""Plans: everything that a mix would do."""

import json
from typing import Any

from paramdelta.analysis.prediction import known_cases
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.findings import finding_facts, show_findings
from paramdelta.cli.show.recipe import formula_of, show_schedules
from paramdelta.cli.show.terminal import say
from paramdelta.engine.memory import Budget
from paramdelta.formats.components import component_of_file
from paramdelta.formats.view import View
from paramdelta.output.layout import Layout
from paramdelta.planning.account import Fate
from paramdelta.planning.bytelevel import read_out
from paramdelta.planning.plan import Plan
from paramdelta.units import show_count, show_size


def show_start(plan: Plan, as_json: bool, *, formula: bool = True) -> None:
    """What a command prints before it begins: formula, warnings and refusals."""
    if as_json:
        emit("plan", **plan_facts(plan))
        return
    if formula:
        say(formula_of(plan))
    show_findings(plan.findings, notes=False)


def show_plan(
    plan: Plan, budget: Budget, layout: Layout, free: int, tensors: bool, as_json: bool
) -> None:
    """The whole plan. ``free``: bytes of disk; ``tensors``: print every tensor as well."""
    if as_json:
        emit(
            "plan",
            **plan_facts(plan, tensors),
            projected_memory=budget.projected,
            workers=budget.workers,
            files={shard.name: shard.size for shard in layout.shards},
            free_disk=free,
        )
        return
    say(formula_of(plan))
    show_schedules(plan.recipe, plan.tensors)
    _show_sources(plan)
    _show_output(plan, budget, layout, free)
    _show_rows(plan)
    _show_companions(plan)
    _show_account(plan, tensors)
    if tensors:
        _show_tensors(plan)
    say("", "findings" if plan.findings else "no findings")
    show_findings(plan.findings, all_tensors=tensors)


def plan_facts(plan: Plan, tensors: bool = False) -> dict[str, Any]:
    """A plan for an event."""
    return plan.to_dict(tensors=tensors) | {"findings": finding_facts(plan.findings)}


def _show_sources(plan: Plan) -> None:
    say("", "sources")
    for source in plan.sources:
        say(
            f"  {source.role:<9} {source.location.pinned}",
            f"{'':12}{len(source.tensors)} tensors, {show_count(source.parameters)} parameters, "
            f"{show_size(source.nbytes)}, {_dtypes(source.tensors.values())}",
        )
    for pair, like in plan.likeness.items():
        say(
            f"  {pair}: {like.reading} (cosine {like.cosine:.4f}, relative distance "
            f"{like.distance:.4f}, on {like.tensors} matrices)"
        )
    for role, shift in plan.shifts.items():
        say(
            f"  the new base moved {shift.ratio:.2f} times as far from base as {role} did, "
            f"{shift.reading} (cosine {shift.cosine:.2f}); less comes across the farther it moved",
            *([f"    {known}"] if (known := known_cases(shift.ratio)) else []),
        )


def _show_output(plan: Plan, budget: Budget, layout: Layout, free: int) -> None:
    streams = [stream for tensor in plan.tensors for stream in tensor.streams]
    say("", "output")
    say(
        f"  tensors   {plan.mixed} mixed, {plan.copied} copied from the new base; "
        f"{show_count(plan.parameters)} parameters, {_dtypes(streams)}"
    )
    for number, component in enumerate(plan.components):
        own = [s for s in layout.shards if component is component_of_file(s.name, plan.components)]
        if own:
            first, last = own[0], own[-1]
            names = first.name if first is last else f"{first.name} to {last.name}, and their index"
            size = show_size(sum(shard.size for shard in own))
            say(f"  {'weights' if number == 0 else '':<9} {size} in {names}")
    say(
        f"  work      {show_size(plan.bytes_to_read)} to read, {show_size(plan.bytes_to_write)} to"
        f" write; {show_size(free)} of disk free"
    )
    if plan.transfers:
        each = ", ".join(f"{role} {show_size(size)}" for role, size in plan.transfers.items())
        say(
            f"  network   {show_size(sum(plan.transfers.values()))} to transfer ({each}); "
            f"{show_size(plan.fetched)} read for this plan"
        )
    say(
        f"  memory    at most {show_size(budget.projected)} beyond the interpreter and its "
        f"libraries ({budget.workers} workers, {show_size(budget.buffer)} a buffer)"
    )


def _show_rows(plan: Plan) -> None:
    if plan.vocabulary:
        say("", "rows of tokens")
    for case in plan.vocabulary:
        shown = ", ".join(repr(read_out(token)) for token in case.tokens)
        rest = " …" if case.count > len(case.tokens) else ""
        say(f"  {case.name:<18} {case.count:>8}" + (f"  {shown}{rest}" if case.tokens else ""))


def _show_companions(plan: Plan) -> None:
    if plan.companions:
        say("", "files beside the weights")
    for companion in plan.companions:
        changes = ", ".join(f"{k} = {_short(v)}" for k, v in companion.changes)
        say(
            f"  {companion.name:<28} from {companion.giver:<8}  {companion.why}",
            *([f"{'':31}changed: {changes}"] if changes else []),
        )


def _show_account(plan: Plan, whole: bool) -> None:
    """What becomes of the sources' files; unless ``whole``, only of those that stay behind."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for fate in plan.account:
        if whole or fate.fate is Fate.LEFT:
            groups.setdefault((fate.fate.value, fate.source, fate.reason), []).append(fate.name)
    if groups:
        say("", "files of the sources" if whole else "files left behind")
    for (kind, source, reason), names in groups.items():
        shown = names if whole else names[:4]
        rest = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        what = f"{kind}: {reason}" if whole else reason
        say(f"  {source:<9} {', '.join(shown)}{rest}", f"{'':12}{what}")


def _show_tensors(plan: Plan) -> None:
    say("", "tensors")
    for tensor in plan.tensors:
        terms = " ".join(f"{t.coefficient:+g}·{_place(t.view)}" for t in tensor.terms)
        say(
            f"  {tensor.name}  {tensor.dtype} {list(tensor.shape)}  "
            + (terms if tensor.pairs else "copied: " + tensor.why)
        )
        for stream in tensor.streams[1:]:
            shape = list(stream.shape)
            say(f"  {stream.name}  {stream.dtype} {shape}  stored with {tensor.name}")


def _place(view: View) -> str:
    """The folders that an operand is read from; "0" for zeros."""
    return "+".join(dict.fromkeys(part.blob.folder for part in view.parts)) or "0"


def _dtypes(tensors: Any) -> str:
    """The dtypes of tensors, the one with the most elements first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.elements
    return " + ".join(sorted(counts, key=lambda name: -counts[name]))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
