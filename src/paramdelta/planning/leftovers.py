"""Tensors of post and base that the output does not get."""

import re

from paramdelta.errors import parameter
from paramdelta.formats.buffers import is_buffer
from paramdelta.formats.view import View
from paramdelta.planning.coefficients import coefficient
from paramdelta.planning.constants import refuse_quantized
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.pairs import LOOK
from paramdelta.planning.predictors import is_predictor
from paramdelta.planning.sources import Lineage, Sources
from paramdelta.recipe import Recipe
from paramdelta.recipe.schedule import Schedule
from paramdelta.storage.filekinds import is_training, is_weights, left_because

# The adapter once more, and whole models, which have a finding of their own.
_OWN = re.compile(r".*/|adapter_|(pytorch_|flax_|tf_|rust_)?model[.-]|consolidated")


def report_leftovers(recipe: Recipe, sources: Sources, findings: Findings) -> None:
    """Find every tensor without a place in the output; refuse if that loses weights."""
    wanted = sources.new.views.keys()
    for each, delta in zip(sources.lineages, recipe.deltas, strict=True):
        for name, view in {**each.post.views, **each.post.deltas}.items():
            if name not in wanted:
                _report(name, view, each, delta.scale, findings)
        if not each.post.is_stored:
            _report_beside(each, findings)
        if each.base is not None:
            for name in sorted(each.base.views.keys() - wanted - each.post.views.keys()):
                findings.add(
                    Severity.NOTE,
                    "only-in-base",
                    "tensors that only base has are left out",
                    each.base,
                    tensor=name,
                )


def _report_beside(each: Lineage, findings: Findings) -> None:
    """Warn of weights in files of their own that lie beside those of post, such as a value head.

    Of a whole model, pickles travel as files of code that loads them (see `companions`).
    """
    checkpoint = each.post.checkpoint
    if checkpoint.makeup.main is None:
        return  # beside a pipeline lies the same model in one file
    read = {source.blob for source in checkpoint.sources}
    for name, blob in checkpoint.files.items():
        if blob in read or not is_weights(name) or is_training(name) or _OWN.match(name):
            continue
        if each.is_adapter:
            findings.add(
                Severity.WARNING,
                "weights-beside-adapter",
                f"{name} holds weights that are no part of the adapter; they are not mixed",
                each.post,
                remedy="if they were trained, merge them and the adapter with the library that "
                "wrote them, and pass the merged folder as post",
            )
        elif left_because(name):
            findings.add(
                Severity.WARNING,
                "weights-beside-model",
                f"{name} holds weights that the model's loader does not read; they are left out",
                each.post,
                remedy="if other code reads them, copy the file into the output",
            )


def _taking(name: str) -> str:
    module, _, last = name.rpartition(".")
    return parameter("take_tensors", (f"{module}.*" if module else last,))


def _report(
    name: str, view: View, each: Lineage, scale: float | Schedule, findings: Findings
) -> None:
    """Find one tensor of post that the new base does not have."""
    if is_buffer(view) or (not view.kind.mixable and view.name not in each.post.codes):
        findings.add(Severity.NOTE, "buffer-left", "constants are left out", each.post, tensor=name)
        return
    chosen = coefficient(scale, name, len(view.shape))
    if chosen is not None and chosen.scale == 0:
        what = "tensors without a place in the new base, at scale 0, are left out"
        findings.add(Severity.NOTE, "scale-zero", what, each.post, tensor=name)
        return
    if is_predictor(name, each.post.checkpoint.config):
        findings.add(
            Severity.WARNING,
            "predictor-left",
            "the new base lacks the layers that predict further tokens; they are left out, and "
            "config.json says so",
            each.post,
            tensor=name,
        )
        return
    form = each.post.codes.get(view.name)
    if form is not None:
        refuse_quantized(form, name, each.post, findings)
        return
    both = each.base is not None and name in each.base.views
    findings.add(
        Severity.REFUSED,
        "missing-in-new-base" if both else "only-in-post",
        f"tensors of {each.post.checkpoint.role} have no place in the new base",
        each.post,
        tensor=name,
        remedy=LOOK if both else f"{LOOK}, or pass {_taking(name)} to take them as they are",
        allowed="left out",
    )
