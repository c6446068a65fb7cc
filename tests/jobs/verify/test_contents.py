"""Content digests of files, by a job that reads what no digest has seen."""

import pickle

import numpy as np
import pytest

from paramdelta.engine import threads
from paramdelta.jobs.verify.contents import ContentJob
from paramdelta.storage.digest import BLOCK, Digests, TreeDigest
from paramdelta.storage.local import local_blob
from paramdelta.storage.reader import Reader


def digest_of(data):
    """The digest of bytes as a whole."""
    digest = TreeDigest(len(data))
    digest.update(0, memoryview(data))
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 5])
def test_a_file_has_the_digest_of_its_bytes(tmp_path, size):
    """Whatever was seen before: nothing, some blocks, parts of blocks."""
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    path = tmp_path / "f"
    path.write_bytes(data)
    blob = local_blob(path)
    for seen in ([], [(0, size)], [(3, size // 2), (size // 3, size)]):
        digests = Digests()
        for begin, end in seen:
            digests.update(blob, begin, memoryview(data)[begin:end])
        job = ContentJob([blob, blob], digests)
        if seen == [(0, size)]:
            assert not job.tasks()
        with Reader() as reader:
            threads.run(job, reader, workers=2)
        assert digests.of(blob.url, size).hexdigest() == digest_of(data)
        assert sum(map(job.cost, job.tasks())) <= size


def test_a_copy_works_without_the_digests(tmp_path):
    """What goes to a worker is small; the driver keeps the digests."""
    (tmp_path / "f").write_bytes(bytes(3 * BLOCK))
    blob = local_blob(tmp_path / "f")
    digests = Digests()
    job = ContentJob([blob], digests)
    copy = pickle.loads(pickle.dumps(job))
    assert copy.digests is None
    with Reader() as reader:
        work = copy.worker(reader, [])
        for task in copy.tasks():
            job.collect(task, work(task))
    assert digests.of(blob.url, blob.size).hexdigest() == digest_of(bytes(3 * BLOCK))
