"""The tensors of a PEFT adapter's file, sorted by module and by what they are.

Source: PEFT 0.21, ``utils/save_and_load.py``, ``utils/other.py`` and ``tuners/trainable_tokens``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from paramdelta.errors import CheckpointError
from paramdelta.formats.adapterconfig import MERGE, AdapterConfig
from paramdelta.formats.view import Fetch, View

A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
BIAS, MAGNITUDE, ROWS = "lora_B.bias", "lora_magnitude_vector", "trainable_tokens_delta"
LINEAR, EMBEDDING = {A, B}, {EMBEDDING_A, EMBEDDING_B}

_PREFIX = "base_model.model."
_TRAINED = re.compile(
    r"(?P<module>.+)\.(?:(?P<factor>lora_A\.weight|lora_B\.weight|lora_embedding_A|"
    r"lora_embedding_B|lora_B\.bias|lora_magnitude_vector)(?:(?<=vector)\.weight)?|"
    r"token_adapter\.(?P<rows>trainable_tokens_delta))"
)
# How PEFT wraps the modules that it changes. ``original_module`` is the base's own.
_WRAPPED = re.compile(
    r"\.(?P<wrapper>modules_to_save\.default|modules_to_save|original_module|"
    r"token_adapter\.base_layer|base_layer)(?=\.)"
)
# Names of a PEFT model in memory have the adapter's own name in them; a saved adapter has not.
_NAMED = re.compile(
    r"\.(?:lora_A|lora_B|lora_magnitude_vector)\.(?P<matrix>[^.]+)(?=\.(?:weight|bias)$)|"
    r"\.(?:lora_embedding_A|lora_embedding_B|trainable_tokens_delta)\.(?P<table>[^.]+)$"
)
# Parts of names that are no module's but some method's of PEFT; such a tensor is no plain one.
_METHOD = re.compile(
    r"(^|\.)(lora_|ia3_|hada_|lokr_|oft_|boft_|vera_|token_adapter|trainable_tokens|prompt_|"
    r"modules_to_save|original_module|base_layer\.)"
)
_PLACES, _LENGTH = 64, 64  # of a tensor that two copies are compared at, and numbers at each


@dataclass(frozen=True)
class Contents:
    """What the file of an adapter holds, by the names of the model.

    ``factors``: by module its factors, with a magnitude and a bias if it has them, by `A`, `B`,
    `EMBEDDING_A`, `EMBEDDING_B`, `BIAS` and `MAGNITUDE`. A module whose parameters are adapted one
    around the other ends in ``.base_layer`` once for each wrapper around it. ``rows``: by module
    its trained rows. ``whole``: by tensor what replaces it.
    """

    factors: dict[str, dict[str, View]] = field(default_factory=dict)
    rows: dict[str, View] = field(default_factory=dict)
    whole: dict[str, View] = field(default_factory=dict)


def sort_tensors(
    tensors: Mapping[str, View], config: AdapterConfig, where: str, fetch: Fetch
) -> Contents:
    """Sort the tensors of a file. ``fetch`` reads a sample of tensors that are stored twice.

    Raises:
        CheckpointError: tensors that belong to no method that is read here, factors that are not
            complete, or copies that are not equal.
        StorageError: reading failed.
    """
    contents = Contents()
    unknown = []
    copies: dict[str, dict[str, View]] = {}
    adapter = _adapter_name(tensors)
    for stored, tensor in tensors.items():
        name = _without(adapter, stored.removeprefix(_PREFIX))
        match = _TRAINED.fullmatch(name)
        if match and _is_expected(match, config):
            if match["rows"]:
                contents.rows[match["module"]] = tensor
            else:
                contents.factors.setdefault(match["module"], {})[match["factor"]] = tensor
            continue
        wrapped = _WRAPPED.search(name)
        plain = _WRAPPED.sub("", name, count=1)
        if not stored.startswith(_PREFIX) or _METHOD.search(plain):
            unknown.append(stored)
        else:
            kind = wrapped["wrapper"].removesuffix(".default") if wrapped else ""
            copies.setdefault(plain, {})[kind] = tensor
    for name, found in copies.items():
        if not _is_one(found):
            unknown += [tensor.name for tensor in found.values()]
            continue
        found.pop("original_module", None)
        if found:
            contents.whole[name] = _same(found, where, fetch)
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the adapter are none of a plain LoRA adapter's",
            code="unsupported-adapter",
            where=where,
            expected=f"{_PREFIX}….lora_A.weight and lora_B.weight, or whole tensors",
            got=", ".join(unknown[:4]) + (" …" if len(unknown) > 4 else ""),
            remedy=MERGE,
        )
    for module, factors in contents.factors.items():
        _check_factors(module, factors, config, where)
    return contents


def _adapter_name(names: Collection[str]) -> str:
    """The adapter's name in the names of its tensors; empty if they have none, or several.

    It is empty as well if the same tensor is stored with it and without.
    """
    found = {match["matrix"] or match["table"] for name in names if (match := _NAMED.search(name))}
    adapter = found.pop() if len(found) == 1 else ""
    return adapter if len({_without(adapter, name) for name in names}) == len(names) else ""


def _without(adapter: str, name: str) -> str:
    """A tensor's name as PEFT saves it."""
    if not adapter:
        return name
    match = _NAMED.search(name)
    if match is None:
        return name.replace(f".modules_to_save.{adapter}.", ".modules_to_save.")
    return name[: match.end() - len(adapter) - 1] + name[match.end() :]


def _is_expected(match: re.Match[str], config: AdapterConfig) -> bool:
    """Whether the config speaks of what the name of a tensor says."""
    module = match["module"] + "."
    if config.parameters:
        while module.endswith(".base_layer."):
            module = module.removesuffix("base_layer.")
    if _METHOD.search(module):
        return False
    needs = {BIAS: config.biases, MAGNITUDE: config.dora}
    return bool(config.tokens) if match["rows"] else needs.get(match["factor"], True)


def _is_one(found: Mapping[str, View]) -> bool:
    """Whether tensors under one plain name can be copies of one: PEFT writes no two wrappers."""
    return len(found.keys() & {"", "base_layer", "token_adapter.base_layer"}) < 2


def _same(found: Mapping[str, View], where: str, fetch: Fetch) -> View:
    """The one of several copies that PEFT loads; raises CheckpointError if they differ."""
    first, *rest = (found[kind] for kind in sorted(found))
    for other in rest:
        if not _equal(first, other, fetch):
            raise CheckpointError(
                "the adapter stores a tensor twice, with different numbers",
                code="adapter-copies-differ",
                where=where,
                got=f"{first.name} and {other.name}",
                remedy="remove the one that was not trained, or save the adapter again with PEFT",
            )
    return first


def _equal(one: View, other: View, fetch: Fetch) -> bool:
    """Whether two tensors agree in form, and in numbers at places spread over them."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for number in range(_PLACES):
        start = number * max(0, one.elements - _LENGTH) // (_PLACES - 1)
        stop = min(start + _LENGTH, one.elements)
        read = (view.array(start, stop, fetch).tobytes() for view in (one, other))
        if len(set(read)) > 1:
            return False
    return True


def _check_factors(
    module: str, factors: Mapping[str, View], config: AdapterConfig, where: str
) -> None:
    """Raise CheckpointError if a module lacks a factor, or what the config says of all of them."""
    plain = factors.keys() - {BIAS, MAGNITUDE}
    expected = "lora_A and lora_B, or lora_embedding_A and lora_embedding_B"
    complete = plain in (LINEAR, EMBEDDING) and (BIAS not in factors or plain == LINEAR)
    if complete and config.dora and MAGNITUDE not in factors:
        complete, expected = False, f"{MAGNITUDE}, as use_dora says"
    if complete and config.biases and plain == LINEAR and BIAS not in factors:
        complete, expected = False, f"{BIAS}, as lora_bias says"
    if not complete:
        raise CheckpointError(
            "a pair of factors is not whole",
            code="adapter-factors-misfit",
            where=f"{where}, module {module!r}",
            expected=expected,
            got=", ".join(sorted(factors)),
            remedy="get the adapter again",
        )
