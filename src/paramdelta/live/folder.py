"""The folder of a mix without its weights: configurations, tokenizer, chat template, code files."""

from pathlib import Path

from paramdelta.errors import MisfitError
from paramdelta.output.companions import contents
from paramdelta.output.folder import is_inside
from paramdelta.planning.plan import Plan
from paramdelta.storage.reader import Reader


def write_companions(plan: Plan, folder: Path) -> None:
    """Write the small files that `paramdelta.mix` would write beside the weights.

    Raises:
        MisfitError: a file would leave the folder.
        CheckpointError, StorageError: as `output.companions.contents`.
    """
    with Reader() as reader:
        files = contents(plan.companions, reader)
    for name, data in files.items():
        if not is_inside(name):
            raise MisfitError("a file would leave the folder", code="unsafe-file-name", where=name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
