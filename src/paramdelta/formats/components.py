"""Components: the models of one folder, each with weight files of its own.

A plain checkpoint is one component. A folder of sentence-transformers (modules.json) has one for
each module with weights, such as ``2_Dense/``; a pipeline of diffusers (model_index.json) has one
for each of its models, such as ``unet/``. A component keeps its own files. In a plan, the names of
its tensors begin with its folder: ``unet/conv_in.weight``.

Sources: sentence-transformers 6.2 (SentenceTransformer.py, models/Router.py) and diffusers 0.42
(pipelines/pipeline_utils.py, pipeline_loading_utils.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paramdelta import documents
from paramdelta.errors import CheckpointError
from paramdelta.storage.files import MOST_JSON, Files

MODULES = "modules.json"
PIPELINE = "model_index.json"
MODEL = "model"
DIFFUSION = "diffusion_pytorch_model"
SENTENCES = "sentence-transformers"
DIFFUSERS = "diffusers"
_ROUTERS = ("Router", "Asym")  # modules that are several models side by side
_FOLDER = re.compile(r"(?!\.\.?(/|$))[^/\\:\x00]+(/(?!\.\.?(/|$))[^/\\:\x00]+)*")


@dataclass(frozen=True)
class Component:
    """One model of a folder.

    ``folder``: where its files are: "", or a path with a slash at its end. ``stem``: what the names
    of its weight files begin with. ``is_main``: whether it is the model that the tokenizer and most
    other files belong to; the names of its tensors have no prefix.
    """

    folder: str = ""
    stem: str = MODEL
    is_main: bool = True

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with in a plan."""
        return "" if self.is_main else self.folder

    @property
    def weights(self) -> str:
        """The name of its weight file, if it has only one."""
        return f"{self.folder}{self.stem}.safetensors"

    @property
    def index(self) -> str:
        """The name of the index of its weight files."""
        return f"{self.weights}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The name of weight file ``number`` (from 1) of ``count``."""
        return f"{self.folder}{self.stem}-{number:05d}-of-{count:05d}.safetensors"


WHOLE = (Component(),)
"""The components of a plain checkpoint."""


@dataclass(frozen=True)
class Makeup:
    """What a folder consists of.

    ``framework``: whose folder it is: "", `SENTENCES` or `DIFFUSERS`. ``main``: the folder of the
    main model; None if there is none. ``inner``: the other folders that belong to it, each with a
    slash at its end. ``types``: the class of each module or component, by folder.
    """

    framework: str = ""
    main: str | None = ""
    inner: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)

    def folder_of(self, name: str) -> str:
        """The inner folder that a file is in, "" if it is in none."""
        found = [folder for folder in self.inner if name.startswith(folder)]
        return max(found, key=len, default="")


SINGLE = Makeup()
"""A folder, or a file, with one model."""


def read_makeup(files: Files) -> Makeup:
    """What a folder consists of; folders that are named and not there are left out.

    Raises:
        CheckpointError: modules.json or model_index.json cannot be understood.
        StorageError: a file cannot be read.
    """
    if PIPELINE in files:
        found = dict(_components(files.json(PIPELINE)))
        types = {folder: kind for folder, kind in found.items() if _is_there(folder, files)}
        return Makeup(DIFFUSERS, None, tuple(types), types)
    if MODULES in files:
        modules = _modules(files)
        (main, kind), *_ = modules
        found = {folder: kind for folder, kind in modules if folder and _is_there(folder, files)}
        if kind in _ROUTERS:
            routes = {**files.json(f"{main}config.json"), **files.json(f"{main}router_config.json")}
            for folder, route in _routes(main, routes.get("types")):
                if _is_there(folder, files):
                    found[folder] = route
            return Makeup(SENTENCES, None, tuple(f for f in found if f != main), found)
        return Makeup(SENTENCES, main, tuple(f for f in found if f != main), {main: kind, **found})
    return SINGLE


def component_of(name: str, components: Sequence[Component]) -> Component:
    """The component that a tensor belongs to, by its name in a plan."""
    if len(components) == 1:
        return components[0]
    found = [c for c in components if name.startswith(c.prefix)]
    return max(found, key=lambda component: len(component.prefix))


def component_of_file(name: str, components: Sequence[Component]) -> Component:
    """The component that a weight file of an output belongs to, by its path."""
    found = [component for component in components if name.startswith(component.folder)]
    return max(found, key=lambda component: len(component.folder))


def _is_there(folder: str, files: Files) -> bool:
    return any(name.startswith(folder) for name in files)


def _components(index: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Folders and classes of a pipeline; a component that is left out is [null, null]."""
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        if isinstance(value[1], str) and "/" not in name and _FOLDER.fullmatch(name):
            yield f"{name}/", value[1]


def _modules(files: Files) -> list[tuple[str, str]]:
    """Folders and classes of modules.json, in order."""
    where = str(files[MODULES])
    try:
        modules = documents.parse_json(files.bytes(MODULES, MOST_JSON))
        if not isinstance(modules, list) or not modules:
            raise ValueError("it is not a list of modules")
        found = []
        for module in modules:
            path, kind = (
                (module.get("path"), module.get("type"))
                if isinstance(module, dict)
                else (None, None)
            )
            if not isinstance(path, str) or not isinstance(kind, str):
                raise ValueError("a module has no path or no type")
            path = path.rstrip("/")
            if path and not _FOLDER.fullmatch(path):
                raise ValueError(f"a module has the path {path[:80]!r}, not a folder inside")
            found.append((f"{path}/" if path else "", kind.rpartition(".")[2]))
    except ValueError as error:
        raise CheckpointError(
            "the list of modules cannot be understood",
            code="invalid-modules",
            where=where,
            expected="a list of modules, each with its path in this folder and its type",
            got=str(error),
            remedy="get the file again, or save the model again with sentence-transformers",
        ) from None
    return found


def _routes(main: str, types: Any) -> Iterator[tuple[str, str]]:
    for name, kind in types.items() if isinstance(types, Mapping) else ():
        if _FOLDER.fullmatch(name) and isinstance(kind, str):
            yield f"{main}{name}/", kind.rpartition(".")[2]
