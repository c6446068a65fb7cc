"""Sources by the addresses of a lock, which come from a stranger."""

from paramdelta.errors import CheckpointError, MisfitError, UsageError
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.sources import Opener
from paramdelta.recipe import Recipe
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from paramdelta.text import shown


class LocalOpener(Opener):
    """Opens checkpoints; nothing is downloaded unless that was asked for."""

    def __init__(self, reader: Reader, download: bool) -> None:
        super().__init__(reader)
        self.download = download

    def files(self, address: str) -> Files:
        """The files at an address; raises MisfitError if they are not here."""
        if address not in self._files:
            try:
                location = locate(address, self.download)
            except UsageError as error:
                raise MisfitError(
                    "a source of the output is not here",
                    code="source-missing",
                    where=shown(address),
                    expected=error.expected,
                    remedy="put it back where it was",
                ) from None
            self._files[address] = Files(location, self.reader)
        return self._files[address]


def planned(recipe: Recipe, download: bool) -> Plan:
    """The plan of a recorded recipe; raises as `make_plan`, MisfitError, and no UsageError."""
    with Reader() as reader:
        try:
            return make_plan(recipe, LocalOpener(reader, download))
        except UsageError as error:
            raise CheckpointError(
                "the recorded recipe cannot be planned",
                code="plan-changed",
                where=error.where,
                expected=error.expected,
                got=error.what,
            ) from None
