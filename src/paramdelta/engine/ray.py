"""Calls as tasks of a Ray cluster. The only module that imports ray.

The tasks read and write by themselves: what goes through the driver are a description of the work
and what each call returns. Ray notices lost nodes and starts their tasks again; calls must
therefore be harmless when they are repeated.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paramdelta.errors import ParamDeltaError, StorageError, UsageError

Call = TypeVar("Call")
Result = TypeVar("Result")

TRIES = 3  # of a call that raised StorageError
WAIT = 0.5  # seconds between two looks at what is done


def run(
    function: Callable[[Any, Call], Result],
    shared: Any,
    calls: Sequence[Call],
    *,
    address: str,
    processors: int,
    memory: int,
    done: Callable[[Result], None],
) -> None:
    """Call ``function(shared, call)`` for every call, each in a task, in any order.

    ``shared``: sent to the cluster once. ``address``: of the cluster; "auto" for the one that this
    process belongs to. ``processors`` and ``memory`` (bytes): what a task declares to need.
    ``done``: called here with each result, when it comes.

    Raises:
        UsageError: there is no such cluster, or ray is not installed.
        ParamDeltaError: what a call raised; the other tasks are cancelled. A StorageError after
            `TRIES` tries.
    """
    ray = _connected(address)
    # A lost node costs no try: Ray starts its tasks again for as long as there are nodes.
    task = ray.remote(num_cpus=processors, memory=memory, max_retries=-1)(_called)
    put, packed = ray.put(shared), ray.put(function)
    left = {task.remote(packed, put, call): (call, 1) for call in calls}
    try:
        while left:
            ready, _ = ray.wait(list(left), timeout=WAIT)
            for reference in ready:
                call, tries = left.pop(reference)
                result, error = ray.get(reference)
                if error is None:
                    done(result)
                elif isinstance(error, StorageError) and tries < TRIES:
                    left[task.remote(packed, put, call)] = call, tries + 1
                else:
                    raise error
    except ray.exceptions.RayError as error:
        raise StorageError(
            "a task of the Ray cluster failed",
            code="ray-failed",
            where=address,
            got=str(error).strip().splitlines()[-1][:300],
            remedy="look at the cluster; the same command continues",
        ) from None
    finally:
        for reference in left:
            ray.cancel(reference, force=True)


def _called(
    function: Callable[[Any, Call], Result], shared: Any, call: Call
) -> tuple[Result | None, ParamDeltaError | None]:
    """What a task does: errors of ours are returned, for Ray would wrap them."""
    try:
        return function(shared, call), None
    except ParamDeltaError as error:
        return None, error


def _connected(address: str) -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UsageError(
            "the engine needs the package ray",
            code="missing-package",
            expected="ray",
            remedy="pip install 'paramdelta[ray]'",
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                "there is no Ray cluster at this address",
                code="no-ray-cluster",
                where=address,
                got=(str(error).strip().splitlines() or ["no answer"])[0][:300],
                expected="auto on a node of the cluster, or host:port",
            ) from None
    return ray
