"""A zip archive's directory: read as zipfile reads it, and not believed where two could differ."""

import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError
from paramdelta.formats import archive


def zipped(entries: dict[str, bytes]) -> bytes:
    """A plain archive, by Python's own writer."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def entries_of(data: bytes) -> dict[str, archive.Entry]:
    """All steps, as the reader of torch's files does them."""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(data)
        return data[offset : offset + length]

    start, stop = archive.find_directory(read, len(data), "file")
    listed = list(archive.listed(data[start:stop], "file"))
    return archive.locate(read, listed, start, "file")


NAMES = st.text("abc/", min_size=1, max_size=6).filter(
    lambda name: not name.startswith("/") and ".." not in name
)


@given(st.dictionaries(NAMES, st.binary(max_size=5000), max_size=8))
def test_entries_are_where_zipfile_wrote_them(entries):
    """Names and bytes of each entry, in archives with many entries in one block and in several."""
    data = zipped(entries)
    found = entries_of(data)
    assert {n: data[e.begin : e.begin + e.size] for n, e in found.items()} == entries


def test_an_entry_inside_another_is_refused():
    """The bytes of one entry are the header and the bytes of another: two archives in one."""
    inner = zipped({"b": b"x" * 20})
    header = inner[: inner.rindex(b"PK\1\2")]
    data = bytearray(zipped({"a": header, "b": b"x" * 20}))
    place = data.index(header, 1)
    assert place < data.rindex(b"PK\3\4")
    struct.pack_into("<L", data, data.rindex(b"PK\1\2") + 42, place)  # where b is said to begin
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.namelist() == ["a", "b"]
    with pytest.raises(CheckpointError, match="overlaps"):
        entries_of(bytes(data))


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_a_directory_that_ends_early_is_refused(cut):
    """Inside an entry's fields, its name or what comes after."""
    data = zipped({"abcdefgh": b""})
    start = data.rindex(b"PK\1\2")
    with pytest.raises(CheckpointError):
        list(archive.listed(data[start : start + cut], "file"))


def test_wide_numbers_are_read_from_their_field():
    """A zip64 field behind another one; one that is missing or cut is refused."""
    fields = struct.pack("<2H4x", 7, 4) + struct.pack("<2HQ", 1, 8, 5_000_000_000)
    for extra, begin in ((fields, 5_000_000_000), (fields[:-1], None), (b"", None)):
        numbers = (45, 45, 0, 0, 0, 0, 0, 3, 3, 1, len(extra), 0, 0, 0, 0, 2**32 - 1)
        record = struct.pack("<4s6H3L5H2L", b"PK\1\2", *numbers)
        if begin is None:
            with pytest.raises(CheckpointError, match="zip64"):
                list(archive.listed(record + b"a" + extra, "file"))
        else:
            (entry,) = archive.listed(record + b"a" + extra, "file")
            assert entry == archive.Listed(b"a", begin, 3, 3, 0, 0)
