"""What paramdelta does, as functions; the command line calls these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from paramdelta.dtypes import FP8_BLOCK, parse_dtype
from paramdelta.engine import threads
from paramdelta.engine.run import Inputs, Report
from paramdelta.engine.sketch import Aim
from paramdelta.engine.slices import Budget, share_out
from paramdelta.engine.sweep import SweepWorker, trimmed
from paramdelta.engine.threads import Progress, default_workers
from paramdelta.errors import Interrupted, MisfitError, UsageError
from paramdelta.formats.adapter import is_adapter
from paramdelta.formats.checkpoint import DELTA
from paramdelta.output import extract as extraction
from paramdelta.output import lora
from paramdelta.output import verify as verification
from paramdelta.output.card import adapter_card, model_card
from paramdelta.output.companions import write_companions
from paramdelta.output.files import Files, check_output, check_room, check_space
from paramdelta.output.layout import Layout, make_layout
from paramdelta.output.lock import LOCK, lock_text
from paramdelta.output.members import Members, is_finished, sizes
from paramdelta.output.verify import Verification
from paramdelta.planning.linear import linear
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.sweep import Sweep, make_sweep
from paramdelta.recipe import Delta, Recipe
from paramdelta.storage import files as storage_files
from paramdelta.storage.local import write_text
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from paramdelta.units import parse_size

SHARD_SIZE = "5GB"
MEMORY = "256MB"
MAX_RANK = 256


@dataclass(frozen=True)
class Mix:
    """A finished mix.

    ``not_finite``: how many infinite or NaN numbers were met, by (tensor, checkpoint's role or
    "result"). ``seconds``: wall time. ``moved``: bytes read and written by this run; ``resumed``:
    output bytes that an earlier run had made.
    """

    folder: Path
    plan: Plan
    layout: Layout
    seconds: float
    moved: int
    resumed: int
    not_finite: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Member:
    """One output of a sweep.

    ``size``: bytes of its weight files; ``shared``: those of them that are also another's on disk.
    ``kept``: whether it was finished before and left as it is. ``not_finite``: as in `Mix`.
    """

    scale: float
    folder: Path
    size: int
    shared: int
    kept: bool
    not_finite: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    ``members``: its outputs, in the order of the scales. ``seconds``: wall time. ``read`` and
    ``written``: bytes of weights, by this run.
    """

    members: tuple[Member, ...]
    seconds: float
    read: int
    written: int


@dataclass(frozen=True)
class Extracted:
    """A stored Δ.

    ``plan``: of a mix onto post, which says how post and base correspond. ``made``: its files and
    what they hold. ``seconds``: wall time. ``read``: bytes read.
    """

    folder: Path
    plan: Plan
    made: extraction.Made
    seconds: float
    read: int


@dataclass(frozen=True)
class ExtractedAdapter:
    """A Δ as a LoRA adapter.

    ``plan``: as in `Extracted`. ``made``: ranks, and the energy that they keep. ``seconds``: wall
    time. ``read``: bytes read, in all passes.
    """

    folder: Path
    plan: Plan
    made: lora.MadeAdapter
    seconds: float
    read: int


class _Watch:
    """Hands progress on and keeps the last of it."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self.last = Progress(0, 0, 0, 0)
        self._progress = progress

    def __call__(self, now: Progress) -> None:
        self.last = now
        if self._progress is not None:
            self._progress(now)


def plan(recipe: Recipe) -> Plan:
    """What a mix would do, from headers alone; nothing is written.

    Raises:
        UsageError, CheckpointError, StorageError: see `paramdelta.planning.planner.make_plan`.
    """
    return make_plan(recipe)


def mix(
    recipe: Recipe | Plan,
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Mix:
    """Write the mix of a recipe, or of a plan made before, as a checkpoint folder.

    Whole or not at all: ``out`` appears when everything is on disk. A run that was killed is
    resumed by the same call. ``shard_size`` and ``memory`` are bytes or text such as "5GB";
    ``memory`` bounds what is held beyond the interpreter and its libraries. ``overwrite`` replaces
    an earlier output of paramdelta; ``fresh`` throws an unfinished run away.

    Raises:
        UsageError: options or output that cannot be meant.
        MisfitError: the plan has refused findings; or an unfinished run of something else is there.
        StorageError: reading or writing failed; the same call resumes.
        Interrupted: Ctrl-C; the same call resumes.
    """
    began = perf_counter()
    out = Path(out)
    plan = make_plan(recipe) if isinstance(recipe, Recipe) else recipe
    plan.check()
    shard_bytes = parse_size(shard_size)
    layout = make_layout(plan, shard_bytes)
    budget = budget_for(plan, memory, workers)
    check_output(out, local_paths(plan), overwrite)
    if not fresh:
        check_space(out, layout)
    files = Files(plan, layout, out, fresh=fresh)
    watch = _Watch(progress)

    try:
        try:
            report = threads.run(plan, files, budget, watch)
        finally:
            files.flush()
        files.finish(partial(_write_small_files, plan, out, shard_bytes))
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is done is kept",
            where=str(files.staging),
            remedy="the same command goes on from here; --fresh starts again",
        ) from None
    finally:
        files.close()
    return Mix(
        out,
        plan,
        layout,
        perf_counter() - began,
        watch.last.moved,
        watch.last.resumed,
        dict(report.not_finite),
    )


def sweep(
    recipe: Recipe,
    scales: Sequence[float],
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    planned: Callable[[Sweep], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Swept:
    """Write the mixes of a recipe at several scales, from one pass over its sources.

    Each value of ``scales`` multiplies every Δ's own scale, and every number of its schedule: for
    one plain Δ it is α. The outputs are ``out``/scale-0.5 and so on, each a whole checkpoint that
    has every tensor, companion, card and lock that `mix` would write. Where tensors are the same at
    every scale, they fill weight files of their own, which are hard links to one file on disk.

    Each output is whole or not at all. One that is finished and the same is kept, whatever
    ``overwrite`` says, unless ``fresh`` is given with it. ``planned`` is called with the plans
    before anything is written. The other arguments are those of `mix`. Progress counts the bytes of
    one output, for all go forward together.

    Raises:
        UsageError: scales, options or outputs that cannot be meant.
        MisfitError, StorageError, Interrupted: as `mix`; the same call resumes.
    """
    began = perf_counter()
    out = Path(out)
    shard_bytes = parse_size(shard_size)
    made = make_sweep(recipe, scales)
    if planned is not None:
        planned(made)
    layout = make_layout(made.members[0], shard_bytes, made.own)
    outs = [out / f"scale-{scale}" for scale in made.scales]
    anew = fresh and overwrite
    todo = [
        number
        for number, (plan, folder) in enumerate(zip(made.plans, outs, strict=True))
        if anew or not is_finished(plan, shard_bytes, folder)
    ]
    reports = [Report() for _ in todo]
    shared = Report()
    last, looked, written = Progress(0, 0, 0, 0), 0, 0
    if todo:
        part, folders = made.only(todo), [outs[number] for number in todo]
        budget = share_out(part.joint, parse_size(memory), workers or default_workers(), len(todo))
        sources = local_paths(made.plans[0])
        for folder in folders:
            check_output(folder, sources, overwrite)
        if not fresh:
            common = sum(shard.size for shard in layout.shards if shard.first >= made.own)
            check_room(folders, len(todo) * layout.size - (len(todo) - 1) * common)
        members = Members(part, layout, folders, fresh=fresh)

        def watch(now: Progress) -> None:
            nonlocal last
            last = now
            if progress is not None:
                read = now.moved - (now.done - now.resumed)
                progress(replace(now, moved=looked + read + members.written))

        def worker(inputs: Inputs) -> SweepWorker:
            return SweepWorker(part, budget, inputs, members, reports, shared)

        try:
            try:
                part, looked = trimmed(part, members.wants, budget, progress)
                threads.carry_out(part.joint, members.wants, budget, worker, watch)
            finally:
                members.flush()
            for number, (plan, folder) in enumerate(zip(part.plans, folders, strict=True)):
                members.finish(number, partial(_write_small_files, plan, folder, shard_bytes))
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped; what is done is kept",
                where=str(out),
                remedy="the same command goes on from here; --fresh starts again",
            ) from None
        finally:
            members.close()
        written = members.written
    found = [dict(report.not_finite + shared.not_finite) for report in reports]
    not_finite = dict(zip(todo, found, strict=True))
    return Swept(
        tuple(
            Member(scale, folder, *sizes(folder), number not in todo, not_finite.get(number, {}))
            for number, (scale, folder) in enumerate(zip(made.scales, outs, strict=True))
        ),
        perf_counter() - began,
        looked + last.moved - (last.done - last.resumed),
        written,
    )


def local_paths(plan: Plan) -> list[Path]:
    """The sources of a plan that are on this machine."""
    paths = (source.location.path for source in plan.sources)
    return [path for path in paths if path is not None]


def _write_small_files(plan: Plan, out: Path, shard_bytes: int, folder: Path) -> None:
    """All but weights and index; ``folder``: where ``out`` is in the making."""
    write_companions(plan.companions, folder, Reader())
    write_text(folder / "README.md", model_card(plan, out))
    write_text(folder / LOCK, lock_text(plan, shard_bytes))


def budget_for(plan: Plan, memory: int | str = MEMORY, workers: int | None = None) -> Budget:
    """How a mix of this plan would share out the memory; raises UsageError if it is too little."""
    return share_out(plan, parse_size(memory), workers or default_workers())


def verify(
    folder: str | Path,
    *,
    share: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Recompute a share of an output from its sources by an independent path and compare.

    Raises:
        MisfitError: it differs, or the sources are no longer the same.
    """
    return verification.verify(Path(folder), share, progress)


def plan_extract(
    post: str,
    base: str,
    *,
    maps: Sequence[str] = (),
    vocabulary: str = "auto",
    allow: Sequence[str] = (),
) -> Plan:
    """How post and base correspond: the plan of a mix onto post, whose Δ `extract` stores.

    Tensors that only post has are stored whole. Raises as `plan`, and UsageError for an adapter.
    """
    with Reader() as reader:
        adapter = is_adapter(storage_files.Files(locate(str(post)), reader))
    if adapter:
        raise UsageError(
            "an adapter is a Δ by itself, and smaller than what extract would store",
            where=str(post),
            remedy="give it to mix as --post",
        )
    delta = Delta(str(post), str(base))
    return make_plan(
        Recipe(
            str(post),
            (delta,),
            allow=(*allow, "missing-in-base"),
            vocabulary=vocabulary,
            maps=tuple(maps),
        )
    )


def extract(
    source: Plan | tuple[str, str],
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Extracted:
    """Store a Δ as a folder of its own: exact, compressed, with post's companions.

    ``source``: post and base, or a plan of `plan_extract`. The other arguments are those of `mix`;
    ``shard_size`` bounds how much of post goes into a file. Whole or not at all; a run that was
    stopped begins again.

    Raises:
        UsageError: options or output that cannot be meant.
        MisfitError: post and base do not fit together, or are one and the same.
        StorageError: reading or writing failed.
        Interrupted: Ctrl-C; nothing is kept.
    """
    began = perf_counter()
    out = Path(out)
    plan = plan_extract(*source) if isinstance(source, tuple) else source
    plan.check()
    if not any(tensor.pairs for tensor in plan.tensors):
        raise MisfitError(
            "there is no Δ between them",
            where=" and ".join(str(source) for source in plan.sources[1:]),
            expected="tensors of the same names that are not the same file's",
        )
    count, _ = extraction.share_out(plan, parse_size(memory), workers or default_workers())
    check_output(out, local_paths(plan), overwrite, DELTA)
    watch = _Watch(progress)

    try:
        made = extraction.write_delta(plan, out, parse_size(shard_size), count, watch)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; nothing is kept", where=str(out), remedy="the same command begins again"
        ) from None
    return Extracted(out, plan, made, perf_counter() - began, watch.last.moved)


def extract_adapter(
    source: Plan | tuple[str, str],
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int = MAX_RANK,
    embeddings: bool = False,
    dtype: str = "auto",
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ExtractedAdapter:
    """Store a Δ as a LoRA adapter, as nearly as one can hold it: PEFT's layout, post's companions.

    ``rank``: of every linear weight's factors, as far as the weight has so many; or ``energy``: the
    least rank that keeps this share of its ‖Δ‖²_F, up to ``max_rank``. ``embeddings``: factors for
    embeddings and output head as well. ``dtype`` of the factors: auto (post's BF16 or F16, else
    F32), bf16, f16, f32 or f64. The other arguments are those of
    `extract`. Whole or not at all.

    Raises:
        UsageError: options or output that cannot be meant, or too little memory.
        MisfitError: as `extract`, or no linear weight has a Δ.
        CheckpointError: a Δ that is not finite.
        StorageError, Interrupted: as `extract`.
    """
    began = perf_counter()
    out = Path(out)
    aim = _aim(rank, energy, max_rank)
    stored = parse_dtype(dtype)
    if stored == FP8_BLOCK:
        raise UsageError("factors cannot be FP8", expected="--dtype auto, bf16, f16, f32 or f64")
    plan = plan_extract(*source) if isinstance(source, tuple) else source
    plan.check()
    parts = linear(plan, embeddings)
    count, _ = lora.share_out(parts, aim, parse_size(memory), workers or default_workers())
    check_output(out, local_paths(plan), overwrite, lora.LORA)
    watch = _Watch(progress)

    def card(made: lora.MadeAdapter) -> str:
        return adapter_card(plan, out, made, lora.RANKS)

    dtype = stored or lora.common_dtype(parts)
    try:
        made = lora.write_adapter(plan, parts, out, aim, dtype, count, card, watch)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; nothing is kept", where=str(out), remedy="the same command begins again"
        ) from None
    return ExtractedAdapter(out, plan, made, perf_counter() - began, watch.last.moved)


def _aim(rank: int | None, energy: float | None, max_rank: int) -> Aim:
    if (rank is None) == (energy is None):
        raise UsageError(
            "an adapter needs a rank, or a share of the energy",
            expected="one of --rank 16 and --energy 0.95, say",
        )
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"--energy {energy:g} is no share", expected="over 0, up to 1")
    for name, value in (("--rank", rank), ("--max-rank", max_rank)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is no rank", expected="1 or more")
    return Aim(rank, energy, max_rank)
