"""Make files of a true Llama's names, shapes and sizes whose data are holes: no disk, all zeros.

python -m benchmarks.make_sparse DIR 70B
"""

import argparse
from pathlib import Path

from benchmarks.llama import SIZES, Llama
from benchmarks.shards import lay_down, layout

SHARD_SIZE = 5_000_000_000  # as the models are published


def make(folder: Path, llama: Llama) -> None:
    """Write `folder`/post, /base and /new, whatever was there before."""
    shards = layout(llama.tensors(), SHARD_SIZE)
    for kind in ("post", "base", "new"):
        lay_down(folder / kind, shards, llama.config())


def main() -> None:
    """Parse the options and make the three checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", choices=SIZES)
    options = parser.parse_args()
    make(options.folder, SIZES[options.size])


if __name__ == "__main__":
    main()
