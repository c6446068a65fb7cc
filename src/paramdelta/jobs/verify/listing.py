"""The files of a folder, compared with the list that was made when it was written."""

import re
from collections.abc import Mapping, Sequence

from paramdelta.errors import MisfitError
from paramdelta.jobs.verify.record import ListedFile
from paramdelta.jobs.verify.verification import Runner
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.files import Files
from paramdelta.text import shown

CARD = "README.md"
RECIPE = "recipe.yaml"  # says where the sources are, seen from the output
MOST = 6  # problems that an error names
OUTPUT = "the files of the output are not those that were written"
SOURCES = "the sources are not those that the output was made from"
# Nothing loads these: people put them beside a model.
_INERT = re.compile(
    r"(.*/)?([^/]*\.(md|png|jpe?g|gif|svg|webp|pdf)|(LICEN[CS]E|NOTICE)[^/]*)", re.I
)


def check_names(files: Files, listed: Mapping[str, ListedFile], mark: str) -> tuple[str, ...]:
    """Compare names and sizes. ``mark``: the file that holds the list. Returns notes.

    Raises:
        MisfitError: files are missing, have another size, or do not belong there.
    """
    wrong, notes = [], []
    for name, file in listed.items():
        if name not in files:
            wrong.append(f"{shown(name)} is missing")
        elif files[name].size != file.size:
            wrong.append(f"{shown(name)} has {files[name].size} bytes, not {file.size}")
    for name in files:
        if name in listed or name in (mark, CARD, RECIPE):
            continue
        if _INERT.fullmatch(name):
            notes.append(f"{shown(name)} was added")
        else:
            wrong.append(f"{shown(name)} does not belong to it")
    if CARD not in files:
        notes.append(f"{CARD} was removed")
    if wrong:
        raise changed(OUTPUT, files.location.url, wrong)
    return tuple(notes)


def check_contents(
    files: Mapping[Blob, ListedFile], runner: Runner, digests: Digests, what: str
) -> int:
    """Compare content digests, as far as they are known; how many were.

    Raises:
        MisfitError: one differs. ``what`` is the message: `OUTPUT` or `SOURCES`.
    """
    known = {blob: file.digest for blob, file in files.items() if file.digest is not None}
    found = runner.digested(known, digests)
    wrong = [blob for blob, digest in known.items() if found[blob] != digest]
    if wrong:
        where = ", ".join(dict.fromkeys(blob.url.rpartition("/")[0] for blob in wrong))
        raise changed(what, where, [f"the content of {blob.name} has changed" for blob in wrong])
    return len(known)


def changed(what: str, where: str, wrong: Sequence[str]) -> MisfitError:
    """The error for files that are not as they were."""
    rest = f"; and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    return MisfitError(
        what,
        code="files-changed",
        where=where,
        expected="files as they were when the output was written",
        got="; ".join(wrong[:MOST]) + rest,
        remedy="put the same files back, or make the output again",
    )
