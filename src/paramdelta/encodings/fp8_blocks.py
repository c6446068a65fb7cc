"""FP8 with a scale for each block of 128 × 128: DeepSeek-V3's form.

Codes in F8_E4M3 are stored under the weight's name, and beside them ``<name>_scale_inv``, one
float32 for each block, to be multiplied in spite of its name. `arithmetic.kernels.quantize` says
how numbers become codes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paramdelta.dtypes import FP8_SIDE
from paramdelta.encodings.encoding import Encoding, Stream
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.view import View

if TYPE_CHECKING:
    import numpy.typing as npt

CODES = "F8_E4M3"
BAND = 1 << 20  # codes in a task, but whole blocks: a scale needs the 128 rows of its block
_FORM: Mapping[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [FP8_SIDE, FP8_SIDE],
}


@dataclass(frozen=True)
class Fp8Blocks(Encoding):
    """Matrices as FP8 codes with fresh scales."""

    dtype: str = CODES

    @property
    def work(self) -> str:
        """Sums are rounded to float64 before they are scaled and coded."""
        return "F64"

    def streams(self, name: str, shape: tuple[int, ...]) -> tuple[Stream, ...]:
        """Codes and scales."""
        return Stream(name, CODES, shape), Stream(f"{name}_scale_inv", "F32", _grid(shape))

    def task(self, shape: tuple[int, ...], most: int) -> int:
        """Rows of whole blocks, about `BAND` codes."""
        rows, columns = shape
        return min(rows, max(1, BAND // max(1, FP8_SIDE * columns)) * FP8_SIDE) * columns

    def held(self, shape: tuple[int, ...]) -> int:
        """The task's numbers as float64, codes and scales."""
        return 13 * self.task(shape, 0)

    def runs(self, shape: tuple[int, ...], start: int, stop: int) -> tuple[range, ...]:
        """The codes, and the scales of the blocks that the rows belong to."""
        columns, across = shape[1], _grid(shape)[1]
        first = start // columns // FP8_SIDE * across
        last = -(-stop // columns // FP8_SIDE) * across
        return range(start, stop), range(first, last)

    def encode(
        self, values: "npt.NDArray[Any]", shape: tuple[int, ...], into: Sequence[memoryview]
    ) -> int:
        """See `Encoding.encode`."""
        import numpy as np

        from paramdelta.arithmetic import kernels

        rows = values.reshape(-1, shape[1])
        codes = np.frombuffer(into[0], np.uint8).reshape(rows.shape)
        scales = np.frombuffer(into[1], np.float32).reshape(_grid(rows.shape))
        return int(kernels.quantize(rows, codes, scales))

    def stored(self, view: View) -> tuple[View, ...] | None:
        """Codes and scales that are stored in this very form."""
        if not isinstance(view, BlockScaled):
            return None
        grid = _grid(view.shape)
        blocks = view.block == (FP8_SIDE, FP8_SIDE) or grid == (1, 1)
        stored = view.weight.dtype, view.scale.dtype, view.scale.shape
        same = blocks and stored == (CODES, "F32", grid)
        return (view.weight, view.scale) if same else None


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks down and across."""
    return tuple(-(-n // FP8_SIDE) for n in shape)


def quantization_config(config: Mapping[str, Any], plain: Iterable[str]) -> dict[str, Any]:
    """What config.json must say about an output of this form.

    ``plain``: names of the matrices that are not FP8. If the new base has this form already, its
    own keys are kept, except the one that says that scales are powers of two. Otherwise the plain
    matrices are listed, so that no loader looks for their scales.
    """
    own = config.get("quantization_config")
    if isinstance(own, Mapping) and own.get("quant_method") == "fp8":
        return {**{key: own[key] for key in own if key != "scale_fmt"}, **_FORM}
    modules = sorted(n.removesuffix(".weight") for n in plain if n.endswith(".weight"))
    return {**_FORM, **({"modules_to_not_convert": modules} if modules else {})}
