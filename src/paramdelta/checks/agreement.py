"""One fact, one value: the places that state a fact, in the order in which loaders look.

- End of sequence: transformers reads generation_config.json, and config.json where that is absent;
  vLLM the same and the tokenizer's eos_token; MLX and most converters config.json.
- dtype: ``dtype``, else ``torch_dtype``; vLLM reads the text part too.
- Rows of tokens: ``vocab_size`` of the text part, where there is one.
- Tied head: transformers 5 reads ``tie_word_embeddings`` at the top, others of the text part.
- Labels: ``id2label``, whose length is ``num_labels``.
- Length of a text: ``max_seq_length`` of sentence-transformers, and the rows of absolute positions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta.checks.part import Part, ids_of, is_id, text_configs
from paramdelta.checks.vocabulary import Tokens, role_tokens
from paramdelta.dtypes import DTYPES, torch_name
from paramdelta.planning.findings import Findings, Severity

# Their positions are counted from the id of padding plus one.
_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"}
_DTYPES = {"half": "float16", "float": "float32", "double": "float64"}


def check_agreement(part: Part, tokens: Tokens, quantized: bool, findings: Findings) -> None:
    """Compare the places that state one fact. ``quantized``: whether some weights are codes."""
    _check_end(part, tokens, findings)
    for role in ("bos", "pad"):
        _check_role(part, role, tokens, findings)
    _check_dtype(part, quantized, findings)
    _check_nested(
        part, "vocab_size", "vocab-size-disagrees", "how many rows of tokens there are", findings
    )
    _check_nested(
        part,
        "tie_word_embeddings",
        "tie-disagrees",
        "whether the output head is the input embedding",
        findings,
    )
    _check_labels(part, findings)
    _check_length(part, findings)


def _severity(part: Part) -> Severity:
    """Of ids that differ: encoders hardly use them."""
    return Severity.WARNING if part.generates else Severity.NOTE


def _check_end(part: Part, tokens: Tokens, findings: Findings) -> None:
    generation = set(ids_of(part.generation.get("eos_token_id")))
    for prefix, config in text_configs(part.config):
        said = set(ids_of(config.get("eos_token_id")))
        if said and generation and not (said <= generation or generation <= said):
            findings.add(
                _severity(part),
                "eos-disagrees",
                f"config.json says that a text ends at {_show(said)} ({prefix}eos_token_id), "
                f"generation_config.json at {_show(generation)}: transformers and vLLM follow the "
                "latter, other loaders the former",
                part.place("generation_config.json"),
                remedy="write the same ids in both",
            )
    token = role_tokens(part).get("eos_token")
    own = tokens.ids.get(token) if token is not None else None
    stated = generation or {
        number for _, c in text_configs(part.config) for number in ids_of(c.get("eos_token_id"))
    }
    if own is not None and stated and own not in stated:
        findings.add(
            _severity(part),
            "eos-disagrees",
            f"the tokenizer's eos_token is {token!r} ({own}), and generation ends at "
            f"{_show(stated)}: vLLM ends at both, transformers only at the latter",
            part.place("tokenizer_config.json"),
            remedy="add the id to eos_token_id of generation_config.json, or name another token",
        )


def _check_role(part: Part, role: str, tokens: Tokens, findings: Findings) -> None:
    """The beginning of a sequence, or padding."""
    key = f"{role}_token_id"
    said = [("config.json", prefix + key, c.get(key)) for prefix, c in text_configs(part.config)]
    said.append(("generation_config.json", key, part.generation.get(key)))
    token = role_tokens(part).get(f"{role}_token")
    if token is not None and token in tokens.ids:
        said.append(("tokenizer_config.json", f"{role}_token", tokens.ids[token]))
    said = [each for each in said if is_id(each[2]) and each[2] >= 0]
    if len({number for _, _, number in said}) > 1:
        findings.add(
            _severity(part),
            f"{role}-disagrees",
            "; ".join(f"{name} says {where} is {number}" for name, where, number in said),
            part.place(said[-1][0]),
            remedy="write the same id in all places",
        )


def _check_dtype(part: Part, quantized: bool, findings: Findings) -> None:
    said = [
        (prefix + key, dtype)
        for prefix, config in text_configs(part.config)
        for key in ("dtype", "torch_dtype")
        if (dtype := _dtype(config.get(key))) is not None
    ]
    if len({dtype for _, dtype in said}) > 1:
        findings.add(
            Severity.WARNING,
            "dtype-disagrees",
            "config.json gives several dtypes: " + ", ".join(f"{k} {d}" for k, d in said),
            part.place(),
            remedy="write one dtype in all places",
        )
    counts: dict[str, int] = {}
    for tensor in part.weights.tensors.values():
        if DTYPES[tensor.dtype].mixable:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.nbytes
    if not said or not counts or quantized:
        return
    most = torch_name(max(counts, key=lambda name: counts[name] / DTYPES[name].bits))
    if most not in {dtype for _, dtype in said}:
        findings.add(
            Severity.WARNING,
            "dtype-untrue",
            f"config.json says {said[0][1]}, and most weights are stored as {most}; a loader "
            "converts them to what config.json says",
            part.place(),
            remedy=f"say {most} in config.json",
        )


def _dtype(value: Any) -> str | None:
    if not isinstance(value, str) or value == "auto":
        return None
    name = value.removeprefix("torch.")
    return _DTYPES.get(name, name)


def _check_nested(part: Part, key: str, code: str, what: str, findings: Findings) -> None:
    """A key that stands at the top and in the text part."""
    said = [(p + key, c[key]) for p, c in text_configs(part.config) if c.get(key) is not None]
    if len(said) > 1 and any(value != said[0][1] for _, value in said):
        findings.add(
            Severity.WARNING,
            code,
            f"config.json says {what} in several places: "
            + ", ".join(f"{where} {str(value)[:40]}" for where, value in said),
            part.place(),
            remedy="write one value in all places",
        )


def _check_labels(part: Part, findings: Findings) -> None:
    config = part.config
    names, numbers = config.get("id2label"), config.get("label2id")
    count = config.get("num_labels")
    problems = list(_label_problems(names, numbers, count))
    for problem in problems:
        findings.add(
            Severity.WARNING,
            "labels-disagree",
            problem,
            part.place(),
            remedy="take id2label, label2id and the classifier from one model",
        )


def _check_length(part: Part, findings: Findings) -> None:
    """How long a text sentence-transformers passes on, and how many positions the encoder has."""
    name = "sentence_bert_config.json"
    length = part.folder.object(name, findings).get("max_seq_length")
    table = next(
        (t for n, t in part.weights.tensors.items() if n.endswith("position_embeddings.weight")),
        None,
    )
    if table is None or len(table.shape) != 2 or not is_id(length):
        return
    positions = table.shape[0]
    if part.config.get("model_type") in _AFTER_PADDING:
        padding = part.config.get("pad_token_id")
        positions -= 1 + (padding if is_id(padding) else 1)
    if length > positions:
        findings.add(
            Severity.WARNING,
            "length-beyond-positions",
            f"max_seq_length is {length}, and the encoder has {positions} positions: a longer text "
            "ends in an error",
            part.place(name),
            remedy=f"write max_seq_length: {positions}",
        )


def _label_problems(names: Any, numbers: Any, count: Any) -> Iterator[str]:
    if not isinstance(names, Mapping):
        return
    if is_id(count) and count != len(names):
        yield f"num_labels is {count}, and id2label has {len(names)} labels"
    if (
        isinstance(numbers, Mapping)
        and numbers
        and len(set(map(str, names.values()))) == len(names)
    ):
        turned = {str(value): str(key) for key, value in names.items()}
        if turned != {str(key): str(value) for key, value in numbers.items()}:
            yield "label2id is not id2label turned around"


def _show(ids: set[int]) -> str:
    return ", ".join(map(str, sorted(ids)[:6]))
