"""Each scheme beside mergekit's own output, on the same inputs."""

import json

import pytest

from benchmarks import mergekit, schemes

FAR = 16  # units of float32's rounding of the largest operand: what a few roundings can add up to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoints of the comparison."""
    path = tmp_path_factory.mktemp("schemes")
    schemes.make(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task_arithmetic", "linear", "ties", "dare_linear"])
def test_mergekit_gives_the_same(folder, name):
    """The imported recipe's output is that of mergekit 0.1.5, to rounding; DARE with one mask."""
    if not mergekit.program(schemes.ENVIRONMENT).exists():
        pytest.skip("mergekit is not installed: python -m benchmarks.schemes does that")
    found = schemes.compare(folder, name)
    assert found["same_tensors"]
    assert found["largest_difference"] <= FAR


def test_the_committed_comparison_is_of_all_schemes():
    """Every configuration is in the file, with no number that is further away than rounding."""
    results = json.loads(schemes.RESULTS.read_text(encoding="utf-8"))
    assert results["mergekit"] == mergekit.VERSION
    assert results["schemes"].keys() == schemes.SCHEMES.keys()
    for found in results["schemes"].values():
        assert found["same_tensors"]
        assert found["beyond_16"] == 0
        assert found["largest_difference"] <= FAR
