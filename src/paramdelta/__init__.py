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
        extract,
        extract_adapter,
        finish_mix,
        mix,
        mix_part,
        plan,
        sweep,
        tensors,
        verify,
    )
    from paramdelta.errors import (
        CheckpointError,
        Interrupted,
        MisfitError,
        ParamDeltaError,
        StorageError,
        UsageError,
    )
    from paramdelta.live.model import load, load_tokenizer, set_scale
    from paramdelta.planning.findings import Finding, Severity
    from paramdelta.planning.plan import Plan
    from paramdelta.recipe import Delta, Recipe, Rule, Schedule, Span, read_recipe
    from paramdelta.schemes.dare import Dare
    from paramdelta.schemes.ties import Ties

_HOMES = {
    "Analysis": "analysis.analysis",
    "Extracted": "api",
    "ExtractedAdapter": "api",
    "Member": "api",
    "Mix": "api",
    "MixPart": "api",
    "Swept": "api",
    "analyze": "api",
    "extract": "api",
    "extract_adapter": "api",
    "finish_mix": "api",
    "mix": "api",
    "mix_part": "api",
    "plan": "api",
    "sweep": "api",
    "tensors": "api",
    "verify": "api",
    "load": "live.model",
    "load_tokenizer": "live.model",
    "set_scale": "live.model",
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
    "Analysis",
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
    "MixPart",
    "ParamDeltaError",
    "Plan",
    "Recipe",
    "Rule",
    "Schedule",
    "Severity",
    "Span",
    "StorageError",
    "Swept",
    "Ties",
    "UsageError",
    "__version__",
    "analyze",
    "extract",
    "extract_adapter",
    "finish_mix",
    "load",
    "load_tokenizer",
    "mix",
    "mix_part",
    "plan",
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
