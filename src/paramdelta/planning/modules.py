"""The components of the output: those of the new base, and modules that only post has.

A sentence-transformers post brings modules of its own onto a plain encoder: they are taken whole.
Other folders must be of one kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramdelta.formats.checkpoint import Checkpoint
from paramdelta.formats.components import SENTENCES, Component
from paramdelta.formats.view import View
from paramdelta.planning.architecture import compare_architecture
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.quantization import encoding_of
from paramdelta.planning.sources import Source, Sources

TAKEN = "module of post"


@dataclass(frozen=True)
class Assembly:
    """What the output consists of.

    ``components``: its models. ``taken``: tensors of modules that only post has, by name.
    """

    components: tuple[Component, ...]
    taken: Mapping[str, View]

    def tensors(self, dtype: str | None, deltas: int) -> list[OutputTensor]:
        """The output tensors of the modules that are taken whole; ``dtype``: the recipe's."""
        return [
            OutputTensor(
                name,
                encoding_of(view, dtype if view.kind.mixable else None),
                view.shape,
                view,
                why=TAKEN,
                asked=(None,) * deltas,
            )
            for name, view in self.taken.items()
        ]


def assemble(sources: Sources, findings: Findings) -> tuple[Sources, Assembly]:
    """Decide what the output consists of.

    Returns the sources without what is taken whole.
    """
    new, post = sources.new.checkpoint, sources.lineages[0].post.checkpoint
    for source in sources.others:
        _compare(sources.new, source, findings)
        _compare_configs(new, source.checkpoint, findings)
    if post.makeup.framework != SENTENCES or new.makeup.framework not in ("", SENTENCES):
        return sources, Assembly(new.components, {})
    mains = {c.is_main: c for c in post.components}
    components = [
        replace(c, folder=mains[True].folder) if c.is_main and True in mains else c
        for c in new.components
    ]
    known = {component.prefix for component in new.components}
    only = [c for c in post.components if c.prefix not in known]
    for component in new.components:
        if component.prefix and component.prefix not in post.makeup.inner:
            findings.add(
                Severity.REFUSED,
                "module-unnamed",
                f"post's modules.json does not name {component.folder}, a module of the new base",
                post,
                remedy="use a post with the same modules, or remove the module from the new base "
                "and its modules.json",
            )
    prefixes = tuple(component.prefix for component in only)
    if not prefixes:
        return sources, Assembly(tuple(components), {})
    views = sources.lineages[0].post.views
    taken = {name: view for name, view in views.items() if name.startswith(prefixes)}
    findings.add(
        Severity.NOTE,
        "module-taken",
        f"modules that the new base lacks are taken from post as they are: {', '.join(prefixes)}",
        post,
    )
    left = [_without(source, prefixes) for source in sources.all]
    return sources.replaced(left), Assembly((*components, *only), taken)


def _without(source: Source, prefixes: tuple[str, ...]) -> Source:
    """A source without the tensors of some modules."""
    views = {name: view for name, view in source.views.items() if not name.startswith(prefixes)}
    return replace(source, views=views) if len(views) < len(source.views) else source


def _compare(new: Source, source: Source, findings: Findings) -> None:
    """Refuse a pipeline beside a single model: no names would agree."""
    one, other = new.checkpoint, source.checkpoint
    if source.is_stored or not source.views:
        return
    if (one.makeup.main is None) == (other.makeup.main is None):
        return
    pipeline = one if one.makeup.main is None else other
    findings.add(
        Severity.REFUSED,
        "pipeline-misfit",
        f"{pipeline} is a folder of several models, and the other is one model",
        source,
        remedy="name the folder of the one model in it: "
        + ", ".join(_inner_address(pipeline, c) for c in pipeline.components[:4]),
    )


def _compare_configs(new: Checkpoint, other: Checkpoint, findings: Findings) -> None:
    """Compare the configurations of the components that both have; see `compare_architecture`."""
    for component in new.components:
        if not component.is_main and component in other.components:
            compare_architecture(_alone(new, component), _alone(other, component), findings)


def _alone(checkpoint: Checkpoint, component: Component) -> Checkpoint:
    """A checkpoint with the configuration and the address of one of its components."""
    location = replace(checkpoint.location, address=_inner_address(checkpoint, component))
    config = checkpoint.folder.sub(component.folder).json("config.json")
    return replace(checkpoint, location=location, config=config)


def _inner_address(checkpoint: Checkpoint, component: Component) -> str:
    return f"{checkpoint.location.address.rstrip('/')}/{component.folder.rstrip('/')}"
