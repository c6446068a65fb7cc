"""Inputs that ask for much work or memory stay within the budget, each in a process of its own."""

import sys

import pytest

from tests.attacks.amplified import AMPLIFIED, LIMIT
from tests.attacks.budget import MEMORY, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

# One of each kind, for every run; the others take half a minute together.
QUICK = {
    "overlapping_tensors", "long_shape", "many_lists", "ordered_dicts", "sizes", "tensors",
    "shared_branches", "legacy_key_recalled", "flood of dicts", "flood of stored strings",
    "index_of_lists", "patterns_of_loops", "gguf: flood of tokens", "gguf: flood of tensors",
    "journal backward", "ends of lines in code",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in AMPLIFIED],
)
def test_it_stays_within_the_budget(tmp_path, name):
    """One second and 200 MB for an input below 10 MB, and no exception that is not meant."""
    action, make = AMPLIFIED[name]
    path = make(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < LIMIT + 20_000
    with Worker() as worker:
        cost = worker.open(action, path)
    assert cost.problem is None
    if name.startswith("many_") and "tensors" in name:
        assert cost.outcome == "opened"


def test_the_budget_is_measured(tmp_path):
    """A worker sees the time and the memory that an input takes, and a process that ends."""
    path = tmp_path / "x.json"
    path.write_text("[" + "1.5," * 1_500_000 + "1]")
    with Worker() as worker:
        cost = worker.open("json", path)
        assert cost.outcome == "opened"
        assert 0.01 < cost.seconds < 5
        assert 30_000_000 < cost.memory < MEMORY
        path.write_text("{")
        assert worker.open("json", path).outcome == "refused"
        assert worker.open("yaml", tmp_path / "absent").outcome == "FileNotFoundError"
        assert worker.open("no such action", path).outcome == "KeyError"
