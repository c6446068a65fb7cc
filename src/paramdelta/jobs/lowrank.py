"""Low-rank extraction: a Δ as a LoRA adapter, for each linear weight the best thin product.

`planning.linear` says what an adapter can hold; `arithmetic.sketch` is the decomposition. A task is
a module. The driver writes the factors in the order of the plan.

Source of names and keys: PEFT 0.21, ``tuners/lora/config.py`` and ``utils/save_and_load.py``.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdelta.arithmetic.sketch import Aim, Array, factorise, held, missed
from paramdelta.documents import to_json
from paramdelta.dtypes import DTYPES
from paramdelta.engine.memory import Need
from paramdelta.errors import CheckpointError, MisfitError, UsageError
from paramdelta.formats.adapter import ADAPTER
from paramdelta.formats.safetensors import encode_header
from paramdelta.formats.view import Fetch, View, fetch_from, float64
from paramdelta.jobs.extract import option_facts, source_facts
from paramdelta.output.card import front_matter
from paramdelta.output.folder import FolderSink
from paramdelta.planning.facts import GENERATION, JINJA, ROLE_IDS, chat_templates, value
from paramdelta.planning.findings import Finding, Severity
from paramdelta.planning.linear import EMBEDDINGS, Linear, Module
from paramdelta.planning.plan import Plan
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import BLOCK
from paramdelta.storage.digest import ALGORITHM
from paramdelta.storage.files import parse_json
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

LORA = "paramdelta.lora.json"  # what was kept, for machines; and the mark of such a folder
VERSION = 1
ALIGNED = 64  # bytes: where the data of the weight file begins
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank (vllm/config/lora.py)
HEIGHT = 1 << 19  # elements of a block of rows, but whole rows: 4 MiB as float64
# A model's own files, which would make loaders take the folder for a model.
MODELS = ("config.json", "modules.json", "model_index.json")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_POSITION = 10**18  # stands for a position that is not known yet: no position is longer


@dataclass(frozen=True)
class Kept:
    """A module of the adapter. ``rank`` of at most ``full``; ``energy``: ‖Δ‖²_F of its weight;
    ``kept``: the share of it that the stored factors hold, measured against Δ. ``embedding``: the
    factors are those of an embedding.
    """

    module: str
    tensor: str
    shape: tuple[int, int]
    rank: int
    full: int
    energy: float
    kept: float
    embedding: bool = False


@dataclass(frozen=True)
class Left:
    """Tensors of one kind whose Δ is not in the adapter, those whose Δ is zero not counted."""

    kind: str
    tensors: tuple[str, ...]
    energy: float


@dataclass(frozen=True)
class BaseName:
    """How an adapter calls its base: what loaders open. ``why``: where the name is from.

    ``name``: a Hub id, or else a path of this machine. ``revision``: the commit, if it is known.
    """

    name: str
    revision: str | None = None
    why: str = ""

    @property
    def is_path(self) -> bool:
        """Whether it means nothing on another machine."""
        return not HUB_ID.fullmatch(self.name)


@dataclass(frozen=True)
class MadeAdapter:
    """A written adapter. ``unchanged``: weights whose Δ is zero, and which have no factors.

    ``alone``: tensors that only post has. ``tied``: see `Linear`. ``stored``: bytes of the weight
    file. ``base``: how it calls its base.
    """

    kept: tuple[Kept, ...]
    left: tuple[Left, ...]
    unchanged: tuple[str, ...]
    alone: tuple[str, ...]
    tied: bool
    dtype: str
    stored: int
    base: BaseName

    @property
    def energy(self) -> float:
        """‖Δ‖²_F of all tensors."""
        return sum(one.energy for one in self.kept) + sum(one.energy for one in self.left)

    @property
    def kept_of_modules(self) -> float:
        """The share of its modules' energy that the adapter holds."""
        return self._held / sum(one.energy for one in self.kept)

    @property
    def kept_of_all(self) -> float:
        """The share of the whole Δ's energy that the adapter holds."""
        return self._held / self.energy

    @property
    def _held(self) -> float:
        return sum(one.kept * one.energy for one in self.kept)

    @property
    def rank(self) -> int:
        """The largest."""
        return max(one.rank for one in self.kept)

    @property
    def embeddings(self) -> bool:
        """Whether an embedding has factors."""
        return any(one.embedding for one in self.kept)

    @property
    def peft_ties(self) -> bool:
        """Whether PEFT gives factors of a tied embedding to the head: by the embedding's name."""
        embeddings = [one.module for one in self.kept if one.embedding]
        return self.tied and all(name.endswith("embed_tokens") for name in embeddings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the adapter does not hold."""
        more = "`embeddings=True`, unless the vocabulary changed; "
        found = [
            Finding(
                Severity.WARNING,
                "not-in-adapter",
                f"{left.kind} are left out: {100 * left.energy / self.energy:.2g} % of the Δ's "
                "energy",
                "adapter",
                left.tensors,
                (more if left.kind == EMBEDDINGS else "") + "a stored Δ keeps all of it",
            )
            for left in self.left
        ]
        if self.base.is_path:
            what = f"base_model_name_or_path is a path of this machine: {self.base.name}"
            remedy = "before sharing the adapter, write the Hub id of the base into it"
            found.append(Finding(Severity.WARNING, "base-is-path", what, "adapter", remedy=remedy))
        elif self.base.why:
            what = f"base_model_name_or_path is {self.base.name}, {self.base.why}"
            remedy = "check that this is the base that the Δ was taken from"
            found.append(Finding(Severity.WARNING, "base-by-name", what, "adapter", remedy=remedy))
        if self.alone:
            what = "tensors that only post has are left out"
            found.append(Finding(Severity.WARNING, "only-in-post", what, "adapter", self.alone))
        if self.tied:
            what = "the embedding's factors are those of the tied output head as well"
            remedy = (
                "use it unmerged, or merge it with paramdelta mix: merge_and_unload of PEFT 0.21 "
                "adds such factors twice"
                if self.peft_ties
                else "merge it, with merge_and_unload of PEFT or paramdelta mix: unmerged, the "
                "head is base's"
            )
            found.append(
                Finding(Severity.WARNING, "tied-embedding", what, "adapter", remedy=remedy)
            )
        joined = tuple(one.tensor for one in self.kept if ".experts." in one.tensor)
        if joined:
            what = "experts by their names in the checkpoint; transformers 5 joins them as it loads"
            remedy = "paramdelta mix takes the adapter; PEFT may not find them"
            found.append(
                Finding(Severity.WARNING, "experts-by-name", what, "adapter", joined, remedy)
            )
        return tuple(found)


def common_dtype(parts: Linear) -> str:
    """What the factors are stored in unless told: post's 16-bit type, where it has one; else F32.

    What BF16 loses of the energy is far below what any rank does (docs/lora.md).
    """
    (dtype, *others) = {module.pair.post.dtype for module in parts.modules} or {"F32"}
    return dtype if not others and dtype in ("BF16", "F16") else "F32"


@dataclass(frozen=True)
class Task:
    """A module to factorize; or, without one, a Δ whose energy is lost. ``tensor``: its name."""

    tensor: str
    pair: Pair
    kind: str = ""
    module: Module | None = None


@dataclass(frozen=True)
class Factors:
    """A module's factors as they are stored. ``kept`` is None where the Δ is zero."""

    kept: Kept | None
    down: bytes = b""
    up: bytes = b""


class LowRankJob:
    """Factorizes every module, and measures the energy of what cannot go in.

    ``where``: names the checkpoints, for errors. ``sink``: where the driver writes; None in a copy
    made by pickle.
    """

    lead = 1

    def __init__(
        self, parts: Linear, aim: Aim, dtype: str, where: str, sink: FolderSink | None
    ) -> None:
        self.parts, self.aim, self.dtype, self.where, self.sink = parts, aim, dtype, where, sink
        self.kept: list[Kept] = []
        self.unchanged: list[str] = []
        self.energies: dict[str, dict[str, float]] = {kind: {} for kind in parts.left}
        self._written: list[tuple[Module, int]] = []
        self._room = len(_header(dtype, [(module, None) for module in parts.modules]))
        self._position = self._room

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sink": None}

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`: first what is left out, then the modules."""
        left = [
            Task(tensor.name, pair, kind)
            for kind, tensors in self.parts.left.items()
            for tensor in tensors
            for pair in tensor.pairs
        ]
        return [*left, *(Task(m.tensor, m.pair, "", m) for m in self.parts.modules)]

    def cost(self, task: Task) -> int:
        """Bytes of all passes."""
        passes = self.aim.passes(task.module.shape) if task.module is not None else 1
        return (task.pair.post.nbytes + task.pair.base.nbytes) * passes

    def need(self, buffer: int) -> Need:
        """What a run holds; the size of buffers does not matter."""
        each = 0
        for module in self.parts.modules:
            width = self.aim.width(module.shape)
            done = 8 * sum(module.shape) * width  # a finished pair waits for those before it
            block = block_held((module.pair.post, module.pair.base), module.shape[1])
            each = max(each, held(module.shape, width) + done + block)
        for task in self.tasks():
            if task.module is None:
                each = max(each, block_held((task.pair.post, task.pair.base), 1))
        views = [view for task in self.tasks() for view in (task.pair.post, task.pair.base)]
        caches = {kind: size for view in views for kind, size in view.caches.items()}
        return Need(each, sum(caches.values()))

    def worker(self, reader: Reader, writers: Sequence[Any]) -> Callable[[Task], float | Factors]:
        """See `Job.worker`."""
        return partial(self._run, fetch_from(reader))

    def collect(self, task: Task, receipt: float | Factors) -> None:
        """Write factors; keep energies."""
        if isinstance(receipt, float):
            if receipt:
                self.energies[task.kind][task.tensor] = receipt
            return
        assert task.module is not None
        if receipt.kept is None:
            self.unchanged.append(task.tensor)
            return
        assert self.sink is not None
        file = self.sink.files.get(ADAPTER) or self.sink.create(ADAPTER)
        for data in (receipt.down, receipt.up):
            file.write(memoryview(data), self._position)
            self._position += len(data)
        self.kept.append(receipt.kept)
        self._written.append((task.module, receipt.kept.rank))

    def finished(self, base: BaseName) -> MadeAdapter:
        """Write the header, and say what was made; raises MisfitError if there is nothing."""
        if not self.kept:
            raise MisfitError(
                "there is no Δ that an adapter can hold",
                code="no-low-rank-delta",
                where=self.where,
                expected="a linear weight that differs",
                remedy="extract the exact Δ: it stores whatever differs",
            )
        assert self.sink is not None
        header = _header(self.dtype, self._written, self._room)
        self.sink.files[ADAPTER].write(memoryview(header), 0)
        left = (
            Left(kind, tuple(found), sum(found.values()))
            for kind, found in self.energies.items()
            if found
        )
        return MadeAdapter(
            tuple(self.kept),
            tuple(left),
            tuple(self.unchanged),
            self.parts.alone,
            self.parts.tied,
            self.dtype,
            self._position,
            base,
        )

    # -- on a worker -------------------------------------------------------------------------------

    def _run(self, fetch: Fetch, task: Task) -> float | Factors:
        if task.module is not None:
            return self._factorize(fetch, task.module)
        blocks = difference(task.pair, 1, fetch, self.where)
        return sum(float(np.vdot(block, block)) for _, block in blocks) + 0.0

    def _factorize(self, fetch: Fetch, module: Module) -> Factors:
        rows, columns = module.shape
        blocks = partial(difference, module.pair, columns, fetch, self.where)
        seed = int.from_bytes(hashlib.sha256(module.tensor.encode()).digest()[:8], "little")
        factors = factorise(blocks, (rows, columns), self.aim, seed)
        if factors is None:
            return Factors(None)
        up, up_stored = self._rounded(factors.up, module)
        down, down_stored = self._rounded(factors.down, module)
        rest = missed(blocks, up, down)
        kept = Kept(
            module.name,
            module.tensor,
            module.shape,
            up.shape[1],
            min(rows, columns),
            factors.energy,
            1 - rest / factors.energy,
            module.embedding,
        )
        # The weight of Conv1D or of an embedding is the transpose of what PEFT's factors make.
        if module.turned:
            up_stored, down_stored = down_stored.T, up_stored.T
        return Factors(kept, down_stored.tobytes(), up_stored.tobytes())

    def _rounded(self, values: Array, module: Module) -> tuple[Array, npt.NDArray[Any]]:
        """A factor rounded to the stored dtype: in float64, and as `dtypes` views it."""
        from paramdelta.arithmetic import kernels

        flat = np.ascontiguousarray(values).reshape(-1)
        out = np.empty(flat.size, DTYPES[self.dtype].numpy)
        rest = np.zeros(min(flat.size, BLOCK))
        for start in range(0, flat.size, BLOCK):
            part = slice(start, min(start + BLOCK, flat.size))
            if not kernels.finish(flat[part], rest[: part.stop - start], out[part]):
                raise UsageError(
                    f"{self.dtype} cannot hold the factors of {module.tensor!r}",
                    code="dtype-too-narrow",
                    where=self.where,
                    got=f"{np.abs(flat[part]).max():.3g}",
                    remedy="store them as f32",
                )
        wide = float64(out, self.dtype).reshape(values.shape)
        return wide, out.reshape(values.shape)


def base_name(plan: Plan) -> BaseName:
    """How an adapter calls the base of a plan.

    By its Hub id, or by the one that base's config.json or else post's model card names. Otherwise
    by its whole path, which at least works on this machine.
    """
    post, base = plan.lineages[0]
    assert base is not None
    if base.location.repo is not None:
        return BaseName(base.location.repo, base.location.revision)
    named = (
        (base.config.get("_name_or_path"), "which base's config.json names"),
        (front_matter(post).get("base_model"), "which post's model card names"),
    )
    for name, why in named:
        if isinstance(name, list) and len(name) == 1:
            (name,) = name
        if isinstance(name, str) and HUB_ID.fullmatch(name):
            return BaseName(name, None, why)
    return BaseName(base.location.url)


def serving_files(plan: Plan, small: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files that let a server use the adapter as post is used, beside those that post has.

    A folder without config.json states the ids that end a turn in generation_config.json only. Its
    chat template is a file of its own, for servers that take one. ``small``: post's own files.
    """
    post, _ = plan.lineages[0]
    made: dict[str, bytes] = {}
    settings = parse_json(small[GENERATION], GENERATION) if GENERATION in small else {}
    said = {role: value(role, post.files) for role in ROLE_IDS}
    known = {role: ids for role, ids in said.items() if ids is not None and role not in settings}
    if known:
        made[GENERATION] = to_json(settings | known).encode()
    template = chat_templates(post.files).get("default")
    if template is not None and JINJA not in small:
        made[JINJA] = template.encode("utf-8", errors="surrogatepass")
    return made


def adapter_config(parts: Linear, made: MadeAdapter) -> dict[str, Any]:
    """adapter_config.json: every module by its whole name, every factor's scaling 1.

    ``r`` is the largest rank, for vLLM takes no larger factors; the others are patterns. A pattern
    stands for all names that end like it, so longer names come first.
    """
    names = sorted((one.module for one in made.kept), key=lambda name: (-len(name), name))
    ranks = {one.module: one.rank for one in made.kept}
    patterns = {name: ranks[name] for name in names} if len(set(ranks.values())) > 1 else {}
    return {
        "peft_type": "LORA",
        "task_type": parts.task,
        "base_model_name_or_path": made.base.name,
        "revision": made.base.revision,
        "r": made.rank,
        "lora_alpha": made.rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": [one.module for one in made.kept],
        "fan_in_fan_out": parts.turned,
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        **({"ensure_weight_tying": True} if parts.tied else {}),
        "inference_mode": True,
    }


def description(
    plan: Plan, aim: Aim, made: MadeAdapter, outputs: Mapping[str, Mapping[str, Any]]
) -> str:
    """What was kept, for machines: the text of `LORA`.

    ``outputs``: size and content digest of every file.
    """
    post, base = plan.lineages[0]
    assert base is not None
    about = {
        "lora_version": VERSION,
        "post": source_facts(post),
        "base": source_facts(base),
        "options": option_facts(plan),
        "asked": asdict(aim),
        "dtype": made.dtype,
        "energy": made.energy,
        "kept_of_modules": made.kept_of_modules,
        "kept_of_all": made.kept_of_all,
        "digest_algorithm": ALGORITHM,
        "outputs": dict(sorted(outputs.items())),
        "modules": [asdict(one) for one in made.kept],
        "left": [asdict(one) for one in made.left],
        "unchanged": list(made.unchanged),
        "only_in_post": list(made.alone),
        "versions": {"paramdelta": __version__},
    }
    return to_json(about)


def _header(dtype: str, written: Sequence[tuple[Module, int | None]], size: int = 0) -> bytes:
    """The header of the weight file: modules and their ranks; padded to ``size``.

    A rank of None stands for one that is not known yet: the result is as long as any can be.
    """
    entries = []
    end = 0
    for module, rank in written:
        out, into = module.facing
        size_of = _POSITION if rank is None else rank
        for half, shape in (("A", (size_of, into)), ("B", (out, size_of))):
            begin, end = end, end + DTYPES[dtype].nbytes(math.prod(shape))
            if rank is None:
                begin, end = _POSITION, _POSITION
            suffix = f"lora_embedding_{half}" if module.embedding else f"lora_{half}.weight"
            entries.append((f"base_model.model.{module.name}.{suffix}", dtype, shape, begin, end))
    return encode_header(entries, {"format": "pt"}, ALIGNED, size)


# -- the Δ -----------------------------------------------------------------------------------------


def _block_height(columns: int) -> int:
    """Rows of a block."""
    return max(1, HEIGHT // columns)


def block_held(views: Iterable[View], columns: int) -> int:
    """Bytes that are held for a block of post − base: both stored and wide, and a product."""
    size = _block_height(columns) * columns
    return size * (3 * 8 + 8) + max(view.scratch(size * view.kind.size) for view in views)


def difference(pair: Pair, columns: int, fetch: Fetch, where: str) -> Iterator[tuple[int, Array]]:
    """post − base in float64, in rows of ``columns`` elements, block by block.

    Raises:
        CheckpointError: numbers that are infinite or NaN; ``where`` names the checkpoints.
    """
    from paramdelta.arithmetic import kernels

    height = _block_height(columns)
    for first in range(0, pair.post.elements // columns, height):
        start, stop = first * columns, min((first + height) * columns, pair.post.elements)
        block = np.empty(stop - start)
        post, base = (view.array(start, stop, fetch) for view in (pair.post, pair.base))
        if not kernels.subtract(post, base, block):
            raise _not_finite(pair, block, start, where)
        yield first, block.reshape(-1, columns)


def _not_finite(pair: Pair, block: npt.NDArray[Any], start: int, where: str) -> CheckpointError:
    bad = np.flatnonzero(~np.isfinite(block))
    row, column = divmod(start + int(bad[0]), pair.post.width)
    return CheckpointError(
        f"the Δ of tensor {pair.post.name!r} is not finite, so it has no singular values",
        code="delta-not-finite",
        where=where,
        expected="finite numbers",
        got=f"{block[bad[0]]} in row {row}, column {column}, and {len(bad) - 1} more near it",
        remedy="get the checkpoints again; if they are meant to be so, extract the exact Δ",
    )
