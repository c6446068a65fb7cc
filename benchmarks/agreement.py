"""How near an output is to the correctly rounded sum, by a path that no contender shares.

    python -m benchmarks.agreement POST BASE NEW OUT

Takes a run of values from every tensor of OUT, in bfloat16, and prints one line of JSON: how many
were compared, the share that is exactly the rounded float64 sum, and the largest error as a share
of the largest of the three operands (one rounding to bfloat16 is at most 2⁻⁸, 0.0039).
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

SAMPLE = 1 << 16  # values of one tensor


class Values:
    """The bfloat16 tensors of a folder of safetensors files, a run of values at a time."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                self._places[name] = (path, 8 + size + start, (end - start) // 2)

    def names(self) -> set[str]:
        """Which tensors there are."""
        return set(self._places)

    def bits(self, name: str) -> np.ndarray:
        """The middle of the tensor, `SAMPLE` values at most, as uint16."""
        path, offset, count = self._places[name]
        start = max(0, count - SAMPLE) // 2
        return np.fromfile(path, np.uint16, min(count, SAMPLE), offset=offset + 2 * start)


def widen(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 to float64, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def round_once(values: np.ndarray) -> np.ndarray:
    """Finite float64 to the bits of bfloat16, to nearest even, without a stop at float32."""
    bits = values.view(np.uint64)
    narrow = (np.abs(values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    low = narrow - (widen(narrow) > np.abs(values))  # the bfloat16 at or below
    low = low.astype(np.uint16)
    step = widen(low + np.uint16(1)) - widen(low)
    over = (np.abs(values) - widen(low)) / step
    up = (over > 0.5) | ((over == 0.5) & (low & 1 == 1))
    return (low + up).astype(np.uint16) | ((bits >> 63).astype(np.uint16) << 15)


def compare(post: Path, base: Path, new: Path, out: Path) -> dict[str, float]:
    """The report of this module's docstring; every tensor of the new base must be in `out`."""
    sources = [Values(folder) for folder in (post, base, new)]
    result = Values(out)
    if missing := sources[2].names() - result.names():
        raise ValueError(f"{out} lacks {sorted(missing)[:3]} and {len(missing)} in all")
    compared, equal, worst = 0, 0, 0.0
    for name in sorted(result.names()):
        operands = [widen(source.bits(name)) for source in sources]
        exact = operands[0] - operands[1] + operands[2]
        got = result.bits(name)
        compared += got.size
        equal += int((got == round_once(exact)).sum())
        largest = np.maximum.reduce([np.abs(operand) for operand in operands])
        error = np.abs(widen(got) - exact) / np.maximum(largest, np.finfo(np.float32).tiny)
        worst = max(worst, float(error.max()))
    return {"compared": compared, "exact_share": equal / compared, "largest_error": worst}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("post", "base", "new", "out"):
        parser.add_argument(name, type=Path)
    print(json.dumps(compare(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
