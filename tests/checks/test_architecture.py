"""Names and shapes: by rules of our own, and by the library that builds the model."""

import json
import shutil

import numpy as np
import pytest

from paramdelta.checks import architecture, check, child
from paramdelta.planning.findings import Severity
from tests.checkpoints import encode
from tests.checks.folders import edit, put, right, tensors
from tests.checks.test_quantization import BITS

REFUSED, WARNING, NOTE = Severity


def codes(folder, **options):
    """Code -> severity."""
    return {f.code: f.severity for f in check(folder, **options).findings}


# -- rules of our own ------------------------------------------------------------------------------


def test_layer_that_is_not_there(tmp_path):
    """A hole in the numbers; a model whose last layers are lacking is seen by config.json."""
    state = {}
    for layer in (0, 1, 3, 4):
        state[f"model.layers.{layer}.norm.weight"] = np.ones(2, np.float32)
    put(right(tmp_path), "model.safetensors", state)
    assert codes(tmp_path)["layer-gap"] is WARNING


def test_experts_of_another_worker(tmp_path):
    """A few numbers far apart are no hole: only some experts or codebooks are trained."""
    state = tensors() | {f"x.layers.{n}.b": np.ones(2, np.float32) for n in (0, 900)}
    put(right(tmp_path), "model.safetensors", state)
    assert "layer-gap" not in codes(tmp_path)


def test_layers_that_predict_further_tokens(tmp_path):
    """A note where config.json promises them."""
    edit(right(tmp_path), "config.json", num_nextn_predict_layers=1)
    assert codes(tmp_path) == {"prediction-missing": NOTE}
    extra = {"model.layers.2.eh_proj.weight": np.ones((2, 2), np.float32)}
    put(tmp_path, "model.safetensors", tensors() | extra)
    assert "prediction-missing" not in codes(tmp_path)
    assert "layer-count" not in codes(tmp_path)


def test_rows_without_a_library(tmp_path):
    """Fewer rows than vocab_size cannot be; more are for speed."""
    edit(right(tmp_path), "config.json", vocab_size=25)
    assert codes(tmp_path)["wrong-shapes"] is REFUSED
    edit(tmp_path, "config.json", vocab_size=20)
    assert codes(tmp_path) == {}


def test_tied_head_that_is_stored_again(tmp_path):
    """The same bytes do no harm."""
    state = tensors()
    state["lm_head.weight"] = state["model.embed_tokens.weight"].copy()
    put(right(tmp_path), "model.safetensors", state)
    edit(tmp_path, "config.json", tie_word_embeddings=True)
    assert codes(tmp_path) == {}
    state["lm_head.weight"][3, 3] ^= 1
    put(tmp_path, "model.safetensors", state)
    assert codes(tmp_path) == {"head-disagrees": REFUSED}


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_numbers_that_cannot_be(tmp_path, monkeypatch, key):
    """A billion layers are not built."""
    monkeypatch.setattr(architecture, "run_child", lambda *_: pytest.fail("it was built"))
    edit(right(tmp_path), "config.json", **{key: 10**9})
    assert codes(tmp_path)["config-implausible"] is REFUSED
    edit(tmp_path, "config.json", **{key: 2}, vision_config={"depth": 10**9})
    assert codes(tmp_path)["config-implausible"] is REFUSED


# -- the library -----------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    """The library in this process: a child would import it again for each test."""
    pytest.importorskip("transformers")

    def run(task, request, seconds):
        return child._answer(child._TASKS[task], json.loads(json.dumps(request)))

    monkeypatch.setattr(architecture, "run_child", run)


def _rename(state):
    return {f"base_model.model.{name}": value for name, value in state.items()}


def _lose(state):
    return {name: value for name, value in state.items() if "layers.1.mlp.up" not in name}


def _add(state):
    return state | {"model.layers.0.mlp.router.weight": np.ones((2, 2), np.float32)}


def _transpose(state):
    name = "model.layers.0.mlp.up_proj.weight"
    return state | {name: np.ascontiguousarray(state[name].T)}


def _leave_scale(state):
    return state | {"model.layers.0.mlp.up_proj.activation_scale": np.ones(1, np.float32)}


@pytest.mark.hf
@pytest.mark.parametrize(
    ("breaks", "wanted"),
    [
        (dict, {}),
        (_rename, {"missing-tensors": REFUSED, "unexpected-tensors": WARNING}),
        (_lose, {"missing-tensors": REFUSED}),
        (_add, {"unexpected-tensors": WARNING}),
        (_transpose, {"wrong-shapes": REFUSED}),
        (_leave_scale, {"scale-without-codes": REFUSED}),
    ],
)
def test_names_and_shapes(tmp_path, library, breaks, wanted):
    """What the library misses, does not know or cannot fit."""
    put(right(tmp_path), "model.safetensors", breaks(tensors()))
    assert codes(tmp_path) == wanted


@pytest.mark.hf
@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("num_hidden_layers", 3, "missing-tensors"),
        ("num_hidden_layers", 1, "unexpected-tensors"),
        ("intermediate_size", 24, "wrong-shapes"),
        ("vocab_size", 30, "wrong-shapes"),
        ("tie_word_embeddings", True, "head-disagrees"),
        ("num_attention_heads", 0, "architecture-refused"),
        ("hidden_act", "no such function", "architecture-refused"),
    ],
)
def test_config_of_another_model(tmp_path, library, key, value, code):
    """The weights are right and config.json is not."""
    edit(right(tmp_path), "config.json", **{key: value})
    assert code in codes(tmp_path)


def test_conversion_that_fails(tmp_path, monkeypatch):
    """What the library says of tensors that it cannot convert."""
    model = {"outcome": "done", "class": "X", "missing": [], "unexpected": [], "mismatched": []}
    model |= {"errors": ["experts differ in shape"], "rows": 24, "version": "5"}
    answer = {"outcome": "done", "models": [model]}
    monkeypatch.setattr(architecture, "run_child", lambda *_: answer)
    assert codes(right(tmp_path)) == {"conversion-failed": REFUSED}


@pytest.mark.hf
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "of the future"}, "does not know model_type"),
        ({"architectures": ["OfTheFuture"]}, "has no class"),
        ({"architectures": ...}, "names no class"),
    ],
)
def test_models_that_the_library_does_not_know(tmp_path, library, changes, words):
    """Nothing is refused for that; it is said, and rules of our own stand in."""
    edit(right(tmp_path), "config.json", **changes, vocab_size=30)
    report = check(tmp_path)
    assert any(words in text for text in report.skipped)
    assert "wrong-shapes" in {f.code for f in report.findings}


@pytest.mark.hf
def test_code_of_the_folder_is_not_run(tmp_path, library):
    """auto_map is left out of what the library sees."""
    edit(right(tmp_path), "config.json", auto_map={"AutoConfig": "x.X"}, model_type="mine")
    put(tmp_path, "x.py", "raise SystemExit('was run')")
    assert any("does not know" in text for text in check(tmp_path).skipped)


@pytest.mark.hf
def test_quantized_names(tmp_path, library):
    """GPTQ's parts stand for the weights that the class has; a lost one is missed."""
    state, codes_of = {}, {}
    for name, value in tensors().items():
        if ".layers." in name and value.ndim == 2:
            stem = name.removesuffix("weight")
            rows, columns = value.shape
            codes_of[stem] = columns
            state |= {
                stem + "qweight": np.zeros((columns // 8, rows), np.int64),
                stem + "qzeros": np.zeros((1, max(1, rows // 8)), np.int64),
                stem + "scales": np.ones((1, rows), np.float16),
                stem + "g_idx": np.zeros(columns, np.int64),
                stem + "bias": np.zeros(rows, np.float16),
            }
        else:
            state[name] = value
    folder = right(tmp_path)

    def save(kept):
        data = encode(kept, {"format": "pt"})
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        end, parts = 0, []
        for name, value in kept.items():
            raw = value.astype(np.int32).tobytes() if value.dtype == np.int64 else value.tobytes()
            entry = header[name]
            entry["dtype"] = "I32" if value.dtype == np.int64 else entry["dtype"]
            entry["data_offsets"] = [end, end + len(raw)]
            end += len(raw)
            parts.append(raw)
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + b"".join(parts)
        (folder / "model.safetensors").write_bytes(content)

    save(state)
    edit(folder, "config.json", quantization_config={"quant_method": "gptq"} | BITS)
    assert codes(folder) == {}
    lost = "model.layers.1.self_attn.o_proj."
    save({name: value for name, value in state.items() if not name.startswith(lost)})
    assert codes(folder) == {"missing-tensors": REFUSED}


@pytest.mark.hf
def test_in_a_child(tmp_path):
    """The real thing: the library in a process of its own."""
    pytest.importorskip("transformers")
    put(right(tmp_path), "model.safetensors", _lose(tensors()))
    (finding,) = check(tmp_path).findings
    assert finding.code == "missing-tensors"
    assert finding.tensors == ("model.layers.1.mlp.up_proj.weight",)


# -- components ------------------------------------------------------------------------------------


@pytest.mark.hf
def test_diffusers(tmp_path, library):
    """Each component is compared with its own class; names and files are diffusers' own."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    report = check(tmp_path)
    assert (report.kind, report.findings) == ("diffusers", ())
    edit(tmp_path / "unet", "config.json", layers_per_block=2)
    assert codes(tmp_path)["missing-tensors"] is REFUSED
    shutil.rmtree(tmp_path / "unet")
    assert codes(tmp_path) == {"component-missing": REFUSED}
