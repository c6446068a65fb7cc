"""Whether the tensors are those that the configuration's architecture has, in name and shape.

Where transformers (or diffusers) is installed, the library itself builds the model without memory
and says what it misses. Elsewhere a few rules of our own stand in: numbers of layers, rows of
tokens, head and tie.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paramdelta.checks.part import Part, is_id, text_configs
from paramdelta.checks.process import DONE, MISSING, run_child
from paramdelta.checks.weights import Stored
from paramdelta.formats.codes import Coded, is_scale, plain_shapes
from paramdelta.planning.findings import Findings, Severity

SECONDS = 300  # for building all models of a folder
MAX_TENSORS = 300_000
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers",
           "decoder_layers", "num_decoder_layers", "depth")  # fmt: skip
_MTP = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
_INDEXED = re.compile(r"(?:^|\.)((?:layers?|h|blocks?|resblocks)\.)(\d{1,6})\.")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in)\.weight$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|output|embed_out|proj_out)\.weight$")
_QUANTIZED = ("quantization_config", "compression_config", "quantization")
_BLOCK = 8 << 20  # bytes compared at a time


def check_architectures(
    parts: list[tuple[Part, list[Coded]]], findings: Findings
) -> tuple[list[int | None], list[str]]:
    """Compare every part with its architecture.

    Returns the rows of each part's input embedding, as far as they are known, and what could not be
    looked at.
    """
    rows = [_embedding_rows(part) for part, _ in parts]
    skipped = []
    asked: list[tuple[int, dict[str, Any]]] = []
    for number, (part, codes) in enumerate(parts):
        if part.kind not in ("transformers", "diffusers"):
            continue
        _check_gaps(part, findings)
        _check_prediction(part, findings)
        _check_head(part, findings)
        request, why = _request(part, codes, findings)
        if request is not None:
            asked.append((number, request))
        elif why:
            skipped.append(f"{part.place('')}: {why}")
    if not asked:
        return rows, skipped
    answer = run_child("build", {"models": [request for _, request in asked]}, SECONDS)
    for at, (number, _) in enumerate(asked):
        part, _ = parts[number]
        result = (
            answer["models"][at] if answer["outcome"] == DONE else answer | {"outcome": MISSING}
        )
        if result["outcome"] == DONE:
            _report(part, result, findings)
            rows[number] = result["rows"] or rows[number]
        elif result["outcome"] == MISSING:
            skipped.append(f"{part.place()}: not compared with its class: {result['why']}")
            _check_own(part, rows[number], findings)
            for name in set(asked[at][1]["tensors"]):
                if is_scale(name):
                    _report_scale(part.place(), name, findings)
        else:
            findings.add(
                Severity.REFUSED,
                "architecture-refused",
                f"the library cannot build a model from config.json: {result['why']}",
                part.place(),
                remedy="take config.json from the model that the weights are from",
            )
    return rows, skipped


def _request(
    part: Part, codes: list[Coded], findings: Findings
) -> tuple[dict[str, Any] | None, str]:
    """What the library is asked to build; or None, and why it is not asked."""
    tensors = part.weights.tensors
    if not part.config or not tensors:
        return None, ""
    if len(tensors) > MAX_TENSORS:
        return None, f"not compared with its class: more than {MAX_TENSORS} tensors"
    for key, value in _counts(part.config):
        if value > 4 * len(tensors) + 256:
            findings.add(
                Severity.REFUSED,
                "config-implausible",
                f"{key} is {value}, and there are {len(tensors)} tensors",
                part.place(),
                remedy="take config.json from the model that the weights are from",
            )
            return None, ""
    plain = plain_shapes(tensors, codes)
    if plain is None:
        return None, "not compared with its class: the headers do not tell the weights' shapes"
    config = {k: v for k, v in part.config.items() if k not in (*_QUANTIZED, "auto_map")}
    for prefix, inner in text_configs(part.config):
        if prefix:
            config[prefix[:-1]] = {k: v for k, v in inner.items() if k not in _QUANTIZED}
    return {"kind": part.kind, "config": config, "tensors": plain}, ""


def _counts(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Numbers of things that a model has one module each for."""
    for key, value in config.items():
        if is_id(value) and re.search(r"layers|experts|depth|blocks|n_layer|n_head|num_heads", key):
            yield key, value
        elif isinstance(value, Mapping) and depth < 3:
            yield from _counts(value, depth + 1)


def _report(part: Part, result: Mapping[str, Any], findings: Findings) -> None:
    """What the library said of names and shapes."""
    place, kind = part.place(), result["class"]
    for name in result["missing"]:
        findings.add(
            Severity.REFUSED,
            "missing-tensors",
            f"{kind} has tensors that are not stored: they would be random",
            place,
            tensor=name,
            remedy="take weights and config.json from one model; look at the tensors' prefixes",
        )
    for name in result["unexpected"]:
        if is_scale(name):
            _report_scale(place, name, findings)
            continue
        findings.add(
            Severity.WARNING,
            "unexpected-tensors",
            f"tensors are stored that {kind} does not have: transformers leaves them out, other "
            "loaders fail",
            place,
            tensor=name,
            remedy="remove them, or name the class that has them in architectures",
        )
    for name, stored, wanted in result["mismatched"]:
        findings.add(
            Severity.REFUSED,
            "wrong-shapes",
            f"tensors have other shapes than {kind} with this config.json",
            place,
            tensor=f"{name} {stored}, expected {wanted}",
            remedy="take config.json from the model that the weights are from",
        )
    for message in result["errors"]:
        findings.add(
            Severity.REFUSED,
            "conversion-failed",
            f"transformers cannot convert stored tensors: {message}",
            place,
            remedy="look at the tensors named",
        )


def _report_scale(place: str, name: str, findings: Findings) -> None:
    findings.add(
        Severity.REFUSED,
        "scale-without-codes",
        "scales are stored whose weights are not quantized",
        place,
        tensor=name,
        remedy="remove the scales, or store the codes",
    )


# -- rules of our own ------------------------------------------------------------------------------


def _groups(tensors: Mapping[str, Stored]) -> dict[str, set[int]]:
    """The indices of numbered modules, by what stands before and after the number."""
    groups: dict[str, set[int]] = {}
    for name in tensors:
        found = _INDEXED.search(name)
        if found:
            groups.setdefault(name[: found.end(1)], set()).add(int(found[2]))
    return groups


def _check_gaps(part: Part, findings: Findings) -> None:
    for prefix, indices in _groups(part.weights.tensors).items():
        lacking = sorted(set(range(max(indices))) - indices)[:10] if len(indices) > 1 else []
        if lacking and len(indices) > max(indices) // 2:
            findings.add(
                Severity.WARNING,
                "layer-gap",
                f"{prefix}* has {len(indices)} layers up to number {max(indices)}, and none with "
                f"the numbers {', '.join(map(str, lacking))}",
                part.place(),
                remedy="look whether a weight file is missing",
            )


def _check_prediction(part: Part, findings: Findings) -> None:
    """Layers that predict further tokens: transformers ignores them, vLLM decodes with them."""
    for prefix, config in text_configs(part.config):
        layers = config.get("num_hidden_layers")
        for key in _MTP:
            count = config.get(key)
            if not (is_id(count) and count > 0 and is_id(layers)):
                continue
            names = part.weights.tensors
            later = any(max(g) >= layers for g in _groups(names).values())
            if names and not later and not any("mtp" in name for name in names):
                findings.add(
                    Severity.NOTE,
                    "prediction-missing",
                    f"{prefix}{key} is {count}, and the layers that predict further tokens are "
                    "not stored: speculative decoding with them fails",
                    part.place(),
                    remedy="copy these layers, or set the key to 0",
                )


def _embedding_rows(part: Part) -> int | None:
    """Rows of the input embedding of text, by the names that it usually has."""
    found = [
        t.shape[0]
        for name, t in part.weights.tensors.items()
        if _EMBEDDING.search(name)
        and len(t.shape) == 2
        and not re.search("vision|visual|audio", name)
    ]
    return max(found) if found else None


def _check_own(part: Part, rows: int | None, findings: Findings) -> None:
    """Numbers of layers and of rows, where no library compared names and shapes."""
    lengths = {max(g) + 1 for g in _groups(part.weights.tensors).values()}
    for prefix, config in text_configs(part.config):
        more = sum(c for key in _MTP if is_id(c := config.get(key)) and 0 < c < 100)
        for key in _LAYERS:
            count = config.get(key)
            if is_id(count) and lengths and not {count, count + more} & lengths:
                findings.add(
                    Severity.WARNING,
                    "layer-count",
                    f"{prefix}{key} is {count}, and the stored layers number "
                    + ", ".join(map(str, sorted(lengths)[:6])),
                    part.place(),
                    remedy="take config.json from the model that the weights are from",
                )
        count = config.get("vocab_size")
        if is_id(count) and rows is not None and rows < count:
            findings.add(
                Severity.REFUSED,
                "wrong-shapes",
                f"{prefix}vocab_size is {count}, and the embedding has {rows} rows",
                part.place(),
                remedy="write the number of rows, in all places",
            )


def _check_head(part: Part, findings: Findings) -> None:
    """A head that is stored although config.json ties it to the embedding."""
    tied = [
        value
        for _, config in text_configs(part.config)
        if isinstance(value := config.get("tie_word_embeddings"), bool)
    ]
    tensors = part.weights.tensors
    heads = [name for name in tensors if _HEAD.search(name)]
    embeddings = [n for n in tensors if _EMBEDDING.search(n)]
    if not tied or not tied[0] or len(heads) != 1 or not embeddings:
        return
    head = tensors[heads[0]]
    like = [tensors[n] for n in embeddings if tensors[n].shape == head.shape]
    if like and not any(_same(part, head, each) for each in like):
        findings.add(
            Severity.REFUSED,
            "head-disagrees",
            "config.json ties the output head to the embedding, and a head with other numbers is "
            "stored: transformers 4 and vLLM up to 2026 leave it out without a word",
            part.place(),
            tensor=head.name,
            remedy="set tie_word_embeddings to false, or remove the head",
        )


def _same(part: Part, one: Stored, other: Stored) -> bool:
    """Whether two tensors have the same bytes."""
    if (one.dtype, one.nbytes) != (other.dtype, other.nbytes):
        return False
    for offset in range(0, one.nbytes, _BLOCK):
        length = min(_BLOCK, one.nbytes - offset)
        pieces = [part.folder.read(t.file, t.offset + offset, length) for t in (one, other)]
        if pieces[0] != pieces[1]:
            return False
    return True
