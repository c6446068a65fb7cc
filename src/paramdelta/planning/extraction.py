"""The recipe of an extraction: the mix whose Δ is stored."""

from collections.abc import Sequence

from paramdelta.planning.sources import Opener
from paramdelta.recipe import Delta, Recipe


def extraction_recipe(
    post: str,
    base: str,
    opener: Opener,
    *,
    maps: Sequence[str] = (),
    vocabulary: str = "auto",
    allow: Sequence[str] = (),
) -> Recipe:
    """A mix onto post, so that tensors that only post has are stored whole.

    Onto base if post lacks the files of a checkpoint folder (GGUF): those of base go beside the Δ,
    with what post states. Raises as `Opener.checkpoint`.
    """
    is_bare = opener.checkpoint(post, "post").is_bare
    # At scale 1 base cancels out of a sum with base, and no Δ is left.
    onto, scale = (base, 2.0) if is_bare else (post, 1.0)
    return Recipe(
        onto,
        (Delta(post, base, scale),),
        allow=(*allow, "missing-in-base"),
        vocabulary=vocabulary,
        maps=tuple(maps),
    )
