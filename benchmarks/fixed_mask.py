"""mergekit with given masks: run by the Python of its own environment, with nothing of ours.

    python fixed_mask.py KEYS.json CONFIG.yml OUT

KEYS.json: ``{tensor: [[key, cutoff], …]}``, by the order of the models. In the place of torch's
generator an element stays if its hash, as docs/recipes.md of paramdelta defines it, is at least the
cutoff. All else is mergekit's.
"""

import json
import sys

import mergekit.merge_methods.generalized_task_arithmetic as method
import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def mask(key: int, cutoff: int, shape: torch.Size) -> torch.Tensor:
    """1 where an element stays."""
    number = np.arange(1, shape.numel() + 1, dtype=np.uint64)
    z = np.uint64(key) + number * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ z >> np.uint64(31)) >= np.uint64(cutoff)).reshape(shape)


def main() -> None:
    """Merge with masks by key."""
    with open(sys.argv[1]) as file:
        keys = json.load(file)
    with open(sys.argv[2]) as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    left: list[list[int]] = []
    whole = method.GeneralizedTaskArithmeticMerge.merge_group

    def merge_group(self, group, /, **parameters):
        left[:] = keys[group.metadata.name]
        return whole(self, group, **parameters)

    def sparsify(tensor, density, method, **_rest):
        key, cutoff = left.pop(0)
        return tensor * mask(key, cutoff, tensor.shape)

    method.GeneralizedTaskArithmeticMerge.merge_group = merge_group
    method.sparsify = sparsify
    run_merge(config, sys.argv[3], MergeOptions(copy_tokenizer=False))


if __name__ == "__main__":
    main()
