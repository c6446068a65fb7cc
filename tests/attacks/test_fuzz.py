"""The quick form of the fuzzer: a few inputs of each kind, and all that once broke a rule."""

import random
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks.budget import Worker
from tests.attacks.fuzz import LIMIT, TARGETS, mutated, opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
EACH = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(scope="module")
def worker():
    """One process for all inputs."""
    with Worker() as worker:
        yield worker


@EACH
def test_seeds_are_good(worker, name):
    """The fuzzer starts from inputs that are right, but for those that need a choice."""
    costs = [opened(worker, TARGETS[name], seed) for seed in TARGETS[name].seeds]
    assert costs[0].outcome == "opened", costs[0].message
    assert all(cost.problem is None for cost in costs)


@EACH
def test_nothing_of_the_corpus_breaks_a_rule(worker, name):
    """Inputs that the fuzzer found once."""
    for path in TARGETS[name].corpus():
        assert opened(worker, TARGETS[name], path.read_bytes()).problem is None, path


@EACH
@given(st.integers(0, 2**32), st.data())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_changed_inputs_stay_within_the_budget(worker, name, seed, data):
    """Opened or refused in a second and 200 MB, with a message that can be printed."""
    target = TARGETS[name]
    start = data.draw(st.sampled_from(target.seeds))
    changed = mutated(start, target, random.Random(seed))
    assert len(changed) <= LIMIT
    assert opened(worker, target, changed).problem is None
