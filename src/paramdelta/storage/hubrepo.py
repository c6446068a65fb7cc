"""A repository on the Hub that is written: branches and commits, through the Hub's own client."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paramdelta.errors import MisfitError, StorageError
from paramdelta.storage.blob import Blob
from paramdelta.storage.hub import HubStore, Listing, Name, reasons, resolve

MOST_SMALL = 64_000_000  # bytes of a file that is read in whole
CONFLICTS = 8  # tries of a commit while others commit to the same branch


class Repository:
    """A repository, as a place to write. ``repo``: org/name.

    Raises, from every method:
        StorageError: the Hub cannot be reached, or refuses.
    """

    def __init__(self, repo: str) -> None:
        self.repo = repo
        self._store = HubStore(once=False)

    def create(self, private: bool) -> None:
        """Create it unless it exists.

        Raises:
            MisfitError: it exists and everyone can read it, and it was to be private.
        """
        with self._told("create the repository"):
            from huggingface_hub import HfApi
            from huggingface_hub.errors import RepositoryNotFoundError

            try:
                found = HfApi().model_info(self.repo)
            except RepositoryNotFoundError:
                HfApi().create_repo(self.repo, private=private, exist_ok=True)
                return
        if private and found.private is False:
            raise MisfitError(
                "the repository exists and is public",
                code="repository-public",
                where=self.repo,
                remedy="make it private on the Hub, choose another one, or leave `private` out",
            )

    def list(self, branch: str) -> Listing | None:
        """The newest commit of a branch, and its files; None if there is no such branch."""
        try:
            return resolve(Name(self.repo, branch))
        except StorageError as error:
            if error.code in ("no-such-revision", "no-such-checkpoint"):
                return None
            raise

    def small(self, listing: Listing, name: str) -> bytes | None:
        """A small file of a commit; None if it is not there, or large."""
        if name not in listing.files or listing.files[name].size > MOST_SMALL:
            return None
        blob: Blob = listing.blob(name)
        data = bytearray(blob.size)
        self._store.read(blob, 0, memoryview(data))
        return bytes(data)

    def branch(self, name: str, revision: str) -> None:
        """Create a branch at a revision; one that exists stays."""
        with self._told("create a branch"):
            from huggingface_hub import HfApi

            HfApi().create_branch(self.repo, branch=name, revision=revision, exist_ok=True)

    def delete_branch(self, name: str) -> None:
        """Delete a branch, if it exists."""
        with self._told("delete a branch"):
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError

            try:
                HfApi().delete_branch(self.repo, branch=name)
            except HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise

    def commit(
        self,
        branch: str,
        message: str,
        files: Mapping[str, Path | bytes] | None = None,
        *,
        copies: Sequence[str] = (),
        source: str = "",
        deletions: Sequence[str] = (),
        parent: str | None = None,
    ) -> str:
        """One commit; its hash. Whole or not at all.

        ``files``: added, by name. ``copies``: names of files that revision ``source`` has, which
        the Hub copies itself. ``parent``: the commit that the branch must still be at.

        Raises:
            MisfitError: the branch is at another commit.
        """
        from huggingface_hub import (
            CommitOperationAdd,
            CommitOperationCopy,
            CommitOperationDelete,
            HfApi,
        )
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        for attempt in range(CONFLICTS):
            operations: list[Any] = [
                CommitOperationAdd(name, data if isinstance(data, bytes) else str(data))
                for name, data in (files or {}).items()
            ]
            operations += [CommitOperationCopy(name, name, src_revision=source) for name in copies]
            operations += [CommitOperationDelete(name) for name in deletions]
            with self._told("commit"):
                try:
                    made = HfApi().create_commit(
                        self.repo,
                        operations,
                        commit_message=message,
                        revision=branch,
                        parent_commit=parent,
                    )
                    return str(made.oid)
                except HfHubHTTPError as error:
                    conflict = error.response.status_code in (409, 412)
                    if not conflict or (parent is None and attempt + 1 == CONFLICTS):
                        raise
            if parent is not None:
                raise MisfitError(
                    "someone else committed to the branch during the run",
                    code="branch-moved",
                    where=f"{self.repo}@{branch}",
                    expected=f"commit {parent}",
                    remedy="look at what is there; the same command continues",
                )
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close connections. Another call opens them again."""
        self._store.close()
        self._store = HubStore(once=False)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Name what was tried in the errors of a write."""
        try:
            with reasons(self.repo):
                yield
        except RuntimeError as error:  # of an upload; its cause says more
            cause = error.__cause__ or error
            status = getattr(getattr(cause, "response", None), "status_code", None)
            raise StorageError(
                f"cannot {what}",
                code="upload-failed",
                where=self.repo,
                got=f"HTTP {status}" if status else type(cause).__name__,
                remedy="the same command continues",
            ) from None
        except StorageError as error:
            if error.code == "hub-access-denied":
                error.remedy = "log in with a token that may write there: hf auth login"
            elif error.code in ("download-failed", "hub-unreachable"):
                raise StorageError(
                    f"cannot {what}",
                    code="upload-failed",
                    where=self.repo,
                    got=error.got,
                    remedy=error.remedy or "the same command continues",
                ) from None
            raise
