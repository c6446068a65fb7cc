"""Positional I/O, its fall-back, and what its errors say."""

import errno
import os
import threading

import numpy as np
import pytest

import paramdelta.storage.local as local
from paramdelta.errors import CheckpointError, StorageError
from paramdelta.storage.local import File, storage_error
from paramdelta.storage.reader import Reader


@pytest.fixture(params=[True, False], ids=["positional", "fall-back"])
def positional(request, monkeypatch):
    """Run a test with pread and pwrite, and with what stands in for them on Windows."""
    monkeypatch.setattr(local, "_POSITIONAL", request.param)


@pytest.mark.usefixtures("positional")
def test_many_threads_share_one_file(tmp_path):
    """Interleaved writes and reads at positions of their own do not disturb each other."""
    file = File.create(tmp_path / "f")
    file.allocate(64_000)

    def work(number):
        for place in range(number, 640, 8):
            file.write(memoryview(bytes([place % 251]) * 100), place * 100)
        for place in range(number, 640, 8):
            assert file.read(place * 100, 100) == bytes([place % 251]) * 100

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.sync()
    file.close()
    data = (tmp_path / "f").read_bytes()
    assert data == b"".join(bytes([p % 251]) * 100 for p in range(640))


@pytest.mark.usefixtures("positional")
def test_the_end_of_a_file_is_no_zeros(tmp_path):
    """Reading past the end is an error that says how much is missing."""
    (tmp_path / "f").write_bytes(b"123")
    file = File(tmp_path / "f")
    with pytest.raises(CheckpointError, match="too early"):
        file.read(1, 5)
    file.close()


def test_short_reads_and_writes_are_completed(tmp_path, monkeypatch):
    """A system that moves fewer bytes than asked for is asked again."""
    real_read, real_write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda d, b, o: real_read(d, [b[0][:7]], o))
    monkeypatch.setattr(os, "pwrite", lambda d, b, o: real_write(d, b[:5], o))
    file = File.create(tmp_path / "f")
    file.write(memoryview(bytes(range(100))), 3)
    assert file.read(3, 100) == bytes(range(100))
    file.close()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "check the disk"),
    ],
)
def test_failures_say_what_to_do(tmp_path, monkeypatch, code, remedy):
    """An I/O error names the file, the system's reason and a remedy."""

    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    file = File.create(tmp_path / "f")
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError) as error:
        file.write(memoryview(b"x"), 0)
    file.close()
    assert str(tmp_path / "f") in str(error.value)
    assert os.strerror(code) in str(error.value)
    assert remedy in str(error.value)


def test_allocation_without_system_support(tmp_path, monkeypatch):
    """A file system without fallocate gets the size alone; a full disk is still an error."""

    def unsupported(*arguments):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    file = File.create(tmp_path / "f")
    file.allocate(1000)
    assert file.size() == 1000

    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="allocate"):
        file.allocate(2000)
    file.close()


@pytest.fixture
def large_file(tmp_path, synced):
    """20 MiB and a bit on a disk whose page cache can be asked and emptied."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(20 * 2**20 + 777))
    file = File(path)
    file.sync()
    os.posix_fadvise(file._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    cached = file._is_cached()
    os.posix_fadvise(file._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    file.close()
    if cached:
        pytest.skip("this file system keeps everything in memory, or cannot say what it keeps")
    return path


def read_through(file, length):
    """All bytes of a file by four threads, in pieces of ``length``."""
    size, pieces = file.size(), {}

    def work(number):
        for offset in range(number * length, size, 4 * length):
            buffer = memoryview(bytearray(min(length, size - offset)))
            file.read_once(buffer, offset)
            pieces[offset] = bytes(buffer)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return b"".join(pieces[offset] for offset in sorted(pieces))


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the page cache cannot be asked")
@pytest.mark.parametrize("length", [1 << 20, 999_983])
def test_what_was_not_cached_is_dropped_behind(large_file, length):
    """A cold file is read rightly in pieces of any size, and is cold again afterwards."""
    file = File.open_once(large_file)
    found = read_through(file, length)
    file.close()
    file = File(large_file)
    assert not file._is_cached()
    file.close()
    assert found == large_file.read_bytes()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the page cache cannot be asked")
def test_what_was_cached_stays(large_file):
    """Reading once a file that somebody keeps in the page cache does not push it out."""
    expected = large_file.read_bytes()  # now it is cached
    file = File.open_once(large_file)
    assert read_through(file, 1 << 20) == expected
    assert file._is_cached()
    file.close()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the page cache cannot be asked")
def test_a_window_is_dropped_once_and_only_when_it_was_read(large_file, monkeypatch):
    """No window is dropped while another thread has yet to read from it."""
    file = File.open_once(large_file)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda d, start, length, advice: dropped.append(start))
    half = memoryview(bytearray(local.WINDOW // 2))
    for offset in (0, local.WINDOW, 3 * local.WINDOW // 2):
        file.read_once(half, offset)
    assert dropped == [local.WINDOW]
    file.read_once(half, local.WINDOW // 2)
    assert dropped == [local.WINDOW, 0]
    file.close()
    assert dropped == [local.WINDOW, 0]  # nothing else was read


@pytest.mark.usefixtures("positional")
def test_parts_are_gathered(tmp_path):
    """Equal parts from anywhere, in the order in which they are asked for, twice if so asked."""
    data = os.urandom(10_000)
    (tmp_path / "f").write_bytes(data)
    file = File(tmp_path / "f")
    offsets = np.array([9_900, 0, 17, 5_000, 17])
    buffer = memoryview(bytearray(500))
    file.gather(buffer, offsets, range(10_000))
    assert bytes(buffer) == b"".join(data[at : at + 100] for at in offsets)
    with pytest.raises(CheckpointError, match="too early") as caught:
        file.gather(buffer, offsets + 1, range(10_000))
    assert "10001 bytes" in str(caught.value)
    file.close()


@pytest.mark.usefixtures("positional")
def test_a_failing_gather_says_what_to_do(tmp_path):
    """A file that ends too early: where, and how many bytes there are."""
    path = tmp_path / "a"
    path.write_bytes(bytes(6))
    file = File(path)
    with pytest.raises(CheckpointError, match="ends too early"):
        file.gather(memoryview(bytearray(8)), np.array([0, 4]), range(8))
    file.close()


def test_only_regular_files_are_opened(tmp_path):
    """A FIFO or a folder is refused at once, without waiting for a writer."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StorageError, match="not a regular file"):
            File(path)


def gathered(file, offsets, size):
    """Parts of so many bytes, by four threads that take turns in forty calls."""
    calls = np.array_split(offsets, 40)
    found = [memoryview(bytearray(size * len(some))) for some in calls]

    def work(number):
        for turn in range(number, 40, 4):
            file.gather(found[turn], calls[turn], range(file.size()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return b"".join(found)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the page cache cannot be asked")
@pytest.mark.parametrize("share", [1, 2], ids=["all", "half"])
def test_a_cold_file_is_read_ahead_of_its_parts(large_file, monkeypatch, share):
    """Every byte comes from the disk once, in order; the file is cold again when all parts have
    been read, or when it is closed.
    """
    ahead = []
    step_by_step = File.read_into

    def watched(self, buffer, offset):
        ahead.append((offset, len(buffer)))
        step_by_step(self, buffer, offset)

    monkeypatch.setattr(File, "read_into", watched)
    size = 23
    file = File.open_once(large_file)
    assert file.size() % size == 0
    offsets = np.random.default_rng(0).permutation(file.size() // size)[::share] * size
    found = gathered(file, offsets, size)
    ahead.sort()
    assert [offset for offset, _ in ahead] == list(range(0, file.size(), local.STEP))
    assert sum(length for _, length in ahead) == file.size()
    monkeypatch.undo()
    if share == 1:
        assert not file._is_cached()
    file.close()
    file = File(large_file)
    assert not file._is_cached()
    file.close()
    data = np.frombuffer(large_file.read_bytes(), np.uint8).reshape(-1, size)
    assert found == data[offsets // size].tobytes()


def test_what_memory_cannot_hold_is_not_read_ahead(large_file, monkeypatch):
    """A stretch of more than a quarter of the memory is read part by part."""
    monkeypatch.setattr(local, "_memory", lambda: 4 * 2**20)
    monkeypatch.setattr(File, "read_into", None)
    file = File.open_once(large_file)
    buffer = memoryview(bytearray(20))
    file.gather(buffer, np.array([7_000_000, 5]), range(file.size()))
    file.close()
    data = large_file.read_bytes()
    assert bytes(buffer) == data[7_000_000:7_000_010] + data[5:15]


def test_unknown_errors_have_no_remedy(tmp_path):
    """Nothing is invented for an error that is not known."""
    assert storage_error(OSError(errno.ELOOP, "loop"), tmp_path, "read").remedy is None


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_small_files_are_not_read_through_links_out_of_the_folder(tmp_path):
    """Also in a linked folder; links inside, of the Hub's cache, and of weights are followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("key")
    hub = tmp_path / "models--o--n"
    folder = hub / "snapshots" / "1"
    folder.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for path in (hub / "blobs" / "b", folder / "real"):
        path.write_text("own")
    (folder / "of the cache").symlink_to("../../blobs/b")
    (folder / "inside").symlink_to("real")
    (folder / "notes.txt").symlink_to(secret / "key")
    (folder / "beside").symlink_to(secret)
    (folder / "up.txt").symlink_to("../../../secret/key")
    with Reader() as reader:
        found = reader.list(str(folder))
        outside = {name for name, blob in found.items() if blob.outside}
        assert outside == {"notes.txt", "beside/key", "up.txt"}
        for name, blob in found.items():
            if name in outside:
                with pytest.raises(CheckpointError, match="leads out of the folder"):
                    reader.small(blob, 100)
                assert reader.get(blob) == b"key"  # as weights
            else:
                assert reader.small(blob, 100) == b"own"
        sub = reader.list(str(folder.parent / "1"))
        assert sub.keys() == found.keys()
    (hub / "blobs" / "b").unlink()
    (hub / "blobs").rmdir()
    (hub / "blobs").symlink_to(secret)  # a cache that is none
    (folder / "of the cache").unlink()
    (folder / "of the cache").symlink_to("../../blobs/key")
    with Reader() as reader:
        assert reader.list(str(folder))["of the cache"].outside
