"""Make post, base and new base: Llama-shaped bf16 checkpoints with trained-like values.

    python -m benchmarks.make_checkpoints DIR [--layers 16 --hidden 2048 --vocab 128256 ...]

The default is 1.398 B parameters: hidden 2048, 16 layers, vocabulary 128256, intermediate 7168,
output head of its own. base ~ N(0, 0.02), post = base + N(0, 0.0005) and new base = base +
N(0, 0.001), norms around 1. The same seed gives the same bytes whatever the number of threads,
and no more than a few chunks are in memory at a time.
"""

import argparse
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.llama import BENCH, Llama
from benchmarks.shards import ITEM, lay_down, layout

NOISE = {"base": 0.0, "post": 0.0005, "new": 0.001}
WIDTH = 0.02
CHUNK = 1 << 18  # values made at once
SHARD_SIZE = 960_000_000


def make(folder: Path, llama: Llama = BENCH, seed: int = 0, shard_size: int = SHARD_SIZE) -> None:
    """Write `folder`/base, /post and /new, unless they are there already, just as asked for."""
    stamp = folder / "made.json"
    wanted = json.dumps({**asdict(llama), "seed": seed, "shard_size": shard_size})
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    tensors = llama.tensors()
    shards = layout(tensors, shard_size)
    for kind in NOISE:
        lay_down(folder / kind, shards, llama.config())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in shards:
            files = {kind: os.open(folder / kind / shard.name, os.O_WRONLY) for kind in NOISE}
            chunks = [
                (files, tensors[name], offset, start, (seed, list(tensors).index(name), start))
                for name, offset in shard.offsets.items()
                for start in range(0, math.prod(tensors[name]), CHUNK)
            ]
            list(pool.map(lambda chunk: _fill(*chunk), chunks))
            for file in files.values():
                os.close(file)
    stamp.write_text(wanted)


def _fill(
    files: dict[str, int], shape: tuple[int, ...], offset: int, start: int, seed: tuple[int, ...]
) -> None:
    """Draw `CHUNK` values of one tensor from `start` on and write them into all three files."""
    random = np.random.Generator(np.random.SFC64(seed))
    count = min(CHUNK, math.prod(shape) - start)
    base = random.standard_normal(count, dtype=np.float32) * np.float32(WIDTH)
    if len(shape) == 1:
        base += 1  # a norm's scale
    for kind, noise in NOISE.items():
        values = base
        if noise:
            values = base + random.standard_normal(count, dtype=np.float32) * np.float32(noise)
        os.pwrite(files[kind], _bfloat16(values).data, offset + ITEM * start)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 to the bits of bfloat16, rounded to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """One option for every size that a Llama has, with the benchmark's as the default."""
    for name, value in asdict(BENCH).items():
        if name == "tied":
            parser.add_argument("--tied", action="store_true", help="no output head of its own")
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--seed", type=int, default=0)


def chosen_shape(options: argparse.Namespace) -> Llama:
    """The Llama that the options of `add_shape_options` describe."""
    return replace(BENCH, **{name: getattr(options, name) for name in asdict(BENCH)})


def main() -> None:
    """Parse the options and make the three checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="bytes")
    add_shape_options(parser)
    options = parser.parse_args()
    llama = chosen_shape(options)
    make(options.folder, llama, options.seed, options.shard_size)
    print(f"{llama.parameters() / 1e9:.3f} B parameters each: {', '.join(NOISE)}")


if __name__ == "__main__":
    main()
