"""How the output's tensors are stored, and what the checkpoint says about their quantization."""

from collections.abc import Iterable
from typing import Any

from paramdelta.dtypes import FP8_BLOCK, FP8_SIDE
from paramdelta.encodings.encoding import Encoding
from paramdelta.encodings.fp8_blocks import Fp8Blocks, quantization_config
from paramdelta.encodings.plain import Plain
from paramdelta.errors import CheckpointError, UsageError
from paramdelta.formats.view import View
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.sources import Source


def has_quantized(new: Source) -> bool:
    """Whether weights of the new base are codes with scales."""
    return any(view.is_quantized for view in new.views.values())


def check_dtype(dtype: str | None, new: Source) -> None:
    """Raise UsageError if the output is to be FP8 and the new base is not."""
    if dtype == FP8_BLOCK and not has_quantized(new):
        raise UsageError(
            f"dtype {FP8_BLOCK}, but the new base has no FP8 weights",
            code="dtype-without-fp8",
            where=new.checkpoint.location.address,
            expected="a new base that says which weights are FP8, by storing them so",
            remedy="leave `dtype` out, and quantize the output with a tool made for that "
            "(llm-compressor, say)",
        )


def encoding_of(new: View, dtype: str | None) -> Encoding:
    """How a mixed tensor is stored. ``dtype``: the recipe's; None: as the new base."""
    if dtype == FP8_BLOCK:
        return Fp8Blocks() if new.is_quantized else Plain(new.dtype)
    return Plain(dtype or ("BF16" if new.is_quantized else new.dtype))


def output_config(
    dtype: str | None, new: Source, tensors: Iterable[OutputTensor]
) -> dict[str, Any] | None:
    """The quantization_config of the output's config.json; None if it is not quantized."""
    if dtype != FP8_BLOCK:
        return None
    plain = (t.name for t in tensors if len(t.streams) == 1 and len(t.shape) == 2)
    return quantization_config(new.checkpoint.config, plain)


def report_requantized(tensors: Iterable[OutputTensor], new: Source, findings: Findings) -> None:
    """Note the tensors whose sums get fresh scales.

    Raises:
        CheckpointError: another tensor has the name of the scales.
    """
    tensors = list(tensors)
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        for stream in tensor.streams[1:]:
            if stream.name in names:
                raise CheckpointError(
                    f"another tensor has the name of the scales of {tensor.name!r}",
                    code="scales-name-taken",
                    where=str(new),
                    got=stream.name,
                    remedy="leave `dtype` out: the output is BF16",
                )
        if len(tensor.streams) > 1 and tensor.stored is None:
            findings.add(
                Severity.NOTE,
                "requantized",
                "the sum is rounded to FP8, with a fresh scale for each block of "
                f"{FP8_SIDE} × {FP8_SIDE}; without `dtype` it is BF16",
                new,
                tensor=tensor.name,
            )
