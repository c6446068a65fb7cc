"""Which tensors have a row for each token of the text vocabulary, and on which axis.

The shapes and config.json tell: such a tensor is as long as the vocabulary is large. The section of
config.json that a tensor belongs to says whose vocabulary it is: a talker, an audio codec or an
image codebook has one of its own, whatever its tensors are called. Names decide only where sizes
cannot: where something else in the model is as large, or where no size is stated.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.planning.facts import TEXT_PARTS

Shape = tuple[int, ...]

SIZES = ("vocab_size", "n_vocab", "padded_vocab_size", "vocab_size_per_layer_input")
"""Keys of config.json that state rows of the text vocabulary."""

TEXT_SECTIONS = (*TEXT_PARTS, "encoder", "question_encoder")
"""Keys of sections of config.json that can describe a text model."""

_MODEL_KEYS = {"model_type", "hidden_size", "d_model", "n_embd", "vocab_size", "num_embeddings"}
_NOT_SIZES = re.compile(r".*(_id|_ids|_token|_index|_map)|seed|.*version.*")

# By the name of its module: a table that is looked up by token, or a layer that predicts tokens.
_TOKENS = re.compile(
    r"emb|wte|(^|_)tok|vocab|(^|_)head|(^|_)output(_layer|_projection)?$|decoder$|predictions|logits|"
    r"shared$|proj_out$|lm_loss|pred_layer|generator"
)
# What is not, although it may have as many rows: by any part of the name, or by its last.
_OTHERS = re.compile(
    r"(^|[._])(wpe|pos|position\w*|positional\w*|token_type\w*|segment\w*|patch\w*|"
    r"entity\w*|quantize\w*|quantizer\w*|codebook\w*|codec\w*|class_emb\w*|time_emb\w*|relative_\w+)"
    r"(?=[._]|$)",
    re.IGNORECASE,
)
_NORMS = re.compile(r"norm|^ln(_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Section:
    """config.json or an object in it that describes a part of the model.

    ``path``: the keys that lead to it; () for all of it. ``config``: what it says. ``sizes``: of a
    vocabulary, as it states them itself. ``inner``: the sections within it.
    """

    path: tuple[str, ...]
    config: Mapping[str, Any]
    sizes: frozenset[int]
    inner: tuple["Section", ...]

    @property
    def key(self) -> str:
        """The last of the keys, "" for all of config.json."""
        return self.path[-1] if self.path else ""

    @property
    def stem(self) -> str:
        """What the names of its tensors' module start with."""
        return re.sub(r"_(config|model)$", "", self.key)

    def all(self) -> Iterator["Section"]:
        """It, and all within it."""
        yield self
        for section in self.inner:
            yield from section.all()

    def texts(self) -> Iterator["Section"]:
        """It, and those within it that can describe a text model."""
        yield self
        for section in self.inner:
            if section.key in TEXT_SECTIONS:
                yield from section.texts()

    def of(self, name: str) -> "Section":
        """The innermost section whose module a tensor is in."""
        rest = name.split(".")
        for number, part in enumerate(rest):
            for section in self.inner:
                if section.stem and part.startswith(section.stem):
                    return section.of(".".join(rest[number + 1 :]))
        return self


def token_axes(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], tokens: int | None
) -> dict[str, int]:
    """By name of each tensor with a row (or column) for each token the axis of the tokens.

    ``shapes``: of all tensors, by name. ``config``: config.json, {} if there is none. ``tokens``:
    how many rows the tokenizer needs; None if it is not known.
    """
    top = _section((), config)
    texts = _text_sections(top, tokens)
    others = _other_sizes(config)
    sizes = frozenset().union(*(text.sizes for text in texts))
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        for axis in range(min(len(shape), 2 if len(shape) == 2 else 1)):
            length = shape[axis]
            if not _may_hold(length, sizes, tokens):
                continue
            is_plain = length in sizes and length not in others
            if not (is_plain or _is_called_so(name)) or _is_other(name):
                continue
            own = _sizes_of(top.of(name), texts)
            is_near = length not in others and _is_called_so(name)
            if own and (length in own or (is_near and _may_hold(length, own, tokens))):
                found[name] = axis
                break
    if not any(len(shapes[name]) == 2 for name in found):
        found |= _largest(shapes, top, texts, tokens)
    for name, axis in list(found.items()):  # the bias of a head
        bias = f"{name.removesuffix('weight')}bias"
        if axis == 0 and bias != name and shapes.get(bias) == shapes[name][:1]:
            found[bias] = 0
    return {name: found[name] for name in shapes if name in found}


def rows_of_tokens(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], tokens: int
) -> int | None:
    """How many tokens a model has rows for; None if it has no tensor with rows of tokens.

    Arguments as those of `token_axes`.
    """
    axes = token_axes(shapes, config, tokens)
    return max((shapes[name][axis] for name, axis in axes.items()), default=None)


def size_places(config: Mapping[str, Any], tokens: int | None) -> dict[tuple[str, ...], int]:
    """Where config.json states how many rows the text vocabulary has: by the keys, what it says.

    ``tokens``: as in `token_axes`.
    """
    return {
        (*section.path, key): section.config[key]
        for section in _text_sections(_section((), config), tokens)
        for key in SIZES
        if section.config.get(key) in section.sizes
    }


def fits(size: int, tokens: int | None) -> bool:
    """Whether an embedding of so many rows can be that of a tokenizer.

    A few tokens may have no row: special ones that were added and never trained.
    """
    return tokens is None or size >= tokens - max(8, tokens // 50)


def _section(path: tuple[str, ...], config: Mapping[str, Any]) -> Section:
    sizes = (config.get(key) for key in SIZES)
    inner = (
        _section((*path, name), value)
        for name, value in config.items()
        if isinstance(value, Mapping) and not _MODEL_KEYS.isdisjoint(value)
    )
    return Section(
        path, config, frozenset(s for s in sizes if type(s) is int and s > 1), tuple(inner)
    )


def _text_sections(top: Section, tokens: int | None) -> tuple[Section, ...]:
    """The sections whose vocabulary is the tokenizer's."""
    named = [section for section in top.texts() if section.sizes]
    if tokens is None:
        return tuple(named[:1])
    fitting = [s for s in named if any(fits(size, tokens) for size in s.sizes)]
    if not fitting and not named:
        fitting = [s for s in top.all() if any(fits(size, tokens) for size in s.sizes)]
    return tuple(fitting or named[:1])


def _sizes_of(section: Section, texts: tuple[Section, ...]) -> frozenset[int] | None:
    """Rows that a tensor in a section has if it has one for each token; None if it cannot."""
    inside = [text for text in texts if any(text is each for each in section.all())]
    if section.key and not inside:
        return None
    return frozenset().union(*(text.sizes for text in inside))


def _other_sizes(config: Mapping[str, Any]) -> frozenset[int]:
    """Lengths that axes of other tensors have."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _other_sizes(value)
        elif type(value) is int and value > 1 and not _is_no_size(key):
            found |= {value, value + 1, value + 2, 2 * value, 3 * value, 4 * value}
    heads, width = config.get("num_attention_heads"), config.get("head_dim")
    if type(heads) is int and type(width) is int:
        found.add(heads * width)
    return frozenset(found)


def _is_no_size(key: str) -> bool:
    return key in SIZES or _NOT_SIZES.fullmatch(key) is not None


def _near(sizes: frozenset[int]) -> int:
    """The most rows of a table that is a little larger than what is stated."""
    most = max(sizes, default=0)
    return most + max(64, most // 25)


def _may_hold(length: int, sizes: frozenset[int], tokens: int | None) -> bool:
    """Whether it is worth a look at the tensor's name."""
    return length in sizes or (
        tokens is not None and fits(length, tokens) and length <= _near(sizes)
    )


def _module(name: str) -> str:
    """The last part of the name of a tensor's module that is not a number."""
    parts = [part for part in name.split(".") if not part.isdigit()] or [name]
    if len(parts) > 1 and parts[-1] in ("weight", "bias"):
        parts.pop()
    if len(parts) > 1 and parts[-1] in ("linear", "proj"):
        parts.pop()
    return parts[-1]


def _is_called_so(name: str) -> bool:
    """Whether the name of a tensor's module says that it has to do with tokens."""
    return _TOKENS.search(_module(name)) is not None


def _is_other(name: str) -> bool:
    """Whether a tensor's name says that it has to do with something else."""
    return _NORMS.search(_module(name)) is not None or _OTHERS.search(name) is not None


def _largest(
    shapes: Mapping[str, Shape], top: Section, texts: tuple[Section, ...], tokens: int | None
) -> dict[str, int]:
    """Where sizes tell nothing: of the tables that are called so, those with the most rows."""
    tables = {
        name: shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2
        and _is_called_so(name)
        and not _is_other(name)
        and _sizes_of(top.of(name), texts) is not None
    }
    rows = max(tables.values(), default=0)
    if tokens is not None and not (fits(rows, tokens) and rows <= tokens + max(64, tokens)):
        return {}
    return {name: 0 for name, height in tables.items() if height == rows} | {
        name: len(shape) - 1
        for name, shape in shapes.items()
        if shape in ((rows,), (1, rows)) and _is_called_so(name) and not _is_other(name)
    }
