"""Which tensor of one checkpoint corresponds to which of another: by name.

What can stand between equal names: a prefix that one class of a modelling library writes and
another does not ("model.", "bert."); another layout of experts (see `experts`); another place in a
larger model, which the user says with a rule ("model.* -> language_model.model.*") or has proposed;
and an output head that is tied to the input embedding and therefore not stored.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.formats.view import Tensor, View

# Constants that some libraries store beside the weights. They are copied, never scaled.
_BUFFER = re.compile(
    r"(^|\.)("
    r"position_ids|token_type_ids|inv_freq|original_inv_freq|"
    r"rotary_emb\..*|rotary_pos_emb\..*|cos_cached|sin_cached|"
    r"attn\.bias|attention\.bias|attn\.masked_bias|masked_bias|causal_mask|attn_mask|tril|mask|"
    r"num_batches_tracked|relative_position_index"
    r")$"
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")

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


def is_buffer(tensor: View) -> bool:
    """Whether the name is that of a constant and not of a weight.

    ``attn.bias`` is GPT-2's causal mask where it is square over its last two axes, and the bias of
    a projection elsewhere.
    """
    if _BUFFER.search(tensor.name) is None:
        return False
    if _MASK.search(tensor.name):
        return len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
    return True


@dataclass(frozen=True)
class Rule:
    """``pattern -> name``: what each ``*`` on the left stood for is put in on the right."""

    text: str
    pattern: re.Pattern[str]
    target: tuple[str, ...]

    def apply(self, name: str) -> str | None:
        """The new name; None if the rule does not speak of this one."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        gaps = (*match.groups(), "")
        return "".join(text + gap for text, gap in zip(self.target, gaps, strict=True))


def parse_rule(text: str) -> Rule:
    """Read ``model.* -> language_model.model.*``; raises UsageError."""
    source, arrow, target = (part.strip() for part in text.partition("->"))
    if not arrow or not source or not target or source.count("*") != target.count("*"):
        raise UsageError(
            f"--map {text!r} cannot be read",
            expected="auto, or 'model.* -> language_model.model.*': as many * on both sides",
        )
    pattern = "(.*)".join(re.escape(part) for part in source.split("*"))
    return Rule(f"{source} -> {target}", re.compile(pattern), tuple(target.split("*")))


def renamed(
    own: Mapping[str, View], rules: Iterable[Rule], wanted: Iterable[str]
) -> tuple[dict[str, View], Counter[str]]:
    """Names by the first rule that speaks of them, and how many names each rule changed.

    A name that the target has already stays, so that a rule can be as short as ``model.* -> …``.

    Raises:
        UsageError: two tensors would get one name.
    """
    wanted = set(wanted)
    result: dict[str, View] = {}
    used: Counter[str] = Counter()
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
                f"--map gives two tensors the name {found!r}",
                where=f"{result[found].name} and {name}",
                remedy="make the pattern speak of one of them only",
            )
        result[found] = view
    return result, used


def unused_rule(rule: Rule, names: Iterable[str]) -> UsageError:
    """The error for a rule that changed nothing, with near misses."""
    stem = rule.text.partition(" ->")[0]
    near = difflib.get_close_matches(stem, list(names), 3, 0.3)
    return UsageError(
        f"--map {rule.text!r} changes no name of post or base",
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
    best, change = dict(own), None
    agreeing = len(wanted & own.keys())
    if agreeing == len(own) or not own:
        return best, None
    for prefix in sorted(_prefixes(wanted)):
        # A head that has the same name in both classes stays as it is.
        longer = {n if n in wanted else prefix + n: view for n, view in own.items()}
        if len(longer) == len(own) and len(wanted & longer.keys()) > agreeing:
            best, change, agreeing = longer, f"+{prefix}", len(wanted & longer.keys())
    for prefix in sorted(_prefixes(own)):
        shorter = {n if n in wanted else n.removeprefix(prefix): v for n, v in own.items()}
        if len(shorter) == len(own) and len(wanted & shorter.keys()) > agreeing:
            best, change, agreeing = shorter, f"-{prefix}", len(wanted & shorter.keys())
    return best, change


def _prefixes(names: Iterable[str]) -> set[str]:
    return {name.split(".", 1)[0] + "." for name in names if "." in name}


DEPTH = 3  # parts of a name that a proposed rule may exchange for others


@dataclass(frozen=True)
class Proposal:
    """A rule under which names without a counterpart would get one.

    ``agree``: tensors that then have one of the same shape; ``clash``: of another shape; ``of``:
    those that the pattern speaks of.
    """

    rule: Rule
    agree: int
    clash: int
    of: int

    def __str__(self) -> str:
        return f"{self.rule.text} ({self.agree} of {self.of} agree in name and shape)"


def propose(own: Mapping[str, View], target: Mapping[str, View]) -> tuple[Proposal, ...]:
    """Rules that would let names agree, the strongest first, each on what those before it left.

    Only prefixes are exchanged, of up to `DEPTH` parts. A rule is proposed if most of the tensors
    that it speaks of then meet one of their own shape and none meets another shape.
    """
    left = {name: view for name, view in own.items() if name not in target}
    free = {name: view for name, view in target.items() if name not in own}
    found: list[Proposal] = []
    while left and free:
        best = _strongest(left, free)
        if best is None:
            break
        found.append(best)
        done = {name: new for name in left if (new := best.rule.apply(name)) in free}
        left = {name: view for name, view in left.items() if name not in done}
        free = {name: view for name, view in free.items() if name not in set(done.values())}
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


def _strongest(left: Mapping[str, View], free: Mapping[str, View]) -> Proposal | None:
    by_rest: dict[str, list[tuple[str, View]]] = {}
    for name, view in free.items():
        for prefix, rest in _cuts(name):
            by_rest.setdefault(rest, []).append((prefix, view))
    agree: Counter[tuple[str, str]] = Counter()
    clash: Counter[tuple[str, str]] = Counter()
    covered: Counter[str] = Counter()
    for name, view in left.items():
        for prefix, rest in _cuts(name):
            covered[prefix] += 1
            for other, candidate in by_rest.get(rest, ()):
                (agree if candidate.shape == view.shape else clash)[prefix, other] += 1
    # The most tensors; then the fewest that it speaks of in vain; then what says it with less.
    order = sorted(
        agree, key=lambda pair: (-agree[pair], covered[pair[0]], len(pair[0]) + len(pair[1]), pair)
    )
    for pair in order:
        prefix, other = pair
        if not clash[pair] and 2 * agree[pair] > covered[prefix]:
            rule = parse_rule(f"{prefix}* -> {other}*")
            return Proposal(rule, agree[pair], clash[pair], covered[prefix])
    return None


def _cuts(name: str) -> Iterable[tuple[str, str]]:
    parts = name.split(".")
    for depth in range(min(DEPTH, len(parts) - 1) + 1):
        prefix = "".join(part + "." for part in parts[:depth])
        yield prefix, name[len(prefix) :]


def repeated(tensors: Mapping[str, View]) -> list[list[str]]:
    """Names that stand for the same stored bytes, in groups of two or more."""
    groups: dict[Tensor, list[str]] = {}
    for name, view in tensors.items():
        if isinstance(view, Tensor) and view.elements > 0:
            groups.setdefault(replace(view, name=""), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def head_and_embedding(checkpoints: Iterable[Mapping[str, View]]) -> tuple[str, str] | None:
    """Names of the output head and of the embedding that it can be tied to.

    None where none of the checkpoints stores a head: then there is nothing to decide.
    """
    names = set().union(*checkpoints)
    for head, ending in _HEADS:
        for found in sorted(names):
            if found != head and not found.endswith("." + head):
                continue
            scope = found.removesuffix(head)
            for name in sorted(names):
                if name.startswith(scope) and (name == ending or name.endswith("." + ending)):
                    return found, name
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
