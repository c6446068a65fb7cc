"""Extracted adapters are verified by the energies that they keep, measured again."""

import json

import numpy as np
import pytest

from paramdelta import CheckpointError, MisfitError, extract_adapter, verify
from paramdelta.jobs.verify.origin import ABSENT
from tests.checkpoints import llama, moved, save

LORA = "paramdelta.lora.json"


@pytest.fixture
def made(tmp_path):
    """An adapter of rank 3 beside its post and base."""
    base = llama()
    save(tmp_path / "base", base, config_json={"model_type": "llama"})
    save(tmp_path / "post", moved(base, 1), config_json={"model_type": "llama"})
    source = str(tmp_path / "post"), str(tmp_path / "base")
    extract_adapter(source, tmp_path / "adapter", rank=3, embeddings=True)
    return tmp_path / "adapter"


def edited(folder, change):
    """Change the description."""
    about = json.loads((folder / LORA).read_text())
    change(about)
    (folder / LORA).write_text(json.dumps(about))


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_a_right_adapter_passes(made, share):
    """Post and base are found beside it; a sample takes some of its weights."""
    found = verify(made, share=share)
    assert found.how == "of the Δ compared with post and base"
    assert found.notes == ()
    assert found.tensors == 16
    assert found.elements == found.total if share == 1 else 0 < found.elements < found.total


@pytest.mark.parametrize("options", [{"rank": 2, "dtype": "f32"}, {"energy": 0.9, "max_rank": 9}])
def test_other_adapters_pass(made, options):
    """By energy, in another dtype, without embeddings."""
    source = str(made.parent / "post"), str(made.parent / "base")
    extract_adapter(source, made, overwrite=True, **options)
    assert verify(made, share=1.0).elements > 0


def test_without_sources_its_digests_are_compared(made, tmp_path):
    """The user is told that the numbers were not compared."""
    (tmp_path / "post").rename(tmp_path / "elsewhere")
    assert verify(made, share=1.0).notes == (ABSENT,)
    named = {"post": tmp_path / "elsewhere", "base": tmp_path / "base"}
    assert verify(made, share=1.0, **named).elements > 0


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "paramdelta.lora.json"]
)
def test_every_file_counts(made, name):
    """One bit of the factors, of the config, of the description."""
    data = bytearray((made / name).read_bytes())
    data[len(data) // 2] ^= 1
    (made / name).write_bytes(data)
    with pytest.raises(MisfitError):
        verify(made, share=1.0)


CLAIMS = {
    "the energy of a module": lambda a: a["modules"][2].update(
        energy=a["modules"][2]["energy"] * 2
    ),
    "what a module keeps": lambda a: a["modules"][0].update(kept=a["modules"][0]["kept"] + 1e-6),
    "the whole energy": lambda a: a.update(energy=a["energy"] * 1.001),
    "the energy that is left": lambda a: a["left"][0].update(energy=0.0),
    "a tensor that is left": lambda a: a["left"][0]["tensors"].pop(),
    "the name of a module": lambda a: a["modules"][0].update(module="x"),
    "the shape of a module": lambda a: a["modules"][0].update(shape=[3, 4]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_is_measured_again(made, claim):
    """The description may not say what the factors do not hold."""
    edited(made, CLAIMS[claim])
    with pytest.raises(MisfitError, match="adapter"):
        verify(made, share=1.0)


def test_other_factors_are_not_what_was_measured(made):
    """Factors that were exchanged, with a list of files that agrees with them."""
    path = made / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-64:] = np.random.default_rng(0).integers(0, 127, 64, np.uint8).tobytes()
    path.write_bytes(data)
    edited(made, lambda about: about["outputs"][path.name].update(digest=None))
    with pytest.raises(MisfitError, match="that is kept"):
        verify(made, share=1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules", {}),
        ("modules", [{"tensor": 1}]),
        ("modules", [5]),
        ("left", None),
        ("energy", "much"),
        ("energy", float("nan")),
        ("outputs", None),
        ("base", None),
    ],
)
def test_malformed_descriptions_are_checkpoint_errors(made, key, value):
    """Whatever is wrong with it."""
    edited(made, lambda about: about.update({key: value}))
    with pytest.raises((CheckpointError, MisfitError)):
        verify(made, share=1.0)
