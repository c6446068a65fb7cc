"""Recipe and checkpoints -> Plan.

The plan is made from headers, config files and tokenizer files, and from a few MB of weights: a
sample that shows whether the checkpoints are relatives, and rows that may be untrained. Nothing is
written.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paramdelta.dtypes import DTYPES
from paramdelta.formats.components import Component, component_of
from paramdelta.formats.view import View
from paramdelta.planning import companions
from paramdelta.planning.account import account
from paramdelta.planning.alignment import align_names, join_repeats
from paramdelta.planning.architecture import compare_architecture
from paramdelta.planning.coefficients import choose_factors
from paramdelta.planning.findings import Findings, check_allowed
from paramdelta.planning.heads import settle_head
from paramdelta.planning.leftovers import report_leftovers
from paramdelta.planning.modules import Assembly, assemble
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.precision import report_precision
from paramdelta.planning.predictors import is_predictor, stated_layers
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
from paramdelta.planning.sources import Opener, Source, open_sources
from paramdelta.planning.statistics import check_statistics
from paramdelta.planning.taken import check_rows, named_as_post, take_tensors
from paramdelta.planning.tensors import Decisions, plan_tensor, taken_tensor
from paramdelta.planning.tokenaxes import token_axes
from paramdelta.recipe import Recipe
from paramdelta.storage.reader import Reader


def make_plan(recipe: Recipe, opener: Opener | None = None, *, whole: bool = False) -> Plan:
    """Open the checkpoints of a recipe by their headers and decide everything.

    ``opener``: opens the checkpoints. Plans that share one open each checkpoint once. ``whole``:
    every tensor keeps all of its operands, although some cancel out: to look at the Δs, not to mix.

    Raises:
        UsageError: an address that is not a checkpoint, or a choice that is not valid for these
            checkpoints.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """
    if opener is None:
        with Reader() as reader:
            return make_plan(recipe, Opener(reader), whole=whole)
    before = opener.reader.fetched
    with _without_collection():
        plan = _make_plan(recipe, opener, whole)
    return replace(plan, fetched=opener.reader.fetched - before)


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


def _make_plan(recipe: Recipe, opener: Opener, whole: bool) -> Plan:
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
    sources, assembly = assemble(sources, findings)
    tied: bool | None = None
    if sources.new.checkpoint.makeup.main is not None:
        sources, tied = settle_head(sources, recipe.head, findings)

    factors = choose_factors(recipe, sources, findings)
    axes = token_axes(
        {name: view.shape for name, view in _main_views(sources.new, assembly).items()},
        sources.new.checkpoint.config,
        settlement.new.size if settlement.new is not None else None,
    )
    decided = Decisions(recipe, sources, settlement, factors, axes, whole)
    tensors = [plan_tensor(name, decided, findings) for name in sources.new.views]
    tensors += [taken_tensor(name, view, decided) for name, view in taken.views.items()]
    tensors += assembly.tensors(recipe.dtype, len(sources.lineages))

    report_leftovers(recipe, sources, findings)
    check_statistics(tensors, sources.new, sources.fetch, findings)
    likeness, shifts = compare_relatives(sources, recipe, findings)
    report_precision(sources, likeness, findings)
    for source in sources.others:
        compare_architecture(sources.new.checkpoint, source.checkpoint, findings)
    rows = report_rows(settlement, sources, axes, findings)
    report_requantized(tensors, sources.new, findings)

    quantization = output_config(recipe.dtype, sources.new, tensors)
    dtypes = _common_dtypes(tensors, assembly.components)
    facts = companions.Facts(
        dtype=dtypes.get("") if quantization is None else None,
        tied=tied,
        rows=grown_rows(tensors, axes, sources),
        quantized=quantization,
        head=taken.config,
        predicts=_predicts(tensors, sources.new.checkpoint.config),
    )
    new, first = sources.new.checkpoint, sources.lineages[0]
    post, base = first.post.checkpoint, first.base.checkpoint if first.base is not None else None
    chosen = companions.choose(
        new, post, base, settlement, facts, assembly.components, dtypes, findings
    )
    lineages = tuple(
        (each.post.checkpoint, each.base.checkpoint if each.base is not None else None)
        for each in sources.lineages
    )
    opened = [new, *(each for pair in lineages for each in pair if each is not None)]
    small = (*chosen.companions, *companions.terms_of_use(opened, chosen.companions))

    return Plan(
        recipe,
        new,
        lineages,
        # Wider elements first, as the format's own writer does: every tensor stays aligned.
        tuple(sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].size)),
        small,
        findings.all(recipe.allow),
        likeness,
        shifts,
        rows,
        assembly.components,
        account(opened, small, assembly.components, chosen.left),
    )


def _predicts(tensors: Sequence[OutputTensor], config: Mapping[str, Any]) -> bool:
    """Whether the output has layers that predict further tokens."""
    return bool(stated_layers(config)) and any(is_predictor(t.name, config) for t in tensors)


def _main_views(new: Source, assembly: Assembly) -> dict[str, View]:
    """The tensors of the model that has the tokenizer; none in a pipeline."""
    others = tuple(c.prefix for c in assembly.components if c.prefix)
    if new.checkpoint.makeup.main is None:
        return {}
    return {n: v for n, v in new.views.items() if not (others and n.startswith(others))}


def _common_dtypes(
    tensors: Sequence[OutputTensor], components: Sequence[Component]
) -> dict[str, str | None]:
    """The floating-point dtype of all weights of each component, by its prefix; None if there are
    several.
    """
    found: dict[str, set[str]] = {component.prefix: set() for component in components}
    mixable = [tensor for tensor in tensors if DTYPES[tensor.dtype].mixable]
    if len(components) == 1:
        found[components[0].prefix] = {tensor.dtype for tensor in mixable}
    else:
        for tensor in mixable:
            found[component_of(tensor.name, components).prefix].add(tensor.dtype)
    return {name: dtypes.pop() if len(dtypes) == 1 else None for name, dtypes in found.items()}
