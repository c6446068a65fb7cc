"""Flags: each one on a constructed case, and none of them on a plain fine-tune."""

import numpy as np
import pytest

from paramdelta import Delta, Recipe, analyze
from paramdelta.analysis.measures import DeltaMeasures, Group, PairMeasures
from paramdelta.analysis.verdict import codes, without_counting_twice
from tests.checkpoints import bf16, llama, save
from tests.conftest import CONFIG

NAMES = [f"model.layers.{n}.mlp.{p}_proj.weight" for n in (0, 1) for p in ("gate", "up", "down")]
EMBEDDING = "model.embed_tokens.weight"


def normal(seed, width):
    """Normal numbers for every tensor."""
    chance = np.random.default_rng(seed)
    names = [EMBEDDING, *NAMES]
    return {n: width * chance.normal(size=(64, 48)) for n in names}


def plus(*parts):
    """The sum of tensors."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


BASE, DELTA, SHIFT = normal(1, 0.02), normal(2, 0.002), normal(3, 0.002)


def found(tmp_path, base=BASE, posts=None, new=None, dtype=np.float64, **options):
    """The flags of an analysis, by code."""
    posts = [plus(BASE, DELTA)] if posts is None else posts
    new = plus(BASE, SHIFT) if new is None else new
    folders = [
        str(save(tmp_path / str(n), {k: dtype(v) for k, v in each.items()}, config_json=CONFIG))
        for n, each in enumerate((base, new, *posts))
    ]
    recipe = Recipe(folders[1], [Delta(post, folders[0]) for post in folders[2:]])
    result = analyze(recipe, **options)
    verdict = result.verdict
    assert len(verdict.paragraphs) == len(posts)
    flags = {flag.code: flag for flag in verdict.flags}
    assert set(flags) <= set(codes())
    assert all(flag.source and flag.remedy for flag in verdict.flags)
    return flags, verdict


def test_a_fine_tune_has_no_flag(tmp_path):
    """A lineage with a small orthogonal shift is fine, and is described."""
    flags, verdict = found(tmp_path, spectra=True)
    assert not flags
    assert "nearly orthogonal" in verdict.paragraphs[0]
    assert "% of base's norm" in verdict.paragraphs[0]


def test_no_common_origin(tmp_path):
    """Two models of one shape that were made apart are called so, and nothing else is said."""
    flags, verdict = found(tmp_path, new=normal(9, 0.02))
    assert set(flags) == {"not-one-lineage"}
    assert "not one lineage" in verdict.paragraphs[0]


def test_far(tmp_path):
    """A base that moved four times as far as post."""
    flags, _ = found(tmp_path, new=plus(BASE, normal(4, 0.008)))
    assert set(flags) == {"shift-far"}
    assert flags["shift-far"].value == pytest.approx(4, abs=0.1)


def test_opposed_in_one_layer(tmp_path):
    """The layer is named."""
    back = {n: (-0.5 if ".1." in n else 0) * v for n, v in DELTA.items()}
    flags, _ = found(tmp_path, new=plus(BASE, SHIFT, back))
    assert set(flags) == {"shift-opposed"}
    assert flags["shift-opposed"].where == ("1",)


def test_along(tmp_path):
    """A new base that has most of Δ already."""
    flags, _ = found(tmp_path, new=plus(BASE, DELTA))
    assert set(flags) == {"delta-along-shift"}


def test_below_the_resolution(tmp_path):
    """In BF16 a Δ of a thousandth is lost."""
    tiny = {n: 0.001 * np.sign(v) * np.abs(BASE[n]) for n, v in DELTA.items()}
    folders = [
        str(save(tmp_path / role, tensors, config_json=CONFIG))
        for role, tensors in (
            ("base", BASE),
            ("post", plus(BASE, tiny)),
            ("new", {n: bf16(v) for n, v in plus(BASE, SHIFT).items()}),
        )
    ]
    result = analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),)))
    codes_found = {flag.code for flag in result.verdict.flags}
    assert "delta-below-resolution" in codes_found
    assert result.all.of(0).rounded_away > 0.5


def test_outliers(tmp_path):
    """A row of the embedding that changed much more than the others."""
    post = plus(BASE, DELTA)
    post[EMBEDDING][5] += 0.1
    flags, _ = found(tmp_path, posts=[post])
    assert set(flags) == {"embedding-outliers"}
    assert flags["embedding-outliers"].where == ("row 5",)


def test_low_rank(tmp_path):
    """A Δ of rank 2 in every matrix, seen only by spectra."""
    chance = np.random.default_rng(5)
    thin = {n: 0.002 * chance.normal(size=(64, 2)) @ chance.normal(size=(2, 48)) for n in BASE}
    post = plus(BASE, thin)
    assert set(found(tmp_path / "with", posts=[post], spectra=True)[0]) == {"low-rank"}
    assert not found(tmp_path / "without", posts=[post])[0]


def test_two_deltas_with_a_common_part(tmp_path):
    """The common part is named, with weights that count it once."""
    posts = [plus(BASE, DELTA, normal(seed, 0.002)) for seed in (6, 7)]
    flags, _ = found(tmp_path, posts=posts)
    assert set(flags) == {"common-part"}
    assert flags["common-part"].value == pytest.approx(0.5, abs=0.02)
    assert "0.67 for Δ 1" in flags["common-part"].remedy


def test_a_zero_delta(tmp_path):
    """Post is base."""
    flags, _ = found(tmp_path, posts=[BASE])
    assert set(flags) == {"zero-delta"}


def test_numbers_that_are_not_finite(tmp_path):
    """The tensor is named."""
    post = plus(BASE, DELTA)
    post[NAMES[0]][0, 0] = np.inf
    flags, _ = found(tmp_path, posts=[post])
    assert set(flags) == {"not-finite"}
    assert flags["not-finite"].where == (NAMES[0],)


def test_weights_are_the_nearest():
    """No other weights of two Δs come nearer to their common part taken once."""
    chance = np.random.default_rng(8)
    basis = np.linalg.qr(chance.normal(size=(50, 3)))[0]
    common, one, two = 2 * basis[:, 0], basis[:, 1], 3 * basis[:, 2]
    deltas = [common + one, common + two]
    norms = [float(np.linalg.norm(d)) for d in deltas]
    measures = tuple(
        DeltaMeasures(n, 1, 50, norm, 1.0, norm, 1.0, 0.0, 0.0, 3.0, (), None)
        for n, norm in enumerate(norms)
    )
    cosine = float(deltas[0] @ deltas[1]) / (norms[0] * norms[1])
    group = Group(measures, (PairMeasures(0, 1, cosine, 0.5),), 0)
    found = [weight for _, weight in without_counting_twice(group)]
    wanted = common + one + two
    best = np.linalg.lstsq(np.stack(deltas, axis=1), wanted, rcond=None)[0]
    assert found == pytest.approx(best.tolist())


def test_the_verdict_knows_an_unknown_base(tmp_path):
    """Without a base there is no word on the shift but that."""
    from paramdelta import extract

    base = save(tmp_path / "base", llama(), config_json=CONFIG)
    post = save(tmp_path / "post", llama(1), config_json=CONFIG)
    extract((str(post), str(base)), tmp_path / "delta")
    result = analyze(Recipe(str(base), (Delta(delta=str(tmp_path / "delta")),)))
    assert "Its base is not known" in result.verdict.paragraphs[0]
