"""Reading object stores: what fails is tried again, what changed is refused."""

import os

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from paramdelta import CheckpointError, StorageError, UsageError
from paramdelta.storage import objects
from paramdelta.storage.objects import Bucket, ObjectStore, split
from tests.buckets import Buckets, s3_server

DATA = bytes(np.random.default_rng(1).integers(0, 256, 3_000_000, np.uint8))


@pytest.fixture
def buckets(monkeypatch):
    """Object stores in memory; no pause before another try."""
    monkeypatch.setattr(objects, "PAUSE", 0)
    found = Buckets(monkeypatch)
    obstore.put(found.connect("s3://b"), "m/model.safetensors", DATA)
    obstore.put(found.connect("s3://b"), "m/.hidden/x", b"x")
    obstore.put(found.connect("s3://b"), "m2/other", b"x")
    return found


def only(url="s3://b/m"):
    """The one blob there."""
    return ObjectStore().list(url)["model.safetensors"]


def test_listing(buckets):
    """A folder, a file, nothing; neighbors with a longer name and hidden files are not in it."""
    assert list(ObjectStore().list("s3://b/m")) == ["model.safetensors"]
    assert only("s3://b/m/model.safetensors") == only()
    assert ObjectStore().list("s3://b/none") == {}
    assert only().size == len(DATA)


def test_ranges(buckets):
    """One range, and scattered parts in any order."""
    into = memoryview(bytearray(1000))
    ObjectStore().read(only(), 12_345, into)
    assert into == DATA[12_345:13_345]
    offsets = np.array([2_999_990, 5, 1_000_000, 5])
    parts = memoryview(bytearray(40))
    ObjectStore().read_many(only(), offsets, parts, range(len(DATA)))
    assert parts == b"".join(DATA[o : o + 10] for o in offsets)


def test_past_the_end(buckets):
    """A file that is too short is the checkpoint's fault."""
    with pytest.raises(CheckpointError):
        ObjectStore().read(only(), len(DATA) - 5, memoryview(bytearray(10)))


@pytest.mark.parametrize("data", [DATA[::-1], None])
def test_an_object_that_changed_is_refused(buckets, data):
    """Replaced by one of the same size, or removed."""
    blob, store = only(), buckets.connect("s3://b")
    if data is None:
        obstore.delete(store, "m/model.safetensors")
    else:
        obstore.put(store, "m/model.safetensors", data)
    with pytest.raises(StorageError) as caught:
        ObjectStore().read(blob, 0, memoryview(bytearray(10)))
    assert caught.value.code == "source-changed"


@pytest.mark.parametrize(("fails", "works"), [(objects.TRIES - 1, True), (objects.TRIES, False)])
def test_answers_that_break_off_are_asked_for_again(buckets, monkeypatch, fails, works):
    """A body that ends early is read again, and not for ever."""
    blob, get, left = only(), obstore.get, iter(range(fails))

    class Cut:
        """An answer of which the last byte does not come."""

        def __init__(self, found):
            self.meta, self.range, self.found = found.meta, found.range, found

        def stream(self, **_):
            yield bytes(self.found.bytes())[:-1]

    def cutting(*args, **options):
        found = get(*args, **options)
        return found if next(left, None) is None else Cut(found)

    monkeypatch.setattr(obstore, "get", cutting)
    into = memoryview(bytearray(100))
    if works:
        ObjectStore().read(blob, 7, into)
        assert into == DATA[7:107]
    else:
        with pytest.raises(StorageError, match="cannot read"):
            ObjectStore().read(blob, 7, into)


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://b/../x", "s3://key:secret@b/x", "az://c/x?sig=secret", "gs://b/x?token=secret"],
)
def test_addresses_with_secrets_or_ways_out_are_refused(url):
    """And the error does not repeat the secret."""
    with pytest.raises(UsageError) as caught:
        split(url)
    assert "secret" not in str(caught.value)


def test_addresses():
    """Bucket and path; Azure's file systems have an account."""
    assert split("S3://b//m/") == ("s3://b", "m")
    assert split("abfss://fs@account.dfs.core.windows.net/m") == (
        "abfss://fs@account.dfs.core.windows.net",
        "m",
    )


def test_an_upload_is_whole_or_nothing(buckets, tmp_path):
    """A file in several parts arrives; one that is stopped leaves nothing."""
    bucket, file = Bucket("s3://b"), tmp_path / "file"
    file.write_bytes(DATA * 6)
    version = bucket.upload("up/file", file, lambda: False)
    found = bucket.head("up/file")
    assert (found.size, found.version) == (6 * len(DATA), version)
    with pytest.raises(StorageError):
        bucket.upload("up/stopped", file, lambda: True)
    assert bucket.head("up/stopped") is None


def test_what_s3_says(tmp_path):
    """A real client and moto's server: parts, ranges, a change, a missing bucket; and no message
    has a credential in it.
    """
    pytest.importorskip("moto", reason="needs moto[server]; make test-objects installs it")
    with s3_server() as client:
        file = tmp_path / "file"
        file.write_bytes(DATA * 6)
        bucket = Bucket("s3://bkt")
        bucket.upload("up/file", file, lambda: False)
        blob = ObjectStore().list("s3://bkt/up")["file"]
        into = memoryview(bytearray(9_000_000))
        ObjectStore().read(blob, 1_000_000, into)
        assert into == (DATA * 6)[1_000_000:10_000_000]
        assert bucket.put("once", b"1", new=True)
        assert not bucket.put("once", b"2", new=True)
        client.put_object(Bucket="bkt", Key="up/file", Body=DATA[::-1] * 6)
        errors = []
        for call in (
            lambda: bucket.read(blob, 0, into),
            lambda: Bucket("s3://nowhere").list("x"),
            lambda: bucket.upload("up/stopped", file, lambda: True),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            errors.append(caught.value)
        assert [e.code for e in errors] == [
            "source-changed",
            "no-such-bucket",
            "object-store-failed",
        ]
        assert not client.list_multipart_uploads(Bucket="bkt").get("Uploads")
        texts = " ".join(map(str, errors))
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in texts
        assert os.environ["AWS_ACCESS_KEY_ID"] not in texts


def test_without_the_package(monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(StorageError, match=r"paramdelta\[objects\]"):
        Bucket("s3://b")


def test_the_store_in_memory_is_obstores(buckets):
    """The tests of gs:// and az:// stand on it: no emulator speaks Google's XML interface."""
    assert isinstance(buckets.connect("gs://b"), MemoryStore)
