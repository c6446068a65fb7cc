"""What people reported of loaders, as folders: each report, and what the check finds in it.

The table of docs/check.md has a line for each.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.checks.folders import CONFIG, TEMPLATE, WORDS, edit, put, right, sharded, tensors

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"
QUANTIZED = "model.layers.0.mlp.up_proj."


@dataclass(frozen=True)
class Report:
    """One public report: where, what happened, how to build it, the codes that are found."""

    source: str
    gist: str
    build: Callable[[Path], object]
    found: tuple[str, ...]


REPORTS: list[Report] = []


def report(source: str, gist: str, *found: str):
    """Register a report with the codes that are to be found, none if the folder is right."""

    def register(build: Callable[[Path], object]):
        REPORTS.append(Report(source, gist, build, found))
        return build

    return register


# -- where a text ends -----------------------------------------------------------------------------


@report(
    "hiyouga/LlamaFactory#9338",
    "the tokenizer's eos ends a turn, both configurations keep the base's",
    "template-never-stops",
    "eos-disagrees",
)
def _eos_replaced_in_the_tokenizer(folder):
    right(folder)
    edit(folder, "config.json", eos_token_id=3)
    edit(folder, "generation_config.json", eos_token_id=3)


@report(
    "huggingface/open-r1#663",
    "pipeline() never ends, vLLM does: only the tokenizer knows the end of a turn",
    "template-never-stops",
)
def _pipeline_never_ends(folder):
    right(folder)
    edit(folder, "generation_config.json", eos_token_id=3)


@report(
    "Blaizzy/mlx-vlm#2112",
    "generation_config.json lists only the end of a document, turns end with another token",
    "template-never-stops",
)
def _end_of_document(folder):
    _eos_replaced_in_the_tokenizer(folder)
    edit(folder, "tokenizer_config.json", eos_token="<unk>")
    edit(folder, "special_tokens_map.json", eos_token="<unk>")


@report(
    "InfiniTensor/InfiniLM#386",
    "config.json has one id, generation_config.json a list that holds it",
)
def _list_of_ends(folder):
    right(folder)
    edit(folder, "generation_config.json", eos_token_id=[2, 5])


@report("JustVugg/colibri#1478", "eos only in generation_config.json: other engines go on")
def _end_only_in_generation(folder):
    right(folder)
    edit(folder, "config.json", eos_token_id=...)


@report("huggingface/trl#6044", "GLM's template ends a turn with the next role's marker")
def _glm(folder):
    right(folder)
    template = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}"
    put(folder, "chat_template.jinja", template + "{{ m.content }}{% endfor %}")
    edit(folder, "generation_config.json", eos_token_id=[2, 4])


@report(
    "huggingface/transformers#32110",
    "Gemma's template ends turns with a token that is not the tokenizer's eos",
)
def _gemma(folder):
    right(folder)
    put(folder, "chat_template.jinja", TEMPLATE.replace("</s>", "<|bot|>"))
    edit(folder, "generation_config.json", eos_token_id=[2, 5])


@report(
    "huggingface/transformers#31099",
    "special_tokens_map.json names another eos than tokenizer_config.json",
    "roles-disagree",
)
def _two_maps(folder):
    right(folder)
    edit(folder, "special_tokens_map.json", eos_token="<|bot|>")


# -- templates -------------------------------------------------------------------------------------


@report(
    "huggingface/transformers#33957",
    "chat_template.jinja goes before an older template in tokenizer_config.json",
    "template-disagrees",
)
def _older_template(folder):
    right(folder)
    edit(folder, "tokenizer_config.json", chat_template=TEMPLATE.replace("<|bot|>", "<|user|>"))


# -- weight files ----------------------------------------------------------------------------------


@report(
    "sgl-project/sglang#32279", "a shard was not downloaded, and nobody says so", "shard-missing"
)
def _shard_lost(folder):
    sharded(folder)
    (folder / SECOND).unlink()


@report(
    "Neph0s/CoSER#3, Blaizzy/mlx-vlm#1827",
    "the index is of an older set of shards",
    "shard-missing",
)
def _old_index(folder):
    sharded(folder)
    mapped = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder, INDEX, weight_map=dict.fromkeys(mapped, "model-00015-of-00030.safetensors"))


@report(
    "Blaizzy/mlx-vlm#1464",
    "a quantized model.safetensors beside the shards of the plain model",
    "two-weight-sets",
)
def _quantized_beside(folder):
    sharded(folder)
    put(folder, "model.safetensors", tensors())


@report(
    "vllm-project/vllm#54230, verl-project/verl#6259",
    "two shards hold the same names; a loader takes the later one",
    "tensor-twice",
)
def _overlay(folder):
    sharded(folder)
    mapped = json.loads((folder / INDEX).read_text())["weight_map"]
    state = tensors()
    stale = {"model.norm.weight": state["model.norm.weight"]}
    for shard in set(mapped.values()):
        put(folder, shard, {n: state[n] for n in mapped if mapped[n] == shard} | stale)


@report(
    "vllm-project/vllm#40765",
    "consolidated and sharded weights in one folder: both are read",
    "stray-weights",
)
def _consolidated(folder):
    sharded(folder)
    put(folder, "consolidated.safetensors", tensors())


@report(
    "huggingface/peft#1381",
    "the adapter was saved beside the merged model: transformers loads adapter and old base",
    "adapter-beside-weights",
)
def _adapter_beside(folder):
    right(folder)
    put(folder, "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"})


@report("promptfoo/modelaudit#1668", "an index that names files elsewhere", "path-outside")
def _index_outside(folder):
    sharded(folder)
    edit(folder, INDEX, weight_map={"model.norm.weight": "/etc/model.safetensors"})


# -- tensors ---------------------------------------------------------------------------------------


@report(
    "vllm-project/vllm#51665, huggingface/transformers#42612",
    "config.json ties the head, and another head is stored: it is left out",
    "head-disagrees",
)
def _tied_and_stored(folder):
    right(folder)
    edit(folder, "config.json", tie_word_embeddings=True)


@report(
    "vllm-project/vllm#3344, vllm-project/vllm#6758",
    "a tied head is stored again, byte for byte the embedding",
)
def _redundant_head(folder):
    right(folder)
    state = tensors()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    put(folder, "model.safetensors", state)
    edit(folder, "config.json", tie_word_embeddings=True)


@report(
    "sharif-apu/BJDD_CVPR21#4, huggingface/peft#1001",
    "NaN in stored or merged weights",
    "not-finite",
)
def _nan(folder):
    right(folder)
    state = tensors()
    state["model.norm.weight"][0] = 0x7FC0
    put(folder, "model.safetensors", state)


# -- rows of tokens --------------------------------------------------------------------------------


@report("kongds/E5-V#7", "image_token_index is the first id without a row", "token-without-row")
def _image_token(folder):
    right(folder)
    edit(folder, "config.json", image_token_index=CONFIG["vocab_size"])


@report(
    "turboderp/exllama#314",
    "the config of a merged model uses ChatML's ids, and nothing has them",
    "token-without-row",
)
def _chatml_ids(folder):
    right(folder)
    edit(folder, "generation_config.json", eos_token_id=[2, 32000])


@report(
    "huggingface/transformers#33819, ByteDance-Seed/Bagel#265",
    "more rows than tokens: rounded up for speed",
)
def _padded_rows(folder):
    right(folder)
    assert len(WORDS) < CONFIG["vocab_size"]


@report(
    "unslothai/unsloth-zoo#1073",
    "vocab_size at the top of config.json is not that of its text part",
    "vocab-size-disagrees",
)
def _nested_rows(folder):
    right(folder)
    edit(folder, "config.json", text_config={"vocab_size": 99})


@report(
    "areal-project/AReaL#149",
    "config.json was not changed with the embedding: vocab_size is not its rows",
    "wrong-shapes",
)
def _resized(folder):
    right(folder)
    edit(folder, "config.json", vocab_size=30)


# -- quantization ----------------------------------------------------------------------------------


@report(
    "mayank31398/GPTQ-for-SantaCoder#2",
    "codes and scales, and no quantization_config: layers come out random",
    "quantization-unstated",
)
def _unstated(folder):
    right(folder)
    state = tensors()
    shape = state[QUANTIZED + "weight"].shape
    state[QUANTIZED + "weight"] = np.zeros(shape, np.uint8)
    state[QUANTIZED + "weight_scale_inv"] = np.ones((1, 1), np.float32)
    put(folder, "model.safetensors", state)


@report(
    "sgl-project/sglang#23841",
    "the configuration says FP8, and the weights are BF16",
    "quantization-untrue",
)
def _untrue(folder):
    right(folder)
    edit(folder, "config.json", quantization_config={"quant_method": "fp8"})


@report(
    "vllm-project/vllm#22073",
    "ModelOpt wrote hf_quant_config.json once, now config.json: a stale file counts",
    "quantization-untrue",
)
def _stale_file(folder):
    right(folder)
    put(folder, "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})


@report(
    "vllm-project/vllm#10120",
    "quantization_config stands in the text part only: not all loaders find it",
    "quantization-unstated",
)
def _nested_statement(folder):
    _unstated(folder)
    edit(folder, "config.json", text_config={"quantization_config": {"quant_method": "fp8"}})


# -- files that others name ------------------------------------------------------------------------


@report(
    "NVIDIA-NeMo/Automodel#794",
    "auto_map names modeling code that was not copied to the checkpoint",
    "code-missing",
)
def _code(folder):
    right(folder)
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})


@report(
    "vllm-project/llm-compressor#1305, hiyouga/EasyR1#48",
    "a model that sees was saved without its processor",
    "processor-missing",
)
def _processor(folder):
    right(folder)
    edit(folder, "config.json", vision_config={"hidden_size": 8})


@report(
    "vllm-project/vllm#10966",
    "the subfolders of a sentence-transformers model were not downloaded",
    "module-missing",
)
def _pooling(folder):
    right(folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]
    put(folder, "modules.json", modules)


@report(
    "huggingface/sentence-transformers#1720",
    "the weights of 2_Dense are not where the module looks",
    "no-weights",
)
def _dense(folder):
    right(folder)
    kinds = (("", "Transformer"), ("2_Dense", "Dense"))
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]
    put(folder, "modules.json", modules)
    put(folder, "2_Dense/config.json", {"in_features": 8, "out_features": 4})
