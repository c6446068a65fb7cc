"""The journal: merged ranges, torn and damaged lines, and what it refuses."""

import json
import os
import zlib
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramdelta import MisfitError, StorageError
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


def opened(path):
    """The journal of the run, read again."""
    journal = Journal(path, IDENTITY)
    journal.close()
    return journal


@pytest.fixture
def path(tmp_path):
    """A closed journal with runs, block digests and a small file."""
    journal = Journal(tmp_path / "journal", IDENTITY)
    journal.append([(0, 10), (10, 20), (30, 40)], {"/a": {0: "00ff", 3: "ab"}})
    journal.append(put="config.json")
    journal.append([(60, 70)], {"/a": {1: "cd"}, "/b": {0: "ef"}})
    journal.close()
    journal.close()
    return tmp_path / "journal"


def test_what_was_appended_is_there_again(path):
    """Closing and opening keeps every entry; a torn last line counts for nothing."""
    with path.open("ab") as file:
        file.write(b'0badc0de {"done": [70, 8')
    journal = Journal(path, IDENTITY)
    assert list(journal.done) == [(0, 20), (30, 40), (60, 70)]
    assert journal.leaves == {"/a": {0: b"\0\xff", 3: b"\xab", 1: b"\xcd"}, "/b": {0: b"\xef"}}
    assert journal.puts == ["config.json"]
    journal.append([(40, 50)])
    assert (30, 50) in journal.done
    journal.close()
    assert list(opened(path).done) == [(0, 20), (30, 50), (60, 70)]


def test_every_truncation_is_survived(path):
    """Cut anywhere, a journal opens with the entries before the cut, and can be appended to."""
    whole, seen = path.read_bytes(), set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        done = list(opened(path).done)
        assert done in ([], [(0, 20)], [(0, 20), (30, 40)])
        seen.add(len(done))
        journal = Journal(path, IDENTITY)
        journal.append([(80, 90)])
        journal.close()
        assert list(opened(path).done) == [*done, (80, 90)]
    assert seen == {0, 1, 2}


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused(path, data):
    """One byte that changed: refused, or read as it was, but for a last line taken for torn."""
    whole, before = path.read_bytes(), opened(path)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        found = opened(path)
    except MisfitError as error:
        assert "fresh=True" in str(error)  # noqa: PT017 - it need not be raised
    else:
        last = [] if at == len(whole) - 1 else [(60, 70)]
        assert list(found.done) == [(0, 20), (30, 40), *last]
        assert (found.leaves, found.puts) == (before.leaves, before.puts)
    finally:
        path.write_bytes(whole)


def test_changed_sources_are_named(tmp_path):
    """Another size or time of a source: refused, with the file's name."""
    Journal(tmp_path / "journal", IDENTITY).close()
    changed = {"digest": "e", "sources": [{"path": "/a", "size": 1}, {"path": "/b", "size": 3}]}
    with pytest.raises(MisfitError, match="source has changed") as error:
        Journal(tmp_path / "journal", changed)
    assert error.value.where == "/b"


def line(entry):
    """A line of a journal with its checksum."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


@pytest.mark.parametrize(
    "content",
    [
        "noise\n",
        "\n",
        json.dumps(IDENTITY) + "\n",
        line([]),
        line({}),
        line("noise"),
        line("[" * 100_000),
        line(IDENTITY) + line({}),
        line(IDENTITY) + line([]),
        line(IDENTITY) + line({"done": [1]}),
        line(IDENTITY) + line({"done": ["a", "b"]}),
        line(IDENTITY) + line({"leaves": {"/a": {"0": "no hex"}}}),
        line(IDENTITY) + line({"leaves": {"/a": {"zero": "ab"}}}),
        line(IDENTITY) + line({"leaves": []}),
        line(IDENTITY) + line({"leaves": {"/a": []}}),
    ],
    ids=range(15),
)
def test_strange_journals_are_refused(tmp_path, content):
    """What cannot be understood is never resumed from."""
    (tmp_path / "journal").write_text(content)
    with pytest.raises(MisfitError, match="fresh=True"):
        Journal(tmp_path / "journal", IDENTITY)


def test_another_recipe_is_refused(tmp_path):
    """The same sources, another plan: it says where the unfinished run is, and what to do."""
    Journal(tmp_path / "journal", IDENTITY).close()
    with pytest.raises(MisfitError, match="another recipe") as error:
        Journal(tmp_path / "journal", {**IDENTITY, "digest": "e"})
    assert error.value.where == str(tmp_path)
    assert "fresh=True" in error.value.remedy


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot tell links")
def test_a_link_is_not_followed(tmp_path):
    """A link under the journal's name leads nowhere."""
    (tmp_path / "mine").write_text("years of work")
    (tmp_path / "journal").symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="cannot open"):
        Journal(tmp_path / "journal", IDENTITY)
    assert (tmp_path / "mine").read_text() == "years of work"
