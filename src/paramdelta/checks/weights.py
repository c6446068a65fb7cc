"""The weight files of one model: which ones loaders read, and what their headers hold.

Where transformers looks, in this order: what ``transformers_weights`` of config.json names,
``model.safetensors``, ``model.safetensors.index.json``, ``pytorch_model.bin`` and its index. vLLM
reads ``consolidated*.safetensors`` if there are any, else all ``*.safetensors`` that the index
names, or simply all where there is no index. Diffusers and PEFT use other stems.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from paramdelta.checks.folder import Folder, is_inside, is_pointer, report_pointer
from paramdelta.errors import CheckpointError
from paramdelta.formats.safetensors import Entry, header_length, parse_header
from paramdelta.planning.findings import Findings, Severity

STEMS = {
    "transformers": "model",
    "diffusers": "diffusion_pytorch_model",
    "adapter": "adapter_model",
}
MAX_INDEX = 128 << 20  # bytes
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# What trainers leave behind; no loader of models reads it.
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|training_args|random_states|zero_pp_rank|mp_rank|"
    r"latest|.*_optim_states).*"
)
# Formats of other runtimes that are kept beside the weights.
_ELSEWHERE = re.compile(
    r".*\.(gguf|onnx|onnx_data|h5|msgpack|tflite|mlmodel|xml|engine|nemo|pb|ot)"
)


@dataclass(frozen=True)
class Stored:
    """One tensor: safetensors dtype and shape; ``file``, ``offset``, ``nbytes``: where it lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Weights:
    """What the loader of one model reads.

    ``tensors``: by name. ``files``: safetensors files. ``pickled``: weight files that are not
    safetensors, which this check does not open.
    """

    tensors: Mapping[str, Stored] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    pickled: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there are weights of any kind."""
        return bool(self.files or self.pickled)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_weights(folder: Folder, stem: str, findings: Findings, explicit: object = None) -> Weights:
    """Find the weights that a loader reads, and read the headers.

    ``stem``: what the files' names begin with (see `STEMS`). ``explicit``: the file that
    config.json names, if it does.
    """
    direct = folder.direct
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    loose = [n for n in direct if n.endswith(".safetensors")]
    mapped: dict[str, str] | None = None
    if isinstance(explicit, str):
        _check_explicit(folder, explicit, findings)
        if explicit in folder:
            single, index = (single, explicit) if explicit.endswith(".json") else (explicit, "")
    if index in folder:
        mapped = _read_index(folder, index, findings)
    shards = sorted({file for file in mapped.values() if is_inside(file)}) if mapped else []
    if single in folder and shards and single not in shards:
        findings.add(
            Severity.REFUSED,
            "two-weight-sets",
            f"{single} and {index} both describe weights: transformers reads the one file, vLLM "
            "the files of the index",
            folder.place(index),
            remedy="remove the one that is out of date",
        )
    chosen = [single] if single in folder else [file for file in shards if file in folder]
    if not chosen and mapped is None:
        chosen = _unindexed(folder, stem, loose, findings)
    tensors = _read_headers(folder, chosen, mapped or {}, findings)
    if mapped is not None and single not in chosen:
        _compare_index(folder, index, mapped, tensors, findings)
    pickled = _pickled(folder, stem, bool(chosen), findings)
    _report_strays(folder, stem, chosen, loose, mapped is not None, findings)
    return Weights(tensors, tuple(chosen), tuple(pickled))


def _check_explicit(folder: Folder, name: str, findings: Findings) -> None:
    if not is_inside(name) or name not in folder:
        findings.add(
            Severity.REFUSED,
            "file-missing",
            f"transformers_weights names {name!r}, which is not in the folder",
            folder.place("config.json"),
            remedy="add the file, or remove the key",
        )


def _read_index(folder: Folder, index: str, findings: Findings) -> dict[str, str]:
    content = folder.object(index, findings, MAX_INDEX)
    mapped = content.get("weight_map")
    if not isinstance(mapped, dict) or not all(isinstance(v, str) for v in mapped.values()):
        findings.add(
            Severity.REFUSED,
            "index-invalid",
            "the index has no weight_map of names to files",
            folder.place(index),
            remedy="save the model again",
        )
        return {}
    for file in sorted(set(mapped.values())):
        if not is_inside(file):
            findings.add(
                Severity.REFUSED,
                "path-outside",
                f"the index names {file!r}, which is not in the folder",
                folder.place(index),
                remedy="name files of the folder only",
            )
        elif file not in folder:
            findings.add(
                Severity.REFUSED,
                "shard-missing",
                "the index names weight files that are not there",
                folder.place(index),
                tensor=file,
                remedy="download or copy these files",
            )
    return mapped


def _unindexed(folder: Folder, stem: str, loose: list[str], findings: Findings) -> list[str]:
    """The safetensors files where none has the name that loaders look for."""
    shards = sorted(name for name in loose if _SHARD.fullmatch(name))
    if shards:
        findings.add(
            Severity.REFUSED,
            "index-missing",
            f"there are {len(shards)} shards and no {stem}.safetensors.index.json: transformers "
            "does not find them",
            folder.place(shards[0]),
            remedy="download or write the index",
        )
        return shards
    variants = sorted(name for name in loose if name.startswith(f"{stem}."))
    others = variants or sorted(n for n in loose if not n.startswith("consolidated")) or loose
    if others and not variants:
        findings.add(
            Severity.REFUSED,
            "index-missing",
            f"the weights are not in {stem}.safetensors, and no index names them: transformers "
            "does not find them",
            folder.place(others[0]),
            remedy=f"rename the file to {stem}.safetensors, or write an index",
        )
    return others


def _read_headers(
    folder: Folder, files: list[str], mapped: Mapping[str, str], findings: Findings
) -> dict[str, Stored]:
    """All tensors of some files; of two with one name, the one that the index gives."""
    tensors: dict[str, Stored] = {}
    for file in files:
        for entry in _read_header(folder, file, findings):
            if entry.name in tensors:
                findings.add(
                    Severity.REFUSED,
                    "tensor-twice",
                    f"two weight files hold the same tensors ({tensors[entry.name].file} too); "
                    "which one counts depends on the loader",
                    folder.place(file),
                    tensor=entry.name,
                    remedy="keep one of the files",
                )
                if mapped.get(entry.name) == tensors[entry.name].file:
                    continue
            tensors[entry.name] = Stored(
                entry.name, entry.dtype, entry.shape, file, entry.offset, entry.nbytes
            )
    return tensors


def _read_header(folder: Folder, file: str, findings: Findings) -> list[Entry]:
    size, place = folder.sizes[file], folder.place(file)
    try:
        start = folder.read(file, 0, min(size, 64))
        if is_pointer(start):
            report_pointer(findings, place)
            return []
        length = header_length(start, size, place)
        entries, metadata = parse_header(folder.read(file, 8, length), size, place)
    except CheckpointError as error:
        detail = f": expected {error.expected}, got {error.got}" if error.expected else ""
        findings.add(
            Severity.REFUSED,
            "weights-damaged",
            f"{error.what}{detail}",
            place,
            remedy="get the file again",
        )
        return []
    if metadata and metadata.get("format") not in ("pt", "tf", "flax", "mlx"):
        findings.add(
            Severity.WARNING,
            "metadata-format",
            "the file's metadata do not say format: pt; transformers 4 refuses such a file",
            place,
            remedy='save with metadata={"format": "pt"}',
        )
    return entries


def _compare_index(
    folder: Folder,
    index: str,
    mapped: Mapping[str, str],
    tensors: Mapping[str, Stored],
    findings: Findings,
) -> None:
    place = folder.place(index)
    for name, file in mapped.items():
        if file in folder and (name not in tensors or tensors[name].file != file):
            findings.add(
                Severity.REFUSED,
                "index-wrong",
                "the index names tensors that are not in the file it gives",
                place,
                tensor=name,
                remedy="write the index again",
            )
    for name in tensors.keys() - mapped.keys():
        findings.add(
            Severity.WARNING,
            "index-incomplete",
            "the weight files hold tensors that the index does not name; loaders differ on "
            "whether they read them",
            place,
            tensor=name,
            remedy="write the index again",
        )


def _pickled(folder: Folder, stem: str, chosen: bool, findings: Findings) -> list[str]:
    """Weights in pickles, which loaders read where there is no safetensors file."""
    names = sorted(
        name for name in folder.direct if name.endswith(_PICKLES) and not _TRAINING.fullmatch(name)
    )
    if names and not chosen:
        findings.add(
            Severity.WARNING,
            "pickled-weights",
            "the weights are pickles, which this check does not open",
            folder.place(names[0]),
            remedy="convert them to safetensors",
        )
        return names
    stale = [n for n in names if n.startswith(("pytorch_model", "adapter_model", stem))]
    for name in stale:
        findings.add(
            Severity.WARNING,
            "stray-weights",
            "weights in another format lie beside the safetensors files; nothing says that they "
            "are the same",
            folder.place(name),
            remedy="remove the file",
        )
    for name in sorted(set(names) - set(stale)):
        findings.add(
            Severity.NOTE,
            "side-weights",
            "a pickle beside the weights, for code that asks for it; it was not opened",
            folder.place(name),
        )
    return []


def _report_strays(
    folder: Folder,
    stem: str,
    chosen: list[str],
    loose: list[str],
    indexed: bool,
    findings: Findings,
) -> None:
    for name in sorted(set(loose) - set(chosen)):
        if name == "adapter_model.safetensors" and stem == "model":
            continue  # `check.adapter` looks at it
        if name.startswith("consolidated"):
            what = "vLLM reads this file instead of the others, if it can; transformers does not"
        elif name.startswith(stem + ".") and not _SHARD.fullmatch(name):
            continue  # a variant, which a loader reads only if asked
        elif indexed or not chosen:
            what = "no loader reads this weight file"
        else:
            what = "vLLM reads this weight file too; transformers does not"
        findings.add(
            Severity.WARNING, "stray-weights", what, folder.place(name), remedy="remove the file"
        )
    for name in folder.direct:
        if _TRAINING.fullmatch(name) and name.endswith(_PICKLES):
            findings.add(
                Severity.NOTE,
                "training-state",
                "left behind by training; no loader of models reads it",
                folder.place(name),
                remedy="remove it before publishing: it can be as large as the model",
            )
    if not chosen:
        for name in folder.direct:
            if _ELSEWHERE.fullmatch(name):
                findings.add(
                    Severity.NOTE,
                    "other-format",
                    "weights for another runtime; they were not checked",
                    folder.place(name),
                )


def shapes(weights: Weights) -> str:
    """Names, dtypes and shapes as JSON, for the process that builds the model."""
    return json.dumps({t.name: [t.dtype, list(t.shape)] for t in weights.tensors.values()})
