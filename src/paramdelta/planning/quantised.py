"""`--dtype fp8-block`: what was FP8 in the new base is FP8 in the output, with fresh scales.

The form is DeepSeek-V3's: codes in F8_E4M3 under the weight's name, and beside them
``<name>_scale_inv``, one float32 for each block of 128 × 128, to be multiplied in spite of its
name. How numbers become codes says `engine.kernels.quantise`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from paramdelta.dtypes import FP8_SIDE
from paramdelta.errors import CheckpointError
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.view import Zeros
from paramdelta.planning.plan import OutputTensor

CODES = "F8_E4M3"
_FORM: Mapping[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [FP8_SIDE, FP8_SIDE],
}


def with_scales(tensors: Iterable[OutputTensor], where: str) -> list[OutputTensor]:
    """Output tensors, and beside each of `CODES` the tensor of its scales.

    Where a tensor is only copied and stored in this very form, its codes and scales are copied too.

    Raises:
        CheckpointError: the new base calls another tensor as the scales are called.
    """
    result = [part for tensor in tensors for part in _with_scales(tensor)]
    names = {tensor.name for tensor in result if not tensor.scales_of}
    for tensor in result:
        if tensor.scales_of and tensor.name in names:
            raise CheckpointError(
                f"another tensor has the name of the scales of {tensor.scales_of!r}",
                where=where,
                got=tensor.name,
                remedy="leave --dtype out: the output is BF16",
            )
    return result


def _with_scales(tensor: OutputTensor) -> Iterator[OutputTensor]:
    if tensor.dtype != CODES:
        yield tensor
        return
    grid = tuple(-(-n // FP8_SIDE) for n in tensor.shape)
    name, why = f"{tensor.name}_scale_inv", f"scales of {tensor.name}"
    new = tensor.new
    if not tensor.pairs and isinstance(new, BlockScaled) and is_of_form(new):
        yield replace(tensor, new=new.weight)
        yield OutputTensor(name, "F32", grid, new.scale, why=tensor.why, scales_of=tensor.name)
        return
    yield tensor
    yield OutputTensor(name, "F32", grid, Zeros(name, "F32", grid), why=why, scales_of=tensor.name)


def is_of_form(view: BlockScaled) -> bool:
    """Whether codes and scales are stored just as they would be written."""
    grid = tuple(-(-n // FP8_SIDE) for n in view.shape)
    blocks = view.block == (FP8_SIDE, FP8_SIDE) or grid == (1, 1)
    stored = view.weight.dtype, view.scale.dtype, view.scale.shape
    return blocks and stored == (CODES, "F32", grid)


def quantization_config(
    config: Mapping[str, Any], tensors: Iterable[OutputTensor]
) -> dict[str, Any]:
    """What config.json must say of the output's quantisation.

    The new base's own keys are kept where it is of this form already, but for that which says that
    scales are powers of two. Elsewhere the matrices that are not FP8 are named, so that no loader
    looks for their scales.
    """
    own = config.get("quantization_config")
    if isinstance(own, Mapping) and own.get("quant_method") == "fp8":
        return {**{key: own[key] for key in own if key != "scale_fmt"}, **_FORM}
    ending = ".weight"
    plain = sorted(
        t.name.removesuffix(ending)
        for t in tensors
        if t.dtype != CODES and t.name.endswith(ending) and len(t.shape) == 2
    )
    return {**_FORM, **({"modules_to_not_convert": plain} if plain else {})}
