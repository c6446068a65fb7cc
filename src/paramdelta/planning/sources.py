"""The checkpoints of a recipe, opened, and their tensors as operands."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from paramdelta.errors import ParamDeltaError, UsageError
from paramdelta.formats import adapter as adapters
from paramdelta.formats.adapter import Adapter, has_model, is_adapter, open_adapter
from paramdelta.formats.blockscaled import scaled_weights
from paramdelta.formats.checkpoint import Checkpoint, open_checkpoint
from paramdelta.formats.codes import read_codes
from paramdelta.formats.delta import open_delta
from paramdelta.formats.view import Fetch, View, fetch_from
from paramdelta.planning import names
from paramdelta.planning.findings import Findings, Severity
from paramdelta.recipe import Delta, Recipe
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader

# A low-rank factor, as PEFT, kohya's scripts, diffusers and MLX-LM call it.
_FACTOR = re.compile(
    r"(^|\.)lora_(A|B|a|b|up|down|embedding_A|embedding_B)(\.|$)|\.lora\.(up|down)\.weight$"
)


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint and its tensors as operands. Two sources are equal only if they are one object.

    ``views``: whole tensors by name. ``deltas``: tensors that are a Δ by themselves, by name.
    ``is_stored``: the checkpoint is a stored Δ, which covers all of post and needs no base.
    ``codes``: the format of quantized weights that are not read, by the names of their tensors.
    """

    checkpoint: Checkpoint
    views: Mapping[str, View]
    deltas: Mapping[str, View] = field(default_factory=dict)
    is_stored: bool = False
    codes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.checkpoint)

    @property
    def known(self) -> dict[str, View]:
        """The tensors that show the shape of the whole model. An adapter's Δs do not."""
        return {**self.views, **self.deltas} if self.is_stored else dict(self.views)


@dataclass(frozen=True)
class Lineage:
    """Post and base of one Δ.

    ``number``: of the Δ in the recipe, from 0. ``base``: None where post needs none. ``adapter``:
    what post is if it is a LoRA adapter, which holds only what it changes.
    """

    number: int
    post: Source
    base: Source | None
    adapter: Adapter | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether post is a LoRA adapter."""
        return self.adapter is not None

    @property
    def at(self) -> int:
        """The index of post among the vocabularies of all sources; base's is the next."""
        return 2 * self.number + 1


@dataclass(frozen=True)
class Sources:
    """The new base, and post and base of every Δ. ``fetch`` reads their tensors."""

    new: Source
    lineages: tuple[Lineage, ...]
    fetch: Fetch

    @property
    def others(self) -> list[Source]:
        """All sources but the new base: post and base of every Δ."""
        both = (source for each in self.lineages for source in (each.post, each.base))
        return [source for source in both if source is not None]

    @property
    def all(self) -> list[Source]:
        """All sources, the new base first."""
        return [self.new, *self.others]

    def replaced(self, sources: Sequence[Source]) -> "Sources":
        """The same lineages of other sources, which are given in the order of `all`."""
        changed = dict(zip(self.all, sources, strict=True))
        lineages = (
            replace(
                each,
                post=changed[each.post],
                base=changed[each.base] if each.base is not None else None,
            )
            for each in self.lineages
        )
        return replace(self, new=changed[self.new], lineages=tuple(lineages))


class Opener:
    """Opens checkpoints through one reader, each address once.

    ``keep``: checkpoints on the Hub are downloaded into its cache, and are read there.
    """

    def __init__(self, reader: Reader, keep: bool = False) -> None:
        self.reader = reader
        self.keep = keep
        self._files: dict[str, Files] = {}
        self._checkpoints: dict[str, Checkpoint] = {}

    def files(self, address: str) -> Files:
        """The files at an address; raises UsageError, StorageError."""
        if address not in self._files:
            self._files[address] = Files(locate(address, keep=self.keep), self.reader)
        return self._files[address]

    def checkpoint(self, address: str, role: str) -> Checkpoint:
        """The checkpoint at an address, under a role; raises as `open_checkpoint`."""
        if address not in self._checkpoints:
            self._checkpoints[address] = open_checkpoint(self.files(address), role)
        return replace(self._checkpoints[address], role=role)


def open_sources(recipe: Recipe, opener: Opener, findings: Findings) -> Sources:
    """Open every checkpoint of a recipe by its headers.

    Raises:
        UsageError: an address that is not a checkpoint, or a base that is missing.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """
    new = _model(str(recipe.new_base), "new base", opener, findings)
    _check_new_base(new.checkpoint)
    lineages: list[Lineage] = []
    for number, delta in enumerate(recipe.deltas):
        tag = f" {number + 1}" if len(recipe.deltas) > 1 else ""
        if delta.delta is not None:
            if number == 0:
                _check_rows(recipe, delta)
            post = _stored_delta(opener.files(delta.address), f"post{tag}", findings)
            lineages.append(Lineage(number, post, None))
        elif is_adapter(opener.files(delta.address)):
            taken = recipe.take_tensors
            lineages.append(_adapter(delta, number, tag, new, taken, opener, findings))
        else:
            lineages.append(_two_models(delta, number, tag, opener, findings))
    return Sources(new, tuple(lineages), fetch_from(opener.reader))


def _check_new_base(checkpoint: Checkpoint) -> None:
    """Raise UsageError if the new base is GGUF."""
    if checkpoint.is_bare:
        raise UsageError(
            "a GGUF file cannot be the new base, only post or base: it has neither the config.json "
            "nor the tokenizer files that the output gets, nor full precision",
            code="gguf-new-base",
            where=str(checkpoint),
            expected="a checkpoint folder",
            remedy="use the model's safetensors release, or convert the file with transformers: "
            "from_pretrained(FOLDER, gguf_file=FILE), then save_pretrained",
        )


def _two_models(delta: Delta, number: int, tag: str, opener: Opener, findings: Findings) -> Lineage:
    """A Δ that is the difference of two checkpoints."""
    post = _model(delta.address, f"post{tag}", opener, findings)
    if delta.base is None:
        raise UsageError(
            "a Δ needs the base that post was trained from",
            code="missing-base",
            where=delta.address,
            expected="`base` (only a LoRA adapter is a Δ by itself)",
        )
    return Lineage(number, post, _model(str(delta.base), f"base{tag}", opener, findings))


def _adapter(
    delta: Delta,
    number: int,
    tag: str,
    new: Source,
    taken: Sequence[str],
    opener: Opener,
    findings: Findings,
) -> Lineage:
    """A Δ that is a LoRA adapter. It needs a base only for what it replaces or scales.

    ``taken``: patterns for whole tensors that the output takes as they are.
    """
    adapter = open_adapter(opener.files(delta.address), f"post{tag}")
    wanted = [
        name
        for name in adapter.needs_base
        if name in adapter.rows or not any(names.is_meant(name, pattern) for pattern in taken)
    ]
    base = None
    if delta.base is not None:
        base = _model(str(delta.base), f"base{tag}", opener, findings)
    elif wanted:
        base = _named_base(adapter, wanted, f"base{tag}", opener, findings)
    if base is None:
        bridged, _ = names.bridged(adapter.deltas, new.views)
        old = {name: view.name for name, view in bridged.items()}
        known = {old.get(name, name): view for name, view in new.views.items()}
        views, deltas = adapter.applied({**new.views, **known})
    else:
        if adapter.needs_base:
            adapter = _under_names_of(adapter, base)
        views, deltas = adapter.applied(_with_tied_head(base, adapter.needs_base))
    return Lineage(number, Source(adapter.checkpoint, views, deltas), base, adapter)


def _under_names_of(adapter: Adapter, base: Source) -> Adapter:
    """The adapter with its tensors named as in its base."""
    own = dict.fromkeys(adapter.names, next(iter(base.views.values())))
    bridged, _ = names.bridged(own, base.views)
    return adapter.renamed(dict(zip(own, bridged, strict=True)))


def _with_tied_head(base: Source, wanted: Sequence[str]) -> Mapping[str, View]:
    """The tensors of a base, its tied head as well if an adapter changes that."""
    views = dict(base.views)
    for name in wanted:
        if name not in views and names.is_tied(name, views, base.checkpoint.config):
            pair = names.head_and_embedding([{name, *views}])
            if pair is not None and pair[0] == name:
                views[name] = views[pair[1]]
    return views


def _named_base(
    adapter: Adapter, wanted: Sequence[str], role: str, opener: Opener, findings: Findings
) -> Source:
    """The base that an adapter names, for the Δ of some tensors.

    Raises:
        UsageError: it names none, or it cannot be opened.
    """
    where = f"{adapter.checkpoint}: {', '.join(sorted(wanted)[:3])}"
    expected = "`base`, the model that it was trained on"
    if adapter.base is None:
        raise UsageError(
            "the adapter holds whole tensors or rows and does not name its base",
            code="missing-base",
            where=where,
            expected=expected,
        )
    try:
        base = _model(adapter.base, role, opener, findings)
    except ParamDeltaError as error:
        raise UsageError(
            "the adapter holds whole tensors or rows, and the base that it names cannot be opened",
            code="missing-base",
            where=where,
            expected=expected,
            got=f"base_model_name_or_path {adapter.base!r}: {error.what}",
        ) from None
    what = f"base is what adapter_config.json names: {adapter.base}"
    findings.add(Severity.NOTE, "base-of-adapter", what, adapter.checkpoint)
    return base


def _stored_delta(files: Files, role: str, findings: Findings) -> Source:
    """A Δ that `paramdelta.extract` stored. The tensors that have no Δ are post's own."""
    found = open_delta(files, role)
    post = Source(found.checkpoint, found.whole, found.deltas, is_stored=True)
    findings.add(Severity.NOTE, "stored-delta", f"a stored Δ: {found.origin}", post)
    return post


def _check_rows(recipe: Recipe, delta: Delta) -> None:
    """Raise UsageError if rows of the first post are wanted, which a stored Δ does not hold."""
    if recipe.graft or recipe.take:
        raise UsageError(
            "a stored Δ does not hold post's rows, which `graft` and `take` need",
            code="delta-without-rows",
            where=delta.address,
            expected="`post` and `base`",
        )


def _model(address: str, role: str, opener: Opener, findings: Findings) -> Source:
    """A whole model; raises UsageError if it is an adapter, and as `Opener.checkpoint`."""
    files = opener.files(address)
    if is_adapter(files):
        raise UsageError(
            "this is an adapter and not a whole model",
            code="adapter-as-model",
            where=f"{role}: {address}",
            expected="the weights of a whole model",
            remedy="pass it as `post`, or merge it into its base first: merge_and_unload of PEFT",
        )
    checkpoint = opener.checkpoint(address, role)
    stray = [name for name in checkpoint.tensors if _FACTOR.search(name)]
    if stray:
        raise UsageError(
            "these are tensors of a LoRA adapter and not of a whole model",
            code="adapter-as-model",
            where=f"{role}: {address}",
            got=f"{stray[0]} and {len(stray) - 1} more",
            remedy="of PEFT, pass the folder with adapter_config.json as `post`; merge any other "
            "with the library that it was trained with",
        )
    if adapters.CONFIG in files and has_model(files):
        findings.add(
            Severity.WARNING,
            "adapter-beside-weights",
            "the folder holds an adapter beside the weights of a whole model; the weights are "
            "used, and the adapter is not (transformers would load the adapter and its base)",
            checkpoint,
            remedy="if the adapter is meant, pass a folder that holds only the adapter",
        )
    return _whole(checkpoint, findings)


def _whole(checkpoint: Checkpoint, findings: Findings) -> Source:
    """A model's tensors as operands, FP8 weights together with their scales."""
    views, left = scaled_weights(checkpoint.tensors, checkpoint.config, checkpoint.location.address)
    for name in left:
        findings.add(
            Severity.NOTE,
            "scale-left",
            "scales of activations are left out with the quantization",
            checkpoint,
            tensor=name,
        )
    if checkpoint.ignored:
        first, rest = checkpoint.ignored[:4], len(checkpoint.ignored) - 4
        what = "not tensors, so left out: " + ", ".join(first)
        findings.add(
            Severity.NOTE, "ignored", what + (f" and {rest} more" if rest > 0 else ""), checkpoint
        )
    if checkpoint.gathered:
        findings.add(
            Severity.NOTE,
            "files-without-index",
            "no index names these weight files; all of them are read: "
            + ", ".join(checkpoint.gathered[:6])
            + (" …" if len(checkpoint.gathered) > 6 else ""),
            checkpoint,
            remedy="name one file instead of the folder, if they are not parts of one model",
        )
    codes = {part: each.format for each in read_codes(views) for part in each.parts}
    return Source(checkpoint, views, codes=codes)
