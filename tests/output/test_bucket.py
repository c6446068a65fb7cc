"""Outputs in an object store."""

import json

import obstore
import pytest

import paramdelta
from paramdelta import MisfitError, StorageError, UsageError
from paramdelta.output.bucket import BucketDestination
from paramdelta.storage.objects import Bucket
from tests.buckets import Buckets, contents

URL = "s3://bucket/models/out"
LOCK = "paramdelta.lock.json"


@pytest.fixture
def buckets(monkeypatch):
    """Object stores in memory."""
    return Buckets(monkeypatch)


def broken_after(monkeypatch, count):
    """Uploads fail after so many."""
    ship, left = BucketDestination.ship, iter(range(count))

    def failing(self, *args):
        if next(left, None) is None:
            raise StorageError("the line is dead", code="io-failed")
        ship(self, *args)

    monkeypatch.setattr(BucketDestination, "ship", failing)


def broken_run(lineage, monkeypatch, **choices):
    """A run that has shipped one of three shards."""
    with monkeypatch.context() as patch:
        broken_after(patch, 1)
        with pytest.raises(StorageError, match="the line is dead"):
            paramdelta.mix(lineage.recipe(**choices), URL, shard_size="1MB")


def test_from_a_bucket_to_a_bucket(wide, buckets, tmp_path):
    """The files are those of a mix into a folder, and nothing else stays; what is read are the
    operands, once each.
    """
    recipe = wide.recipe()
    paramdelta.mix(recipe, tmp_path / "out", shard_size="1MB")
    here = paramdelta.mix(recipe, URL, shard_size="1MB")
    assert buckets.files(URL) == contents(tmp_path / "out")
    assert here.folder == URL
    for name in ("base", "post", "new"):
        buckets.upload(getattr(wide, name), f"s3://bucket/in/{name}")
    away = paramdelta.Recipe(
        "s3://bucket/in/new", [paramdelta.Delta("s3://bucket/in/post", "s3://bucket/in/base")]
    )
    result = paramdelta.mix(away, "gs://bucket/out", shard_size="1MB")
    assert result.moved == here.moved
    found = buckets.files("gs://bucket/out")
    weights = [name for name in found if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(found[name] == (tmp_path / "out" / name).read_bytes() for name in weights)
    assert json.loads(found[LOCK])["recipe"]["new_base"] == "s3://bucket/in/new"
    assert paramdelta.verify("gs://bucket/out", share=1, download=True).elements > 0


def test_a_run_that_broke_off_is_continued(wide, buckets, monkeypatch, tmp_path):
    """Its shard is kept; there is no index and no lock before the end."""
    broken_run(wide, monkeypatch)
    there = buckets.files(URL)
    assert [n for n in there if not n.startswith(".paramdelta/")] == [
        "model-00001-of-00003.safetensors"
    ]
    result = paramdelta.mix(wide.recipe(), URL, shard_size="1MB")
    assert result.resumed > 900_000
    paramdelta.mix(wide.recipe(), tmp_path / "out", shard_size="1MB")
    assert buckets.files(URL) == contents(tmp_path / "out")


def test_another_recipe_is_refused_and_can_start_afresh(wide, buckets, monkeypatch):
    """An unfinished run of another recipe stays as it is, unless it is discarded."""
    broken_run(wide, monkeypatch)
    before = buckets.files(URL)
    with pytest.raises(MisfitError) as caught:
        paramdelta.mix(wide.recipe(0.5), URL, shard_size="1MB")
    assert caught.value.code == "other-run-unfinished"
    assert buckets.files(URL) == before
    paramdelta.mix(wide.recipe(0.5), URL, shard_size="2MB", fresh=True)
    names = [name for name in buckets.files(URL) if name.endswith(".safetensors")]
    assert len(names) == 2


def test_a_finished_output_is_replaced_only_on_request(wide, buckets):
    """Without it, nothing is touched; with it, no file of the old one stays."""
    paramdelta.mix(wide.recipe(), URL, shard_size="1MB")
    before = buckets.files(URL)
    with pytest.raises(UsageError) as caught:
        paramdelta.mix(wide.recipe(0.5), URL)
    assert caught.value.code == "output-exists"
    assert buckets.files(URL) == before
    paramdelta.mix(wide.recipe(0.5), URL, overwrite=True)
    after = buckets.files(URL)
    assert [name for name in after if name.endswith(".safetensors")] == ["model.safetensors"]
    assert not any(name.startswith(".paramdelta") for name in after)


def test_foreign_objects_are_never_touched(wide, buckets):
    """Neither without a lock nor beside one."""
    store = buckets.connect("s3://bucket")
    obstore.put(store, "models/out/notes.txt", b"mine")
    with pytest.raises(UsageError) as caught:
        paramdelta.mix(wide.recipe(), URL, overwrite=True, fresh=True)
    assert caught.value.code == "foreign-output"
    assert buckets.files(URL) == {"notes.txt": b"mine"}
    obstore.delete(store, "models/out/notes.txt")
    paramdelta.mix(wide.recipe(), URL)
    obstore.put(store, "models/out/notes.txt", b"mine")
    with pytest.raises(UsageError) as caught:
        paramdelta.mix(wide.recipe(0.5), URL, overwrite=True)
    assert caught.value.code == "foreign-output"


def test_a_shard_that_another_program_replaced(wide, buckets, monkeypatch):
    """A shard that changed before the run continues is made again; one that changes during the run
    is noticed at the end, and nothing is published.
    """
    name = "models/out/model-00001-of-00003.safetensors"
    store = buckets.connect("s3://bucket")
    broken_run(wide, monkeypatch)
    obstore.put(store, name, b"something else")
    publish = BucketDestination.publish

    def meanwhile(self, files):
        obstore.put(store, name, b"something else")
        publish(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(BucketDestination, "publish", meanwhile)
        with pytest.raises(MisfitError) as caught:
            paramdelta.mix(wide.recipe(), URL, shard_size="1MB")
    assert caught.value.code == "partial-output-changed"
    assert LOCK not in buckets.files(URL)
    paramdelta.mix(wide.recipe(), URL, shard_size="1MB")
    assert paramdelta.verify(URL, share=1, download=True).files > 3


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("run.json", b"[]"),
        ("run.json", b'{"sources": 1}'),
        ("shards/model-00001-of-00003.safetensors.json", b"{}"),
        ("shards/model-00001-of-00003.safetensors.json", b'{"version": "1", "record": "x"}'),
    ],
)
def test_a_damaged_journal_is_refused(wide, buckets, monkeypatch, name, data):
    """What is not a journal is not believed, and can be discarded."""
    broken_run(wide, monkeypatch)
    store = buckets.connect("s3://bucket")
    if b"version" in data:
        shard = obstore.head(store, "models/out/model-00001-of-00003.safetensors")
        data = data.replace(b'"1"', shard["e_tag"].encode())
    obstore.put(store, f"models/out/.paramdelta/{name}", data)
    with pytest.raises((MisfitError, StorageError)) as caught:
        paramdelta.mix(wide.recipe(), URL, shard_size="1MB")
    assert caught.value.code == "damaged-journal"
    paramdelta.mix(wide.recipe(), URL, shard_size="1MB", fresh=True)


@pytest.mark.parametrize("url", ["s3://bucket/in/new", "s3://bucket/in", "s3://bucket/in/new/x"])
def test_an_output_on_an_input_is_refused(url):
    """Neither the input, nor around it, nor in it."""
    with pytest.raises(UsageError) as caught:
        BucketDestination(url, mark=LOCK, sources=["s3://bucket/in/new"])
    assert caught.value.code == "output-on-input"


def test_a_whole_bucket_is_no_output():
    """The address names a folder."""
    with pytest.raises(UsageError):
        BucketDestination("s3://bucket/", mark=LOCK)


def test_parts_in_a_bucket(wide, buckets, tmp_path):
    """Three machines and a fourth that finishes: the bytes of one run."""
    for part in ("3/3", "1/3"):
        paramdelta.mix_part(wide.recipe(), URL, part, shard_size="1MB")
    with pytest.raises(MisfitError) as caught:
        paramdelta.finish_mix(wide.recipe(), URL, shard_size="1MB")
    assert caught.value.code == "shards-missing"
    made = paramdelta.mix_part(wide.recipe(), URL, "2/3", shard_size="1MB")
    assert made.missing == ()
    for _ in range(2):
        paramdelta.finish_mix(wide.recipe(), URL, shard_size="1MB")
    paramdelta.mix(wide.recipe(), tmp_path / "out", shard_size="1MB")
    assert buckets.files(URL) == contents(tmp_path / "out")
    late = paramdelta.mix_part(wide.recipe(), URL, "1/3", shard_size="1MB")
    assert late.moved == 0


def test_a_part_that_runs_twice_at_once(wide, buckets, monkeypatch, tmp_path):
    """Between a shard and its record, another machine puts the same shard and its own record."""
    put, before = Bucket.put, []

    def slower(self, path, data, **options):
        if path.endswith("00001-of-00003.safetensors.json") and not before:
            before.append(path)
            paramdelta.mix_part(wide.recipe(), URL, "1/1", shard_size="1MB")
        return put(self, path, data, **options)

    monkeypatch.setattr(Bucket, "put", slower)
    paramdelta.mix_part(wide.recipe(), URL, "1/1", shard_size="1MB")
    paramdelta.finish_mix(wide.recipe(), URL, shard_size="1MB")
    assert before
    paramdelta.mix(wide.recipe(), tmp_path / "out", shard_size="1MB")
    assert buckets.files(URL) == contents(tmp_path / "out")
