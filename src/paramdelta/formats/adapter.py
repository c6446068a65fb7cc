"""A LoRA adapter: what training changed in a model, and not a model.

For a weight of shape (R, C) the Δ is ``factor · up @ down`` with ``up`` (R, r) and ``down`` (r, C),
PEFT's ``lora_B`` and ``lora_A``. Beside them an adapter can hold trained tensors, trained rows of
an embedding, and the trained lengths of DoRA.

Source of names, scaling and patterns: PEFT 0.21, ``tuners/lora/layer.py``, ``tuners/lora/model.py``
and ``utils/save_and_load.py``; LoRA: Hu et al., ICLR 2022, section 4.1; rank-stabilized scaling:
Kalajdzievski, arXiv 2312.03732. PEFT's own merge is the reference, except for embeddings that are
tied to the output head (`planning.heads`).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from paramdelta.errors import CheckpointError, MisfitError
from paramdelta.formats import mlx
from paramdelta.formats.adapterconfig import INPUT, MERGE, AdapterConfig, read_config
from paramdelta.formats.adapterfile import (
    BIAS,
    EMBEDDING,
    EMBEDDING_A,
    LINEAR,
    MAGNITUDE,
    A,
    B,
    Contents,
    sort_tensors,
)
from paramdelta.formats.checkpoint import (
    INDEX,
    PICKLE,
    PICKLE_INDEX,
    WEIGHTS,
    Checkpoint,
    read_weights,
)
from paramdelta.formats.dora import Dora
from paramdelta.formats.lowrank import LowRank, turned
from paramdelta.formats.scaled import Scaled
from paramdelta.formats.view import Part, Rows, View, fetch_from
from paramdelta.storage.files import Files

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
_MODEL = {WEIGHTS, INDEX, PICKLE, PICKLE_INDEX}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TrainedRows:
    """Rows of an embedding that were trained: of these ids, one row of ``view`` each."""

    ids: Shape
    view: View


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. All names are those of the model that it was trained on.

    ``checkpoint``: where it is, its stored tensors, its file, its companions (the tokenizer and the
    chat template of the trained model may lie there; config.json rarely does). ``base``: the
    address of the model that it was trained on, as far as it says. ``task``: PEFT's task type.

    ``deltas``: by tensor, what is added; see `oriented`. ``replaced``: by tensor, the trained
    tensor itself. A name in both was first replaced, and the Δ comes on top. ``magnitudes``: by
    weight with a Δ, the trained lengths of DoRA. ``rows``: by tensor, its trained rows.

    ``turned``: whether the layers that were adapted keep their weights as (in, out), as Conv1D of
    GPT-2 does, as far as the config says. ``settled``: the Δ whose axes are certain, those of
    embeddings and convolutions. ``keeps_ties``: a change of the embedding is one of the output head
    that is tied to it.
    """

    checkpoint: Checkpoint
    base: str | None
    deltas: Mapping[str, View]
    replaced: Mapping[str, View] = field(default_factory=dict)
    magnitudes: Mapping[str, View] = field(default_factory=dict)
    rows: Mapping[str, TrainedRows] = field(default_factory=dict)
    turned: bool = False
    settled: frozenset[str] = frozenset()
    keeps_ties: bool = False
    task: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors that it changes."""
        return tuple({**self.deltas, **self.replaced, **self.rows})

    @property
    def needs_base(self) -> tuple[str, ...]:
        """The tensors whose Δ follows from the base that the adapter was trained on."""
        return tuple({**self.replaced, **self.magnitudes, **self.rows})

    def renamed(self, new: Mapping[str, str]) -> "Adapter":
        """The same adapter under other names; ``new``: by every name."""
        return replace(
            self,
            deltas={new[name]: view for name, view in self.deltas.items()},
            replaced={new[name]: view for name, view in self.replaced.items()},
            magnitudes={new[name]: view for name, view in self.magnitudes.items()},
            rows={new[name]: rows for name, rows in self.rows.items()},
            settled=frozenset(new[name] for name in self.settled),
        )

    def applied(self, base: Mapping[str, View]) -> tuple[dict[str, View], dict[str, View]]:
        """The trained model as far as it differs from its base: whole tensors, and Δs on top.

        ``base``: the tensors of the model that it was trained on; needed for `needs_base`.

        Raises:
            MisfitError: the base lacks a tensor that the adapter changes, or has another shape.
        """
        deltas = self.oriented({name: view.shape for name, view in base.items()})
        views: dict[str, View] = dict(self.replaced)
        for name, trained in self.rows.items():
            views[name] = self._with_rows(name, trained, views.get(name) or base.get(name))
        for name, magnitude in self.magnitudes.items():
            views[name] = self._rescaled(
                name, deltas.pop(name), magnitude, views.get(name) or base.get(name)
            )
        return views, deltas

    def _with_rows(self, name: str, trained: TrainedRows, base: View | None) -> View:
        """The base's tensor with the trained rows in it."""
        own = trained.view
        if base is None or len(base.shape) != 2 or base.shape[1] != own.shape[1]:
            raise self._misfit(name, f"rows of {own.shape[1]} numbers", base)
        if max(trained.ids) >= base.shape[0]:
            raise self._misfit(name, f"more than {max(trained.ids)} rows", base)
        numbers = array("i", range(base.shape[0]))
        for number, token in enumerate(trained.ids):
            numbers[token] = base.shape[0] + number
        return replace(Rows.joined(name, base.shape, (base, own)), rows=numbers.tobytes())

    def _rescaled(self, name: str, delta: View, magnitude: View, base: View | None) -> View:
        """The base's weight with its Δ, each line as long as it was trained to be."""
        if base is None or base.shape != delta.shape:
            raise self._misfit(name, f"shape {list(delta.shape)}", base)
        # Lines are what comes out of the layer; of an embedding, its dimensions.
        plain = self.deltas[name]
        columns = len(delta.shape) == 2 and (
            name in self.settled or (isinstance(plain, LowRank) and delta != plain)
        )
        lines = delta.width if columns else delta.shape[0]
        if magnitude.elements != lines:
            raise self._misfit(name, f"{magnitude.elements} lines", base)
        return Dora(name, "F64", delta.shape, base, delta, magnitude, columns)

    def _misfit(self, name: str, expected: str, base: View | None) -> MisfitError:
        return MisfitError(
            "the adapter changes a tensor that its base does not have in this form",
            code="adapter-base-misfit",
            where=f"{self.checkpoint}, tensor {name!r}",
            expected=expected,
            got="no such tensor" if base is None else str(list(base.shape)),
            remedy="pass the model that the adapter was trained on as `base`",
        )

    def oriented(self, shapes: Mapping[str, Shape]) -> dict[str, View]:
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
            if not isinstance(delta, LowRank):  # of experts, or of a bias
                result[name] = _of_shape(delta, shapes.get(name), shapes)
                continue
            turn = name not in self.settled and self.turned
            if name not in self.settled and name in shapes:
                own = self._axes(name, shapes[name], shapes)
                same = votes.get(_last(name), set())
                turn = own if own is not None else next(iter(same)) if len(same) == 1 else turn
            result[name] = delta.turned() if turn else delta
        return result

    def _axes(self, name: str, shape: Shape, shapes: Mapping[str, Shape]) -> bool | None:
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
    return CONFIG in files and not has_model(files)


def has_model(files: Files) -> bool:
    """Whether a folder holds the weights of a whole model, by the names that transformers gives."""
    return not _MODEL.isdisjoint(files)


def open_adapter(files: Files, role: str) -> Adapter:
    """Read an adapter's config and header; for a folder of which `is_adapter` is true.

    Raises:
        CheckpointError: not a LoRA adapter, one that cannot be expressed in weights, or a damaged
            one.
        StorageError: a file cannot be read.
    """
    said, where = files.json(CONFIG), str(files[CONFIG])
    if mlx.is_mlx(said):
        return _of_mlx(files, role)
    config = read_config(said, where)
    blob = files.get(ADAPTER) or files.get(ADAPTER_PICKLE)
    if blob is None:
        raise CheckpointError(
            "the adapter has no weights",
            code="adapter-without-weights",
            where=files.location.url,
            expected=f"{ADAPTER} or {ADAPTER_PICKLE}",
            remedy="finish the download",
        )
    source, found, _ = read_weights(files.reader, blob)
    tensors = {tensor.name: tensor for tensor in found}
    checkpoint = Checkpoint(
        role, files.location, tensors, (source,), files, files.json("config.json")
    )
    contents = sort_tensors(tensors, config, str(blob), fetch_from(files.reader))
    parameters = _parameters(contents, config, str(blob))
    deltas: dict[str, View] = {}
    magnitudes: dict[str, View] = {}
    settled = set()
    for module, factors in contents.factors.items():
        name = parameters.get(module, module + ".weight")
        deltas[name] = (
            _parameter_delta(name, factors, config, str(blob))
            if module in parameters
            else _module_delta(name, module, factors, config, str(blob))
        )
        if factors.keys() >= EMBEDDING or len(deltas[name].shape) != 2:
            settled.add(name)
        if BIAS in factors:
            bias = module + ".bias"
            scale = config.scaling.factor(module, factors[A].shape[0])
            own = _mixable(factors[BIAS], str(blob))
            deltas[bias] = Scaled(bias, "F64", own.shape, own, scale)
        if MAGNITUDE in factors:
            magnitudes[name] = _mixable(factors[MAGNITUDE], str(blob))
    rows = {
        f"{module}.weight": TrainedRows(_ids(module, view, config), view)
        for module, view in contents.rows.items()
    }
    if not deltas and not contents.whole and not rows:
        raise CheckpointError(
            "the adapter is empty",
            code="adapter-without-weights",
            where=str(blob),
            expected="at least one pair",
        )
    return Adapter(
        checkpoint,
        config.base,
        deltas,
        contents.whole,
        magnitudes,
        rows,
        config.turned,
        frozenset(settled),
        config.keeps_ties,
        config.task,
    )


def _of_mlx(files: Files, role: str) -> Adapter:
    found = mlx.open_mlx(files, role)
    return Adapter(found.checkpoint, found.base, found.deltas, found.whole, found.magnitudes)


# -- the Δ of a module -----------------------------------------------------------------------------


def _mixable(view: View, where: str) -> View:
    if not view.kind.mixable:
        raise CheckpointError(
            f"a factor is stored as {view.dtype}, which cannot be multiplied",
            code="unsupported-adapter",
            where=f"{where}, tensor {view.name!r}",
            expected="BF16, F16, F32 or F64",
        )
    return view


def _misfit(module: str, a: View, b: View, where: str) -> CheckpointError:
    return CheckpointError(
        "the factors do not fit together",
        code="adapter-factors-misfit",
        where=f"{where}, module {module!r}",
        expected="A (r, in) and B (out, r)",
        got=f"A {list(a.shape)} and B {list(b.shape)}",
        remedy="if it was trained with ZeRO-3 or FSDP, gather the shards before saving",
    )


def _module_delta(
    name: str, module: str, factors: Mapping[str, View], config: AdapterConfig, where: str
) -> View:
    """The Δ of one module's weight."""
    embedding = EMBEDDING_A in factors
    a, b = (_mixable(factors[key], where) for key in sorted(factors.keys() - {BIAS, MAGNITUDE}))
    kernel = (1,) * (len(a.shape) - 2)
    fits = (
        len(a.shape) >= 2
        and (not embedding or len(a.shape) == 2)
        and b.shape == (*b.shape[:1], a.shape[0], *kernel)
        and a.elements > 0 < b.elements
        and (BIAS not in factors or factors[BIAS].shape == b.shape[:1])
    )
    if not fits:
        raise _misfit(module, a, b, where)
    rank = a.shape[0]
    factor = config.scaling.factor(module, rank)
    if embedding:  # (V, D) = (B · A)ᵀ
        shape = (a.shape[1], b.shape[0])
        return LowRank(name, "F64", shape, turned(a), turned(b), factor)
    up = Part(b.name, b.dtype, (b.shape[0], rank), b, 0) if kernel else b
    down = Part(a.name, a.dtype, (rank, a.width), a, 0) if kernel else a
    return LowRank(name, "F64", (b.shape[0], *a.shape[1:]), up, down, factor)


# -- parameters of experts -------------------------------------------------------------------------


def _parameters(contents: Contents, config: AdapterConfig, where: str) -> dict[str, str]:
    """By module as the file calls it, the parameter that its factors are for (target_parameters).

    PEFT wraps a module once for each of its parameters that it adapts, in the order in which the
    module has them, and the file does not say which is which. Of experts the inner factors are
    those of ``gate_up_proj`` and the outer ones those of ``down_proj``; their shapes must say the
    same.
    """
    wrappers: dict[str, list[str]] = {}
    for module in contents.factors if config.parameters else ():
        plain = module
        while plain.endswith(".base_layer"):
            plain = plain.removesuffix(".base_layer")
        wrappers.setdefault(plain, []).append(module)
    found: dict[str, str] = {}
    for plain, modules in wrappers.items():
        names = {name for end in config.parameters if (name := _named(plain, end))}
        if not names and modules == [plain]:
            continue
        inner = sorted(modules, key=len, reverse=True)
        ordered = sorted(names, reverse=True)  # gate_up_proj, down_proj
        levels = [plain + ".base_layer" * number for number in reversed(range(len(inner)))]
        if inner != levels or not _are_of(ordered, [contents.factors[m] for m in inner]):
            raise CheckpointError(
                "it cannot be told which parameters the factors of a module are for",
                code="unsupported-adapter",
                where=f"{where}, module {plain!r}",
                expected="one parameter, or gate_up_proj and down_proj of experts",
                got=", ".join(ordered) or "no target_parameters that name it",
                remedy=MERGE,
            )
        found |= dict(zip(inner, ordered, strict=True))
    return found


def _named(module: str, end: str) -> str | None:
    """The parameter of a module that the end of a name stands for, if it is one of its own.

    A name alone can be one of any module; factors of such a one are looked for at experts.
    """
    within, dot, last = end.rpartition(".")
    if not dot and not f".{module}".endswith(".experts"):
        return None
    return f"{module}.{last}" if f".{module}".endswith(f".{within}" if dot else "") else None


def _are_of(names: Sequence[str], factors: Sequence[Mapping[str, View]]) -> bool:
    """Whether factors are those of these parameters, as far as their shapes tell."""
    if len(names) != len(factors) or any(each.keys() != LINEAR for each in factors):
        return False
    if len(names) == 1:
        return True
    joined, low = ((each[A].shape[-1], each[B].shape[0]) for each in factors[:2])
    ends = [name.rpartition(".")[2] for name in names]
    return ends == ["gate_up_proj", "down_proj"] and joined == (low[1], 2 * low[0])


def _parameter_delta(
    name: str, factors: Mapping[str, View], config: AdapterConfig, where: str
) -> View:
    """The Δ of a parameter: a matrix, or a matrix (out, in) for each of E experts.

    A is (E · r, in), expert by expert; B is (out, r · E), where the experts alternate.
    """
    a, b = (_mixable(factors[key], where) for key in (A, B))
    rank = config.scaling.rank_of(name)
    fits = len(a.shape) == len(b.shape) == 2 and b.shape[1] == a.shape[0]
    if not fits or not a.elements > 0 < b.elements or a.shape[0] % rank:
        raise _misfit(name, a, b, where)
    factor = config.scaling.factor(name, rank)
    count, into, out = a.shape[0] // rank, a.shape[1], b.shape[0]
    if count == 1:
        return LowRank(name, "F64", (out, into), b, a, factor)
    across = turned(b)
    experts = []
    for number in range(count):
        columns = array("i", range(number, a.shape[0], count)).tobytes()
        up = turned(Rows(b.name, b.dtype, (rank, out), (across,), columns))
        down = Part(a.name, a.dtype, (rank, into), a, number * rank * into)
        experts.append(LowRank(name, "F64", (out, into), up, down, factor))
    return Rows.joined(name, (count, out, into), experts)


def _turned_experts(delta: View) -> View:
    """The Δ of experts for a parameter that stores each matrix as (in, out)."""
    count, out, into = delta.shape
    views = [view.turned() for view in delta.views if isinstance(view, LowRank)]
    return Rows.joined(delta.name, (count, into, out), views)


def _of_shape(delta: View, shape: Shape | None, shapes: Mapping[str, Shape]) -> View:
    """The Δ of experts with the axes of the model's tensor.

    Where out and in are equally many, the shape of ``gate_up_proj`` tells: it has twice as many
    numbers come out as ``down_proj`` has go in.
    """
    if len(delta.shape) != 3 or shape is None:
        return delta
    count, out, into = delta.shape
    if out == into:
        joined = shapes.get(delta.name.removesuffix("down_proj") + "gate_up_proj", shape)
        return _turned_experts(delta) if joined[-2] < joined[-1] else delta
    return _turned_experts(delta) if shape == (count, into, out) else delta


# -- rows ------------------------------------------------------------------------------------------


def _ids(module: str, view: View, config: AdapterConfig) -> Shape:
    """The ids of trained rows; raises CheckpointError.

    The head that is tied to an embedding is stored with the embedding's ids.
    """
    ends = [end for end in config.tokens if end and f".{module}".endswith(f".{end}")]
    only = next(iter(config.tokens)) if len(config.tokens) == 1 else INPUT
    ids = config.tokens.get(ends[0] if ends else only, ())
    if len(view.shape) != 2 or view.shape[0] != len(ids) or not ids or not view.kind.mixable:
        raise CheckpointError(
            "config and file disagree about the trained rows",
            code="adapter-factors-misfit",
            where=f"{config.where}, module {module!r}",
            expected=f"{len(ids)} rows by the config",
            got=f"{view.dtype} {list(view.shape)} in the file",
            remedy="look whether config and weights belong together",
        )
    return ids
