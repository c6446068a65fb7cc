"""Slices: they cover every element once, in order, within the budget."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import UsageError
from paramdelta.checkpoint.tensor import Tensor
from paramdelta.engine.slices import MAX_BUFFER, MIN_BUFFER, Budget, cut, share_out
from paramdelta.planning.plan import OutputTensor, Pair, Plan


def planned(*shapes, dtype="BF16", post="F32", deltas=1):
    """A plan of tensors with these shapes, without files."""
    tensors = []
    for number, shape in enumerate(shapes):
        new, other = (Tensor(f"t{number}", d, shape, Path(), 0, 0) for d in (dtype, post))
        pairs = tuple(Pair(i, other, new, 1.0) for i in range(deltas))
        tensors.append(OutputTensor(f"t{number}", dtype, shape, new, pairs))
    return Plan(None, None, (), tuple(tensors), (), ())


# Of any number of axes; few elements, for a slice may hold no more than four.
SHAPES = st.lists(
    st.one_of(
        st.just(()),
        st.tuples(st.integers(0, 3000)),
        st.tuples(*[st.integers(0, 60)] * 2),
        st.tuples(*[st.integers(0, 16)] * 3),
    ),
    max_size=5,
)


@given(SHAPES, st.integers(16, 5000))
def test_every_element_once_in_order(shapes, buffer):
    """Slices follow each other in the output without gap or overlap, none too large."""
    plan = planned(*shapes)
    position = 0
    seen = dict.fromkeys(range(len(shapes)), 0)
    for piece in cut(plan, buffer):
        assert piece.position == position
        assert piece.start == seen[piece.tensor] < piece.stop
        assert (piece.stop - piece.start) * 4 <= max(buffer, 4)  # post is F32
        seen[piece.tensor] = piece.stop
        position += piece.nbytes
    assert position == plan.bytes_to_write
    assert all(seen[i] == t.elements for i, t in enumerate(plan.tensors))


def test_slices_are_whole_rows_where_rows_fit():
    """An embedding is cut between rows; a row larger than a buffer is cut too."""
    pieces = list(cut(planned((1000, 300), post="BF16"), 4096))
    assert all(p.start % 300 == 0 for p in pieces)
    assert max(p.stop - p.start for p in cut(planned((2, 10_000)), 4096)) == 1024


@given(st.integers(1, 64), st.integers(1, 5), st.integers(50, 4000))
def test_the_budget_is_kept(workers, deltas, megabytes):
    """However many workers and Δ: projected memory stays under what was given, or is refused."""
    plan = planned((4, 4), deltas=deltas)
    memory = megabytes * 1_000_000
    try:
        budget = share_out(plan, memory, workers)
    except UsageError:
        assert Budget(1, 2 + 2 * deltas, MIN_BUFFER).projected > memory
        return
    assert budget.projected <= memory
    assert MIN_BUFFER <= budget.buffer <= MAX_BUFFER
    assert 1 <= budget.workers <= workers


def test_too_little_memory_is_refused():
    """A budget under the fixed cost names the least that works."""
    with pytest.raises(UsageError, match="too little"):
        share_out(planned((4, 4)), 1_000_000, 1)
