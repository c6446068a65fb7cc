"""What paramdelta does, as functions; the command line calls these."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from paramdelta.analysis.analysis import Analysis
from paramdelta.arithmetic.sketch import Aim
from paramdelta.checks.inspection import Inspection, refuse_not_finite
from paramdelta.checks.report import Report
from paramdelta.documents import to_json
from paramdelta.dtypes import FP8_BLOCK, parse_dtype
from paramdelta.engine import threads
from paramdelta.engine.job import Job, Progress
from paramdelta.engine.memory import Budget, Need, budget, computing_workers, default_workers
from paramdelta.errors import Interrupted, MisfitError, UsageError
from paramdelta.formats.adapter import CONFIG, is_adapter
from paramdelta.formats.checkpoint import DELTA
from paramdelta.jobs import extract as extraction
from paramdelta.jobs import lowrank
from paramdelta.jobs.measure import MeasureJob
from paramdelta.jobs.mix import MixJob
from paramdelta.jobs.outputs import Written, measured, write_outputs, write_shards
from paramdelta.jobs.tensors import Maker, check_framework, converted
from paramdelta.jobs.verify.verification import Verification
from paramdelta.output.card import (
    RECIPE,
    adapter_card,
    delta_card,
    model_card,
    origins_of,
    recipe_file,
)
from paramdelta.output.companions import contents
from paramdelta.output.destination import Destination
from paramdelta.output.folder import FolderSink, tidy
from paramdelta.output.layout import Layout, make_layout
from paramdelta.output.lock import (
    LOCK,
    is_finished,
    is_lock_of,
    lock_text,
    pinned,
    run_identity,
    shared_identity,
)
from paramdelta.output.parts import Part, parse_part
from paramdelta.output.place import Place, check_local, check_room, find_place, free_space
from paramdelta.output.shared import SharedFolder
from paramdelta.output.shipping import COMMIT_SECONDS, ShippingSink
from paramdelta.planning import explanation
from paramdelta.planning.explanation import Explanation
from paramdelta.planning.extraction import extraction_recipe
from paramdelta.planning.findings import Finding, Severity
from paramdelta.planning.linear import linear
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.relatives import SHIFT_CODES
from paramdelta.planning.sources import Opener
from paramdelta.planning.sweep import Sweep, make_sweep, sweep_of_one
from paramdelta.recipe import Address, Delta, Recipe, read_recipe
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import TreeDigest
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import READ_AHEAD, Reader
from paramdelta.storage.store import LOCAL, scheme_of
from paramdelta.text import line
from paramdelta.units import parse_size

SHARD_SIZE = "5GB"
MEMORY = "256MB"
MAX_RANK = 256
RAY = "ray"
ENGINES = ("threads", RAY)
RAY_WORKERS = 2  # processors of a task
MOST_TASKS = 64  # each looks at all records
INTERPRETER = 300_000_000  # bytes: Python with its libraries and ray's

log = logging.getLogger("paramdelta")
"""Plans, findings and finished work, for whoever adds a handler."""
log.addHandler(logging.NullHandler())

Made = TypeVar("Made")


@dataclass(frozen=True)
class Mix:
    """A finished mix.

    ``folder``: where it is; for an object store its URL, as text. ``not_finite``: how many infinite
    or NaN numbers were met, by (tensor, checkpoint's role or "result"). ``seconds``: wall time,
    without the check. ``moved``: bytes read and written by this run; ``resumed``: output bytes that
    an earlier run had made. ``kept``: folders with files of replaced outputs that paramdelta did
    not write, or could not remove. ``report``: of `paramdelta.check`, if it was asked for.
    """

    folder: Path | str
    plan: Plan
    layout: Layout
    seconds: float
    moved: int
    resumed: int
    not_finite: dict[tuple[str, str], int]
    kept: tuple[Path, ...] = ()
    report: Report | None = None


@dataclass(frozen=True)
class MixPart:
    """A finished part of a mix.

    ``out``: where the output will be. ``shards``: names of those that this part makes; ``missing``:
    of those that other parts have yet to make. The rest as in `Mix`; ``plan`` and ``layout`` are
    None if it was made on another machine.
    """

    out: str
    plan: Plan | None
    layout: Layout | None
    part: Part
    shards: tuple[str, ...]
    missing: tuple[str, ...]
    seconds: float
    moved: int
    resumed: int


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
    ``written``: bytes of weights, by this run. ``kept``: as in `Mix`.
    """

    members: tuple[Member, ...]
    seconds: float
    read: int
    written: int
    kept: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Extracted:
    """A stored Δ.

    ``plan``: of a mix onto post, which says how post and base correspond. ``made``: its files and
    what they hold. ``seconds``: wall time. ``read``: bytes read. ``kept``: as in `Mix`.
    """

    folder: Path
    plan: Plan
    made: extraction.Made
    seconds: float
    read: int
    kept: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ExtractedAdapter:
    """A Δ as a LoRA adapter.

    ``plan``: as in `Extracted`. ``made``: ranks, and the energy that they keep. ``seconds``: wall
    time. ``read``: bytes read, in all passes. ``kept``: as in `Mix`.
    """

    folder: Path
    plan: Plan
    made: lowrank.MadeAdapter
    seconds: float
    read: int
    kept: tuple[Path, ...] = ()


class _Watch:
    """Hands progress on and keeps the last of it."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self.last = Progress(0, 0, 0, 0)
        self._progress = progress

    def __call__(self, now: Progress) -> None:
        self.last = now
        if self._progress is not None:
            self._progress(now)


def layout_for(plan: Plan, shard_size: int | str = SHARD_SIZE) -> Layout:
    """The weight files that a mix of this plan would write; raises UsageError."""
    made = sweep_of_one(plan)
    streams = [stored.stream for stored in made.stored]
    return make_layout(streams, plan.parameters, parse_size(shard_size), components=plan.components)


def free_disk(out: str | Path) -> int:
    """Free bytes of the disk that an output would be on, or its shards on their way to a bucket."""
    if scheme_of(str(out)) != LOCAL:
        out = tempfile.gettempdir()
    return free_space(Path(out))[0]


def check_place(
    plan: Plan,
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    overwrite: bool = False,
) -> None:
    """Check that a mix of this plan could be written to a folder: its path and its disk.

    Raises:
        UsageError, StorageError: as `mix`.
    """
    if scheme_of(str(out)) != LOCAL:
        _destination(plan, out, overwrite).finished()
        return
    place = find_place(out, local_paths(plan), overwrite, LOCK)
    check_room(place, layout_for(plan, shard_size).size)


def explain(plan: Plan, pattern: str) -> tuple[Explanation, ...]:
    """What the output tensors are made of whose names a glob matches; raises UsageError."""
    return explanation.explain(plan, pattern)


def plan(recipe: Recipe | Address) -> Plan:
    """What a mix would do, from headers alone; nothing is written.

    ``recipe``: a recipe, or the path of a YAML file with one.

    Raises:
        UsageError, CheckpointError, StorageError: see `paramdelta.planning.planner.make_plan`.
    """
    made = make_plan(_recipe(recipe))
    log.info("planned %r", made)
    _log_findings(made.findings)
    return made


def _log_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        level = logging.INFO if finding.severity is Severity.NOTE else logging.WARNING
        log.log(level, "%s: %s: %s", finding.severity.value, finding.code, line(finding.what))


def _recipe(given: Recipe | Address) -> Recipe:
    return given if isinstance(given, Recipe) else read_recipe(given)


def _planned(given: Recipe | Plan | Address) -> Plan:
    return given if isinstance(given, Plan) else plan(given)


def mix(
    recipe: Recipe | Plan | Address,
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    check: bool = False,
    strict: bool = False,
    report: bool = False,
    keep_downloads: bool = False,
    staging: str | Path | None = None,
    private: bool = False,
    engine: str = "threads",
    ray_address: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Mix:
    """Write the mix of a recipe, or of a plan made before, as a checkpoint folder.

    ``recipe``: a recipe, the path of a YAML file with one, or a plan. ``progress`` is called from
    time to time in the thread of the caller, for example a `progress_bar`; the run is cancelled,
    and can be resumed, if it raises KeyboardInterrupt.

    ``out``: a folder; the URL of one in an object store (s3://, gs://, az://); or a repository on
    the Hub (hf://org/name, with @branch if it is not main), which is created if it does not exist,
    ``private`` or not. Whole or not at all: the output appears when everything is durable. A run
    that was killed is resumed by the same call. ``shard_size`` and ``memory`` are bytes or text
    such as "5GB"; ``memory`` bounds what is held beyond the interpreter and its libraries.
    ``overwrite`` replaces an earlier output of paramdelta; ``fresh`` discards an unfinished run.

    To an object store or the Hub each shard goes when it is whole, so a kill costs the shards that
    were being made, and another machine can continue. ``staging``: the local folder in which they
    are made, at most three at a time; by default in the one for temporary files.

    ``engine``: "ray" makes the shards in tasks of the Ray cluster at ``ray_address``, which read
    and write by themselves; ``workers`` are then the processors of a task, and all machines must
    see the sources and ``out``.

    ``check``: look at the complete folder as a loader does, before it is put in place (see
    `paramdelta.check`); what it refuses is not put in place. ``strict``: NaN and infinities are
    refused as well, for which every number is read again. The command line checks by default.

    ``report``: analyze the Δs first (see `analyze`). The page goes into the folder, its verdict and
    two pictures go on the card.

    Checkpoints on the Hub are read where they are, unless they are in its cache on this machine.
    ``keep_downloads``: download them into the cache first.

    Raises:
        UsageError: invalid options or output path.
        MisfitError: the plan has refused findings; the check has; or an unfinished run of something
            else is there.
        StorageError: reading or writing failed; the same call resumes.
        Interrupted: Ctrl-C; the same call resumes.
    """
    began = perf_counter()
    plan = _planned(recipe)
    plan.check()
    if keep_downloads:
        _download(plan)
        plan = replace(make_plan(pinned(plan)), recipe=plan.recipe)  # from the cache
    made = sweep_of_one(plan)
    watch = _Watch(progress)
    if engine not in ENGINES:
        raise UsageError(
            f"engine {engine!r} is not known", code="unknown-engine", expected=", ".join(ENGINES)
        )
    told = _analyzed(plan, memory, workers, progress) if report else None
    if scheme_of(str(out)) != LOCAL or engine == RAY:
        workers = workers or (RAY_WORKERS if engine == RAY else None)
        destination = _destination(plan, out, overwrite, private)
        shipped = _Shipped(made, destination, shard_size, memory, workers)
        if shipped.finished is not None and not overwrite:
            raise UsageError(
                "the output exists already",
                code="output-exists",
                where=str(out),
                remedy="choose another output folder, or pass `overwrite=True` to remove it before "
                "the new one is written",
            )
        if engine == RAY:
            nothing: frozenset[int] = frozenset()
            moved = shipped.on_ray(out, fresh, strict, staging, ray_address, watch)
            done = shipped.whole(out, False, check, strict, staging, watch, began, nothing, told)
            return replace(done, moved=moved + done.moved, resumed=watch.last.resumed)
        return shipped.whole(out, fresh, check, strict, staging, watch, began, analysis=told)
    if staging is not None:
        raise UsageError(
            "shards of a folder are made in it, not elsewhere",
            code="staging-not-used",
            where=str(staging),
            remedy="leave `staging` out",
        )
    place = find_place(out, local_paths(plan), overwrite, LOCK)
    inspection = Inspection(strict) if check or strict else None
    log.info("mixing into %s", place.out)
    run = _run(
        made,
        [place],
        parse_size(shard_size),
        memory,
        workers,
        fresh,
        watch,
        inspection=inspection,
        analysis=told,
    )
    return Mix(
        Path(out),
        plan,
        run.layout,
        perf_counter() - began - (inspection.seconds if inspection is not None else 0),
        run.written.read + run.written.written,
        run.written.resumed,
        run.written.not_finite[0],
        run.kept,
        replace(inspection.reports[0], folder=str(out)) if inspection is not None else None,
    )


def _download(plan: Plan) -> None:
    """Download the sources of a plan that are on the Hub into its cache."""
    with Reader() as reader:
        opener = Opener(reader, keep=True)
        for source in plan.sources:
            if source.location.repo is not None:
                opener.files(source.location.address)  # by its name, so that the cache knows it


def mix_part(
    recipe: Recipe | Plan | Address,
    out: str | Path,
    part: str,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    staging: str | Path | None = None,
    private: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> MixPart:
    """Make one part of a mix, as several machines do at once; `finish_mix` follows.

    ``out``: a folder on a file system that the machines share or in an object store, or a
    repository on the Hub. ``part``: "2/4" is the second of four; "auto" asks Slurm or Kubernetes.
    Parts are whole shards, so there should be more shards than parts. A part that was killed is
    resumed by the same call, on any machine; a part that is made twice does no harm. The other
    arguments are those of `mix`.

    Raises:
        UsageError, MisfitError, StorageError, Interrupted: as `mix`. MisfitError also if another
            part was made of other sources, by another recipe or another version of paramdelta.
    """
    began = perf_counter()
    plan = _planned(recipe)
    plan.check()
    chosen = parse_part(part, os.environ)
    destination = _destination(plan, out, overwrite, private)
    if overwrite and scheme_of(str(out)) != LOCAL:
        raise UsageError(
            "parts cannot replace an output in an object store",
            code="overwrite-with-part",
            where=str(out),
            remedy="remove the old output, or choose another folder",
        )
    shipped = _Shipped(sweep_of_one(plan), destination, shard_size, memory, workers)
    return shipped.part(out, chosen, strict, staging, _Watch(progress), began)


def finish_mix(
    recipe: Recipe | Plan | Address,
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    check: bool = False,
    strict: bool = False,
    staging: str | Path | None = None,
    report: bool = False,
    private: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Mix:
    """Put an output in place whose parts are made: checks them and adds the small files.

    May be called again: an output that is finished stays as it is. The arguments are those of the
    parts; ``strict`` refuses shards that were made without it.

    Raises:
        MisfitError: shards are missing; nothing was changed.
        UsageError, StorageError, Interrupted: as `mix`.
    """
    began = perf_counter()
    plan = _planned(recipe)
    plan.check()
    destination = _destination(plan, out, overwrite, private)
    shipped = _Shipped(sweep_of_one(plan), destination, shard_size, memory, workers)
    nothing: frozenset[int] = frozenset()
    told = _analyzed(plan, memory, workers, progress) if report else None
    watch = _Watch(progress)
    return shipped.whole(out, False, check, strict, staging, watch, began, nothing, told)


def _destination(
    plan: Plan, out: str | Path, overwrite: bool, private: bool = False
) -> Destination:
    """Where an output goes shard by shard; raises UsageError."""
    if scheme_of(str(out)) == "hf":
        from paramdelta.output.hub import HubDestination

        return HubDestination(str(out), mark=LOCK, private=private, overwrite=overwrite)
    if scheme_of(str(out)) != LOCAL:
        sources = [source.location.url for source in plan.sources]
        from paramdelta.output.bucket import BucketDestination  # keeps it out of local work

        return BucketDestination(str(out), mark=LOCK, sources=sources, overwrite=overwrite)
    return SharedFolder(find_place(out, local_paths(plan), True, LOCK), LOCK, overwrite)


def _ray_part(shared: tuple[Plan, str, dict[str, Any]], part: Part) -> MixPart:
    """A part, on a worker. What comes back has no plan: it is large, and the driver has it."""
    plan, out, options = shared
    return replace(mix_part(plan, out, str(part), **options), plan=None, layout=None)


class _Shipped:
    """A mix whose shards go to a destination one by one."""

    def __init__(
        self,
        made: Sweep,
        destination: Destination,
        shard_size: int | str,
        memory: int | str,
        workers: int | None,
    ) -> None:
        self.made, self.destination = made, destination
        self.plan = made.plans[0]
        self.shard_bytes = parse_size(shard_size)
        self.layout = layout_for(self.plan, self.shard_bytes)
        self.budget = _budget(made, memory, workers)
        self.engine = partial(threads.run, commit_seconds=COMMIT_SECONDS)
        self.memory, self.workers = memory, workers
        self.finished = destination.finished()

    def on_ray(
        self,
        out: str | Path,
        fresh: bool,
        strict: bool,
        staging: str | Path | None,
        address: str,
        watch: "_Watch",
    ) -> int:
        """Make all shards in tasks of a Ray cluster; the bytes that they read and wrote."""
        from paramdelta.engine import ray  # keeps it out of other work

        total, sizes = self.layout.nbytes, [shard.size for shard in self.layout.shards]
        known = self.destination.begin(shared_identity(self.plan, self.layout), fresh)
        self.destination.close()
        missing = [n for n, shard in enumerate(self.layout.shards) if shard.name not in known]
        whole, resumed = sum(sizes), sum(sizes) - sum(sizes[n] for n in missing)
        done, moved = resumed, 0

        def told(made: MixPart) -> None:
            nonlocal done, moved
            numbers = made.part.shards(self.layout)
            done += sum(sizes[n] for n in numbers if n in wanted)
            moved += made.moved
            watch(Progress(done * total // whole, total, resumed * total // whole, moved))

        count = min(len(sizes), MOST_TASKS)
        parts = [Part(number, count) for number in range(1, count + 1)]
        wanted = set(missing)
        options = {
            "shard_size": self.shard_bytes,
            "memory": self.memory,
            "workers": self.workers,
            "strict": strict,
            "staging": staging,
        }
        try:
            ray.run(
                _ray_part,
                (self.plan, str(out), options),
                [part for part in parts if not wanted.isdisjoint(part.shards(self.layout))],
                address=address,
                processors=self.workers or RAY_WORKERS,
                memory=self.budget.projected + INTERPRETER,
                done=told,
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped; the shards that were shipped are kept",
                code="interrupted",
                where=self.destination.where,
                remedy="the same command continues",
            ) from None
        return moved

    @property
    def is_done(self) -> bool:
        """Whether the output is finished, and this plan's."""
        return self.finished is not None and is_lock_of(self.finished, self.plan, self.shard_bytes)

    def part(
        self,
        out: str | Path,
        part: Part,
        strict: bool,
        staging: str | Path | None,
        watch: "_Watch",
        began: float,
    ) -> MixPart:
        """Make a part."""
        shards = part.shards(self.layout)
        names = tuple(self.layout.shards[number].name for number in sorted(shards))
        written, missing = Written(0, 0, 0, ()), tuple[str, ...]()
        if not self.is_done:
            sink = self._sink(False, strict, staging, shards)
            with self._interruptible():
                written = write_shards(
                    self.made, self.layout, sink, self.budget, shards, watch, self.engine
                )
            every = [shard.name for shard in self.layout.shards]
            missing = tuple(name for name in every if name not in sink.records)
        moved = written.read + written.written
        seconds = perf_counter() - began
        return MixPart(
            str(out), self.plan, self.layout, part, names, missing, seconds, moved, written.resumed
        )

    def whole(
        self,
        out: str | Path,
        fresh: bool,
        check: bool,
        strict: bool,
        staging: str | Path | None,
        watch: "_Watch",
        began: float,
        shards: frozenset[int] | None = None,
        analysis: Analysis | None = None,
    ) -> Mix:
        """Make the shards, by default all, and finish. Without any, a finished output is kept.

        ``analysis``: what the report in the output is made of.
        """
        inspection = Inspection(strict) if check or strict else None
        written = Written(0, 0, self.layout.nbytes, ({},))
        if shards is None or not self.is_done:
            small = _small_files(self.plan, Path(str(out)), analysis)
            sink = self._sink(fresh, strict, staging, shards)
            if inspection is not None:
                sink.inspect = inspection.skeleton

            def small_files(_: int, digests: Mapping[Blob, str | None]) -> dict[str, bytes]:
                outputs = _listed(self.layout, sink.file_digests(), {**small, **self.layout.small})
                text = lock_text(self.plan, self.shard_bytes, digests, outputs)
                return {**small, LOCK: text.encode()}

            with self._interruptible():
                written = write_outputs(
                    self.made,
                    self.layout,
                    [sink],
                    self.budget,
                    small_files,
                    watch,
                    self.engine,
                    shards,
                )
        reports = inspection.reports if inspection is not None else []
        return Mix(
            out if scheme_of(str(out)) != LOCAL else Path(out),
            self.plan,
            self.layout,
            perf_counter() - began - (inspection.seconds if inspection is not None else 0),
            written.read + written.written,
            written.resumed,
            written.not_finite[0],
            report=replace(reports[0], folder=str(out)) if reports else None,
        )

    def _sink(
        self,
        fresh: bool,
        strict: bool,
        staging: str | Path | None,
        shards: frozenset[int] | None,
    ) -> ShippingSink:
        return ShippingSink(
            self.destination,
            shared_identity(self.plan, self.layout),
            mark=LOCK,
            fresh=fresh,
            staging=Path(staging) if staging is not None else None,
            shards=shards,
            examine=refuse_not_finite if strict else None,
        )

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped; the shards that were shipped are kept",
                code="interrupted",
                where=self.destination.where,
                remedy="the same command continues",
            ) from None


def tensors(
    recipe: Recipe | Plan | Address,
    *,
    dtype: str | None = None,
    framework: str = "numpy",
    memory: int | str = MEMORY,
    workers: int | None = None,
) -> Iterator[tuple[str, Any]]:
    """The tensors of a mix, one after the other, in the order of the output; nothing is written.

    Yields name and array. One tensor is made at a time, so memory is bounded by ``memory`` and the
    largest tensor. ``dtype``: of the output, in place of the recipe's. ``framework``: "numpy" or
    "torch". numpy has no BF16: such tensors come as float32, which holds every BF16 number. FP8
    weights come as two tensors, codes and scales.

    Raises:
        UsageError, MisfitError, CheckpointError, StorageError: as `mix`.
    """
    check_framework(framework)
    if dtype is not None and isinstance(recipe, Plan):
        raise UsageError(
            "a plan has its dtype already", code="dtype-with-plan", expected="a recipe with dtype"
        )
    if not isinstance(recipe, Plan):
        chosen = _recipe(recipe)
        recipe = chosen if dtype is None else replace(chosen, dtype=parse_dtype(dtype))
    plan = _planned(recipe)
    plan.check()
    made = sweep_of_one(plan)
    return _tensors(made, _budget(made, memory, workers), framework)


def _tensors(made: Sweep, chosen: Budget, framework: str) -> Iterator[tuple[str, Any]]:
    job, _ = measured(MixJob.of(made, chosen.buffer), lambda _: False, chosen)
    order = list(dict.fromkeys(stored.tensor for stored in made.stored))
    with Reader(once=True, ahead=True) as reader, Maker(job, reader, chosen.workers) as maker:
        maker.expect(order)
        for number in order:
            for stream, array in maker.make(number):
                yield stream.name, converted(array, stream.dtype, framework)


def _analyzed(
    plan: Plan,
    memory: int | str,
    workers: int | None,
    progress: Callable[[Progress], None] | None,
) -> Analysis:
    """The analysis of a plan that is about to be mixed."""
    from paramdelta.analysis.run import run

    return run(
        make_plan(plan.recipe, whole=True),
        spectra=False,
        memory=parse_size(memory),
        workers=workers,
        has_new_base=True,
        progress=progress,
    )


def analyze(
    source: Recipe | tuple[Address, Address] | Address,
    *,
    spectra: bool = False,
    memory: int | str = MEMORY,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Measure the Δs of a recipe beside the shift of the new base, in one streamed pass.

    ``source``: a recipe, or the path of a YAML file with one; post and base, where there is no new
    base; or a folder that `mix` wrote, whose lock names its sources. Tensors to which the recipe
    gives scale 0 are left out, and what a scheme or a filter drops is not: a Δ is measured whole.
    Nothing is written. Findings that would prevent a mix do not prevent this; they are in the
    result. ``spectra``: a further pass, with singular values. The numbers are the same for any
    ``memory`` and number of ``workers``.

    Raises:
        UsageError: invalid options, or a source that is none of these.
        MisfitError: no tensor has a Δ, or the sources of an output are not here or have changed.
        CheckpointError, StorageError: reading failed.
    """
    from paramdelta.analysis.run import run

    if isinstance(source, tuple):
        recipe = Recipe(source[1], (Delta(*source),), allow=("only-in-post",))
    elif isinstance(source, Recipe) or Path(source).is_file():
        recipe = _recipe(source)
    else:
        recipe = _recorded(source)
    plan = make_plan(recipe, whole=True)
    if isinstance(source, tuple):
        told = tuple(found for found in plan.findings if found.code not in SHIFT_CODES)
        plan = replace(plan, findings=told, shifts={})
    return run(
        plan,
        spectra=spectra,
        memory=parse_size(memory),
        workers=workers,
        has_new_base=not isinstance(source, tuple),
        progress=progress,
    )


def _recorded(folder: Address) -> Recipe:
    """The recipe of an output, from its lock."""
    from paramdelta.jobs.verify.mix import locked_plan

    with Reader() as reader:
        files = Files(locate(str(folder)), reader)
        if LOCK not in files:
            raise UsageError(
                f"no {LOCK} there, so it is not a finished mix",
                code="not-an-output",
                where=str(folder),
                expected="a recipe file, a folder that mix wrote, or `post` and `base`",
            )
        return locked_plan(files).recipe


def sweep(
    recipe: Recipe | Address,
    scales: Sequence[float],
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    check: bool = False,
    strict: bool = False,
    keep_downloads: bool = False,
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
        UsageError: invalid scales, options or output paths.
        MisfitError, StorageError, Interrupted: as `mix`; the same call resumes.
    """
    began = perf_counter()
    check_local(out)
    out = Path(out)
    shard_bytes = parse_size(shard_size)
    recipe = _recipe(recipe)
    made = make_sweep(recipe, scales)
    if keep_downloads:
        _download(made.plans[0])
        made = make_sweep(recipe, scales)  # from the cache
    if planned is not None:
        planned(made)
    outs = [out / f"scale-{scale}" for scale in made.scales]
    anew = fresh and overwrite
    todo = [
        number
        for number, (plan, folder) in enumerate(zip(made.plans, outs, strict=True))
        if anew or not is_finished(plan, shard_bytes, folder)
    ]
    for number in {*range(len(outs))} - {*todo}:
        tidy(outs[number], LOCK)
    not_finite: dict[int, dict[tuple[str, str], int]] = {}
    read = written = 0
    kept: tuple[Path, ...] = ()
    if todo:
        sources = local_paths(made.plans[0])
        places = [find_place(outs[number], sources, overwrite, LOCK) for number in todo]
        part = made.only(todo)
        inspection = Inspection(strict) if check or strict else None
        run = _run(part, places, shard_bytes, memory, workers, fresh, progress, made, inspection)
        not_finite = dict(zip(todo, run.written.not_finite, strict=True))
        read, written, kept = run.written.read, run.written.written, run.kept
    return Swept(
        tuple(
            Member(scale, folder, *_sizes(folder), number not in todo, not_finite.get(number, {}))
            for number, (scale, folder) in enumerate(zip(made.scales, outs, strict=True))
        ),
        perf_counter() - began,
        read,
        written,
        kept,
    )


@dataclass(frozen=True)
class _Run:
    """What `_run` did. ``kept``: see `Mix`."""

    layout: Layout
    written: Written
    kept: tuple[Path, ...]


def _run(
    made: Sweep,
    places: Sequence[Place],
    shard_bytes: int,
    memory: int | str,
    workers: int | None,
    fresh: bool,
    progress: Callable[[Progress], None] | None,
    whole: Sweep | None = None,
    inspection: Inspection | None = None,
    analysis: Analysis | None = None,
) -> _Run:
    """Write the outputs of a sweep to places on this machine. ``whole``: the sweep that ``made`` is
    a part of, whose layout all outputs have. ``inspection``: of every output before it is put in
    place. ``analysis``: what the report in every output is made of.
    """
    first = made.plans[0]
    laid = whole or made
    streams = [stored.stream for stored in laid.stored]
    layout = make_layout(streams, first.parameters, shard_bytes, laid.own, first.components)
    chosen = _budget(made, memory, workers)
    small = [
        _small_files(plan, place.out, analysis)
        for plan, place in zip(made.plans, places, strict=True)
    ]
    if not fresh:
        common = sum(shard.size for shard in layout.shards if shard.first >= laid.own)
        check_room(places[0], len(places) * layout.size - (len(places) - 1) * common)
    sinks: list[FolderSink] = []
    for plan, place in zip(made.plans, places, strict=True):
        twin = sinks[0] if sinks else None
        identity = run_identity(plan, layout)
        sinks.append(
            FolderSink(
                place,
                identity,
                mark=LOCK,
                fresh=fresh,
                twin=twin,
                own=laid.own,
                inspect=inspection,
            )
        )

    def small_files(number: int, digests: Mapping[Blob, str | None]) -> dict[str, bytes]:
        files = small[number]
        outputs = _digested(sinks[number], {**files, **layout.small})
        text = lock_text(made.plans[number], shard_bytes, digests, outputs)
        return {**files, LOCK: text.encode()}

    try:
        written = write_outputs(made, layout, sinks, chosen, small_files, progress)
    except KeyboardInterrupt:
        log.warning("stopped; the same call resumes")
        raise Interrupted(
            "stopped; what is done is kept",
            code="interrupted",
            where=str(places[0].staging if len(places) == 1 else places[0].out.parent),
            remedy="the same command continues; `fresh=True` starts again",
        ) from None
    log.info("%d bytes read, %d bytes written", written.read, written.written)
    kept = tuple(folder for sink in sinks for folder in sink.kept)
    return _Run(layout, written, kept)


def _digested(sink: FolderSink, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Size and content digest of every file of an output, except for its card and its lock."""
    found: dict[str, dict[str, Any]] = {
        name: {"size": sink.files[name].size(), "digest": digest}
        for name, digest in sink.file_digests().items()
    }
    return _with_small(found, files)


def _listed(
    layout: Layout, digests: Mapping[str, str], files: Mapping[str, bytes]
) -> dict[str, dict[str, Any]]:
    """As `_digested`, of shards that are elsewhere."""
    sizes = {shard.name: shard.size for shard in layout.shards}
    shards = {name: {"size": sizes[name], "digest": digest} for name, digest in digests.items()}
    return _with_small(shards, files)


def _with_small(
    found: dict[str, dict[str, Any]], files: Mapping[str, bytes]
) -> dict[str, dict[str, Any]]:
    for name, data in files.items():
        if name not in ("README.md", RECIPE):  # they say where the output is
            digest = TreeDigest(len(data))
            digest.update(0, memoryview(data))
            found[name] = {"size": len(data), "digest": digest.hexdigest()}
    return found


def _small_files(plan: Plan, out: Path, analysis: Analysis | None) -> dict[str, bytes]:
    """All but weights, index and lock. Built before a weight is written: this may fail."""
    with Reader() as reader:
        files = contents(plan.companions, reader)
    card = model_card(plan, out)
    if analysis is not None:
        from paramdelta.analysis.report.outputfiles import card_section, output_files

        files |= output_files(analysis)
        card = f"{card.rstrip()}\n\n{card_section(analysis)}"
    return {
        **files,
        RECIPE: recipe_file(plan, out).encode(errors="replace"),
        "README.md": card.encode(errors="replace"),
    }


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes of a folder's weight files, and of those that are elsewhere too, by hard links."""
    files = [path.stat() for path in folder.rglob("*.safetensors")]
    shared = sum(file.st_size for file in files if file.st_nlink > 1)
    return sum(file.st_size for file in files), shared


def card(folder: str | Path) -> Path:
    """Write README.md of an output of `mix` again, from its lock and the cards of its sources.

    Returns the path of the card.

    Raises:
        MisfitError: not an output of `mix`, or its sources are not here.
        CheckpointError, StorageError: reading or writing failed.
    """
    from paramdelta.jobs.verify.mix import locked_plan
    from paramdelta.storage.local import write_bytes

    check_local(folder)
    if not (Path(folder) / LOCK).is_file():
        raise MisfitError(
            "mix did not write this folder",
            code="not-an-output",
            where=str(folder),
            expected=f"a folder with {LOCK}",
        )
    with Reader() as reader:
        plan = locked_plan(Files(locate(str(folder)), reader))
    path = Path(folder) / "README.md"
    write_bytes(path, model_card(plan, Path(folder).absolute()).encode(errors="replace"))
    return path


def local_paths(plan: Plan) -> list[Path]:
    """The sources of a plan that are on this machine."""
    paths = (source.location.path for source in plan.sources)
    return [path for path in paths if path is not None]


def budget_for(plan: Plan, memory: int | str = MEMORY, workers: int | None = None) -> Budget:
    """How a mix of this plan would use the memory; raises UsageError if it is too little."""
    return _budget(sweep_of_one(plan), memory, workers)


def _budget(made: Sweep, memory: int | str, workers: int | None) -> Budget:
    job = MixJob.of(made, 0)
    measure = MeasureJob.of(job.members, lambda _: True, 0)
    ahead = READ_AHEAD if made.plans[0].transfers else 0

    def need(buffer: int) -> Need:
        needs = [job.need(buffer), *([measure.need(buffer)] if measure.wanted else [])]
        return Need(max(n.each for n in needs), max(n.shared for n in needs) + ahead)

    rows = any(len(tensor.streams) > 1 for tensor in made.plans[0].tensors)
    what = ", 128 whole rows of which are quantized at once" if rows else ""
    return budget(need, parse_size(memory), workers or default_workers(), " for this recipe" + what)


def check(
    folder: str | Path,
    *,
    strict: bool = False,
    load: bool = False,
    values: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at a folder as a loader does, knowing nothing of how it was made.

    ``strict``: NaN and infinities are refused, not only warned of. ``load``: load it in a child
    process with the library that it is for, offline and without code of the folder. ``values``:
    read every number; without it, headers and small files only. ``progress``: called with bytes
    read and bytes to read. ``passed`` of the result says whether nothing is refused.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    from paramdelta.checks.checker import check as look

    report = look(Path(folder), strict=strict, load=load, values=values, progress=progress)
    log.info("checked %s: %s", folder, "passed" if report.passed else "refused")
    _log_findings(report.findings)
    return report


def verify(
    folder: str | Path,
    *,
    share: float = 0.01,
    memory: int | str = MEMORY,
    workers: int | None = None,
    seed: int | None = None,
    download: bool = False,
    post: str | Path | None = None,
    base: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Recompute a share of an output from its sources by an independent path, and compare.

    ``folder``: an output of `mix`, `sweep`, `extract` or `extract_adapter`. All of its files are
    compared with the content digests that were recorded when they were written. ``share``: of the
    numbers of each tensor, above 0 and at most 1; at 1 the contents of the sources are compared
    with the lock as well. ``seed`` repeats a sample; by default each run takes a new one.
    ``download``: whether to fetch sources that are not on this machine. ``post`` and ``base``:
    where the sources of a stored Δ or of an adapter are, if they are neither beside it nor in the
    cache of the Hub. If they are not found, only checksums are compared.

    Raises:
        UsageError: options that are not valid.
        MisfitError: it differs, or the sources are not here, or are no longer the same.
        CheckpointError: a lock or a checkpoint that is malformed.
        StorageError: reading failed.
    """
    from paramdelta.jobs.verify.folder import verify_folder
    from paramdelta.jobs.verify.verification import Options

    if not 0 < share <= 1:
        raise UsageError(
            f"share {share} is not valid",
            code="invalid-share",
            expected="above 0 and at most 1: 0.01",
        )
    options = Options(
        share,
        parse_size(memory),
        workers or computing_workers(),
        int.from_bytes(os.urandom(4), "little") if seed is None else seed,
        download,
        progress or (lambda _: None),
        str(post) if post is not None else None,
        str(base) if base is not None else None,
    )
    log.info("verifying %s, share %g, seed %d", folder, share, options.seed)
    found = verify_folder(str(folder), options)
    log.info("right: %r", found)
    return found


def plan_extract(
    post: Address,
    base: Address,
    *,
    maps: Sequence[str] = (),
    vocabulary: str = "auto",
    allow: Sequence[str] = (),
) -> Plan:
    """How post and base correspond: the plan of the mix whose Δ `extract` stores.

    Tensors that only post has are stored whole. Raises as `plan`, and UsageError for an adapter.
    """
    with Reader() as reader:
        opener = Opener(reader)
        if is_adapter(opener.files(str(post))):
            raise UsageError(
                "an adapter is a Δ already, and smaller than a stored Δ",
                code="adapter-extracted",
                where=str(post),
                remedy="pass it to mix as `post`",
            )
        recipe = extraction_recipe(
            str(post), str(base), opener, maps=maps, vocabulary=vocabulary, allow=allow
        )
        made = make_plan(recipe, opener)
    # There is no new base, so nothing is to be said of one.
    told = tuple(found for found in made.findings if found.code not in SHIFT_CODES)
    return replace(made, findings=told, shifts={})


def _extraction(source: Plan | Sequence[Address]) -> Plan:
    """The plan of an extraction, from post and base or as it was given."""
    if isinstance(source, Plan):
        return source
    if isinstance(source, str) or len(source) != 2:
        raise UsageError(
            "a Δ is extracted from two models",
            code="invalid-delta-entry",
            expected="a pair: (post, base)",
            got=repr(source),
        )
    return plan_extract(*source)


def extract(
    source: Plan | Sequence[Address],
    out: str | Path,
    *,
    shard_size: int | str = SHARD_SIZE,
    memory: int | str = MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Extracted:
    """Store a Δ as a separate folder: exact, compressed, with post's companions.

    ``source``: post and base, or a plan of `plan_extract`. The other arguments are those of `mix`;
    ``shard_size`` bounds how much of post goes into a file. Whole or not at all; a run that was
    stopped starts again.

    Raises:
        UsageError: invalid options or output path.
        MisfitError: post and base do not fit together, or are one and the same.
        StorageError: reading or writing failed.
        Interrupted: Ctrl-C; nothing is kept.
    """
    began = perf_counter()
    plan = _extraction(source)
    plan.check()
    if not any(tensor.pairs for tensor in plan.tensors):
        raise MisfitError(
            "there is no Δ between them",
            code="no-delta",
            where=" and ".join(str(source) for source in plan.sources[1:]),
            expected="tensors of the same names that are not the same file's",
        )
    shard_bytes = parse_size(shard_size)
    chosen = _extract_budget(
        extraction.ExtractJob(plan.tensors, shard_bytes, None), memory, workers
    )
    place = find_place(out, local_paths(plan), overwrite, DELTA)
    with Reader() as reader:
        small = contents(plan.companions, reader)
    origins = origins_of([source for source in plan.lineages[0] if source is not None])
    watch = _Watch(progress)

    def write(sink: FolderSink) -> extraction.Made:
        job = extraction.ExtractJob(plan.tensors, shard_bytes, sink)
        _once(job, chosen, watch)
        made = job.made()
        card = delta_card(origins, Path(out), made.base_sha256)
        about = extraction.description(plan, made, _digested(sink, small))
        files = {**small, "README.md": card.encode(errors="replace"), DELTA: about.encode()}
        for name, data in files.items():
            sink.put(name, data)
        return made

    made, kept = _whole(place, DELTA, write)
    return Extracted(Path(out), plan, made, perf_counter() - began, watch.last.moved, kept)


def extract_adapter(
    source: Plan | Sequence[Address],
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
    """Store a Δ as the closest LoRA adapter, in PEFT's layout, with post's companions.

    ``rank``: of the factors of every linear weight, at most the rank of the weight; or ``energy``:
    the smallest rank that keeps this share of its ‖Δ‖²_F, up to ``max_rank``. ``embeddings``:
    factors for embeddings and output head as well. ``dtype`` of the factors: auto (post's BF16 or
    F16, else F32), bf16, f16, f32 or f64. The other arguments are those of `extract`. Whole or not
    at all.

    Raises:
        UsageError: invalid options or output path, or too little memory.
        MisfitError: as `extract`, or no linear weight has a Δ.
        CheckpointError: a Δ that is not finite.
        StorageError, Interrupted: as `extract`.
    """
    began = perf_counter()
    aim = _aim(rank, energy, max_rank)
    stored = parse_dtype(dtype)
    if stored == FP8_BLOCK:
        raise UsageError(
            "factors cannot be FP8", code="invalid-dtype", expected="auto, bf16, f16, f32 or f64"
        )
    plan = _extraction(source)
    plan.check()
    if any(component.prefix for component in plan.components):
        raise UsageError(
            "an adapter adapts one model, and this is a folder of several",
            code="adapter-of-components",
            where=str(plan.new_base),
            remedy="name the folder of one of them: "
            + ", ".join(component.folder for component in plan.components if component.prefix),
        )
    parts = linear(plan, embeddings)
    number_type = stored or lowrank.common_dtype(parts)
    where = " − ".join(str(source) for source in plan.lineages[0] if source is not None)
    planned = lowrank.LowRankJob(parts, aim, number_type, where, None)
    chosen = _extract_budget(planned, memory, workers)
    place = find_place(out, local_paths(plan), overwrite, lowrank.LORA)
    with Reader() as reader:
        models = tuple(c for c in plan.companions if c.name not in lowrank.MODELS)
        small = contents(models, reader)
    small |= lowrank.serving_files(plan, small)
    called = lowrank.base_name(plan)
    origins = origins_of([source for source in plan.lineages[0] if source is not None])
    watch = _Watch(progress)

    def write(sink: FolderSink) -> lowrank.MadeAdapter:
        job = lowrank.LowRankJob(parts, aim, number_type, where, sink)
        _once(job, chosen, watch)
        made = job.finished(called)
        files = {**small, CONFIG: to_json(lowrank.adapter_config(parts, made)).encode()}
        about = lowrank.description(plan, aim, made, _digested(sink, files))
        card = adapter_card(origins, Path(out), made, lowrank.RANKS, files)
        files |= {
            "README.md": card.encode(errors="replace"),
            lowrank.LORA: about.encode(),
        }
        for name, data in files.items():
            sink.put(name, data)
        return made

    made, kept = _whole(place, lowrank.LORA, write)
    return ExtractedAdapter(Path(out), plan, made, perf_counter() - began, watch.last.moved, kept)


def _once(job: Job[Any, Any], chosen: Budget, watch: "_Watch") -> None:
    """Run a job that is not resumed."""
    with Reader(ahead=True) as reader:
        threads.run(job, reader, workers=chosen.workers, progress=watch)


def _extract_budget(job: Any, memory: int | str, workers: int | None) -> Budget:
    return budget(job.need, parse_size(memory), workers or default_workers(), " for this Δ")


def _whole(
    place: Place, mark: str, write: Callable[[FolderSink], Made]
) -> tuple[Made, tuple[Path, ...]]:
    """Write a folder that appears whole or not at all, and is never resumed. Returns what ``write``
    returned, and the folders with what is left of replaced outputs.
    """
    sink = FolderSink(place, {"digest": mark, "sources": []}, mark=mark)
    try:
        sink.begin_new()
        made = write(sink)
        sink.finish()
    except BaseException as error:
        sink.discard()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "stopped; nothing is kept",
                code="interrupted",
                where=str(place.out),
                remedy="the same command starts again",
            ) from None
        raise
    return made, tuple(sink.kept)


def _aim(rank: int | None, energy: float | None, max_rank: int) -> Aim:
    if (rank is None) == (energy is None):
        raise UsageError(
            "an adapter needs a rank, or a share of the energy",
            code="missing-rank",
            expected="one of `rank=16` and `energy=0.95`, say",
        )
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(
            f"energy {energy:g} is not valid", code="invalid-share", expected="over 0, up to 1"
        )
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None and value < 1:
            raise UsageError(
                f"{name} {value} is not valid", code="invalid-rank", expected="1 or more"
            )
    return Aim(rank, energy, max_rank)
