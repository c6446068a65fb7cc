"""The journal: merged ranges, torn lines, exclusivity, and what it refuses."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import MisfitError
from paramdelta.output.journal import Journal, Ranges

IDENTITY = {"digest": "d", "sources": [{"path": "/a", "size": 1}, {"path": "/b", "size": 2}]}
RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=30)


@given(RUNS)
def test_ranges_are_a_set(runs):
    """Ranges contain what was put in and nothing else, merged and sorted."""
    ranges, reference = Ranges(), set()
    for start, length in runs:
        ranges.add(start, start + length)
        reference |= set(range(start, start + length))
    merged = list(ranges)
    assert {p for a, b in merged for p in range(a, b)} == reference
    assert all(one[1] < other[0] for one, other in pairwise(merged))
    for start in range(70):
        for length in (1, 3):
            expected = set(range(start, start + length)) <= reference
            assert ((start, start + length) in ranges) == expected


def test_what_was_appended_is_there_again(tmp_path):
    """Closing and opening keeps every entry; a torn last line counts for nothing."""
    path = tmp_path / "journal"
    journal = Journal(path, IDENTITY)
    journal.append([(0, 10), (10, 20), (30, 40)])
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"done": [40, 5')
    journal = Journal(path, IDENTITY)
    assert list(journal.done) == [(0, 20), (30, 40)]
    journal.append([(40, 50)])
    journal.close()
    assert list(Journal(path, IDENTITY).done) == [(0, 20), (30, 50)]


def test_every_truncation_is_survived(tmp_path):
    """Cut anywhere, a journal opens with a part of its entries, or says that it is another's."""
    path = tmp_path / "journal"
    journal = Journal(path, IDENTITY)
    for start in range(0, 50, 10):
        journal.append([(start, start + 5)])
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path, IDENTITY)
        assert set(journal.done) <= {(s, s + 5) for s in range(0, 50, 10)}
        journal.close()


def test_two_runs_exclude_each_other(tmp_path):
    """A second run on the same journal is refused while the first lives."""
    journal = Journal(tmp_path / "journal", IDENTITY)
    with pytest.raises(MisfitError, match="another run"):
        Journal(tmp_path / "journal", IDENTITY)
    journal.close()
    Journal(tmp_path / "journal", IDENTITY).close()


def test_changed_sources_are_named(tmp_path):
    """Another size or time of a source: refused, with the file's name."""
    Journal(tmp_path / "journal", IDENTITY).close()
    changed = {"digest": "e", "sources": [{"path": "/a", "size": 1}, {"path": "/b", "size": 3}]}
    with pytest.raises(MisfitError, match="source has changed") as error:
        Journal(tmp_path / "journal", changed)
    assert error.value.where == "/b"


@pytest.mark.parametrize("content", ["[]\n", "{}\n", "noise\n", json.dumps(IDENTITY) + "\n{}\n"])
def test_strange_journals_are_refused(tmp_path, content):
    """What cannot be understood is never resumed from."""
    (tmp_path / "journal").write_text(content)
    with pytest.raises(MisfitError, match="--fresh"):
        Journal(tmp_path / "journal", IDENTITY)
