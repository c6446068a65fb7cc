"""LoRA adapters: the same Δ as PEFT's, in any run, in little memory, and refusals with reasons."""

import copy
import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError, MisfitError
from paramdelta.formats import lowrank as module
from paramdelta.formats.adapter import is_adapter
from paramdelta.formats.lowrank import KEPT, LowRank
from paramdelta.formats.view import Tensor, Transposed, cache_of
from tests import opening
from tests.checkpoints import bf16, encode, llama, save
from tests.views import one_by_one

# -- against PEFT ----------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 24,
    "attention_bias": True,
    "tie_word_embeddings": False,
}

EXPERTS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 3,
    "vocab_size": 24,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}


def a_llama():
    """A tiny Llama in float64, with biases in its attention and a head of its own."""
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).double()


def a_gpt2():
    """A tiny GPT-2 in float64: its weights are (in, out), one of them square."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=24,
        n_positions=8,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return transformers.GPT2LMHeadModel(config).double()


def a_gpt_oss():
    """A tiny gpt-oss in float64: its experts are joined and turned, ``down_proj`` square."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GptOssConfig(**EXPERTS, head_dim=8, intermediate_size=16)
    return transformers.GptOssForCausalLM(config).double()


def a_mixtral():
    """A tiny Mixtral in float64, whose experts are joined in memory."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(**EXPERTS, intermediate_size=16)
    return transformers.MixtralForCausalLM(config).double()


def convolutions():
    """A network of 1-D, 2-D and 1 × 1 convolutions in float64."""
    nn = pytest.importorskip("torch").nn
    layers = {"one": nn.Conv1d(3, 6, 5), "two": nn.Conv2d(4, 8, (3, 2)), "dot": nn.Conv2d(4, 8, 1)}
    return nn.ModuleDict(layers).double()


def trained(model, folder: Path, safe=True, name=None, **config):
    """Save an adapter whose every trained number is a random one; base and merged tensors.

    ``name``: of the adapter; then its tensors are stored under the names that they have in memory.
    """
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import safetensors.torch

    base = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(**config), adapter_name=name or "default"
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
        if name is None:
            adapted.save_pretrained(folder, safe_serialization=safe)
        else:
            adapted.peft_config[name].save_pretrained(folder)
            stored = {n: p.detach() for n, p in adapted.named_parameters() if p.requires_grad}
            safetensors.torch.save_file(stored, folder / "adapter_model.safetensors")
        merged = adapted.merge_and_unload().state_dict()
    return base, {name: value.numpy() for name, value in merged.items()}


def applied(adapter, base, folder: Path):
    """What an adapter makes of a base: all tensors of the trained model."""
    views = opening.checkpoint(save(folder, base)).tensors
    whole, deltas = adapter.applied(views)
    result = base | {name: read(view, opening.fetch) for name, view in whole.items()}
    for name, delta in deltas.items():
        assert delta.shape == result[name].shape
        result[name] = result[name] + read(delta, opening.fetch)
    return result, deltas.keys() | whole.keys()


def read(view, fetch):
    """All of a view."""
    return view.float64(0, view.elements, fetch).reshape(view.shape)


@pytest.mark.hf
@pytest.mark.parametrize("stored", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (a_llama, {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
        (a_llama, {"r": 9, "lora_alpha": 5, "target_modules": "all-linear"}),
        (a_llama, {"r": 6, "use_rslora": True, "target_modules": ["down_proj"]}),
        (a_llama, {"r": 3, "target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
        (a_llama, {"r": 3, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]}),
        (a_llama, {"r": 3, "target_modules": ["q_proj"], "bias": "all"}),
        (a_llama, {"r": 3, "target_modules": ["q_proj", "embed_tokens"], "bias": "lora_only"}),
        (a_llama, {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
        (
            a_llama,
            {
                "r": 3,
                "target_modules": ["q_proj", "up_proj"],
                "layers_to_transform": [1],
                "layers_pattern": "layers",
            },
        ),
        (a_llama, {"r": 3, "target_modules": ["q_proj", "down_proj", "lm_head"], "use_dora": True}),
        (a_llama, {"r": 3, "target_modules": ["embed_tokens"], "use_dora": True}),
        (
            a_llama,
            {
                "r": 3,
                "target_modules": ["q_proj", "k_proj", "up_proj"],
                "use_dora": True,
                "use_rslora": True,
                "rank_pattern": {"k_proj": 2},
                "alpha_pattern": {"q_proj": 5},
            },
        ),
        (a_llama, {"r": 3, "target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
        (a_llama, {"r": 3, "target_modules": ["q_proj"], "bias": "all", "lora_bias": True}),
        (a_llama, {"r": 3, "target_modules": ["q_proj"], "trainable_token_indices": [5, 0, 23]}),
        (
            a_llama,
            {
                "r": 3,
                "target_modules": ["q_proj"],
                "trainable_token_indices": {"embed_tokens": [7], "lm_head": [2, 3]},
            },
        ),
        (
            a_llama,
            {"r": 3, "target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
        ),
        (
            a_llama,
            {
                "r": 4,
                "lora_alpha": 7,
                "target_modules": ["q_proj", "k_proj", "up_proj"],
                "rank_pattern": {"k_proj": 2, r"layers\.0\.mlp.*": 5, "layers.1.mlp.up_proj": 6},
                "alpha_pattern": {"0.self_attn.q_proj": 3, "^model.layers.1.mlp.up_proj": 0.5},
                "use_rslora": True,
            },
        ),
        (a_gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
        (a_gpt2, {"r": 4, "target_modules": ["c_proj", "wte", "lm_head"]}),
        (a_gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj"], "use_dora": True}),
        (convolutions, {"r": 2, "target_modules": ["one", "two", "dot"]}),
        (convolutions, {"r": 2, "target_modules": ["one", "two"], "use_dora": True}),
        (convolutions, {"r": 2, "target_modules": ["one", "dot"], "lora_bias": True}),
        (
            a_gpt_oss,
            {
                "r": 2,
                "target_modules": ["q_proj"],
                "target_parameters": ["experts.down_proj", "mlp.experts.gate_up_proj"],
                "rank_pattern": {"experts.down_proj": 3},
                "alpha_pattern": {"experts.gate_up_proj": 5},
            },
        ),
        (a_gpt_oss, {"r": 2, "target_parameters": ["mlp.experts.down_proj"]}),
        (a_mixtral, {"r": 2, "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"]}),
        (a_mixtral, {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_same_as_peft_merges(tmp_path, make, config, stored):
    """Base + Δ, or what replaces it, is what PEFT's merge_and_unload makes: in float64, to 1e-12.

    Both sum at most 9 products of numbers about 1; the sums differ in a few of 2⁻⁵³.
    """
    safe = stored.endswith("safetensors")
    base, merged = trained(make(), tmp_path / "adapter", safe, **config)
    assert (tmp_path / "adapter" / stored).is_file()
    found = opening.adapter(tmp_path / "adapter")
    result, names = applied(found, base, tmp_path / "base")
    assert merged.keys() == result.keys() == base.keys()
    changed = 0
    for name, value in merged.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-12, atol=1e-12)
        changed += not np.array_equal(base[name], value)
    assert changed == len(names - _copies(base, merged))


def _copies(base, merged):
    """Tensors that the merge left alone: PEFT saves the layer under an adapted embedding too."""
    return {name for name in base if np.array_equal(base[name], merged[name])}


@pytest.mark.hf
@pytest.mark.parametrize("name", ["default", "tuned"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"], "bias": "lora_only"},
        {"target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "lora_bias": True, "trainable_token_indices": [5, 0]},
    ],
)
def test_an_adapter_saved_under_its_names_in_memory(tmp_path, config, name):
    """A trainer's own ``state_dict`` has the adapter's name in each key; the Δ is the same."""
    base, merged = trained(a_llama(), tmp_path / "adapter", name=name, r=3, **config)
    result, _ = applied(opening.adapter(tmp_path / "adapter"), base, tmp_path / "base")
    for tensor, value in merged.items():
        np.testing.assert_allclose(result[tensor], value, rtol=1e-12, atol=1e-12)


@pytest.mark.hf
def test_the_note_on_axes_is_not_trusted_for_square_weights(tmp_path):
    """PEFT notes fan_in_fan_out of the layer that it adapted last: GPT-2's head, a plain one."""
    base, _ = trained(a_gpt2(), tmp_path / "a", r=2, target_modules=["c_proj", "lm_head"])
    found = opening.adapter(tmp_path / "a")
    assert not found.turned
    square = "transformer.h.0.attn.c_proj.weight"
    deltas = found.oriented({name: value.shape for name, value in base.items()})
    assert deltas[square].up.name.endswith("lora_A.weight")
    assert found.oriented({})[square].up.name.endswith("lora_B.weight")


@pytest.mark.hf
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_adapters_to_an_altered_base_are_refused(tmp_path, start):
    """PiSSA and OLoRA take something from the base's weights at the start: no Δ from the base."""
    trained(
        a_llama().float(), tmp_path / "a", r=2, init_lora_weights=start, target_modules=["q_proj"]
    )
    with pytest.raises(CheckpointError, match="no Δ") as error:
        opening.adapter(tmp_path / "a")
    assert "path_initial_model_for_weight_conversion" in error.value.remedy


@pytest.mark.hf
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "aLoRA"),
    ],
)
def test_real_variants_are_refused(tmp_path, config, reason):
    """What PEFT itself writes for its variants is recognized."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], **config)
        peft.get_peft_model(a_llama(), config).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=reason):
        opening.adapter(tmp_path / "a")


# -- the view --------------------------------------------------------------------------------------


def stored(**arrays):
    """Tensors by name as if stored, and a fetch that counts the bytes it gives."""
    tensors, fetched = {}, [0]
    for name, array in arrays.items():
        dtype = {"uint16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
        tensors[name] = Tensor(
            name, dtype[array.dtype.name], array.shape, Path(name), 0, array.nbytes
        )
    raw = {name: array.tobytes() for name, array in arrays.items()}

    def fetch(tensor, start, into):
        if not isinstance(start, int):
            one_by_one(fetch, tensor, start, into)
            return
        begin = start * tensor.kind.size
        into[:] = raw[tensor.name][begin : begin + len(into)]
        fetched[0] += len(into)

    return tensors, fetch, fetched


def in_order(up, down, factor):
    """``factor · up @ down``, one product after the other, each step rounded."""
    total = np.zeros((up.shape[0], down.shape[1]))
    for k in range(up.shape[1]):
        total += up[:, k, None] * down[k]
    return total * factor


@given(st.data())
def test_any_run_is_a_part_of_the_whole(data):
    """Bit for bit the sum in order, wherever a run starts and stops and however small the blocks:
    nothing depends on slices, threads or memory.
    """
    rows, depth, columns = (data.draw(st.integers(1, 40), label=n) for n in ("R", "r", "C"))
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    up, down = chance.normal(size=(rows, depth)), chance.normal(size=(depth, columns))
    up, down = up.astype(np.float32), down.astype(np.float32)
    tensors, fetch, _ = stored(b=up, a=down)
    turned, fetch_turned, _ = stored(b=up.T.copy(), a=down.T.copy())
    factor = data.draw(st.sampled_from([1.0, 2.0, 16 / 3, -0.1]))
    whole = in_order(up.astype(np.float64), down.astype(np.float64), factor)
    plain = LowRank("w", "F64", (rows, columns), tensors["b"], tensors["a"], factor)
    other = LowRank(
        "w",
        "F64",
        (rows, columns),
        Transposed("b", "F32", (rows, depth), turned["b"]),
        Transposed("a", "F32", (depth, columns), turned["a"]),
        factor,
    )
    block = data.draw(st.sampled_from([8, 16, 100, 1 << 17]), label="block")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "DEEP", data.draw(st.sampled_from([1, 8, 16, 4096]), label="deep"))
        patch.setattr(module, "KEPT", data.draw(st.sampled_from([0, 300, KEPT])))
        for _ in range(3):
            start = data.draw(st.integers(0, rows * columns))
            stop = data.draw(st.integers(start, rows * columns))
            for view, source in ((plain, fetch), (other, fetch_turned)):
                found = view.float64(start, stop, source)
                assert found.tobytes() == whole.reshape(-1)[start:stop].tobytes()
        assert np.array_equal(plain.turned().float64(0, whole.size, fetch), whole.T.reshape(-1))
        assert plain.turned().turned() == plain


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_factors_of_every_dtype(dtype):
    """Half-precision factors are widened without loss first; infinities and NaN go through."""
    chance = np.random.default_rng(0)
    up, down = chance.normal(size=(5, 3)), chance.normal(size=(3, 7))
    down[1, 2], up[4, 0] = np.inf, np.nan
    make = {"BF16": bf16, "F16": np.float16, "F64": np.float64}[dtype]
    tensors, fetch, _ = stored(b=make(up), a=make(down))
    found = LowRank("w", "F64", (5, 7), tensors["b"], tensors["a"], 2.0).float64(0, 35, fetch)
    up, down = (t.float64(0, t.elements, fetch).reshape(t.shape) for t in tensors.values())
    expected = in_order(up, down, 2.0).reshape(-1)
    assert np.array_equal(found, expected, equal_nan=True)
    assert not np.isfinite(found).all()


def large(rows=16384, depth=256, columns=16384):
    """A large Δ in bfloat16 factors of 8 MB each."""
    chance = np.random.default_rng(0)
    up = bf16(chance.standard_normal((rows, depth), np.float32))
    down = bf16(chance.standard_normal((depth, columns), np.float32))
    tensors, fetch, fetched = stored(b=up, a=down)
    return LowRank("w", "F64", (rows, columns), tensors["b"], tensors["a"], 0.5), fetch, fetched


def test_memory_is_bounded():
    """A Δ of 2 GiB, read in slices of 1 MiB, takes what is kept and 4 MiB, not a part of itself.

    Whole it takes 6 s on one core of the machine that this was written on, 0.08 GB/s of bfloat16
    output; at the usual rank 16 and width 4096, 1.3 GB/s.
    """
    view, fetch, fetched = large()
    step, buffer = (1 << 20) // 8, memoryview(bytearray(1 << 20))
    view.read(0, 8, buffer[:64], fetch)  # compiled
    tracemalloc.start()
    for start in range(0, view.elements, 64 * step):
        view.read(start, start + step, buffer, fetch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < KEPT + (4 << 20)
    used = view.elements // step // 64 * 8 * 256 * 2  # of `up`, 8 rows a slice
    assert fetched[0] < view.down.nbytes + used + (1 << 20)  # `down` was read once


def test_memory_is_bounded_where_nothing_fits(monkeypatch):
    """A `down` beyond what is kept is read again for each slice; the bound stands."""
    view, fetch, _ = large(rows=64, depth=2048, columns=16384)
    monkeypatch.setattr(module, "KEPT", 1 << 20)
    tracemalloc.start()
    found = view.float64(0, 1 << 17, fetch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (6 << 20)
    kept = cache_of(fetch, "low rank", dict)
    assert 0 < kept._size <= kept.limit == 1 << 20
    assert np.isfinite(found).all()


def test_what_is_kept_belongs_to_one_run():
    """Two runs in one process may find other files under one name: each reads its own."""
    results = []
    for number in (1.0, 2.0):
        tensors, fetch, _ = stored(b=np.ones((2, 1)), a=np.full((1, 2), number))
        view = LowRank("w", "F64", (2, 2), tensors["b"], tensors["a"], 1.0)
        results.append(view.float64(0, 4, fetch).sum())
    assert results == [4.0, 8.0]


def test_room_is_made_for_the_next_tensor():
    """Blocks of the tensor before go, one's own stay, and nothing exceeds the limit."""
    kept, block = module._Kept(100), np.zeros(40, np.uint8)
    for key in range(3):
        kept.put("first", key, block)
    assert [kept.get("first", key) is not None for key in range(3)] == [True, True, False]
    kept.put("second", 0, block)
    assert kept.get("first", 0) is None
    assert kept.get("second", 0) is block


# -- opening ---------------------------------------------------------------------------------------

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "base_model_name_or_path": "org/base",
    "revision": None,
}


def pair(name=Q, rank=2, rows=6, columns=4):
    """The two halves of a module's Δ."""
    return {
        f"{PREFIX}{name}.lora_A.weight": np.ones((rank, columns), np.float32),
        f"{PREFIX}{name}.lora_B.weight": np.ones((rows, rank), np.float32),
    }


def opened(folder: Path, config=None, tensors=None):
    """Write an adapter and open it. ``config``: what differs from the plain one, or its text."""
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(CONFIG | (config or {}))
    (folder / "adapter_config.json").write_text(text)
    tensors = pair() if tensors is None else tensors
    (folder / "adapter_model.safetensors").write_bytes(encode(tensors))
    assert is_adapter(opening.files(folder))
    return opening.adapter(folder)


def test_what_is_an_adapter(tmp_path):
    """A folder with an adapter's config; not one that holds a whole model as well, nor a file."""
    opened(tmp_path / "a")
    assert not is_adapter(opening.files(save(tmp_path / "m", llama())))
    assert not is_adapter(opening.files(save(tmp_path / "a", llama())))
    assert not is_adapter(opening.files(tmp_path / "a" / "adapter_model.safetensors"))


def test_what_an_adapter_says(tmp_path):
    """Names, scaling, the base's address and the file's identity."""
    tensors = pair() | {f"{PREFIX}lm_head.weight": np.ones((3, 4), np.float32)}
    found = opened(tmp_path / "a", {"revision": "v1"}, tensors)
    assert found.base == "org/base@v1"
    assert list(found.deltas) == [f"{Q}.weight"]
    assert list(found.replaced) == ["lm_head.weight"]
    delta = found.deltas[f"{Q}.weight"]
    assert (delta.shape, delta.factor, delta.dtype) == ((6, 4), 2.0, "F64")
    assert [part.name for part in delta.parts] == [f"{PREFIX}{Q}.lora_{x}.weight" for x in "BA"]
    assert delta.nbytes == 4 * (2 * 4 + 6 * 2)
    assert delta.identity[-1] == 2.0
    (file,) = found.checkpoint.sources
    assert file.blob.url == str(tmp_path / "a" / "adapter_model.safetensors")
    assert len(found.checkpoint.tensors) == 3
    assert found.checkpoint.config == {}


def test_tokenizer_and_template_are_companions(tmp_path):
    """What a trainer saved beside the adapter is found as beside any checkpoint."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    assert opened(tmp_path / "a").checkpoint.companion("chat_template.jinja")


@pytest.mark.parametrize(
    ("name", "revision", "base"),
    [
        (None, None, None),
        ("", "main", None),
        ("/models/base", "main", "/models/base"),
        ("../../etc", "main", "../../etc"),
        ("org/base", "refs/pr/1", "org/base@refs/pr/1"),
    ],
)
def test_the_base_of_an_adapter(tmp_path, name, revision, base):
    """A revision belongs to a Hub id only; a path is passed on as text and nothing is opened."""
    found = opened(tmp_path / "a", {"base_model_name_or_path": name, "revision": revision})
    assert found.base == base


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({"peft_type": kind}, kind) for kind in ("IA3", "LOHA", "LOKR", "OFT", "VERA", "BOFT")),
        *(({"peft_type": kind}, "only LoRA") for kind in ("PROMPT_TUNING", None, 3, ["LORA"])),
        ({"use_dora": "yes"}, "use_dora makes"),
        ({"lora_bias": 1}, "lora_bias makes"),
        *(
            ({"trainable_token_indices": said}, "trainable_token_indices makes")
            for said in ([-1], [1, 1], [1.0], ["1"], [2**31], {"embed_tokens": 1}, "1", 7)
        ),
        *(({"target_parameters": said}, "target_parameters makes") for said in ("a", [1], [""])),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"megatron_config": {"tensor_model_parallel_size": 2}}, "Megatron"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"kasa_config": {"beta": 1e-4}}, "KaSA"),
        ({"monteclora_config": {"num_samples": 8}}, "MonteCLoRA"),
        ({"velora_config": {"num_groups": 4}}, "VeLoRA"),
        *(({"init_lora_weights": s}, "no Δ") for s in ("PiSSA", "corda", "loftq", "lora_ga")),
        *(({"init_lora_weights": s}, "such a start") for s in ("new", 3, ["pissa"], {"a": 1})),
        ({"some_new_option": True}, "not known here"),
        *(({"r": r}, "r makes no sense") for r in (0, -1, 2.0, "2", True, None, [2])),
        *(({"lora_alpha": a}, "lora_alpha makes") for a in ("4", None, True, 1e31, 10**400)),
        ({"use_rslora": "yes"}, "use_rslora makes"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out makes"),
        ({"rank_pattern": [1]}, "rank_pattern makes"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern makes"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern makes"),
        ({"rank_pattern": {"(": 2}}, "a pattern of rank_pattern"),
        *(
            ({"alpha_pattern": {pattern: 2}}, "a pattern of alpha_pattern")
            for pattern in (
                "(?=a)",
                "(?i)a",
                r"\b",
                r"(a)\1",
                "a**",
                "((a{999}){999})",
                "q" * 10**5,
            )
        ),
        ({"rank_pattern": {"q_proj": 10**12}}, "disagree about the rank"),
        ({"r": 10**30}, "disagree about the rank"),
        ({"base_model_name_or_path": ["org/base"]}, "base_model_name_or_path makes"),
        ({"base_model_name_or_path": "org/base\n--out=x"}, "base_model_name_or_path makes"),
        ({"revision": 7}, "revision makes"),
        ("[]", "invalid JSON"),
        ("{" * 10_000, "invalid JSON"),
        ('{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}', "lora_alpha makes"),
        ('{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}', "lora_alpha makes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_are_refused(tmp_path, config, message):
    """Each with its reason and where: what is no plain sum of base and product, and nonsense."""
    with pytest.raises(CheckpointError, match=message) as error:
        opened(tmp_path / "a", config)
    assert "adapter_config.json" in error.value.where
    assert len(str(error.value)) < 1000 + len(str(tmp_path))


F = np.float32


@pytest.mark.parametrize(
    ("tensors", "message", "named"),
    [
        ({k: v for k, v in pair().items() if "_A" in k}, "not whole", Q),
        ({k: v for k, v in pair().items() if "_B" in k}, "not whole", Q),
        (pair() | {f"{PREFIX}{Q}.lora_embedding_A": np.ones((2, 4), F)}, "not whole", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones((3, 4), F)}, "do not fit", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones(8, F)}, "do not fit", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones((0, 4), F)}, "do not fit", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones((2, 0), F)}, "do not fit", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones((2, 4, 3), F)}, "do not fit", Q),
        (pair() | {f"{PREFIX}{Q}.lora_A.weight": np.ones((2, 4), np.int64)}, "I64", Q),
        (pair(rank=3), "about the rank", Q),
        *(
            (pair() | {name: np.ones(6, F)}, "1 tensors", name)
            for name in (
                f"{PREFIX}{Q}.lora_magnitude_vector",
                f"{PREFIX}{Q}.lora_B.bias",
                f"{PREFIX}{Q}.lora_A.default.weight",
                f"{PREFIX}{Q}.lora_diag",
                f"{PREFIX}{Q}.ia3_l",
                f"{PREFIX}mlp.experts.base_layer.lora_A.weight",
                f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta",
                "model.norm.weight",
                "prompt_embeddings",
                f"{PREFIX}lora_A.weight",
            )
        ),
        ({f"{PREFIX}{x}": np.ones(6, F) for x in ("a.bias", "a.base_layer.bias")}, "2 tensors", ""),
        ({}, "empty", ""),
    ],
    ids=lambda value: ",".join(value)[-60:] if isinstance(value, dict) else str(value)[-30:],
)
def test_files_that_are_refused(tmp_path, tensors, message, named):
    """Halves, misfits and what belongs to no pair are named; nothing is left out silently."""
    with pytest.raises(CheckpointError, match=message) as error:
        opened(tmp_path / "a", None, tensors)
    assert named in str(error.value)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+b", ".*" * 9 + "b", "a?" * 30 + "a" * 30])
def test_patterns_meet_no_endless_names(tmp_path, pattern):
    """Patterns that would take `re` hours on a long name are matched in no time."""
    name = "a" * 300
    found = opened(tmp_path / "a", {"alpha_pattern": {pattern: 2}}, pair(name))
    assert found.deltas[f"{name}.weight"].factor == (1.0 if pattern == "(a+)+$" else 2.0)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r"model\.layers\.(0|1|2)\..*_proj",
        "^model.layers.0.self_attn.q_proj",
        "(?:q|k)_proj",
    ],
)
def test_usual_patterns_are_used(tmp_path, pattern):
    """Names, ends of names and simple expressions give the rank and the factor."""
    config = {"r": 7, "rank_pattern": {pattern: 2}, "alpha_pattern": {pattern: 3}}
    assert opened(tmp_path / "a", config).deltas[f"{Q}.weight"].factor == 1.5


# -- copies, and what a base must have -------------------------------------------------------------

EMBED = "model.embed_tokens"


def test_peft_stores_resized_modules_several_times(tmp_path):
    """The copy under the plain name counts; the base's own (original_module) is left out."""
    values = np.arange(8, dtype=F).reshape(4, 2)
    names = {"": values, ".modules_to_save": values, ".original_module": np.zeros((4, 2), F)}
    copies = {f"{PREFIX}{EMBED}{kind}.weight": value for kind, value in names.items()}
    found = opened(tmp_path / "a", None, pair() | copies)
    assert list(found.replaced) == [f"{EMBED}.weight"]
    assert np.array_equal(read(found.replaced[f"{EMBED}.weight"], opening.fetch), values)
    del copies[f"{PREFIX}{EMBED}.weight"]
    found = opened(tmp_path / "b", None, pair() | copies)
    assert np.array_equal(read(found.replaced[f"{EMBED}.weight"], opening.fetch), values)


@pytest.mark.parametrize("other", [np.ones((4, 2), F), np.zeros((4, 3), F), np.zeros((4, 2))])
def test_copies_that_differ_are_refused(tmp_path, other):
    """In numbers, shape or dtype: it is not known which was trained."""
    copies = {
        f"{PREFIX}{EMBED}.weight": np.zeros((4, 2), F),
        f"{PREFIX}{EMBED}.modules_to_save.weight": other,
    }
    with pytest.raises(CheckpointError, match="twice") as error:
        opened(tmp_path / "a", None, pair() | copies)
    assert error.value.code == "adapter-copies-differ"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, pair(), "not whole"),
        ({"lora_bias": True}, pair(), "not whole"),
        ({"lora_bias": True}, pair() | {f"{PREFIX}{Q}.lora_B.bias": np.ones(5, F)}, "do not fit"),
        ({"lora_bias": True}, pair() | {f"{PREFIX}{Q}.lora_B.bias": np.ones(6, np.int64)}, "I64"),
        (
            {"trainable_token_indices": [1, 2]},
            {f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta": np.ones((3, 2), F)},
            "trained rows",
        ),
        (
            {"target_parameters": ["mlp.experts.down_proj", "mlp.experts.other"]},
            pair("mlp.experts"),
            "which parameters",
        ),
        ({"target_parameters": ["mlp.experts.x"]}, pair("mlp.experts.base_layer"), "which param"),
        (
            {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
            pair("mlp.experts.base_layer") | pair("mlp.experts"),
            "which parameters",
        ),
        ({"target_parameters": ["experts.x"], "r": 2}, pair("experts", rank=3), "do not fit"),
    ],
)
def test_config_and_file_must_agree(tmp_path, config, tensors, message):
    """What the config says of all layers, each has; and the shapes say which parameter it is."""
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path / "a", config, tensors)


@pytest.mark.parametrize("shape", [None, (4, 3), (2, 2), (4, 2, 1)])
def test_rows_and_lines_must_fit_the_base(tmp_path, shape):
    """A base without the tensor, or of another shape, is not the one of the training."""
    config = {"trainable_token_indices": [3]}
    name = f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta"
    rows = opened(tmp_path / "a", config, {name: np.ones((1, 2), F)})
    magnitude = {f"{PREFIX}{Q}.lora_magnitude_vector": np.ones(6, F)}
    dora = opened(tmp_path / "b", {"use_dora": True}, pair() | magnitude)
    tensors = {} if shape is None else dict.fromkeys((f"{EMBED}.weight", f"{Q}.weight"), shape)
    base = opening.checkpoint(
        save(tmp_path / "base", {n: np.ones(s, F) for n, s in tensors.items()} | {"x": np.ones(1)})
    )
    for found in (rows, dora):
        with pytest.raises(MisfitError, match="its base does not have") as error:
            found.applied(base.tensors)
        assert error.value.code == "adapter-base-misfit"


# -- MLX-LM ----------------------------------------------------------------------------------------


def of_mlx(folder, tensors, **config):
    """Write an adapter as MLX-LM does, and open it."""
    folder.mkdir()
    (folder / "adapters.safetensors").write_bytes(encode(tensors))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert is_adapter(opening.files(folder))
    return opening.adapter(folder)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_of_mlx(tmp_path, kind):
    """The formulas of mlx_lm's fuse: ``W + scale · (a b)ᵀ``, rescaled row by row with DoRA."""
    chance = np.random.default_rng(0)
    base = {
        "q.weight": chance.normal(size=(6, 4)),
        "embed_tokens.weight": chance.normal(size=(9, 4)),
    }
    tensors = {
        "q.lora_a": chance.normal(size=(4, 2)),
        "q.lora_b": chance.normal(size=(2, 6)),
        "embed_tokens.lora_a": chance.normal(size=(9, 2)),
        "embed_tokens.lora_b": chance.normal(size=(2, 4)),
    }
    expected = {
        "q.weight": base["q.weight"] + 20 * (tensors["q.lora_a"] @ tensors["q.lora_b"]).T,
        "embed_tokens.weight": base["embed_tokens.weight"]
        + 20 * tensors["embed_tokens.lora_a"] @ tensors["embed_tokens.lora_b"],
    }
    if kind == "dora":
        del tensors["embed_tokens.lora_a"], tensors["embed_tokens.lora_b"]
        tensors["q.m"] = chance.uniform(1, 2, 6)
        norms = np.linalg.norm(expected["q.weight"], axis=1)
        expected["q.weight"] *= (tensors["q.m"] / norms)[:, None]
        expected["embed_tokens.weight"] = base["embed_tokens.weight"]
    config = {"fine_tune_type": kind, "lora_parameters": {"rank": 2, "scale": 20.0}}
    found = of_mlx(tmp_path / "a", tensors, **config, model="org/base")
    assert found.base == "org/base"
    result, _ = applied(found, base, tmp_path / "base")
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-12)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"q.lora_a": np.ones((4, 2))}, {}, "not whole"),
        ({"q.lora_a": np.ones((3, 4, 2)), "q.lora_b": np.ones((3, 2, 6))}, {}, "no matrices"),
        ({}, {}, "empty"),
        ({"q.lora_a": np.ones((4, 2)), "q.lora_b": np.ones((2, 6))}, {"scale": "x"}, "no scale"),
    ],
)
def test_adapters_of_mlx_that_are_refused(tmp_path, tensors, config, message):
    """Named as what they are, with MLX-LM's own remedy."""
    said = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0} | config}
    with pytest.raises(CheckpointError, match=message):
        of_mlx(tmp_path / "a", tensors, **said)


def test_names_are_only_names(tmp_path):
    """A name that looks like a way out of the folder is a name that no model has."""
    found = opened(tmp_path / "a", None, pair("../../../tmp/x"))
    assert list(found.deltas) == ["../../../tmp/x.weight"]
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_absent_weights(tmp_path):
    """Neither file is a download unfinished."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="no weights"):
        opening.adapter(tmp_path)


def test_a_pickle_is_read_where_nothing_better_is(tmp_path):
    """adapter_model.bin is not looked at beside safetensors; alone it has to be a state dict."""
    found = opened(tmp_path, None, pair(Q))
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    assert opening.adapter(tmp_path).deltas == found.deltas
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickle"):
        opening.adapter(tmp_path)
