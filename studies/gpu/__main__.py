"""The command: `python -m studies.gpu`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from studies.gpu.corpus import DataMissingError, read
from studies.gpu.experiment import Experiment
from studies.gpu.sizes import SIZES


def main() -> int:
    """Read the arguments, run the study; 2 where the data is missing."""
    parser = argparse.ArgumentParser(prog="python -m studies.gpu", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--code", type=Path, help="source code (default: Python's own library)")
    parser.add_argument("--out", type=Path, default=Path("docs/study-gpu/results.json"))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="start no new base after this long")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the training steps")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: give --device cpu, and --size tiny.", file=sys.stderr)
        return 2
    try:
        corpus = read(arguments.data, arguments.code)
    except DataMissingError as error:
        print(error, file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    experiment = Experiment(
        corpus,
        SIZES[arguments.size].at_effort(arguments.effort),
        torch.device(arguments.device),
        arguments.out,
        compiled=not arguments.eager,
    )
    experiment.run(list(range(arguments.seeds)), arguments.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
