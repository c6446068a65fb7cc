"""The account of a plan: what becomes of every file of every source. Nothing is left in silence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.components import Component
from paramdelta.planning.companions import Companion
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import left_because


class Fate(str, Enum):
    """``mixed``: its tensors are operands. ``taken``: it is in the output, as it is or changed.
    ``replaced``: the output has a file of this name from elsewhere. ``left``: it is not there.
    """

    MIXED = "mixed"
    TAKEN = "taken"
    REPLACED = "replaced"
    LEFT = "left"


@dataclass(frozen=True)
class FileFate:
    """What becomes of one file.

    ``source``: the role of its checkpoint. ``name``: its path there.
    """

    source: str
    name: str
    fate: Fate
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "source": self.source,
            "name": self.name,
            "fate": self.fate.value,
            "reason": self.reason,
        }


def account(
    sources: Sequence[Checkpoint],
    companions: Sequence[Companion],
    components: Sequence[Component],
    left: Mapping[Blob, str],
) -> tuple[FileFate, ...]:
    """The fate of every file of every source.

    ``sources``: the new base, then post and base of every Δ. ``components``: of the output.
    ``left``: why files stay behind, as far as it is known.
    """
    main = next((component.folder for component in components if component.is_main), "")
    taken = {companion.source: companion for companion in companions}
    outputs = {companion.name: companion for companion in companions}
    first = next((source.role for source in sources if source.role.startswith("post")), "post")
    result = []
    for source in sources:
        gives = source is sources[0] or source.role == first
        weights = {file.name: file for file in source.sources}
        names = source.folder.keys() or weights.keys()
        for name in names:
            if name in weights:
                result.append(FileFate(source.role, name, Fate.MIXED, "weights"))
                continue
            blob = source.folder[name]
            companion = taken.get(blob)
            if companion is not None and _giver(companion, source):
                reason = companion.why + ("; changed" if companion.changes else "")
                result.append(FileFate(source.role, name, Fate.TAKEN, reason))
                continue
            why = left_because(name)
            if name == "README.md":
                result.append(FileFate(source.role, name, Fate.REPLACED, why))
                continue
            if not gives:
                why = why or f"of {source.role}, only the weights are used"
                result.append(FileFate(source.role, name, Fate.LEFT, why))
                continue
            inside = source.makeup.main or ""
            own = name.startswith(inside) and not source.makeup.folder_of(name)
            output = outputs.get(main + name[len(inside) :] if own else name)
            if output is not None:
                reason = f"the output has that of {output.giver}: {output.why}"
                result.append(FileFate(source.role, name, Fate.REPLACED, reason))
                continue
            why = left.get(blob) or why or _other(name, source, outputs)
            result.append(FileFate(source.role, name, Fate.LEFT, why))
    return tuple(result)


def _giver(companion: Companion, source: Checkpoint) -> bool:
    return source.role.startswith(companion.giver)


def _other(name: str, source: Checkpoint, outputs: Mapping[str, Companion]) -> str:
    """Why a file that might travel does not: the output has another file in its place."""
    folder = source.makeup.folder_of(name)
    if folder:
        given = any(output.startswith(folder) for output in outputs)
        return f"{folder} of another source is used" if given else f"the output has no {folder}"
    if name.endswith(".py"):
        return "code that no file of the output needs"
    if name.startswith("chat_template") or name.endswith(".jinja"):
        return "the chat template is another source's"
    return "the output has another source's files in its place, such as a tokenizer as a whole"
