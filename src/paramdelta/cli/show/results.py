"""What a finished command did."""

from pathlib import Path
from typing import Any

from paramdelta.api import Extracted, ExtractedAdapter, Mix, MixPart, Swept
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.findings import finding_facts, show_findings
from paramdelta.cli.show.plan import plan_facts
from paramdelta.cli.show.recipe import formula_of
from paramdelta.cli.show.terminal import say
from paramdelta.jobs.verify.verification import Verification
from paramdelta.planning.sweep import Sweep
from paramdelta.recipe.mergekit import Imported
from paramdelta.units import show_count, show_duration, show_size


def show_mix(result: Mix, as_json: bool) -> None:
    """The result of `mix`."""
    if as_json:
        emit(
            "done",
            folder=str(result.folder),
            seconds=round(result.seconds, 3),
            bytes_moved=result.moved,
            bytes_resumed=result.resumed,
            not_finite=_not_finite_facts(result.not_finite),
            **({"check": result.report.facts} if result.report is not None else {}),
        )
        return
    _show_not_finite(result.not_finite)
    rate = result.moved / max(result.seconds, 1e-9)
    resumed = f", {show_size(result.resumed)} from an earlier run" if result.resumed else ""
    say(
        f"{result.folder}: {show_count(result.plan.parameters)} parameters, "
        f"{show_size(result.layout.size)} in {_files(len(result.layout.shards))}, "
        f"{show_duration(result.seconds)}, {show_size(rate)}/s read and written{resumed}"
    )
    if result.report is not None:
        say(f"  checked: {', '.join(result.report.checked)}")
        show_findings(result.report.findings, notes=False)


def show_part(result: MixPart, as_json: bool) -> None:
    """The result of `mix --part`."""
    if as_json:
        emit(
            "part",
            out=result.out,
            part=str(result.part),
            shards=list(result.shards),
            missing=list(result.missing),
            seconds=round(result.seconds, 3),
            bytes_moved=result.moved,
            bytes_resumed=result.resumed,
        )
        return
    if not result.shards:
        say(
            f"part {result.part}: nothing to do: there are fewer files than parts; "
            "a smaller --shard-size gives more"
        )
        return
    left = (
        f"{_files(len(result.missing))} left to other parts" if result.missing else "all are made"
    )
    say(
        f"{result.out}: part {result.part}, {_files(len(result.shards))}, "
        f"{show_duration(result.seconds)}; {left}: then --finish"
    )


def show_sweep_start(made: Sweep, as_json: bool) -> None:
    """What `sweep` prints before it begins: formulas, scales, warnings."""
    if as_json:
        emit(
            "plan",
            scales=list(made.scales),
            plans=[plan_facts(plan) for plan in made.plans],
            bytes_to_read=made.bytes_to_read,
            bytes_of_each=made.plans[0].bytes_to_write,
            bytes_shared=made.shared_bytes,
        )
        return
    scales: dict[str, list[str]] = {}  # by formula, which may not show the scale
    for scale, plan in zip(made.scales, made.plans, strict=True):
        scales.setdefault(formula_of(plan), []).append(f"{scale:g}")
    for formula, those in scales.items():
        say(f"scale {', '.join(those)}: {formula}")
    findings = dict.fromkeys(f for plan in reversed(made.plans) for f in plan.findings)
    show_findings(findings, notes=False)
    if made.shared_bytes:
        say(f"  {show_size(made.shared_bytes)} of each are the same at every scale: written once")


def show_sweep(result: Swept, as_json: bool) -> None:
    """The result of `sweep`: a table of its outputs."""
    if as_json:
        emit(
            "done",
            seconds=round(result.seconds, 3),
            bytes_read=result.read,
            bytes_written=result.written,
            outputs=[
                {
                    "scale": member.scale,
                    "folder": str(member.folder),
                    "bytes": member.size,
                    "bytes_shared": member.shared,
                    "kept": member.kept,
                    "not_finite": _not_finite_facts(member.not_finite),
                }
                for member in result.members
            ],
        )
        return
    for member in result.members:
        _show_not_finite(member.not_finite, f" at scale {member.scale:g}")
    wide = max(len(str(member.folder)) for member in result.members)
    say(f"  {'scale':>8}  {'folder':<{wide}}  {'bytes':>9}  {'shared':>9}")
    for member in result.members:
        say(
            f"  {member.scale:>8g}  {member.folder!s:<{wide}}  {show_size(member.size):>9}  "
            f"{show_size(member.shared):>9}" + ("  kept" if member.kept else "")
        )
    say(
        f"{show_size(result.read)} read, {show_size(result.written)} written, "
        f"{show_duration(result.seconds)}"
    )


def show_extract(result: Extracted, as_json: bool) -> None:
    """The result of `extract`."""
    made = result.made
    post = sum(tensor.new.nbytes for tensor in result.plan.tensors)
    deltas, whole = result.plan.mixed, result.plan.copied
    if as_json:
        emit(
            "done",
            folder=str(result.folder),
            seconds=round(result.seconds, 3),
            bytes_read=result.read,
            bytes_stored=made.stored,
            bytes_of_post=post,
            deltas=deltas,
            whole=whole,
            base_sha256=made.base_sha256,
        )
        return
    say(
        f"{result.folder}: {deltas} Δ and {whole} whole tensors, {show_size(made.stored)} in "
        f"{_files(len(made.files))}, {100 * made.stored / max(1, post):.0f} % of post's "
        f"{show_size(post)}; {show_duration(result.seconds)}, "
        f"{show_size(result.read / max(result.seconds, 1e-9))}/s read"
    )


def show_adapter(result: ExtractedAdapter, as_json: bool) -> None:
    """The result of `extract --as lora`."""
    made = result.made
    if as_json:
        emit(
            "done",
            folder=str(result.folder),
            seconds=round(result.seconds, 3),
            bytes_read=result.read,
            bytes_stored=made.stored,
            dtype=made.dtype,
            rank=made.rank,
            kept_of_modules=made.kept_of_modules,
            kept_of_all=made.kept_of_all,
            modules=[
                {"module": one.module, "rank": one.rank, "energy": one.energy, "kept": one.kept}
                for one in made.kept
            ],
            left=[
                {"kind": one.kind, "tensors": list(one.tensors), "energy": one.energy}
                for one in made.left
            ],
            findings=finding_facts(made.findings),
        )
        return
    show_findings(made.findings)
    ranks = sorted({one.rank for one in made.kept})
    least = min(made.kept, key=lambda one: one.kept)
    say(
        f"{result.folder}: {len(made.kept)} modules of rank "
        + (f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}")
        + f", {show_size(made.stored)} in {made.dtype}; {100 * made.kept_of_modules:.2f} % of the "
        f"modules' energy is kept (least: {100 * least.kept:.2f} % in {least.module}), "
        f"{100 * made.kept_of_all:.2f} % of the whole Δ's; {show_duration(result.seconds)}"
    )


def show_verify(result: Verification, folder: Path, as_json: bool) -> None:
    """The result of `verify`."""
    if as_json:
        emit(
            "done",
            folder=str(folder),
            tensors=result.tensors,
            elements=result.elements,
            total=result.total,
            how=result.how,
            files=result.files,
            seed=result.seed,
            notes=list(result.notes),
        )
        return
    sampled = f"; sample {result.seed}" if result.elements < result.total else ""
    say(
        f"{folder}: right. {result.tensors} tensors, {show_count(result.elements)} of "
        f"{show_count(result.total)} numbers {result.how}, {result.files} files as they were"
        + sampled
    )
    for note in result.notes:
        say(f"  note      {note}")


def show_import(made: Imported, out: Path | None, as_json: bool) -> None:
    """The result of `recipe import`; ``out``: the file that it was written to."""
    if as_json:
        notes = [{"key": key, "what": what} for key, what in made.notes]
        emit("imported", recipe=made.recipe.to_dict(), notes=notes)
    elif out is None:
        say(*made.to_yaml().splitlines())
    else:
        say(f"{out}: {made.recipe.symbols}")
        for key, what in made.notes:
            say(f"  {key}: {what}")


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _not_finite_facts(found: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    return [
        {"tensor": tensor, "where": where, "count": count}
        for (tensor, where), count in sorted(found.items())
    ]


def _show_not_finite(found: dict[tuple[str, str], int], when: str = "") -> None:
    for (tensor, where), count in sorted(found.items()):
        place = "the result (its dtype cannot hold the sum)" if where == "result" else where
        say(
            f"  warning   {count} infinite or NaN numbers in {tensor}, in {place}{when}",
            color="yellow",
        )
