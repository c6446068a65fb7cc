"""Mixes tensors on a device: operands are read, copied there and summed there.

What a device cannot sum exactly as the kernels do is left to them: other schemes than the sum,
filters, encodings, results that are not finite. Run and tested on CPUs only.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from paramdelta.arithmetic.device import NARROW, mixed
from paramdelta.formats.view import View, fetch_from
from paramdelta.jobs.tensors import torch_dtype
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.sum import SUM
from paramdelta.storage.reader import Reader

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22  # elements that are on their way to the device at a time


class DeviceMaker:
    """Makes whole tensors on a device. Used by one thread at a time.

    Operands are read into two sets of buffers in turns, pinned if the device is a GPU: one set is
    read while the other is copied and summed. ``run``: elements that one of the ``workers`` reads
    at a time. ``most``: operands of a tensor, at most.
    """

    def __init__(
        self, reader: Reader, device: "torch.device", workers: int, run: int, most: int
    ) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._fetch = fetch_from(reader)
        self._run = run
        self._pool = ThreadPoolExecutor(workers, "paramdelta-device")
        is_gpu = device.type == "cuda"
        self._sets = [
            [torch.empty(8 * CHUNK, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(most)]
            for _ in range(2)
        ]
        self._free: list[Any] = [torch.cuda.Event() if is_gpu else None for _ in self._sets]

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)

    def make(self, tensor: OutputTensor) -> "torch.Tensor | None":
        """A tensor of the mix on the device; None if it is not for this maker."""
        torch = self._torch
        if not _fits(tensor):
            return None
        kind = torch_dtype(tensor.dtype)
        result = torch.empty(tensor.elements, dtype=kind, device=self._device)
        for number, start in enumerate(range(0, tensor.elements, CHUNK)):
            stop = min(start + CHUNK, tensor.elements)
            operands = self._copied(tensor.views, start, stop, number % 2)
            new, *others = (operands[place] for place in tensor.places)
            scales = [pair.scale for pair in tensor.pairs]
            deltas = list(zip(others[::2], others[1::2], scales, strict=True))
            result[start:stop] = mixed(new, deltas, kind)
        if not bool(torch.isfinite(result).all()):
            return None
        return result.reshape(tensor.shape)

    def _copied(
        self, views: Sequence[View], start: int, stop: int, turn: int
    ) -> "list[torch.Tensor]":
        """A run of each operand, on its way to the device."""
        event = self._free[turn]
        if event is not None:
            event.synchronize()
        work, found = [], []
        for view, buffer in zip(views, self._sets[turn], strict=False):
            size = view.kind.size
            into = memoryview(buffer.numpy())
            for first in range(start, stop, self._run):
                last = min(first + self._run, stop)
                part = into[(first - start) * size : (last - start) * size]
                work.append(self._pool.submit(view.read, first, last, part, self._fetch))
            found.append(buffer[: (stop - start) * size].view(torch_dtype(view.dtype)))
        for each in work:
            each.result()
        copies = [tensor.to(self._device, non_blocking=True) for tensor in found]
        if event is not None:
            event.record()
        return copies


def _fits(tensor: OutputTensor) -> bool:
    return (
        bool(tensor.pairs)
        and tensor.scheme == SUM
        and not any(pair.filters for pair in tensor.pairs)
        and tensor.encoding.work == tensor.dtype
        and tensor.dtype in NARROW
        and all(view.kind.mixable for view in tensor.views)
    )
