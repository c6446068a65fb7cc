"""The Hugging Face Hub, through its own client and cache. The only module that imports it."""

from pathlib import Path

from paramdelta.errors import StorageError
from paramdelta.storage.filekinds import wanted
from paramdelta.storage.location import not_here

TRIES = 3  # if a repository changes while it is read
LARGEST = 256_000_000  # bytes of a file that is fetched and is no weights


def download(repo: str, revision: str | None, cached: bool = False) -> tuple[Path, str]:
    """Download a model into the Hub's cache, or find it there; the folder and the commit hash.

    ``cached``: only look into the cache.

    Token, endpoint, cache folder and offline mode are huggingface_hub's own (HF_TOKEN, HF_ENDPOINT,
    HF_HOME, HF_HUB_OFFLINE).

    Raises:
        MisfitError: it is not in the cache, and only that was asked for.
        StorageError: no such repository or revision, no access, or the network failed.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo}@{revision}" if revision else repo
    name = revision or "main"
    commit: str | None = None
    patterns: list[str] = []
    online = False
    try:
        for _ in range(TRIES):
            if not cached:
                try:
                    found = HfApi().model_info(repo, revision=name, files_metadata=True)
                    sizes = {file.rfilename: file.size for file in found.siblings or ()}
                    commit, patterns = found.sha, [_exactly(n) for n in wanted(sizes, LARGEST)]
                    online = True
                except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
                    raise
                except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
                    pass  # what an earlier download left may be enough
            folder = Path(
                snapshot_download(
                    repo,
                    revision=name,  # by its name, so that the cache knows it offline
                    allow_patterns=patterns,  # offline none, for what is wanted is not known
                    local_files_only=not online,
                )
            )
            if commit in (None, folder.name):
                break  # else someone pushed between the two calls
    except GatedRepoError:
        raise StorageError(
            "access to this model must be asked for",
            code="hub-access-denied",
            where=where,
            remedy="accept its terms on the Hub, then log in: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise StorageError(
            "the model has no such revision", code="no-such-revision", where=where
        ) from None
    except RepositoryNotFoundError:
        raise StorageError(
            "neither a folder here nor a model on the Hub",
            code="no-such-checkpoint",
            where=where,
            remedy="look at the spelling; a private model needs: hf auth login",
        ) from None
    except LocalEntryNotFoundError:
        if cached:
            raise not_here(where) from None
        raise StorageError(
            "the Hub cannot be reached and its cache does not hold this model",
            code="hub-unreachable",
            where=where,
            remedy="look at the network, HF_ENDPOINT and HF_HUB_OFFLINE",
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            "the download failed", code="download-failed", where=where, got=reason
        ) from None
    return folder, folder.name


def _exactly(name: str) -> str:
    """A pattern that matches only this name."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
