"""What the files of a model repository are, by their names: what is fetched, and what may travel.

Everything may go from a source into an output that no rule here keeps back. Names decide, so that
the same rules hold for a list of names that the Hub gives and for a folder.
"""

import re
from collections.abc import Collection, Iterable, Mapping

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar")
_WEIGHTS = (".safetensors", *PICKLES)
_INDEX = (".safetensors.index.json", ".bin.index.json")

# The names of weight files, up to a number or a variant.
_STEMS = (
    r"(model|pytorch_model|diffusion_pytorch_model|flax_model|tf_model|rust_model|adapter_model)"
)
_VARIANT = re.compile(
    r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?"
    r"\.(?!safetensors|bin|pt\b|pth|ckpt)(?P<variant>[\w]+)(-\d{5}-of-\d{5})?\.(safetensors|bin)|"
    r"(model|pytorch_model|diffusion_pytorch_model)\.(safetensors|bin)\.index\.[\w-]+\.json"
)
_SECRET = re.compile(
    r"\.?(.*[._-])?(secrets?|credentials?|passwords?|passwd|api[_-]?keys?|private[_-]?keys?|"
    r"(hf|hub|access|auth|api|bearer|wandb|github|gitlab|refresh|login|user)[_-]?tokens?|"
    r"service[_-]?account|id_(rsa|dsa|ecdsa|ed25519)|netrc|htpasswd|kaggle)([._-].*)?|(.*\.)?env([._-].*)?|"
    r"\.?token(\.(txt|json|ya?ml))?|"
    r".*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg|pgp|asc|env|der|crt|cer)",
    re.IGNORECASE,
)
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|zero_pp_rank|mp_rank|"
    r"bf16_zero|.*_optim_states|.*_model_states|pytorch_model_fsdp)[^/]*\."
    r"(bin|pt|pth|ckpt|safetensors|distcp|pkl|pickle)|"
    r"(trainer_state|trainer_log|training_config|train_config|dataset_info|data_args|model_args)"
    r"\.(json|jsonl|ya?ml)|latest|latest_checkpointed_iteration\.txt|zero_to_fp32\.py|"
    r"(all|train|eval|test|predict|dev)_results\.(json|txt)|.*(predictions|metrics|losses|loss)"
    r"\.(json|txt|csv|jsonl)|.*\.(log|out|err|lock|tmp|bak|swp|pid|sh|slurm|pyc|pkl|pickle)|.*[._-]logs?\.(txt|json|jsonl)|"
    r"logs?\.(txt|json|jsonl)|events\.out\.tfevents.*|"
    r".*\.distcp"
)
_TRAINING_FOLDER = re.compile(
    r"checkpoint-\d+|global_step\d+|epoch[_-]?\d+|step[_-]?\d+|wandb|runs|logs?|mlruns|"
    r"lightning_logs|tensorboard|pytorch_model_fsdp_\d+|optimizer_\d+|__pycache__|\..*",
    re.IGNORECASE,
)
_RUNTIME = re.compile(
    r".*\.(gguf|ggml|llamafile|onnx|onnx_data|ort|h5|hdf5|keras|msgpack|tflite|mlmodel|mlpackage|"
    r"engine|plan|nemo|pb|ot|pte|pt2|mnn|rknn|dlc|param|litertlm|task|safetensors_rust)|"
    r"(model|weights)[^/]*\.npz|openvino_.*|.*\.onnx\.data|tf_model.*|flax_model.*|rust_model.*",
    re.IGNORECASE,
)
_RUNTIME_FOLDER = re.compile(
    r"onnx.*|openvino.*|coreml.*|gguf.*|tensorrt.*|flax.*|tf|tflite|mlx.*|original|metal|ncnn",
    re.IGNORECASE,
)
_DOCUMENT = re.compile(
    r".*\.(md|rst|pdf|ipynb|html?|png|jpe?g|gif|svg|webp|bmp|ico|mp3|mp4|wav|flac|ogg|m4a|mov|avi|"
    r"webm|docx?|pptx?|bib|tex|cff)|citation[^/]*",
    re.IGNORECASE,
)
_DATA = re.compile(
    r".*\.(csv|tsv|parquet|arrow|jsonl|ndjson|feather|sqlite|db|zip|tar|tgz|tar\.gz|7z|rar|xz|"
    r"lmdb|mdb|npy)",
    re.IGNORECASE,
)
_LICENSE = re.compile(
    r"(licen[cs]e|notice|copying|[^/]*use[_-]policy|[^/]*usage[_-]policy)(\.(txt|md))?",
    re.IGNORECASE,
)
_PROCESS = re.compile(
    r"mergekit_config\.ya?ml|paramdelta\.(lock|delta|lora)\.json|recipe\.ya?ml|axolotl[^/]*\.ya?ml|"
    r"config\.ya?ml|requirements\.txt|setup\.(py|cfg)|pyproject\.toml|dockerfile|makefile",
    re.IGNORECASE,
)
_MISTRAL = re.compile(r"consolidated.*|params\.json")
_QUANTIZED = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def left_because(name: str) -> str:
    """Why a file stays where it is; "" if it may travel.

    ``name``: its path in the folder, with slashes.
    """
    *folders, last = name.split("/")
    if last.startswith("."):
        return "hidden, such as settings of Git or secrets"
    if _SECRET.fullmatch(last):
        return "its name is that of a secret"
    if any(map(_TRAINING_FOLDER.fullmatch, folders)) or _TRAINING.fullmatch(last):
        return "a trace of training, which no loader reads"
    if any(map(_RUNTIME_FOLDER.fullmatch, folders)) or _RUNTIME.fullmatch(last):
        return "weights in the format of another runtime"
    if _VARIANT.fullmatch(last):
        return "a variant of the weights, which a loader reads only if asked"
    if _MISTRAL.fullmatch(last):
        return "the weights once more, in the format of Mistral or Meta"
    if last.endswith(_INDEX):
        return "the index is written anew"
    if last in _QUANTIZED:
        return "how the source is quantized, which the output is not or says elsewhere"
    if last.startswith("adapter_"):
        return "part of an adapter, which the output is not"
    if is_weights(last) and re.match(_STEMS + r"[.-]|.*\.safetensors$", last):
        return "other weights, which the loader of the folder does not read"
    if last == "README.md" and not folders:
        return "the model card is written anew"
    if is_license(name):
        return ""
    if _PROCESS.fullmatch(name):
        return "how the source was made or is installed"
    if _DOCUMENT.fullmatch(last):
        return "documentation"
    if _DATA.fullmatch(last):
        return "data or an archive"
    return ""


def is_training(name: str) -> bool:
    """Whether a file is what training leaves beside a model."""
    return _TRAINING.fullmatch(name.rpartition("/")[2]) is not None


def is_license(name: str) -> bool:
    """Whether a file of the top folder holds a license or terms of use."""
    return _LICENSE.fullmatch(name) is not None


def is_weights(name: str) -> bool:
    """Whether a file can hold weights, by its suffix."""
    return name.endswith(_WEIGHTS)


def wanted(sizes: Mapping[str, int | None], largest: int) -> list[str]:
    """Which files of a repository are fetched: the weights that its loader reads, and what may
    travel.

    ``sizes``: bytes by name; None if not known. ``largest``: bytes of a file that is no weights.
    """
    names = sizes.keys()
    inner = {"modules.json", "model_index.json"} & names
    folders = {name.rpartition("/")[0] for name in names}
    chosen: set[str] = set()
    for folder in folders:
        if folder and (not inner or left_because(f"{folder}/config.json")):
            continue
        inside = {n.rpartition("/")[2]: n for n in names if n.rpartition("/")[0] == folder}
        if not folder and "model_index.json" in names:
            continue  # what lies there is one file with all of the components
        chosen |= {inside[name] for name in _weights_of(inside)}
    models = [name for name in names if name.endswith(".gguf")]
    if not chosen and len(models) == 1:
        chosen |= {*models}
    for name, size in sizes.items():
        last = name.rpartition("/")[2]
        planned = last.endswith(_INDEX) and not _VARIANT.fullmatch(last)
        planned = planned or name == "README.md" or name in _QUANTIZED
        planned = planned or name.startswith(("adapter_config", "paramdelta."))
        travels = not left_because(name) and not ("/" in name and is_weights(name))
        if (size or 0) <= largest and (planned or travels):
            chosen.add(name)
    return sorted(chosen)


def _weights_of(names: Iterable[str]) -> Collection[str]:
    """The weight files of one folder, of which a loader reads all."""
    given = [
        name
        for name in sorted(names)
        if is_weights(name) and not _TRAINING.fullmatch(name) and not _SECRET.fullmatch(name)
    ]
    usable = [name for name in given if not _VARIANT.fullmatch(name)]
    safe = [name for name in usable if name.endswith(".safetensors")]
    for kind in (safe, [name for name in usable if name not in safe]):
        own = [n for n in kind if not n.startswith(("consolidated", "adapter_"))]
        usual = [n for n in own if re.match(_STEMS + r"[.-]", n)]
        whole = [n for n in usual if re.fullmatch(_STEMS + r"\.(safetensors|bin)", n)]
        found = whole or usual or own or [n for n in kind if n.startswith("adapter_")] or kind
        if found:
            return found
    variants = [match for name in given if (match := _VARIANT.fullmatch(name))]
    return [m[0] for m in variants if m["variant"] == variants[0]["variant"]]
