"""FP8 weights with their scales: a number is an 8-bit float times the scale of its block.

An FP8 tensor is a weight only together with its scale tensor. Without one it cannot be mixed.

Sources: DeepSeek-V3's release notes on its weights (``weight_scale_inv``, one float32 for each
block of 128 × 128, a factor in spite of its name); compressed-tensors' ``float-quantized``
format (``weight_scale``, one for each tensor or each row); OCP 8-bit Floating Point Specification
(OFP8), revision 1.0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.view import Fetch, Tensor, View
from paramdelta.storage.readahead import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from paramdelta.arithmetic.fp8 import Codes

_SCALES = ("_scale_inv", "_scale")  # suffixes of the name of the weight
_SCALE_DTYPES = ("F32", "BF16", "F16", "F64", "F8_E8M0")
_MANTISSA = {"F8_E4M3": 3, "F8_E5M2": 2}  # bits
# Scales of activations, which lie beside the weight.
_RUNTIME = (
    *("input_scale", "output_scale", "activation_scale", "input_global_scale"),
    *("k_scale", "v_scale", "q_scale", "kv_scale", "input_zero_point"),
)


@dataclass(frozen=True)
class BlockScaled(View):
    """``weight[i, j] · scale[i // rows, j // columns]``, exact in float64.

    ``weight``: F8_E4M3 or F8_E5M2, shape (R, C). ``scale``: one number per block, in the order of
    the blocks. ``block``: rows and columns of a block; (1, C) is a scale per row, (R, C) a single
    one.
    """

    weight: Tensor
    scale: Tensor
    block: tuple[int, int]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The weight and its scales."""
        return self.weight, self.scale

    @property
    def identity(self) -> list[Any]:
        """Both, and the size of a block."""
        return ["scaled", self.weight.identity, self.scale.identity, list(self.block)]

    def scratch(self, size: int) -> int:
        """The codes, an eighth of the result, and the scales, at most one per number."""
        return size // 8 + 2 * size

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of the weight, and with the first all scales."""
        yield from self.weight.runs(start, stop)
        if start == 0:
            yield from self.scale.runs(0, self.scale.elements)

    def read(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> None:
        """Read a run of FP8 numbers and the scales of its blocks; multiply them."""
        import numpy as np

        from paramdelta.arithmetic import fp8  # compiled code, not needed for planning

        codes = memoryview(bytearray(stop - start))
        fp8.decode(self.read_packed(start, stop, codes, fetch), np.frombuffer(into, np.float64))

    @property
    def is_quantized(self) -> bool:
        """Always."""
        return True

    @property
    def packed(self) -> str:
        """E4M3 in blocks that are wide enough for `arithmetic.kernels.mix_codes`."""
        return "e4m3" if self.weight.dtype == "F8_E4M3" and self.block[1] >= 32 else ""

    def read_packed(self, start: int, stop: int, into: memoryview, fetch: Fetch) -> "Codes":
        """A run of elements as they are stored, in ``into``, and the scales of its blocks."""
        import numpy as np

        from paramdelta.arithmetic.fp8 import Codes

        self.weight.read(start, stop, into, fetch)
        columns, (height, width) = self.shape[1], self.block
        across = -(-columns // width)
        row, column = divmod(start, columns)
        top, bottom = row // height, -(-stop // columns // height)
        scales = self._scales(top * across, bottom * across, fetch).reshape(-1, across)
        place = row - top * height, column, columns
        mantissa = _MANTISSA[self.weight.dtype]
        return Codes(np.frombuffer(into, np.uint8), scales, *place, height, width, mantissa)

    def _scales(self, first: int, last: int, fetch: Fetch) -> "npt.NDArray[np.float64]":
        import numpy as np

        if self.scale.dtype == "F8_E8M0":  # an exponent alone
            exponents = self.scale.array(first, last, fetch).astype(np.int32)
            return np.where(exponents == 255, np.nan, np.ldexp(1.0, exponents - 127))
        return self.scale.float64(first, last, fetch)


def scaled_weights(
    tensors: Mapping[str, View], config: Mapping[str, Any], where: str
) -> tuple[dict[str, View], tuple[str, ...]]:
    """A checkpoint's tensors, with FP8 weights and their scales combined.

    Returns the views by name, without the scale tensors that went into them, and the names of
    tensors that are left out because they matter only to the quantized model at run time (scales
    of activations).

    Raises:
        CheckpointError: a scale whose shape does not fit its weight.
    """
    views: dict[str, View] = dict(tensors)
    left: list[str] = []
    for name, weight in tensors.items():
        if not isinstance(weight, Tensor) or weight.dtype not in _MANTISSA:
            continue
        if len(weight.shape) != 2:
            continue
        for ending in _SCALES:
            scale = tensors.get(name + ending)
            if isinstance(scale, Tensor) and scale.dtype in _SCALE_DTYPES:
                block = _block(weight, scale, config, where)
                views[name] = BlockScaled(name, "F64", weight.shape, weight, scale, block)
                del views[scale.name]
                break
    if any(isinstance(view, BlockScaled) for view in views.values()):
        for name in tensors:
            if name.rpartition(".")[2] in _RUNTIME:
                left.append(name)
                views.pop(name, None)
    return views, tuple(left)


def _block(weight: Tensor, scale: Tensor, config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Rows and columns of the block of one scale, from the shapes and config.json."""
    rows, columns = weight.shape
    if scale.elements == 1:
        return max(rows, 1), max(columns, 1)
    if scale.shape in ((rows,), (rows, 1)):
        return 1, max(columns, 1)
    blocks = _block_size(config)
    if blocks is not None and scale.shape == (-(-rows // blocks[0]), -(-columns // blocks[1])):
        return blocks
    said = "one per tensor or row"
    if blocks:
        said = f"blocks of {blocks[0]} × {blocks[1]} (config.json)"
    raise CheckpointError(
        f"the scales of tensor {weight.name!r} do not fit it",
        code="scales-misfit",
        where=where,
        expected=f"{said} for a weight of shape {list(weight.shape)}",
        got=f"{scale.name} of shape {list(scale.shape)}",
        remedy="check that config.json belongs to these weights",
    )


def _block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of the blocks by config.json; 128 × 128, DeepSeek's, if it does not say."""
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, Mapping) else {}
    size = quantization.get("weight_block_size")
    if size is None:
        size = next(_block_structures(quantization), [128, 128])
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    return None


def _block_structures(quantization: Mapping[str, Any]) -> Any:
    """compressed-tensors' ``config_groups.*.weights.block_structure``."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("block_structure"):
            yield weights["block_structure"]
