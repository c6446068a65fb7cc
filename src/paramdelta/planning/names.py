"""Which tensor of one checkpoint corresponds to which of another: by name.

What can stand between equal names: a prefix that one class of a modeling library writes and
another does not ("model.", "bert."); another layout of experts (see `experts`); another place in a
larger model, which the user says with a rule ("model.* -> language_model.model.*") or has proposed;
and an output head that is tied to the input embedding and therefore not stored.
"""

import bisect
import difflib
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.formats.view import Tensor, View

# Output head and the input embedding that it can be tied to, in the names of the common families.
_HEADS = (
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("lm_head.weight", "shared.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("output.weight", "tok_embeddings.weight"),
    ("proj_out.weight", "embed_tokens.weight"),
    ("cls.predictions.decoder.weight", "word_embeddings.weight"),
)
_HEAD_ENDINGS = tuple({f".{head}" for head, _ in _HEADS})
_EMBEDDING_ENDINGS = tuple({f".{embedding}" for _, embedding in _HEADS})
_HEADS_AND_EMBEDDINGS = tuple({name for pair in _HEADS for name in pair})


@dataclass(frozen=True)
class Rule:
    """``pattern -> name``: what each ``*`` on the left stood for is put in on the right."""

    text: str
    source: tuple[str, ...]
    target: tuple[str, ...]

    def apply(self, name: str) -> str | None:
        """The new name; None if the rule does not match this one. Takes linear time."""
        gaps = self._gaps(name)
        if gaps is None:
            return None
        return "".join(text + gap for text, gap in zip(self.target, (*gaps, ""), strict=True))

    def _gaps(self, name: str) -> list[str] | None:
        """What each ``*`` stands for; the first ones stand for as much as they can."""
        first, *middle = self.source
        if not middle:
            return [] if name == first else None
        last = middle.pop()
        stop = len(name) - len(last)
        if stop < len(first) or not name.startswith(first) or not name.endswith(last):
            return None
        gaps = []
        for part in reversed(middle):
            at = name.rfind(part, len(first), stop)
            if at < 0:
                return None
            gaps.append(name[at + len(part) : stop])
            stop = at
        return [name[len(first) : stop], *reversed(gaps)]


def parse_rule(text: str) -> Rule:
    """Read ``model.* -> language_model.model.*``; raises UsageError."""
    source, arrow, target = (part.strip() for part in text.partition("->"))
    if not arrow or not source or not target or source.count("*") != target.count("*"):
        raise UsageError(
            f"the rule {text!r} for names cannot be read",
            code="invalid-map",
            expected="auto, or 'model.* -> language_model.model.*': as many * on both sides",
        )
    return Rule(f"{source} -> {target}", tuple(source.split("*")), tuple(target.split("*")))


def renamed(
    own: Mapping[str, View], rules: Sequence[Rule], wanted: Iterable[str]
) -> tuple[dict[str, View], Counter[str]]:
    """Names by the first rule that speaks of them, and how many names each rule changed.

    A name that the target has already stays, so that a rule can be as short as ``model.* -> …``.

    Raises:
        UsageError: two tensors would get one name.
    """
    used: Counter[str] = Counter()
    if not rules:
        return dict(own), used
    wanted = set(wanted)
    result: dict[str, View] = {}
    for name, view in own.items():
        found = name
        for rule in rules if name not in wanted else ():
            new = rule.apply(name)
            if new is not None:
                used[rule.text] += 1
                found = new
                break
        if found in result:
            raise UsageError(
                f"the rules for names give two tensors the name {found!r}",
                code="map-collides",
                where=f"{result[found].name} and {name}",
                remedy="make the pattern speak of one of them only",
            )
        result[found] = view
    return result, used


def unused_rule(rule: Rule, names: Iterable[str]) -> UsageError:
    """The error for a rule that changed nothing, with near misses."""
    stem = rule.text.partition(" ->")[0]
    near = difflib.get_close_matches(stem, list(itertools.islice(names, 1000)), 3, 0.3)
    return UsageError(
        f"the rule {rule.text!r} changes no name of post or base",
        code="map-changes-nothing",
        expected="a pattern for their names" + (f", such as {', '.join(near)}" if near else ""),
    )


def bridged(
    own: Mapping[str, View], target: Mapping[str, View]
) -> tuple[dict[str, View], str | None]:
    """The tensors under the target's names, and what was done to the names.

    A prefix is added to the names or taken off them if, and only if, that lets more of them agree
    than before. The second value says so (``"+model."``, ``"-model."``), None if nothing was done.
    """
    wanted = target.keys()
    agreeing = len(wanted & own.keys())
    if agreeing == len(own) or not own:
        return dict(own), None
    # By change, how many more names agree; in the order in which they are preferred.
    added = {f"+{prefix}": more for prefix, more in sorted(_added(own, wanted).items())}
    taken = {f"-{prefix}": more for prefix, more in sorted(_taken(own, wanted).items())}
    change, more = max((added | taken).items(), key=lambda item: item[1], default=("", 0))
    if more <= 0:
        return dict(own), None
    prefix = change[1:]
    if change[0] == "+":  # a head that has the same name in both classes stays as it is
        return {n if n in wanted else prefix + n: view for n, view in own.items()}, change
    return {n if n in wanted else n.removeprefix(prefix): v for n, v in own.items()}, change


def _added(own: Mapping[str, View], wanted: Collection[str]) -> Counter[str]:
    """By prefix, how many more names are wanted with it; those that give two tensors one name are
    left out.
    """
    more: Counter[str] = Counter()
    clashing = set()
    for name in wanted:
        prefix, dot, rest = name.partition(".")
        if dot and rest in own and rest not in wanted:
            more[prefix + dot] += 1
            if name in own:
                clashing.add(prefix + dot)
    return Counter({prefix: count for prefix, count in more.items() if prefix not in clashing})


def _taken(own: Mapping[str, View], wanted: Collection[str]) -> Counter[str]:
    """By prefix, how many more names are wanted without it; as `_added`."""
    more: Counter[str] = Counter()
    clashing = set()
    for name in own:
        prefix, dot, rest = name.partition(".")
        if not dot or name in wanted:
            continue
        more[prefix + dot] += rest in wanted
        if rest in own and (rest in wanted or not rest.startswith(prefix + dot)):
            clashing.add(prefix + dot)
    return Counter({prefix: count for prefix, count in more.items() if prefix not in clashing})


DEPTH = 3  # parts of a name that a proposed rule may exchange for others
MOST_RULES = 16  # that are proposed
_COMMON = 32  # names with one ending, above which that ending tells nothing


@dataclass(frozen=True)
class Proposal:
    """A rule under which names without a counterpart would get one.

    ``agree``: tensors that then have one of the same shape; ``clash``: of another shape; ``of``:
    those that the pattern matches. ``pairs``: the tensors and their counterparts, by name.
    """

    rule: Rule
    agree: int
    clash: int
    of: int
    pairs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.rule.text} ({self.agree} of {self.of} agree in name and shape)"


def propose(own: Mapping[str, View], target: Mapping[str, View]) -> tuple[Proposal, ...]:
    """Rules that would let names agree, the strongest first, each on what those before it left.

    Only prefixes are exchanged, of up to `DEPTH` parts. A rule is proposed if most of the tensors
    that it speaks of then meet one of their own shape and none meets another shape.
    """
    left = {name: view for name, view in own.items() if name not in target}
    if not left:
        return ()
    free = {name: view for name, view in target.items() if name not in own}
    if not free:
        return ()
    pairs = _Pairs(left, free)
    found: list[Proposal] = []
    while len(found) < MOST_RULES and (best := pairs.strongest()) is not None:
        paired = []
        for name in list(pairs.left):
            new = best.rule.apply(name)
            if new is not None and new in pairs.free:
                pairs.remove(name, new)
                paired.append((name, new))
        found.append(replace(best, pairs=tuple(paired)))
    return tuple(found)


def applied(
    proposals: Iterable[Proposal], own: Mapping[str, View], target: Mapping[str, View]
) -> dict[str, View]:
    """The tensors with each name changed by the first rule that leads to one of the target's."""
    result: dict[str, View] = {}
    for name, view in own.items():
        news = (proposal.rule.apply(name) for proposal in proposals)
        new = next((n for n in news if n in target and n not in own), name)
        result[name if name in target or new in result else str(new)] = view
    return result


class _Pairs:
    """Pairs of prefixes, and how many names agree where one is exchanged for the other.

    ``left``, ``free``: names that look for a counterpart, and those that are one to nobody yet.
    """

    def __init__(self, left: dict[str, View], free: dict[str, View]) -> None:
        self.left = left
        self.free = free
        self.agree: Counter[tuple[str, str]] = Counter()
        self.clash: Counter[tuple[str, str]] = Counter()
        self.covered = Counter(prefix for name in left for prefix, _ in _cuts(name))
        self._left, self._free = _by_ending(left), _by_ending(free)
        for rest, pairs in (*self._left.items(), *self._free.items()):
            if len(pairs) > _COMMON:
                self._left.pop(rest, None)
                self._free.pop(rest, None)
        for name in left:
            self._count(name, left[name], self._free, 1)

    def strongest(self) -> Proposal | None:
        """The pair of most tensors; then the one of the fewest in vain; then the shortest."""
        best = min(
            (pair for pair, count in self.agree.items() if self._is_enough(pair, count)),
            key=lambda p: (-self.agree[p], self.covered[p[0]], len(p[0]) + len(p[1]), p),
            default=None,
        )
        if best is None:
            return None
        rule = parse_rule(f"{best[0]}* -> {best[1]}*")
        return Proposal(rule, self.agree[best], self.clash[best], self.covered[best[0]])

    def remove(self, name: str, counterpart: str) -> None:
        """Take away a name and the one that it has found."""
        view, other = self.left.pop(name), self.free[counterpart]
        self._count(name, view, self._free, -1)
        self.covered.subtract(prefix for prefix, _ in _cuts(name))
        del self.free[counterpart]
        self._count(counterpart, other, self._left, -1)

    def _is_enough(self, pair: tuple[str, str], count: int) -> bool:
        return count > 0 and not self.clash[pair] and 2 * count > self.covered[pair[0]]

    def _count(
        self, name: str, view: View, others: "dict[str, list[tuple[str, str]]]", by: int
    ) -> None:
        """Count, or no longer count, what a name makes with those that end as it does."""
        known, is_left = (self.free, True) if others is self._free else (self.left, False)
        for prefix, rest in _cuts(name):
            for other, candidate in others.get(rest, ()):
                if candidate in known:
                    pair = (prefix, other) if is_left else (other, prefix)
                    agrees = known[candidate].shape == view.shape
                    (self.agree if agrees else self.clash)[pair] += by


def _by_ending(names: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Names and their prefixes, by what follows the prefix."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        for prefix, rest in _cuts(name):
            found.setdefault(rest, []).append((prefix, name))
    return found


def _cuts(name: str) -> Iterable[tuple[str, str]]:
    parts = name.split(".")
    for depth in range(min(DEPTH, len(parts) - 1) + 1):
        prefix = "".join(part + "." for part in parts[:depth])
        yield prefix, name[len(prefix) :]


def repeated(tensors: Mapping[str, View]) -> list[list[str]]:
    """Names that stand for the same stored bytes, in groups of two or more."""
    places: dict[tuple[int, int], list[str]] = {}
    for name, view in tensors.items():
        if isinstance(view, Tensor) and view.size > 0:
            places.setdefault((view.offset, view.size), []).append(name)
    result = []
    for names in places.values():
        if len(names) > 1:  # the same place, perhaps of different files
            groups: dict[View, list[str]] = {}
            for name in names:
                groups.setdefault(replace(tensors[name], name=""), []).append(name)
            result += [group for group in groups.values() if len(group) > 1]
    return result


def is_meant(name: str, pattern: str) -> bool:
    """Whether a pattern (a name, a module or a glob) is for a tensor."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def heads_of(names: Iterable[str]) -> list[str]:
    """The names that output heads have."""
    return [name for name in names if ("." + name).endswith(_HEAD_ENDINGS)]


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as the input embeddings are that a head can be tied to."""
    return ("." + name).endswith(_EMBEDDING_ENDINGS)


def head_and_embedding(checkpoints: Iterable[Iterable[str]]) -> tuple[str, str] | None:
    """Names of the output head and of the embedding that it can be tied to.

    None where none of the checkpoints stores a head: then there is nothing to decide.
    """
    names = sorted({n for each in checkpoints for n in each if n.endswith(_HEADS_AND_EMBEDDINGS)})
    for head, ending in _HEADS:
        embeddings = [n for n in names if n == ending or n.endswith("." + ending)]
        for found in names:
            if found == head or found.endswith("." + head):
                scope = found.removesuffix(head)
                at = bisect.bisect_left(embeddings, scope)
                if embeddings[at : at + 1] and embeddings[at].startswith(scope):
                    return found, embeddings[at]
    return None


def tie_of(config: Mapping[str, Any]) -> tuple[str | None, bool | None]:
    """What config.json says about a tied output head, and where: the key of the part of a
    multimodal model, None at the top. (None, None) if it says nothing.
    """
    said = config.get("tie_word_embeddings")
    if isinstance(said, bool):
        return None, said
    for part in ("text_config", "llm_config", "decoder"):
        inner = config.get(part)
        if isinstance(inner, Mapping) and isinstance(inner.get("tie_word_embeddings"), bool):
            return part, inner["tie_word_embeddings"]
    return None, None


def is_tied(head: str, tensors: Mapping[str, View], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's output head is its input embedding.

    It is where config.json says so, and where it says nothing and stores no head (Gemma).
    """
    _, said = tie_of(config)
    return said if said is not None else head not in tensors
