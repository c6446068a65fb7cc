"""What a folder is that paramdelta wrote, and how it is verified."""

from collections.abc import Callable, Mapping

from paramdelta.errors import MisfitError, UsageError
from paramdelta.formats.checkpoint import DELTA
from paramdelta.jobs.lowrank import LORA
from paramdelta.jobs.verify.adapter import verify_adapter
from paramdelta.jobs.verify.delta import verify_delta
from paramdelta.jobs.verify.mix import verify_mix
from paramdelta.jobs.verify.verification import Options, Verification
from paramdelta.output.lock import LOCK
from paramdelta.storage.files import Files
from paramdelta.storage.location import is_here, locate, nearest_path
from paramdelta.storage.reader import Reader
from paramdelta.storage.store import LOCAL, scheme_of

# By the file that marks a folder.
KINDS: Mapping[str, Callable[[Files, Options], Verification]] = {
    LOCK: verify_mix,
    DELTA: verify_delta,
    LORA: verify_adapter,
}


def verify_folder(address: str, options: Options) -> Verification:
    """Verify whatever a folder holds; see `api.verify`."""
    if scheme_of(address) == LOCAL and not is_here(address):
        raise UsageError(
            "no such folder",
            code="no-such-folder",
            where=address,
            expected="a folder that paramdelta wrote",
            remedy=nearest_path(address),
        )
    with Reader() as reader:
        try:
            files = Files(locate(address, options.download or scheme_of(address) != LOCAL), reader)
        except UsageError:
            raise _unknown(address) from None
        for mark, verify in KINDS.items():
            if mark in files:
                return verify(files, options)
    raise _unknown(address)


def _unknown(address: str) -> MisfitError:
    return MisfitError(
        "paramdelta did not write this folder",
        code="not-an-output",
        where=address,
        expected="a folder with " + " or ".join(KINDS),
    )
