"""Folders of several models for tests: sentence-transformers modules and diffusers pipelines."""

import json
from pathlib import Path

import numpy as np

from tests.checkpoints import encode, save

PREFIX = "sentence_transformers.models."
KINDS = ("base", "post", "new")


def put(folder: Path, name: str, content) -> None:
    """Write one file: bytes, text, or a value as JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def weights(seed: int, **shapes) -> dict[str, np.ndarray]:
    """Tensors in float32; ``_`` in names is written as a dot."""
    chance = np.random.default_rng(seed)
    return {
        name.replace("_", "."): chance.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def modules(**kinds: str) -> list[dict]:
    """modules.json: the class of each module by its path; ``main`` is the top."""
    return [
        {"idx": n, "name": str(n), "path": "" if path == "main" else path, "type": PREFIX + kind}
        for n, (path, kind) in enumerate(kinds.items())
    ]


def embedder(folder: Path, seed: int, *, dense: bool = True, main: str = "") -> Path:
    """An encoder, a pooling and a dense layer. ``main``: the folder of the encoder."""
    encoder = weights(seed, embeddings_weight=(16, 8), layer_weight=(8, 8))
    config = {"model_type": "bert", "vocab_size": 16, "hidden_size": 8, "dtype": "float32"}
    save(folder / main, encoder, config_json=config)
    put(folder, "1_Pooling/config.json", {"word_embedding_dimension": 8})
    kinds = {main or "main": "Transformer", "1_Pooling": "Pooling"}
    if dense:
        kinds["2_Dense"] = "Dense"
        layer = weights(seed + 100, linear_weight=(4, 8), linear_bias=(4,))
        put(folder, "2_Dense/config.json", {"in_features": 8, "out_features": 4})
        put(folder, "2_Dense/model.safetensors", encode(layer, {"format": "pt"}))
    put(folder, "modules.json", modules(**kinds))
    return folder


def pipeline(folder: Path, seed: int) -> Path:
    """A UNet, a VAE and a scheduler."""
    index = {
        "_class_name": "APipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    put(folder, "model_index.json", index)
    for number, name in enumerate(("unet", "vae")):
        put(folder, f"{name}/config.json", {"_class_name": name, "sample_size": 8})
        tensors = weights(10 * seed + number, conv_in_weight=(4, 4, 3, 3), conv_out_weight=(4, 4))
        put(folder, f"{name}/diffusion_pytorch_model.safetensors", encode(tensors))
    put(folder, "scheduler/scheduler_config.json", {"prediction_type": "epsilon"})
    return folder
