"""What is copied because it is no weight: told by names, dtypes and content."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from paramdelta import Delta, Recipe, Severity, mix, plan
from tests.checkpoints import llama
from tests.planning.test_plan import codes

CONFIG = '{"model_type": "llama"}'


def trio(tmp_path, extra):
    """A recipe for three F32 models, each with the tensors that ``extra(number)`` gives."""
    chance = np.random.default_rng(0)
    start = {name: chance.normal(size=value.shape) for name, value in llama().items()}
    for number, role in enumerate(("base", "post", "new")):
        folder = tmp_path / role
        folder.mkdir(parents=True)
        nudge = np.random.default_rng(number)
        weights = {n: v + (number > 0) * nudge.normal(0, 0.1, v.shape) for n, v in start.items()}
        tensors = {n: v.astype(np.float32) for n, v in weights.items()} | extra(number)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(CONFIG)
    return Recipe(str(tmp_path / "new"), (Delta(str(tmp_path / "post"), str(tmp_path / "base")),))


def integers(seed, shape, dtype):
    """Random codes."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype)


LAYOUTS = {
    "gptq": lambda n: {
        "a.qweight": integers(n, (4, 32), np.int32),
        "a.qzeros": integers(n, (1, 4), np.int32),
        "a.scales": np.full((1, 32), 0.1 + n, np.float16),
        "a.g_idx": np.zeros(32, np.int32),
    },
    "awq": lambda n: {
        "a.qweight": integers(n, (32, 4), np.int32),
        "a.qzeros": integers(n, (1, 4), np.int32),
        "a.scales": np.full((1, 32), 0.1 + n, np.float16),
    },
    "mlx": lambda n: {
        "a.weight": integers(n, (32, 4), np.uint32),
        "a.scales": np.full((32, 1), 0.1 + n, np.float16),
        "a.biases": np.full((32, 1), -0.1 - n, np.float16),
    },
    "compressed-tensors": lambda n: {
        "a.weight_packed": integers(n, (32, 4), np.int32),
        "a.weight_scale": np.full((32, 1), 0.1 + n, np.float32),
        "a.weight_shape": np.array([32, 32], np.int64),
    },
    "bitsandbytes": lambda n: {
        "a.weight": integers(n, (512, 1), np.uint8),
        "a.weight.absmax": np.full((16,), 0.1 + n, np.float32),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_without_a_word_in_the_config(tmp_path, layout):
    """Recognized by names and dtypes: codes would be copied and their scales mixed."""
    made = plan(trio(tmp_path, LAYOUTS[layout]))
    assert codes(made)["quantized"] is Severity.REFUSED
    assert layout in next(f.what for f in made.findings if f.code == "quantized")


def test_codes_in_post_alone(tmp_path):
    """Said as such, not as tensors that are missing."""
    plain = np.ones((32, 32), np.float32)
    made = plan(trio(tmp_path, lambda n: LAYOUTS["gptq"](n) if n == 1 else {"a.weight": plain}))
    refused = {f.code for f in made.refused}
    assert refused == {"quantized"}


def test_codes_of_an_unknown_format(tmp_path):
    """An integer matrix that post changed: no Δ of it can be taken."""
    recipe = trio(tmp_path, lambda n: {"a.W_q": integers(n, (32, 16), np.uint8)})
    made = plan(recipe)
    assert codes(made)["integer-changed"] is Severity.REFUSED
    allowed = plan(Recipe(recipe.new_base, recipe.deltas, allow=("integer-changed",)))
    assert not allowed.refused


def test_integers_that_post_did_not_change(tmp_path):
    """A table of expert numbers, say: a note, and the new base's."""
    made = plan(trio(tmp_path, lambda n: {"router.table": integers(0, (64, 8), np.int32)}))
    assert codes(made) == {"integer": Severity.NOTE}


def test_a_counter_that_post_changed(tmp_path):
    """One number is no matrix of codes: a warning, and the new base's."""
    recipe = trio(tmp_path, lambda n: {"steps": np.array(n, np.int32)})
    assert codes(plan(recipe)) == {"counter-changed": Severity.WARNING}
    mix(recipe, tmp_path / "out")


def test_a_change_in_a_large_tensor_is_seen_at_its_ends_and_middle(tmp_path):
    """Of more than 1 MB, runs from three places are compared."""
    size = 3 << 20

    def table(number):
        values = np.zeros((size // 8, 8), np.uint8)
        values[-1] = number
        return {"table": values}

    assert "integer-changed" in codes(plan(trio(tmp_path, table)))


def test_complex_buffers(tmp_path):
    """Equal in post and base: a note; changed: refused, and the message is not of codes."""
    waves = np.exp(1j * np.arange(64.0)).reshape(8, 8).astype(np.complex64)
    assert codes(plan(trio(tmp_path / "same", lambda n: {"freqs_cis": waves}))) == {
        "complex": Severity.NOTE
    }
    made = plan(trio(tmp_path / "changed", lambda n: {"freqs_cis": waves * (n + 1)}))
    assert codes(made)["integer-changed"] is Severity.REFUSED
