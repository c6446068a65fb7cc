"""Runs an analysis: the plan, the streamed pass, the spectra, and what is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter

from paramdelta.analysis.analysis import Analysis, Collector, DeltaName, ordered
from paramdelta.engine import threads
from paramdelta.engine.job import Progress
from paramdelta.engine.memory import budget, computing_workers
from paramdelta.errors import MisfitError
from paramdelta.jobs.analyze import AnalyzeJob
from paramdelta.jobs.spectra import SpectraJob
from paramdelta.planning.plan import Plan
from paramdelta.planning.tokenaxes import token_axes
from paramdelta.planning.tokenizer import read_vocabulary
from paramdelta.planning.vocabulary import Vocabulary
from paramdelta.recipe import Schedule
from paramdelta.recipe.formula import MINUS
from paramdelta.storage.reader import Reader


def run(
    plan: Plan,
    *,
    spectra: bool,
    memory: int,
    workers: int | None,
    has_new_base: bool,
    progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Analyze a plan that was made with all operands (`make_plan` with ``whole``).

    ``has_new_base``: False if the plan's new base only stands for base.

    Raises:
        MisfitError: no tensor has a Δ.
        UsageError: too little memory.
        CheckpointError, StorageError: reading failed.
    """
    began = perf_counter()
    deltas = plan.recipe.deltas
    collector = Collector(len(deltas), _tokens(plan), has_new_base)
    job = AnalyzeJob.of(plan, 0, collector)
    if not job.subjects:
        raise MisfitError(
            "there is no Δ to look at",
            code="no-delta",
            where=" and ".join(map(str, plan.sources)),
            expected="tensors of the same names and shapes, with a scale other than 0",
        )
    chosen = budget(job.need, memory, workers or computing_workers(), " for this analysis")
    job.buffer = chosen.buffer
    further = SpectraJob(job.subjects if spectra else [])
    later = budget(further.need, memory, workers or computing_workers(), " for the spectra")
    read = 0
    with Reader(once=True, ahead=True) as reader:
        threads.run(job, reader, workers=chosen.workers, progress=progress)
        read += reader.count
    if further.subjects:
        with Reader(ahead=True) as reader:
            threads.run(further, reader, workers=later.workers, progress=progress)
            read += reader.count
    spectra_of = further.found.get
    measured = (replace(t, spectra=tuple(spectra_of(t.name, ()))) for t in collector.tensors)
    everything, layers, kinds, cells = collector.groups()
    return Analysis(
        plan.recipe.symbols if has_new_base else f"Δ = Θ_post {MINUS} Θ_base",
        tuple(_name(plan, number) for number in range(len(deltas))),
        str(plan.new_base.location.pinned) if has_new_base else None,
        plan.parameters,
        everything,
        layers,
        kinds,
        cells,
        ordered(measured, (tensor.name for tensor in plan.tensors)),
        sum(not tensor.pairs for tensor in plan.tensors),
        collector.histograms(),
        plan.findings,
        perf_counter() - began,
        read,
    )


def _tokens(plan: Plan) -> Mapping[str, Mapping[int, str]]:
    """The new base's tokens by row, for each tensor that has a row for each token."""
    found = read_vocabulary(plan.new_base.files, plan.new_base.config, {})
    if not isinstance(found, Vocabulary):
        return {}
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    axes = token_axes(shapes, plan.new_base.config, found.size)
    return {name: found.tokens for name, axis in axes.items() if axis == 0}


def _name(plan: Plan, number: int) -> DeltaName:
    post, base = plan.lineages[number]
    scale = plan.recipe.deltas[number].scale
    return DeltaName(
        post.role,
        post.location.pinned,
        base.location.pinned if base is not None else None,
        None if isinstance(scale, Schedule) else scale,
    )
