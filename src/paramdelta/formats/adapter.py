"""A LoRA adapter: the Δ of a model as products of thin matrices, and tensors that it trained whole.

An adapter holds no model but what was added to one: for a weight of shape (R, C) the Δ is
``factor · up @ down`` with ``up`` (R, r) and ``down`` (r, C), PEFT's ``lora_B`` and ``lora_A``.
The product is never made whole: a run of it is computed when it is read.

Source of names, scaling and patterns: PEFT 0.21, ``tuners/lora/layer.py``, ``tuners/lora/model.py``
and ``utils/save_and_load.py``; LoRA: Hu et al., ICLR 2022, section 4.1; rank-stabilised scaling:
Kalajdzievski, arXiv 2312.03732. What PEFT can do beside it and a sum of matrices cannot say is
refused with the reason.
"""

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from paramdelta.errors import CheckpointError
from paramdelta.formats.checkpoint import INDEX, WEIGHTS, Checkpoint, read_weights
from paramdelta.formats.patterns import PatternError, Patterns
from paramdelta.formats.view import (
    Fetch,
    Part,
    Tensor,
    Transposed,
    View,
    cache_of,
    float64,
    rectangles,
)
from paramdelta.storage.files import Files
from paramdelta.text import shown

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
BLOCK = 1 << 17  # elements of a factor that are widened at a time: 1 MiB as float64
EIGHT = 8  # products that the inner loop adds together
DEEP = 1 << 12  # columns of `up` that are taken at a time
KEPT = 16 << 20  # bytes of `down` that stay in memory between slices, for all threads together


# -- the Δ -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank(View):
    """``factor · up @ down`` in float64: each element the sum of its products, in order.

    ``up``: (R, r). ``down``: (r, C). ``shape``: (R, C), or any whose elements are those: a
    convolution's kernel. An element does not depend on the run in which it is read.

    Memory of a read beside its result: `KEPT` in all, and about 3 MiB a thread.
    """

    up: View
    down: View
    factor: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those of both factors."""
        return self.up.parts + self.down.parts

    @property
    def identity(self) -> list[Any]:
        """Both factors and the number."""
        return ["low rank", self.up.identity, self.down.identity, self.factor]

    def turned(self) -> "LowRank":
        """The same Δ for a weight whose axes are exchanged."""
        shape = self.shape[::-1]
        return replace(self, shape=shape, up=_turned(self.down), down=_turned(self.up))

    @property
    def is_stored(self) -> bool:
        """Only the factors are."""
        return False

    def scratch(self, size: int) -> int:
        """Blocks of both factors."""
        return 3 * 8 * BLOCK

    @property
    def caches(self) -> dict[str, int]:
        """Blocks of one factor; those of the factors' own views."""
        return {**self.up.caches, **self.down.caches, "low rank": KEPT}

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Multiply block by block of the factors what the run needs."""
        import numpy as np

        for rows, columns, target in rectangles(start, stop, self.down.shape[1], into, 8):
            out = np.frombuffer(target, np.float64).reshape(len(rows), len(columns))
            out[:] = 0
            for deep in _cut(range(self.up.shape[1]), DEEP):
                for some in _cut(rows, BLOCK // len(deep)):
                    self._add(some, columns, deep, out, some.start - rows.start, fetch)
            out *= self.factor

    def _add(
        self, rows: range, columns: range, deep: range, out: "Array", row: int, fetch: Fetch
    ) -> None:
        """Add the products of one run of `up`'s columns to rows of ``out`` from ``row`` on."""
        from paramdelta.arithmetic import lowrank  # compiled code, not needed for planning

        kept = cache_of(fetch, "low rank", lambda: _Kept(KEPT))
        up = float64(_block(self.up, rows, deep, fetch), self.up.dtype)
        for some in _cut(columns, BLOCK // EIGHT):
            for few in _cut(deep, BLOCK // len(some) // EIGHT * EIGHT):
                stored = kept.get(self.down, (few, some))
                if stored is None:
                    stored = _block(self.down, few, some, fetch)
                    kept.put(self.down, (few, some), stored)
                down = float64(stored, self.down.dtype)
                column = some.start - columns.start
                lowrank.accumulate(up, few.start - deep.start, down, out, row, column)


def _turned(view: View) -> View:
    if isinstance(view, Transposed):
        return view.view
    return Transposed(view.name, view.dtype, view.shape[::-1], view)


def _cut(whole: range, step: int) -> Iterator[range]:
    """A range in pieces of at most ``step``."""
    for start in range(whole.start, whole.stop, max(1, step)):
        yield range(start, min(start + max(1, step), whole.stop))


def _block(view: View, rows: range, columns: range, fetch: Fetch) -> "Array":
    """A rectangle of a view of two axes as `dtypes` says, contiguous."""
    import numpy as np

    if isinstance(view, Transposed):
        return np.ascontiguousarray(_block(view.view, columns, rows, fetch).T)
    width = view.shape[1]
    if len(columns) == width:
        block = view.array(rows.start * width, rows.stop * width, fetch)
        return block.reshape(len(rows), width)
    block = np.empty((len(rows), len(columns)), view.kind.numpy)
    starts = np.arange(rows.start, rows.stop) * width + columns.start
    view.gather(starts, block.data.cast("B"), fetch)
    return block


class _Kept:
    """Blocks that the next slice will want again: at most ``limit`` bytes, for all threads.

    Every slice of a low-rank tensor takes all of `down`, and the slices come in order. So the
    blocks of a tensor that are in stay in, and what does not fit is read again: to replace one's
    own oldest block would leave, when one comes round to it, none. Blocks of other tensors make
    room. Blocks belong to the ``fetch`` that read them: another run may find other files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[Hashable, dict[Hashable, Array]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, owner: Hashable, key: Hashable) -> "Array | None":
        """A block, if it is there."""
        with self._lock:
            if owner not in self._blocks:
                return None
            self._blocks.move_to_end(owner)
            return self._blocks[owner].get(key)

    def put(self, owner: Hashable, key: Hashable, block: "Array") -> None:
        """Keep a block, if there is or can be made room for it; it is not to be changed."""
        with self._lock:
            mine = self._blocks.setdefault(owner, {})
            self._blocks.move_to_end(owner)
            while self._size + block.nbytes > self.limit and len(self._blocks) > 1:
                _, others = self._blocks.popitem(last=False)
                self._size -= sum(other.nbytes for other in others.values())
            if key not in mine and self._size + block.nbytes <= self.limit:
                mine[key] = block
                self._size += block.nbytes


# -- the file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. All names are those of the model that it was trained on.

    ``checkpoint``: where it is, its stored tensors, its file, its companions (the tokenizer and the
    chat template of the trained model may lie there; config.json rarely does). ``base``: the
    address of the model that it was trained on, as far as it says. ``deltas``: by weight, the Δ;
    see `oriented`. ``replaced``: by tensor, the trained tensor itself: its Δ is this − base. A name
    in both was first replaced, and the Δ comes on top. ``turned``: whether the layers that were
    adapted keep their weights as (in, out), as Conv1D of GPT-2 does, as far as the config says.
    ``settled``: the Δ whose axes are certain, those of embeddings and convolutions.
    """

    checkpoint: Checkpoint
    base: str | None
    deltas: Mapping[str, LowRank]
    replaced: Mapping[str, View]
    turned: bool = False
    settled: frozenset[str] = frozenset()

    def oriented(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LowRank]:
        """The Δ with their axes as the model has them; ``shapes``: those of all its tensors.

        A weight that is not square shows its axes itself. PEFT notes those of the layer that it
        came to last, so for square ones the layers of the same last name are asked first (their
        weights, and their biases, which are as long as what comes out), and the note last. What
        fits neither way, or is not in the model, is given as the config says.
        """
        votes: dict[str, set[bool]] = {}
        for name, shape in shapes.items():
            vote = self._axes(name, shape, shapes)
            if vote is not None:
                votes.setdefault(_last(name), set()).add(vote)
        result = {}
        for name, delta in self.deltas.items():
            turn = name not in self.settled and self.turned
            if name not in self.settled and name in shapes:
                own = self._axes(name, shapes[name], shapes)
                same = votes.get(_last(name), set())
                turn = own if own is not None else next(iter(same)) if len(same) == 1 else turn
            result[name] = delta.turned() if turn else delta
        return result

    def _axes(
        self, name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
    ) -> bool | None:
        """Whether a weight of the model is (in, out), not (out, in); None: it cannot be told."""
        if len(shape) != 2 or shape[0] == shape[1] or name in self.settled:
            return None
        if name in self.deltas:
            plain = self.deltas[name].shape
            return None if shape not in (plain, plain[::-1]) else shape != plain
        bias = shapes.get(name.removesuffix("weight") + "bias")
        return None if bias not in ((shape[0],), (shape[1],)) else bias == (shape[1],)


def _last(name: str) -> str:
    """The last name of the module that a tensor belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def is_adapter(files: Files) -> bool:
    """Whether a folder holds an adapter, and not a whole model beside one, as merged ones may."""
    return CONFIG in files and WEIGHTS not in files and INDEX not in files


def open_adapter(files: Files, role: str) -> Adapter:
    """Read an adapter's config and header; for a folder of which `is_adapter` is true.

    Raises:
        CheckpointError: not a LoRA adapter, one whose Δ is not a sum of matrices, or a damaged one.
        StorageError: a file cannot be read.
    """
    config = files.json(CONFIG)
    where = str(files[CONFIG])
    _check(config, where)
    blob = files.get(ADAPTER) or files.get(PICKLE)
    if blob is None:
        raise CheckpointError(
            "the adapter has no weights",
            code="adapter-without-weights",
            where=files.location.url,
            expected=f"{ADAPTER} or {PICKLE}",
            remedy="finish the download",
        )
    source, found, _ = read_weights(files.reader, blob)
    tensors = {tensor.name: tensor for tensor in found}
    named = files.json("config.json")
    checkpoint = Checkpoint(role, files.location, tensors, (source,), files, named)
    halves, replaced = _sorted(tensors, str(blob))
    scaling = _Scaling(config, where)
    deltas, settled = {}, set()
    for module, pair in halves.items():
        name = module + ".weight"
        deltas[name] = _low_rank(name, module, pair, scaling, str(blob))
        if pair.keys() == _EMBEDDING or len(deltas[name].shape) != 2:
            settled.add(name)
    if not deltas and not replaced:
        raise CheckpointError(
            "the adapter is empty",
            code="adapter-without-weights",
            where=str(blob),
            expected="at least one pair",
        )
    return Adapter(
        checkpoint,
        _base(config, where),
        deltas,
        replaced,
        _flag(config, "fan_in_fan_out", where),
        frozenset(settled),
    )


_A, _B = "lora_A.weight", "lora_B.weight"
_LINEAR = {_A, _B}
_EMBEDDING = {"lora_embedding_A", "lora_embedding_B"}
_HALF = re.compile(
    r"(?P<module>.+)\.(?P<half>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)"
)
_PREFIX = "base_model.model."
# Parts of names that are no module's but some method's of PEFT; such a tensor is no plain one.
_METHOD = re.compile(
    r"(^|\.)(lora_|ia3_|hada_|lokr_|oft_|boft_|vera_|token_adapter|trainable_tokens|prompt_|"
    r"modules_to_save|original_module|base_layer\.)"
)


def _sorted(
    tensors: Mapping[str, View], where: str
) -> tuple[dict[str, dict[str, View]], dict[str, View]]:
    """Pairs of factors by module, and whole tensors by name, both as the model calls them."""
    halves: dict[str, dict[str, View]] = {}
    replaced: dict[str, View] = {}
    unknown = []
    for stored, tensor in tensors.items():
        name = stored.removeprefix(_PREFIX)
        match = _HALF.fullmatch(name)
        if match and not _METHOD.search(match["module"] + "."):
            halves.setdefault(match["module"], {})[match["half"]] = tensor
            continue
        # PEFT wraps what it adapts: the layer's own tensors are those of its "base_layer".
        plain = re.sub(r"\.base_layer(?=\.[^.]+$)", "", name)
        if name == stored or _METHOD.search(plain) or plain in replaced:
            unknown.append(stored)
        else:
            replaced[plain] = tensor
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the adapter are none of a plain LoRA adapter's",
            code="unsupported-adapter",
            where=where,
            expected=f"{_PREFIX}….lora_A.weight and lora_B.weight, or whole tensors",
            got=", ".join(unknown[:4]) + (" …" if len(unknown) > 4 else ""),
            remedy=_MERGE,
        )
    for module, pair in halves.items():
        if pair.keys() not in (_LINEAR, _EMBEDDING):
            raise CheckpointError(
                "a pair of factors is not whole",
                code="adapter-factors-misfit",
                where=f"{where}, module {module!r}",
                expected="lora_A and lora_B, or lora_embedding_A and lora_embedding_B",
                got=", ".join(sorted(pair)),
                remedy="get the adapter again",
            )
    return halves, replaced


def _low_rank(
    name: str, module: str, pair: Mapping[str, View], scaling: "_Scaling", where: str
) -> LowRank:
    """The Δ of one module's weight."""
    embedding = pair.keys() == _EMBEDDING
    a, b = (pair[key] for key in sorted(pair))
    for tensor in (a, b):
        if not tensor.kind.mixable:
            raise CheckpointError(
                f"a factor is stored as {tensor.dtype}, which cannot be multiplied",
                code="unsupported-adapter",
                where=f"{where}, tensor {tensor.name!r}",
                expected="BF16, F16, F32 or F64",
            )
    kernel = (1,) * (len(a.shape) - 2)
    fits = (
        len(a.shape) >= 2
        and (not embedding or len(a.shape) == 2)
        and b.shape == (*b.shape[:1], a.shape[0], *kernel)
        and a.elements > 0 < b.elements
    )
    if not fits:
        raise CheckpointError(
            "the factors do not fit together",
            code="adapter-factors-misfit",
            where=f"{where}, module {module!r}",
            expected="A (r, in) and B (out, r)",
            got=f"A {list(a.shape)} and B {list(b.shape)}",
            remedy="if it was trained with ZeRO-3 or FSDP, gather the shards before saving",
        )
    rank = a.shape[0]
    factor = scaling.factor(module, rank)
    if embedding:  # (V, D) = (B · A)ᵀ
        shape = (a.shape[1], b.shape[0])
        return LowRank(name, "F64", shape, _turned(a), _turned(b), factor)
    up = Part(b.name, b.dtype, (b.shape[0], rank), b, 0) if kernel else b
    down = Part(a.name, a.dtype, (rank, a.width), a, 0) if kernel else a
    return LowRank(name, "F64", (b.shape[0], *a.shape[1:]), up, down, factor)


# -- the config ------------------------------------------------------------------------------------

_MERGE = "merge it with PEFT (merge_and_unload, save_pretrained) and give the merged folder as post"
_CONVERT = (
    "save it as a plain one with PEFT (save_pretrained with "
    "path_initial_model_for_weight_conversion), or merge it (merge_and_unload)"
)
_REFUSED = {
    "use_dora": "DoRA scales whole columns of the base (the magnitude vector): no Δ that is added",
    "lora_bias": "it trains biases of the factors (lora_bias), which are not read yet",
    "trainable_token_indices": "it replaces rows of the embedding (trainable_token_indices), which "
    "is not read yet",
    "target_parameters": "it adapts parameters of experts (target_parameters), whose names the "
    "file does not say",
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
# Everything else that PEFT writes and that says nothing about what the factors mean.
_SILENT = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config"),
    *("base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "fan_in_fan_out", "init_lora_weights", "lora_dropout", "bias"),
    *("modules_to_save", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ephemeral_gpu_offload"),
    "merge_weights",
}


def _check(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not the plain sum of base and product."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            "only LoRA adapters have a Δ that can be added",
            code="unsupported-adapter",
            where=where,
            expected='peft_type: "LORA"',
            got=repr(kind)[:80],
            remedy=_MERGE,
        )
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                reason,
                code="unsupported-adapter",
                where=where,
                got=_said(config, key),
                remedy=_MERGE,
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
            remedy=_MERGE,
        )
    for key, value in config.items():
        if value and key not in _SILENT:
            raise CheckpointError(
                "the adapter's config says something that is not known here",
                code="unsupported-adapter",
                where=where,
                got=_said(config, key),
                remedy="if it does not change what the factors mean, take it out; else " + _MERGE,
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


class _Scaling:
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

    def factor(self, module: str, rank: int) -> float:
        """The number for a module whose factors have this rank; raises CheckpointError."""
        said = self._looked_up(self.ranks, module, self.rank)
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
                str(error), code="invalid-adapter-config", where=self.where, remedy=_MERGE
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
