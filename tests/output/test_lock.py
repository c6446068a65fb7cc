"""Locks: whether an output is finished, whatever somebody made of its lock."""

import json

import pytest

from paramdelta import mix, plan
from paramdelta.output.lock import LOCK, is_finished

SHARD = 5_000_000_000


def test_an_output_is_finished_until_its_lock_says_something_else(lineage, tmp_path):
    """Digests may differ, for sources are not read for this; nothing else."""
    made = plan(lineage.recipe())
    out = mix(made, tmp_path / "out").folder
    assert is_finished(made, SHARD, out)
    assert not is_finished(made, SHARD, tmp_path / "absent")
    assert not is_finished(plan(lineage.recipe(0.5)), SHARD, out)


@pytest.mark.parametrize("key", ["recipe", "sources", "plan_sha256", "shard_size"])
@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {"files": 3}, [{"files": [3]}]])
def test_a_malformed_lock_is_no_finished_output(lineage, tmp_path, key, value):
    """Anyone can edit a lock: no value of it may raise."""
    made = plan(lineage.recipe())
    out = mix(made, tmp_path / "out").folder
    lock = json.loads((out / LOCK).read_text())
    (out / LOCK).write_text(json.dumps({**lock, key: value}))
    assert not is_finished(made, SHARD, out)
