"""Recipe and checkpoints -> Plan.

Made from headers, config files and tokenizer files alone, plus a few MB of weights for the
questions whether the checkpoints are relatives and whether rows were trained. Nothing is written.
"""

from dataclasses import replace
from typing import Any

from paramdelta.dtypes import DTYPES, FP8_BLOCK, FP8_SIDE
from paramdelta.encodings.encoding import Encoding
from paramdelta.encodings.fp8_blocks import Fp8Blocks, quantization_config
from paramdelta.encodings.plain import Plain
from paramdelta.errors import CheckpointError, UsageError
from paramdelta.formats.delta import other_half
from paramdelta.formats.view import View
from paramdelta.planning import companions, lineage, names
from paramdelta.planning.architecture import compare_architecture
from paramdelta.planning.cancellation import cancelled
from paramdelta.planning.coefficients import coefficient, coefficients
from paramdelta.planning.experts import relaid
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.heads import settle_head
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.planning.settlement import Case, Settlement, picked, settle
from paramdelta.planning.sources import Lineage, Opener, Source, Sources
from paramdelta.planning.tokens import tell_rows
from paramdelta.planning.vocabulary import Vocabulary, has_rows_of_tokens, read_vocabulary
from paramdelta.recipe import Recipe
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.sum import SUM
from paramdelta.storage.reader import Reader

COPIED = "copied from the new base"
NO_DELTA = "no Δ for it"
LOOK = "look whether it is the right checkpoint"


def make_plan(recipe: Recipe, opener: Opener | None = None) -> Plan:
    """Open the checkpoints of a recipe by their headers and decide everything.

    ``opener``: opens the checkpoints. Plans that share one open each checkpoint once.

    Raises:
        UsageError: an address that is no checkpoint, or a choice that cannot be meant.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """
    if opener is not None:
        return _Planner(recipe, opener).plan()
    with Reader() as reader:
        return _Planner(recipe, Opener(reader)).plan()


class _Planner:
    """Collects output tensors and findings; one instance makes one plan."""

    def __init__(self, recipe: Recipe, opener: Opener) -> None:
        self.recipe = recipe
        self.findings = Findings()
        self.sources = Sources(recipe, opener, self.findings)
        self.new, self.lineages = self.sources.new, self.sources.lineages

    def plan(self) -> Plan:
        self.align()
        self.share()
        self.settlement = self.settle()
        self.names, tied = settle_head(self.sources, self.findings, self.recipe.head)
        self.schedule()
        tensors = [self.asked(self.output(name)) for name in self.names]
        quantised = self.quantise(tensors)
        self.leftovers()
        likeness = self.relatives()
        for source in self.sources.others:
            compare_architecture(self.new.checkpoint, source.checkpoint, self.findings)
        embedding = next((name for name in self.names if has_rows_of_tokens(name)), None)
        cases = self.rows_of(embedding) if embedding is not None else ()
        dtypes = {t.dtype for t in tensors if DTYPES[t.dtype].mixable}
        dtype = next(iter(dtypes)) if len(dtypes) == 1 and quantised is None else None
        post = self.lineages[0].post.checkpoint
        chosen = companions.choose(
            self.new.checkpoint,
            post,
            self.settlement,
            companions.Facts(
                dtype,
                tied,
                self.grown(tensors),
                self.dequantised and quantised is None,
                quantised,
            ),
        )
        if quantised is not None:
            self.tell_requantized(tensors)
        # Wider elements first, as the format's own writer does: every tensor stays aligned.
        tensors.sort(key=lambda tensor: -DTYPES[tensor.dtype].size)
        return Plan(
            self.recipe,
            self.new.checkpoint,
            tuple(
                (each.post.checkpoint, each.base.checkpoint if each.base else None)
                for each in self.lineages
            ),
            tuple(tensors),
            chosen,
            self.findings.all(self.recipe.allow),
            likeness,
            cases,
        )

    # -- names -------------------------------------------------------------------------------------

    def align(self) -> None:
        """Bring every source's tensors under the names of the new base."""
        rules = [names.parse_rule(text) for text in self.recipe.maps if text != "auto"]
        used: set[str] = set()
        before = [
            name for source in self.sources.others for name in (*source.views, *source.deltas)
        ]
        for source in self.sources.others:
            source.views, changes = self.aligned(source, source.views, rules)
            source.deltas, more = self.aligned(source, source.deltas, rules)
            used |= changes | more
        for rule in rules:
            if rule.text not in used:
                raise names.unused_rule(rule, before)

    def aligned(
        self, source: Source, own: dict[str, View], rules: list[names.Rule]
    ) -> tuple[dict[str, View], set[str]]:
        """Tensors under the names of the new base, and the rules that were used for it."""
        own, used = names.renamed(own, rules, self.new.views)
        for text, count in used.items():
            self.note("mapped", f"{count} names are read as {text}", source)
        own, change = names.bridged(own, self.new.views)
        if change is not None:
            self.note("prefix", f"tensor names are read as {change}…", source)
        own, moved = relaid(own, self.new.views)
        if moved:
            self.note("experts", "experts are read in the layout of the new base", source)
        proposals = names.propose(own, self.new.views)
        shown = "; ".join(map(str, proposals))
        if proposals and "auto" in self.recipe.maps:
            own = names.applied(proposals, own, self.new.views)
            self.note("mapped", f"by --map auto, names are read as {shown}", source)
        elif proposals:
            self.note(
                "map-proposed",
                f"more names would agree under {shown}",
                source,
                remedy="--map auto takes this, --map 'RULE' a rule of yours",
            )
        return own, set(used)

    def share(self) -> None:
        """Bring sources together that name a shared tensor once and several times (pickles do)."""
        for source in self.sources.others:
            for group in names.repeated(source.views):
                placed = [name for name in group if name in self.new.views]
                for name in group if placed else ():
                    if name not in placed:
                        del source.views[name]
                        self.findings.add(
                            Severity.NOTE,
                            "repeats",
                            "a tensor that has several names is taken by those of the new base",
                            source,
                            tensor=name,
                        )
        for group in names.repeated(self.new.views):
            for source in self.sources.others:
                given = [source.views[name] for name in group if name in source.views]
                for name in group if given else ():
                    source.views.setdefault(name, given[0])

    def note(self, code: str, what: str, source: Source, remedy: str | None = None) -> None:
        self.findings.add(Severity.NOTE, code, what, source, remedy=remedy)

    # -- coefficients ------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Decide which coefficient every tensor gets of each Δ."""
        axes = {name: len(self.new.views[name].shape) for name in self.names}
        weights = [
            name
            for name in self.names
            if self.new.views[name].kind.mixable and not names.is_buffer(self.new.views[name])
        ]
        for number, each in enumerate(self.lineages):
            each.coefficients, idle = coefficients(each.scale, axes, weights)
            density = self.recipe.density(number)
            each.densities, further = coefficients(density, axes, weights)
            for rule in (*idle, *further):
                where = f" ({rule.where})" if rule.where else ""
                self.findings.add(
                    Severity.WARNING,
                    "rule-idle",
                    f"no tensor has its scale from the rule {rule.subject}{where}: the rules "
                    "before it are for all that it is for",
                    each.post,
                    remedy="put it before them, or leave it out",
                )

    def asked(self, tensor: OutputTensor) -> OutputTensor:
        """A tensor with what was asked for it, and without operands that cancel out."""
        found = [each.coefficients.get(tensor.name) for each in self.lineages]
        if tensor.why == NO_DELTA and all(c is not None and c.scale == 0 for c in found):
            tensor = replace(tensor, why=f"scale 0: {found[0]}")
        there = {pair.number for pair in tensor.pairs}
        asked = tuple(
            c if number in there or (c is not None and c.scale == 0) else None
            for number, c in enumerate(found)
        )
        tensor = self.sparsified(replace(tensor, asked=asked))
        return cancelled(tensor) if tensor.linear else tensor

    def sparsified(self, tensor: OutputTensor) -> OutputTensor:
        """The same tensor with what is left of its Δ, as the recipe asks."""
        pairs = tuple(
            replace(
                pair,
                filters=self.recipe.filters(
                    pair.number,
                    tensor.name,
                    self.lineages[pair.number].densities[tensor.name].scale,
                ),
            )
            for pair in tensor.pairs
        )
        numbers = [pair.number for pair in pairs]
        if len(set(numbers)) < len(numbers) and not (
            self.recipe.scheme.linear and not any(p.filters for p in pairs)
        ):
            raise UsageError(
                "an adapter both replaces and adapts a tensor whose Δ is to be sparse",
                where=tensor.name,
                remedy="merge the adapter into its base first",
            )
        return replace(tensor, pairs=pairs, scheme=self.recipe.scheme if pairs else SUM)

    # -- tensors -----------------------------------------------------------------------------------

    def output(self, name: str) -> OutputTensor:
        """Decide one output tensor."""
        new = self.new.views.get(name)
        if new is None:  # a head that only others have stored
            raise AssertionError(name)
        if names.is_buffer(new):
            what = "constants are copied, not mixed"
            self.findings.add(Severity.NOTE, "buffer", what, self.new, tensor=name)
            return OutputTensor(name, Plain(new.dtype), new.shape, new, why="constant buffer")
        if not new.kind.mixable:
            self.unmixable(name, new)
            why = f"{new.dtype}, not a weight"
            return OutputTensor(name, Plain(new.dtype), new.shape, new, why=why)
        target = self.target(new)
        of_tokens = has_rows_of_tokens(name)
        pairs = [
            pair
            for number, each in enumerate(self.lineages)
            for pair in self.pairs(name, each, number)
        ]
        known = self.settlement.mode != "unknown"
        if of_tokens and known and not self.settlement.plain(self.heights(name)):
            return self.by_token(name, target, new, pairs)
        kept = tuple(pair for pair in pairs if self.fits(pair, new))
        return OutputTensor(name, target, new.shape, new, kept, why="" if kept else NO_DELTA)

    def target(self, new: View) -> Encoding:
        """How an output tensor is stored."""
        if self.recipe.dtype == FP8_BLOCK:
            return Fp8Blocks() if new.is_quantized else Plain(new.dtype)
        return Plain(self.recipe.dtype or ("BF16" if new.is_quantized else new.dtype))

    def quantise(self, tensors: list[OutputTensor]) -> dict[str, Any] | None:
        """What config.json will say of the output's quantisation; None if it has none.

        Raises:
            UsageError: it is to have one, and the new base has none.
        """
        if self.recipe.dtype != FP8_BLOCK:
            return None
        if not self.dequantised:
            raise UsageError(
                f"--dtype {FP8_BLOCK}, but the new base has no FP8 weights",
                where=self.new.checkpoint.location.address,
                expected="a new base that says which weights are FP8, by storing them so",
                remedy="leave --dtype out, and quantise the output with a tool made for that "
                "(llm-compressor, say)",
            )
        plain = (t.name for t in tensors if len(t.streams) == 1 and len(t.shape) == 2)
        return quantization_config(self.new.checkpoint.config, plain)

    def tell_requantized(self, tensors: list[OutputTensor]) -> None:
        """Note the tensors whose sums get fresh scales.

        Raises:
            CheckpointError: another tensor has the name of the scales.
        """
        names = {tensor.name for tensor in tensors}
        for tensor in tensors:
            for stream in tensor.streams[1:]:
                if stream.name in names:
                    raise CheckpointError(
                        f"another tensor has the name of the scales of {tensor.name!r}",
                        where=str(self.new),
                        got=stream.name,
                        remedy="leave --dtype out: the output is BF16",
                    )
            if len(tensor.streams) > 1 and tensor.stored is None:
                self.findings.add(
                    Severity.NOTE,
                    "requantised",
                    "the sum is rounded to FP8, with a fresh scale for each block of "
                    f"{FP8_SIDE} × {FP8_SIDE}; without --dtype it is BF16",
                    self.new,
                    tensor=tensor.name,
                )

    def unmixable(self, name: str, new: View) -> None:
        if new.dtype.startswith(("F8", "F6", "F4", "C")) or self.new.checkpoint.config.get(
            "quantization_config"
        ):
            self.findings.add(
                Severity.REFUSED,
                "quantised",
                f"weights are stored as {new.dtype} without scales that are known",
                self.new,
                tensor=name,
                remedy="use an unquantised (BF16, F16 or F32) release of the model",
            )
        else:
            what = "integer and boolean tensors are copied, not mixed"
            self.findings.add(Severity.NOTE, "integer", what, self.new, tensor=name)

    def pairs(self, name: str, each: Lineage, number: int) -> list[Pair]:
        """The operands of one Δ for one tensor; none, with a finding, if it cannot be formed."""
        found: list[Pair] = []
        scale = each.coefficients[name].scale
        if scale == 0:  # then it is not looked at either: what it is does not matter
            return found
        delta = each.post.deltas.get(name)
        if delta is not None:
            found.append(Pair(number, delta, other_half(delta), scale))
        post = each.post.views.get(name)
        base = each.base.views.get(name) if each.base is not None else None
        if post is None and (each.is_adapter or found):
            return found
        if post is None and base is None:
            if number == 0:
                what = f"tensors that neither post nor base has are {COPIED}"
                self.findings.add(Severity.WARNING, "only-in-new-base", what, self.new, tensor=name)
            return found
        if post is None or base is None or each.base is None:
            source = each.post if post is None else each.base or f"the base of {each.post}"
            self.findings.add(
                Severity.REFUSED,
                "missing-in-post" if post is None else "missing-in-base",
                "tensors are missing there, so they have no Δ",
                source,
                tensor=name,
                remedy=LOOK,
                allowed=COPIED,
            )
            return found
        for view, source in ((post, each.post), (base, each.base)):
            if not view.kind.mixable:
                self.findings.add(
                    Severity.REFUSED,
                    "quantised",
                    f"stored as {view.dtype} without scales that are known",
                    source,
                    tensor=name,
                    remedy="use an unquantised (BF16, F16 or F32) release of the model",
                )
                return found
        return [Pair(number, post, base, scale), *found]

    def fits(self, pair: Pair, new: View) -> bool:
        """Whether a pair's shapes are the new base's; if not, with a finding."""
        each = self.lineages[pair.number]
        for view, source in ((pair.post, each.post), (pair.base, each.base or each.post)):
            if view.shape != new.shape:
                self.findings.add(
                    Severity.REFUSED,
                    "shape-differs",
                    f"other shapes than in the new base, the first {list(view.shape)} "
                    f"and not {list(new.shape)}",
                    source,
                    tensor=new.name,
                    remedy=LOOK,
                    allowed=COPIED,
                )
                return False
            plain = view.is_stored and not each.post.is_stored
            if view.dtype != new.dtype and plain:
                stored = {part.dtype for part in view.parts}
                self.findings.add(
                    Severity.NOTE,
                    "dtype-differs",
                    f"stored as {' and '.join(sorted(stored))} where the new base has "
                    f"{' and '.join(sorted({part.dtype for part in new.parts}))}; "
                    "mixed without loss",
                    source,
                    tensor=new.name,
                )
        return True

    def leftovers(self) -> None:
        """Tensors that the output does not get."""
        wanted = set(self.names)
        for each in self.lineages:
            for name, view in (each.post.views | each.post.deltas).items():
                if name in wanted:
                    continue
                if names.is_buffer(view) or not view.kind.mixable:
                    what = "constants left out"
                    self.findings.add(Severity.NOTE, "buffer-left", what, each.post, tensor=name)
                elif (own := coefficient(each.scale, name, len(view.shape))) and own.scale == 0:
                    what = "tensors without a place in the new base, at scale 0, are left out"
                    self.findings.add(Severity.NOTE, "scale-zero", what, each.post, tensor=name)
                else:
                    both = each.base is not None and name in each.base.views
                    self.findings.add(
                        Severity.REFUSED,
                        "missing-in-new-base" if both else "only-in-post",
                        f"tensors of {each.post.checkpoint.role} have no place in the new base",
                        each.post,
                        tensor=name,
                        remedy=LOOK,
                        allowed="left out",
                    )
            ours = each.base.views.keys() if each.base is not None else set()
            for name in sorted(ours - wanted - each.post.views.keys()):
                self.findings.add(
                    Severity.NOTE, "only-in-base", "tensors left out", each.base, tensor=name
                )

    @property
    def dequantised(self) -> bool:
        """Whether the new base's weights are FP8 with scales, which the output does not have."""
        return any(view.is_quantized for view in self.new.views.values())

    # -- rows of tokens ----------------------------------------------------------------------------

    def settle(self) -> Settlement:
        """Read the vocabularies and decide how their rows correspond."""
        mode = self.recipe.vocabulary
        read: dict[bytes, Vocabulary] = {}
        known = [read_vocabulary(self.new.checkpoint, read)]
        for each in self.lineages:
            for source in (each.post, each.base):
                found = read_vocabulary(source.checkpoint, read) if source is not None else None
                known.append(found)
            if each.post.is_stored:  # its rows are post's
                known[-1] = known[-2]
            if each.is_adapter and known[-2] is None and known[-1] is None:
                known[-2:] = [known[0]] * 2  # nothing says that it has tokens of its own
        return settle(known, mode, self.recipe.graft, self.recipe.take, str(self.lineages[0].post))

    def heights(self, name: str) -> list[int]:
        """Rows of a tensor in every source that has it, the new base's first."""
        found = (view for s in self.sources.all for view in (s.views.get(name), s.deltas.get(name)))
        return [view.shape[0] for view in found if view is not None and view.shape]

    def by_token(self, name: str, target: Encoding, new: View, pairs: list[Pair]) -> OutputTensor:
        """An output tensor whose rows correspond by the settlement."""
        rows = new.shape[0]
        height = self.settlement.height(rows)
        shape = (height, *new.shape[1:])
        operand = new
        first = self.lineages[0].post.views.get(name)
        if first is not None and first.shape[1:] == new.shape[1:]:
            outright = self.settlement.outright(height, rows, first.shape[0])
            if outright is not None:
                operand = picked(name, shape, (new, first), outright)
        kept = []
        for pair in pairs:
            each = self.lineages[pair.number]
            if self.settlement.mode == "new-base":
                continue
            if pair.post.shape[1:] != new.shape[1:] or pair.base.shape[1:] != new.shape[1:]:
                self.fits(pair, new)
                continue
            post = self.settlement.rows(each.at, height, rows, pair.post.shape[0])
            base = self.settlement.rows(each.at + 1, height, rows, pair.base.shape[0])
            absent = (post < 0) | (base < 0)
            post[absent] = base[absent] = -1
            kept.append(
                replace(
                    pair,
                    post=picked(name, shape, (pair.post,), post),
                    base=picked(name, shape, (pair.base,), base),
                )
            )
        as_is = self.settlement.mode == "new-base"
        why = "vocabulary of the new base" if as_is else "" if kept else NO_DELTA
        return OutputTensor(name, target, shape, operand, tuple(kept), why=why)

    def rows_of(self, embedding: str) -> tuple[Case, ...]:
        """The rows of tokens by their fate, with findings."""
        heights = self.heights(embedding)
        shown = [*heights, *heights[-1:] * 2][:3]
        return tell_rows(self.settlement, self.sources, embedding, shown, self.findings)

    def grown(self, tensors: list[OutputTensor]) -> int | None:
        """Rows of the output's embedding if they are more than the new base's, else None."""
        heights = [
            tensor.shape[0]
            for tensor in tensors
            if has_rows_of_tokens(tensor.name)
            and tensor.shape[0] != self.new.views[tensor.name].shape[0]
        ]
        return max(heights, default=None)

    # -- whole checkpoints -------------------------------------------------------------------------

    def relatives(self) -> dict[str, lineage.Likeness]:
        """Warn where two checkpoints were never the same model, or are one and the same."""
        whole = [
            self.new,
            *(
                s
                for each in self.lineages
                for s in (each.post, each.base)
                if s is not None and not (each.base is None or (each.is_adapter and s is each.post))
            ),
        ]
        chosen = lineage.sample(self.names, [source.views for source in whole])
        result: dict[str, lineage.Likeness] = {}
        for each in self.lineages:
            others = [self.new] if each.is_adapter else [self.new, each.post]
            for other in others if each.base is not None else ():
                assert each.base is not None
                one = each.base
                like = lineage.likeness(chosen, one.views, other.views, self.sources.fetch)
                if like is None:
                    continue
                result[f"{one.checkpoint.role} ~ {other.checkpoint.role}"] = like
                if like.cosine < lineage.RELATED:
                    self.findings.add(
                        Severity.WARNING,
                        "unrelated",
                        f"cosine {like.cosine:.3f} with {one}: they were never the same "
                        "model, so a Δ means nothing here",
                        other,
                        remedy="look whether all three are the checkpoints that you mean",
                    )
                elif like.distance == 0 and other is each.post:
                    self.findings.add(
                        Severity.WARNING,
                        "no-delta",
                        f"equal to {one} on the sample: the Δ seems to be zero",
                        other,
                    )
        return result
