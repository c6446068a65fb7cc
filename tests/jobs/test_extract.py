"""A Δ as a folder of its own mixes as post and base do, and is whole or not there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramdelta import (
    CheckpointError,
    Delta,
    Interrupted,
    MisfitError,
    Recipe,
    UsageError,
    extract,
    mix,
    plan,
    read_recipe,
    verify,
)
from paramdelta.cli.app import main
from paramdelta.formats.checkpoint import DELTA
from paramdelta.formats.delta import BLOCK
from paramdelta.output.place import Place, place_of
from tests import opening
from tests.checkpoints import bf16, fp8, llama, moved, save
from tests.crash import Program, forks, spread
from tests.memory import linux, printed
from tests.numbers import BITS, VIEWS, patterns
from tests.opening import fetch

KINDS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


def tensors_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint, by name."""
    found = {}
    for name, tensor in opening.checkpoint(folder, "output").tensors.items():
        found[name] = tensor.array(0, tensor.elements, fetch).tobytes()
    return found


def both(tmp_path: Path, delta: Path, new, post, base, scale, share=1.0):
    """Tensors mixed from a stored Δ and from post and base."""
    number = len(list(tmp_path.glob("mixed-*")))
    result = []
    for one in (Delta(delta=delta, scale=scale), Delta(post, base, scale)):
        out = tmp_path / f"mixed-{number + len(result)}"
        mix(Recipe(str(new), (one,)), out)
        if share:
            verify(out, share=share)
        result.append(tensors_of(out))
    return result


@pytest.mark.parametrize("scale", [1, 0.7, -1])
def test_a_stored_delta_mixes_as_post_and_base_do(tmp_path, lineage, scale):
    """The mix of a real lineage in shards has the same bytes, and verifies."""
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta", shard_size="1MB")
    one, other = both(tmp_path, tmp_path / "delta", lineage.new, lineage.post, lineage.base, scale)
    assert one == other


@pytest.mark.parametrize("dtype", KINDS)
def test_any_bits_survive(tmp_path_factory, dtype):
    """NaN, infinities, subnormals and zeros of both signs, of every dtype, through files."""

    @given(st.lists(st.tuples(*[patterns(dtype)] * 3), min_size=40, max_size=120))
    @settings(max_examples=4)
    def check(rows):
        tmp_path = tmp_path_factory.mktemp("bits")
        folders = []
        for column, name in enumerate(("new", "post", "base")):
            bits = np.array([row[column] for row in rows], BITS[dtype])
            folders.append(save(tmp_path / name, {"w": bits.view(KINDS[dtype])}))
        new, post, base = folders
        extract((str(post), str(base)), tmp_path / "delta")
        for scale in (1, 0.7, -1):
            with np.errstate(all="ignore"):
                one, other = both(tmp_path, tmp_path / "delta", new, post, base, scale, share=0)
            assert one == other
        columns = [np.array([row[i] for row in rows], BITS[dtype]) for i in (1, 2)]
        finite = np.logical_and(*(np.isfinite(wide(bits, dtype)) for bits in columns))
        for start, scale, wanted in ((base, 1, post), (post, -1, base)):
            out = tmp_path / f"back{scale}"
            mix(Recipe(str(start), (Delta(delta=tmp_path / "delta", scale=scale),)), out)
            got, expected = (
                np.frombuffer(tensors_of(x)["w"], BITS[dtype])[finite] for x in (out, wanted)
            )
            if dtype != "F64":  # two float64 may be too far apart for their difference
                assert got.tolist() == expected.tolist()

    def wide(bits, dtype):
        from paramdelta.formats.view import float64

        with np.errstate(all="ignore"):
            return float64(bits.view(VIEWS[dtype]), dtype)

    check()


def test_base_and_delta_give_post_and_back(tmp_path, lineage):
    """Onto its base, post; at −1 onto post, base: byte for byte."""
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    for new, scale, wanted in ((lineage.base, 1, lineage.post), (lineage.post, -1, lineage.base)):
        out = tmp_path / f"out{scale}"
        mix(Recipe(str(new), (Delta(delta=tmp_path / "delta", scale=scale),)), out)
        assert tensors_of(out) == tensors_of(wanted)


def test_many_blocks_and_other_dtypes(tmp_path):
    """Tensors of several blocks; post in float32 and base in bfloat16; rows that cut blocks."""
    chance = np.random.default_rng(0)
    shape = (700, 301)
    base = {"w": bf16(chance.normal(0, 0.02, shape))}
    post = {"w": chance.normal(0, 0.02, shape).astype(np.float32)}
    new = {"w": chance.normal(0, 0.02, shape).astype(np.float16)}
    folders = [save(tmp_path / n, t) for n, t in (("new", new), ("post", post), ("base", base))]
    result = extract((str(folders[1]), str(folders[2])), tmp_path / "delta")
    assert result.made.elements == 700 * 301 > 3 * BLOCK
    one, other = both(tmp_path, tmp_path / "delta", *folders, 0.3)
    assert one == other


def test_threads_do_not_change_the_bytes(tmp_path, lineage):
    """One thread and four write the same files."""
    for count in (1, 4):
        source = (str(lineage.post), str(lineage.base))
        extract(source, tmp_path / str(count) / "delta", workers=count)
    one, other = (sorted((tmp_path / n / "delta").iterdir()) for n in "14")
    assert [p.name for p in one] == [p.name for p in other]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


def test_the_same_delta_has_the_same_digest_of_its_base(tmp_path, lineage):
    """The base's digest does not depend on its files, but on its numbers."""
    base = llama()
    again = save(tmp_path / "again", base, shards=2, config_json=CONFIG)
    other = save(tmp_path / "other", moved(base, 9), config_json=CONFIG)
    digests = [
        extract((str(lineage.post), str(b)), tmp_path / f"d{i}").made.base_sha256
        for i, b in enumerate((lineage.base, again, other))
    ]
    assert digests[0] == digests[1] != digests[2]
    about = json.loads((tmp_path / "d0" / DELTA).read_text())
    assert about["base"]["sha256"] == digests[0]
    assert str(tmp_path) not in (tmp_path / "d0" / DELTA).read_text()
    assert digests[0] in (tmp_path / "d0" / "README.md").read_text()


def test_what_has_no_delta_is_stored_whole(tmp_path, lineage):
    """Integers and tensors that base lacks are stored as post has them."""
    extra = {"steps": np.arange(5), "only.weight": np.ones((2, 2), np.float32)}
    post = save(tmp_path / "more", moved(llama(), 1) | extra, config_json=CONFIG)
    extract((str(post), str(lineage.base)), tmp_path / "delta")
    found = opening.stored_delta(tmp_path / "delta")
    assert found.whole.keys() == extra.keys()
    assert found.whole["steps"].array(0, 5, fetch).tolist() == list(range(5))
    with pytest.raises(MisfitError, match="have no place in the new base"):
        mix(Recipe(str(lineage.new), (Delta(delta=tmp_path / "delta"),)), tmp_path / "out")
    recipe = Recipe(str(lineage.new), (Delta(delta=tmp_path / "delta"),), allow=("only-in-post",))
    mix(recipe, tmp_path / "out")
    assert set(tensors_of(tmp_path / "out")) == set(llama())


def test_a_new_base_of_another_shape_is_refused(tmp_path, lineage):
    """As from post and base: the plan says which tensors, and nothing is written."""
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    wide = save(tmp_path / "wide", llama(hidden=24), config_json=CONFIG)
    made = plan(Recipe(str(wide), (Delta(delta=tmp_path / "delta"),)))
    assert "shape-differs" in {finding.code for finding in made.refused}
    with pytest.raises(MisfitError):
        mix(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_post_and_base_of_other_shapes_are_refused(tmp_path, lineage):
    """There is no Δ between tensors of different shapes."""
    wide = save(tmp_path / "wide", llama(hidden=24), config_json=CONFIG)
    with pytest.raises(MisfitError, match="shapes differ"):
        extract((str(wide), str(lineage.base)), tmp_path / "delta")
    with pytest.raises(MisfitError, match="no Δ"):
        extract((str(lineage.base), str(lineage.base)), tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


TOKENIZER = {"chat_template": "{{ messages }}", "eos_token": "<end>"}


def vocabulary(*tokens):
    """A tokenizer.json of so many tokens."""
    vocab = {token: number for number, token in enumerate(tokens)}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}


def test_companions_come_along(tmp_path, lineage):
    """Chat template, generation settings and roles of post, as if from post itself."""
    tokens = vocabulary(*(f"t{i}" for i in range(32)))
    for folder in (lineage.post, lineage.base, lineage.new):
        (folder / "tokenizer.json").write_text(json.dumps(tokens))
    (lineage.post / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (lineage.post / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    outs = []
    for one in (Delta(delta=tmp_path / "delta"), Delta(lineage.post, lineage.base)):
        out = tmp_path / f"out{len(outs)}"
        mix(Recipe(str(lineage.new), (one,)), out)
        outs.append({p.name: p.read_bytes() for p in out.glob("*.json") if "lock" not in p.name})
    assert outs[0] == outs[1]
    assert json.loads(outs[0]["tokenizer_config.json"])["chat_template"] == "{{ messages }}"


def test_rows_follow_the_tokens(tmp_path):
    """Where vocabularies differ, rows of the Δ go to their tokens, as those of post and base."""
    chance = np.random.default_rng(0)
    tokens = [f"t{i}" for i in range(40)]
    orders = {
        "base": tokens[:30],
        "post": [*tokens[:30], "<post>"],
        "new": [*reversed(tokens[5:30]), *tokens[30:]],
    }
    for name, own in orders.items():
        weights = {
            "model.embed_tokens.weight": bf16(chance.normal(0, 1, (len(own), 8))),
            "model.norm.weight": bf16(chance.normal(1, 0.1, 8)),
        }
        save(tmp_path / name, weights, tokenizer_json=vocabulary(*own))
    folders = [tmp_path / name for name in ("new", "post", "base")]
    extract(tuple(map(str, folders[1:])), tmp_path / "delta")
    one, other = both(tmp_path, tmp_path / "delta", *folders, 1)
    assert one == other
    with pytest.raises(UsageError, match="rows"):
        plan(Recipe(str(folders[0]), (Delta(delta=tmp_path / "delta"),), graft=("<post>",)))


def test_an_output_head_of_its_own(tmp_path):
    """Where post and base share head and embedding and the new base does not, as from them."""
    tied = {n: t for n, t in llama().items() if n != "lm_head.weight"}
    config = {"model_type": "llama", "tie_word_embeddings": True}
    base = save(tmp_path / "base", tied, config_json=config)
    post = save(tmp_path / "post", moved(tied, 1), config_json=config)
    new = save(tmp_path / "new", moved(llama(), 2), config_json=CONFIG)
    extract((str(post), str(base)), tmp_path / "delta")
    one, other = both(tmp_path, tmp_path / "delta", new, post, base, 1)
    assert one == other
    assert one["lm_head.weight"] != tensors_of(new)["lm_head.weight"]


def test_recipes_and_locks_name_it(tmp_path, lineage):
    """YAML in and out; two Δ at once; delta and post exclude each other."""
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    text = f"new_base: {lineage.new}\ndeltas:\n  - {{delta: delta, scale: 0.7}}\n"
    text += f"  - {{post: {lineage.post}, base: {lineage.base}, scale: 0.25}}\n"
    (tmp_path / "r.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "r.yaml")
    assert recipe.deltas[0] == Delta(delta=tmp_path / "delta", scale=0.7)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "again.yaml") == recipe
    mix(recipe, tmp_path / "out")
    verify(tmp_path / "out", share=1.0)
    with pytest.raises(UsageError, match="either stored"):
        Delta("post", delta="delta")
    (tmp_path / "r.yaml").write_text("new_base: n\ndeltas:\n  - {delta: d, base: b}\n")
    with pytest.raises(UsageError, match="delta and base exclude"):
        read_recipe(tmp_path / "r.yaml")


def test_a_delta_is_no_model(tmp_path, lineage):
    """As post, base or new base it is refused with a hint; a model is no Δ."""
    extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    stored, base, new = str(tmp_path / "delta"), str(lineage.base), str(lineage.new)
    for recipe in (
        Recipe(new, (Delta(stored, base),)),
        Recipe(new, (Delta(base, stored),)),
        Recipe(stored, (Delta(str(lineage.post), base),)),
    ):
        with pytest.raises(UsageError, match="stored Δ") as caught:
            plan(recipe)
        assert "`delta`" in str(caught.value)
    with pytest.raises(CheckpointError, match="no stored Δ"):
        plan(Recipe(new, (Delta(delta=base),)))


def test_nothing_is_replaced_unasked(tmp_path, lineage):
    """An existing output needs --overwrite, and only a Δ is replaced."""
    source, out = (str(lineage.post), str(lineage.base)), tmp_path / "delta"
    extract(source, out)
    before = (out / DELTA).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        extract(source, out)
    extract(source, out, overwrite=True)
    assert (out / DELTA).read_bytes() == before
    with pytest.raises(UsageError, match="on an input"):
        extract(source, lineage.base, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="only what paramdelta wrote"):
        extract(source, tmp_path / "mine", overwrite=True)


def test_files_are_cut(tmp_path):
    """Shards hold at most so much of post, and the Δ is whole from all of them."""
    base = llama(hidden=128, vocab=1000)
    folders = [
        save(tmp_path / n, t, config_json=CONFIG)
        for n, t in (("base", base), ("post", moved(base, 1)), ("new", moved(base, 2)))
    ]
    result = extract((str(folders[1]), str(folders[0])), tmp_path / "delta", shard_size=400_000)
    assert len(result.made.files) > 1
    assert all((tmp_path / "delta" / name).stat().st_size <= 400_000 for name in result.made.files)
    one, other = both(tmp_path, tmp_path / "delta", folders[2], folders[1], folders[0], 1)
    assert one == other


def test_commands(tmp_path, lineage, capsys):
    """extract, plan and mix from the command line, with events and with words."""
    options = ["--post", str(lineage.post), "--base", str(lineage.base)]
    main_exits(["extract", *options, "--out", str(tmp_path / "d"), "--json"])
    done = [json.loads(line) for line in capsys.readouterr().out.splitlines()][-1]
    assert done["event"] == "done"
    assert done["deltas"] == len(llama())
    assert done["bytes_of_post"] == sum(t.nbytes for t in llama().values())
    main_exits(["extract", *options, "--out", str(tmp_path / "d"), "--overwrite"])
    assert "% of post's" in capsys.readouterr().out
    options = ["--delta", str(tmp_path / "d"), "--new-base", str(lineage.new)]
    main_exits(["plan", *options])
    assert "a stored Δ: post − base" in capsys.readouterr().out
    main_exits(["mix", *options, "--out", str(tmp_path / "o")])
    main_exits(["verify", str(tmp_path / "o"), "--full"])


def main_exits(arguments):
    """Run the command line, which must end well."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code, arguments


# -- whole or not at all ---------------------------------------------------------------------------


def test_an_error_leaves_nothing(tmp_path, lineage, monkeypatch):
    """A failure at the last step leaves neither output nor staging folder."""
    monkeypatch.setattr(Place, "publish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract((str(lineage.post), str(lineage.base)), tmp_path / "delta")
    assert not (tmp_path / "delta").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_leaves_nothing(tmp_path, lineage):
    """Ctrl-C ends as Interrupted, and the next run begins again."""

    def stop(_):
        raise KeyboardInterrupt

    source = (str(lineage.post), str(lineage.base))
    with pytest.raises(Interrupted, match="nothing is kept"):
        extract(source, tmp_path / "delta", progress=stop)
    assert not (tmp_path / "delta").exists()
    assert not list(tmp_path.glob(".*"))


def test_two_at_once_are_refused(tmp_path, lineage):
    """A second run on the same output is refused while the first one is going on."""
    source, seen = (str(lineage.post), str(lineage.base)), []

    def again(_):
        if not seen:
            seen.append(True)
            with pytest.raises(MisfitError, match="another run"):
                extract(source, tmp_path / "d", workers=1)

    extract(source, tmp_path / "d", progress=again)
    assert seen


@forks
def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    """Killed at sixteen moments: no output, or a whole one; the same command then makes it."""
    base = llama(hidden=128, layers=2, vocab=4000)
    for name, tensors in (("base", base), ("post", moved(base, 1))):
        save(tmp_path / name, tensors, config_json=CONFIG)
    command = ["extract", "--post", str(tmp_path / "post"), "--base", str(tmp_path / "base")]
    command += ["--shard-size", "1MB", "--workers", "2", "--out"]
    out, kills = tmp_path / "delta", 0
    staging = place_of(out).staging
    with Program(tmp_path / "said") as program:
        program.warm_up([*command, str(tmp_path / "first")])
        whole = program.run([*command, str(tmp_path / "whole" / "delta")])
        expected = contents(tmp_path / "whole" / "delta")
        for at in spread(whole.calls, 16):
            ended = program.run([*command, str(out)], at)
            kills += ended.killed
            if out.exists():
                assert contents(out) == expected
                shutil.rmtree(out)
                continue
            assert ended.killed, ended.err
            if staging.exists() and list(staging.glob("*.part")):
                with pytest.raises(CheckpointError):
                    opening.stored_delta(staging)
            elif (staging / DELTA).exists():
                assert contents(staging) == expected
        assert program.run([*command, str(out)]).code == 0
        assert contents(out) == expected
        assert not list(tmp_path.glob(".*"))
    assert kills > 8


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MEASURE = """
import numpy, numba, zstandard
from paramdelta import api
from paramdelta.arithmetic import planes
from paramdelta.formats import delta
from paramdelta.jobs.extract import ExtractJob
delta.encode(numpy.ones(3), numpy.zeros(3))
made = api.plan_extract(sys.argv[1], sys.argv[2])
with Growth() as growth:
    result = api.extract(made, sys.argv[3], memory=int(sys.argv[4]), workers=4)
job = ExtractJob(made.tensors, 5_000_000_000, None)
print(growth.bytes, api._extract_budget(job, int(sys.argv[4]), 4).projected)
"""


@linux
@pytest.mark.parametrize("memory", [100_000_000, 256_000_000])
def test_measured_memory_stays_under_the_projected(tmp_path, memory):
    """64 MB of float64 noise, which hardly shrinks, is extracted within the projected memory."""
    chance = np.random.default_rng(0)
    for name in ("post", "base"):
        save(tmp_path / name, {"w": chance.normal(0, 1, (1 << 12, 1 << 11))})
    paths = (tmp_path / name for name in ("post", "base", "d"))
    grown, projected = printed(MEASURE, *paths, memory)
    assert 0 < grown <= projected <= memory


def test_too_little_memory_is_refused(tmp_path, lineage):
    """Beforehand, with what would be enough."""
    with pytest.raises(UsageError, match="too little"):
        extract((str(lineage.post), str(lineage.base)), tmp_path / "d", memory="50MB")


def test_an_adapter_is_a_delta_already(tmp_path, lineage):
    """It is refused with a hint: storing its product would take more room."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="a Δ already"):
        extract((str(tmp_path / "lora"), str(lineage.base)), tmp_path / "d")


def test_scaled_fp8(tmp_path):
    """Post in FP8 with scales: the Δ is of the numbers that it stands for."""
    shape = (300, 200)
    post = save(tmp_path / "post", fp8(1, w=shape), config_json=CONFIG)
    chance = np.random.default_rng(0)
    folders = [
        save(tmp_path / name, {"w.weight": bf16(chance.normal(0, 1, shape))}, config_json=CONFIG)
        for name in ("base", "new")
    ]
    extract((str(post), str(folders[0])), tmp_path / "delta")
    one, other = both(tmp_path, tmp_path / "delta", folders[1], post, folders[0], 0.7)
    assert one == other


def test_odd_shapes(tmp_path):
    """Tensors of no elements and of no axes."""
    for name, value in (("base", 1.0), ("post", 3.0), ("new", 10.0)):
        tensors = {"none": np.zeros((0, 3), np.float32), "one": np.array(value, np.float32)}
        save(tmp_path / name, tensors | {"w": np.full((2, 2), value, np.float32)})
    folders = [tmp_path / name for name in ("new", "post", "base")]
    extract(tuple(map(str, folders[1:])), tmp_path / "delta")
    one, other = both(tmp_path, tmp_path / "delta", *folders, 1)
    assert one == other
    assert np.frombuffer(one["one"], np.float32).tolist() == [12.0]


MIX = """
import numpy, numba, zstandard
from paramdelta import Delta, Recipe, api
from paramdelta.arithmetic import planes
from paramdelta.formats import delta
from paramdelta.arithmetic import kernels
block, _ = delta.encode(numpy.ones(3), numpy.zeros(3))
delta._decode(memoryview(block), 0, numpy.zeros(3, numpy.uint64))
new, wide = numpy.zeros(8, numpy.uint16), numpy.zeros(8)
kernels.mix_exact(new, wide, wide, new, numpy.float64(0))
made = api.plan(Recipe(sys.argv[2], [Delta(delta=sys.argv[1])]))
with Growth() as growth:
    api.mix(made, sys.argv[3], memory=int(sys.argv[4]), workers=4)
print(growth.bytes, api.budget_for(made, int(sys.argv[4]), 4).projected)
"""


@linux
def test_memory_of_applying_it_stays_under_the_projected(tmp_path):
    """Slices that are no multiple of a block are decoded within what the plan projects."""
    chance = np.random.default_rng(0)
    shape = (9000, 1111)
    for name in ("post", "base", "new"):
        save(tmp_path / name, {"w": bf16(chance.normal(0, 1, shape))})
    extract((str(tmp_path / "post"), str(tmp_path / "base")), tmp_path / "d")
    for memory in (100_000_000, 200_000_000):
        paths = (tmp_path / name for name in ("d", "new", f"out{memory}"))
        grown, projected = printed(MIX, *paths, memory)
        assert 0 < grown <= projected <= memory
