"""Import a mergekit configuration (0.1.5) as a Recipe.

The methods task_arithmetic, linear, ties, dare_linear and dare_ties combine Δs, so a recipe can
express them. Keys that a recipe does not express are listed with the reason. If such a key would
change the result, the configuration is refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.documents.yaml import construct_yaml
from paramdelta.dtypes import parse_dtype
from paramdelta.errors import UsageError
from paramdelta.recipe.model import Delta, Recipe
from paramdelta.recipe.schedule import Rule, Schedule, Span
from paramdelta.recipe.yaml import parse, read_text
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.ties import Ties
from paramdelta.text import line

MOST_LAYERS = 10_000
METHODS = ("task_arithmetic", "linear", "ties", "dare_linear", "dare_ties")
_POST = re.compile(r"instruct|chat|[-_]it\b|sft|dpo|rlhf|tuned", re.IGNORECASE)
_KEYS = {
    "merge_method",
    "base_model",
    "models",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
}
_SHARED = ("normalize", "lambda", "rescale", "int8_mask")
_PARAMETERS = {
    "task_arithmetic": ("weight", "normalize", "lambda", "int8_mask"),
    "linear": ("weight", "normalize"),
    "ties": ("weight", "density", "normalize", "lambda", "int8_mask"),
    "dare_linear": ("weight", "density", "normalize", "lambda", "rescale", "int8_mask"),
    "dare_ties": ("weight", "density", "normalize", "lambda", "rescale", "int8_mask"),
}


@dataclass(frozen=True)
class Imported:
    """A recipe, and what differs from the configuration.

    ``notes``: key of the configuration and explanation, for every key that was left out or is
    expressed in another way.
    """

    recipe: Recipe
    notes: tuple[tuple[str, str], ...]

    def to_yaml(self) -> str:
        """The recipe with the notes as comments."""
        lines = (line(" ".join(f"# {key}: {what}".split())) for key, what in self.notes)
        return "".join(f"{each}\n" for each in lines) + self.recipe.to_yaml()


def import_mergekit(path: str | Path, layers: int | None = None) -> Imported:
    """Read a mergekit YAML file.

    ``layers``: how many layers the model has, needed for lists of numbers (gradients). Without it,
    the number is read from config.json of the base model, if that is a local folder.

    Raises:
        UsageError: the file cannot be read, mergekit would refuse it, or a recipe cannot express
            it.
    """
    path = Path(path)
    node = parse(path, "configuration")
    try:
        plain = construct_yaml(node)
    except ValueError as error:
        raise UsageError(
            "cannot read the configuration",
            code="invalid-mergekit",
            where=str(path),
            got=str(error),
        ) from None
    if not isinstance(plain, Mapping) or "merge_method" not in plain:
        raise UsageError(
            "not a mergekit configuration",
            code="not-mergekit",
            where=str(path),
            expected="a key merge_method",
        )
    return _Reader(path, plain, layers).imported()


@dataclass(frozen=True)
class _Model:
    """An input model. ``lora``: an adapter on it; ``where``: the place of ``parameters``."""

    address: str
    lora: str | None
    parameters: Mapping[str, Any]
    where: str

    def __str__(self) -> str:
        return self.address + (f"+{self.lora}" if self.lora else "")


class _Reader:
    """Reads one configuration and collects notes on the way."""

    def __init__(self, path: Path, plain: Mapping[str, Any], layers: int | None) -> None:
        self.path = path
        self.plain = plain
        self.notes: list[tuple[str, str]] = []
        self.method = str(plain["merge_method"])
        self.given = layers
        self.shared = self._parameters(plain.get("parameters"), "parameters")

    def imported(self) -> Imported:
        """The recipe, and all notes."""
        if self.method not in METHODS:
            raise self._error(
                f"merge_method {self.method} cannot be expressed",
                code="not-expressible",
                expected="one of " + ", ".join(METHODS),
            )
        for key, why in (
            ("slices", "whole models: a recipe cannot cut and stack layers"),
            ("modules", "whole models: a recipe cannot treat parts of a model separately"),
        ):
            if self.plain.get(key):
                raise self._error(
                    f"{key} cannot be expressed", code="not-expressible", expected=why
                )
        for key in self.plain.keys() - _KEYS - {"slices", "modules"}:
            self._note(str(key), "unknown to mergekit too, which ignores it")
        base = self._model(self.plain.get("base_model"), {}, "base_model", optional=True)
        listed = self.plain.get("models")
        if not isinstance(listed, list) or not listed:
            raise self._error(
                "models is not a list", code="invalid-mergekit", expected="- model: …"
            )
        models = [self._entry(entry, f"models[{at}]") for at, entry in enumerate(listed)]
        recipe = self._linear(base, models) if self.method == "linear" else self._sum(base, models)
        self._tokenizer(recipe)
        return Imported(replace(recipe, dtype=self._dtype()), tuple(self.notes))

    # -- the methods -------------------------------------------------------------------------------

    def _sum(self, base: _Model | None, models: list[_Model]) -> Recipe:
        """base + λ Σ w (model − base), with or without DARE and TIES."""
        if base is None:
            raise self._error(f"{self.method} needs a base_model", code="invalid-mergekit")
        if base.lora:
            raise self._error(
                "base_model with a LoRA", code="not-expressible", remedy="merge it first"
            )
        others = []
        for model in models:
            if str(model) == str(base):
                if model.parameters:
                    why = "the base model has no Δ, so mergekit ignores its parameters too"
                    self._note(f"{model.where}.parameters", why)
                continue
            others.append(model)
        if not others:
            raise self._error(
                "no model but the base",
                code="invalid-mergekit",
                expected="another model with a weight",
            )
        scale = self._number("lambda", 1.0)
        weights = [self._setting(model, "weight", None) for model in others]
        normalize = self._switch("normalize", self.method == "ties")
        self._known(others)
        if self.method in ("task_arithmetic", "dare_linear"):
            if normalize:
                weights = list(self._shares(weights))
            weights = [self._times(weight, scale) for weight in weights]
        deltas = [self._delta(m, base, w) for m, w in zip(others, weights, strict=True)]
        if self.method == "task_arithmetic":
            return self._plain_form(base, deltas) or Recipe(base.address, tuple(deltas))
        densities = [self._setting(model, "density", 1.0) for model in others]
        if self.method == "ties":
            deltas = [replace(d, density=s) for d, s in zip(deltas, densities, strict=True)]
            density = densities[0]
            if not isinstance(density, Schedule) and densities.count(density) == len(densities):
                deltas = [replace(delta, density=None) for delta in deltas]
                ties = Ties(density, scale, normalize)
            else:
                ties = Ties(1.0, scale, normalize)
            self._election(normalize, weights)
            self._note(
                "density",
                "elements equal to the k-th largest magnitude are all kept; mergekit keeps k",
            )
            return Recipe(base.address, tuple(deltas), scheme=ties)
        deltas, scale = self._dropped(deltas, densities, scale, normalize)
        if self.method == "dare_linear":
            return Recipe(base.address, tuple(deltas))
        self._election(normalize, weights)
        return Recipe(base.address, tuple(deltas), scheme=Ties(1.0, scale, normalize))

    def _dropped(
        self, deltas: list[Delta], densities: Sequence[float | Schedule], scale: float, mean: bool
    ) -> tuple[list[Delta], float]:
        """The Δs with DARE, and the scale λ. ``mean``: whether TIES averages."""
        rescale = self._switch("rescale", True)
        if any(isinstance(density, Schedule) for density in densities):
            raise self._error(
                f"density of {self.method} by layers or filters cannot be expressed",
                code="not-expressible",
                expected="one number for each model: DARE drops one share of a Δ",
            )
        shares = [float(density) for density in densities if not isinstance(density, Schedule)]
        if rescale:
            self._note(
                "rescale",
                "kept elements are multiplied by 1/density, as in the DARE paper; mergekit 0.1.5 "
                "restores the L1 norm of the Δ, which is about the same",
            )
        elif mean and self.method == "dare_ties":
            if len(set(shares)) > 1:
                raise self._error(
                    "rescale: false with normalize and several densities cannot be expressed",
                    code="not-expressible",
                    expected="one density for all models, or rescale: true",
                )
            scale = float(Fraction(scale) * _decimal(shares[0]))
            self._note("rescale", "false: λ undoes the rescaling of the DARE paper")
        else:
            deltas = [
                replace(delta, scale=self._times(delta.scale, share))
                for delta, share in zip(deltas, shares, strict=True)
            ]
            self._note("rescale", "false: the scales undo the rescaling of the DARE paper")
        self._note(
            "density",
            "the same share, but another mask: mergekit draws it from torch's generator, "
            "paramdelta derives it from dare.seed and the tensor names (docs/recipes.md)",
        )
        found = []
        for delta, share in zip(deltas, shares, strict=True):
            dare = Dare(float(1 - _decimal(share))) if share < 1 else None
            found.append(replace(delta, dare=dare))
        return found, scale

    def _linear(self, base: _Model | None, models: list[_Model]) -> Recipe:
        """Σ w model / Σ w, written as first + Σ w (model − first) / Σ w."""
        weights = [self._setting(model, "weight", None) for model in models]
        normalize = self._switch("normalize", True)
        self._known(models)
        if any(model.lora for model in models):
            raise self._error(
                "linear with a LoRA cannot be expressed",
                code="not-expressible",
                remedy="merge it first",
            )
        if normalize:
            weights = list(self._shares(weights))
        elif any(isinstance(weight, Schedule) for weight in weights):
            raise self._error(
                "weights by layers or filters cannot be expressed in linear", code="not-expressible"
            )
        elif sum(_decimal(weight) for weight in weights if not isinstance(weight, Schedule)) != 1:
            raise self._error(
                "linear with normalize: false and weights that do not sum to 1",
                code="not-expressible",
                expected="a sum of 1, because a recipe's new base has weight 1",
            )
        first = 0
        if base is not None:
            named = [at for at, model in enumerate(models) if str(model) == str(base)]
            if not named:
                raise self._error(
                    "base_model is not among models and has no weight", code="invalid-mergekit"
                )
            first = named[0]
        anchor = models[first]
        deltas = tuple(
            Delta(model.address, anchor.address, weight)
            for at, (model, weight) in enumerate(zip(models, weights, strict=True))
            if at != first
        )
        if not deltas:
            raise self._error(
                "linear with a single model", code="invalid-mergekit", expected="two models or more"
            )
        self._note(
            "models",
            f"Σ w Θ / Σ w is written as Θ₀ + Σ w (Θ − Θ₀) / Σ w, the same; Θ₀ = {anchor.address}",
        )
        return Recipe(anchor.address, deltas)

    def _plain_form(self, base: _Model, deltas: list[Delta]) -> Recipe | None:
        """ParamΔ as task arithmetic: B + (P − B) + (N − B) equals N + (P − B)."""
        if [delta.scale for delta in deltas] != [1.0, 1.0]:
            return None
        if any(delta.base != base.address for delta in deltas):
            return None
        looks = [_looks_post_trained(delta.address) for delta in deltas]
        new = 0 if looks == [False, True] else 1
        why = (
            "the names show which of the two is the new base"
            if looks[0] != looks[1]
            else "the configuration does not say which of the two is the new base, so the second "
            "was taken; the weights are the same, but config and tokenizer come from it"
        )
        post = deltas[1 - new].post
        self._note(
            "base_model",
            f"B + (P − B) + (N − B) is written as N + (P − B), with N = {deltas[new].post}; {why}. "
            f"mergekit takes config.json and tokenizer from {base.address}",
        )
        return Recipe(deltas[new].post, (Delta(post, base.address),))

    def _delta(self, model: _Model, base: _Model, weight: float | Schedule) -> Delta:
        if model.lora is None:
            return Delta(model.address, base.address, weight)
        if model.address != base.address:
            raise self._error(
                f"{model}: a LoRA on another model than the base cannot be expressed",
                code="not-expressible",
                where=model.where,
                remedy="merge it first",
            )
        return Delta(model.lora, base.address, weight)

    def _election(self, normalize: bool, weights: Sequence[float | Schedule]) -> None:
        self._note(
            "merge_method", "if both signs weigh the same, none is elected; mergekit elects +"
        )
        numbers = [n for w in weights for n in (w.numbers if isinstance(w, Schedule) else [w])]
        if normalize and any(number < 0 for number in numbers):
            what = "the mean divides by the sum of |weight|; mergekit divides by the sum of weights"
            self._note("weight", what)

    # -- parameters --------------------------------------------------------------------------------

    def _parameters(self, plain: Any, where: str) -> Mapping[str, Any]:
        if plain is None:
            return {}
        if not isinstance(plain, Mapping):
            raise self._error(f"{where} is not a mapping", code="invalid-mergekit")
        known = _PARAMETERS.get(self.method, ())
        for key in plain:
            if key not in known:
                self._note(f"{where}.{key}", f"has no effect with {self.method}, so it is left out")
        return plain

    def _known(self, models: list[_Model]) -> None:
        """Note shared parameters of single models, which mergekit ignores, and int8_mask."""
        for model in models:
            for key in _SHARED:
                if key in model.parameters and key in _PARAMETERS[self.method]:
                    what = "mergekit reads only the shared parameter, so it is left out"
                    self._note(f"{model.where}.parameters.{key}", what)
        if "int8_mask" in self.shared and "int8_mask" in _PARAMETERS[self.method]:
            self._note("parameters.int8_mask", "saves memory of a mask, which is not stored here")

    def _number(self, name: str, default: float) -> float:
        value = self.shared.get(name, default)
        number = _scalar(value)
        if number is None:
            raise self._error(
                f"{name} by layers or filters cannot be expressed",
                code="not-expressible",
                expected="one number",
            )
        return number

    def _switch(self, name: str, default: bool) -> bool:
        value = self.shared.get(name, default)
        if not isinstance(value, bool | int):
            raise self._error(
                f"{name} by layers or filters cannot be expressed",
                code="not-expressible",
                expected="true or false",
            )
        return bool(value)

    def _setting(self, model: _Model, name: str, default: float | None) -> float | Schedule:
        """A parameter of a model: its own, else the shared one, else the default."""
        rules: list[Rule] = []
        for source, where in ((model.parameters, model.where), (self.shared, "shared")):
            if name in source:
                rules += self._rules(source[name], (), f"{where} {name}")
            if rules and rules[-1].is_rest:
                break
        else:
            if default is None:
                raise self._error(f"{name} is missing", code="invalid-mergekit", where=model.where)
            rules.append(Rule((), default))
        first = rules[0]
        return first.value if first.is_rest and first.value is not None else Schedule(tuple(rules))

    def _rules(self, value: Any, match: tuple[str, ...], where: str) -> list[Rule]:
        """A setting as rules. ``match``: globs of the filter that the setting belongs to."""
        number = _scalar(value)
        if number is not None:
            return [Rule(match, number)]
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list):
            raise self._error(
                "a setting cannot be understood",
                code="invalid-mergekit",
                where=where,
                got=repr(value),
            )
        numbers = [_scalar(item) for item in value]
        if value and None not in numbers:
            return self._gradient([n for n in numbers if n is not None], match, where)
        rules: list[Rule] = []
        for item in value:
            if not isinstance(item, Mapping) or "value" not in item or match:
                raise self._error(
                    "a setting cannot be understood",
                    code="invalid-mergekit",
                    where=where,
                    got=repr(item),
                )
            wanted = item.get("filter")
            glob = () if wanted in (None, "*") else (f"*{_escaped(str(wanted))}*",)
            rules += self._rules(item["value"], glob, where)
            if not glob:
                break
        return rules

    def _gradient(self, values: list[float], match: tuple[str, ...], where: str) -> list[Rule]:
        """A list of numbers, interpolated over the layers. Tensors in no layer get the first."""
        if len(set(values)) == 1:
            return [Rule(match, values[0])]
        count = self._layers(where)
        spans = []
        if count == 1:
            spans = [Span(0, 0, values[-1], values[-1])]
        else:
            segments = len(values) - 1
            exact = [Fraction(value) for value in values]

            def at(layer: int) -> float:
                place = Fraction(layer * segments, count - 1)
                low = min(int(place), segments - 1)
                return float(exact[low] + (exact[low + 1] - exact[low]) * (place - low))

            groups: dict[int, list[int]] = {}
            for layer in range(count):
                groups.setdefault(min(layer * segments // (count - 1), segments - 1), []).append(
                    layer
                )
            spans = [Span(g[0], g[-1], at(g[0]), at(g[-1])) for g in groups.values()]
        self._note(
            where,
            f"interpolated over {count} layers; tensors in no layer get the first, {values[0]:g}",
        )
        return [Rule(match or ("*",), None, tuple(spans)), Rule(match, values[0])]

    def _layers(self, where: str) -> int:
        """How many layers the model has. ``where``: the setting that needs it."""
        count = self.given
        if count is None:
            base = self.plain.get("base_model") or self.plain["models"][0].get("model")
            try:
                config = parse_json(read_text(Path(str(base)) / "config.json", "config").encode())
                found = config.get("num_hidden_layers")
                count = int(found or config["text_config"]["num_hidden_layers"])
            except (UsageError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
                raise self._error(
                    "a list of numbers needs the number of layers, which is not known",
                    code="unknown-layers",
                    where=where,
                    remedy="pass layers=N",
                ) from None
        if not 1 <= count <= MOST_LAYERS:
            raise self._error(
                f"a model cannot have {count} layers",
                code="invalid-layers",
                where=where,
                expected=f"1 to {MOST_LAYERS}",
            )
        return count

    def _shares(self, weights: Sequence[float | Schedule]) -> list[float]:
        """Weights divided by their sum; as they are if the sum is zero, as in mergekit."""
        numbers = [weight for weight in weights if not isinstance(weight, Schedule)]
        if len(numbers) < len(weights):
            raise self._error(
                "normalize with weights by layers or filters cannot be expressed",
                code="not-expressible",
                expected="numbers, or normalize: false",
            )
        exact = [_decimal(number) for number in numbers]
        total = sum(exact, Fraction(0))
        if abs(total) < 1e-8:
            if self.method == "linear":
                raise self._error("the weights sum to zero", code="invalid-mergekit")
            return numbers
        return [float(number / total) for number in exact]

    def _times(self, scale: float | Schedule, factor: float) -> float | Schedule:
        if factor == 1:
            return scale
        if isinstance(scale, Schedule):
            return scale.times(factor)
        return float(_decimal(scale) * _decimal(factor))

    # -- models and files --------------------------------------------------------------------------

    def _entry(self, plain: Any, where: str) -> _Model:
        if not isinstance(plain, Mapping) or "model" not in plain:
            raise self._error(
                "an entry of models without model", code="invalid-mergekit", where=where
            )
        for key in plain.keys() - {"model", "parameters"}:
            self._note(f"{where}.{key}", "unknown to mergekit too, which ignores it")
        parameters = self._parameters(plain.get("parameters"), f"{where}.parameters")
        model = self._model(plain["model"], parameters, where)
        assert model is not None
        return model

    def _model(
        self, plain: Any, parameters: Mapping[str, Any], where: str, optional: bool = False
    ) -> _Model | None:
        if plain is None and optional:
            return None
        lora = None
        if isinstance(plain, Mapping):
            lora = plain.get("lora")
            if plain.get("override_architecture"):
                what = "not needed: tensor names are read from the checkpoints"
                self._note(f"{where}.override_architecture", what)
            plain = plain.get("model")
        elif isinstance(plain, str):
            plain, _, rest = plain.partition("+")
            lora = rest or None
        address, lora = self._path(plain, where), self._path(lora, where) if lora else None
        return _Model(address, lora, parameters, where)

    def _path(self, plain: Any, where: str) -> str:
        if isinstance(plain, Mapping):
            plain = "@".join(str(plain[key]) for key in ("path", "revision") if plain.get(key))
        if not isinstance(plain, str) or not plain:
            raise self._error(
                "a model cannot be understood",
                code="invalid-mergekit",
                where=where,
                got=repr(plain),
            )
        return plain

    def _dtype(self) -> str | None:
        inner, outer = self.plain.get("dtype"), self.plain.get("out_dtype")
        if inner is not None:
            self._note(
                "dtype",
                f"mergekit rounds the inputs to {inner} and adds in it; here the exact sum is "
                f"rounded once, to {outer or inner}",
            )
        return parse_dtype(str(outer or inner or "auto"))

    def _tokenizer(self, recipe: Recipe) -> None:
        source = self.plain.get("tokenizer_source")
        tokenizer = self.plain.get("tokenizer")
        if isinstance(tokenizer, Mapping):
            source = tokenizer.get("source", "union")
            for key in tokenizer.keys() - {"source"}:
                self._note(
                    f"tokenizer.{key}",
                    "not expressed: rows always follow their tokens; graft adds tokens that only "
                    "the first post has, take copies its rows",
                )
        new = recipe.new_base
        key = "tokenizer_source" if tokenizer is None else "tokenizer.source"
        if source == "union":
            self._note(
                key,
                "not expressed: the vocabulary is the new base's; graft adds tokens that only the "
                "first post has (paramdelta plan names them)",
            )
        elif source in ("base", new):
            self._note(key, f"as here: the vocabulary is that of {new}")
        elif source is not None:
            self._note(key, f"not expressed: the vocabulary is that of {new}, not of {source}")
        if self.plain.get("chat_template") is not None:
            what = "not expressed: the template is the first post's"
            self._note("chat_template", what)

    def _note(self, key: str, what: str) -> None:
        if (key, what) not in self.notes:
            self.notes.append((key, what))

    def _error(
        self,
        what: str,
        *,
        code: str,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> UsageError:
        place = f"{self.path}, {where}" if where else str(self.path)
        return UsageError(what, code=code, where=place, expected=expected, got=got, remedy=remedy)


def _scalar(value: Any) -> float | None:
    """A number, text that is one, or a switch, as mergekit reads it; None for anything else."""
    if isinstance(value, bool | int | float | str):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def _decimal(number: float) -> Fraction:
    return Fraction(repr(float(number)))


def _escaped(text: str) -> str:
    """A glob that matches only this text."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _looks_post_trained(address: str) -> bool:
    """Whether an address is that of a chat model: by its files if it is a folder, or its name."""
    folder = Path(address)
    if folder.is_dir():
        config = folder / "tokenizer_config.json"
        said = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
        if "chat_template" in said or (folder / "chat_template.jinja").is_file():
            return True
    return bool(_POST.search(folder.name))
