"""The least that any mixer must do: read every input byte and write the output's bytes.

    python -m benchmarks.floor POST BASE NEW OUT [--fsync]

One thread, one file after the other, large buffers, no arithmetic: the output is a copy of the
new base. Prints what the disk did as one line of JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path

BUFFER = 16 << 20


def read(path: Path, buffer: memoryview) -> int:
    """Read a file from end to end and forget it; answer its size."""
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def copy(source: Path, target: Path, buffer: memoryview, fsync: bool) -> int:
    """Copy a file's bytes through the buffer; answer its size."""
    total = 0
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(buffer[:count])
            total += count
        if fsync:
            os.fsync(writer.fileno())
    return total


def main() -> None:
    """Read post and base, copy the new base, say how fast each went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("post", "base", "new", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fsync", action="store_true", help="wait until the output is on disk")
    options = parser.parse_args()
    buffer = memoryview(bytearray(BUFFER))
    begin = time.perf_counter()
    read_bytes = sum(
        read(path, buffer) for folder in (options.post, options.base) for path in _shards(folder)
    )
    middle = time.perf_counter()
    options.out.mkdir(parents=True)
    copied = sum(
        copy(path, options.out / path.name, buffer, options.fsync) for path in _shards(options.new)
    )
    end = time.perf_counter()
    print(
        json.dumps(
            {
                "read_bytes_per_s": read_bytes / (middle - begin),
                "copy_bytes_per_s": copied / (end - middle),
            }
        )
    )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
