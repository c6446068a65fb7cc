"""The dtype table."""

import pytest

from paramdelta import UsageError
from paramdelta.dtypes import DTYPES, parse_dtype


def test_table_agrees_with_numpy():
    """The views have the size that the table says."""
    for dtype in DTYPES.values():
        if dtype.bits >= 8:
            assert dtype.numpy.itemsize == dtype.size


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("auto", None),
        ("bf16", "BF16"),
        ("torch.float16", "F16"),
        ("F32", "F32"),
        ("fp64", "F64"),
        ("FP8-block", "fp8-block"),
    ],
)
def test_output_dtypes_are_read(text, name):
    """Names of safetensors, torch and everyday use."""
    assert parse_dtype(text) == name


@pytest.mark.parametrize("text", ["int8", "F8_E4M3", "", "bfloat"])
def test_other_dtypes_are_refused(text):
    """What cannot be written is a usage error that lists what can."""
    with pytest.raises(UsageError, match="unknown output dtype") as error:
        parse_dtype(text)
    assert "bfloat16" in str(error.value)
