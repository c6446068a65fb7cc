"""Which weights' Δ a LoRA adapter can hold, and what PEFT calls them.

An adapter adds products to the weights of linear layers, and of embeddings if it is told to. The
names are those of the checkpoint: for the models of transformers they are those of the loaded model
too, but where it renames what it loads (experts that it joins, parts of multimodal models).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.formats.buffers import is_buffer
from paramdelta.formats.view import Rows
from paramdelta.planning.names import tie_of
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.presets import is_head, is_of
from paramdelta.schemes.pair import Pair

EMBEDDINGS = "embeddings and output head"
VECTORS = "norms, biases and other vectors"
OTHERS = "joined experts, convolutions, tables"

_TURNED = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}  # Conv1D: weights (in, out)
# The loaded model's names have a prefix that these checkpoints, on the Hub, have not.
_PREFIXES = {"gpt2": "transformer."}


@dataclass(frozen=True)
class Module:
    """A layer whose weight has a Δ. ``name``: PEFT's. ``tensor``: the weight's.

    ``turned``: it is stored as (in, out). ``embedding``: it is one, whose factors have other names.
    """

    name: str
    tensor: str
    pair: Pair
    turned: bool
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight as it is stored."""
        rows, columns = self.pair.post.shape
        return rows, columns

    @property
    def facing(self) -> tuple[int, int]:
        """How many numbers come out of the layer, and how many go in."""
        rows, columns = self.shape
        return (columns, rows) if self.turned else (rows, columns)


@dataclass(frozen=True)
class Linear:
    """What of a plan goes into an adapter.

    ``left``: by kind, the tensors that have a Δ and cannot go in. ``alone``: names that only post
    has. ``turned``: the linear layers keep their weights as (in, out). ``task``: PEFT's task type.
    ``tied``: an embedding that goes in is also the output head.
    """

    modules: tuple[Module, ...]
    left: Mapping[str, tuple[OutputTensor, ...]]
    alone: tuple[str, ...]
    turned: bool
    task: str | None
    tied: bool


def linear(plan: Plan, embeddings: bool) -> Linear:
    """Sort the tensors of a mix onto post; ``embeddings``: those and the head go in as well."""
    config = plan.new_base.config
    kind = str(config.get("model_type"))
    task = _task(config)
    prefix = _PREFIXES.get(kind, "") if task == "CAUSAL_LM" else ""
    if any(tensor.name.startswith(prefix) for tensor in plan.tensors):
        prefix = ""
    modules: list[Module] = []
    left: dict[str, list[OutputTensor]] = {EMBEDDINGS: [], VECTORS: [], OTHERS: []}
    alone = []
    for tensor in plan.tensors:
        if not tensor.pairs:
            if tensor.new.kind.mixable and not is_buffer(tensor.new):
                alone.append(tensor.name)
            continue
        (pair,) = tensor.pairs
        axes = len(tensor.shape)
        module, _, last = tensor.name.rpartition(".")
        if not is_of("skip-embeddings", tensor.name, axes):
            plain = axes == 2 and last == "weight" and tensor.elements > 0
            if embeddings and plain and _goes_by_number(pair):
                head = is_head(tensor.name)
                modules.append(Module(prefix + module, tensor.name, pair, not head, not head))
            else:
                left[EMBEDDINGS].append(tensor)
        elif axes < 2:
            left[VECTORS].append(tensor)
        elif axes != 2 or last != "weight" or not is_of("linear-only", tensor.name, axes):
            left[OTHERS].append(tensor)
        elif tensor.elements > 0:
            modules.append(Module(prefix + module, tensor.name, pair, kind in _TURNED))
    return Linear(
        tuple(modules),
        {name: tuple(tensors) for name, tensors in left.items() if tensors},
        tuple(alone),
        kind in _TURNED,
        task,
        any(module.embedding for module in modules) and tie_of(config)[1] is True,
    )


def _goes_by_number(pair: Pair) -> bool:
    """Whether post's rows are base's row by row, and not those of a vocabulary that changed."""
    views = (pair.post, pair.base)
    return not any(isinstance(view, Rows) and view.rows is not None for view in views)


def _task(config: Mapping[str, Any]) -> str | None:
    """PEFT's task type, where naming it brings in nothing more than the right class."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if name.endswith("ForConditionalGeneration") and config.get("is_encoder_decoder") is True:
        return "SEQ_2_SEQ_LM"
    if name.endswith("Model"):
        return "FEATURE_EXTRACTION"
    return None  # that of a classifier would have PEFT look for a trained head
