"""The tensors of a mix in memory, as arrays: nothing is written."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES
from paramdelta.encodings.encoding import Stream
from paramdelta.errors import UsageError
from paramdelta.jobs.mix import MixJob, Receipt, Task, Worker
from paramdelta.storage.readahead import Run
from paramdelta.storage.reader import Reader

if TYPE_CHECKING:
    import torch

FRAMEWORKS = ("numpy", "torch")
ALIGNMENT = 64  # bytes: what torch gives its own tensors, which fast kernels may ask for


class _Arrays:
    """A `Writer` into arrays, by stream."""

    def __init__(self) -> None:
        self.bytes: dict[int, npt.NDArray[np.uint8]] = {}

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """See `Writer.write`."""
        self.bytes[stream][offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        return len(data)


class Maker:
    """Makes tensors of a mix in memory, any of them at any time; nothing is written.

    ``workers``: threads, each with its own buffers: they and what the caller keeps are all the
    memory that it takes. Used by one thread at a time.
    """

    def __init__(self, job: MixJob, reader: Reader, workers: int) -> None:
        self.job = job
        self._reader = reader
        self._arrays = _Arrays()
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(workers, "paramdelta-tensors")

    def __enter__(self) -> "Maker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def expect(self, numbers: Iterable[int]) -> None:
        """Say which tensors will be asked for, in about this order, so that they are read ahead."""
        order = tuple(numbers)

        def runs() -> Iterator[Run]:
            for number in order:
                for task in self.job.tasks_of(number):
                    yield from self.job.reads(task)

        self._reader.follow(runs)

    def make(self, number: int) -> list[tuple[Stream, npt.NDArray[Any]]]:
        """Every stream of one tensor with its elements, viewed as `dtypes` says.

        The memory of the arrays is aligned as torch aligns its own.
        """
        streams = self.job.members[0][number].streams
        for at, stream in zip(self.job.stored[number], streams, strict=True):
            self._arrays.bytes[at] = _aligned(stream.nbytes)
        try:
            tasks = self.job.tasks_of(number)
            for task, receipt in zip(tasks, self._pool.map(self._run, tasks), strict=True):
                self.job.collect(task, receipt)
        finally:
            made = [self._arrays.bytes.pop(at) for at in self.job.stored[number]]
        return [
            (stream, data.view(DTYPES[stream.dtype].numpy).reshape(stream.shape))
            for stream, data in zip(streams, made, strict=True)
        ]

    def _run(self, task: Task) -> Receipt:
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker(self.job, self._reader, [self._arrays])
        receipt: Receipt = self._own.worker(task)
        return receipt


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    data = np.empty(size + ALIGNMENT, np.uint8)
    start = -data.ctypes.data % ALIGNMENT
    return data[start : start + size]


def converted(array: npt.NDArray[Any], dtype: str, framework: str) -> Any:
    """An array, viewed as `dtypes` says, as numpy or torch has its dtype. No number changes.

    numpy has no BF16: such tensors become float32, which holds every BF16 number. FP8 stays uint8.
    """
    if framework == "torch":
        return _torch(array, dtype)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.view(np.float16) if dtype == "F16" else array


def check_framework(framework: str) -> None:
    """Raise UsageError unless a framework is known and installed."""
    if framework not in FRAMEWORKS:
        raise UsageError(
            f"unknown framework {framework!r}",
            code="unknown-framework",
            expected="one of " + ", ".join(FRAMEWORKS),
        )
    if framework == "torch":
        try:
            import torch  # noqa: F401
        except ImportError:
            raise UsageError(
                "torch is not installed", code="missing-package", remedy="pip install torch"
            ) from None


_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def torch_dtype(dtype: str) -> "torch.dtype":
    """What torch calls a dtype of safetensors."""
    import torch

    found: torch.dtype = getattr(torch, _TORCH[dtype])
    return found


def _torch(array: npt.NDArray[Any], dtype: str) -> "torch.Tensor":
    import torch

    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return flat.view(torch_dtype(dtype)).reshape(array.shape)
