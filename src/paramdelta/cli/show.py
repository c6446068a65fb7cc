"""What the commands print: plans, progress, results. A live bar on a terminal, lines elsewhere."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from paramdelta.api import Extracted, ExtractedAdapter, Mix, Swept
from paramdelta.engine.job import Progress
from paramdelta.engine.memory import Budget
from paramdelta.formats.view import View
from paramdelta.jobs.verify.verification import Verification
from paramdelta.output.layout import Layout
from paramdelta.planning.explanation import Explanation, stored
from paramdelta.planning.findings import Finding, Severity
from paramdelta.planning.plan import Plan, finding_facts, summary
from paramdelta.planning.sweep import Sweep
from paramdelta.recipe import Recipe
from paramdelta.schedule import Schedule
from paramdelta.units import show_count, show_duration, show_size

if TYPE_CHECKING:
    from paramdelta.check.report import Report
    from paramdelta.demo.chat import Answer
    from paramdelta.demo.tour import Question, Scores

_COLOURS = {Severity.REFUSED: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
LINE_EVERY = 5.0  # seconds between two progress lines where there is no terminal
EVENT_EVERY = 0.5  # seconds between two JSON events
PARTS = 4  # stored tensors of one operand that are named


def plan(plan: Plan, budget: Budget, layout: Layout, free: int, tensors: bool) -> None:
    """The whole plan, for people."""
    typer.echo(_formula(plan))
    schedules(plan.recipe, plan)
    typer.echo("\nsources")
    for source in plan.sources:
        typer.echo(
            f"  {source.role:<9} {source.location.pinned}\n"
            f"{'':12}{len(source.tensors)} tensors, {show_count(source.parameters)} parameters, "
            f"{show_size(source.nbytes)}, {_dtypes(source.tensors.values())}"
        )
    for pair, like in plan.likeness.items():
        typer.echo(
            f"  {pair}: cosine {like.cosine:.4f}, relative distance {like.distance:.4f}"
            f" (on {like.tensors} matrices)"
        )
    typer.echo("\noutput")
    typer.echo(
        f"  tensors   {plan.mixed} mixed, {plan.copied} copied from the new base; "
        f"{show_count(plan.parameters)} parameters, {_dtypes(plan.tensors)}"
    )
    first, last = layout.shards[0], layout.shards[-1]
    names = first.name if first is last else f"{first.name} to {last.name}, and their index"
    typer.echo(f"  weights   {show_size(layout.size)} in {names}")
    typer.echo(
        f"  work      {show_size(plan.bytes_to_read)} to read, {show_size(plan.bytes_to_write)} to"
        f" write; {show_size(free)} of disk free"
    )
    typer.echo(
        f"  memory    at most {show_size(budget.projected)} beyond the interpreter and its "
        f"libraries ({budget.workers} workers, {show_size(budget.buffer)} a buffer)"
    )
    if plan.vocabulary:
        typer.echo("\nrows of tokens")
    for case in plan.vocabulary:
        shown = ", ".join(repr(token) for token in case.tokens)
        rest = " …" if case.count > len(case.tokens) else ""
        typer.echo(
            f"  {case.name:<18} {case.count:>8}" + (f"  {shown}{rest}" if case.tokens else "")
        )
    if plan.companions:
        typer.echo("\nfiles beside the weights")
    for companion in plan.companions:
        changes = ", ".join(f"{k} = {_short(v)}" for k, v in companion.changes)
        typer.echo(
            f"  {companion.name:<28} from {companion.giver:<8}  {companion.why}"
            + (f"\n{'':31}changed: {changes}" if changes else "")
        )
    if tensors:
        typer.echo("\ntensors")
        for tensor in plan.tensors:
            terms = " ".join(f"{t.coefficient:+g}·{_place(t.view)}" for t in tensor.terms)
            typer.echo(
                f"  {tensor.name}  {tensor.dtype} {list(tensor.shape)}  "
                + (terms if tensor.pairs else "copied: " + tensor.why)
            )
    typer.echo("\nfindings" if plan.findings else "\nno findings")
    for finding in plan.findings:
        _finding(finding, all_tensors=tensors)


def explained(explanations: Iterable[Explanation]) -> None:
    """Output tensors with their formulas, operands and rules."""
    for each in explanations:
        tensor = each.tensor
        typer.secho(f"{tensor.name}  {tensor.dtype} {list(tensor.shape)}", bold=True)
        typer.echo(f"  = {each.formula}" + (f"   ({tensor.why})" if tensor.why else ""))
        if each.reduced:
            typer.echo(f"  = {each.reduced}   (the rest cancels out and is not read)")
        typer.echo("  operands" + (", with the coefficients of what is left" * (not tensor.linear)))
        wide = max((len(" = ".join(o.symbols)) for o in each.operands), default=0)
        for operand in each.operands:
            lines = [stored(part) for part in operand.view.parts]
            rest = len(lines) - PARTS
            lines[PARTS:] = [f"and {rest} more"] if rest > 0 else []
            label = f"    {operand.coefficient:<+8g} {' = '.join(operand.symbols):<{wide}}  "
            typer.echo(label + f"\n{' ' * len(label)}".join(lines))
        typer.echo("  coefficients" if each.reasons else "")
        for delta, scale, why in each.reasons:
            typer.echo(f"    {'none' if scale is None else f'{scale:g}':<8} {delta}: {why}")


def formula(recipe: Recipe) -> None:
    """A recipe in symbols, the addresses that they stand for, and its other choices."""
    typer.echo(recipe.symbols + "\n")
    several = len(recipe.deltas) > 1
    addresses = [("Θ'_base", recipe.new_base)]
    for number, delta in enumerate(recipe.deltas, 1):
        tag = str(number) if several else ""
        if delta.base is None:
            addresses += [(f"Δ{tag}", delta.address)]
        else:
            addresses += [(f"Θ_post{tag}", delta.post), (f"Θ_base{tag}", delta.base)]
    for symbol, address in addresses:
        typer.echo(f"  {symbol:<10} {address}")
    schedules(recipe)
    choices = [(k, v) for k, v in recipe.to_dict().items() if k not in ("new_base", "deltas")]
    typer.echo("")
    for key, value in choices:
        text = ", ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            text = ", ".join(f"{name} {part}" for name, part in value.items())
        if text:
            typer.echo(f"  {key:<10} {text}")


def schedules(recipe: Recipe, plan: Plan | None = None) -> None:
    """The scales that go by tensors, as tables; with a plan, how many tensors each rule is for."""
    for number, delta in enumerate(recipe.deltas):
        if not isinstance(delta.scale, Schedule):
            continue
        counts: Counter[int] = Counter()
        for tensor in plan.tensors if plan is not None else ():
            chosen = tensor.asked[number] if number < len(tensor.asked) else None
            if chosen is not None:
                counts[id(chosen.rule)] += 1
        symbol = recipe.factor(number + 1, "")[1]
        typer.echo(f"\n{symbol}: by the first rule that is for a tensor")
        rows = delta.scale.table
        wide = max(len(subject) for subject, _, _ in rows)
        rules = iter(delta.scale.rules)
        for subject, layers, scale in rows:
            where = f"layers {layers}" if layers else ""
            number_of = counts[id(next(rules))] if subject else 0
            count = f"{number_of:>6} tensor{'s' * (number_of != 1)}" if subject and plan else ""
            typer.echo(f"  {subject:<{wide}}  {where:<13}  {scale:<14}{count}".rstrip())
    for number, delta in enumerate(recipe.deltas, 1):
        if isinstance(delta.density, Schedule):
            tag = number if len(recipe.deltas) > 1 else ""
            typer.echo(f"\ndensity of Δ{tag}: by the first rule that is for a tensor")
            rows = delta.density.table
            wide = max(len(subject) for subject, _, _ in rows)
            for subject, layers, share in rows:
                where = f"layers {layers}" if layers else ""
                typer.echo(f"  {subject:<{wide}}  {where:<13}  {share}".rstrip())


def brief(plan: Plan) -> None:
    """What `mix` says before it begins: the formula and what is more than a note."""
    typer.echo(_formula(plan))
    findings(plan)


def findings(plan: Plan) -> None:
    """The findings that are more than a note."""
    for finding in plan.findings:
        if finding.severity is not Severity.NOTE:
            _finding(finding, all_tensors=False)


def extracted(result: Extracted, as_json: bool) -> None:
    """The result of `extract`."""
    post = sum(tensor.new.nbytes for tensor in result.plan.tensors)
    deltas, whole = result.plan.mixed, result.plan.copied
    if as_json:
        facts = {
            "event": "done",
            "folder": str(result.folder),
            "seconds": round(result.seconds, 3),
            "bytes_read": result.read,
            "bytes_stored": result.made.stored,
            "bytes_of_post": post,
            "deltas": deltas,
            "whole": whole,
            "base_sha256": result.made.base_sha256,
        }
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    files = len(result.made.files)
    typer.echo(
        f"{result.folder}: {deltas} Δ and {whole} whole tensors, {show_size(result.made.stored)} "
        f"in {files} file{'s' if files > 1 else ''}, "
        f"{100 * result.made.stored / max(1, post):.0f} % of post's {show_size(post)}; "
        f"{show_duration(result.seconds)}, "
        f"{show_size(result.read / max(result.seconds, 1e-9))}/s read"
    )


def adapter(result: ExtractedAdapter, as_json: bool) -> None:
    """The result of `extract --as lora`."""
    made = result.made
    if as_json:
        facts = {
            "event": "done",
            "folder": str(result.folder),
            "seconds": round(result.seconds, 3),
            "bytes_read": result.read,
            "bytes_stored": made.stored,
            "dtype": made.dtype,
            "rank": made.rank,
            "kept_of_modules": made.kept_of_modules,
            "kept_of_all": made.kept_of_all,
            "modules": [
                {"module": one.module, "rank": one.rank, "energy": one.energy, "kept": one.kept}
                for one in made.kept
            ],
            "left": [
                {"kind": one.kind, "tensors": list(one.tensors), "energy": one.energy}
                for one in made.left
            ],
            "findings": [finding_facts(finding) for finding in made.findings],
        }
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for finding in made.findings:
        _finding(finding, all_tensors=False)
    ranks = sorted({one.rank for one in made.kept})
    least = min(made.kept, key=lambda one: one.kept)
    typer.echo(
        f"{result.folder}: {len(made.kept)} modules of rank "
        + (f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}")
        + f", {show_size(made.stored)} in {made.dtype}; {100 * made.kept_of_modules:.2f} % of the "
        f"modules' energy is kept (least: {100 * least.kept:.2f} % in {least.module}), "
        f"{100 * made.kept_of_all:.2f} % of the whole Δ's; {show_duration(result.seconds)}"
    )


def mixed(result: Mix, as_json: bool) -> None:
    """The result of `mix`."""
    rate = result.moved / result.seconds if result.seconds else 0.0
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "event": "done",
                    "folder": str(result.folder),
                    "seconds": round(result.seconds, 3),
                    "bytes_moved": result.moved,
                    "bytes_resumed": result.resumed,
                    "not_finite": _counts(result.not_finite),
                },
                ensure_ascii=False,
            )
        )
        return
    _not_finite(result.not_finite)
    resumed = f", {show_size(result.resumed)} from an earlier run" if result.resumed else ""
    typer.echo(
        f"{result.folder}: {show_count(result.plan.parameters)} parameters, "
        f"{show_size(result.layout.size)} in {len(result.layout.shards)} "
        f"file{'s' if len(result.layout.shards) > 1 else ''}, "
        f"{show_duration(result.seconds)}, {show_size(rate)}/s read and written{resumed}"
    )


def _counts(not_finite: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    return [
        {"tensor": tensor, "where": where, "count": count}
        for (tensor, where), count in sorted(not_finite.items())
    ]


def _not_finite(not_finite: dict[tuple[str, str], int], when: str = "") -> None:
    for (tensor, where), count in sorted(not_finite.items()):
        place = "the result (its dtype cannot hold the sum)" if where == "result" else where
        typer.secho(
            f"  warning   {count} infinite or NaN numbers in {tensor}, in {place}{when}",
            fg="yellow",
        )


def sweeping(made: Sweep, as_json: bool) -> None:
    """What `sweep` says before it begins: formula, scales, what is more than a note."""
    shared = made.shared_bytes
    if as_json:
        event = {
            "event": "plan",
            "scales": list(made.scales),
            "plans": [summary(plan) for plan in made.plans],
            "bytes_to_read": made.bytes_to_read,
            "bytes_of_each": made.plans[0].bytes_to_write,
            "bytes_shared": shared,
        }
        typer.echo(json.dumps(event, ensure_ascii=False))
        return
    scales: dict[str, list[str]] = {}  # by formula: one for all where scales go by tensors
    for scale, plan in zip(made.scales, made.plans, strict=True):
        scales.setdefault(_formula(plan), []).append(f"{scale:g}")
    for formula, those in scales.items():
        typer.echo(f"scale {', '.join(those)}: {formula}")
    said = {finding: plan for plan in reversed(made.plans) for finding in plan.findings}
    for finding in said:
        if finding.severity is not Severity.NOTE:
            _finding(finding, all_tensors=False)
    if shared:
        typer.echo(f"  {show_size(shared)} of each are the same at every scale: written once")


def swept(result: Swept, as_json: bool) -> None:
    """The result of `sweep`: a table of its outputs."""
    if as_json:
        facts = {
            "event": "done",
            "seconds": round(result.seconds, 3),
            "bytes_read": result.read,
            "bytes_written": result.written,
            "outputs": [
                {
                    "scale": member.scale,
                    "folder": str(member.folder),
                    "bytes": member.size,
                    "bytes_shared": member.shared,
                    "kept": member.kept,
                    "not_finite": _counts(member.not_finite),
                }
                for member in result.members
            ],
        }
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for member in result.members:
        _not_finite(member.not_finite, f" at scale {member.scale:g}")
    wide = max(len(str(member.folder)) for member in result.members)
    typer.echo(f"  {'scale':>8}  {'folder':<{wide}}  {'bytes':>9}  {'shared':>9}")
    for member in result.members:
        typer.echo(
            f"  {member.scale:>8g}  {member.folder!s:<{wide}}  {show_size(member.size):>9}  "
            f"{show_size(member.shared):>9}" + ("  kept" if member.kept else "")
        )
    typer.echo(
        f"{show_size(result.read)} read, {show_size(result.written)} written, "
        f"{show_duration(result.seconds)}"
    )


def verified(result: Verification, folder: Path, as_json: bool) -> None:
    """The result of `verify`."""
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "event": "done",
                    "folder": str(folder),
                    "tensors": result.tensors,
                    "elements": result.elements,
                    "total": result.total,
                    "how": result.how,
                    "files": result.files,
                    "seed": result.seed,
                    "notes": list(result.notes),
                }
            )
        )
        return
    sampled = result.elements < result.total
    typer.echo(
        f"{folder}: right. {result.tensors} tensors, {show_count(result.elements)} of "
        f"{show_count(result.total)} numbers {result.how}, {result.files} files as they were"
        + (f"; sample {result.seed}" if sampled else "")
    )
    for note in result.notes:
        typer.echo(f"  note      {note}")


def conversation(questions: "list[Question]", answers: "dict[str, list[Answer]]") -> None:
    """The same questions to every model; a right answer is marked."""
    for number, question in enumerate(questions):
        typer.secho(f"  {question.question}", bold=True)
        for name, given in answers.items():
            answer = given[number]
            right = answer.is_right(question.answer)
            text = " / ".join(answer.text.split("\n"))
            text = text if len(text) <= 66 else text[:65] + "…"
            cut = "" if answer.ended else "  (does not stop)"
            mark = typer.style("✓", fg="green") if right else " "
            typer.echo(f"    {mark} {name:<9} {text}{cut}")


def scores(result: "Scores") -> None:
    """Percent of right answers by task and model, and transfer efficiency."""
    models = ("base", "post", "new-base", "ParamΔ", "direct")
    typer.echo("  % right       " + "".join(f"{name:>10}" for name in models))
    for task in result.tasks:
        cells = "".join(f"{result.by_model[name][task]:10.0f}" for name in models)
        typer.echo(f"  {task:<14}{cells}")
    typer.echo(
        f"  transfer efficiency, ParamΔ / direct on what direct gets right: "
        f"{100 * result.efficiency:.0f} %"
    )


class Reporter:
    """Turns progress calls into a bar, lines or events. ``update(done, total, text)``."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.began = time.monotonic()

    def mix(self, now: Progress) -> None:
        """Progress of the engine."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        fresh = now.done - now.resumed
        left = (now.total - now.done) * seconds / fresh if fresh else None
        self.update(
            now.done,
            now.total,
            (now.stage or f"{show_size(now.done)} of {show_size(now.total)}")
            + f", {now.moved / seconds / 1e9:.2f} GB/s"
            + (f", {show_duration(left)} left" if left is not None else ""),
            {"bytes_moved": now.moved, "bytes_resumed": now.resumed, "seconds_left": left}
            | ({"stage": now.stage} if now.stage else {}),
        )

    def check(self, done: int, total: int) -> None:
        """Progress of a check, in bytes."""
        self.update(done, total, f"{show_size(done)} of {show_size(total)}", {})

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Show that ``done`` of ``total`` is done."""


class Lines(Reporter):
    """A plain line every few seconds."""

    last = 0.0

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Print at the first call after every `LINE_EVERY` seconds."""
        now = time.monotonic()
        if now - max(self.last, self.began) >= LINE_EVERY:
            self.last = now
            typer.echo(f"{self.verb}: {100 * done // max(total, 1)} %, {text}")


class Events(Reporter):
    """A JSON object a line."""

    last = 0.0

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Print at most every `EVENT_EVERY` seconds, and the last one."""
        now = time.monotonic()
        if now - self.last >= EVENT_EVERY or done == total:
            self.last = now
            event = {"event": "progress", "done": done, "total": total, **facts}
            print(json.dumps(event), flush=True)  # noqa: T201 - the event stream is the output


class Bar(Reporter):
    """A live bar on a terminal."""

    def __init__(self, verb: str) -> None:
        super().__init__(verb)
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[text]}"),
            transient=True,
        )
        self.task = self.bar.add_task(verb, total=None, text="")

    def update(self, done: int, total: int, text: str, facts: dict[str, Any]) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=done, total=total, text=text)


@contextmanager
def progress_bar(verb: str, as_json: bool) -> Iterator[Reporter]:
    """The right reporter for where the output goes."""
    if as_json:
        yield Events(verb)
    elif sys.stdout.isatty():
        bar = Bar(verb)
        with bar.bar:
            yield bar
    else:
        yield Lines(verb)


def _formula(plan: Plan) -> str:
    differences = [
        f"({post.location.name}" + (f" − {base.location.name})" if base is not None else ")")
        for post, base in plan.lineages
    ]
    return plan.recipe.written(plan.new_base.location.name, differences, " · ")


def checked(report: "Report") -> None:
    """The result of `check`, for people."""
    typer.echo(
        f"{report.folder}: {report.kind}, {report.tensors} tensors, {show_size(report.nbytes)}"
    )
    typer.echo(f"  looked at  {', '.join(report.checked)}")
    for text in report.skipped:
        typer.echo(f"  left out   {text}")
    for finding in report.findings:
        _finding(finding, all_tensors=False)
    counts = Counter(finding.severity for finding in report.findings)
    typer.echo(
        ", ".join(
            f"{counts[severity]} {word}" for severity, word in _PLURALS.items() if counts[severity]
        )
        or "no findings"
    )


_PLURALS = {
    Severity.REFUSED: "refused",
    Severity.WARNING: "warnings",
    Severity.NOTE: "notes",
}


def _finding(finding: Finding, all_tensors: bool) -> None:
    label = typer.style(f"{finding.severity.value:<9}", fg=_COLOURS[finding.severity])
    typer.echo(f"  {label} {finding.what}  [{finding.code}]")
    names = finding.sample(len(finding.tensors) if all_tensors else 3)
    typer.echo(f"            in {finding.where}" + (f": {names}" if names else ""))
    if finding.remedy:
        typer.echo(f"            {finding.remedy}")
    if finding.allowed and finding.severity is Severity.REFUSED:
        typer.echo(f"            --allow {finding.code}: {finding.allowed}")


def _place(view: View) -> str:
    """Where an operand comes from: the folders of its parts."""
    return "+".join(dict.fromkeys(part.blob.folder for part in view.parts)) or "0"


def _dtypes(tensors: Any) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.elements
    return " + ".join(sorted(counts, key=lambda name: -counts[name]))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
