"""Writes a Δ as a LoRA adapter: the best product of thin matrices for each linear weight.

What an adapter can hold is said in `planning.linear`, the decomposition is in `engine.sketch`. A
thread makes a module at a time, and one writes them in the plan's order. As with a stored Δ
(`extract`), all is done in a hidden folder beside the output, whose weight file carries the ending
``.part`` and which has no config until every byte is on disk; a run that was killed begins again.

Source of names and keys: PEFT 0.21, ``tuners/lora/config.py`` and ``utils/save_and_load.py``.
"""

import hashlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES
from paramdelta.engine.run import Inputs
from paramdelta.engine.sketch import (
    Aim,
    Array,
    block_held,
    difference,
    factorise,
    held,
    missed,
)
from paramdelta.engine.slices import BLOCK, OVERHEAD
from paramdelta.engine.threads import TICK, Progress
from paramdelta.errors import MisfitError, UsageError
from paramdelta.formats.adapter import ADAPTER, CONFIG
from paramdelta.formats.view import View, float64
from paramdelta.output.companions import write_companions
from paramdelta.output.files import PART
from paramdelta.output.staging import whole_or_nothing
from paramdelta.planning.findings import Finding, Severity
from paramdelta.planning.linear import EMBEDDINGS, Linear, Module
from paramdelta.planning.plan import OutputTensor, Pair, Plan
from paramdelta.storage.local import (
    File,
    raise_open_file_limit,
    write_text,
)
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

LORA = "paramdelta.lora.json"  # what was kept, for machines; and the mark of such a folder
VERSION = 1
ALIGNED = 64  # bytes: where the data of the weight file begins
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank (vllm/config/lora.py)
_POSITION = 10**18  # stands for a position that is not known yet: none is longer
T = TypeVar("T")
# A model's own files, which would make loaders take the folder for a model.
_MODELS = ("config.json", "modules.json", "model_index.json")


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
class MadeAdapter:
    """A written adapter. ``unchanged``: weights whose Δ is zero, and which have no factors.

    ``alone``: tensors that only post has. ``tied``: see `Linear`. ``stored``: bytes of the weight
    file.
    """

    kept: tuple[Kept, ...]
    left: tuple[Left, ...]
    unchanged: tuple[str, ...]
    alone: tuple[str, ...]
    tied: bool
    dtype: str
    stored: int

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
    def findings(self) -> tuple[Finding, ...]:
        """What the adapter does not hold."""
        found = [
            Finding(
                Severity.WARNING,
                "not-in-adapter",
                f"{left.kind} are left out: {100 * left.energy / self.energy:.2g} % of the Δ's "
                "energy",
                "adapter",
                left.tensors,
                ("--embeddings, unless the vocabulary changed; " if left.kind == EMBEDDINGS else "")
                + "extract without --as lora keeps all of it",
            )
            for left in self.left
        ]
        if self.alone:
            what = "tensors that only post has are left out"
            found.append(Finding(Severity.WARNING, "only-in-post", what, "adapter", self.alone))
        if self.tied:
            what = "the output head is tied to an embedding whose factors it gets only by merging"
            remedy = "merge_and_unload of PEFT, or paramdelta mix; unmerged, the head is base's"
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


def share_out(parts: Linear, aim: Aim, memory: int, workers: int) -> tuple[int, int]:
    """Threads, and the bytes that they hold at the most beyond the interpreter and its libraries.

    Raises:
        UsageError: too little memory for one thread.
    """
    each = 0
    for module in parts.modules:
        views = (module.pair.post, module.pair.base)
        width = aim.width(module.shape)
        # A finished pair waits for those before it.
        done = 8 * sum(module.shape) * width
        each = max(each, held(module.shape, width) + done + block_held(views, module.shape[1]))
    for tensor in (tensor for tensors in parts.left.values() for tensor in tensors):
        (pair,) = tensor.pairs
        each = max(each, block_held((pair.post, pair.base), 1))
    workers = min(workers, (memory - OVERHEAD) // max(1, each))
    if workers < 1:
        raise UsageError(
            f"--memory {memory} is too little",
            expected=f"at least {each + OVERHEAD} bytes for factors of these ranks",
            remedy="give more, or a smaller --rank or --max-rank",
        )
    return workers, workers * each + OVERHEAD


def write_adapter(
    plan: Plan,
    parts: Linear,
    out: Path,
    aim: Aim,
    dtype: str,
    workers: int,
    card: Callable[[MadeAdapter], str],
    progress: Callable[[Progress], None],
) -> MadeAdapter:
    """Write the adapter of a plan onto post; ``progress`` counts the bytes of all passes.

    ``card``: the text of README.md.

    Raises:
        MisfitError: another run is writing it, or no linear weight has a Δ.
        CheckpointError, StorageError: reading or writing failed; nothing is left.
    """
    raise_open_file_limit()
    with whole_or_nothing(out, "lora") as staging:
        made = _Writer(plan, parts, aim, dtype, workers, progress).write(staging / (ADAPTER + PART))
        write_companions(
            tuple(c for c in plan.companions if c.name not in _MODELS), staging, Reader()
        )
        write_text(staging / "README.md", card(made))
        write_text(staging / LORA, _description(plan, aim, made))
        (staging / (ADAPTER + PART)).rename(staging / ADAPTER)
        write_text(staging / CONFIG, _json(adapter_config(plan, parts, made)))
    return made


def adapter_config(plan: Plan, parts: Linear, made: MadeAdapter) -> dict[str, Any]:
    """adapter_config.json: every module by its whole name, every factor's scaling 1.

    ``r`` is the largest rank, for vLLM takes no larger factors; the others are patterns. A pattern
    stands for all names that end like it, so longer names come first.
    """
    base = plan.lineages[0][1]
    names = sorted((one.module for one in made.kept), key=lambda name: (-len(name), name))
    ranks = {one.module: one.rank for one in made.kept}
    patterns = {name: ranks[name] for name in names} if len(set(ranks.values())) > 1 else {}
    return {
        "peft_type": "LORA",
        "task_type": parts.task,
        "base_model_name_or_path": base.location.name if base is not None else None,
        "revision": base.location.revision if base is not None else None,
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
        "inference_mode": True,
    }


def _description(plan: Plan, aim: Aim, made: MadeAdapter) -> str:
    post, base = plan.lineages[0]
    about = {
        "lora_version": VERSION,
        "post": post.location.name,
        "base": base.location.name if base is not None else None,
        "asked": asdict(aim),
        "dtype": made.dtype,
        "energy": made.energy,
        "kept_of_modules": made.kept_of_modules,
        "kept_of_all": made.kept_of_all,
        "modules": [asdict(one) for one in made.kept],
        "left": [asdict(one) for one in made.left],
        "unchanged": list(made.unchanged),
        "only_in_post": list(made.alone),
        "versions": {"paramdelta": __version__},
    }
    return _json(about)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# -- the weight file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A module's factors as they are stored; None where its Δ is zero."""

    kept: Kept
    down: bytes
    up: bytes


class _Writer:
    """Makes and writes the factors of all modules."""

    def __init__(
        self,
        plan: Plan,
        parts: Linear,
        aim: Aim,
        dtype: str,
        workers: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.parts = parts
        self.aim = aim
        self.dtype = dtype
        self.workers = workers
        self.progress = progress
        self.where = " − ".join(str(source) for source in plan.lineages[0] if source is not None)
        self.inputs = Inputs(once=False)  # read again and again
        self.lock = threading.Lock()  # of `done`
        self.done = 0
        self.stop = threading.Event()
        self.total = sum(
            _size(m.pair.post, m.pair.base) * aim.passes(m.shape) for m in parts.modules
        ) + sum(_size(p.post, p.base) for t in self._left() for p in t.pairs)

    def _left(self) -> list[OutputTensor]:
        return [tensor for tensors in self.parts.left.values() for tensor in tensors]

    def write(self, path: Path) -> MadeAdapter:
        """Write the file and sync it."""
        with ThreadPoolExecutor(self.workers, "paramdelta-lora") as pool:
            try:
                left = self._energies(pool)
                kept, unchanged, stored = self._factors(path, pool)
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self.inputs.close()
        self.done = self.total
        self._show()
        return MadeAdapter(
            tuple(kept),
            left,
            tuple(unchanged),
            self.parts.alone,
            self.parts.tied,
            self.dtype,
            stored,
        )

    def _factors(self, path: Path, pool: ThreadPoolExecutor) -> tuple[list[Kept], list[str], int]:
        """Write room for the header, the factors, then the header."""
        kept: list[Kept] = []
        unchanged: list[str] = []
        written: list[tuple[Module, int]] = []
        reserved = len(_header(self.dtype, [(m, _POSITION) for m in self.parts.modules]))
        file = File(path, os.O_RDWR | os.O_CREAT)
        try:
            position = reserved
            for module, pair in self._made(pool):
                if pair is None:
                    unchanged.append(module.tensor)
                    continue
                for data in (pair.down, pair.up):
                    file.write(memoryview(data), position)
                    position += len(data)
                kept.append(pair.kept)
                written.append((module, pair.kept.rank))
            if not kept:
                raise MisfitError(
                    "there is no Δ that an adapter can hold",
                    where=self.where,
                    expected="a linear weight that differs",
                    remedy="extract without --as lora stores whatever differs",
                )
            file.write(memoryview(_header(self.dtype, written, reserved)), 0)
            file.sync()
        finally:
            file.close()
        return kept, unchanged, position

    def _made(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Module, _Pair | None]]:
        """Every module with its factors, in order."""
        waiting: deque[tuple[Module, Future[_Pair | None]]] = deque()
        modules = iter(self.parts.modules)
        while True:
            while len(waiting) < self.workers and (module := next(modules, None)) is not None:
                waiting.append((module, pool.submit(self._make, module)))
            if not waiting:
                return
            module, future = waiting.popleft()
            yield module, self._wait(future)

    def _wait(self, future: "Future[T]") -> T:
        """A future's result; meanwhile, progress is shown."""
        while not wait((future,), TICK).done:
            self._show()
        return future.result()

    def _show(self) -> None:
        self.progress(Progress(self.done, self.total, 0, self.inputs.read))

    def _blocks(self, pair: Pair, columns: int) -> Iterator[tuple[int, Array]]:
        """The blocks of one pass over a Δ."""
        each = _size(pair.post, pair.base) / max(1, pair.post.elements)

        def watch(elements: int) -> None:
            if self.stop.is_set():
                raise CancelledError
            with self.lock:
                self.done += round(elements * each)

        return difference(pair, columns, self.inputs.fetch, self.where, watch)

    def _make(self, module: Module) -> _Pair | None:
        rows, columns = module.shape
        blocks = partial(self._blocks, module.pair, columns)
        seed = int.from_bytes(hashlib.sha256(module.tensor.encode()).digest()[:8], "little")
        factors = factorise(blocks, (rows, columns), self.aim, seed)
        if factors is None:
            return None
        up, up_bytes = self._stored(factors.up, module)
        down, down_bytes = self._stored(factors.down, module)
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
            up_bytes, down_bytes = down_bytes.T, up_bytes.T
        return _Pair(kept, down_bytes.tobytes(), up_bytes.tobytes())

    def _stored(self, values: Array, module: Module) -> tuple[Array, npt.NDArray[Any]]:
        """A factor as its stored numbers are worth, and as `dtypes` views them; rounded once."""
        from paramdelta.arithmetic import kernels

        flat = np.ascontiguousarray(values).reshape(-1)
        out = np.empty(flat.size, DTYPES[self.dtype].numpy)
        rest = np.zeros(min(flat.size, BLOCK))
        for start in range(0, flat.size, BLOCK):
            part = slice(start, min(start + BLOCK, flat.size))
            if not kernels.finish(flat[part], rest[: part.stop - start], out[part]):
                raise UsageError(
                    f"{self.dtype} cannot hold the factors of {module.tensor!r}",
                    where=self.where,
                    got=f"{np.abs(flat[part]).max():.3g}",
                    remedy="--dtype f32",
                )
        wide = float64(out, self.dtype).reshape(values.shape)
        return wide, out.reshape(values.shape)

    def _energies(self, pool: ThreadPoolExecutor) -> tuple[Left, ...]:
        """What is lost with the tensors that the adapter cannot hold."""

        def energy(tensor: OutputTensor) -> float:
            (pair,) = tensor.pairs
            return sum(float(np.vdot(block, block)) for _, block in self._blocks(pair, 1))

        found = []
        for kind, tensors in self.parts.left.items():
            futures = [(tensor.name, pool.submit(energy, tensor)) for tensor in tensors]
            energies = {name: self._wait(future) for name, future in futures}
            names = tuple(name for name, value in energies.items() if value)
            if names:
                found.append(Left(kind, names, sum(energies.values())))
        return tuple(found)


def _size(post: View, base: View) -> int:
    """Bytes of one pass over both."""
    return post.nbytes + base.nbytes


def _header(dtype: str, written: Sequence[tuple[Module, int]], size: int = 0) -> bytes:
    """The header of the weight file: modules and their ranks; padded to ``size``.

    Without a size: one that is as long as any with these modules can be.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for module, rank in written:
        out, into = module.facing
        for half, shape in (("A", [rank, into]), ("B", [out, rank])):
            begin, end = end, end + DTYPES[dtype].nbytes(math.prod(shape))
            offsets = [begin, end] if size else [_POSITION, _POSITION]
            ending = f"lora_embedding_{half}" if module.embedding else f"lora_{half}.weight"
            header[f"base_model.model.{module.name}.{ending}"] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": offsets,
            }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (max(size, -(-(8 + len(text)) // ALIGNED) * ALIGNED) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text
