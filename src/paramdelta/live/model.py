"""A mix as a transformers model in memory. The only module of `live` that imports transformers."""

import contextlib
import copy
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from paramdelta.api import MEMORY
from paramdelta.errors import MisfitError, UsageError
from paramdelta.jobs.tensors import torch_dtype
from paramdelta.live.folder import companion_folder
from paramdelta.live.weights import Weight, Weights
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.sources import Opener
from paramdelta.planning.sweep import same_values
from paramdelta.recipe import Recipe
from paramdelta.storage.reader import Reader

_SEQUENTIAL = "HF_DEACTIVATE_ASYNC_LOAD"
_alone = threading.RLock()  # one load at a time: it changes the environment and a hook of torch


@dataclass
class _Origin:
    """Where a loaded model comes from.

    ``recipe``: that of `load`. ``plan``: what its weights are now; unless they are ``whole``, some
    of them are older. ``targets``: see `_targets`. ``config``: what config.json says.
    """

    recipe: Recipe
    plan: Plan
    targets: Mapping[str, str]
    config: Any
    opener: Opener
    memory: int | str
    workers: int | None
    device: Any
    whole: bool = True


_origins: "WeakKeyDictionary[Any, _Origin]" = WeakKeyDictionary()


def load(
    recipe: Recipe | Plan,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    memory: int | str = MEMORY,
    workers: int | None = None,
    on_device: bool = False,
    **options: Any,
) -> Any:
    """The mix of a recipe, or of a plan made before, as a transformers model; nothing is written.

    It is what ``from_pretrained`` would load from the folder that `paramdelta.mix` writes: the
    class that config.json names, the same parameters, buffers and generation settings. Each tensor
    is mixed when it is loaded; ``memory`` and ``workers`` are those of `mix`. ``dtype``,
    ``device_map``, ``trust_remote_code`` and ``options`` are those of ``from_pretrained``;
    ``dtype`` is that of the model: the mix is rounded to the recipe's dtype first.

    ``on_device``: mix on the one device that ``device_map`` names, instead of here, to the same
    bits. It was tested with the CPU as the device, and has not been run on a GPU.

    Needs torch and transformers 5: ``pip install "paramdelta[hf]"``.

    Raises:
        UsageError: a package is missing, or an option that is not valid.
        MisfitError: the plan has refused findings; the folder is not one model of transformers; its
            class lacks weights; or a source changed meanwhile.
        CheckpointError, StorageError: as `mix`.
    """
    transformers = _transformers()
    for name in ("state_dict", "config", "pretrained_model_name_or_path", "gguf_file"):
        if name in options:
            raise UsageError(
                f"{name} comes from the recipe",
                code="option-of-recipe",
                remedy="leave it out; change the recipe instead",
            )
    device = _device(device_map) if on_device else None
    opener = Opener(Reader())
    plan = make_plan(recipe, opener) if isinstance(recipe, Recipe) else recipe
    plan.check()
    _check_single(plan)
    with (
        _alone,
        companion_folder(plan) as folder,
        Weights(plan, memory, workers, device) as weights,
    ):
        config, kind = _configured(transformers, folder, trust_remote_code)
        weights.expect(sorted(weights, key=_natural))
        wanted = options.pop("output_loading_info", False)
        with _sequential():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=_dtype(dtype, config, weights),
                device_map=device_map,
                output_loading_info=True,
                **options,
            )
        if model.can_generate() and (folder / "generation_config.json").is_file():
            settings = transformers.GenerationConfig.from_pretrained(folder)
            model.generation_config = settings
        weights.check_sources()
    opener.reader.close()
    _check_complete(info, kind.__name__)
    _warn_not_finite(weights)
    targets = _targets(model, config, weights)
    _origins[model] = _Origin(plan.recipe, plan, targets, config, opener, memory, workers, device)
    return (model, info) if wanted else model


def set_scale(model: Any, scale: float | Sequence[float]) -> None:
    """Mix the weights of a loaded model again at another scale, in place.

    ``scale``: as in `paramdelta.sweep`, it multiplies every Δ's own scale, and every number of its
    schedule: for one plain Δ it is α. A sequence has a factor for each Δ. 1 is what the recipe
    says.

    Parameters and buffers stay the same objects, on their devices and in their dtypes, so hooks,
    optimizers and compiled graphs stay valid. Tensors that the scale does not change are neither
    read nor written. Each tensor that changed is read again from its sources.

    If reading fails, the model is partly mixed; the next call mixes everything again.

    Raises:
        UsageError: the model is not one of `load`, is quantized, offloaded or rebuilt; or a scale
            that is not valid.
        MisfitError: a plan that is refused at this scale; or a source changed since `load`.
        CheckpointError, StorageError: as `load`.
    """
    origin = _origin(model)
    model = _bare(model)
    plan = make_plan(origin.recipe.times(scale), origin.opener)
    origin.opener.reader.close()
    plan.check()
    _check_same_outline(origin.plan, plan)
    changed = {
        number
        for number, (now, then) in enumerate(zip(origin.plan.tensors, plan.tensors, strict=True))
        if not origin.whole or not same_values(now, then)
    }
    with _alone, Weights(plan, origin.memory, origin.workers, origin.device) as weights:
        targets = {
            origin.targets[name]
            for name in weights
            if name in origin.targets and weights.tensor_of(name) in changed
        }
        names = [name for name, target in origin.targets.items() if target in targets]
        _check_changeable(model, targets)
        origin.plan, origin.whole = plan, False
        weights.expect(sorted(names, key=_natural))
        _replace(model, origin, {name: weights[name] for name in names})
        weights.check_sources()
        origin.whole = True
    _warn_not_finite(weights)


def recipe_of(model: Any) -> Recipe:
    """The recipe of a loaded model, with the scale that it has now; raises UsageError."""
    return _origin(model).plan.recipe


def load_tokenizer(
    recipe: Recipe | Plan, *, trust_remote_code: bool = False, **options: Any
) -> Any:
    """The tokenizer of a mix, with its chat template, as AutoTokenizer loads it from its folder.

    ``options``: those of ``AutoTokenizer.from_pretrained``.

    Raises:
        UsageError, MisfitError, CheckpointError, StorageError: as `load`.
    """
    transformers = _transformers()
    plan = make_plan(recipe) if isinstance(recipe, Recipe) else recipe
    plan.check()
    with companion_folder(plan) as folder:
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
            )
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise _remote() from None
            raise MisfitError(
                "transformers finds no tokenizer among the files of the mix",
                code="no-tokenizer",
                got=" ".join(str(error).split())[:300],
                remedy="paramdelta plan lists the files and where they come from",
            ) from None


# -- loading ---------------------------------------------------------------------------------------


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed",
            code="missing-package",
            remedy='pip install "paramdelta[hf]"',
        ) from None
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UsageError(
            f"transformers {transformers.__version__} cannot load tensors one by one",
            code="old-transformers",
            expected="transformers 5 or later",
            remedy='pip install -U "transformers>=5"; or write the mix with `paramdelta mix`',
        )
    return transformers


def _device(places: Any) -> Any:
    """The one device of a device_map."""
    import torch

    if isinstance(places, dict) and len({*map(str, places.values())}) == 1:
        (places,) = {*map(str, places.values())}
    try:
        return torch.device(places)
    except (RuntimeError, TypeError):
        raise UsageError(
            "on_device needs one device",
            code="no-device",
            expected="device_map='cuda', say",
            got=f"device_map={places!r}",
        ) from None


def _check_single(plan: Plan) -> None:
    """Raise MisfitError if the output is not the folder of one model."""
    folders = [component.folder for component in plan.components if component.folder]
    if folders:
        raise MisfitError(
            "the mix is a folder of several models, and this loads one",
            code="load-of-components",
            where=str(plan.new_base),
            got=", ".join(folders),
            remedy="name the folder of one of them; or write the folder with `paramdelta mix` and "
            "load it with its own library",
        )


def _configured(transformers: Any, folder: Path, trusted: bool) -> tuple[Any, Any]:
    """The configuration of a folder, and the class that it names."""
    if not (folder / "config.json").is_file():
        raise MisfitError(
            "the new base has no config.json, so there is no class to load",
            code="no-configuration",
            remedy="use paramdelta.tensors, and load them into a model of your own",
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trusted, local_files_only=True
        )
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise _remote() from None
        raise MisfitError(
            f"transformers {transformers.__version__} does not know the model",
            code="unknown-architecture",
            got=" ".join(str(error).split())[:300],
            remedy="update transformers; or write the mix with `paramdelta mix`",
        ) from None
    name = next(iter(config.architectures or ()), None)
    foreign = {
        reference.rpartition(".")[2]: reference
        for reference in (getattr(config, "auto_map", None) or {}).values()
        if isinstance(reference, str)
    }
    if trusted and name in foreign:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return config, get_class_from_dynamic_module(foreign[name], folder)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not hasattr(kind, "from_pretrained"):
        if name in foreign:
            raise _remote()
        raise MisfitError(
            "config.json does not name a class of transformers",
            code="unknown-architecture",
            expected=f"in architectures, a class of transformers {transformers.__version__}",
            got=str(name),
        )
    return config, kind


def _remote() -> MisfitError:
    return MisfitError(
        "the model has code of its own, which is not run",
        code="remote-code",
        remedy="read the code, and pass `trust_remote_code=True` if you trust it",
    )


def _dtype(dtype: Any, config: Any, weights: Weights) -> Any:
    """What ``from_pretrained`` takes "auto" for where config.json does not say."""
    if dtype != "auto" or getattr(config, "dtype", None) is not None:
        return dtype
    kinds = (torch_dtype(weight.get_dtype()) for weight in weights.values())
    return next((kind for kind in kinds if kind.is_floating_point), "auto")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts names about as transformers asks for them: numbers in them by their value."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@contextlib.contextmanager
def _sequential() -> Iterator[None]:
    """transformers asks for one tensor at a time: the engine's workers all mix that one.

    Otherwise its threads run ahead of the conversion of experts without a bound.
    """
    before = os.environ.get(_SEQUENTIAL)
    os.environ[_SEQUENTIAL] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SEQUENTIAL]
        else:
            os.environ[_SEQUENTIAL] = before


def _check_complete(info: dict[str, Any], kind: str) -> None:
    """Raise MisfitError if the class has weights that the mix does not give: they are random."""
    lacking = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
    if lacking:
        raise MisfitError(
            f"{kind} has weights that the mix does not have, or has in another shape",
            code="weights-missing",
            where=", ".join(lacking[:5]) + (" …" if len(lacking) > 5 else ""),
            remedy="write the mix with `paramdelta mix` and load it with the class that you want",
        )


def _warn_not_finite(weights: Weights) -> None:
    found = weights.not_finite()
    if found:
        (name, where), _ = next(iter(found.items()))
        warnings.warn(
            f"{sum(found.values())} infinite or NaN numbers in {len(found)} places, the first in "
            f"{name} of {where}",
            stacklevel=3,
        )


# -- another scale ---------------------------------------------------------------------------------


def _bare(model: Any) -> Any:
    """The model that torch.compile wraps, or the model."""
    return getattr(model, "_orig_mod", model)


def _origin(model: Any) -> _Origin:
    origin = _origins.get(_bare(model))
    if origin is None:
        raise UsageError(
            "the model is not one that paramdelta loaded",
            code="not-loaded",
            expected="a model of paramdelta.load, or torch.compile of it",
            got=type(model).__name__,
        )
    return origin


def _check_same_outline(now: Plan, then: Plan) -> None:
    """Raise MisfitError unless two plans read the same files and give the same tensors."""
    known = {file.blob for file in now.files}
    foreign = [file.blob for file in then.files if file.blob not in known]
    if foreign:
        raise MisfitError(
            "a source changed since the model was loaded",
            code="source-changed",
            where=str(foreign[0]),
            remedy="load the model again",
        )
    outlines = [[tensor.streams for tensor in plan.tensors] for plan in (now, then)]
    if outlines[0] != outlines[1]:
        raise MisfitError(
            "the mix at this scale has other tensors than the loaded model",
            code="sweep-misfit",
            remedy="load it at this scale",
        )


def _check_changeable(model: Any, targets: set[str]) -> None:
    """Raise UsageError if the weights cannot be replaced in place."""
    state = model.state_dict()
    if not targets <= state.keys():
        raise UsageError(
            "the modules of the model were replaced since it was loaded",
            code="model-rebuilt",
            where=min(targets - state.keys()),
            remedy="set the scale before the model is wrapped by an adapter, or load it again",
        )
    if any(value.is_meta for value in state.values()):
        raise UsageError(
            "weights of the model are offloaded, so they cannot be changed in place",
            code="weights-offloaded",
            remedy="load it with a device_map that keeps all of it in memory",
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.pre_quantized:
        raise UsageError(
            "the weights were quantized while they were loaded",
            code="weights-quantized",
            remedy="load the model without a quantization_config, or load it again at this scale",
        )


def _targets(model: Any, config: Any, names: Iterable[str]) -> dict[str, str]:
    """For names of the weight files, the tensor of the model that transformers makes of them.

    Where it makes several of one, the first of them; names that it ignores are left out.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules, _ = _conversions(model, config)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for name in names:
        target, _ = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, _ = rename_source_key(name, [], [], prefix, state)
        if target in state:
            found[name] = target
    return found


def _conversions(model: Any, config: Any) -> tuple[list[Any], Any]:
    """How transformers makes the tensors of the model from those of the weight files.

    Rules, and the quantizer of a mix that is stored quantized. Where there is no kernel for it, the
    model was loaded without quantization and does not know its quantizer any more.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.quantizers.auto import get_hf_quantizer

    quantizer, _, _ = get_hf_quantizer(copy.deepcopy(config), None, None, True, {})
    return get_model_conversion_mapping(model, hf_quantizer=quantizer), quantizer


def _replace(model: Any, origin: _Origin, weights: dict[str, Weight]) -> None:
    """Load weights into a model as transformers does, but into the tensors that it has."""
    import torch
    from torch.nn.modules import module as modules
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    own, here = {*map(id, model.modules())}, threading.get_ident()

    def keep(module: Any, name: str, value: Any) -> Any:
        """Called where a module gets a parameter or a buffer; returns what it gets instead."""
        if id(module) not in own or threading.get_ident() != here:
            return None
        held = module._parameters.get(name, module._buffers.get(name))
        with torch.no_grad():
            held.copy_(value)
        return held

    hooks = (
        modules.register_module_parameter_registration_hook(keep),
        modules.register_module_buffer_registration_hook(keep),
    )
    before = vars(model).get("_weight_conversions", hooks)
    rules, quantizer = _conversions(model, origin.config)
    settings = LoadStateDictConfig(
        device_map={"": origin.device or "cpu"},
        dtype=model.dtype,
        weight_mapping=rules,
        hf_quantizer=quantizer,
    )
    try:
        with _sequential():
            info, _ = convert_and_load_state_dict_in_model(model, weights, settings)
    finally:
        vars(model).pop("_weight_conversions", None)
        if before is not hooks:
            model._weight_conversions = before
        for hook in hooks:
            hook.remove()
    if info.conversion_errors or info.mismatched_keys or info.unexpected_keys:
        raise MisfitError(
            "transformers could not put weights into the model",
            code="weights-not-replaced",
            where=str(next(iter({*info.conversion_errors, *info.unexpected_keys}), "")),
            remedy="load the model again",
        )
