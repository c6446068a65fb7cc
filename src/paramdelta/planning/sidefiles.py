"""The files beside the weights of a source: which of them may travel into an output, and which not.

No list of suffixes decides. A file stays behind only for a reason: its name (`storage.filekinds`),
its size, what it holds, or because it is in a folder that nothing names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paramdelta.errors import CheckpointError
from paramdelta.formats import magic
from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.torch_pickle import foreign_code
from paramdelta.planning.code import GENERATE, LARGEST
from paramdelta.planning.facts import FAST, TEMPLATES
from paramdelta.planning.tokenizer import is_tokenizer_file
from paramdelta.planning.vocabulary import MOST
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import is_license, is_weights, left_because
from paramdelta.storage.files import POINTERS, Files
from paramdelta.units import show_size

UNNAMED = "in a folder that no configuration names"
OUTSIDE = "a link that leads out of the folder"
CONFIDENTIAL = "it holds what looks like a secret"
_KNOWN = re.compile(
    r"config\.json|generation_config\.json|.*_config\.json|modules\.json|model_index\.json|"
    r"chat_template\.(json|jinja)|.*\.jinja|.*\.py|config_sentence_transformers\.json"
)
_SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|"
    rb"\bgh[pousr]_[A-Za-z0-9]{30,}|\bglpat-[\w-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|"
    rb"\bxox[abprs]-[\w-]{10,}|"
    rb"(?i:[\"'](api_?key|secret(_access)?(_key)?|password|access_token|auth_token|private_key)[\"']"
    rb"\s*:\s*[\"'][^\"'\s]{8,})"
)


@dataclass(frozen=True)
class SideFiles:
    """Files of one folder. ``may``: those that may travel, by name. ``left``: why others do not."""

    may: Mapping[str, Blob]
    left: Mapping[Blob, str]


def side_files(files: Files, checkpoint: Checkpoint, skip: Callable[[str], bool]) -> SideFiles:
    """Sort the files of a folder. ``skip``: names that are another folder's matter.

    Raises:
        CheckpointError: a file was not downloaded: a Git LFS pointer stands for it.
        StorageError: a file cannot be read.
    """
    weights = {source.blob for source in checkpoint.sources}
    may: dict[str, Blob] = {}
    left: dict[Blob, str] = {}
    mentions = _Mentions(files)
    for name, blob in files.items():
        if skip(name) or blob in weights:
            continue
        known = is_tokenizer_file(name) or _KNOWN.fullmatch(name) or is_license(name)
        why = left_because(name)
        if blob.outside and not known:
            why = OUTSIDE
        if why in _OVERRULED and mentions.has(name):
            why = ""
        if not why and blob.size > MOST:
            why = f"larger than {show_size(MOST)}, and not weights that are mixed"
        if not why and "/" in name and not name.startswith((f"{TEMPLATES}/", GENERATE)):
            why = "" if mentions.has(name) else UNNAMED
        if not why and is_weights(name):
            why = _pickle(files, blob)
        if not why and not known and not is_weights(name) and blob.size <= LARGEST:
            why = CONFIDENTIAL if _SECRETS.search(files.bytes(name)) else ""
        if why:
            left[blob] = why
            continue
        if blob.size in POINTERS or blob.outside:
            files.bytes(name)  # refuses a file that was not downloaded, and one that leads out
        may[name] = blob
    return SideFiles(may, left)


_OVERRULED = ("data or an archive", "documentation")


class _Mentions:
    """Which files the configurations and the code of a folder name; read when it is asked."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pieces: frozenset[str] | None = None

    def has(self, name: str) -> bool:
        """Whether the file, or the folder that it is in, is named."""
        if self._pieces is None:
            texts = [
                self._files.text(each)
                for each, blob in self._files.items()
                if "/" not in each
                and each.endswith((".json", ".py"))
                and each != FAST
                and not left_because(each)
                and not blob.outside
                and blob.size <= LARGEST
            ]
            # What stands between quotes and slashes: all names are then found in one pass.
            self._pieces = frozenset(p for text in texts for p in re.split("[\"'/]", text))
        folder, _, last = name.rpartition("/")
        return not self._pieces.isdisjoint([last, *([folder.partition("/")[0]] if folder else [])])


def _pickle(files: Files, blob: Blob) -> str:
    """Why a file with the suffix of a pickle stays behind; "" if it holds tensors or is none."""
    kind = magic.identify(
        files.reader.get(blob, 0, min(magic.HEAD, blob.size)), blob.size, blob.name
    )
    if kind.reader is None and kind in magic.PICKLES:
        return f"{kind.what}: it could run code"
    if kind.reader is None:
        return "" if kind is magic.UNKNOWN else f"it is {kind.what}"
    try:
        foreign = foreign_code(files.reader, blob)
    except CheckpointError as error:
        return f"it cannot be read safely: {error.what}"
    return f"a pickle that runs {min(foreign)[:80]} where torch loads it" if foreign else ""
