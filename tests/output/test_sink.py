"""A new destination is one small class, which the mix drives like a folder."""

import hashlib
import threading

import numpy as np

import paramdelta
from paramdelta.api import _budget
from paramdelta.jobs.outputs import write_outputs
from paramdelta.output.layout import make_layout
from paramdelta.output.memory import MemorySink
from paramdelta.output.sink import Durable
from paramdelta.planning.sweep import sweep_of_one
from tests import opening


class Hashes:
    """Keeps the SHA-256 of every tensor, and nothing else."""

    def __init__(self):
        self.parts, self.digests, self.files, self.calls = {}, {}, {}, []
        self.lock = threading.Lock()

    def begin(self, layout):
        """Nothing is there."""
        self.layout = layout
        self.calls.append("begin")
        return Durable()

    def writer(self):
        """Itself."""
        return self

    def write(self, stream, offset, data):
        """Keep a part until the tensor is whole."""
        with self.lock:
            self.parts.setdefault(stream, {})[offset] = bytes(data)
        return len(data)

    def commit(self, ranges, leaves=None, not_finite=None):
        """Count."""
        self.calls.append("commit")

    def put(self, name, data):
        """Keep a small file."""
        self.files[name] = data

    def finish(self):
        """Hash."""
        for number, parts in self.parts.items():
            data = b"".join(part for _, part in sorted(parts.items()))
            name = self.layout.streams[number].name
            self.digests[name] = hashlib.sha256(data).hexdigest()
        self.calls.append("finish")

    def abort(self):
        """Count."""
        self.calls.append("abort")


def written_to(sink, recipe):
    """Mix into a sink."""
    made = sweep_of_one(paramdelta.plan(recipe))
    streams = [stored.stream for stored in made.stored]
    layout = make_layout(streams, made.plans[0].parameters, 5_000_000)
    small = lambda number, digests: {"notes.txt": b"hello"}  # noqa: E731
    return write_outputs(made, layout, [sink], _budget(made, "256MB", 2), small)


def expected(recipe, folder):
    """The bytes of every tensor of the mix in a folder."""
    out = paramdelta.mix(recipe, folder).folder
    tensors = opening.checkpoint(out).tensors.values()
    return {t.name: t.array(0, t.elements, opening.fetch).tobytes() for t in tensors}


def test_a_sink_of_its_own(lineage, tmp_path):
    """Begin, commit, finish in order; every tensor has the bytes of the folder's."""
    sink = Hashes()
    written_to(sink, lineage.recipe())
    wanted = expected(lineage.recipe(), tmp_path / "out")
    assert sink.digests == {n: hashlib.sha256(data).hexdigest() for n, data in wanted.items()}
    assert sink.files == {"notes.txt": b"hello"}
    assert sink.calls[0] == "begin"
    assert sink.calls[-2:] == ["finish", "abort"]
    assert "commit" in sink.calls


def test_the_sink_in_memory(lineage, tmp_path):
    """Arrays of the same bytes; each tensor is announced once, when it is complete."""
    announced = []
    sink = MemorySink(lambda name, array: announced.append((name, array.tobytes())))
    written_to(sink, lineage.recipe(0.5))
    wanted = expected(lineage.recipe(0.5), tmp_path / "out")
    assert dict(announced) == wanted
    assert len(announced) == len(wanted)
    assert {name: array.tobytes() for name, array in sink.tensors.items()} == wanted
    assert sink.finished
    assert all(isinstance(array, np.ndarray) for array in sink.tensors.values())
