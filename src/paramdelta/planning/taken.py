"""Tensors that the output takes from post outright: a classifier or a reward head.

What such a head needs is taken with it: the architecture and the labels in config.json. The head of
the new base, which that architecture does not have, is left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.formats.view import View
from paramdelta.planning import names
from paramdelta.planning.coefficients import near
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.settlement import Settlement
from paramdelta.planning.sources import Lineage, Source, Sources
from paramdelta.planning.tokenaxes import token_axes

# PEFT's task types whose models have a head of their own, and what their classes are called.
_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
_CLASS = re.compile(
    r"(?P<family>\w+?)(For\w+|LMHeadModel|LMHead|Model)"  # LlamaForCausalLM, GPT2LMHeadModel
)
# Modules that predict tokens, by the start of their names.
_LANGUAGE_HEAD = re.compile(
    r"(\w+\.)?(lm_head|embed_out|proj_out|generator_lm_head|generator_predictions|predictions|"
    r"vocab_transform|vocab_layer_norm|vocab_projector|final_logits_bias|cls\.(predictions|"
    r"seq_relationship))(\.|$)"
)
# Keys of config.json that describe a task's head.
_OF_HEAD = re.compile(
    r"architectures|id2label|label2id|num_labels|problem_type|finetuning_task|"
    r"(\w+_)?(classifier|classif|pooler|summary|score|qa)(_\w+)?"
)


@dataclass(frozen=True)
class Taken:
    """What the output takes from posts.

    ``views``: by name, in the order of the posts. ``config``: keys of config.json that describe the
    head, None for those that are removed.
    """

    views: Mapping[str, View] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def named_as_post(sources: Sources, patterns: Sequence[str], findings: Findings) -> Sources:
    """The sources with the new base's tensors named as those of the model that has the head.

    A bare model stores its names without the prefix that they have inside of a model with a head.
    """
    new, post = sources.new, sources.lineages[0].post
    if not patterns:
        return sources
    views, change = names.bridged(new.views, {**post.views, **post.deltas})
    if change is None or not change.startswith("+"):
        return sources
    what = f"tensors are named as in post: {change[1:]}…"
    findings.add(Severity.NOTE, "renamed", what, new)
    return sources.replaced([replace(new, views=views), *sources.others])


def take_tensors(
    sources: Sources, patterns: Sequence[str], findings: Findings
) -> tuple[Sources, Taken]:
    """Take the tensors of post that match a pattern; of several posts, from the first that has it.

    ``patterns``: globs, names or modules. Returns the sources without these tensors, and without
    the head of the new base if the output's architecture has none.

    Raises:
        UsageError: a pattern matches no tensor of a post.
    """
    if not patterns:
        return sources, Taken()
    views: dict[str, View] = {}
    givers: dict[Source, list[str]] = {}
    for each in sources.lineages:
        for name, view in each.post.views.items():
            if (
                name not in views
                and view.is_stored
                and any(names.is_meant(name, p) for p in patterns)
            ):
                views[name] = view
                givers.setdefault(each.post, []).append(name)
    for pattern in patterns:
        if not any(names.is_meant(name, pattern) for name in views):
            known = [name for each in sources.lineages for name in each.post.views]
            raise UsageError(
                f"no tensor of post matches {pattern!r}",
                code="take-tensor-matches-nothing",
                where=", ".join(str(each.post) for each in sources.lineages),
                expected="a name, a module or a glob for names of post",
                remedy=near(pattern, known),
            )
    for post, own in givers.items():
        for name in own:
            what = "tensors are taken from there as they are"
            findings.add(Severity.NOTE, "taken", what, post, tensor=name)
    giver = next(each for each in sources.lineages if each.post in givers)
    config = _config(sources, giver, givers[giver.post], views, findings)
    idle = set(views)
    if "architectures" in config:
        idle |= _left_heads(sources, giver, views, findings)
    return sources.replaced([_without(source, idle) for source in sources.all]), Taken(
        views, config
    )


def check_rows(taken: Taken, sources: Sources, settlement: Settlement, findings: Findings) -> None:
    """Refuse tensors with a row for each token of post, if the output has other tokens."""
    if not taken.views or settlement.same:
        return
    shapes = {name: view.shape for name, view in {**sources.new.views, **taken.views}.items()}
    size = settlement.new.size if settlement.new is not None else None
    for name in token_axes(shapes, sources.new.checkpoint.config, size):
        if name in taken.views:
            findings.add(
                Severity.REFUSED,
                "taken-rows",
                "tensors that are taken have a row for each token of post, and the output has "
                "other tokens",
                sources.lineages[0].post,
                tensor=name,
                allowed="taken as they are",
            )


def _without(source: Source, left: set[str]) -> Source:
    """A source without some tensors."""
    views, deltas = (
        {name: view for name, view in tensors.items() if name not in left}
        for tensors in (source.views, source.deltas)
    )
    return replace(source, views=views, deltas=deltas)


def _left_heads(
    sources: Sources, giver: Lineage, taken: Mapping[str, View], findings: Findings
) -> set[str]:
    """The heads of all sources that the architecture of the taken head does not have.

    Those are the modules that predict tokens, and the new base's modules that post has none of. An
    adapter does not tell the latter.
    """
    own = {**giver.post.views, **giver.post.deltas}
    modules = {name.partition(".")[0] for name in {**own, **taken}}
    new = sources.new.views
    left = {
        name
        for source in sources.all
        for name in {**source.views, **source.deltas}
        if name not in own and _LANGUAGE_HEAD.match(name)
    }
    if not giver.is_adapter:
        left |= {n for n in new if n not in own and n.partition(".")[0] not in modules}
    for name in sorted(left & new.keys()):
        what = "the head of the new base is left out: the taken head is another architecture's"
        findings.add(Severity.NOTE, "head-left", what, sources.new, tensor=name)
    return left


def _config(
    sources: Sources,
    giver: Lineage,
    own: Sequence[str],
    views: Mapping[str, View],
    findings: Findings,
) -> dict[str, Any]:
    """What config.json says of the head. ``own``: the tensors that this post gives."""
    ours, theirs = sources.new.checkpoint.config, giver.post.checkpoint.config
    said = sorted(key for key in {**ours, **theirs} if _OF_HEAD.fullmatch(key))
    if theirs.get("architectures"):
        config = {key: theirs.get(key) for key in said if theirs.get(key) != ours.get(key)}
        _check_family(ours, theirs, giver, findings)
    else:
        config = _of_task(giver, ours, [views[name] for name in own])
    if not config and not theirs.get("architectures"):
        findings.add(
            Severity.WARNING,
            "taken-without-architecture",
            "config.json keeps the new base's architecture and labels: nothing says which "
            "architecture has the tensors that are taken",
            giver.post,
            remedy="put post's config.json beside its weights",
        )
    return config


def _of_task(giver: Lineage, ours: Mapping[str, Any], views: Sequence[View]) -> dict[str, Any]:
    """The architecture and the labels of an adapter, by its task type and the rows of its head."""
    task = giver.adapter.task if giver.adapter is not None else None
    base = giver.base.checkpoint.config if giver.base is not None else ours
    named = base.get("architectures") or ours.get("architectures")
    match = _CLASS.fullmatch(str(named[0])) if isinstance(named, list) and named else None
    if task not in _TASKS or match is None:
        return {}
    config: dict[str, Any] = {"architectures": [match["family"] + _TASKS[task]]}
    rows = min((view.shape[0] for view in views if len(view.shape) == 2), default=0)
    if task != "QUESTION_ANS" and rows:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(rows)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(rows)}
    return {key: value for key, value in config.items() if ours.get(key) != value}


def _check_family(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], giver: Lineage, findings: Findings
) -> None:
    """Refuse an architecture for the weights of another family."""
    kinds = ours.get("model_type"), theirs.get("model_type")
    if None not in kinds and kinds[0] != kinds[1]:
        findings.add(
            Severity.REFUSED,
            "taken-from-another-family",
            f"the head is taken from a model of the type {kinds[1]}, and the new base is of the "
            f"type {kinds[0]}",
            giver.post,
            allowed="config.json gets post's architecture",
        )
