"""The checkpoints of a recipe, opened, and their tensors as operands."""

from dataclasses import dataclass, field, replace

from paramdelta.errors import UsageError
from paramdelta.formats.adapter import is_adapter, open_adapter
from paramdelta.formats.blockscaled import scaled_weights
from paramdelta.formats.checkpoint import Checkpoint, open_checkpoint
from paramdelta.formats.delta import open_delta
from paramdelta.formats.view import View, fetch_from
from paramdelta.planning import names
from paramdelta.planning.coefficients import Coefficient
from paramdelta.planning.findings import Findings, Severity
from paramdelta.recipe import Delta, Recipe
from paramdelta.schedule import Schedule
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader


@dataclass
class Source:
    """A checkpoint and its tensors as operands, under the names of the new base.

    ``is_stored``: it is a stored Δ, which speaks of all of post and needs no base.
    """

    checkpoint: Checkpoint
    views: dict[str, View] = field(default_factory=dict)
    deltas: dict[str, View] = field(default_factory=dict)  # each a Δ by itself
    is_stored: bool = False

    def __str__(self) -> str:
        return str(self.checkpoint)

    @property
    def known(self) -> dict[str, View]:
        """What it says of whole tensors; an adapter's Δ say nothing of them."""
        return self.views | self.deltas if self.is_stored else self.views


@dataclass
class Lineage:
    """Post and base of one Δ; ``at``: post's number among all vocabularies, base's is the next.

    ``is_adapter``: post speaks only of what it changes, and base may be unknown.
    """

    post: Source
    base: Source | None
    scale: float | Schedule
    at: int
    is_adapter: bool = False
    coefficients: dict[str, Coefficient] = field(default_factory=dict)  # by the output's names
    densities: dict[str, Coefficient] = field(default_factory=dict)


class Opener:
    """Opens checkpoints through one reader, each address once."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._files: dict[str, Files] = {}
        self._checkpoints: dict[str, Checkpoint] = {}

    def files(self, address: str) -> Files:
        """The files at an address; raises UsageError, StorageError."""
        if address not in self._files:
            self._files[address] = Files(locate(address), self.reader)
        return self._files[address]

    def checkpoint(self, address: str, role: str) -> Checkpoint:
        """The checkpoint at an address, under a role; raises as `open_checkpoint`."""
        if address not in self._checkpoints:
            self._checkpoints[address] = open_checkpoint(self.files(address), role)
        return replace(self._checkpoints[address], role=role)


class Sources:
    """The new base, and post and base of every Δ. ``fetch`` reads their tensors.

    Raises:
        UsageError: an address that is no checkpoint, or a base that is missing.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """

    def __init__(self, recipe: Recipe, opener: Opener, findings: Findings) -> None:
        self.recipe = recipe
        self.findings = findings
        self.opener = opener
        self.fetch = fetch_from(opener.reader)
        self.new = self.source(opener.checkpoint(recipe.new_base, "new base"))
        several = len(recipe.deltas) > 1
        self.lineages = [
            self.lineage_of(delta, f" {number}" if several else "", 2 * number - 1)
            for number, delta in enumerate(recipe.deltas, 1)
        ]

    def lineage_of(self, delta: Delta, tag: str, at: int) -> Lineage:
        """Open post and base of one Δ."""
        files = self.opener.files(delta.address)
        if delta.delta is not None:
            return self.stored(delta, files, tag, at)
        if is_adapter(files):
            adapter = open_adapter(files, f"post{tag}")
            address = delta.base or (adapter.base if adapter.replaced else None)
            if adapter.replaced and address is None:
                raise UsageError(
                    "the adapter holds whole tensors and does not name its base",
                    where=f"{delta.post}: {', '.join(sorted(adapter.replaced)[:3])}",
                    expected="--base, the model that it was trained on",
                )
            base = self.source(self.opener.checkpoint(address, f"base{tag}")) if address else None
            shapes = {n: v.shape for n, v in (base or self.new).views.items()}
            if base is None:
                bridged, _ = names.bridged(adapter.deltas, self.new.views)
                shapes |= {v.name: shapes[n] for n, v in bridged.items() if n in shapes}
            post = Source(
                adapter.checkpoint, dict(adapter.replaced), dict(adapter.oriented(shapes))
            )
            return Lineage(post, base, delta.scale, at, is_adapter=True)
        if delta.base is None:
            raise UsageError(
                "a Δ needs the base that post was trained from",
                where=delta.post,
                expected="--base (only a LoRA adapter is a Δ by itself)",
            )
        post = self.source(self.opener.checkpoint(delta.post, f"post{tag}"))
        base = self.source(self.opener.checkpoint(delta.base, f"base{tag}"))
        return Lineage(post, base, delta.scale, at)

    def stored(self, delta: Delta, files: Files, tag: str, at: int) -> Lineage:
        """Open one stored Δ; the tensors that have none stand as post's."""
        found = open_delta(files, f"post{tag}")
        if at == 1 and (self.recipe.graft or self.recipe.take):
            raise UsageError(
                "a stored Δ does not hold post's rows, which --graft and --take want",
                where=delta.address,
                expected="--post and --base",
            )
        post = Source(found.checkpoint, dict(found.whole), dict(found.deltas), is_stored=True)
        what = f"a stored Δ: {found.origin}"
        self.findings.add(Severity.NOTE, "stored-delta", what, post)
        return Lineage(post, None, delta.scale, at)

    @property
    def others(self) -> list[Source]:
        """All sources but the new base: post and base of every Δ."""
        both = (source for each in self.lineages for source in (each.post, each.base))
        return [source for source in both if source is not None]

    @property
    def all(self) -> list[Source]:
        """All of them, the new base first."""
        return [self.new, *self.others]

    def source(self, checkpoint: Checkpoint) -> Source:
        """A checkpoint's tensors as operands: FP8 weights together with their scales."""
        views, left = scaled_weights(
            checkpoint.tensors, checkpoint.config, checkpoint.location.address
        )
        for name in left:
            self.findings.add(
                Severity.NOTE,
                "scale-left",
                "scales of activations are left out with the quantisation",
                checkpoint,
                tensor=name,
            )
        if checkpoint.ignored:
            first, rest = checkpoint.ignored[:4], len(checkpoint.ignored) - 4
            what = "left aside, for it is no tensor: " + ", ".join(first)
            self.findings.add(
                Severity.NOTE,
                "ignored",
                what + (f" and {rest} more" if rest > 0 else ""),
                checkpoint,
            )
        return Source(checkpoint, views)
