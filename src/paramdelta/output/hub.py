"""A destination: a branch of a repository on the Hub.

Finished shards are committed to a work branch that is named after the plan's digest; its tree is
the journal, which any machine can read. At the end one commit on the target branch has the Hub copy
the shards from there and adds the small files. Then the work branch is deleted. So the target
branch shows the whole output or nothing of it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.output.destination import RUN
from paramdelta.output.journal import compare_runs, damaged_journal
from paramdelta.output.place import written_by
from paramdelta.storage.hub import Listing, Name, parse
from paramdelta.storage.hubrepo import Repository

JOURNAL = "paramdelta-run"  # the folder of the work branch with the records
FIRST = {".gitattributes", "README.md", "LICENSE"}  # what a new repository may hold


class HubDestination:
    """A branch on the Hub; see `output.destination.Destination`.

    ``url``: ``hf://org/name``, with ``@branch`` if it is not main. ``mark``: the small file that
    says that an output is whole. ``private``: of a repository that is created. ``overwrite``:
    replace a finished output that is there, in one commit; its history stays.

    Raises:
        UsageError: not the address of a repository.
    """

    staging = None

    def __init__(
        self, url: str, *, mark: str, private: bool = False, overwrite: bool = False
    ) -> None:
        name = parse(url)
        if name is None or name.path or "/" not in name.repo:
            raise UsageError(
                "an output on the Hub is a whole repository",
                code="invalid-hub-address",
                where=url,
                expected="org/name, and a branch if it is not main",
            )
        self.name = Name(name.repo, name.revision or "main")
        self.where = f"hf://{self.name.where}"
        self.mark = mark
        self.private = private
        self.overwrite = overwrite
        self.repository = Repository(name.repo)
        self._work = ""  # the work branch
        self._versions: dict[str, str] = {}  # of shards that are recorded, as the Hub identifies
        # them

    @property
    def branch(self) -> str:
        """The target branch."""
        return self.name.revision or "main"

    def finished(self) -> bytes | None:
        """See `Destination.finished`. The work branch of a run that was killed behind its last
        commit is deleted.
        """
        there = self.repository.list(self.branch)
        lock = self.repository.small(there, self.mark) if there is not None else None
        if lock is None:
            return None
        try:
            digest = parse_json(lock)["plan_sha256"]
        except (ValueError, KeyError, TypeError):
            return lock
        if self.repository.list(work_branch(str(digest))) is not None and not self.overwrite:
            self.repository.delete_branch(work_branch(str(digest)))
        return lock

    def begin(self, run: Mapping[str, Any], fresh: bool) -> Mapping[str, bytes]:
        """See `Destination.begin`."""
        self.repository.create(self.private)
        there = self.repository.list(self.branch)
        if there is not None:
            self._check_free(there)
        self._work = work_branch(str(run["digest"]))
        work = self.repository.list(self._work)
        if fresh and work is not None:
            self.repository.delete_branch(self._work)
            work = None
        noted = self.repository.small(work, f"{JOURNAL}/{RUN}") if work is not None else None
        if noted is not None and work is not None:
            try:
                compare_runs(parse_json(noted), parse_json(json.dumps(run).encode()), self.where)
            except (ValueError, KeyError, TypeError):
                raise self._damaged() from None
            return self._records(work)
        self.repository.branch(self._work, "main")
        about = {f"{JOURNAL}/{RUN}": json.dumps(run).encode()}
        self.repository.commit(self._work, "paramdelta: begin", about)
        return {}

    def ship(self, name: str, path: Path, record: bytes, stopped: Callable[[], bool]) -> None:
        """See `Destination.ship`. A shard and its record are one commit."""
        files: dict[str, Path | bytes] = {name: path, _record(name): record}
        self.repository.commit(self._work, f"paramdelta: {name}", files)
        work = self._tree()
        if name not in work.files or work.files[name].size != path.stat().st_size:
            raise self._changed([name])
        self._versions[name] = work.files[name].version

    def publish(self, files: Mapping[str, bytes]) -> None:
        """See `Destination.publish`."""
        work = self._tree()
        found = {name: work.files[name].version for name in work.files}
        wrong = [name for name, version in self._versions.items() if found.get(name) != version]
        if wrong:
            raise self._changed(wrong)
        there = self.repository.list(self.branch)
        if there is None:
            self.repository.branch(self.branch, "main")
            there = self.repository.list(self.branch)
            assert there is not None
        else:
            self._check_free(there)
        own = {*files, *self._versions}
        self.repository.commit(
            self.branch,
            "ParamΔ mix by paramdelta",
            dict(files),
            copies=sorted(self._versions),
            source=work.commit,
            deletions=sorted(there.files.keys() - own - FIRST),
            parent=there.commit,
        )
        self.repository.delete_branch(self._work)

    def close(self) -> None:
        """Close connections."""
        self.repository.close()

    def _check_free(self, there: Listing) -> None:
        """Raise UsageError if the target branch holds anything that may not be replaced."""
        files = there.files.keys() - FIRST
        if not files:
            return
        lock = self.repository.small(there, self.mark)
        if lock is not None and not self.overwrite:
            raise UsageError(
                "the output exists already",
                code="output-exists",
                where=self.where,
                remedy="choose another repository or branch, or pass `overwrite=True` to replace "
                "it by a new commit",
            )
        foreign = sorted(files - written_by(lock, self.mark)) if lock else sorted(files)
        if foreign:
            raise UsageError(
                "the branch holds files that paramdelta did not write",
                code="foreign-output",
                where=self.where,
                got=", ".join(foreign[:4]) + (" …" if len(foreign) > 4 else ""),
                remedy="choose another repository, or remove them yourself",
            )

    def _records(self, work: Listing) -> dict[str, bytes]:
        """The records of the shards that are on the work branch."""
        found, head, tail = {}, f"{JOURNAL}/shards/", ".json"
        for entry in work.files:
            name = entry[len(head) : -len(tail)]
            if entry.startswith(head) and entry.endswith(tail) and name in work.files:
                data = self.repository.small(work, entry)
                if data is not None:
                    found[name] = data
                    self._versions[name] = work.files[name].version
        return found

    def _tree(self) -> Listing:
        work = self.repository.list(self._work)
        if work is None:
            raise StorageError(
                "the work branch is gone",
                code="output-incomplete",
                where=f"{self.name.repo}@{self._work}",
                remedy="run it again; it starts from the beginning",
            )
        return work

    def _changed(self, names: list[str]) -> MisfitError:
        return MisfitError(
            "a shard is not the one that was shipped",
            code="partial-output-changed",
            where=f"{self.name.repo}@{self._work}: {', '.join(names[:4])}",
            remedy="let nothing else write there; pass `fresh=True` to start again",
        )

    def _damaged(self) -> MisfitError:
        return damaged_journal(f"{self.name.repo}@{self._work}")


def work_branch(digest: str) -> str:
    """The name of the work branch for a plan's digest."""
    return f"paramdelta-{digest[:16]}"


def _record(name: str) -> str:
    return f"{JOURNAL}/shards/{name}.json"
