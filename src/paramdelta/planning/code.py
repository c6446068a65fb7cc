"""The code files that configurations name, and those that such code imports from its own folder.

Code is copied and never run. Source of the form of references: transformers 5.24
(dynamic_module_utils.py, ``get_class_from_dynamic_module`` and ``get_relative_imports``).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paramdelta.storage.files import Files

GENERATE = "custom_generate/"
LARGEST = 1 << 20  # bytes of a file of code
_MOST = 200  # files
_FROM = re.compile(
    r"^[ \t]*from[ \t]+\.([\w.]*)[ \t]+import[ \t]*(\([^()]*\)|[^\n#;]*)", re.MULTILINE
)
_NAME = re.compile(r"[^\W\d]\w*")


def references(config: Mapping[str, Any]) -> Iterator[str]:
    """The code files that a configuration's auto_map names, of its own repository."""
    mapped = config.get("auto_map")
    values = mapped.values() if isinstance(mapped, Mapping) else [mapped]
    for value in values:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and "." in each and "--" not in each:
                yield each.rpartition(".")[0] + ".py"


def code_files(files: Files, named: Iterable[str]) -> tuple[list[str], list[str]]:
    """The code files that are needed if some are, in the order in which they are found.

    ``named``: names of files. The second value are those of ``named`` that are not there.
    """
    pending = list(dict.fromkeys(named))
    missing = [name for name in pending if name not in files]
    found: list[str] = []
    while pending:
        name = pending.pop(0)
        if name in found or name not in files or len(found) >= _MOST:
            continue
        found.append(name)
        if files[name].size <= LARGEST:
            pending += _imported(files.text(name), name.rpartition("/")[0], files)
    return found, missing


def _imported(text: str, folder: str, files: Files) -> Iterator[str]:
    """The files that relative imports can mean."""
    for module, what in _FROM.findall(text):
        above = len(module) - len(module.lstrip("."))
        start = folder.split("/") if folder else []
        if above > len(start):
            continue
        parts = [*start[: len(start) - above], *filter(None, module.split("."))]
        path = "/".join(parts)
        names = [f"{path}.py", f"{path}/__init__.py"] if module.strip(".") else []
        names += [f"{path}/{name}.py" if path else f"{name}.py" for name in _NAME.findall(what)]
        yield from (name for name in names if name in files)
