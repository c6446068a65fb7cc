"""Which files of a repository are fetched, and which stay where they are."""

import pytest

from paramdelta.storage.filekinds import left_because, wanted

LARGEST = 256_000_000


def fetched(*names, sizes=None):
    """The files that are fetched of a repository with these, beside the named ones."""
    return set(wanted({name: (sizes or {}).get(name, 1000) for name in names}, LARGEST))


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (  # the weights twice
            [
                *("config.json", "model-00001-of-00002.safetensors", "tokenizer.model.v3"),
                *("model-00002-of-00002.safetensors", "model.safetensors.index.json"),
                *("consolidated.safetensors", "params.json"),
            ],
            {"consolidated.safetensors", "params.json"},
        ),
        (["config.json", "qwen.tiktoken", "model-1-of-61.safetensors", "a.py"], set()),
        (["source.spm", "target.spm", "pytorch_model.bin", "tf_model.h5"], {"tf_model.h5"}),
        (  # modules with weights
            [
                *("modules.json", "model.safetensors", "pytorch_model.bin", "1_P/config.json"),
                *("2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "2_Dense/config.json"),
                "onnx/model.onnx",
            ],
            {"pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx"},
        ),
        (["pytorch_model.bin", "colbert_linear.pt", "bpe.codes", "dict.txt"], set()),
        (["model.safetensors", "spk_dict.pt", "chat_template.json"], set()),
        (  # a pipeline
            [
                *("model_index.json", "unet/diffusion_pytorch_model.safetensors"),
                *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/config.json"),
                *("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
                *("scheduler/scheduler_config.json", "sd_xl_base_1.0.safetensors"),
                *("vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt"),
            ],
            {
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "text_encoder/pytorch_model.bin",
                "sd_xl_base_1.0.safetensors",
            },
        ),
        (["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"],
         {"adapter_model.bin"}),
        (["model.safetensors", "checkpoint-9/model.safetensors", "checkpoint-9/config.json"],
         {"checkpoint-9/model.safetensors", "checkpoint-9/config.json"}),
        (["consolidated.safetensors", "params.json"], {"params.json"}),
        (["model.safetensors", ".gitattributes", "optimizer.pt", "scheduler.pt", "img/a.png"],
         {".gitattributes", "optimizer.pt", "scheduler.pt", "img/a.png"}),
        (["a.Q4_K.gguf", "config.json"], set()),
        (["a.Q4_K.gguf", "a.Q8_0.gguf"], {"a.Q4_K.gguf", "a.Q8_0.gguf"}),
    ],
)  # fmt: skip
def test_what_is_fetched(files, left):
    """The weights that a loader reads, once, and everything that may travel."""
    assert set(files) - fetched(*files) == left


def test_large_files_are_weights_or_stay(tmp_path):
    """A large file that is no weights is not downloaded; a shard of any size is."""
    sizes = {"model.safetensors": 10**11, "corpus.txt": 10**9}
    assert fetched("model.safetensors", "corpus.txt", sizes=sizes) == {"model.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "tokens.txt", "added_tokens.json", "vocab.json"),
        *("special_tokens_map.json", "scheduler/scheduler_config.json", "modules.json"),
        *("tokenizer_config.json", "key_mapping.json", "environment_tokens.txt", "LICENSE.md"),
        *("custom_generate/requirements.txt", "modeling_env.py", "keyword.txt"),
    ],
)
def test_names_that_are_no_secrets(name):
    """Names that sound like secrets or litter and are not."""
    assert left_because(name) == ""
