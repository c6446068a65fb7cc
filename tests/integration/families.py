"""The matrix of real architectures: how each is built, mixed and checked.

The tests and the page `docs/families.md` both take what they say from `check` and `check_format`:
a tick on the page is a check that ran. The configurations are tiny; the classes, the names of the
tensors, the files and the loading are transformers' own. Nothing is downloaded.
"""

import contextlib
import copy
import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a processor would look for its code on the Hub

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from paramdelta import Delta, Recipe, Rule, Schedule, mix, plan, set_scale, verify
from paramdelta import load as load_live
from paramdelta.checks import architecture, child, template
from paramdelta.checks import check as check_folder

State = dict[str, torch.Tensor]
ROLES = ("new", "post", "base")
STEPS = ("plan", "mix", "check", "load", "equal", "forward", "live")

# -- the families ----------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DECODER = SMALL | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
BART = SEQ2SEQ | {
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
# Llama 3 -> 3.1: the new base reads four times as far, by scaled rotary positions.
LLAMA_31 = {
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LLAMA_3 = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
# What the distills of DeepSeek-R1 call tokens that their bases hold in reserve, by id.
R1_TOKENS = {
    1: "<｜begin▁of▁sentence｜>",
    2: "<｜end▁of▁sentence｜>",
    93: "<｜User｜>",
    94: "<｜Assistant｜>",
    95: "<think>",
}
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}"
R1_CHAT = (
    "{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' else '<｜Assistant｜>' }}"
    "{{ m.content }}{{ '<｜end▁of▁sentence｜>' if m.role == 'assistant' }}{% endfor %}"
)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


@dataclass(frozen=True)
class Family:
    """One row of the matrix.

    ``auto``: the Auto class that loads it. ``config``: the architecture's own class and its tiny
    sizes. ``roles``: what the config of post, base or new base has differently. ``tokens``: tokens
    that post calls otherwise, by id. ``chat``: post's chat template; None for a model without a
    tokenizer. ``processor``: an image processor or feature extractor beside the weights. ``fp8``:
    by role, how its weights are quantized (see `quantize`). ``kept``: patterns of the tensors that
    stay the new base's, by a rule of the scale. ``warned``: codes of warnings that are right to
    come.
    """

    auto: str
    config: Callable[..., Any]
    sizes: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    roles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Mapping[int, str] = field(default_factory=dict)
    chat: str | None = CHAT
    processor: Callable[[], Any] | None = None
    fp8: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    note: str = ""

    @property
    def loader(self) -> Any:
        """The Auto class."""
        return getattr(hf, self.auto)


def decoder(config: str, changes: Mapping[str, Any] | None = None, **options: Any) -> Family:
    """A causal language model; ``changes`` to the common tiny sizes."""
    sizes = DECODER | {"tie_word_embeddings": False} | dict(changes or {})
    return Family("AutoModelForCausalLM", getattr(hf, config), sizes, **options)


def _gemma_vision(**changes: Any) -> Any:
    text = hf.Gemma3TextConfig(**DECODER, sliding_window=16, **changes)
    return hf.Gemma3Config(
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=90,
        eoi_token_index=91,
        image_token_index=92,
    )


def _gemma_4(**changes: Any) -> Any:
    text = hf.Gemma4TextConfig(
        **DECODER,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        **changes,
    )
    return hf.Gemma4Config(
        text_config=text,
        vision_config=VISION
        | {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 4, "position_embedding_size": 16},
        audio_config=None,
        boi_token_id=90,
        eoi_token_id=91,
        image_token_id=92,
        video_token_id=93,
        boa_token_id=94,
        eoa_token_index=95,
        audio_token_id=89,
    )


def _qwen3_vl(**changes: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]}
    text = hf.Qwen3VLTextConfig(**DECODER, rope_parameters=rope, **changes)
    return hf.Qwen3VLConfig(
        text_config=text.to_dict(),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 14,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        vision_start_token_id=90,
        vision_end_token_id=91,
        image_token_id=92,
        video_token_id=93,
        tie_word_embeddings=True,
    )


def _chameleon(**sizes: Any) -> Any:
    codes = {f"IMGIMG{letter}Z": 80 + number for number, letter in enumerate("ABCD")}
    return hf.ChameleonConfig(
        **sizes,
        vocabulary_map={"<image>": 92, **codes},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 96,  # as many codes of images as tokens of text
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
        },
    )


def _detr(**sizes: Any) -> Any:
    backbone = hf.ResNetConfig(**RESNET, out_features=["stage4"])
    return hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **sizes)


def _rt_detr(**sizes: Any) -> Any:
    backbone = hf.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    return hf.RTDetrConfig(backbone_config=backbone, **sizes)


FAMILIES: dict[str, Family] = {
    "Llama 3": decoder("LlamaConfig", LLAMA_3),
    "Llama 3 → 3.1": decoder(
        "LlamaConfig", LLAMA_3, roles={"new": LLAMA_31}, note="RoPE scaling of the new base"
    ),
    "DeepSeek-R1-Distill-Llama": decoder(
        "LlamaConfig",
        LLAMA_31,
        tokens=R1_TOKENS,
        chat=R1_CHAT,
        note="other chat template and special tokens",
    ),
    "Qwen2": decoder("Qwen2Config"),
    "Qwen2.5": decoder(
        "Qwen2Config",
        {"tie_word_embeddings": True, "vocab_size": 128},
        note="tied, embedding padded beyond the tokenizer",
    ),
    "DeepSeek-R1-Distill-Qwen": decoder(
        "Qwen2Config",
        {"tie_word_embeddings": True, "vocab_size": 128, "bos_token_id": 2},
        tokens=R1_TOKENS,
        chat=R1_CHAT,
        roles={"post": {"tie_word_embeddings": False, "bos_token_id": 1}},
        warned=("untied",),
        note="post untied, bases tied: the output is untied",
    ),
    "Qwen3": decoder("Qwen3Config", {"tie_word_embeddings": True}),
    "Qwen3-MoE": decoder(
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "Mistral": decoder("MistralConfig", {"sliding_window": 32}),
    "Mixtral": decoder("MixtralConfig", {"num_local_experts": 4}),
    "DeepSeek-V3": decoder(
        "DeepseekV3Config",
        {
            "hidden_size": 160,  # not a multiple of a block: the last block is smaller
            "num_key_value_heads": 4,
            "intermediate_size": 272,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_nextn_predict_layers": 0,  # transformers does not store them
        },
        fp8=dict.fromkeys(ROLES, "block"),
        note="FP8 weights with scales of 128 × 128 blocks; the output is BF16 by default",
    ),
    "Llama 4": decoder(
        "Llama4TextConfig",
        {"num_local_experts": 4, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
        note="text only; experts joined and turned",
    ),
    "gpt-oss": decoder(
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "intermediate_size": 32,  # as wide as the model, as in gpt-oss-20b: down is square
            "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
        },
        note="in BF16; not the MXFP4 of the release",
    ),
    "Gemma 3": decoder("Gemma3TextConfig", {"tie_word_embeddings": True, "sliding_window": 16}),
    "Gemma 3 with vision": Family(
        "AutoModelForImageTextToText",
        _gemma_vision,
        {},
        processor=lambda: hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
    ),
    "Gemma 3n": decoder(
        "Gemma3nTextConfig",
        {
            "tie_word_embeddings": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.95, 0.0],
        },
        note="text only; an embedding for each layer",
    ),
    "Gemma 4 with vision": Family(
        "AutoModelForImageTextToText",
        _gemma_4,
        {},
        processor=lambda: hf.Gemma4ImageProcessorPil(patch_size=4),
        note="an embedding for each layer",
    ),
    "Qwen3-VL": Family(
        "AutoModelForImageTextToText",
        _qwen3_vl,
        {},
        processor=lambda: hf.Qwen2VLImageProcessorPil(patch_size=14),
    ),
    "Chameleon": Family(
        "AutoModelForImageTextToText",
        _chameleon,
        DECODER | {"num_key_value_heads": 4},
        processor=lambda: hf.ChameleonImageProcessorPil(),
        note="two vocabularies of one size: tokens and codes of images",
    ),
    "Granite MoE": decoder("GraniteMoeConfig", {"num_local_experts": 4}),
    "Mamba 2": Family(
        "AutoModelForCausalLM",
        hf.Mamba2Config,
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "num_hidden_layers": 2,
            "n_groups": 2,
            "chunk_size": 8,
        }
        | ENDS,
        note="state space model",
    ),
    "Phi-3": decoder("Phi3Config", note="fused projections"),
    "GPT-2": Family(
        "AutoModelForCausalLM",
        hf.GPT2Config,
        {
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        torch.float32,
    ),
    "BERT": Family("AutoModelForMaskedLM", hf.BertConfig, SMALL, torch.float32),
    "ModernBERT": Family(
        "AutoModelForMaskedLM",
        hf.ModernBertConfig,
        SMALL | ENDS | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
        torch.float32,
    ),
    "XLM-R": Family("AutoModelForMaskedLM", hf.XLMRobertaConfig, SMALL | ENDS, torch.float32),
    "RoBERTa as a classifier": Family(
        "AutoModelForSequenceClassification",
        hf.RobertaConfig,
        SMALL
        | ENDS
        | {
            "id2label": {0: "bad", 1: "fair", 2: "good"},
            "label2id": {"bad": 0, "fair": 1, "good": 2},
        },
        torch.float32,
        note="the same head in all three",
    ),
    "BART": Family("AutoModelForSeq2SeqLM", hf.BartConfig, BART, torch.float32),
    "mBART": Family("AutoModelForSeq2SeqLM", hf.MBartConfig, BART, torch.float32),
    "Marian": Family("AutoModelForSeq2SeqLM", hf.MarianConfig, BART, torch.float32),
    "T5": Family(
        "AutoModelForSeq2SeqLM",
        hf.T5Config,
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "eos_token_id": 2,
        },
        torch.float32,
    ),
    "T5 1.1": Family(
        "AutoModelForSeq2SeqLM",
        hf.T5Config,
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "eos_token_id": 2,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        torch.float32,
        note="as Flan-T5: gated, with a head of its own",
    ),
    "Whisper": Family(
        "AutoModelForSpeechSeq2Seq",
        hf.WhisperConfig,
        SEQ2SEQ
        | {
            "vocab_size": 96,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        torch.float16,
        processor=lambda: hf.WhisperFeatureExtractor(feature_size=8),
    ),
    "ViT": Family(
        "AutoModelForImageClassification",
        hf.ViTConfig,
        VISION | {"num_labels": 5},
        torch.float32,
        chat=None,
        processor=lambda: hf.ViTImageProcessorPil(size={"height": 28, "width": 28}),
    ),
    "ResNet": Family(
        "AutoModelForImageClassification",
        hf.ResNetConfig,
        RESNET | {"num_labels": 5},
        torch.float32,
        chat=None,
        processor=lambda: hf.ConvNextImageProcessorPil(size={"shortest_edge": 28}),
        kept=("*running_*",),
        note="batch norm: a rule of the scale keeps the new base's running statistics",
    ),
    "DETR": Family(
        "AutoModelForObjectDetection",
        _detr,
        SEQ2SEQ | {"num_queries": 6, "num_labels": 5},
        torch.float32,
        chat=None,
        processor=lambda: hf.DetrImageProcessorPil(),
        note="ResNet backbone of transformers, batch norm frozen",
    ),
    "RT-DETR": Family(
        "AutoModelForObjectDetection",
        _rt_detr,
        {
            "d_model": 16,
            "encoder_in_channels": [16, 16, 16],
            "encoder_hidden_dim": 16,
            "encoder_ffn_dim": 32,
            "encoder_attention_heads": 2,
            "feat_channels": [16, 16, 16],
            "decoder_in_channels": [16, 16, 16],
            "decoder_ffn_dim": 32,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "num_queries": 6,
            "num_denoising": 0,
            "num_labels": 5,
        },
        torch.float32,
        chat=None,
        processor=lambda: hf.RTDetrImageProcessorPil(),
        warned=("statistics-mixed",),
        note="batch norm: running statistics are mixed, their counts copied",
    ),
    "YOLOS": Family(
        "AutoModelForObjectDetection",
        hf.YolosConfig,
        VISION
        | {
            "num_hidden_layers": 2,
            "image_size": [32, 32],
            "patch_size": 16,
            "num_detection_tokens": 6,
            "num_labels": 5,
        },
        torch.float32,
        chat=None,
        processor=lambda: hf.YolosImageProcessorPil(),
    ),
}

# -- three checkpoints of a family -----------------------------------------------------------------


def nudged(state: Mapping[str, torch.Tensor], seed: int, amount: float = 0.003) -> State:
    """A state after some "training": every float a little elsewhere, every counter further on.

    Batch norm's running statistics are floats of the state as the weights are, and move with them;
    but not those of a frozen one, which counts no batches.
    """
    chance = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in state.items():
        layer, _, last = name.rpartition(".")
        counted = f"{layer}.num_batches_tracked" in state
        if last in ("running_mean", "running_var") and not counted:
            moved[name] = value.clone()
        elif value.is_floating_point():
            noise = torch.randn(value.shape, generator=chance)
            moved[name] = (value.float() + amount * noise).to(value.dtype)
        else:
            moved[name] = value + 10 * seed
    return moved


def build_models(family: Family) -> dict[str, Any]:
    """new base, post and base of a family, in memory: base, and twice base after some training.

    Where a role's model is tied, its head is its embedding, whatever the others have.
    """
    torch.manual_seed(0)
    built = {}
    for role in ROLES:
        config = family.config(**{**family.sizes, **family.roles.get(role, {})})
        built[role] = family.loader.from_config(config).to(family.dtype)
    start = built["base"].state_dict()
    for value in start.values():
        if value.dim() > 1 and value.is_floating_point() and not value.any():
            value.normal_(std=0.02)  # a trained matrix is not zero
    for role, seed in (("post", 1), ("new", 2)):
        built[role].load_state_dict(nudged(start, seed))
        built[role].tie_weights()
    return built


def save_tokenizer(
    folder: Path, chat: str | None = None, tokens: Mapping[int, str] | None = None
) -> None:
    """A tokenizer of 96 words, the last three of them held in reserve, as AutoTokenizer loads it.

    ``tokens``: other words at some ids.
    """
    words = ["<pad>", "<s>", "</s>", "<unk>", *map(str, range(89))]
    words += [f"<|reserved_special_token_{number}|>" for number in range(3)]
    for number, word in (tokens or {}).items():
        words[number] = word
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=words[0], bos_token=words[1], eos_token=words[2]
    )
    fast.chat_template = chat
    fast.save_pretrained(folder)


def save_family(family: Family, folder: Path) -> Recipe:
    """Save the three checkpoints of a family under ``folder`` and return the recipe for them."""
    for role, model in build_models(family).items():
        target = folder / role
        if role == "post" and model.can_generate():
            model.generation_config.eos_token_id = [2, 9]
        model.save_pretrained(target)
        if family.chat is not None:
            post = role == "post"
            save_tokenizer(target, family.chat if post else None, family.tokens if post else None)
        if family.processor is not None:
            family.processor().save_pretrained(target)
        if role in family.fp8:
            quantize(target, family.fp8[role])
    scale = Schedule([Rule(match=each, value=0) for each in family.kept] + [Rule(value=1)])
    return Recipe(
        str(folder / "new"),
        (Delta(str(folder / "post"), str(folder / "base"), scale if family.kept else 1.0),),
    )


def quantize(folder: Path, scales: str) -> None:
    """Store a checkpoint's projections in FP8 (E4M3), as releases do; the rest stays as it is.

    ``scales``: "block" is DeepSeek-V3's format, one float32 to be multiplied for 128 × 128 weights;
    "row" and "tensor" are that of compressed-tensors.
    """
    path = folder / "model.safetensors"
    state: State = {}
    for name, value in load_file(path).items():
        if name.endswith("e_score_correction_bias"):
            state[name] = value.float()  # float32 in the release
        elif not name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            state[name] = value
        else:
            rows, columns = value.shape
            block = {"block": (128, 128), "row": (1, columns), "tensor": (rows, columns)}[scales]
            stored, scale = _fp8(value, block)
            state[name] = stored
            if scales == "block":
                state[f"{name}_scale_inv"] = scale
            else:
                state[f"{name}_scale"] = scale if scales == "row" else scale.reshape(1)
    save_file(state, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if scales == "block":
        config["quantization_config"] = FP8 | {"weight_block_size": [128, 128]}
    else:
        strategy = {"row": "channel", "tensor": "tensor"}[scales]
        weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _fp8(value: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (-(-n // b) for n, b in zip(value.shape, block, strict=True))
    scale = torch.empty(rows, columns)
    stored = torch.empty(value.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            at = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scale[i, j] = value[at].float().abs().max() / 448  # E4M3's largest number
            stored[at] = (value[at].float() / scale[i, j]).to(stored.dtype)
    return stored, scale


# -- the reference ---------------------------------------------------------------------------------


def read_state(folder: Path) -> State:
    """Everything that a checkpoint stores; FP8 weights times their scales, in float64."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        state |= torch.load(path, weights_only=True)
    for name in [name for name in state if state[name].dtype == torch.float8_e4m3fn]:
        inverse = state.pop(f"{name}_scale_inv", None)
        scale = (inverse if inverse is not None else state.pop(f"{name}_scale")).double()
        weight = state[name].double()
        if inverse is not None:
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            scale = scale[: weight.shape[0], : weight.shape[1]]
        state[name] = weight * scale
    return state


def rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 rounded once, to nearest even.

    torch goes from float64 to 16 bits by way of float32, which rounds twice. So float32 is made to
    err toward an odd last bit: then it is never mistaken for half way between two short numbers.
    """
    if dtype in (torch.float64, torch.float32):
        return value.to(dtype)
    near = value.float()
    error = value - near.double()
    even = (near.view(torch.int32) & 1) == 0
    beyond = torch.nextafter(near, torch.where(error > 0, torch.inf, -torch.inf).float())
    return torch.where((error != 0) & even, beyond, near).to(dtype)


def expected_state(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    dtypes: Mapping[str, torch.dtype],
    ties: Mapping[str, str] | None = None,
    kept: Sequence[str] = (),
) -> State:
    """``new + (post − base)`` in float64 for every name of ``dtypes``, which gives the results'.

    Integers are the new base's, and what a pattern of ``kept`` matches. ``ties``: where a name is
    absent in a state, the name that stands for it.
    """

    def value(role: str, name: str) -> torch.Tensor:
        state = states[role]
        return state[name] if name in state else state[(ties or {})[name]]

    expected = {}
    for name, dtype in dtypes.items():
        new, post, base = (value(role, name) for role in ROLES)
        if new.is_floating_point() and not any(fnmatchcase(name, each) for each in kept):
            expected[name] = rounded(new.double() + (post.double() - base.double()), dtype)
        else:
            expected[name] = new
    return expected


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> list[str]:
    """What is not equal, one line a tensor: names, dtypes, shapes, values."""
    lines = [f"{name}: not there" for name in expected.keys() - found.keys()]
    lines += [f"{name}: should not be there" for name in found.keys() - expected.keys()]
    for name in sorted(found.keys() & expected.keys()):
        one, other = found[name], expected[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            lines.append(f"{name}: {one.dtype} {list(one.shape)}, expected {other.dtype}")
        elif not torch.equal(one, other):
            count = int((one != other).sum())
            lines.append(f"{name}: {count} of {one.numel()} elements differ")
    return lines


# -- the checks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one run of the checks gave.

    ``problems``: by step; a step that is absent was not reached, one without problems passed.
    ``model``: the class that was loaded.
    """

    problems: Mapping[str, list[str]]
    model: str = ""

    @property
    def passed(self) -> bool:
        """Whether every step was reached and none has a problem."""
        return all(self.problems.get(step) == [] for step in STEPS)


def check(family: Family, folder: Path) -> Outcome:
    """Build a family's checkpoints in an empty folder, mix them, and look at everything."""
    problems: dict[str, list[str]] = {}
    model = None
    step = "plan"
    try:
        recipe = save_family(family, folder)
        findings = plan(recipe).findings
        grave = [f for f in findings if f.severity.value != "note"]
        problems[step] = [
            f"{f.severity.value} {f.code}: {f.what} {f.sample()}"
            for f in grave
            if f.severity.value == "refused" or f.code not in family.warned
        ]
        unsaid = set(family.warned) - {f.code for f in grave}
        problems[step] += [f"there is no warning {code}" for code in unsaid]
        step = "mix"
        out = mix(recipe, folder / "out").folder
        verify(out, share=1.0)
        problems[step] = []
        step = "check"
        problems[step] = check_problems(out)
        step = "load"
        model, said = load(family.auto, out)
        problems[step] = said + companion_problems(family, folder, model)
        step = "equal"
        reference = reference_state(family, folder, model)
        problems[step] = stored_problems(family, folder)
        problems[step] += differences(model.state_dict(), reference)
        step = "forward"
        problems[step] = forward_problems(family, folder, model, reference)
        step = "live"
        problems[step] = live_problems(recipe, model)
    except Exception:  # noqa: BLE001 - whatever goes wrong is the result of this step
        problems[step] = [traceback.format_exc()]
    return Outcome(problems, type(model).__name__ if model is not None else "")


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """Collect everything that is warned or logged as a warning meanwhile."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(handler)


def load(auto: str, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model, and everything that transformers has to say against its checkpoint."""
    with overheard() as said:
        model, info = getattr(hf, auto).from_pretrained(folder, output_loading_info=True, **options)
    said += [f"{key}: {sorted(map(str, keys))}" for key, keys in info.items() if keys]
    return model, said


@contextlib.contextmanager
def without_children() -> Iterator[None]:
    """The check runs here what it would run in child processes, which cost seconds."""

    def run(task: str, request: Any, seconds: float) -> dict[str, Any]:
        return child._answer(child._TASKS[task], json.loads(json.dumps(request)))

    with (
        patch.object(architecture, "run_child", run),
        patch.object(template, "run_child", run),
        patch.object(child, "_limit", lambda *_: None),
    ):
        yield


def check_problems(out: Path) -> list[str]:
    """What `paramdelta check` finds, and what it could not look at."""
    with without_children():
        report = check_folder(out)
    found = [f"{f.severity.value} {f.code}: {f.what} {f.where}" for f in report.findings]
    return found + [f"not looked at: {why}" for why in report.skipped]


# What config.json may have from elsewhere than the new base. The rest is architecture.
_MAY_DIFFER = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "_name_or_path",
}


def companion_problems(family: Family, folder: Path, model: Any) -> list[str]:
    """Whether architecture and positions are the new base's, and the manners post's."""
    new, post, out = (
        json.loads((folder / role / "config.json").read_text()) for role in ("new", "post", "out")
    )
    givers = dict.fromkeys((new.keys() | out.keys()) - _MAY_DIFFER, ("new base", new))
    givers |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ("post", post))
    settings = folder / "post" / "generation_config.json"
    if settings.is_file():  # it counts where the two disagree
        ends, end = json.loads(settings.read_text())["eos_token_id"], post.get("eos_token_id")
        if end is not None and end not in ends:
            givers["eos_token_id"] = ("generation_config.json", {"eos_token_id": ends[0]})
    problems = [
        f"config.json, {key}: {out.get(key)!r}, {giver} has {config.get(key)!r}"
        for key, (giver, config) in givers.items()
        if out.get(key) != config.get(key)
    ]
    if "quantization_config" in out:
        problems.append("config.json: has a quantization_config though nothing is quantized")
    if model.dtype != family.dtype:
        problems.append(f"loaded as {model.dtype}, not {family.dtype}")
    with overheard() as said:
        if family.chat is not None:
            tokenizer = hf.AutoTokenizer.from_pretrained(folder / "out")
            if tokenizer("1 2 3", add_special_tokens=False)["input_ids"] != [5, 6, 7]:
                problems.append("the tokenizer does not give the ids of its words")
            if tokenizer.chat_template != family.chat:
                problems.append(f"chat template {tokenizer.chat_template!r} is not post's")
        if model.can_generate():
            ids = hf.GenerationConfig.from_pretrained(folder / "post").eos_token_id
            if model.generation_config.eos_token_id != ids:
                problems.append(f"ends at {model.generation_config.eos_token_id}, post at {ids}")
        if family.processor is not None:
            wanted = family.processor()
            found = type(wanted).from_pretrained(folder / "out")
            if found.to_dict() != type(wanted).from_pretrained(folder / "new").to_dict():
                problems.append("the processor is not the one that was saved")
    return problems + said


def stored_problems(family: Family, folder: Path) -> list[str]:
    """Where the output's files are not the reference computed from the files of the three."""
    states = {role: read_state(folder / role) for role in ROLES}
    found = read_state(folder / "out")
    ties = {"lm_head.weight": "model.embed_tokens.weight"}
    names = set(states["new"])
    if any("lm_head.weight" in state for state in states.values()):
        names.add("lm_head.weight")
    dtypes = {}
    for name in names:
        # FP8 comes out of `read_state` as float64 and is stored as bfloat16.
        dtype = states["new"].get(name, states["post"].get(name)).dtype
        dtypes[name] = torch.bfloat16 if dtype == torch.float64 else dtype
    return differences(found, expected_state(states, dtypes, ties, family.kept))


def reference_state(family: Family, folder: Path, model: Any) -> State:
    """The formula's result for the three loaded models, in the dtypes of a loaded mix."""
    states = {}
    for role in ROLES:
        source = folder / role
        if (
            role in family.fp8
        ):  # transformers needs a GPU to load these, so its weights are given wide
            source = widened(source, folder / f"{role}-wide")
        wide = {"dtype": torch.float64} if role in family.fp8 else {}
        loaded, said = load(family.auto, source, **wide)
        if said:
            raise AssertionError(f"{role} cannot be loaded: {said}")
        states[role] = loaded.state_dict()
    found, stored = model.state_dict(), read_state(folder / "out")
    # What is stored in 16 bits was rounded to them, though some modules are loaded in float32.
    dtypes = {
        name: stored[name].dtype if name in stored else value.dtype for name, value in found.items()
    }
    expected = expected_state(states, dtypes, kept=family.kept)
    return {name: v.to(found[name].dtype) for name, v in expected.items()}


def forward_problems(family: Family, folder: Path, model: Any, reference: State) -> list[str]:
    """Where the mix computes something else than a model with the state ``reference``."""
    config = type(model.config).from_pretrained(folder / "out")
    expected = family.loader.from_config(config, dtype=model.dtype)
    expected.load_state_dict(reference)
    model = copy.deepcopy(model)  # in memory of its own: kernels depend on how it is aligned
    found, wanted = outputs(model), outputs(expected)
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        return ["outputs are not finite"]
    return differences(found, wanted)


def live_problems(recipe: Recipe, written: Any) -> list[str]:
    """Where `paramdelta.load` gives another model than the one of the written mix, or `set_scale`
    another than loading at that scale.
    """
    with overheard() as problems:
        model, info = load_live(recipe, output_loading_info=True)
        problems += [f"{key}: {sorted(map(str, keys))}" for key, keys in info.items() if keys]
        before = {name: id(value) for name, value in everything(model).items()}
        for scale, expected in ((1, written), (0.5, load_live(recipe.times(0.5))), (1, written)):
            set_scale(model, scale)
            different = differences(everything(model), everything(expected))
            problems += [f"at {scale}, {line}" for line in different]
        after = {name: id(value) for name, value in everything(model).items()}
    problems += [f"{name}: another tensor" for name in before if after[name] != before[name]]
    if type(model) is not type(written):
        problems.append(f"loaded as {type(model).__name__}, not {type(written).__name__}")
    if model.can_generate():
        settings = (each.generation_config.to_dict() for each in (model, written))
        problems += ["generation settings differ"] if len({*map(str, settings)}) > 1 else []
    return problems


def everything(model: Any) -> State:
    """Parameters and buffers of a model, also those that are not saved."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def outputs(model: Any) -> State:
    """What a model computes of a few tokens, an image or a sound: the tensors of its output."""
    chance = torch.Generator().manual_seed(4)
    config = model.config
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 32)
        size = size if isinstance(size, list | tuple) else (size, size)
        given = {"pixel_values": torch.rand(1, 3, *size, generator=chance)}
    elif model.main_input_name == "input_features":
        length = 2 * config.max_source_positions
        given = {"input_features": torch.rand(1, config.num_mel_bins, length, generator=chance)}
    else:
        given = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    given = {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in given.items()}
    if config.is_encoder_decoder and model.can_generate():
        given["decoder_input_ids"] = torch.tensor([[3, 8]])
    with torch.no_grad():
        found = model.eval()(**given)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def widened(source: Path, target: Path) -> Path:
    """A copy of a checkpoint in float64, without a quantization_config."""
    target.mkdir()
    state = {name: value.double() for name, value in read_state(source).items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config))
    return target


# -- formats ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    ``save``: puts a model's weights into a folder, in that format. ``dtype``: what `Recipe` calls
    it when it is written; None if it is only read.
    """

    save: Callable[[Any, Path], None]
    dtype: str | None = None


def _plain(dtype: torch.dtype) -> Callable[[Any, Path], None]:
    return lambda model, folder: model.to(dtype).save_pretrained(folder)


def _scaled(scales: str) -> Callable[[Any, Path], None]:
    def save(model: Any, folder: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(folder)
        quantize(folder, scales)

    return save


def _pickled(**options: Any) -> Callable[[Any, Path], None]:
    def save(model: Any, folder: Path) -> None:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)

    return save


FORMATS: dict[str, Format] = {
    "safetensors, F64": Format(_plain(torch.float64), "F64"),
    "safetensors, F32": Format(_plain(torch.float32), "F32"),
    "safetensors, F16": Format(_plain(torch.float16), "F16"),
    "safetensors, BF16": Format(_plain(torch.bfloat16), "BF16"),
    "safetensors, FP8 with a scale a block (DeepSeek)": Format(_scaled("block"), "fp8-block"),
    "safetensors, FP8 with a scale a row (compressed-tensors)": Format(_scaled("row")),
    "safetensors, FP8 with one scale a tensor (compressed-tensors)": Format(_scaled("tensor")),
    "PyTorch pickle, zip": Format(_pickled()),
    "PyTorch pickle, legacy": Format(_pickled(_use_new_zipfile_serialization=False)),
}
ADAPTER = "PEFT LoRA adapter as post"
WIDE = DECODER | {"hidden_size": 160, "head_dim": 40, "tie_word_embeddings": False}
# Without a GPU transformers makes BF16 of FP8, and only of whole blocks.
BLOCKS = DECODER | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384}
WITHOUT_GPU = "Using FP8 quantized models requires a GPU"


def check_read(name: str, folder: Path) -> list[str]:
    """Post and base in a format, the new base in plain BF16; what is wrong with the mix."""
    try:
        if name == ADAPTER:
            return _check_adapter(folder)
        models = build_models(Family("AutoModelForCausalLM", hf.LlamaConfig, WIDE, torch.float32))
        for role, model in models.items():
            (folder / role).mkdir()
            save = _plain(torch.bfloat16) if role == "new" else FORMATS[name].save
            save(model, folder / role)
        states = {role: read_state(folder / role) for role in ROLES}
        return _mixed(folder, states)
    except Exception:  # noqa: BLE001 - whatever goes wrong is the row's result
        return [traceback.format_exc()]


def check_write(name: str, folder: Path) -> list[str]:
    """BF16 checkpoints, or FP8 ones, mixed into a format; what is wrong with the output or its
    loading.
    """
    dtype = FORMATS[name].dtype
    try:
        sizes = BLOCKS if dtype == "fp8-block" else DECODER
        family = Family("AutoModelForCausalLM", hf.LlamaConfig, sizes)
        for role, model in build_models(family).items():
            model.save_pretrained(folder / role)
            if dtype == "fp8-block":
                quantize(folder / role, "block")
        states = {role: read_state(folder / role) for role in ROLES}
        problems = _mixed(folder, states, dtype)
        model, said = load(family.auto, folder / "out")
        said = [line for line in said if WITHOUT_GPU not in line]
        stored = read_state(folder / "out")
        if dtype == "fp8-block":
            stored = {name: value.bfloat16() for name, value in stored.items()}
        return problems + said + differences(model.state_dict(), stored)
    except Exception:  # noqa: BLE001 - as above
        return [traceback.format_exc()]


def _mixed(
    folder: Path, states: Mapping[str, State], dtype: str | None = None, post: str = "post"
) -> list[str]:
    delta = Delta(str(folder / post), str(folder / "base"))
    out = mix(Recipe(str(folder / "new"), (delta,), dtype), folder / "out").folder
    verify(out, share=1.0)
    if dtype == "fp8-block":
        dtypes = {name: value.dtype for name, value in states["new"].items()}
        expected = expected_state(states, dtypes)  # FP8 is float64 here
        return differences(read_state(out), {n: _requantized(v) for n, v in expected.items()})
    torch_dtype = {None: torch.bfloat16, "F64": torch.float64, "F32": torch.float32}
    torch_dtype |= {"F16": torch.float16, "BF16": torch.bfloat16}
    dtypes = dict.fromkeys(states["new"], torch_dtype[dtype])
    return differences(read_state(out), expected_state(states, dtypes))


def _requantized(value: torch.Tensor) -> torch.Tensor:
    """A float64 matrix in FP8 with fresh scales of 128 × 128 blocks, and back; others as they are.

    As `_fp8` does it, but in float64 and rounded once.
    """
    if value.dtype != torch.float64:
        return value
    result = torch.empty_like(value)
    for i in range(0, value.shape[0], 128):
        for j in range(0, value.shape[1], 128):
            block = value[i : i + 128, j : j + 128]
            scale = (block.abs().max() / 448).float().double()
            codes = rounded(block / scale, torch.float8_e4m3fn)
            result[i : i + 128, j : j + 128] = codes.double() * scale
    return result


def _check_adapter(folder: Path) -> list[str]:
    """A rank-4 adapter of two projections, as PEFT stores it; its Δ is alpha / r · B · A."""
    family = Family("AutoModelForCausalLM", hf.LlamaConfig, DECODER)
    models = build_models(family)
    for role in ("new", "base"):
        models[role].save_pretrained(folder / role)
    states = {role: read_state(folder / role) for role in ("new", "base")}
    chance = torch.Generator().manual_seed(3)
    adapter, moved = {}, {name: value.double() for name, value in states["base"].items()}
    for name, value in states["base"].items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            low = torch.randn(4, value.shape[1], generator=chance) / 16
            high = torch.randn(value.shape[0], 4, generator=chance) / 16
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            adapter |= {f"{stem}.lora_A.weight": low, f"{stem}.lora_B.weight": high}
            moved[name] = moved[name] + 16 / 4 * (high.double() @ low.double())
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder / "base"),
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
    }
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return _mixed(folder, states | {"post": moved}, post="adapter")
