"""What verify takes a view's elements to be: against the engine's own reading, and complete."""

import inspect
import pkgutil
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paramdelta
from paramdelta.encodings.encoding import Encoding
from paramdelta.formats import delta
from paramdelta.formats.blockscaled import BlockScaled
from paramdelta.formats.dora import Dora
from paramdelta.formats.gguf.types import TYPES
from paramdelta.formats.gguf.views import MinusOne, Quantized
from paramdelta.formats.lowrank import LowRank
from paramdelta.formats.permuted import Permuted
from paramdelta.formats.scaled import Scaled
from paramdelta.formats.view import ABSENT, Part, Rows, Tensor, Transposed, View, Wide, Zeros
from paramdelta.jobs.verify import comparison, reference
from paramdelta.jobs.verify.stored import Stored
from paramdelta.schemes.scheme import Scheme
from paramdelta.storage.reader import Reader
from tests import ggufs, opening
from tests.checkpoints import encode


@pytest.fixture
def stored():
    """Stored tensors, read through a reader."""
    with Reader() as reader:
        yield Stored(reader)


def tensors(path, **arrays):
    """Stored tensors of a file, by name."""
    path.write_bytes(encode(arrays))
    return {tensor.name: tensor for tensor in opening.header(path)}


def product(path, rows=7, depth=5, columns=9, factor=16 / 3):
    """A low-rank Δ of random float32 factors in a file."""
    chance = np.random.default_rng(0)
    up, down = chance.normal(size=(rows, depth)), chance.normal(size=(depth, columns))
    held = tensors(path, b=up.astype(np.float32), a=down.astype(np.float32))
    return LowRank("w", "F64", (rows, columns), held["b"], held["a"], factor)


def dora(path, columns=False):
    """A float32 weight with a low-rank Δ, its lines of trained lengths."""
    chance = np.random.default_rng(5)
    held = tensors(
        path,
        w=chance.normal(size=(7, 9)).astype(np.float32),
        b=chance.normal(size=(7, 2)).astype(np.float32),
        a=chance.normal(size=(2, 9)).astype(np.float32),
        m=chance.uniform(1, 2, 9 if columns else 7).astype(np.float32),
    )
    change = LowRank("w", "F64", (7, 9), held["b"], held["a"], 0.7)
    return Dora("w", "F64", (7, 9), held["w"], change, held["m"], columns)


def scaled(path, rows=7, columns=9, block=(3, 4)):
    """A matrix of FP8 codes with scales."""
    chance = np.random.default_rng(1)
    grid = -(-rows // block[0]), -(-columns // block[1])
    held = tensors(
        path,
        w=chance.integers(0, 0x7F, (rows, columns)).astype(np.uint8),
        s=chance.uniform(1, 2, grid).astype(np.float32),
    )
    return BlockScaled("w", "F64", (rows, columns), held["w"], held["s"], block)


def stored_delta(path, rows=30, columns=7000):
    """A stored Δ of several blocks, some of which need two halves."""
    chance = np.random.default_rng(2)
    post, base = chance.normal(size=(2, rows * columns))
    post[70_000:70_010] = 1e30
    blocks = [
        delta.encode(post[at : at + delta.BLOCK], base[at : at + delta.BLOCK])[0]
        for at in range(0, post.size, delta.BLOCK)
    ]
    ends = np.cumsum([8 * len(blocks), *map(len, blocks)])[1:].astype("<u8")
    stream = np.frombuffer(ends.tobytes() + b"".join(blocks), np.uint8)
    (held,) = tensors(path, w=stream).values()
    return delta.Difference("w", "F64", (rows, columns), held, 0, 2)


def quantized(path, rows=7, columns=64):
    """A matrix of ggml's blocks."""
    held = ggufs.blocks(ggufs.Q5_1, (rows, columns))
    (stored,) = tensors(path, w=np.frombuffer(held.data, np.uint8)).values()
    return Quantized("w", "F32", (rows, columns), stored, TYPES[ggufs.Q5_1])


def minus_one(path):
    """A matrix that is stored plus one."""
    values = np.random.default_rng(5).normal(1, 0.5, (7, 9)).astype(np.float32)
    return MinusOne("w", "F32", (7, 9), tensors(path, w=values)["w"])


LEAVES = {
    "stored": lambda path: tensors(
        path, w=np.random.default_rng(3).normal(size=(7, 9)).astype(np.float32)
    )["w"],
    "product": product,
    "dora": dora,
    "dora by columns": lambda path: dora(path, columns=True),
    "times": lambda path: Scaled("w", "F64", (7, 9), product(path), 0.3),
    "scaled": scaled,
    "permuted": lambda path: Permuted(
        "w",
        "F32",
        (7, 9),
        tensors(path, w=np.random.default_rng(4).normal(size=(9, 7)).astype(np.float32))["w"],
        (1, 0),
    ),
    "quantized": quantized,
    "minus one": minus_one,
    "zeros": lambda path: Zeros("w", "F32", (7, 9)),
}


def around(view):
    """The view, and whatever can be laid around it."""
    rows, columns = view.shape
    order = np.array([3, ABSENT, 0, 1, 2, 6, ABSENT, 0], np.int32).tobytes()
    turned = Transposed("w", view.dtype, (columns, rows), view)
    yield view
    yield turned
    yield Part("w", view.dtype, (2, columns), view, columns + 4)
    yield Permuted("w", view.dtype, (columns, rows), view, (1, 0))
    cut = Part("w", view.dtype, (2, 3, columns), view, 0)
    yield Permuted("w", view.dtype, (columns, 2, 3), cut, (2, 0, 1))
    yield Wide("w", "F64", view.shape, view)
    yield Rows("w", view.dtype, (8, columns), (view,), order)
    yield Rows("w", view.dtype, (4, rows), (turned,), order[:16])
    yield Rows.joined("w", (2 * rows, columns), [view, view])
    yield Rows.joined("w", (2, rows, columns), [Wide("w", "F64", view.shape, view), view])
    yield Transposed(
        "w", view.dtype, (columns, 8), Rows("w", view.dtype, (8, columns), (view,), order)
    )


@pytest.mark.parametrize("kind", LEAVES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_run_is_what_the_engine_reads(tmp_path_factory, kind, data):
    """Any run of any composition, bit for bit; and the same element by element, from any places."""
    view = data.draw(
        st.sampled_from(list(around(LEAVES[kind](tmp_path_factory.mktemp("v") / "f"))))
    )
    start = data.draw(st.integers(0, view.elements))
    stop = data.draw(st.integers(start, view.elements))
    with Reader() as reader:
        whole = view.array(0, view.elements, opening.fetch)
        held = Stored(reader)
        found = reference.value(view, start, stop, held)
        assert found.dtype == whole.dtype
        assert found.tobytes() == whole[start:stop].tobytes()
        length = data.draw(st.integers(1, max(1, view.elements // 2)))
        starts = data.draw(st.lists(st.integers(0, view.elements - length), max_size=12))
        runs = reference.runs(view, np.array(starts, np.int64), length, held)
        assert runs.shape == (len(starts), length)
        for run, begin in zip(runs, starts, strict=True):
            assert run.tobytes() == whole[begin : begin + length].tobytes()


@given(st.permutations(range(4)), st.integers(0, 119), st.integers(0, 119))
def test_axes_in_any_order(tmp_path_factory, axes, start, stop):
    """Four axes in any order, as numpy reorders them."""
    shape = (2, 3, 4, 5)
    values = np.arange(120, dtype=np.float32).reshape(shape)
    (held,) = tensors(tmp_path_factory.mktemp("p") / "f", w=values).values()
    expected = values.transpose(axes)
    view = Permuted("w", "F32", expected.shape, held, tuple(axes))
    with Reader() as reader:
        found = reference.value(view, min(start, stop), max(start, stop), Stored(reader))
    assert np.array_equal(found, expected.reshape(-1)[min(start, stop) : max(start, stop)])


@pytest.mark.parametrize("half", [0, 1])
def test_stored_deltas(tmp_path, stored, half):
    """Both halves of a stored Δ, by the description of its format, across blocks."""
    whole = stored_delta(tmp_path / "f")
    view = delta.Difference("w", "F64", whole.shape, whole.stream, half, 2)
    expected = view.array(0, view.elements, opening.fetch)
    assert expected[70_005] != 0
    for start, stop in ((0, view.elements), (65_530, 65_540), (140_000, 140_000)):
        assert np.array_equal(reference.value(view, start, stop, stored), expected[start:stop])
    starts = np.array([0, 65_530, 131_070, 65_530])
    runs = reference.runs(view, starts, 10, stored)
    assert np.array_equal(runs, [expected[start : start + 10] for start in starts])


def test_many_short_runs_are_read_together(tmp_path):
    """Runs that touch are joined: what lies side by side is one request."""
    (view,) = tensors(tmp_path / "f", w=np.arange(10_000, dtype=np.float64)).values()
    asked = []

    class Counting(Reader):
        def read_many(self, blob, offsets, into, among):
            asked.append((len(offsets), len(into)))
            super().read_many(blob, offsets, into, among)

    with Counting() as reader:
        held = Stored(reader)
        places = np.array([5, 6, 7, 8, 9, 9, 5, 100, 101, 102, 103, 104])
        assert np.array_equal(held.runs(view, places, 1)[:, 0], places)
        odd = np.concatenate([np.arange(40), np.arange(200, 263), np.arange(9_000, 9_047)])
        assert np.array_equal(held.runs(view, odd, 1)[:, 0], odd)
        assert held.runs(view, np.array([], np.int64), 3).shape == (0, 3)
    assert asked[0] == (2, 80)
    assert sum(size for _, size in asked[1:]) < 4 * 8 * len(odd)


# -- exact values ----------------------------------------------------------------------------------


def test_products_of_matrices_are_exact_within_a_bound(tmp_path, stored):
    """Summed in fractions: the engine's number is within the bound that is named, through every
    view that can be laid around it.
    """
    leaf = product(tmp_path / "f")
    for view in (*around(leaf), leaf.turned()):
        read = view.float64(0, view.elements, opening.fetch)
        for element, value in enumerate(map(float, read)):
            exact, slack = reference.exact(view, element, value, stored)
            assert abs(exact - Fraction(value)) <= slack < Fraction(1, 2**45)
            assert (slack == 0) == (value == 0)


@pytest.mark.parametrize("kind", ["stored", "scaled", "permuted", "zeros"])
def test_everything_else_is_exact(tmp_path, stored, kind):
    """Other views are what float64 says."""
    for view in around(LEAVES[kind](tmp_path / "f")):
        read = view.float64(0, view.elements, opening.fetch)
        for element, value in enumerate(map(float, read)):
            assert reference.exact(view, element, value, stored) == (Fraction(value), 0)


def test_a_product_that_is_not_finite_is_left_to_float64(tmp_path, stored):
    """Infinite factors have no fraction: the value stands as it is."""
    held = tensors(tmp_path / "f", b=np.full((1, 1), np.inf), a=np.ones((1, 2)))
    view = LowRank("w", "F64", (1, 2), held["b"], held["a"], 1.0)
    assert np.array_equal(reference.value(view, 0, 2, stored), [np.inf, np.inf])
    assert reference.exact(view, 0, 1.0, stored) == (1, 0)


# -- nothing is left out ---------------------------------------------------------------------------


def concrete(kind):
    """All classes of a kind in the package that are not abstract."""
    for module in pkgutil.walk_packages(paramdelta.__path__, "paramdelta."):
        if "demo" not in module.name:
            import_module(module.name)
    found, queue = [], [kind]
    while queue:
        queue += (one := queue.pop()).__subclasses__()
        if one.__module__.startswith("paramdelta.") and not inspect.isabstract(one):
            found.append(one)
    return found


def without_reference(views):
    """The views that one of the three functions does not know by themselves."""
    functions = (reference.value, reference.runs, reference.exact)
    return [view for view in views for function in functions if view not in function.registry]


def test_every_view_has_a_reference():
    """Value, runs and exact value; a kind that inherits from another needs its own."""
    assert len(concrete(View)) >= 9
    assert without_reference(concrete(View)) == []


def test_every_encoding_has_a_comparison():
    """A way to store cannot be added without a way to check it."""
    assert len(concrete(Encoding)) >= 2
    assert all(encoding in comparison.compare.registry for encoding in concrete(Encoding))


def test_every_scheme_has_an_exact_reference():
    """In float64 and in fractions."""
    assert len(concrete(Scheme)) >= 2
    for scheme in concrete(Scheme):
        assert scheme.reference is not Scheme.reference
        assert scheme.exact is not Scheme.exact


def test_a_new_view_without_a_reference_is_noticed(tmp_path, stored):
    """The check above finds it, and so does verify itself where nothing is inherited."""

    class Doubled(Tensor):
        """Twice what is stored."""

    class Strange(Zeros):
        """Nothing that verify knows."""

    class Other(View):
        """Nothing that anything knows."""

    Other.__abstractmethods__ = frozenset()
    assert {Doubled, Strange} <= set(without_reference([Doubled, Strange]))
    with pytest.raises(NotImplementedError, match="Other"):
        reference.value(Other("w", "F32", (1,)), 0, 1, stored)


def test_the_second_path_shares_nothing_with_the_first(tmp_path, stored, monkeypatch):
    """With `View.read` and all compiled arithmetic broken the values are the same."""
    views = [v for name, leaf in LEAVES.items() for v in around(leaf(tmp_path / name))]
    views.append(stored_delta(tmp_path / "delta", 3, 7000))
    expected = [view.array(0, view.elements, opening.fetch) for view in views]

    def broken(*arguments, **options):
        raise AssertionError("the engine's way was called")

    for kind in (View, *concrete(View)):
        for name in ("read", "gather", "array", "float64", "read_packed"):
            monkeypatch.setattr(kind, name, broken)
    for name in ("kernels", "fp8", "lowrank", "masks", "planes", "sketch"):
        module = import_module(f"paramdelta.arithmetic.{name}")
        for function in [n for n, value in vars(module).items() if callable(value)]:
            monkeypatch.setattr(module, function, broken)
    for view, values in zip(views, expected, strict=True):
        assert reference.value(view, 0, view.elements, stored).tobytes() == values.tobytes()
