"""Plain text under several models: how well each predicts it, and how far the mix is from others.

Cheap, and works for any causal language model. Perplexity says whether new knowledge was kept. The
Kullback-Leibler divergence from the mix to new base and to post says, token by token, how far their
predictions are apart. Texts are cut into short pieces that lie evenly over all of them.
"""

import gzip
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import UsageError
from paramdelta.evaluation.models import Model, models_of, release
from paramdelta.evaluation.statistics import Mean, Table
from paramdelta.recipe import Recipe
from paramdelta.text import markdown

PIECES = 64
LENGTH = 400  # characters of a piece: about 100 tokens
_MOST = 256 << 20  # bytes of text that are read
_REFERENCES = ("new-base", "post", "direct")


@dataclass(frozen=True)
class Prediction:
    """How well a model predicts the pieces. ``bits``: for a byte of UTF-8. ``loss``: nats a token.

    ``pieces``: that fit into its context.
    """

    bits: Mean
    loss: Mean
    pieces: int

    @property
    def perplexity(self) -> float:
        """For a token. Models with other tokenizers cannot be compared by it; by bits they can."""
        return math.exp(min(self.loss.value, 700))


@dataclass(frozen=True)
class Distance:
    """From ``first`` to ``second``: nats a token, and the share of tokens with one favorite."""

    first: str
    second: str
    divergence: Mean
    agreement: Mean


@dataclass(frozen=True)
class Texts:
    """What was measured on pieces of text, by model; and ``notes`` for the reader."""

    predictions: dict[str, Prediction]
    distances: tuple[Distance, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def compare_texts(
    recipe: Recipe | None,
    file: Path,
    *,
    models: Sequence[str],
    scales: Sequence[float] = (),
    pieces: int = PIECES,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Texts:
    """Measure models on a file of text, or on all text files of a folder.

    ``file``: UTF-8; ``.gz`` is decompressed, and of ``.jsonl`` all strings are read. ``models`` and
    ``scales`` are those of `paramdelta.evaluate`. Two models are in memory at a time: a mix, and
    the one that it is compared with.

    Raises:
        UsageError: no text, or a model that does not exist.
        ParamDeltaError: as `paramdelta.load`.
    """
    wanted = models_of(recipe, models, scales)
    chosen = cut(read_text(file), pieces)
    found: dict[str, Prediction] = {}
    distances, notes = [], []
    mixes = [model for model in wanted if model.plan is not None]
    others = [model for model in wanted if model.plan is None]
    for mix in mixes:
        loaded = _Loaded(mix, device, trust_remote_code)
        found[mix.name] = loaded.predict(chosen)
        for other in (each for each in others if each.name in _REFERENCES):
            second = _Loaded(other, device, trust_remote_code)
            found.setdefault(other.name, second.predict(chosen))
            distance = loaded.distance(second, chosen)
            if distance is None:
                notes.append(f"{mix.name} and {other.name} have other tokens: no divergence")
            else:
                distances.append(distance)
            del second
            release()
        del loaded
        release()
    for other in others:
        if other.name not in found:
            found[other.name] = _Loaded(other, device, trust_remote_code).predict(chosen)
            release()
    notes += [
        f"{name}: {len(chosen) - each.pieces} pieces are longer than the context and left out"
        for name, each in found.items()
        if each.pieces < len(chosen)
    ]
    return Texts({m.name: found[m.name] for m in wanted}, tuple(distances), tuple(notes))


class _Loaded:
    """A model in memory."""

    def __init__(self, model: Model, device: str | None, trusted: bool) -> None:
        self.name = model.name
        self.model, self.tokenizer = model.load(device, trusted)
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20

    def tokens(self, piece: str) -> list[int]:
        """The token ids of a piece, as the tokenizer adds its own; empty if they do not fit."""
        found: list[int] = self.tokenizer(piece)["input_ids"]
        return found if 2 <= len(found) <= self.context else []

    def logarithms(self, tokens: list[int]) -> Any:
        """Logarithms of the probabilities of each next token, [tokens − 1, vocabulary], float32."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self.model.device)
            logits = self.model(input_ids=ids).logits[0, :-1].float()
            return torch.log_softmax(logits, dim=-1)

    def predict(self, pieces: Sequence[str]) -> Prediction:
        """How well the pieces are predicted."""
        import torch

        losses, bits = [], []
        for piece in pieces:
            tokens = self.tokens(piece)
            if tokens:
                chosen = torch.tensor(tokens[1:], device=self.model.device)[:, None]
                given = -self.logarithms(tokens).gather(1, chosen).double().cpu()
                losses.append(float(given.mean()))
                bits.append(float(given.sum()) / math.log(2) / len(piece.encode()))
        if not losses:
            raise UsageError(
                "no piece of the text fits into the context of a model",
                code="no-text",
                where=self.name,
            )
        return Prediction(_mean(bits), _mean(losses), len(losses))

    def distance(self, other: "_Loaded", pieces: Sequence[str]) -> Distance | None:
        """The distance to another model; None if a piece has other tokens there."""
        apart, same = [], []
        for piece in pieces:
            tokens = self.tokens(piece)
            if tokens != other.tokens(piece):
                return None
            if tokens:
                one, two = self.logarithms(tokens), other.logarithms(tokens)
                shared = min(one.shape[1], two.shape[1])  # padded vocabularies
                one, two = one[:, :shared].double().cpu(), two[:, :shared].double().cpu()
                apart.append(float((one.exp() * (one - two)).sum(dim=1).mean()))
                same.append(float((one.argmax(1) == two.argmax(1)).double().mean()))
        return Distance(self.name, other.name, _mean(apart), _mean(same))


def _mean(values: list[float]) -> Mean:
    found = Table({"text": {"model": values}}).mean("text", "model")
    assert found is not None
    return found


def read_text(path: Path) -> str:
    """The text of a file, or of all text files of a folder, in the order of their names.

    Raises:
        UsageError: there is none, or it is not UTF-8.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts, size = [], 0
    for file in files:
        kinds = file.suffixes[-2:] if file.suffix == ".gz" else [file.suffix]
        if path.is_dir() and kinds[0] not in (".txt", ".jsonl", ".md"):
            continue
        try:
            for part in _parts(file, ".jsonl" in kinds):
                parts.append(part)
                size += len(part)
                if size > _MOST:
                    break
        except (OSError, EOFError, ValueError) as error:
            raise UsageError(
                "no text", code="no-text", where=str(file), got=f"{type(error).__name__}: {error}"
            ) from None
    if size < LENGTH:
        raise UsageError(
            "no text",
            code="no-text",
            where=str(path),
            expected=f"a file, or a folder of .txt, .md and .jsonl files (or .gz of them), with "
            f"{LENGTH} characters or more",
        )
    return "\n".join(parts)


def _parts(file: Path, objects: bool) -> Iterator[str]:
    """The text of one file, a line at a time; of objects, their strings."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
        for line in io.TextIOWrapper(opened, encoding="utf-8", newline=""):
            if not objects:
                yield line.rstrip("\n")
            elif line.strip():
                read = parse_json(line.encode())
                values = read.values() if isinstance(read, dict) else [read]
                yield from (value for value in values if isinstance(value, str))


def cut(text: str, pieces: int) -> list[str]:
    """Pieces of `LENGTH` characters that lie evenly over a text and do not overlap."""
    count = max(1, min(pieces, len(text) // LENGTH))
    step = (len(text) - LENGTH) / max(1, count - 1) if count > 1 else 0
    return [text[round(n * step) :][:LENGTH] for n in range(count)]


def texts_report(found: Texts) -> str:
    """The measurements in Markdown."""
    rows = [
        f"| {markdown(name)} | {_shown(each.bits)} | {each.perplexity:.2f} | {each.pieces} |"
        for name, each in found.predictions.items()
    ]
    apart = [
        f"| {markdown(each.first)} to {markdown(each.second)} | {_shown(each.divergence)} | "
        f"{100 * each.agreement.value:.1f} % |"
        for each in found.distances
    ]
    parts = [
        "# Evaluation: plain text",
        "Bits a byte and perplexity: less is better. With standard errors over pieces.",
        "\n".join(
            ["| model | bits a byte | perplexity a token | pieces |", "|---|--:|--:|--:|", *rows]
        ),
    ]
    if apart:
        head = ["| from, to | divergence, nats a token | same favorite |", "|---|--:|--:|"]
        parts.append("\n".join([*head, *apart]))
    parts += [f"- {markdown(note)}" for note in found.notes]
    return "\n\n".join(parts) + "\n"


def _shown(mean: Mean) -> str:
    error = "" if mean.error is None else f" ± {mean.error:.3f}"
    return f"{mean.value:.3f}{error}"
