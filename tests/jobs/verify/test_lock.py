"""Locks from strangers: whatever they hold, the answer is an error with a place, and soon."""

import copy
import json
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from paramdelta import CheckpointError, MisfitError, ParamDeltaError, mix, verify
from paramdelta.jobs.verify.lock import read_lock
from paramdelta.jobs.verify.record import Record
from tests import opening

LOCK = "paramdelta.lock.json"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SCALARS |= st.sampled_from(
    ["", "..", "../x", "/etc/passwd", "a/b@c", "\ud800", "\0", "x" * 5000, "~", "file://x", "1e999"]
)
SCALARS |= st.sampled_from([10**400, -1, 2**64, float("nan"), float("inf"), 1e308])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An output and the text of its lock."""
    from paramdelta import Delta, Recipe
    from paramdelta.schemes.ties import Ties
    from tests.checkpoints import llama, moved, save

    folder = tmp_path_factory.mktemp("locked")
    for seed, role in enumerate(("base", "post", "new")):
        save(folder / role, moved(llama(), seed), config_json={"model_type": "llama"})
    delta = Delta(folder / "post", folder / "base", "linear-only", dare={"drop": 0.5})
    recipe = Recipe(str(folder / "new"), (delta,), scheme=Ties(0.5), allow=("only-in-post",))
    out = mix(recipe, folder / "out").folder
    return out, json.loads((out / LOCK).read_text())


def places(value, path=()):
    """The paths of all values in a JSON value."""
    yield path
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else listed:
        yield from places(inner, (*path, key))


def changed(lock, path, value):
    """A copy of a lock with another value at a path; the path ... removes it."""
    if not path:
        return value
    lock = copy.deepcopy(lock)
    inner = lock
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return lock


def refused(out, text):
    """Whether verify ends with an error of its own, and quickly."""
    (out / LOCK).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "ignore"))
    began = time.process_time()
    message = None
    try:
        verify(out, workers=1)
    except ParamDeltaError as error:
        message = str(error)
    assert time.process_time() - began < 5
    assert message is None or len(message.encode()) < 4000
    return message is not None


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_anywhere(written, data):
    """One value of a lock replaced by anything, or removed."""
    out, lock = written
    path = data.draw(st.sampled_from(list(places(lock))))
    value = data.draw(VALUES | st.just(...))
    if not path and value is ...:
        value = None
    other = changed(lock, path, value)
    refused(out, json.dumps(other, ensure_ascii=data.draw(st.booleans())))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"lock_version": 2, "recipe": ' + b'{"a":' * 50_000)
@example(b'{"lock_version": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe{\x00}\x00")
def test_any_bytes(written, data):
    """No lock at all."""
    out, _ = written
    assert refused(out, data)


MALFORMED = {
    "another version": (("lock_version",), 99),
    "no version": (("lock_version",), ...),
    "another algorithm": (("digest_algorithm",), "md5"),
    "no recipe": (("recipe",), None),
    "a recipe of nothing": (("recipe",), {}),
    "an unknown key": (("recipe", "surprise"), 1),
    "half of a surrogate pair": (("recipe", "new_base"), "\ud800"),
    "no deltas": (("recipe", "deltas"), []),
    "a scale that is a text": (("recipe", "deltas", 0, "scale"), "much"),
    "a scale that is infinite": (("recipe", "deltas", 0, "scale"), float("inf")),
    "a recipe that is too deep": (
        ("recipe", "deltas", 0, "scale"),
        [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]],
    ),
    "a seed that is a text": (("recipe", "deltas", 0, "dare", "seed"), "x"),
    "a density of nothing": (("recipe", "ties", "density"), 0),
    "a digest that is none": (("plan_sha256",), "x"),
    "a digest that is a number": (("plan_sha256",), 5),
    "sources that are an object": (("sources",), {}),
    "a source that is a text": (("sources", 0), "x"),
    "files that are missing": (("sources", 0, "files"), ...),
    "a file that is a list": (("sources", 0, "files", 0), []),
    "a size that is negative": (("sources", 0, "files", 0, "size"), -1),
    "a size that is a float": (("sources", 0, "files", 0, "size"), 1.5),
    "a name that leaves": (("sources", 0, "files", 0, "name"), "../x"),
    "no outputs": (("outputs",), {}),
    "outputs that are a list": (("outputs",), []),
    "an output that leaves": (("outputs", "../x"), {"size": 0, "digest": None}),
    "an output without a size": (("outputs", "config.json"), {}),
    "an output with a wrong digest": (("outputs", "config.json", "digest"), "0" * 31),
    "versions that are a text": (("versions",), "x"),
}


@pytest.mark.parametrize("damage", MALFORMED)
def test_malformed_locks_are_checkpoint_errors(written, damage):
    """Each names the lock."""
    out, lock = written
    (out / LOCK).write_text(json.dumps(changed(lock, *MALFORMED[damage])))
    with pytest.raises(CheckpointError, match=r"lock|recipe|malformed") as error:
        verify(out)
    assert LOCK in str(error.value)


@pytest.mark.parametrize("address", [5, "x" * 100_000, "/", "/dev/zero", "\x1b[2J", "a\0b"])
def test_addresses_that_lead_nowhere(written, address):
    """A number, a path without end, a root, a device, control characters."""
    out, lock = written
    assert refused(out, json.dumps(changed(lock, ("recipe", "new_base"), address)))


def test_a_lock_of_nothing_but_zeros_is_no_lock(written):
    """A file that a crash left."""
    out, lock = written
    (out / LOCK).write_bytes(bytes(4096))
    with pytest.raises(CheckpointError):
        verify(out)
    (out / LOCK).write_text(json.dumps(lock))
    assert verify(out).tensors == 21


def test_another_plan_and_another_version(written):
    """A plan digest that is not this plan's; the version that wrote the lock is named."""
    out, lock = written
    lock = changed(lock, ("plan_sha256",), "0" * 64)
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(MisfitError, match="another plan") as error:
        verify(out)
    assert "mix again" in error.value.remedy
    lock = changed(lock, ("versions", "paramdelta"), "0.0.1")
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(MisfitError, match="another plan") as error:
        verify(out)
    assert "0.0.1" in error.value.remedy


def test_what_a_good_lock_holds(written):
    """Every source with its files, every output with its digest."""
    out, lock = written
    (out / LOCK).write_text(json.dumps(lock))
    found = read_lock(opening.files(out))
    assert found.recipe.to_dict() == lock["recipe"]
    assert [len(source) for source in found.sources] == [1, 1, 1]
    assert set(found.outputs) == {"config.json", "model.safetensors"}
    assert all(file.digest for file in found.outputs.values())


def test_records_refuse_what_is_not_what_they_are_asked_for():
    """One wrong value for each question."""
    record = Record(
        {"a": 1, "b": "x", "c": [1, "x"], "d": {"e": 2}, "f": True}, "file", "the thing"
    )
    for ask in (
        lambda: record.text("a"),
        lambda: record.integer("b"),
        lambda: record.integer("f"),
        lambda: record.number("f"),
        lambda: record.number("nothing"),
        lambda: record.texts("c"),
        lambda: record.integers("c"),
        lambda: record.record("c"),
        lambda: record.records("d"),
        lambda: record.files("d"),
        lambda: record.hexadecimal("b", 1),
    ):
        with pytest.raises(CheckpointError, match="the thing is malformed") as error:
            ask()
        assert error.value.where.startswith("file, ")
