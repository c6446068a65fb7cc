"""The plugin for SGLang: mixes instead of weight files. Written from its source, and not run.

SGLang finds `register` through an entry point of the package and calls it in every process. Where a
model's folder has the recipe of a mix (see `live.folder`), its loader gets the tensors of the mix;
other folders are loaded as ever. As in `live.vllm`, little is imported before. Written for SGLang
0.5.23, which has no build for CPUs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TARGET = "sglang.srt.model_loader.loader.DefaultModelLoader._get_weights_iterator"


def register() -> None:
    """Wrap the method of SGLang's loader that reads weight files."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, weights, HookType.AROUND)


def weights(original: Any, loader: Any, source: Any) -> "Iterator[tuple[str, torch.Tensor]]":
    """The weights of a source: a folder, a revision, and a prefix for their names."""
    from paramdelta.live.folder import RECIPE

    if not (Path(source.model_or_path) / RECIPE).is_file():
        return original(loader, source)  # type: ignore[no-any-return]
    return _mixed(source.model_or_path, source.prefix)


def _mixed(folder: str, prefix: str) -> "Iterator[tuple[str, torch.Tensor]]":
    from paramdelta.live.folder import read_recipe_of
    from paramdelta.live.weights import Weights
    from paramdelta.planning.planner import make_plan

    plan = make_plan(read_recipe_of(folder))
    plan.check()
    with Weights(plan) as mixed:
        mixed.expect(mixed)
        for name, weight in mixed.items():
            yield prefix + name, weight[...]
        mixed.check_sources()
