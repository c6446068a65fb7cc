"""The post and base that a Δ or an adapter was taken from, if they are here.

Their description names them without any path. They are looked for where the user says, in the
cache of the Hub, beside the folder, and in the working directory; the headers of their weight files
tell whether they are the ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paramdelta.errors import MisfitError, UsageError
from paramdelta.formats.checkpoint import header_digest
from paramdelta.jobs.verify.lock import LockedFile, locked_file
from paramdelta.jobs.verify.record import Record
from paramdelta.jobs.verify.sources import LocalOpener, planned
from paramdelta.jobs.verify.verification import Options
from paramdelta.planning.extraction import extraction_recipe
from paramdelta.planning.plan import Plan
from paramdelta.storage.files import Files
from paramdelta.storage.location import Location, locate
from paramdelta.storage.reader import Reader

ABSENT = "post and base are not here: the numbers were not compared with them"


@dataclass(frozen=True)
class Origin:
    """Addresses of post and base, and how they correspond."""

    post: str
    base: str
    vocabulary: str
    maps: tuple[str, ...]
    allow: tuple[str, ...]

    def plan(self, download: bool) -> Plan:
        """The plan of the mix whose Δ was stored; raises as `planned`."""
        with Reader() as reader:
            recipe = extraction_recipe(
                self.post,
                self.base,
                LocalOpener(reader, download),
                maps=self.maps,
                vocabulary=self.vocabulary,
                allow=self.allow,
            )
        return planned(recipe, download)


def find_origin(about: Record, folder: Location, options: Options) -> Origin | None:
    """Post and base of a description; None unless both are here.

    Raises:
        CheckpointError: the description is malformed.
        MisfitError: what the user names is not what the description names.
    """
    found = {}
    with Reader() as reader:
        for role, given in (("post", options.post), ("base", options.base)):
            source = about.record(role)
            recorded = tuple(map(locked_file, source.records("files")))
            if given is not None:
                if not _is_it(Files(locate(given, options.download), reader), recorded):
                    raise MisfitError(
                        f"this is not the {role} that the Δ was taken from",
                        code="source-changed",
                        where=given,
                        expected=f"{source.text('name')}, with the same weight files",
                    )
                found[role] = given
                continue
            for address in _addresses(source.text("name"), folder):
                if _is_here(address, recorded, options.download, reader):
                    found[role] = address
                    break
    chosen = about.record("options")
    vocabulary, maps, allow = chosen.text("vocabulary"), chosen.texts("maps"), chosen.texts("allow")
    if found.keys() != {"post", "base"}:
        return None
    return Origin(found["post"], found["base"], vocabulary, tuple(maps), tuple(allow))


def _addresses(name: str, folder: Location) -> Iterator[str]:
    if folder.path is not None and "/" not in name:
        yield str(folder.path.parent / name)
        yield str(Path(name).absolute())
    yield name


def _is_here(
    address: str, recorded: tuple[LockedFile, ...], download: bool, reader: Reader
) -> bool:
    try:
        return _is_it(Files(locate(address, download), reader), recorded)
    except (UsageError, MisfitError):
        return False


def _is_it(files: Files, recorded: tuple[LockedFile, ...]) -> bool:
    """Whether a place has weight files of these names, sizes and headers."""
    single = {files.single.name: files.single} if files.single is not None else {}
    blobs = {**files, **single}
    if not recorded or any(
        one.name not in blobs or blobs[one.name].size != one.file.size for one in recorded
    ):
        return False
    headers = (header_digest(files.reader, blobs[one.name]) for one in recorded)
    return all(one.header_sha256 == header for one, header in zip(recorded, headers, strict=True))
