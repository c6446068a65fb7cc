"""The weights of a mix by their names, each mixed when it is read. Nothing is written."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paramdelta.api import MEMORY, budget_for
from paramdelta.encodings.encoding import Stream
from paramdelta.errors import MisfitError
from paramdelta.jobs.mix import MixJob
from paramdelta.jobs.outputs import measured
from paramdelta.jobs.tensors import Maker, converted
from paramdelta.live.device import DeviceMaker
from paramdelta.planning.plan import Plan
from paramdelta.planning.sweep import sweep_of_one
from paramdelta.storage.reader import Reader

if TYPE_CHECKING:
    import torch


class Weight:
    """One tensor of the weight files that a mix would write; ``weight[...]`` mixes it.

    It has the methods of a slice of safetensors, which is what loaders expect of a tensor that is
    not in memory yet.
    """

    def __init__(self, weights: "Weights", stream: Stream) -> None:
        self._weights = weights
        self._stream = stream

    def __getitem__(self, index: Any) -> "torch.Tensor":
        tensor: torch.Tensor = self._weights.mixed(self._stream.name)
        return tensor if index is Ellipsis else tensor[index]

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self._stream.shape)

    def get_dtype(self) -> str:
        """The dtype, as safetensors calls it."""
        return self._stream.dtype


class Weights(Mapping[str, Weight]):
    """The tensors of the weight files that a mix would write, in the order of the files.

    Every access to a weight reads its operands and mixes them. Streams that are made together,
    such as FP8 numbers and their scales, are made once and kept until each was read.

    ``memory`` and ``workers``: as in `paramdelta.mix`; what was mixed belongs to the caller.
    ``device``: where to mix, if not here; see `live.device`. Usable as a context manager, which
    closes the sources.
    """

    def __init__(
        self,
        plan: Plan,
        memory: int | str = MEMORY,
        workers: int | None = None,
        device: "torch.device | None" = None,
    ) -> None:
        made = sweep_of_one(plan)
        budget = budget_for(plan, memory, workers)
        job, _ = measured(MixJob.of(made, budget.buffer), lambda _: False, budget)
        self.plan = plan
        self._reader = Reader(ahead=True)
        self._maker = Maker(job, self._reader, budget.workers)
        self._numbers = {one.stream.name: one.tensor for one in made.stored}
        self._streams = {one.stream.name: one.stream for one in made.stored}
        self._elsewhere = None
        if device is not None:
            most = max(map(len, job.views), default=1)
            run = max(budget.buffer // 8, 1)
            self._elsewhere = DeviceMaker(self._reader, device, budget.workers, run, most)
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_: object) -> None:
        if self._elsewhere is not None:
            self._elsewhere.close()
        self._maker.__exit__()
        self._reader.close()

    def __getitem__(self, name: str) -> Weight:
        return Weight(self, self._streams[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def tensor_of(self, name: str) -> int:
        """The number of the plan's tensor that a name of the weight files belongs to."""
        return self._numbers[name]

    def expect(self, names: Iterable[str]) -> None:
        """Say which weights will be read, in about this order."""
        self._maker.expect(dict.fromkeys(self._numbers[name] for name in names))

    def mixed(self, name: str) -> "torch.Tensor":
        """One tensor, mixed now.

        Raises:
            StorageError: reading failed, or a source changed since it was planned with.
        """
        with self._lock:
            if name not in self._kept and self._elsewhere is not None:
                made = self._elsewhere.make(self.plan.tensors[self._numbers[name]])
                if made is not None:
                    return made
            if name not in self._kept:
                for stream, array in self._maker.make(self._numbers[name]):
                    self._kept[stream.name] = converted(array, stream.dtype, "torch")
            tensor: torch.Tensor = self._kept.pop(name)
        return tensor

    def not_finite(self) -> dict[tuple[str, str], int]:
        """How many infinite or NaN numbers were met, as in `paramdelta.api.Mix`."""
        return self._maker.job.not_finite(0)

    def check_sources(self) -> None:
        """Raise MisfitError if a source is no longer the one that was planned with."""
        with Reader() as reader:
            for file in self.plan.files:
                if file.blob not in reader.list(file.blob.url).values():
                    raise MisfitError(
                        "a source changed while it was read",
                        code="source-changed",
                        where=str(file.blob),
                        remedy="load again when nothing writes to the source",
                    )
