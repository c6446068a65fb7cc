"""Which tensors have rows of tokens: against models that transformers builds with one more."""

import copy

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from paramdelta.planning.tokenaxes import token_axes
from tests.integration.families import FAMILIES

pytestmark = pytest.mark.hf

TEXT = [name for name, family in FAMILIES.items() if family.chat is not None]


def shapes(family, config):
    """Name -> shape of the model that a configuration describes; it has no memory."""
    with torch.device("meta"):
        model = family.loader.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", TEXT)
def test_axes_of_tokens(name):
    """They are the axes that grow with the vocabulary; a codebook of the same size does not."""
    family = FAMILIES[name]
    config = family.config(**family.sizes)
    larger = copy.deepcopy(config)
    text = larger.get_text_config()
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(text, key):
            setattr(text, key, getattr(text, key) + 1)
    now, then = shapes(family, config), shapes(family, larger)
    wanted = {
        each: next(axis for axis, size in enumerate(shape) if then[each][axis] != size)
        for each, shape in now.items()
        if then[each] != shape
    }
    assert wanted
    assert token_axes(now, config.to_dict(), config.get_text_config().vocab_size) == wanted
    assert token_axes(now, config.to_dict(), 96) == wanted
