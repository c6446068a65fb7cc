"""The Hugging Face Hub, through its own client and cache. The only module that imports it."""

from pathlib import Path

from paramdelta.errors import StorageError
from paramdelta.storage.location import not_here

# Weights in the order in which a folder's are chosen: pickles only where a repo has no safetensors.
_WEIGHTS = (["*.safetensors"], ["pytorch_model*.bin"], ["*.bin", "*.pt", "*.pth"])
_BESIDE = ["*.json", "*.txt", "*.model", "*.jinja", "*.py", "README.md", "LICENSE*"]
_UNWANTED = ["onnx/*", "openvino/*", "original/*", "*/*.bin", "*/*.pt", "*/*.pth"]
# What training leaves beside the weights.
_UNWANTED += ["training_args.bin", "optimizer.bin", "scheduler.bin", "rng_state*.pth"]
_UNWANTED += ["optimizer.pt", "scheduler.pt", "scaler.pt"]


def download(repo: str, revision: str | None, cached: bool = False) -> tuple[Path, str]:
    """Download a model into the Hub's cache, or find it there; the folder and the commit hash.

    ``cached``: only look into the cache.

    Token, endpoint, cache folder and offline mode are huggingface_hub's own (HF_TOKEN, HF_ENDPOINT,
    HF_HOME, HF_HUB_OFFLINE).

    Raises:
        MisfitError: it is not in the cache, and only that was asked for.
        StorageError: no such repository or revision, no access, or the network failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo}@{revision}" if revision else repo
    commit = revision
    try:
        for weights in _WEIGHTS:
            folder = Path(
                snapshot_download(
                    repo,
                    revision=commit,
                    allow_patterns=[*weights, *_BESIDE],
                    ignore_patterns=_UNWANTED,
                    local_files_only=cached,
                )
            )
            commit = folder.name  # the same one, whatever is pushed meanwhile
            if any(any(folder.glob(pattern)) for pattern in weights):
                break
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
