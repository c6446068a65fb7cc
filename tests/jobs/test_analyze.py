"""The analysis of whole checkpoints against numpy in float64, whatever they are stored as."""

import json

import numpy as np
import pytest

from paramdelta import Delta, MisfitError, Recipe, analyze, extract, mix, plan, tensors
from paramdelta.documents import to_json
from paramdelta.engine import threads
from paramdelta.jobs import analyze as job
from paramdelta.jobs.analyze import AnalyzeJob
from paramdelta.jobs.tally import BOUND
from paramdelta.planning.planner import make_plan
from paramdelta.storage.reader import Reader
from tests.checkpoints import bf16, encode, fp8, llama, moved, save
from tests.engine import processes
from tests.footprint import sparse
from tests.memory import linux, printed
from tests.numbers import fp8_values

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}
Q = "model.layers.0.self_attn.q_proj.weight"
O = "model.layers.1.self_attn.o_proj.weight"  # noqa: E741 - the usual name of this weight
EMBEDDING = "model.embed_tokens.weight"


def wide(values):
    """BF16 as float64."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def cosine(one, two):
    """Of two arrays."""
    return float((one * two).sum() / np.sqrt((one * one).sum() * (two * two).sum()))


def checked(found, base, post, new, n=0):
    """Compare every measure of one Δ with numpy."""
    delta, shift = post - base, new - base
    m = found.of(n)
    size = np.abs(delta).reshape(-1)
    assert m.elements == delta.size
    assert m.norm == pytest.approx(np.sqrt((delta**2).sum()), rel=1e-12)
    assert m.base_norm == pytest.approx(np.sqrt((base**2).sum()), rel=1e-12)
    assert m.relative == pytest.approx(m.norm / m.base_norm, rel=1e-12)
    assert m.largest == size.max()
    assert m.unchanged == pytest.approx((delta == 0).mean(), abs=1e-15)
    assert m.kurtosis == pytest.approx((delta**4).mean() / (delta**2).mean() ** 2, rel=1e-11)
    for share, value in m.quantiles:
        exact = np.sort(size)[max(0, int(np.ceil(share * size.size)) - 1)]
        assert value == pytest.approx(exact, rel=BOUND + 1e-9, abs=1e-38), share
    assert m.shift.norm == pytest.approx(np.sqrt((shift**2).sum()), rel=1e-12)
    assert m.shift.ratio == pytest.approx(m.shift.norm / m.norm, rel=1e-12)
    assert m.shift.cosine == pytest.approx(cosine(delta, shift), abs=1e-12)
    assert m.shift.bases == pytest.approx(cosine(base, new), rel=1e-12)
    both = (delta != 0) & (shift != 0)
    same = (np.sign(delta) == np.sign(shift))[both].mean()
    assert m.shift.agreement == pytest.approx(same, rel=1e-12)


def flat(tensors, names):
    """Tensors end to end, as float64."""
    return np.concatenate([wide(tensors[name]).reshape(-1) for name in names])


def test_every_tensor_and_every_group(lineage):
    """Tensors, kinds, layers, cells and all: each measure is numpy's."""
    base, post, new = llama(), moved(llama(), 1), moved(llama(), 2)
    found = analyze(lineage.recipe())
    assert [t.name for t in found.tensors] == [t.name for t in plan(lineage.recipe()).tensors]
    for tensor in found.tensors:
        checked(tensor.group, *(wide(x[tensor.name]) for x in (base, post, new)))
    checked(found.all, *(flat(x, base) for x in (base, post, new)))
    for cell in (*found.layers, *found.kinds, *found.cells):
        names = [
            t.name
            for t in found.tensors
            if cell.layer in (None, t.layer) and cell.kind in (None, t.kind)
        ]
        m = cell.group.of(0)
        assert m.tensors == len(names)
        if cell in found.cells:
            assert m.quantiles == ()
            assert m.norm == pytest.approx(
                np.sqrt(((flat(post, names) - flat(base, names)) ** 2).sum())
            )
        else:
            checked(cell.group, *(flat(x, names) for x in (base, post, new)))
    assert [cell.layer for cell in found.layers] == [0, 1]
    assert {cell.kind for cell in found.kinds} == {
        "embedding", "q", "k", "v", "o", "gate", "up", "down", "norm", "head",
    }  # fmt: skip


def test_what_the_mix_loses(lineage):
    """The share that is rounded away is counted in the mix itself."""
    recipe = lineage.recipe(0.05)
    found = analyze(recipe).all.of(0)
    base, post, new = llama(), moved(llama(), 1), moved(llama(), 2)
    mixed = dict(tensors(recipe))
    lost = sum(((mixed[n] == wide(new[n])) & (post[n] != base[n])).sum() for n in base)
    assert found.rounded_away == lost / found.elements
    assert found.rounded_away > 0.2


@pytest.mark.parametrize("dtypes", [("f4", "f8", "f2"), ("f2", "f2", "f2"), ("f8", "f8", "f8")])
def test_dtypes_in_any_mixture(tmp_path, dtypes):
    """Operands of different dtypes are measured without loss."""
    chance = np.random.default_rng(4)
    values = [chance.normal(0, 0.02, (40, 50))]
    values += [values[0] + chance.normal(0, 0.001, (40, 50)) for _ in range(2)]
    stored = [{Q: v.astype(d)} for v, d in zip(values, dtypes, strict=True)]
    base, post, new = (
        str(save(tmp_path / role, tensors))
        for role, tensors in zip(("base", "post", "new"), stored, strict=True)
    )
    found = analyze(Recipe(new, (Delta(post, base),)))
    checked(found.all, *(wide(x[Q]) for x in stored))


def test_fp8(tmp_path):
    """FP8 weights are measured as the numbers that they stand for."""
    config = {"model_type": "deepseek_v3", "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}}  # fmt: skip
    name = "model.layers.0.mlp.up_proj"
    stored = [fp8(seed, **{name: (130, 140)}) for seed in range(3)]
    folders = [
        str(save(tmp_path / role, tensors, config_json=config))
        for role, tensors in zip(("base", "post", "new"), stored, strict=True)
    ]

    def number(tensors):
        scales = np.kron(tensors[f"{name}.weight_scale_inv"], np.ones((128, 128)))[:130, :140]
        return fp8_values("F8_E4M3")[tensors[f"{name}.weight"]] * scales

    found = analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),)))
    checked(found.all, *map(number, stored))


def test_several_deltas(tmp_path):
    """Each Δ by itself, and the cosine and the signs of each two."""
    models = [llama(), *(moved(llama(), seed) for seed in (1, 2, 3, 4))]
    base, new, *posts = (
        str(save(tmp_path / f"{n}", t, config_json=CONFIG)) for n, t in enumerate(models)
    )
    found = analyze(Recipe(new, [Delta(post, base, 0.5) for post in posts]))
    whole = [flat(t, models[0]) for t in models]
    for n in range(3):
        checked(found.all, whole[0], whole[2 + n], whole[1], n)
    assert [(p.one, p.two) for p in found.all.pairs] == [(0, 1), (0, 2), (1, 2)]
    for pair in found.all.pairs:
        one, two = (whole[2 + n] - whole[0] for n in (pair.one, pair.two))
        assert pair.cosine == pytest.approx(cosine(one, two), abs=1e-12)
        both = (one != 0) & (two != 0)
        assert pair.agreement == pytest.approx((np.sign(one) == np.sign(two))[both].mean())


def made(tmp_path, base, post, new):
    """The analysis of three matrices."""
    folders = [
        str(save(tmp_path / role, {Q: values}))
        for role, values in zip(("base", "post", "new"), (base, post, new), strict=True)
    ]
    return analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),))).all.of(0)


def test_constructed_directions(tmp_path):
    """Δ and S that are orthogonal, parallel and opposed; a constant Δ has kurtosis 1."""
    base = np.zeros((8, 8))
    one, two = base.copy(), base.copy()
    one[:4], two[4:] = 1, 2
    assert made(tmp_path / "orthogonal", base, one, two).shift.cosine == 0
    assert made(tmp_path / "parallel", base, one, 3 * one).shift.cosine == 1
    opposed = made(tmp_path / "opposed", base, one, -one)
    assert (opposed.shift.cosine, opposed.shift.agreement) == (-1, 0)
    assert made(tmp_path / "constant", base, base + 1, one).kurtosis == 1
    assert made(tmp_path / "half", base, one, two).unchanged == 0.5


def test_heads(tmp_path):
    """Rows of q and columns of o, head by head."""
    tensors = [llama(), moved(llama(), 1), moved(llama(), 2)]
    base, post, new = (
        str(save(tmp_path / f"{n}", t, config_json=CONFIG)) for n, t in enumerate(tensors)
    )
    found = {t.name: t for t in analyze(Recipe(new, (Delta(post, base),))).tensors}
    for name, axis in ((Q, 0), (O, 1)):
        parts = [np.split(wide(t[name]), 4, axis) for t in tensors]
        assert len(found[name].heads[0]) == 4
        for head, b, p, n in zip(found[name].heads[0], *parts, strict=True):
            assert head.norm == pytest.approx(np.linalg.norm(p - b))
            assert head.relative == pytest.approx(np.linalg.norm(p - b) / np.linalg.norm(b))
            assert head.cosine == pytest.approx(cosine(p - b, n - b))


def vocabulary(tokens):
    """tokenizer.json of tokens in this order."""
    vocab = {token: number for number, token in enumerate(tokens)}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}


def test_rows_by_token(tmp_path):
    """Rows of tokens that changed most, by their text, where the vocabularies differ."""
    tokens = [f"t{n}" for n in range(32)]
    order = [*tokens[3:], *tokens[:3], "added"]  # the new base has them in another order
    base, post = llama(), moved(llama(), 1)
    values = wide(post[EMBEDDING]).copy()
    values[7] += 1.0
    post[EMBEDDING] = bf16(values)
    new = moved(llama(vocab=33), 2)
    rows = [tokens.index(t) for t in order[:-1]]
    for name in (EMBEDDING, "lm_head.weight"):
        new[name][:32] = moved(llama(), 3)[name][rows]
    config = {**CONFIG, "vocab_size": 32}
    folders = [
        str(save(tmp_path / role, t, config_json={**config, "vocab_size": len(v)},
                 tokenizer_json=vocabulary(v)))
        for role, t, v in (("base", base, tokens), ("post", post, tokens), ("new", new, order))
    ]  # fmt: skip
    found = analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),)))
    tensor = next(t for t in found.tensors if t.name == EMBEDDING)
    first = tensor.rows[0][0]
    assert (first.token, first.row) == ("t7", order.index("t7"))
    assert first.norm == pytest.approx(
        np.linalg.norm(wide(post[EMBEDDING])[7] - wide(base[EMBEDDING])[7])
    )
    # The row that base lacks counts as unchanged, in the shift too.
    pad = np.zeros((1, 16))
    b, p = (np.concatenate((wide(x[EMBEDDING])[rows], pad)) for x in (base, post))
    checked(tensor.group, b, p, np.concatenate((wide(new[EMBEDDING])[:32], pad)))


def test_an_adapter(tmp_path):
    """The Δ of an adapter is measured; the shift is not known, for its base is not."""
    chance = np.random.default_rng(3)
    up, down = chance.normal(size=(16, 2)), chance.normal(size=(2, 16))
    prefix = "base_model.model." + Q.removesuffix(".weight")
    folder = tmp_path / "adapter"
    save(folder, {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    new = save(tmp_path / "new", llama(), config_json=CONFIG)
    (tensor,) = analyze(Recipe(str(new), (Delta(str(folder)),)), spectra=True).tensors
    m = tensor.group.of(0)
    assert m.norm == pytest.approx(2 * np.linalg.norm(up @ down))
    assert m.base_norm == pytest.approx(np.linalg.norm(wide(llama()[Q])))
    assert m.shift is None
    assert dict(tensor.spectra[0].energy)[2] == pytest.approx(1)


def test_a_stored_delta_is_the_same_delta(lineage, tmp_path):
    """Without its base there is no shift; the rest is that of post − base."""
    whole = analyze(lineage.recipe()).all.of(0)
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    stored = analyze(Recipe(str(lineage.new), (Delta(delta=str(tmp_path / "delta")),))).all.of(0)
    assert stored.shift is None
    assert stored.norm == whole.norm
    assert stored.quantiles == whole.quantiles


def test_two_checkpoints(lineage):
    """Without a new base, Δ has the same measures, and there is no shift."""
    whole = analyze(lineage.recipe())
    alone = analyze((str(lineage.post), str(lineage.base)))
    assert alone.new_base is None
    assert alone.all.of(0).shift is None
    assert alone.all.of(0).norm == whole.all.of(0).norm
    assert not [f for f in alone.findings if f.code == "new-base-is-base"]


def test_an_output_knows_its_sources(lineage, tmp_path):
    """A finished output is analyzed from its lock, unless a source has changed."""
    out = mix(lineage.recipe(), tmp_path / "out").folder
    assert analyze(out).to_dict() == analyze(lineage.recipe()).to_dict()
    (lineage.base / "model.safetensors").write_bytes(encode(llama(9), {"changed": "yes"}))
    with pytest.raises(MisfitError, match="not those that the output was made from"):
        analyze(out)


def test_operands_that_cancel_out_of_the_mix_are_measured(lineage):
    """Onto base itself the mix is post, but Δ is there to be seen."""
    base, post = str(lineage.base), str(lineage.post)
    m = analyze(Recipe(base, (Delta(post, base),))).all.of(0)
    assert m.norm > 0
    assert (m.shift.norm, m.shift.ratio, m.shift.cosine, m.shift.bases) == (0, 0, None, 1)


def test_the_same_bits_for_any_workers_and_buffers(lineage, monkeypatch):
    """The JSON is the same from one or several threads, from small buffers, and from processes."""
    monkeypatch.setattr(job, "LENGTH", 1 << 8)  # several tasks a tensor
    texts = {
        to_json(analyze(lineage.recipe(), workers=workers, memory=memory).to_dict())
        for workers, memory in ((1, "256MB"), (4, "256MB"), (3, "100MB"))
    }
    assert len(texts) == 1
    monkeypatch.undo()
    whole = make_plan(lineage.recipe(), whole=True)
    results = []
    for engine in (threads.run, processes.run):
        found = []
        run = AnalyzeJob.of(whole, 1 << 16, found.append)
        with Reader() as reader:
            engine(run, reader, workers=2)
        results.append([(m.subject.name, m.tally.delta[0], m.tally.along[0]) for m in found])
    assert results[0] == results[1]


MEMORY = """
from paramdelta import Delta, Recipe, analyze
post, base, new = sys.argv[1:]
recipe = Recipe(new, (Delta(post, base),))
analyze(recipe, memory=MEMORY // 2, workers=1)  # compiles, and allocates what stays
with Growth() as growth:
    analyze(recipe, memory=MEMORY, workers=4)
print(growth.bytes)
"""


@linux
def test_memory_stays_under_the_limit(tmp_path):
    """An embedding with many rows, large matrices, and heads."""
    entries = {EMBEDDING: ("BF16", (40_000, 512), 2), Q: ("BF16", (4096, 512), 2)}
    entries |= {"model.layers.0.mlp.up_proj.weight": ("BF16", (8192, 2048), 2)}
    for role in ("post", "base", "new"):
        sparse(tmp_path / role / "model.safetensors", entries)
        config = {"hidden_size": 512, "num_attention_heads": 64, "head_dim": 64}
        (tmp_path / role / "config.json").write_text(json.dumps(config))
    code = MEMORY.replace("MEMORY", "160_000_000")
    (grown,) = printed(code, tmp_path / "post", tmp_path / "base", tmp_path / "new")
    assert grown <= 160_000_000


def test_odd_shapes(tmp_path):
    """Scalars, empty tensors, rows and heads of prime or tiny sizes, and a config that lies."""
    chance = np.random.default_rng(6)
    shapes = {
        "scale": (), "empty.weight": (0, 4), "conv.weight": (3, 4, 5, 2), EMBEDDING: (50, 1031),
        "lm_head.weight": (9, 1), Q: (7, 3), O: (4, 6), "model.layers.0.mlp.up_proj.weight": (1, 1),
    }  # fmt: skip
    folders = []
    for role in ("base", "post", "new"):
        values = {name: np.asarray(chance.normal(size=shape)) for name, shape in shapes.items()}
        config = {"num_attention_heads": 7, "head_dim": 1, "hidden_size": 10**30}
        folders.append(str(save(tmp_path / role, values, config_json=config)))
    found = analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),)), spectra=True)
    assert {t.name for t in found.tensors} == set(shapes) - {"empty.weight"}
    assert not any(t.heads or t.rows for t in found.tensors)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_html()


def test_too_little_memory_is_told_beforehand(lineage, monkeypatch):
    """Before anything is read."""
    from paramdelta import UsageError

    with monkeypatch.context() as patch:
        patch.setattr(threads, "run", lambda *_, **__: pytest.fail("it ran"))
        with pytest.raises(UsageError, match="memory"):
            analyze(lineage.recipe(), memory=1000)


def test_nothing_to_look_at(lineage):
    """Scale 0 everywhere leaves no Δ."""
    with pytest.raises(MisfitError, match="no Δ"):
        analyze(lineage.recipe(0.0))


def test_numbers_that_are_not_finite(lineage, tmp_path):
    """They are counted and left out; the JSON stays valid."""
    tensors = moved(llama(), 1)
    tensors[Q][0, :3] = 0x7FC0  # NaN
    post = str(save(tmp_path / "nan", tensors, config_json=CONFIG))
    found = analyze(Recipe(str(lineage.new), (Delta(post, str(lineage.base)),)), spectra=True)
    assert found.all.not_finite == 3
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))
    spectra = {t.name: t.spectra for t in found.tensors}
    assert spectra[Q] == ()
    assert spectra[O]
