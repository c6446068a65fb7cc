"""Shards that are made in local files and shipped one by one."""

import json
import threading
import time

import pytest

import paramdelta
from paramdelta import MisfitError, StorageError, api
from paramdelta.checks import inspection
from paramdelta.checks.report import Report
from paramdelta.output.destination import Record
from paramdelta.output.journal import compare_runs
from paramdelta.planning.findings import Finding, Severity
from tests.buckets import contents
from tests.checkpoints import llama, moved, save
from tests.conftest import CONFIG, Lineage


class Memory:
    """A destination in memory. ``fails``: how many shards it takes before it fails for good."""

    where = "memory"
    staging = None

    def __init__(self, fails=None, pause=0.0):
        self.run, self.files, self.records, self.calls = None, {}, {}, []
        self.fails, self.pause = fails, pause

    def finished(self):
        """The lock."""
        return self.files.get("paramdelta.lock.json")

    def begin(self, run, fresh):
        """Take a run, or the same again."""
        if fresh:
            self.run, self.records = None, {}
        self.run = self.run or json.loads(json.dumps(run))
        compare_runs(self.run, json.loads(json.dumps(run)), self.where)
        return dict(self.records)

    def ship(self, name, path, record, stopped):
        """Keep a shard and its record."""
        time.sleep(self.pause)
        if len(self.records) == self.fails:
            raise StorageError("the line is dead", code="io-failed")
        self.calls.append((name, len(list(path.parent.glob("*.part")))))
        self.files[name] = path.read_bytes()
        self.records[name] = record

    def publish(self, files):
        """Keep the small files."""
        self.calls += [(name, 0) for name in files]
        self.files |= files
        self.records = {}

    def close(self):
        """Nothing is held."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A lineage of which the mix has ten shards of 1 MB."""
    base, folder = llama(hidden=128, layers=24, vocab=5000), tmp_path_factory.mktemp("large")
    return Lineage(
        *(
            save(folder / name, moved(base, n) if n else base, config_json=CONFIG)
            for n, name in enumerate(("base", "post", "new"))
        )
    )


def ship(lineage, destination, monkeypatch, scale=1.0, **options):
    """Mix to a destination."""
    monkeypatch.setattr(api, "_destination", lambda *_: destination)
    return api.mix(lineage.recipe(scale), "s3://bucket/out", shard_size="1MB", **options)


def test_the_bytes_are_those_of_a_folder(large, tmp_path, monkeypatch):
    """Every file is that of a mix into a folder; at most three shards are on the disk; the lock is
    the last file, and index and config come just before it.
    """
    place, staging = Memory(pause=0.02), tmp_path / "staging"
    result = ship(large, place, monkeypatch, staging=staging)
    paramdelta.mix(large.recipe(), tmp_path / "out", shard_size="1MB")
    assert place.files == contents(tmp_path / "out")
    assert len(result.layout.shards) > 8
    assert max(count for _, count in place.calls) <= 3
    *_, config, index, lock = (name for name, _ in place.calls)
    assert {config, index} == {"config.json", "model.safetensors.index.json"}
    assert lock == "paramdelta.lock.json"
    assert list(staging.iterdir()) == []


def test_a_run_that_broke_off_is_continued(large, tmp_path, monkeypatch):
    """Finished shards are not made again, and the bytes and the lock are those of one run."""
    place = Memory(fails=4)
    with pytest.raises(StorageError, match="the line is dead"):
        ship(large, place, monkeypatch, staging=tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    assert "paramdelta.lock.json" not in place.files
    before = {name for name, _ in place.calls}
    assert len(before) == 4
    place.fails, place.calls = None, []
    result = ship(large, place, monkeypatch)
    assert before.isdisjoint(name for name, _ in place.calls)
    assert result.resumed > 3_000_000
    paramdelta.mix(large.recipe(), tmp_path / "out", shard_size="1MB")
    assert place.files == contents(tmp_path / "out")


def test_another_run_is_refused(large, monkeypatch):
    """Another recipe does not continue the run, unless it starts afresh."""
    place = Memory(fails=2)
    with pytest.raises(StorageError):
        ship(large, place, monkeypatch)
    with pytest.raises(MisfitError) as caught:
        ship(large, place, monkeypatch, scale=0.5)
    assert caught.value.code == "other-run-unfinished"
    place.fails = None
    ship(large, place, monkeypatch, scale=0.5, fresh=True)
    assert place.finished() is not None


def test_what_is_not_finite_is_told_by_the_run_that_finishes(large, tmp_path, monkeypatch):
    """Numbers that are not finite, in shards of an earlier run, are in the result."""
    base = llama(hidden=128, layers=24, vocab=5000)
    bad = moved(base, 1)
    first = next(iter(bad))
    flat = bad[first].reshape(-1)
    flat[:3] = 0x7FC0  # NaN in bfloat16
    save(tmp_path / "bad", bad, config_json=CONFIG)
    lineage = Lineage(large.base, tmp_path / "bad", large.new)
    alone = paramdelta.mix(lineage.recipe(), tmp_path / "out", shard_size="1MB").not_finite
    place = Memory(fails=9)
    with pytest.raises(StorageError):
        ship(lineage, place, monkeypatch)
    place.fails = None
    assert ship(lineage, place, monkeypatch).not_finite == alone != {}
    with pytest.raises(MisfitError) as caught:
        ship(lineage, Memory(), monkeypatch, strict=True)
    assert caught.value.code == "not-finite"


def test_interrupted_while_it_ships(large, tmp_path, monkeypatch):
    """Ctrl-C leaves no local files and says that the same command continues."""
    place, staging = Memory(), tmp_path / "staging"
    began = threading.Event()
    place.ship = lambda *_: (began.set(), time.sleep(0.2))

    def progress(_):
        if began.is_set():
            raise KeyboardInterrupt

    with pytest.raises(paramdelta.Interrupted) as caught:
        ship(large, place, monkeypatch, staging=staging, progress=progress)
    assert caught.value.where == "memory"
    assert list(staging.iterdir()) == []


def test_an_output_that_would_not_work_does_not_appear(wide, monkeypatch):
    """It is looked at before it is published: small files and headers, as they will be."""
    seen = {}

    def look(folder, **options):
        seen.update({path.name: path.stat().st_size for path in folder.iterdir()}, **options)
        return Report(str(folder), "transformers", (), (), (refused,), 1, 1)

    refused = Finding(Severity.REFUSED, "no-good", "no good", "config.json")
    monkeypatch.setattr(inspection, "check", look)
    place = Memory()
    with pytest.raises(MisfitError) as caught:
        ship(wide, place, monkeypatch, check=True)
    assert (caught.value.code, caught.value.where) == ("check-failed", "config.json")
    assert place.finished() is None
    assert len(place.records) == 3
    assert seen["values"] is False
    assert all(seen[name] == len(place.files[name]) for name in place.records)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"size": "1"}', b'{"size": 1, "digest": "00", "leaves": {}, "not_finite": []}'],
)
def test_a_damaged_record_is_refused(data):
    """What is not a record is not believed."""
    with pytest.raises(MisfitError) as caught:
        Record.parse(data, "here")
    assert caught.value.code == "damaged-journal"


def test_a_record_survives_its_text():
    """All of a record comes back."""
    record = Record(7, "ab" * 16, {"url": {3: "cd" * 16}}, {("tensor", "post"): 2})
    assert Record.parse(record.to_bytes(), "here") == record
