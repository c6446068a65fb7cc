"""The number formats of tensors in GGUF files: ggml's types.

Source: ``enum ggml_type`` of ggml.h and the block structures of ggml-common.h.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Type:
    """One ggml type.

    ``elements``, ``size``: numbers in a block, and its bytes. ``dtype``: safetensors name of
    numbers that are stored plainly; "" for quantized ones. ``levels``: into how many steps a
    quantized type divides the range of a group of numbers. ``group``: numbers that share a scale.
    ``signed``: the levels lie around zero, and not between least and greatest.
    """

    name: str
    elements: int
    size: int
    dtype: str = ""
    levels: int = 0
    group: int = 32
    signed: bool = False

    @property
    def bits(self) -> float:
        """Bits per number."""
        return 8 * self.size / self.elements


TYPES = {
    0: Type("F32", 1, 4, "F32"),
    1: Type("F16", 1, 2, "F16"),
    2: Type("Q4_0", 32, 18, levels=16, signed=True),
    3: Type("Q4_1", 32, 20, levels=15),
    6: Type("Q5_0", 32, 22, levels=32, signed=True),
    7: Type("Q5_1", 32, 24, levels=31),
    8: Type("Q8_0", 32, 34, levels=254, signed=True),
    10: Type("Q2_K", 256, 84, levels=3, group=16),
    11: Type("Q3_K", 256, 110, levels=8, group=16, signed=True),
    12: Type("Q4_K", 256, 144, levels=15),
    13: Type("Q5_K", 256, 176, levels=31),
    14: Type("Q6_K", 256, 210, levels=64, group=16, signed=True),
    24: Type("I8", 1, 1, "I8"),
    25: Type("I16", 1, 2, "I16"),
    26: Type("I32", 1, 4, "I32"),
    27: Type("I64", 1, 8, "I64"),
    28: Type("F64", 1, 8, "F64"),
    30: Type("BF16", 1, 2, "BF16"),
}
"""Those that can be read, by the number that stands in a file."""

UNREADABLE = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Those that are known by name only: their numbers are entries of tables, or activations."""

READABLE = ", ".join(kind.name for kind in TYPES.values() if kind.dtype[:1] != "I")
