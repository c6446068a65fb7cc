"""The place of an output: where it will be, where it is made, and what may be replaced there."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paramdelta.documents import parse_json as parse_document
from paramdelta.documents import to_json
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.output.rename import exchange, rename_new
from paramdelta.storage.files import parse_json
from paramdelta.storage.local import storage_error, sync_folder, write_text
from paramdelta.storage.store import LOCAL, is_known, scheme_of
from paramdelta.units import show_size

MOST_LOCK = 64_000_000  # bytes of a lock that are read to see what an old output holds
_HIDDEN = tuple(f".paramdelta-{kind}" for kind in ("partial", "lock", "journal", "moving", "parts"))
_OURS = ("README.md", "recipe.yaml")  # in every output, and not in its lock


@dataclass(frozen=True)
class Place:
    """Where an output goes.

    ``out``: its final path, links resolved. ``staging``: the hidden folder in which it is made.
    ``inside``: ``out`` is an empty folder that cannot be replaced (a mount point, the current
    folder), so staging lies in it and the files are moved out of it one by one. ``replaces``:
    device and inode of an old output that is to be replaced; None if nothing is there.
    """

    out: Path
    staging: Path
    inside: bool
    replaces: tuple[int, int] | None

    @property
    def guard(self) -> Path:
        """The lock file."""
        return self.staging.with_name(f".{self.out.name}.paramdelta-lock")

    @property
    def journal(self) -> Path:
        """The journal of an unfinished run: beside the folder, for it must outlive its rename."""
        return self.staging.with_name(f".{self.out.name}.paramdelta-journal")

    @property
    def moving(self) -> Path:
        """The names of the files that `publish` moves one by one; there while it does."""
        return self.staging.with_name(f".{self.out.name}.paramdelta-moving")

    def is_half_moved(self) -> bool:
        """Whether the output holds only files of a `publish` that did not come to its end."""
        names = self._moved()
        seen = {name for name in files_in(self.out) if not _is_staging(name.split("/")[0])}
        return bool(names) and seen <= names and bool(files_in(self.staging))

    def put_back(self) -> None:
        """Undo a `publish` that was killed or failed while it moved files; raises OSError."""
        if files_in(self.staging):  # else it had moved all of them
            for name in sorted(self._moved()):
                if os.path.lexists(self.out / name) and not os.path.lexists(self.staging / name):
                    (self.staging / name).parent.mkdir(parents=True, exist_ok=True)
                    rename_new(self.out / name, self.staging / name)
        self.moving.unlink(missing_ok=True)

    def check_unchanged(self) -> None:
        """Raise MisfitError if the output is no longer as it was when the place was found.

        To be called once nobody else can write there: another run may have finished meanwhile.
        """
        found = _identity(self.out)
        is_empty = found is None or (
            self.out.is_dir() and all(_is_staging(path.name) for path in self.out.iterdir())
        )
        if found != self.replaces and not (self.replaces is None and is_empty):
            raise _appeared(self.out)

    def publish(self) -> Path | None:
        """Put the finished staging folder in place. `sync` makes that durable.

        Returns the folder that holds what is left of an old output; None if nothing is left.

        Raises:
            MisfitError: something else is at the output now.
            StorageError: a rename failed; nothing was lost.
        """
        try:
            if self.inside:
                self._move_files()
            elif self.replaces is None:
                self._appear()
            else:
                if _identity(self.out) != self.replaces:
                    raise _appeared(self.out)
                # It must not be taken for the journal of the old output, which staging becomes.
                self.journal.unlink(missing_ok=True)
                sync_folder(self.out.parent)
                exchange(self.staging, self.out)
        except FileExistsError:
            raise _appeared(self.out) from None
        except OSError as error:
            raise storage_error(error, self.out, "put in place") from None
        return self.staging if self.replaces is not None else None

    def sync(self) -> None:
        """Make a `publish` durable; raises StorageError."""
        try:
            sync_folder(self.out if self.inside else self.out.parent)
        except OSError as error:
            raise storage_error(error, self.out, "sync") from None

    def tidy(self, mark: str) -> Path | None:
        """Remove what a run left that was killed at its very end: an old output that it had
        replaced, or its journal. An unfinished run, which has both folder and journal, stays.
        Returns where the rest of an old output is; None if nothing is left.
        """
        if not os.path.lexists(self.staging):
            self.journal.unlink(missing_ok=True)
        elif not self.journal.exists() and (
            # Its lock is the last file to go: without files, only folders are left of it.
            (self.staging / mark).is_file() or not files_in(self.staging)
        ):
            return self.remove_old(self.staging, mark)
        return None

    def remove_old(self, folder: Path, mark: str) -> Path | None:
        """Remove the files of an old output that its own lock lists, the lock last.

        What remains, such as files that somebody put there meanwhile, gets a name beside the output
        that does not start with a dot, and that no later run touches. Returns it; None if nothing
        remains.
        """
        names = _written(folder, mark) & files_in(folder)
        for name in sorted(names, key=lambda name: (name == mark, name)):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        # Without a file in it, only folders are left of an old output, and no list of them.
        all_of_them = (Path(path) for path, _, _ in os.walk(folder))
        own = {folder / above for name in names for above in Path(name).parents} or {*all_of_them}
        for path in sorted(own, reverse=True):  # what is inside comes first
            with contextlib.suppress(OSError):
                path.rmdir()
        number = 1
        while os.path.lexists(folder):
            target = self.out.with_name(f"{self.out.name}.kept-{number}")
            try:
                rename_new(folder, target)
            except FileExistsError:
                number += 1
            except OSError:
                return folder
            else:
                return target
        return None

    def _appear(self) -> None:
        if self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()  # fails if a file came in meanwhile
        rename_new(self.staging, self.out)

    def _move_files(self) -> None:
        """Move every file out of staging, last those that loaders look for: index and config."""
        names = sorted(files_in(self.staging))
        names.sort(key=lambda name: name.endswith((".index.json", "config.json")))
        write_text(self.moving, to_json(names))
        try:
            sync_folder(self.out)
            for name in names:
                target = self.out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                rename_new(self.staging / name, target)
        except OSError:
            with contextlib.suppress(OSError):  # the next run tries it again
                self.put_back()
            raise
        with contextlib.suppress(OSError):
            self.moving.unlink()
        for _ in range(2):  # only empty folders are left, but nothing looks at them again
            shutil.rmtree(self.staging, ignore_errors=True)

    def _moved(self) -> set[str]:
        """The names in `moving`; none if it is not there or not understood."""
        try:
            if not self.inside or self.moving.stat().st_size > MOST_LOCK:
                return set()
            names = parse_document(self.moving.read_bytes())
        except (OSError, ValueError):
            return set()
        listed = names if isinstance(names, list) else []
        return {name for name in listed if isinstance(name, str) and _is_below(name)}


def place_of(out: Path) -> Place:
    """The place of a finished output."""
    resolved = Path(os.path.realpath(out))
    return Place(resolved, *_staging(resolved), None)


def find_place(out: str | Path, sources: Iterable[Path], overwrite: bool, mark: str) -> Place:
    """Check where an output is to go, before anything is written.

    ``sources``: local paths that must not be touched. ``mark``: the file that outputs of this kind
    have.

    Raises:
        UsageError: not a path of this machine; it is, contains or lies in a source; something is
            there and ``overwrite`` was not given, or it is not, or not only, what paramdelta wrote.
        StorageError: it cannot be looked at.
    """
    check_local(out)
    try:
        resolved = Path(os.path.realpath(out))
        staging, inside = _staging(resolved)
        _check_sources(resolved, staging, sources)
        if not os.path.lexists(resolved):
            _check_parent(resolved)
            return Place(resolved, staging, False, None)
        empty = Place(resolved, staging, inside, None)
        if resolved.is_dir() and (
            all(_is_staging(path.name) for path in resolved.iterdir()) or empty.is_half_moved()
        ):
            return empty
        if not overwrite:
            raise UsageError(
                "the output exists already",
                code="output-exists",
                where=str(out),
                remedy="choose another output folder, or pass `overwrite=True` to replace it once "
                "the new one is complete",
            )
        if not (resolved / mark).is_file():
            raise UsageError(
                "only what paramdelta wrote can be overwritten",
                code="foreign-output",
                where=str(out),
                expected=f"a folder with {mark}",
                remedy="choose another output folder, or remove the folder yourself",
            )
        found = {name for name in files_in(resolved) if not _is_staging(name.split("/")[0])}
        foreign = sorted(found - _written(resolved, mark))
        if foreign:
            raise UsageError(
                "the old output holds files that paramdelta did not write",
                code="foreign-output",
                where=str(out),
                got=", ".join(foreign[:4]) + (" …" if len(foreign) > 4 else ""),
                remedy="move them elsewhere, or choose another output folder",
            )
        if inside:
            raise UsageError(
                "an old output cannot be replaced in one step here: the folder is a mount point, "
                "the current folder, or in a folder that cannot be written",
                code="output-not-replaceable",
                where=str(out),
                remedy="run from another folder, choose another output folder, or empty this one",
            )
        return Place(resolved, staging, False, _identity(resolved))
    except (OSError, ValueError) as error:
        raise storage_error(error, str(out), "look at") from None


def check_local(out: str | Path) -> None:
    """Raise UsageError if the path of an output is empty, or not one of this machine."""
    if not str(out).strip() or scheme_of(str(out)) != LOCAL or ":/" in str(out):
        raise UsageError(
            "the output must be a folder on this machine",
            code="output-not-local",
            got=str(out) or "an empty path",
            expected="a path such as ./mixed",
            remedy="write to a folder here, and copy it when it is complete",
        )


def check_out(out: str | Path) -> None:
    """Raise UsageError if an output can be neither a folder here nor one in an object store."""
    scheme = scheme_of(str(out))
    if scheme == LOCAL:
        check_local(out)
    elif not is_known(scheme) or scheme in ("http", "https"):
        raise UsageError(
            f"an output cannot be written to {scheme}://",
            code="output-not-local",
            got=str(out),
            expected="a folder, or a URL that starts with s3://, gs://, az:// or hf://",
            remedy="write to a folder here, and copy it when it is complete",
        )


def _check_parent(out: Path) -> None:
    """Raise UsageError if the folders above an output cannot be made."""
    above = next((path for path in out.parents if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        raise UsageError(
            "the output lies below something that is not a folder",
            code="output-below-file",
            where=str(out),
            got=str(above),
            remedy="choose another output folder",
        )


def check_room(place: Place, size: int) -> None:
    """Raise StorageError if the disk has too little room for ``size`` bytes, counting what an
    unfinished run has.
    """
    free, folder = free_space(place.out)
    missing = size - _allocated(place.staging)
    if free < missing:
        raise StorageError(
            "too little free space for the output",
            code="disk-full",
            where=str(folder),
            expected=show_size(missing),
            got=show_size(free),
            remedy="free some space or choose another output folder",
        )


def free_space(out: Path) -> tuple[int, Path]:
    """Free bytes where an output will be, and the nearest existing folder."""
    folder = out if out.is_dir() else out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free, folder


def _staging(out: Path) -> tuple[Path, bool]:
    """The hidden folder for an output, and whether it has to lie inside of it."""
    name = f".{out.name}.paramdelta-partial"
    if out.is_dir():
        parent = out.parent
        other_device = out.stat().st_dev != parent.stat().st_dev
        current = out == Path.cwd() or out in Path.cwd().parents
        if other_device or current or out == parent or not os.access(parent, os.W_OK):
            return out / name, True
    return out.parent / name, False


def _is_staging(name: str) -> bool:
    return name.startswith(".") and name.endswith(_HIDDEN)


def _check_sources(out: Path, staging: Path, sources: Iterable[Path]) -> None:
    for source in sources:
        found = Path(os.path.realpath(source))
        # Shards may be links into the old output.
        links = found.glob("*") if found.is_dir() else ()
        targets = {Path(os.path.realpath(link)).parent for link in links}
        for own in (out, staging):
            inside = any(own in (place, *place.parents) for place in (found, *targets))
            if inside or found in own.parents:
                raise UsageError(
                    "the output lies on an input",
                    code="output-on-input",
                    where=f"{out} and {source}",
                    remedy="choose another output folder",
                )


def files_in(folder: Path) -> set[str]:
    """Paths of everything in a folder that is not a folder, relative to it, with slashes."""
    return {
        Path(path, name).relative_to(folder).as_posix()
        for path, folders, names in os.walk(folder)
        for name in (*names, *(n for n in folders if Path(path, n).is_symlink()))
    }


def is_plain(path: Path) -> bool:
    """Whether something is a regular file, and not a link."""
    try:
        return stat.S_ISREG(path.stat(follow_symlinks=False).st_mode)
    except OSError:
        return False


def _written(folder: Path, mark: str) -> set[str]:
    """The files that an old output's own record lists."""
    try:
        if (folder / mark).stat().st_size > MOST_LOCK:
            return set()
        return written_by((folder / mark).read_bytes(), mark)
    except OSError:
        return set()


def written_by(record: bytes, mark: str) -> set[str]:
    """The files that the record of an output lists, and those that every output has; only paths
    that stay in its folder. Empty if it cannot be understood.
    """
    try:
        files = parse_json(record, mark).get("outputs")
    except MisfitError:
        return set()
    listed = files if isinstance(files, (dict, list)) else ()
    names = {name for name in listed if isinstance(name, str) and _is_below(name)}
    return names | {mark, *_OURS}


def _is_below(name: str) -> bool:
    """Whether a name from a file is that of something inside of a folder."""
    return "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _allocated(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(getattr(file, "st_blocks", 0) * 512 for file in found)


def _appeared(out: Path) -> MisfitError:
    return MisfitError(
        "something else is at the output now, which was not there when the run started",
        code="output-appeared",
        where=str(out),
        remedy="move it away; the same command then finishes with what is done",
    )
