"""The folder of a mix without its weights: configurations, tokenizer, chat template, code files."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from paramdelta.documents import to_json
from paramdelta.errors import MisfitError
from paramdelta.output.companions import contents
from paramdelta.output.folder import is_inside
from paramdelta.output.lock import pinned
from paramdelta.planning.plan import Plan
from paramdelta.recipe import Recipe, recipe_from_dict
from paramdelta.storage.files import MOST_JSON, parse_json
from paramdelta.storage.local import local_blob
from paramdelta.storage.reader import Reader

RECIPE = "paramdelta.recipe.json"


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


@contextlib.contextmanager
def companion_folder(plan: Plan) -> Iterator[Path]:
    """A temporary folder that `write_companions` filled."""
    with tempfile.TemporaryDirectory(prefix="paramdelta-") as made:
        folder = Path(made)
        write_companions(plan, folder)
        yield folder


def write_recipe(plan: Plan, folder: Path) -> None:
    """Write the recipe of a plan beside its companions, with addresses that stay the same."""
    (folder / RECIPE).write_text(to_json(pinned(plan).to_dict()), encoding="utf-8")


def read_recipe_of(folder: str | Path) -> Recipe:
    """The recipe that `write_recipe` wrote to a folder.

    Raises:
        MisfitError: there is none.
        CheckpointError, UsageError: it cannot be understood.
    """
    path = Path(folder) / RECIPE
    if not path.is_file():
        raise MisfitError(
            "the folder has no recipe of a mix",
            code="not-a-served-folder",
            where=str(folder),
            remedy="start the server with paramdelta serve",
        )
    with Reader() as reader:
        return recipe_from_dict(parse_json(reader.small(local_blob(path), MOST_JSON), str(path)))
