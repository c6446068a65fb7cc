"""A checkpoint: its index, its shards, and where the bytes of every tensor are. Headers only."""

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paramdelta.errors import CheckpointError, ParamDeltaError, UsageError
from paramdelta.formats import magic
from paramdelta.formats.buffers import is_constant
from paramdelta.formats.components import (
    DIFFUSION,
    MODEL,
    SINGLE,
    WHOLE,
    Component,
    Makeup,
    read_makeup,
)
from paramdelta.formats.gguf import model as gguf
from paramdelta.formats.gguf.header import MAGIC
from paramdelta.formats.gguf.header import read_header as read_gguf_header
from paramdelta.formats.safetensors import header_length, parse_header
from paramdelta.formats.torch_pickle import read_pickle
from paramdelta.formats.view import Tensor, View
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import PICKLES, is_training, is_weights
from paramdelta.storage.files import Files
from paramdelta.storage.location import Location
from paramdelta.storage.reader import Reader
from paramdelta.text import shown

WEIGHTS = Component().weights
INDEX = Component().index
DELTA = "paramdelta.delta.json"  # in a folder that holds a stored Δ and no model (`delta`)
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
# An adapter, which may lie beside the weights of a whole model.
_ADAPTERS = {"adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"}
HEAD = 1 << 16  # bytes read at first: most headers fit
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")


@dataclass(frozen=True)
class SourceFile:
    """A weight file and the digest of its header. If either changes, it is another file.

    ``folder``: that it is in, relative to the checkpoint's, with a slash at its end.
    """

    blob: Blob
    header_sha256: str
    folder: str = ""

    @property
    def name(self) -> str:
        """Its path in the checkpoint's folder."""
        return self.folder + self.blob.name


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and companion files.

    ``role``: "new base", "post" or "base", for messages. ``location``: where it is. ``tensors``:
    file by file, in the order of their bytes or of the pickle. ``sources``: the weight files.
    ``files``: everything that lies beside the weights of the main model. ``config``: config.json,
    {} if absent. ``ignored``: what a pickle holds that is not a tensor, by place and kind ("epoch
    (int)"). ``components``: the models that it consists of. ``makeup``: what its folder consists
    of. ``folder``: all files, if there are more than ``files``. ``gathered``: weight files that
    were read together though no index names them.
    """

    role: str
    location: Location
    tensors: Mapping[str, View]
    sources: tuple[SourceFile, ...]
    files: Files = field(compare=False, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    components: tuple[Component, ...] = WHOLE
    makeup: Makeup = SINGLE
    folder: Files = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    gathered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.folder is None:
            object.__setattr__(self, "folder", self.files)

    def __str__(self) -> str:
        return f"{self.role} ({self.location.address})"

    @property
    def parameters(self) -> int:
        """Floating-point numbers in all tensors."""
        return sum(t.elements for t in self.tensors.values() if t.kind.mixable)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def is_bare(self) -> bool:
        """Whether it is one of weights alone, which state what small files would say (GGUF)."""
        return bool(self.files.stated)

    def companion(self, name: str) -> Blob | None:
        """A file beside the weights, if it is there."""
        return self.files.get(name)

    def read_json(self, name: str) -> Mapping[str, Any]:
        """A companion's JSON object, {} if the file is absent; raises as `Files.json`."""
        return self.files.json(name)


def open_checkpoint(files: Files, role: str) -> Checkpoint:
    """Read the headers of a checkpoint.

    Raises:
        UsageError: it is a stored Δ and not a model.
        CheckpointError: no weights there, or damaged or hostile ones.
        StorageError: a file cannot be read.
    """
    if DELTA in files:
        raise UsageError(
            "this is a stored Δ and not a model",
            code="stored-delta-as-model",
            where=f"{role}: {files.location.address}",
            remedy="pass it as `delta` in place of `post` and `base`",
        )
    _check_is_weights(files, role)
    makeup = read_makeup(files)
    whole = _weight_files(files) if makeup is SINGLE else None
    if whole is not None and _is_gguf(files.reader, whole.blobs[0]):
        return _gguf_checkpoint(files, role, whole.blobs)
    tensors: dict[str, View] = {}
    sources: list[SourceFile] = []
    ignored: list[str] = []
    components: list[Component] = []
    gathered: tuple[str, ...] = ()
    for folder in (makeup.main, *makeup.inner):
        if folder is None:
            continue
        inner, is_main = files.sub(folder), folder == makeup.main
        found = _weight_files(inner)
        if found is None:
            if (is_main and makeup.main is not None) or _needs_weights(inner):
                raise _no_weights(inner)
            continue
        component = Component(folder, found.stem, is_main)
        components.append(component)
        gathered += tuple(folder + blob.name for blob in found.blobs) if found.gathered else ()
        own: dict[str, View] = {}
        _prefetch_headers(files.reader, found.blobs)
        for blob in found.blobs:
            source, views, others = read_weights(files.reader, blob, files.location.branch)
            sources.append(replace(source, folder=folder))
            ignored += others
            for view in views:
                if view.name in own:
                    raise _duplicate(view.name, _blob(own[view.name]), blob)
                own[view.name] = view
        ignored += _check_index(inner, found.index, own)
        for name, view in own.items():
            full = component.prefix + name
            if full in tensors:
                raise _duplicate(full, _blob(tensors[full]), _blob(view))
            tensors[full] = replace(view, name=full) if component.prefix else view
    if not components:
        raise _no_weights(files)
    main = files.sub(makeup.main or "")
    return Checkpoint(
        role,
        files.location,
        tensors,
        tuple(sources),
        main,
        main.json("config.json"),
        tuple(ignored),
        tuple(components),
        makeup,
        files,
        gathered,
    )


def _duplicate(name: str, one: Blob, other: Blob) -> CheckpointError:
    return CheckpointError(
        f"tensor {name!r} is in two files",
        code="duplicate-tensor",
        where=f"{one} and {other}",
        expected="an index, or files that hold different tensors",
        remedy="remove the file that does not belong to the checkpoint, or name one file instead "
        "of the folder",
    )


def read_header(reader: Reader, blob: Blob) -> tuple[SourceFile, list[Tensor], dict[str, str]]:
    """One safetensors file: what identifies it, its tensors and its metadata.

    Raises:
        CheckpointError: not a valid safetensors file.
        StorageError: it cannot be read.
    """
    where = str(blob)
    start = reader.get(blob, 0, min(HEAD, blob.size))
    length = header_length(start, blob.size, where)
    text = start[8 : 8 + length]
    if len(text) < length:
        text += reader.get(blob, 8 + len(text), length - len(text))
    entries, metadata = parse_header(text, blob.size, where)
    digest = hashlib.sha256(start[:8] + text).hexdigest()
    tensors = [Tensor(e.name, e.dtype, e.shape, blob, e.offset, e.nbytes) for e in entries]
    return SourceFile(blob, digest), tensors, metadata


def _prefetch_headers(reader: Reader, blobs: Sequence[Blob]) -> None:
    """Read the headers of all weight files at once, where requests take long."""
    reader.prefetch((blob, 0, min(HEAD, blob.size)) for blob in blobs)
    long = []
    for blob in blobs:
        if blob.name.endswith(".safetensors") and blob.size >= HEAD and reader.is_held(blob):
            with contextlib.suppress(ParamDeltaError):  # raised when the header is read
                stop = 8 + header_length(reader.get(blob, 0, 8), blob.size, str(blob))
                long += [(blob, HEAD, stop)] if stop > HEAD else []
    reader.prefetch(long)


def read_weights(
    reader: Reader, blob: Blob, branch: str | None = None
) -> tuple[SourceFile, Sequence[View], Sequence[str]]:
    """One weight file: what identifies it, its tensors, and what else it holds.

    Its first bytes say what it is; its suffix only if they do not. ``branch``: the set of weights
    that is meant in a pickle that holds several. Raises as `open_checkpoint`.
    """
    kind = magic.identify(reader.get(blob, 0, min(magic.HEAD, blob.size)), blob.size, blob.name)
    kind.check(str(blob))
    format_ = kind.reader
    if format_ is None:
        torch = blob.name.endswith(PICKLES)
        format_ = magic.Reader.TORCH if torch else magic.Reader.SAFETENSORS
    if format_ is magic.Reader.SAFETENSORS:
        source, tensors, _ = read_header(reader, blob)
        return source, tensors, ()
    if format_ is magic.Reader.GGUF:
        raise CheckpointError(
            "this is a GGUF file under the name of another format",
            code="gguf-misnamed",
            where=str(blob),
            remedy=f"rename it to end in {gguf.SUFFIX}",
        )
    contents = read_pickle(reader, blob, branch)
    return SourceFile(blob, contents.sha256), contents.tensors, contents.ignored


def header_digest(reader: Reader, blob: Blob) -> str:
    """The digest of a weight file's header; raises as `read_weights`."""
    if _is_gguf(reader, blob):  # it may be a part that says nothing by itself
        return read_gguf_header(reader, blob).sha256
    return read_weights(reader, blob)[0].header_sha256


def _is_gguf(reader: Reader, blob: Blob) -> bool:
    """Whether a file is GGUF, by its bytes; one that is named safetensors is not looked at."""
    if blob.name.endswith(".safetensors"):
        return False
    return reader.get(blob, 0, min(len(MAGIC), blob.size)) == MAGIC


def _gguf_checkpoint(files: Files, role: str, blobs: Sequence[Blob]) -> Checkpoint:
    """A model in GGUF. What the metadata states stands for the small files that are absent."""
    model = gguf.read_model(files.reader, blobs, files.location.url)
    sources = tuple(SourceFile(blob, digest) for blob, digest in model.headers.items())
    files = files.stating(model.stated)
    return Checkpoint(
        role, files.location, model.tensors, sources, files, files.json("config.json")
    )


def _blob(view: View) -> Blob:
    """The file that a tensor is in, as a weight file holds it."""
    return view.parts[0].blob


@dataclass(frozen=True)
class _Found:
    """The weight files of one folder. ``stem``: what a loader's names for them begin with.

    ``index``: the index's map from tensor to file name; empty without an index. ``gathered``:
    whether files were taken together that no index and no numbers in their names put together.
    """

    blobs: tuple[Blob, ...]
    stem: str = MODEL
    index: Mapping[str, str] = field(default_factory=dict)
    gathered: bool = False


def _weight_files(files: Files) -> _Found | None:
    """The weight files of a folder in the order of their names, by the rules of its loaders.

    Safetensors if there are any, else pickles. None if there are no weights at all.
    """
    if files.single is not None:
        return _Found((files.single,))
    top = {name: files[name] for name in sorted(files) if "/" not in name}
    if not {PICKLE, PICKLE_INDEX}.isdisjoint(top):
        top = {name: blob for name, blob in top.items() if name not in _ADAPTERS}
    stems = (MODEL, DIFFUSION)
    safe = [name for name in top if name.endswith(".safetensors")]
    if safe or any(f"{stem}.safetensors.index.json" in top for stem in stems):
        singles = {stem: f"{stem}.safetensors" for stem in stems}
        found = safe
    else:
        singles = {MODEL: PICKLE, DIFFUSION: f"{DIFFUSION}.bin"}
        found = [n for n in top if n.endswith(PICKLES) and not is_training(n)]
    for stem, single in singles.items():
        index = f"{single}.index.json"
        if single in top:
            return _Found((top[single],), stem)
        if index in top:
            weight_map = _weight_map(files, index, single.rpartition(".")[2])
            shards = sorted(set(weight_map.values()))
            return _Found(tuple(top[name] for name in shards), stem, weight_map)
    # Other forms of the same weights, which no loader reads beside the usual ones.
    found = [n for n in found if not n.startswith(("consolidated", "adapter_"))] or found
    if not found:
        parts = gguf.choose(top, files.location.url)
        return _Found(tuple(parts)) if parts else None
    stem = DIFFUSION if found[0].startswith(DIFFUSION) else MODEL
    numbered = [match for name in found if (match := _SHARD.fullmatch(name))]
    complete = bool(numbered) and len(numbered) == len(found) == int(numbered[0]["count"])
    if complete or (len(found) == 1 and not numbered):  # complete, though the index is lost
        return _Found(tuple(top[name] for name in found), stem)
    if all(name.startswith("consolidated") for name in found) and not safe:
        raise CheckpointError(
            "these are the weights in Meta's own format, cut for several processors",
            code="unsupported-file",
            where=files.location.url,
            expected="safetensors, or what transformers saved",
            got=", ".join(found[:8]),
            remedy="use the release for transformers, or transformers' own conversion script",
        )
    if numbered or not safe:
        single = singles[stem]
        raise CheckpointError(
            "cannot tell which of these files make up the checkpoint",
            code="ambiguous-weights",
            where=files.location.url,
            expected=f"{single}, or {single}.index.json, or all shards",
            got=", ".join(found[:8]) + (" …" if len(found) > 8 else ""),
            remedy="name one file instead of the folder, or finish the download",
        )
    return _Found(tuple(top[name] for name in found), stem, gathered=True)


def _needs_weights(files: Files) -> bool:
    """Whether a component's configuration is that of a model, so that it has weights."""
    config = files.json("config.json")
    return "model_type" in config or "_class_name" in config or "in_features" in config


def _no_weights(files: Files) -> CheckpointError:
    """The error for a folder without weights: what is there instead, and what to do."""
    inner = sorted(
        {
            f"{name.rpartition('/')[0]}/"
            for name in files
            if "/" in name and is_weights(name) and not is_training(name)
        }
    )
    other = magic.named([name for name in files if not inner or "/" not in name])
    kind = next(iter(other.values()), None)
    what, remedy = "no weights here", None
    if kind is not None:
        what, remedy = f"{what} that can be read: this is {kind.what}", kind.remedy
    elif inner:
        remedy = "name the folder that holds the model: " + ", ".join(map(shown, inner[:4]))
        remedy += " …" if len(inner) > 4 else ""
    elif any(is_training(name) and is_weights(name) for name in files):
        what += ": this is the state of a training run"
        remedy = "save the model, for DeepSpeed with its zero_to_fp32.py, and name that folder"
    elif not any(True for _ in files):
        what += ": the folder is empty"
        remedy = "check the path, or download the model again"
    elif any("token" in name for name in files):
        what += ": the folder holds a tokenizer, and no model"
        remedy = "name the folder of the model that the tokenizer belongs to"
    found = [*other, *inner]
    return CheckpointError(
        what,
        code="no-weights",
        where=files.location.url,
        expected=f"{WEIGHTS}, or {INDEX}",
        got=", ".join(map(shown, found[:8])) or "neither",
        remedy=remedy,
    )


def _check_is_weights(files: Files, role: str) -> None:
    """Raise UsageError for a single file that is a recipe and not a checkpoint."""
    single = files.single
    if single is not None and single.name.endswith((".yaml", ".yml")):
        raise UsageError(
            "this is a YAML file and not a checkpoint",
            code="yaml-as-checkpoint",
            where=f"{role}: {files.location.address}",
            expected="a folder, a weight file or a Hub id",
            remedy="pass a recipe to mix by itself; read a mergekit configuration with "
            "paramdelta recipe import",
        )


def _weight_map(files: Files, index: str, suffix: str) -> dict[str, str]:
    """The index's map from tensor to shard, checked: no name may leave the folder."""
    where = str(files[index])
    weight_map = files.json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", code="invalid-index", where=where)
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and re.fullmatch(r"[^/\\:\x00]+", name)
        if not plain or not name.endswith(f".{suffix}"):
            raise CheckpointError(
                f"the index names a file that is not a plain .{suffix} name",
                code="unsafe-file-name",
                where=f"{where}, tensor {tensor!r}",
                expected="a file of the same folder",
                got=repr(name)[:80],
                remedy="do not use this checkpoint unless you know where it comes from",
            )
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in files]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing",
            code="missing-shards",
            where=files.location.url,
            expected="every file that the index names",
            got="without " + ", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
            remedy="finish the download",
        )
    return weight_map


def _check_index(
    files: Files, index: Mapping[str, str], tensors: Mapping[str, View]
) -> tuple[str, ...]:
    """Compare an index with the shards; constants that only the index names, as `ignored` has them.

    Raises:
        CheckpointError: a weight is not in the shard that the index names.
    """
    stale = []
    for name, shard in index.items():
        found = _blob(tensors[name]).name if name in tensors else None
        if found is None and is_constant(name):  # older versions listed what they did not save
            stale.append(f"{name} (in the index only)")
        elif found != shard:
            raise CheckpointError(
                "the index and the shards disagree",
                code="index-misfit",
                where=f"{files.location.url}, tensor {name!r}",
                expected=f"in {shard}",
                got=f"in {found}" if found else "in no shard",
                remedy="get the index and all shards again, from the same revision",
            )
    return tuple(stale)
