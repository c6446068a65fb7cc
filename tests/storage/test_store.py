"""A new place is one small class: a bucket in memory, registered under a scheme of its own."""

import threading

import pytest

import paramdelta
from paramdelta.errors import StorageError
from paramdelta.storage import store
from paramdelta.storage.blob import Blob
from tests.checkpoints import llama, moved, save


class Bucket:
    """Objects in memory, at ``bucket://name``. Counts requests and bytes by URL."""

    grain = 16 << 10

    def __init__(self, objects):
        self.objects = objects
        self.requests, self.bytes, self.lock = {}, {}, threading.Lock()

    def list(self, url):
        """Every object below a prefix, or the object itself."""
        found = {}
        for name, data in self.objects.items():
            if name == url or name.startswith(url + "/"):
                blob = Blob(name, len(data), str(hash(data)))
                found[name[len(url) + 1 :] or blob.name] = blob
        return found

    def read(self, blob, offset, into):
        """A range of an object; refused if the object is another one now."""
        data = self.objects[blob.url]
        if str(hash(data)) != blob.version:
            raise StorageError("the object changed", code="source-changed", where=blob.url)
        with self.lock:
            self.requests[blob.url] = self.requests.get(blob.url, 0) + 1
            self.bytes[blob.url] = self.bytes.get(blob.url, 0) + len(into)
        into[:] = data[offset : offset + len(into)]

    def read_many(self, blob, offsets, into, among):
        """Several ranges."""
        size = len(into) // len(offsets)
        for number, offset in enumerate(offsets.tolist()):
            self.read(blob, offset, into[number * size : (number + 1) * size])

    def close(self):
        """Nothing is open."""


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A lineage in a bucket, and the same in folders."""
    base = llama(hidden=64, layers=3, vocab=512)
    made = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    objects = {}
    for name, tensors in made.items():
        folder = save(tmp_path / name, tensors, shards=2, config_json={"model_type": "llama"})
        for path in folder.iterdir():
            objects[f"bucket://{name}/{path.name}"] = path.read_bytes()
    place = Bucket(objects)
    monkeypatch.setitem(store._STORES, "bucket", lambda once: place)
    return place


def recipe(prefix):
    """The plain recipe for folders or buckets."""
    delta = paramdelta.Delta(f"{prefix}post", f"{prefix}base")
    return paramdelta.Recipe(f"{prefix}new", (delta,))


def test_a_mix_from_a_bucket_is_the_same(bucket, tmp_path):
    """The same bytes as from folders, and the sources are pinned by their URLs."""
    local = paramdelta.mix(recipe(f"{tmp_path}/"), tmp_path / "local").folder
    far = paramdelta.mix(recipe("bucket://"), tmp_path / "far").folder
    for path in local.glob("*.safetensors"):
        assert path.read_bytes() == (far / path.name).read_bytes()
    assert "bucket://post" in (far / "paramdelta.lock.json").read_text()


def test_each_byte_is_requested_once_in_large_requests(bucket, tmp_path):
    """A mix reads each weight file in requests of the store's grain, whatever the slices are."""
    made = paramdelta.plan(recipe("bucket://"))
    bucket.requests.clear()
    bucket.bytes.clear()
    paramdelta.mix(made, tmp_path / "out", workers=1)
    for url, data in bucket.objects.items():
        if url.endswith(".safetensors"):
            assert bucket.bytes[url] <= 1.02 * len(data)
            assert bucket.requests[url] <= -(-len(data) // Bucket.grain) + 1


def test_an_object_that_changes_is_refused(bucket, tmp_path):
    """Bytes of another version are never mixed."""
    made = paramdelta.plan(recipe("bucket://"))
    url = next(url for url in bucket.objects if url.startswith("bucket://post/model-"))
    bucket.objects[url] = bucket.objects[url][:-1] + b"\1"
    with pytest.raises(StorageError, match="changed"):
        paramdelta.mix(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
