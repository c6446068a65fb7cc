"""A Δ as a LoRA adapter: PEFT loads it, paramdelta mixes it, and it holds what it says."""

import copy
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import paramdelta.demo
from paramdelta import (
    CheckpointError,
    Delta,
    MisfitError,
    Recipe,
    StorageError,
    UsageError,
    extract_adapter,
    mix,
)
from paramdelta.formats.adapter import CONFIG
from paramdelta.jobs import lowrank
from paramdelta.output import place
from paramdelta.output.place import place_of
from tests import opening
from tests.checkpoints import bf16, llama, moved, save
from tests.cli.test_app import run
from tests.crash import Program, forks, spread
from tests.memory import linux, printed
from tests.opening import fetch

SMALL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def wide(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint in float64."""
    return {
        name: tensor.float64(0, tensor.elements, fetch).reshape(tensor.shape)
        for name, tensor in opening.checkpoint(folder, "output").tensors.items()
    }


def held(folder: Path) -> dict[str, np.ndarray]:
    """Every Δ of an adapter in float64, multiplied by numpy."""
    found = {}
    for name, delta in opening.adapter(folder).deltas.items():
        up, down = (
            view.float64(0, view.elements, fetch).reshape(view.shape)
            for view in (delta.up, delta.down)
        )
        found[name] = delta.factor * (up @ down)
    return found


def sources(lineage):
    """Post and base."""
    return str(lineage.post), str(lineage.base)


@pytest.mark.parametrize("dtype", ["auto", "f32", "f16"])
@pytest.mark.parametrize("how", [{"rank": 4}, {"energy": 0.8}])
def test_the_energy_printed_is_the_energy_measured(tmp_path, lineage, dtype, how):
    """By module and in all, with the factors as they are stored."""
    result = extract_adapter(sources(lineage), tmp_path / "a", dtype=dtype, **how)
    post, base, product = wide(lineage.post), wide(lineage.base), held(tmp_path / "a")
    lost = everything = 0.0
    assert {one.tensor for one in result.made.kept} == product.keys()
    for one in result.made.kept:
        delta = post[one.tensor] - base[one.tensor]
        share = 1 - ((delta - product[one.tensor]) ** 2).sum() / (delta**2).sum()
        assert one.kept == pytest.approx(share, rel=1e-12)
        assert one.energy == pytest.approx((delta**2).sum(), rel=1e-12)
        best = np.linalg.svd(delta, compute_uv=False) ** 2
        assert share >= 0.99 * best[: one.rank].sum() / best.sum()
    for name in post:
        delta = post[name] - base[name]
        everything += (delta**2).sum()
        lost += ((delta - product.get(name, 0)) ** 2).sum()
    assert result.made.kept_of_all == pytest.approx(1 - lost / everything, rel=1e-12)
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    for one in result.made.kept:
        assert f"| `{one.module}` |" in card
        assert f"| {one.rank} | {one.full} | {100 * one.kept:.4f} % |" in card
    assert f"{100 * result.made.kept_of_all:.4f} % of the whole" in card
    about = json.loads((tmp_path / "a" / lowrank.LORA).read_text(encoding="utf-8"))
    assert [one["kept"] for one in about["modules"]] == [one.kept for one in result.made.kept]


def a_llama(**config):
    """A small Llama with weights of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(**sizes | {"tie_word_embeddings": False} | config))


def a_gpt2(**config):
    """A small GPT-2, whose layers keep their weights as (in, out)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, **config))


def a_tied_llama():
    """A Llama whose head is its embedding."""
    return a_llama(tie_word_embeddings=True)


def trained(model):
    """The model after a random change of every weight."""
    import torch

    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor += 0.02 * torch.randn_like(tensor)
    return other


@pytest.mark.hf
@pytest.mark.parametrize("make", [a_llama, a_gpt2, a_tied_llama])
@pytest.mark.parametrize("how", [{"rank": 4}, {"energy": 0.7}, {"energy": 0.7, "embeddings": True}])
def test_peft_merges_it_as_paramdelta_mixes_it(tmp_path, make, how):
    """PEFT finds a module for every factor, and base + B·A is what both make of it."""
    peft = pytest.importorskip("peft")
    import torch
    from safetensors.torch import load_file

    model = make()
    model.save_pretrained(tmp_path / "base")
    trained(model).save_pretrained(tmp_path / "post")
    places = str(tmp_path / "post"), str(tmp_path / "base")
    made = extract_adapter(places, tmp_path / "a", **how).made
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "a")
    loaded = {n for n, _ in adapted.named_parameters() if "lora_" in n}
    assert len(loaded) == 2 * (len(made.kept) + made.peft_ties)
    mix(Recipe(places[1], (Delta(str(tmp_path / "a")),)), tmp_path / "mix")
    with torch.no_grad():
        tokens = torch.arange(8)[None]
        unmerged = adapted.eval()(tokens).logits
        ours = type(model).from_pretrained(tmp_path / "mix").eval()(tokens).logits
        same = torch.allclose(unmerged, ours, atol=1e-5)
        assert same == (made.peft_ties or not made.tied)
        merged = adapted.merge_and_unload().state_dict()
    if made.peft_ties:  # PEFT adds the factors twice, as the card says
        assert "Do not call `merge_and_unload()`" in (tmp_path / "a" / "README.md").read_text()
        return
    ours = load_file(tmp_path / "mix" / "model.safetensors")
    base = wide(tmp_path / "base")
    shapes = {name: tensor.shape for name, tensor in base.items()}
    product = opening.adapter(tmp_path / "a").oriented(shapes)
    changed = 0
    for name, tensor in ours.items():
        exact = base[name]
        if name in product:
            view = product[name]
            exact = exact + view.float64(0, view.elements, fetch).reshape(view.shape)
            changed += 1
        assert np.abs(tensor.numpy() - exact).max() < 1e-7, name
        assert torch.allclose(tensor, merged[name], rtol=0, atol=1e-6), name
    assert changed == len(made.kept)
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert ("factors of embeddings only" in card) == ("embeddings" in how)
    assert ("embeddings" in how) == any("wte" in n or "embed" in n for n in product)


@pytest.mark.hf
def test_a_product_comes_back(tmp_path):
    """What PEFT trained at rank 3, merged, is found again to float32's precision."""
    peft = pytest.importorskip("peft")
    import torch

    model = a_llama()
    model.save_pretrained(tmp_path / "base")
    names = ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=3, target_modules=names, init_lora_weights=False)
    with torch.no_grad():
        peft.get_peft_model(copy.deepcopy(model), config).merge_and_unload().save_pretrained(
            tmp_path / "post"
        )
    places = str(tmp_path / "post"), str(tmp_path / "base")
    made = extract_adapter(places, tmp_path / "a", rank=3).made
    assert made.dtype == "F32"
    assert len(made.kept) == 4  # the weights that did not change have no factors
    assert len(made.unchanged) == 10
    assert not made.left
    assert made.kept_of_all > 1 - 1e-9
    mix(Recipe(places[1], (Delta(str(tmp_path / "a")),)), tmp_path / "mix")
    ours, theirs = wide(tmp_path / "mix"), wide(tmp_path / "post")
    assert all(np.abs(ours[name] - theirs[name]).max() < 1e-6 for name in ours)


def test_the_config_says_how_to_load_it(tmp_path, lineage):
    """Ranks by module as patterns, the largest as r, scaling 1 everywhere."""
    made = extract_adapter(sources(lineage), tmp_path / "a", energy=0.8).made
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    ranks = {one.module: one.rank for one in made.kept}
    assert len(set(ranks.values())) > 1
    assert config["rank_pattern"] == config["alpha_pattern"] == ranks
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    assert config["target_modules"] == list(ranks)
    assert config["base_model_name_or_path"] == str(lineage.base)
    made = extract_adapter(sources(lineage), tmp_path / "b", rank=2).made
    config = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (2, {})
    assert "--max-lora-rank 8 " in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "card", "name", "code"),
    [
        ({}, "", None, "base-is-path"),
        ({"_name_or_path": "org/base"}, "", "org/base", "base-by-name"),
        ({"_name_or_path": "/home/me/base"}, "", None, "base-is-path"),
        ({}, "---\nbase_model: org/other\n---\n", "org/other", "base-by-name"),
        ({}, "---\nbase_model: [org/other]\n---\n", "org/other", "base-by-name"),
        ({}, "---\nbase_model: [a/b, c/d]\n---\n", None, "base-is-path"),
        ({}, "---\nbase_model: ../../etc\n---\n", None, "base-is-path"),
    ],
)
def test_the_base_is_named_so_that_it_is_found(tmp_path, config, card, name, code):
    """By a Hub id that base or post names, else by a whole path; where it is from is said."""
    base = save(tmp_path / "base", llama(), config_json=SMALL | config)
    post = save(tmp_path / "post", moved(llama(), 1), config_json=SMALL, README_md=card)
    made = extract_adapter((str(post), str(base)), tmp_path / "a", rank=2).made
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == (name or str(base))
    assert code in [finding.code for finding in made.findings]
    text = (tmp_path / "a" / "README.md").read_text()
    assert str(tmp_path) not in text
    assert f"vllm serve {name or 'BASE'} " in text


def test_what_a_server_needs_lies_beside_it(tmp_path):
    """Template and ends of a turn are stated in files that a folder without config.json has."""
    base = save(tmp_path / "base", llama(), config_json=SMALL)
    post = save(
        tmp_path / "post",
        moved(llama(), 1),
        config_json=SMALL | {"eos_token_id": [7, 9]},
        generation_config_json={"temperature": 0.5, "pad_token_id": 3},
        tokenizer_config_json={"chat_template": "{{ messages }}", "tokenizer_class": "X"},
    )
    extract_adapter((str(post), str(base)), tmp_path / "a", rank=2)
    settings = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert settings == {"temperature": 0.5, "pad_token_id": 3, "eos_token_id": [7, 9]}
    assert (tmp_path / "a" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "a" / "config.json").exists()
    card = (tmp_path / "a" / "README.md").read_text()
    options = "--tokenizer DIR --chat-template DIR/chat_template.jinja --generation-config DIR"
    assert options in card


@pytest.mark.hf
def test_an_adapter_converses_as_post_does(tmp_path):
    """What transformers reads from the folder is post's: the rendered chat, the ends of a turn."""
    transformers = pytest.importorskip("transformers")
    shipped = Path(paramdelta.demo.__file__).parent / "lineage"
    extract_adapter((str(shipped / "post"), str(shipped / "base")), tmp_path / "a", rank=2)
    chat = [{"role": "user", "content": "hello"}]
    found = []
    for folder in (shipped / "post", tmp_path / "a"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        settings = transformers.GenerationConfig.from_pretrained(folder)
        found.append((ids, settings.eos_token_id, settings.pad_token_id))
    assert found[0] == found[1]


def test_memory_and_threads_do_not_change_the_bytes(tmp_path, lineage):
    """Not a byte of the weights, nor of what is said of them."""
    found = set()
    for number, (memory, workers) in enumerate((("256MB", 1), ("1GB", 4), ("90MB", 3))):
        out = tmp_path / f"{number}" / "a"
        extract_adapter(sources(lineage), out, rank=3, memory=memory, workers=workers)
        found.add(b"".join(path.read_bytes() for path in sorted(out.iterdir())))
    assert len(found) == 1


def test_what_it_cannot_hold_is_told(tmp_path):
    """Norms, embeddings, experts in one tensor and tensors that only post has: with their share."""
    base = llama() | {"model.layers.0.mlp.experts.gate_up_proj": bf16(np.ones((2, 4, 3)))}
    post = moved(base, 1) | {"model.layers.9.extra.weight": bf16(np.ones((4, 4)))}
    places = [
        str(save(tmp_path / n, t, config_json=SMALL)) for n, t in (("post", post), ("base", base))
    ]
    made = extract_adapter(tuple(places), tmp_path / "a", rank=2).made
    assert [len(left.tensors) for left in made.left] == [2, 5, 1]
    assert made.alone == ("model.layers.9.extra.weight",)
    new, old = wide(tmp_path / "post"), wide(tmp_path / "base")
    wanted = sum(((new[name] - tensor) ** 2).sum() for name, tensor in old.items())
    assert made.energy == pytest.approx(wanted)
    codes = [f.code for f in made.findings]
    assert codes == ["not-in-adapter"] * 3 + ["base-is-path", "only-in-post"]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| norms, biases and other vectors | 5 |" in card
    assert "| tensors that only post has | 1 |" in card


def test_experts_by_name_are_told(tmp_path):
    """transformers 5 joins experts as it loads them: PEFT may not find what the adapter names."""
    expert = "model.layers.0.mlp.experts.1.up_proj.weight"
    base = llama() | {expert: bf16(np.ones((6, 5)))}
    places = [str(save(tmp_path / n, t)) for n, t in (("post", moved(base, 1)), ("base", base))]
    made = extract_adapter(tuple(places), tmp_path / "a", rank=2).made
    (finding,) = (f for f in made.findings if f.code == "experts-by-name")
    assert finding.tensors == (expert,)


def test_a_delta_that_is_not_finite_names_the_tensor(tmp_path):
    """NaN and infinities have no singular values; nothing is left behind."""
    name = "model.layers.1.mlp.up_proj.weight"
    for bad in (np.nan, np.inf):
        base = llama()
        post = moved(base, 1)
        post[name] = post[name].copy()
        post[name][3, 2] = bf16([bad])[0]
        where = tmp_path / str(bad)
        places = [str(save(where / n, t)) for n, t in (("post", post), ("base", base))]
        with pytest.raises(CheckpointError, match=f"{name}.*not finite") as error:
            extract_adapter(tuple(places), where / "a", rank=2)
        assert "row 3, column 2" in str(error.value)
        assert not (where / "a").exists()
        assert not list(where.glob(".*"))


def test_without_a_delta_there_is_no_adapter(tmp_path, lineage):
    """The same weights in other files; and a Δ of norms alone."""
    base = llama()
    other = base | {"model.norm.weight": moved(base, 1)["model.norm.weight"]}
    for name, tensors in (("copy", base), ("norms", other)):
        post = save(tmp_path / name, tensors, config_json=SMALL)
        with pytest.raises(MisfitError, match="no Δ that an adapter can hold"):
            extract_adapter((str(post), str(lineage.base)), tmp_path / "a", rank=2)
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "needs a rank"),
        ({"rank": 3, "energy": 0.5}, "needs a rank"),
        ({"rank": 0}, "is not valid"),
        ({"energy": 0.5, "max_rank": 0}, "is not valid"),
        ({"energy": 0.0}, "is not valid"),
        ({"energy": 1.5}, "is not valid"),
        ({"energy": float("nan")}, "is not valid"),
        ({"rank": 3, "dtype": "fp8-block"}, "FP8"),
        ({"rank": 3, "memory": "50MB"}, "too little"),
    ],
)
def test_what_cannot_be_meant(tmp_path, lineage, how, message):
    """Is refused before anything is read."""
    with pytest.raises(UsageError, match=message):
        extract_adapter(sources(lineage), tmp_path / "a", **how)
    assert not (tmp_path / "a").exists()


def test_more_rank_than_there_is(tmp_path, lineage):
    """Each module takes as much as it has, and all of its Δ is held."""
    made = extract_adapter(sources(lineage), tmp_path / "a", rank=1000, dtype="f32").made
    assert all(one.rank == one.full == min(one.shape) for one in made.kept)
    assert made.kept_of_modules > 1 - 1e-10


def test_nothing_is_replaced_unasked(tmp_path, lineage):
    """An output that exists is refused; --overwrite replaces an adapter, and nothing else."""
    out = tmp_path / "a"
    extract_adapter(sources(lineage), out, rank=2)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        extract_adapter(sources(lineage), out, rank=3)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    extract_adapter(sources(lineage), out, rank=3, overwrite=True)
    assert (out / "adapter_model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(UsageError, match="only what paramdelta wrote"):
        extract_adapter(sources(lineage), tmp_path / "mine", rank=3, overwrite=True)


def test_an_error_leaves_nothing(tmp_path, lineage, monkeypatch):
    """A disk that is full at the last file."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, "rename_new", full)
    with pytest.raises(StorageError):
        extract_adapter(sources(lineage), tmp_path / "a", rank=2)
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.glob(".*"))


def test_factors_beyond_f16(tmp_path):
    """What a dtype cannot hold is refused with another that can."""
    base = {"model.layers.0.mlp.up_proj.weight": np.zeros((6, 6))}
    post = {"model.layers.0.mlp.up_proj.weight": np.full((6, 6), 1e12)}
    places = tuple(str(save(tmp_path / n, t)) for n, t in (("post", post), ("base", base)))
    with pytest.raises(UsageError, match="F16 cannot hold"):
        extract_adapter(places, tmp_path / "a", rank=2, dtype="f16")
    assert extract_adapter(places, tmp_path / "a", rank=2).made.kept_of_all > 1 - 1e-9


def test_commands(tmp_path, lineage, capsys):
    """--as lora on the command line: findings, the summary, JSON; options of the other form."""
    where = ["--post", str(lineage.post), "--base", str(lineage.base), "--as", "lora"]
    result = run("extract", *where, "--rank", "2", "--out", str(tmp_path / "a"))
    assert result.returncode == 0, result.stderr
    assert "14 modules of rank 2" in result.stdout
    assert "embeddings and output head are left out" in result.stdout
    result = run("extract", *where, "--energy", "0.9", "--out", str(tmp_path / "b"), "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[-1]["event"] == "done"
    assert len(events[-1]["modules"]) == 14
    assert all(one["kept"] > 0.899 for one in events[-1]["modules"])
    last = [e for e in events if e["event"] == "progress"][-1]
    assert last["done"] == last["total"] <= events[-1]["bytes_read"]
    for strange in (["--shard-size", "1GB"], []):
        result = run("extract", *where, *strange, "--out", str(tmp_path / "c"))
        assert result.returncode == 2
    result = run("extract", *where[:-2], "--rank", "3", "--out", str(tmp_path / "c"))
    assert result.returncode == 2
    mixed = run(
        *("mix", "--post", str(tmp_path / "a"), "--new-base", str(lineage.new)),
        *("--out", str(tmp_path / "mix")),
    )
    assert mixed.returncode == 0, mixed.stderr


MEASURE = """
import numpy, numba
from paramdelta import api
from paramdelta.arithmetic import kernels, sketch
from paramdelta.jobs.lowrank import LowRankJob
from paramdelta.planning.linear import linear
a = numpy.zeros(8)
bits = numpy.zeros(8, numpy.uint16)
kernels.finish(a, a, bits)
kernels.subtract(bits, bits, a)
numpy.linalg.svd(numpy.linalg.qr(numpy.ones((2000, 64)) @ numpy.ones((64, 64)))[1])
made = api.plan_extract(sys.argv[1], sys.argv[2])
aim = sketch.Aim(16, None, 256)
with Growth() as growth:
    api.extract_adapter(made, sys.argv[3], rank=16, memory=int(sys.argv[4]), workers=2)
job = LowRankJob(linear(made, False), aim, "BF16", "", None)
print(growth.bytes, api._extract_budget(job, int(sys.argv[4]), 2).projected)
"""


def sparse(folder: Path, name: str, rows: int, columns: int, some: np.ndarray) -> Path:
    """A checkpoint of one BF16 matrix, zeros but for its first and last rows, as a sparse file."""
    folder.mkdir()
    size = 2 * rows * columns
    facts = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}
    header = json.dumps({name: facts})
    with (folder / "model.safetensors").open("wb") as file:
        start = 8 + len(header)
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.write(some.tobytes())
        file.seek(start + size - some.nbytes)
        file.write(some.tobytes())
    return folder


def weights(folder: Path) -> bytes:
    """The factors of an adapter, as they are stored."""
    return (folder / "adapter_model.safetensors").read_bytes()


@forks
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_adapter(tmp_path, lineage, stop):
    """At any moment: Ctrl-C takes all away, unless all is done; after a kill the hidden folder has
    nothing that PEFT would load, unless its weights are whole.
    """
    command = ["extract", "--post", str(lineage.post), "--base", str(lineage.base)]
    command += ["--as", "lora", "--rank", "4", "--out"]
    out, stopped = tmp_path / "a", 0
    staging = place_of(out).staging
    with Program(tmp_path / "said") as program:
        program.warm_up([*command, str(tmp_path / "first")])
        whole = program.run([*command, str(tmp_path / "whole")])
        expected = weights(tmp_path / "whole")
        for at in spread(whole.calls, 16):
            ended = program.run([*command, str(out)], at, stop)
            if out.exists():
                assert weights(out) == expected
                assert json.loads((out / CONFIG).read_text())["r"] == 4
                shutil.rmtree(out)
                continue
            stopped += 1
            if stop == signal.SIGINT:
                assert ended.code == 130, ended.err
                assert not list(tmp_path.glob(".*"))
            else:
                assert ended.killed, ended.err
                if (staging / "adapter_model.safetensors").exists():
                    assert weights(staging) == expected
    assert stopped > 8


@linux
def test_measured_memory_stays_under_the_projected(tmp_path):
    """A Δ of 168 MB as float64, of which a few MB are held at a time."""
    rows, columns, name = 8192, 2560, "model.layers.0.mlp.up_proj.weight"
    chance = np.random.default_rng(0)
    post = sparse(tmp_path / "post", name, rows, columns, bf16(chance.normal(size=(64, columns))))
    base = sparse(tmp_path / "base", name, rows, columns, bf16(chance.normal(size=(64, columns))))
    grown, projected = printed(MEASURE, post, base, tmp_path / "a", 128_000_000)
    assert 0 < grown <= projected <= 128_000_000
