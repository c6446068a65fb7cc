"""The tensors of a mix one after the other, as arrays: nothing is written."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paramdelta.dtypes import DTYPES
from paramdelta.encodings.encoding import Stream
from paramdelta.errors import UsageError
from paramdelta.jobs.mix import MixJob, Task, Worker
from paramdelta.storage.reader import Reader

if TYPE_CHECKING:
    import torch

FRAMEWORKS = ("numpy", "torch")


class _Arrays:
    """A `Writer` into arrays of one tensor's streams."""

    def __init__(self) -> None:
        self.bytes: dict[int, npt.NDArray[np.uint8]] = {}

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """See `Writer.write`."""
        self.bytes[stream][offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        return len(data)


def iterate(
    job: MixJob, order: Sequence[int], reader: Reader, workers: int
) -> Iterator[tuple[Stream, npt.NDArray[Any]]]:
    """Every stream of the first output with its elements, viewed as `dtypes` says.

    ``order``: numbers of tensors. One tensor is in memory at a time, besides the workers' buffers
    and what the caller keeps.
    """
    arrays, own = _Arrays(), threading.local()

    def run(task: Task) -> None:
        if not hasattr(own, "worker"):
            own.worker = Worker(job, reader, [arrays])
        own.worker(task)

    with ThreadPoolExecutor(workers, "paramdelta-tensors") as pool:
        for number in order:
            streams = job.members[0][number].streams
            arrays.bytes = {
                at: np.empty(stream.nbytes, np.uint8)
                for at, stream in zip(job.stored[number], streams, strict=True)
            }
            for _ in pool.map(run, job.tasks_of(number)):
                pass
            for at, stream in zip(job.stored[number], streams, strict=True):
                kind = DTYPES[stream.dtype].numpy
                yield stream, arrays.bytes.pop(at).view(kind).reshape(stream.shape)


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


def _torch(array: npt.NDArray[Any], dtype: str) -> "torch.Tensor":
    import torch

    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, _TORCH[dtype])).reshape(array.shape)
