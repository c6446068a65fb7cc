"""adapter_config.json of PEFT: what an adapter is, and how its factors are scaled.

Source: PEFT 0.21, ``tuners/lora/config.py`` and ``tuners/lora/model.py``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from paramdelta.errors import CheckpointError
from paramdelta.formats.patterns import PatternError, Patterns
from paramdelta.text import shown

MERGE = "merge it with PEFT (merge_and_unload, save_pretrained) and pass the merged folder as post"
_CONVERT = (
    "save it as a plain one with PEFT (save_pretrained with "
    "path_initial_model_for_weight_conversion), or merge it (merge_and_unload)"
)
# Types that add inputs or layers to a model. Their effect is not a change of weights.
_PROMPTS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"),
    *("ADAPTION_PROMPT", "CARTRIDGE", "XLORA", "POLY"),
}
_REFUSED = {
    "layer_replication": "it makes a model of more layers than the base has (layer_replication)",
    "megatron_config": "it adapts the parallel layers of Megatron (megatron_config)",
    "alora_invocation_tokens": "aLoRA acts only from certain tokens on: no Δ of weights",
    "use_qalora": "QALoRA pools its inputs: no Δ of the whole weight",
    "use_bdlora": "BD-LoRA keeps its factors as blocks, which are not read",
    "arrow_config": "Arrow chooses among several adapters at run time: no Δ of weights",
    "kasa_config": "KaSA changes the base's weights and trains a diagonal between the factors",
    "monteclora_config": "MonteCLoRA samples its factors: no Δ of weights",
    "velora_config": "VeLoRA keeps more than factors (velora_config), which is not read",
}
_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "loraga")  # these change the base first
_STARTS = ("gaussian", "eva", "orthogonal", "mica")  # these do not
# Keys that are read here, and keys that do not change what the tensors of the file mean.
_KNOWN = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config"),
    *("base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "fan_in_fan_out", "init_lora_weights", "lora_dropout", "bias", "use_dora"),
    *("modules_to_save", "target_modules", "exclude_modules", "layers_to_transform", "lora_bias"),
    *("layers_pattern", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ephemeral_gpu_offload"),
    *("merge_weights", "trainable_token_indices", "target_parameters"),
}
INPUT = ""  # stands for the input embedding, whose name the config does not say


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json of PEFT says about a LoRA adapter.

    ``where``: the file, for messages. ``base``: the address of the model that the adapter was
    trained on, None if it is not stated. ``task``: PEFT's task type. ``turned``: the adapted layers
    store their weights as (in, out), as Conv1D of GPT-2 does. ``keeps_ties``: a change of the
    embedding is one of the tied output head as well. ``dora``: each line of an adapted weight is
    scaled to a trained length (DoRA). ``biases``: the factors have biases. ``tokens``: trained
    rows, as ids, by the end of the embedding's name or `INPUT`. ``parameters``: ends of the names
    of parameters that are adapted without being the weight of a linear layer. ``scaling``: of the
    factors, by module.
    """

    where: str
    base: str | None
    task: str | None
    turned: bool
    keeps_ties: bool
    dora: bool
    biases: bool
    tokens: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    scaling: "Scaling"


def read_config(config: Mapping[str, Any], where: str) -> AdapterConfig:
    """Check adapter_config.json of PEFT; raises CheckpointError.

    Refused is what is not LoRA, what changes more than weights, and what is not known here.
    """
    _check(config, where)
    task = config.get("task_type")
    return AdapterConfig(
        where,
        _base(config, where),
        task if isinstance(task, str) else None,
        _flag(config, "fan_in_fan_out", where),
        _flag(config, "ensure_weight_tying", where),
        _flag(config, "use_dora", where),
        _flag(config, "lora_bias", where),
        _tokens(config, where),
        _parameters(config, where),
        Scaling(config, where),
    )


def _check(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not a change of the base's weights that the file describes in full."""
    kind = config.get("peft_type")
    if kind != "LORA":
        prompts = isinstance(kind, str) and kind in _PROMPTS
        raise CheckpointError(
            f"{shown(kind, 40) if isinstance(kind, str) else 'such'} adapters are not read, only "
            "LoRA adapters" + (": it adds inputs or layers and changes no weights" * prompts),
            code="unsupported-adapter",
            where=where,
            expected='peft_type: "LORA"',
            got=repr(kind)[:80],
            remedy="no merge can hold it: use it with PEFT" if prompts else MERGE,
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                reason,
                code="unsupported-adapter",
                where=where,
                got=_said(config, key),
                remedy=MERGE,
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGING):
        raise CheckpointError(
            "its start took something away from the base's weights, so its factors are no Δ from "
            "the base",
            code="unsupported-adapter",
            where=where,
            got=_said(config, "init_lora_weights"),
            remedy=_CONVERT,
        )
    if start is not None and not isinstance(start, bool) and start not in _STARTS:
        raise CheckpointError(
            "it is not known what such a start does to the base",
            code="unsupported-adapter",
            where=where,
            expected="true, false, " + ", ".join(_STARTS),
            got=_said(config, "init_lora_weights"),
            remedy=MERGE,
        )
    for key, value in config.items():
        if value and key not in _KNOWN:
            raise CheckpointError(
                "the adapter's config says something that is not known here",
                code="unsupported-adapter",
                where=where,
                got=_said(config, key),
                remedy="if it does not change what the factors mean, take it out; else " + MERGE,
            )


def _base(config: Mapping[str, Any], where: str) -> str | None:
    """The address of the model that the adapter was trained on."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    for key, value in (("base_model_name_or_path", name), ("revision", revision)):
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            raise _wrong(config, key, "a plain text or null", where)
    if not name:
        return None
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    return f"{name}@{revision}" if on_hub and revision else str(name)


def _tokens(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """The ids whose rows were trained, by the end of the embedding's name."""
    key = "trainable_token_indices"
    said = config.get(key) or {}
    given = {INPUT: said} if isinstance(said, list) else said
    if not isinstance(given, Mapping):
        raise _wrong(config, key, "ids, or an object of ids by layer", where)
    for ids in given.values():
        plain = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
        if not plain or len(set(ids)) < len(ids):
            raise _wrong(config, key, "ids of tokens, each once", where)
    return {str(name): tuple(ids) for name, ids in given.items()}


def _parameters(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    said = config.get("target_parameters") or []
    if not isinstance(said, list) or not all(isinstance(name, str) and name for name in said):
        raise _wrong(config, "target_parameters", "names of parameters", where)
    return tuple(sorted(set(said)))


class Scaling:
    """``lora_alpha / r``, or ``/ √r``, with the exceptions that the patterns make."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.rank = config.get("r", 8)
        self.alpha = config.get("lora_alpha", 8)
        ranks, alphas = (self._patterns(config, key) for key in ("rank_pattern", "alpha_pattern"))
        self.stable = _flag(config, "use_rslora", where)
        if not _is_rank(self.rank):
            raise _wrong(config, "r", "a positive whole number", where)
        if not _is_number(self.alpha):
            raise _wrong(config, "lora_alpha", "a number", where)
        if not all(map(_is_rank, ranks.values())):
            raise _wrong(config, "rank_pattern", "positive whole numbers", where)
        if not all(map(_is_number, alphas.values())):
            raise _wrong(config, "alpha_pattern", "numbers", where)
        self.ranks = self._compiled(ranks, "rank_pattern")
        self.alphas = self._compiled(alphas, "alpha_pattern")

    def _patterns(self, config: Mapping[str, Any], key: str) -> dict[str, Any]:
        patterns = config.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise _wrong(config, key, "an object", self.where)
        return dict(patterns)

    def _compiled(self, patterns: Mapping[str, Any], key: str) -> "_Values":
        try:
            return Patterns(list(patterns)), list(patterns.values())
        except PatternError as error:
            raise CheckpointError(
                f"a pattern of {key} cannot be used: {shown(str(error))}",
                code="invalid-adapter-config",
                where=self.where,
                expected="a module's name, or a simple regular expression for it",
                got=f"'{shown(error.pattern or '', 80)}'",
            ) from None

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors by the config; raises CheckpointError."""
        return int(self._looked_up(self.ranks, module, self.rank))

    def factor(self, module: str, rank: int) -> float:
        """The number for a module whose factors have this rank; raises CheckpointError."""
        said = self.rank_of(module)
        if said != rank:
            raise CheckpointError(
                "config and factors disagree about the rank",
                code="adapter-factors-misfit",
                where=f"{self.where}, module {module!r}",
                expected=f"{said} by the config",
                got=f"{rank} in the file",
                remedy="look whether config and weights belong together",
            )
        alpha = self._looked_up(self.alphas, module, self.alpha)
        return float(alpha / math.sqrt(rank) if self.stable else alpha / rank)

    def _looked_up(self, values: "_Values", module: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of a module's name, as PEFT does it.

        Where none does, PEFT looks for the name itself, which would have matched.
        """
        patterns, found = values
        try:
            number = patterns.first(module)
        except PatternError as error:
            raise CheckpointError(
                str(error), code="invalid-adapter-config", where=self.where, remedy=MERGE
            ) from None
        return default if number is None else found[number]


_Values: TypeAlias = tuple[Patterns, list[Any]]


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # NaN and infinity are not


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(config, key, "true or false", where)
    return bool(value)


def _said(config: Mapping[str, Any], key: str) -> str:
    return f"{key}: {config.get(key)!r}"[:100]


def _wrong(config: Mapping[str, Any], key: str, expected: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{key} makes no sense",
        code="invalid-adapter-config",
        where=where,
        expected=expected,
        got=_said(config, key),
    )
