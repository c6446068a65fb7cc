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
    from paramdelta.api import (
        Extracted,
        ExtractedAdapter,
        Member,
        Mix,
        Swept,
        explain,
        extract,
        extract_adapter,
        mix,
        plan,
        plan_extract,
        sweep,
        tensors,
        verify,
    )
    from paramdelta.check.report import Report
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
    from paramdelta.jobs.verify.verification import Verification
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
    "Sum": "schemes.sum",
    "progress_bar": "progress",
    "preset": "recipe",
    "plan_extract": "api",
    "explain": "api",
    "Verification": "jobs.verify.verification",
    "Progress": "engine.job",
    "BusyError": "errors",
    "Report": "check.report",
    "Extracted": "api",
    "ExtractedAdapter": "api",
    "Member": "api",
    "Mix": "api",
    "Swept": "api",
    "extract": "api",
    "extract_adapter": "api",
    "mix": "api",
    "plan": "api",
    "sweep": "api",
    "tensors": "api",
    "verify": "api",
    "CheckpointError": "errors",
    "Interrupted": "errors",
    "MisfitError": "errors",
    "ParamDeltaError": "errors",
    "StorageError": "errors",
    "UsageError": "errors",
    "Finding": "planning.findings",
    "Severity": "planning.findings",
    "Plan": "planning.plan",
    "Delta": "recipe",
    "Recipe": "recipe",
    "Rule": "recipe",
    "Schedule": "recipe",
    "Span": "recipe",
    "read_recipe": "recipe",
    "Dare": "schemes.dare",
    "Ties": "schemes.ties",
}

__all__ = [
    "Address",
    "BusyError",
    "CheckpointError",
    "Dare",
    "Delta",
    "Extracted",
    "ExtractedAdapter",
    "Finding",
    "Interrupted",
    "Member",
    "MisfitError",
    "Mix",
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
    "explain",
    "extract",
    "extract_adapter",
    "mix",
    "plan",
    "plan_extract",
    "preset",
    "progress_bar",
    "read_recipe",
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
