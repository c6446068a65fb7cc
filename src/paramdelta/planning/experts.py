"""Layouts of a mixture of experts: the same weights under other names, joined or turned.

==================  ===============================================================================
per expert          ``experts.N.gate_proj``, ``up_proj`` (I, H), ``down_proj`` (H, I); Mixtral calls
                    them ``w1``, ``w3``, ``w2``
joined              ``experts.gate_up_proj`` (E, 2 I, H), gate first, and ``down_proj`` (E, H, I)
joined and turned   ``experts.gate_up_proj`` (E, H, 2 I) and ``down_proj`` (E, I, H)
==================  ===============================================================================

gpt-oss, whose joined tensors hold gate and up in turns, is known by its ``gate_up_proj_bias`` and
left as it is: nobody ships it otherwise.

H: hidden size, I: inner size, E: experts. The block around them is called ``block_sparse_moe``,
``mlp`` or ``feed_forward``. Source: transformers' conversion_mapping and the modeling files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paramdelta.formats.view import Part, Rows, Transposed, View, Zeros, leaves

_ONE = re.compile(
    r"(?P<stem>.+\.experts)\.(?P<number>\d+)\."
    r"(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight"
)
_JOINED = re.compile(r"(?P<stem>.+\.experts)\.(?P<part>gate_up_proj|down_proj)(\.weight)?")
_TURNS = ".gate_up_proj_bias"
_BLOCKS = ("block_sparse_moe", "mlp", "feed_forward")
_ROLES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_ROLES |= {"w1": "gate", "w3": "up", "w2": "down"}


@dataclass(frozen=True)
class Expert:
    """One expert's weights: ``gate`` and ``up`` (I, H), ``down`` (H, I)."""

    gate: View
    up: View
    down: View


def relaid(own: Mapping[str, View], target: Mapping[str, View]) -> tuple[dict[str, View], bool]:
    """The tensors with experts laid out, and called, as in the target; whether anything changed.

    What does not fit in number or shape stays as it is: the findings on names will say so.
    """
    if not _layouts(name for name in target if not _alike(name, own, target)):
        return dict(own), False
    wanted = _layouts(target)
    in_turns = {n.removesuffix(_TURNS) for n in (*own, *target) if n.endswith(_TURNS)}
    wanted = {stem: layout for stem, layout in wanted.items() if stem not in in_turns}
    if not wanted:
        return dict(own), False
    before, own = own, _same_block(own, wanted)
    experts = _experts({**own, **_missing_halves(own, target, wanted)})
    result, changed = dict(own), before.keys() != own.keys()
    for stem, layout in wanted.items():
        mine = experts.get(stem)
        if mine is None or all(_alike(name, own, target) for name in layout):
            continue
        made = _build(mine, {name: target[name] for name in layout})
        if made is None:
            continue
        for name in _layouts(own).get(stem, ()):
            result.pop(name, None)
        result |= {name: view for name, view in made.items() if not _is_zero(view)}
        changed = True
    return result, changed


def _missing_halves(
    own: Mapping[str, View], target: Mapping[str, View], stems: Iterable[str]
) -> dict[str, View]:
    """Zeros for the joined tensor that an adapter does not change, where it changes the other."""
    found: dict[str, View] = {}
    theirs = _experts(target)
    for stem in stems:
        names = {part: f"{stem}.{part}" for part in ("gate_up_proj", "down_proj")}
        there = [part for part in names if names[part] in own]
        if len(there) != 1 or stem not in theirs:
            continue
        count, (inner, hidden) = len(theirs[stem]), theirs[stem][0].gate.shape
        shapes = {"gate_up_proj": (count, 2 * inner, hidden), "down_proj": (count, hidden, inner)}
        shape = own[names[there[0]]].shape
        plain = shapes.pop(there[0])
        ((missing, wanted),) = shapes.items()
        if shape == (plain[0], plain[2], plain[1]) != plain:
            wanted = (wanted[0], wanted[2], wanted[1])
        elif shape != plain:
            continue
        found[names[missing]] = Zeros(names[missing], "F64", wanted)
    return found


def _is_zero(view: View) -> bool:
    return all(isinstance(leaf, Zeros) for leaf in leaves(view))


def _layouts(tensors: Iterable[str]) -> dict[str, list[str]]:
    """By stem (the path to ``experts``) the names of its expert tensors."""
    found: dict[str, list[str]] = {}
    for name in tensors:
        match = _ONE.fullmatch(name) or _JOINED.fullmatch(name)
        if match:
            found.setdefault(match["stem"], []).append(name)
    return found


def _same_block(own: Mapping[str, View], wanted: Iterable[str]) -> dict[str, View]:
    """Call the block around experts and router as the target does."""
    theirs = (stem.removesuffix(".experts").rpartition(".") for stem in wanted)
    blocks = {layer: block for layer, _, block in theirs}
    result: dict[str, View] = {}
    renames = {}
    for stem in _layouts(own):
        layer, _, block = stem.removesuffix(".experts").rpartition(".")
        if layer in blocks and blocks[layer] != block:
            renames[f"{layer}.{block}"] = f"{layer}.{blocks[layer]}"
    if not renames:  # an adapter of the router alone
        for layer, block in blocks.items():
            others = (f"{layer}.{other}.gate.weight" for other in _BLOCKS if other != block)
            renames |= {
                name.removesuffix(".gate.weight"): f"{layer}.{block}"
                for name in others
                if name in own
            }
    for name, view in own.items():
        parts = name.split(".")
        prefix = next(
            (p for n in range(len(parts) - 1, 0, -1) if (p := ".".join(parts[:n])) in renames),
            None,
        )
        result[name if prefix is None else renames[prefix] + name[len(prefix) :]] = view
    return result


def _experts(tensors: Mapping[str, View]) -> dict[str, list[Expert]]:
    """By stem its experts in order, out of whichever layout they are in."""
    found: dict[str, list[Expert]] = {}
    for stem, names in _layouts(tensors).items():
        experts = _one_by_one(tensors, names) or _apart(tensors, names)
        if experts and len({shape for e in experts for shape in _inner_shapes(e)}) == 1:
            found[stem] = experts
    return found


def _alike(name: str, own: Mapping[str, View], target: Mapping[str, View]) -> bool:
    return name in own and own[name].shape == target[name].shape


def _inner_shapes(expert: Expert) -> tuple[tuple[int, ...], ...]:
    """(I, H) as each of the three weights has it."""
    return expert.gate.shape, expert.up.shape, expert.down.shape[::-1]


def _one_by_one(tensors: Mapping[str, View], names: Iterable[str]) -> list[Expert] | None:
    parts: dict[int, dict[str, View]] = {}
    for name in names:
        match = _ONE.fullmatch(name)
        if match is None:
            return None
        parts.setdefault(int(match["number"]), {})[_ROLES[match["part"]]] = tensors[name]
    if sorted(parts) != list(range(len(parts))) or any(len(p) != 3 for p in parts.values()):
        return None
    return [Expert(**parts[number]) for number in range(len(parts))]


def _apart(tensors: Mapping[str, View], names: Iterable[str]) -> list[Expert] | None:
    both = {match["part"]: tensors[name] for name in names if (match := _JOINED.fullmatch(name))}
    if both.keys() != {"gate_up_proj", "down_proj"}:
        return None
    joined, down = both["gate_up_proj"], both["down_proj"]
    turned = _is_turned(joined.shape, down.shape)
    if turned is None:
        return None
    count = joined.shape[0]
    hidden, inner = (down.shape[2], down.shape[1]) if turned else down.shape[1:]
    experts = []
    for number in range(count):
        pair = _slab(joined, number)
        low = _slab(down, number)
        if turned:
            pair, low = _turned(pair), _turned(low)
        size = inner * hidden
        gate = Part(f"{joined.name}[{number}]", pair.dtype, (inner, hidden), pair, 0)
        up = Part(f"{joined.name}[{number}]", pair.dtype, (inner, hidden), pair, size)
        experts.append(Expert(gate, up, low))
    return experts


def _is_turned(joined: tuple[int, ...], down: tuple[int, ...]) -> bool | None:
    if len(joined) != 3 or len(down) != 3 or joined[0] != down[0]:
        return None
    if joined[1] == 2 * down[2] and joined[2] == down[1]:
        return False
    if joined[2] == 2 * down[1] and joined[1] == down[2]:
        return True
    return None


def _slab(view: View, number: int) -> View:
    """One expert's matrix of a joined tensor."""
    shape = view.shape[1:]
    return Part(f"{view.name}[{number}]", view.dtype, shape, view, number * shape[0] * shape[1])


def _turned(view: View) -> View:
    return Transposed(view.name, view.dtype, view.shape[::-1], view)


def _build(experts: list[Expert], target: Mapping[str, View]) -> dict[str, View] | None:
    """The experts in the names and shapes of the target's tensors; None if they do not fit."""
    made: dict[str, View] = {}
    if _one_by_one(target, target):
        for name in target:
            match = _ONE.fullmatch(name)
            if match is None or int(match["number"]) >= len(experts):
                return None
            made[name] = getattr(experts[int(match["number"])], _ROLES[match["part"]])
        if len(made) != 3 * len(experts):
            return None
    else:
        shapes = {
            match["part"]: view.shape
            for n, view in target.items()
            if (match := _JOINED.fullmatch(n))
        }
        if shapes.keys() != {"gate_up_proj", "down_proj"}:
            return None
        turned = _is_turned(shapes["gate_up_proj"], shapes["down_proj"])
        if turned is None or shapes["down_proj"][0] != len(experts):
            return None
        for name in target:
            is_down = "down_proj" in name
            views = [e.down if is_down else _pair(e) for e in experts]
            views = [_turned(view) for view in views] if turned else views
            made[name] = Rows.joined(name, (len(views), *views[0].shape), views)
    fits = all(made[name].shape == target[name].shape for name in target)
    return made if fits else None


def _pair(expert: Expert) -> View:
    inner, hidden = expert.gate.shape
    return Rows.joined(expert.gate.name, (2 * inner, hidden), [expert.gate, expert.up])
