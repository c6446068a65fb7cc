"""Recipe and checkpoints -> Plan.

The plan is made from headers, config files and tokenizer files, and from a few MB of weights: a
sample that shows whether the checkpoints are relatives, and rows that may be untrained. Nothing is
written.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

from paramdelta.dtypes import DTYPES
from paramdelta.planning import companions
from paramdelta.planning.alignment import align_names, join_repeats
from paramdelta.planning.architecture import compare_architecture
from paramdelta.planning.coefficients import choose_factors
from paramdelta.planning.findings import Findings, check_allowed
from paramdelta.planning.heads import settle_head
from paramdelta.planning.leftovers import report_leftovers
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.precision import report_precision
from paramdelta.planning.quantization import (
    check_dtype,
    output_config,
    report_requantized,
)
from paramdelta.planning.relatives import compare_relatives
from paramdelta.planning.rows import (
    grown_rows,
    report_rows,
    settle_vocabularies,
)
from paramdelta.planning.sources import Opener, open_sources
from paramdelta.planning.statistics import check_statistics
from paramdelta.planning.taken import check_rows, named_as_post, take_tensors
from paramdelta.planning.tensors import Decisions, plan_tensor, taken_tensor
from paramdelta.planning.tokenaxes import token_axes
from paramdelta.recipe import Recipe
from paramdelta.storage.reader import Reader


def make_plan(recipe: Recipe, opener: Opener | None = None) -> Plan:
    """Open the checkpoints of a recipe by their headers and decide everything.

    ``opener``: opens the checkpoints. Plans that share one open each checkpoint once.

    Raises:
        UsageError: an address that is not a checkpoint, or a choice that is not valid for these
            checkpoints.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """
    if opener is None:
        with Reader() as reader:
            return make_plan(recipe, Opener(reader))
    with _without_collection():
        return _make_plan(recipe, opener)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the garbage collector: of the objects of a plan, all stay and few form cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _make_plan(recipe: Recipe, opener: Opener) -> Plan:
    findings = Findings()
    check_allowed(recipe.allow)

    sources = open_sources(recipe, opener, findings)
    check_dtype(recipe.dtype, sources.new)

    sources = named_as_post(sources, recipe.take_tensors, findings)
    sources = align_names(sources, recipe.maps, findings)
    sources = join_repeats(sources, findings)
    sources, taken = take_tensors(sources, recipe.take_tensors, findings)
    settlement = settle_vocabularies(sources, recipe, findings)
    check_rows(taken, sources, settlement, findings)
    sources, tied = settle_head(sources, recipe.head, findings)

    factors = choose_factors(recipe, sources, findings)
    axes = token_axes(
        {name: view.shape for name, view in sources.new.views.items()},
        sources.new.checkpoint.config,
        settlement.new.size if settlement.new is not None else None,
    )
    decided = Decisions(recipe, sources, settlement, factors, axes)
    tensors = [plan_tensor(name, decided, findings) for name in sources.new.views]
    tensors += [taken_tensor(name, view, decided) for name, view in taken.views.items()]

    report_leftovers(recipe, sources, findings)
    check_statistics(tensors, sources.new, sources.fetch, findings)
    likeness, shifts = compare_relatives(sources, recipe, findings)
    report_precision(sources, likeness, findings)
    for source in sources.others:
        compare_architecture(sources.new.checkpoint, source.checkpoint, findings)
    rows = report_rows(settlement, sources, axes, findings)
    report_requantized(tensors, sources.new, findings)

    quantization = output_config(recipe.dtype, sources.new, tensors)
    facts = companions.Facts(
        dtype=_common_dtype(tensors) if quantization is None else None,
        tied=tied,
        rows=grown_rows(tensors, axes, sources),
        quantised=quantization,
        head=taken.config,
    )
    new, post = sources.new.checkpoint, sources.lineages[0].post.checkpoint
    chosen = companions.choose(new, post, settlement, facts)

    return Plan(
        recipe,
        new,
        tuple(
            (each.post.checkpoint, each.base.checkpoint if each.base is not None else None)
            for each in sources.lineages
        ),
        # Wider elements first, as the format's own writer does: every tensor stays aligned.
        tuple(sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].size)),
        chosen,
        findings.all(recipe.allow),
        likeness,
        shifts,
        rows,
    )


def _common_dtype(tensors: Sequence[OutputTensor]) -> str | None:
    """The floating-point dtype of all weights; None if there are several."""
    dtypes = {t.dtype for t in tensors if DTYPES[t.dtype].mixable}
    return dtypes.pop() if len(dtypes) == 1 else None
