"""Which shards a part makes, and which part a process is."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import UsageError
from paramdelta.output.parts import Part, parse_part


@given(st.lists(st.integers(1, 10**10), max_size=60), st.integers(1, 80))
def test_every_shard_belongs_to_one_part(sizes, count):
    """No shard is left out, none is made twice, and no part is far above its share."""
    layout = SimpleNamespace(shards=[SimpleNamespace(size=size) for size in sizes])
    parts = [Part(number, count).shards(layout) for number in range(1, count + 1)]
    assert sorted(n for part in parts for n in part) == list(range(len(sizes)))
    for part in parts:
        assert sum(sizes[n] for n in part) <= sum(sizes) / count + max(sizes, default=0) + 1


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/4", {}, (2, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (4, 4)),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (3, 4),
        ),
        ("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (2, 2)),
        ("auto", {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "8"}, (1, 8)),
    ],
)
def test_parts_as_they_are_given(text, environment, expected):
    """By hand, by Slurm's arrays and ranks, by Kubernetes."""
    assert parse_part(text, environment) == Part(*expected)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("0/4", {}),
        ("5/4", {}),
        ("1", {}),
        ("-1/4", {}),
        ("auto", {}),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}),
        ("auto", {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "4"}),
        ("auto", {"SLURM_PROCID": "x", "SLURM_NTASKS": "2"}),
    ],
)
def test_what_is_no_part(text, environment):
    """Numbers out of range, arrays with gaps, and no scheduler at all."""
    with pytest.raises(UsageError) as caught:
        parse_part(text, environment)
    assert caught.value.code == "invalid-part"
