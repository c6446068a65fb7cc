"""ParamΔ weight mixing: Θ'_base + Σ αᵢ (Θ_postᵢ − Θ_baseᵢ), exactly, at disk speed.

from paramdelta import Delta, Recipe, mix, plan, verify

recipe = Recipe("new-base", [Delta(post="post", base="base")])
print(plan(recipe).findings)
mix(recipe, "out")
verify("out")
"""

from typing import TYPE_CHECKING, Any

from paramdelta.version import __version__

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis
    from paramdelta.api import (
        Extracted,
        ExtractedAdapter,
        Member,
        Mix,
        MixPart,
        Swept,
        analyze,
        check,
        explain,
        extract,
        extract_adapter,
        finish_mix,
        mix,
        mix_part,
        plan,
        plan_extract,
        sweep,
        tensors,
        verify,
    )
    from paramdelta.checks.report import Report
    from paramdelta.engine.job import Progress
    from paramdelta.errors import (
        BusyError,
        CheckpointError,
        Interrupted,
        MisfitError,
        ParamDeltaError,
        StorageError,
        UsageError,
    )
    from paramdelta.evaluation.evaluator import Evaluation, evaluate
    from paramdelta.jobs.verify.verification import Verification
    from paramdelta.live.model import load, load_tokenizer, set_scale
    from paramdelta.planning.findings import Finding, Severity
    from paramdelta.planning.plan import Plan
    from paramdelta.progress import progress_bar
    from paramdelta.recipe import (
        Address,
        Delta,
        Recipe,
        Rule,
        Schedule,
        Span,
        preset,
        read_recipe,
    )
    from paramdelta.schemes.dare import Dare
    from paramdelta.schemes.sum import Sum
    from paramdelta.schemes.ties import Ties

_HOMES = {
    "Address": "recipe",
    "Analysis": "analysis.analysis",
    "BusyError": "errors",
    "CheckpointError": "errors",
    "Dare": "schemes.dare",
    "Delta": "recipe",
    "Extracted": "api",
    "ExtractedAdapter": "api",
    "Finding": "planning.findings",
    "Interrupted": "errors",
    "Member": "api",
    "MisfitError": "errors",
    "Mix": "api",
    "MixPart": "api",
    "ParamDeltaError": "errors",
    "Plan": "planning.plan",
    "Progress": "engine.job",
    "Recipe": "recipe",
    "Report": "checks.report",
    "Rule": "recipe",
    "Schedule": "recipe",
    "Severity": "planning.findings",
    "Span": "recipe",
    "StorageError": "errors",
    "Sum": "schemes.sum",
    "Swept": "api",
    "Ties": "schemes.ties",
    "UsageError": "errors",
    "Verification": "jobs.verify.verification",
    "analyze": "api",
    "check": "api",
    "explain": "api",
    "extract": "api",
    "extract_adapter": "api",
    "finish_mix": "api",
    "load": "live.model",
    "load_tokenizer": "live.model",
    "mix": "api",
    "mix_part": "api",
    "plan": "api",
    "plan_extract": "api",
    "preset": "recipe",
    "progress_bar": "progress",
    "read_recipe": "recipe",
    "set_scale": "live.model",
    "sweep": "api",
    "tensors": "api",
    "verify": "api",
    "Evaluation": "evaluation.evaluator",
    "evaluate": "evaluation.evaluator",
}

__all__ = [
    "Address",
    "Analysis",
    "BusyError",
    "CheckpointError",
    "Dare",
    "Delta",
    "Evaluation",
    "Extracted",
    "ExtractedAdapter",
    "Finding",
    "Interrupted",
    "Member",
    "MisfitError",
    "Mix",
    "MixPart",
    "ParamDeltaError",
    "Plan",
    "Progress",
    "Recipe",
    "Report",
    "Rule",
    "Schedule",
    "Severity",
    "Span",
    "StorageError",
    "Sum",
    "Swept",
    "Ties",
    "UsageError",
    "Verification",
    "__version__",
    "analyze",
    "check",
    "evaluate",
    "explain",
    "extract",
    "extract_adapter",
    "finish_mix",
    "load",
    "load_tokenizer",
    "mix",
    "mix_part",
    "plan",
    "plan_extract",
    "preset",
    "progress_bar",
    "read_recipe",
    "set_scale",
    "sweep",
    "tensors",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import paramdelta`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
