"""Content digests: the same for parts in any order, and as the format says."""

import itertools
import random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta.errors import MisfitError
from paramdelta.storage import digest
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests, TreeDigest


def cut(data, size):
    """Pieces of so many bytes."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def plainly(data, block, leaf):
    """The digest as the module's docstring defines it."""
    hashed = xxhash.xxh3_128_digest
    blocks = [hashed(b"".join(map(hashed, cut(part, leaf)))) for part in cut(data, block)]
    return xxhash.xxh3_128_hexdigest(b"".join(blocks) + len(data).to_bytes(8, "little"))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_parts_in_any_order(data):
    """However a file is cut and shuffled, with parts twice or overlapping: the same digest."""
    leaf = data.draw(st.integers(1, 12))
    block = leaf * data.draw(st.integers(1, 5))
    content = data.draw(st.binary(max_size=200))
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content))))})
    parts = list(itertools.pairwise(cuts)) * data.draw(st.integers(1, 2))
    for _ in range(data.draw(st.integers(0, 3))):
        a, b = (data.draw(st.integers(0, len(content))) for _ in range(2))
        parts.append((min(a, b), max(a, b)))
    data.draw(st.randoms(use_true_random=False)).shuffle(parts)
    before = digest.BLOCK, digest.LEAF
    digest.BLOCK, digest.LEAF = block, leaf
    try:
        tree = TreeDigest(len(content))
        for start, stop in parts:
            tree.update(start, memoryview(content)[start:stop])
        assert tree.missing == []
        assert tree.hexdigest() == plainly(content, block, leaf)
    finally:
        digest.BLOCK, digest.LEAF = before


def test_what_is_missing_is_told_and_enough(monkeypatch):
    """After some parts, exactly what is missing completes the digest; what waits counts."""
    monkeypatch.setattr(digest, "BLOCK", 200)
    monkeypatch.setattr(digest, "LEAF", 100)
    content = random.Random(1).randbytes(450)
    tree = TreeDigest(len(content))
    for start, stop in ((20, 60), (150, 300), (310, 330)):
        tree.update(start, memoryview(content)[start:stop])
    missing = tree.missing
    assert missing == [(0, 20), (60, 40), (100, 50), (300, 10), (330, 70), (400, 50)]
    assert tree.unread == sum(length for _, length in missing)
    for offset, length in missing:
        tree.update(offset, memoryview(content)[offset : offset + length])
    assert tree.hexdigest() == plainly(content, 200, 100)


def test_little_waits(monkeypatch):
    """Parts beyond the allowance are dropped, and are missing in the end."""
    monkeypatch.setattr(digest, "BLOCK", 200)
    monkeypatch.setattr(digest, "LEAF", 100)
    monkeypatch.setattr(digest, "WAITING", 30)
    content = bytes(range(100))
    digests = Digests()
    tree = digests.of("a", 100)
    tree.update(50, memoryview(content)[50:75])
    tree.update(80, memoryview(content)[80:100])  # would make 45 bytes wait
    assert tree.missing == [(0, 50), (75, 25)]
    tree.update(0, memoryview(content)[:50])
    tree.update(75, memoryview(content)[75:])
    assert tree.hexdigest() == plainly(content, 200, 100)


def test_a_changed_file_is_noticed(monkeypatch):
    """A block that differs from an earlier run's is refused; known ones are not told again."""
    monkeypatch.setattr(digest, "BLOCK", 10)
    monkeypatch.setattr(digest, "LEAF", 5)
    blob = Blob("/a", 20, "")
    first = Digests()
    first.update(blob, 0, memoryview(b"a" * 20))
    told = first.news()
    assert list(told["/a"]) == [0, 1]
    assert first.news() == {}
    known = {"/a": {number: bytes.fromhex(leaf) for number, leaf in told["/a"].items()}}
    same = Digests(known)
    same.update(blob, 10, memoryview(b"a" * 10))
    assert same.news() == {}
    assert same.adopt("/a", 20).hexdigest() == first.of("/a", 20).hexdigest()
    other = Digests(known)
    other.update(blob, 10, memoryview(b"a" * 9 + b"b"))
    with pytest.raises(MisfitError, match="changed") as caught:
        other.news()
    assert caught.value.where == "/a, from byte 10"
