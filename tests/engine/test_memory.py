"""The budget: as many workers and as large buffers as a limit allows, never more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import UsageError
from paramdelta.engine.memory import MAX_BUFFER, MIN_BUFFER, OVERHEAD, Need, budget
from paramdelta.units import parse_size


def needs(buffers, fixed, shared):
    """A job that holds so many buffers, and bytes, on each worker."""
    return lambda buffer: Need(buffers * buffer + fixed, shared)


@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.floats(0.5, 1.2),
)
def test_the_limit_is_kept(workers, buffers, fixed, shared, share):
    """Whatever a job needs: what is projected stays under what was given, or is refused."""
    need = needs(buffers, fixed, shared)
    memory = int(share * (workers * need(MAX_BUFFER).each + shared + OVERHEAD))
    least = buffers * MIN_BUFFER + fixed + shared + OVERHEAD
    try:
        chosen = budget(need, memory, workers)
    except UsageError:
        assert least > memory
        return
    assert least <= memory
    assert chosen.projected <= memory
    assert chosen.projected == chosen.workers * need(chosen.buffer).each + shared + OVERHEAD
    assert MIN_BUFFER <= chosen.buffer <= MAX_BUFFER
    assert 1 <= chosen.workers <= workers


@given(st.integers(2, 16), st.integers(1, 12), st.integers(60_000_000, 10**9))
def test_no_memory_is_left_unused(workers, buffers, memory):
    """One worker more would not fit, nor buffers larger by a page."""
    need = needs(buffers, 0, 0)
    chosen = budget(need, memory, workers)
    if chosen.workers < workers:
        assert (chosen.workers + 1) * need(MIN_BUFFER).each + OVERHEAD > memory
    if chosen.buffer < MAX_BUFFER:
        assert chosen.workers * need(chosen.buffer + 8192).each + OVERHEAD > memory


@given(st.integers(0, 10**12))
def test_what_is_said_to_be_enough_is_enough(fixed):
    """The least size in the error, given as it is written there, is accepted."""
    need = needs(1, fixed, 0)
    with pytest.raises(UsageError, match="too little") as caught:
        budget(need, 1, 1)
    budget(need, parse_size(caught.value.expected.removeprefix("at least ")), 1)


def test_too_little_memory_is_refused():
    """The error names the limit, the least that works, and why it is so much."""
    with pytest.raises(UsageError, match=r"memory limit of 1\.0 MB is too little") as caught:
        budget(needs(4, 2_000_000, 0), 1_000_000, 1, " for this recipe")
    assert caught.value.expected == "at least 50.3 MB for this recipe"
    budget(needs(4, 2_000_000, 0), 50_300_000, 1)
