"""Asks a running server of `paramdelta serve` for another scale."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from paramdelta.documents import parse_json, to_json
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.live.vllm import ROUTE

_ANSWER = 1 << 16  # bytes of an answer that are read


def ask_scale(url: str, scale: float | Sequence[float], key: str | None = None) -> dict[str, Any]:
    """Ask a server of `serve` to mix at another scale; returns the scale and the formula.

    ``key``: the API key, if the server has one.

    Raises:
        UsageError: not the address of a server, or a scale that is not valid there.
        MisfitError: the server could not mix at this scale.
        StorageError: the server cannot be reached.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(
            "not the address of a server",
            code="invalid-address",
            expected="http://127.0.0.1:8000",
            got=url,
        )
    place = url.rstrip("/").removesuffix("/v1") + ROUTE
    request = urllib.request.Request(  # noqa: S310 - http or https, see above
        place,
        to_json({"scale": scale}).encode(),
        {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        method="POST",
    )
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
            found = parse_json(answer.read(_ANSWER))
    except urllib.error.HTTPError as error:
        raise _refused(place, error.code, error.read(_ANSWER)) from None
    except (OSError, ValueError) as error:
        raise _unreachable(place, str(error)) from None
    if not isinstance(found, dict) or not {"scale", "formula"} <= found.keys():
        raise _unreachable(place, "an answer of another server")
    return found


def _unreachable(place: str, why: str) -> StorageError:
    return StorageError(
        "the server cannot be reached",
        code="server-unreachable",
        where=place,
        got=why,
        remedy="start it with paramdelta serve",
    )


def _refused(place: str, status: int, body: bytes) -> UsageError | MisfitError:
    try:
        told = str(parse_json(body)["error"])
    except (ValueError, KeyError, TypeError):
        told = f"status {status}"
    if status == 400:
        return UsageError("the server refused the scale", code="scale-refused", got=told)
    remedies = {
        401: "pass its API key",
        404: "start it with paramdelta serve",
        500: "generation is paused; set a scale again, or start the server again",
    }
    return MisfitError(
        "the server did not change the scale",
        code="scale-not-changed",
        where=place,
        got=told,
        remedy=remedies.get(status),
    )
