"""Which tensors have rows of tokens: against models that transformers builds with one more."""

import copy
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from paramdelta import mix
from paramdelta.planning.tokenaxes import token_axes
from tests.integration.families import FAMILIES, save_family

pytestmark = pytest.mark.hf

TEXT = [name for name, family in FAMILIES.items() if family.chat is not None]
WORDS = 96  # of the tokenizer; all but the first three are permuted


def shapes(family, config):
    """Name -> shape of the model that a configuration describes; it has no memory."""
    with torch.device("meta"):
        model = family.loader.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def grown(family):
    """Name -> axis that grows with the vocabulary; the shapes; and the configuration."""
    config = family.config(**family.sizes)
    larger = copy.deepcopy(config)
    text = larger.get_text_config()
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(text, key):
            setattr(text, key, getattr(text, key) + 1)
    now, then = shapes(family, config), shapes(family, larger)
    axes = {
        name: next(axis for axis, size in enumerate(shape) if then[name][axis] != size)
        for name, shape in now.items()
        if then[name] != shape
    }
    return axes, now, config


@pytest.mark.parametrize("name", TEXT)
def test_axes_of_tokens(name):
    """They are the axes that grow with the vocabulary; a codebook of the same size does not."""
    wanted, now, config = grown(FAMILIES[name])
    assert wanted
    assert token_axes(now, config.to_dict(), config.get_text_config().vocab_size) == wanted
    assert token_axes(now, config.to_dict(), WORDS) == wanted


@pytest.mark.parametrize("name", [name for name in TEXT if not FAMILIES[name].tokens])
def test_rows_are_mixed_by_token(tmp_path, name):
    """The new base has its tokens in another order: the same mix comes out, in that order."""
    family = FAMILIES[name]
    axes = {_end(tensor): axis for tensor, axis in grown(family)[0].items()}
    recipe = save_family(family, tmp_path)
    plain = load_file(mix(recipe, tmp_path / "plain").folder / "model.safetensors")
    order = torch.cat([torch.arange(3), 3 + torch.randperm(WORDS - 3)])
    path = tmp_path / "new" / "model.safetensors"

    def permuted(state):
        return {n: _permuted(value, axes.get(_end(n)), order) for n, value in state.items()}

    save_file(permuted(load_file(path)), path, metadata={"format": "pt"})
    path = tmp_path / "new" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"] = {words[old]: number for number, old in enumerate(order.tolist())}
    path.write_text(json.dumps(content), encoding="utf-8")
    found = load_file(mix(recipe, tmp_path / "out").folder / "model.safetensors")
    wanted = permuted(plain)
    assert found.keys() == wanted.keys()
    for tensor, value in found.items():
        axis, expected = axes.get(_end(tensor)), wanted[tensor]
        if axis is not None:  # beyond the tokens is padding: no Δ where tokens have moved
            value, expected = (each.narrow(axis, 0, WORDS) for each in (value, expected))
        assert torch.equal(value, expected), tensor


def _end(name):
    """The last parts of a name, which are the same in files and in memory."""
    return ".".join(name.split(".")[-2:])


def _permuted(value, axis, order):
    """A tensor whose axis of tokens, if it has one, is in another order."""
    if axis is None:
        return value
    whole = torch.arange(value.shape[axis])
    whole[: len(order)] = order
    return value.index_select(axis, whole).contiguous()
