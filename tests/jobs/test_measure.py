"""The least magnitude that trimming keeps: exact, whatever the sizes of buffers and digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.encodings.plain import Plain
from paramdelta.engine import threads
from paramdelta.formats.view import float64
from paramdelta.jobs import measure
from paramdelta.jobs.measure import MeasureJob, Worker
from paramdelta.planning.plan import OutputTensor
from paramdelta.schemes.dare import Drop
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.trim import Trim
from tests.numbers import array, patterns
from tests.views import Store


def job_for(store, posts, base, density, buffer, dtype):
    """The job of one tensor with a trimmed Δ for each post, and a worker that reads the store."""
    new = store.tensor("base", base, dtype)
    pairs = tuple(
        Pair(i, store.tensor(f"post{i}", post, dtype), new, 1.0, (Drop(0.5, 1), Trim(density)))
        for i, post in enumerate(posts)
    )
    tensor = OutputTensor("t", Plain(dtype), base.shape, new, pairs)
    job = MeasureJob.of([(tensor,)], lambda _: True, buffer)
    worker = Worker(buffer, None)
    worker.fetch = store.fetch
    return tensor, job, worker


def threshold(store, post, base, density, buffer, dtype="BF16"):
    """What the search finds for ``post − base``."""
    _, job, worker = job_for(store, [post], base, density, buffer, dtype)
    (task,) = job.tasks()
    return worker(task)


@given(
    st.sampled_from(["BF16", "F16", "F32", "F64"]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.lists(st.tuples(patterns(name), patterns(name)), min_size=1)
        )
    ),
    st.floats(0.001, 1),
    st.sampled_from([8, 24, 4096]),
    st.sampled_from([(1, 1), (3, 2), (20, 4), (20, 1 << 17)]),
)
def test_radix_select_is_a_partition(case, density, buffer, sizes):
    """The k-th largest |Δ| is numpy's, infinities and NaN as the largest."""
    name, pairs = case
    post, base = (array([pair[i] for pair in pairs], name) for i in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "DIGIT", sizes[0])
        patch.setattr(measure, "FOUND", sizes[1])
        found = threshold(Store(), post, base, density, buffer, name)
    with np.errstate(all="ignore"):
        size = np.sort(np.abs(float64(post, name) - float64(base, name)))
    kept = min(len(size), max(1, int(density * len(size))))
    np.testing.assert_equal(found, size[len(size) - kept])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_two_passes_are_enough(dtype, monkeypatch):
    """Of weights as they are, the first pass finds the bucket and the second the number in it: in
    float32 few are left, in bfloat16 they have no further bits.
    """
    monkeypatch.setattr(measure, "FOUND", 4 if dtype == "BF16" else 1 << 10)
    chance = np.random.default_rng(0)
    base = chance.normal(0, 0.02, (400, 500)).astype(np.float32)
    post = base + chance.normal(0, 0.002, base.shape).astype(np.float32)
    if dtype == "BF16":
        base, post = ((a.view(np.uint32) >> 16).astype(np.uint16) for a in (base, post))
    store = Store()
    threshold(store, post, base, 0.2, 1 << 16, dtype)
    assert sum(count for _, _, count in store.reads) == 2 * 2 * base.size


def test_every_delta_gets_its_own(monkeypatch):
    """Each Δ of a tensor is measured by itself, and the filters beside the trim are kept."""
    store, chance = Store(), np.random.default_rng(0)
    base = chance.normal(size=(20, 30)).astype(np.float32)
    posts = [base + chance.normal(0, 1 + i, base.shape).astype(np.float32) for i in range(3)]
    tensor, job, worker = job_for(store, posts, base, 0.25, 1000, "F32")
    monkeypatch.setattr(MeasureJob, "worker", lambda *_: worker)
    threads.run(job, _Reader(), workers=1)
    (measured,) = job.applied((tensor,))
    for pair, post in zip(measured.pairs, posts, strict=True):
        size = np.sort(np.abs(post.astype(np.float64) - base).reshape(-1))
        assert pair.filters == (Drop(0.5, 1), Trim(0.25, size[-150]))


class _Reader:
    count = 0


def test_only_what_is_wanted_is_measured():
    """Tensors without a trimmed Δ, or that an earlier run made, have no task and do not change."""
    store = Store()
    tensor, job, _ = job_for(
        store, [np.ones(4, np.float32)], np.zeros(4, np.float32), 0.5, 64, "F32"
    )
    plain = OutputTensor("u", tensor.encoding, tensor.shape, tensor.new)
    asked = []
    made = MeasureJob.of([(tensor, plain)], lambda number: asked.append(number), 64)
    assert not made.tasks()
    assert asked == [0]
    assert made.applied((tensor, plain)) == (tensor, plain)
    assert len(job.tasks()) == 1


def test_a_sweep_measures_a_delta_once():
    """Outputs at several scales have the same Δs; the one that has them all is measured."""
    store = Store()
    tensor, *_ = job_for(
        store, [np.ones(4, np.float32)] * 2, np.zeros(4, np.float32), 0.5, 64, "F32"
    )
    at_zero = OutputTensor("t", tensor.encoding, tensor.shape, tensor.new)
    job = MeasureJob.of([(at_zero,), (tensor,), (tensor,)], lambda _: True, 64)
    assert [task.pair.number for task in job.tasks()] == [0, 1]
