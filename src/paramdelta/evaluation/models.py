"""The models of an evaluation: those of a recipe by their roles, its mix in memory, and others."""

import contextlib
import gc
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.recipe import Recipe
from paramdelta.storage.location import locate

MIX = "paramdelta"
ROLES = ("base", "post", "new-base", MIX)
_NAME = re.compile(r"[\w][\w.@+-]{0,60}")


@dataclass(frozen=True)
class Model:
    """A model by the name that tables show. ``plan``: of a mix; else ``place``, a folder.

    ``identity``: changes if the model changes.
    """

    name: str
    identity: str
    plan: Plan | None = None
    place: Path | None = None

    def load(self, device: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
        """The transformers model, ready to answer, and its tokenizer.

        Raises:
            ParamDeltaError: as `paramdelta.load`.
            OSError, ValueError: as transformers' ``from_pretrained``.
        """
        from paramdelta.live.model import load, load_tokenizer

        with contextlib.suppress(ImportError):  # `load` says what is missing
            import transformers

            transformers.utils.logging.disable_progress_bar()
        if self.plan is not None:
            model = load(self.plan, device_map=device, trust_remote_code=trust_remote_code)
            tokenizer = load_tokenizer(self.plan, trust_remote_code=trust_remote_code)
        else:
            options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self.place, dtype="auto", device_map=device, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.place, **options)
        return model.eval(), tokenizer


def models_of(
    recipe: Recipe | None, names: Sequence[str], scales: Sequence[float] = ()
) -> list[Model]:
    """The models by what was asked for: roles of the recipe, and ``name=ADDRESS``.

    ``scales``: the mix is evaluated at each of them, as ``paramdelta@0.5``.

    Raises:
        UsageError: an unknown role, a name twice, or a role that is not a folder of weights.
        MisfitError, CheckpointError, StorageError: as `paramdelta.plan`.
    """
    found: list[Model] = []
    for asked in names:
        name, given, address = asked.partition("=")
        if given:
            found.append(_at(_checked(name), address))
        elif name not in ROLES or recipe is None:
            raise UsageError(
                "unknown model",
                code="unknown-model",
                where=asked,
                expected=f"{', '.join(ROLES)} of a recipe, or name=ADDRESS",
            )
        elif name == MIX and scales:
            found += [_mix(recipe.times(scale), f"{MIX}@{scale:g}") for scale in scales]
        elif name == MIX:
            found.append(_mix(recipe, MIX))
        else:
            found.append(_at(name, _address(recipe, name)))
    doubled = sorted({m.name for m in found if sum(m.name == o.name for o in found) > 1})
    if doubled or not found:
        raise UsageError(
            "a model twice" if doubled else "no models",
            code="invalid-models",
            where=", ".join(doubled) or None,
        )
    return found


def _address(recipe: Recipe, role: str) -> str:
    if role == "new-base":
        return str(recipe.new_base)
    delta = recipe.deltas[0]
    address = delta.post if role == "post" else delta.base
    if not address or (role == "post" and delta.base is None):
        raise UsageError(
            f"the recipe has no checkpoint of {role}",
            code="no-such-role",
            where=delta.address,
            remedy=f"pass {role}=ADDRESS, or leave {role} out",
        )
    return str(address)


def _mix(recipe: Recipe, name: str) -> Model:
    plan = make_plan(recipe)
    plan.check()
    return Model(name, plan.digest, plan=plan)


def _at(name: str, address: str) -> Model:
    place = locate(address, keep=True).path  # transformers reads folders
    if place is None or not place.is_dir():
        raise UsageError(
            "a model that is evaluated is a folder or a Hub id", code="not-a-model", where=address
        )
    total = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        with contextlib.suppress(OSError):
            facts = path.stat()
            total.update(f"{path.relative_to(place)}\0{facts.st_size}\0".encode())
            # What the cache of the Hub links to is named by its content.
            linked = path.is_symlink()
            mark = str(path.readlink()) if linked else facts.st_mtime_ns
            total.update(f"{mark}\0".encode())
    return Model(name, total.hexdigest(), place=place)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            "invalid name of a model",
            code="invalid-model-name",
            where=name,
            expected="letters, digits, '.', '_', '-'",
        )
    return name


def release() -> None:
    """Free the memory of models that nothing refers to any more."""
    torch = sys.modules.get("torch")
    if torch is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
