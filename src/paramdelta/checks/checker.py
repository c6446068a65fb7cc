"""The check of a folder, put together."""

from pathlib import Path

from paramdelta.checks.agreement import check_agreement
from paramdelta.checks.architecture import check_architectures
from paramdelta.checks.files import check_adapter, check_chain, check_files
from paramdelta.checks.folder import Folder, open_folder
from paramdelta.checks.part import Part, find_parts
from paramdelta.checks.process import DONE, MISSING, run_child
from paramdelta.checks.quantization import (
    FILES,
    check_quantization,
    stated_bits,
    statements,
)
from paramdelta.checks.report import MOST, Report, printable
from paramdelta.checks.template import check_template
from paramdelta.checks.values import Progress, check_values
from paramdelta.checks.vocabulary import check_vocabulary, read_tokens
from paramdelta.formats.codes import Coded, positive_scales, read_codes
from paramdelta.planning.findings import Findings, Severity
from paramdelta.text import shown

LOAD_SECONDS = 3600


def check(
    folder: Path,
    *,
    strict: bool = False,
    load: bool = False,
    values: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Look at a folder as a loader does, knowing nothing of how it was made.

    ``strict``: NaN and infinities are refused, not only warned of. ``load``: load it in a child
    process with the library that it is for, offline and without code of the folder. ``values``:
    read every number; without it, headers and small files only. ``progress``: called with bytes
    read and bytes to read.

    Raises:
        StorageError: there is no such folder, or it cannot be read.
    """
    findings = Findings()
    opened = open_folder(folder, findings)
    kind, parts = find_parts(opened, findings)
    checked = ["files and headers"]
    skipped: list[str] = []
    coded = [(part, _check_codes(part, findings)) for part in parts]
    rows, unbuilt = check_architectures(coded, findings)
    skipped += unbuilt
    if parts and len(unbuilt) < len(parts):
        checked.append("names and shapes")
    for (part, codes), count in zip(coded, _shared_rows(parts, rows), strict=True):
        tokens = read_tokens(part, findings)
        check_files(part, findings)
        check_vocabulary(part, tokens, count, findings)
        check_agreement(part, tokens, bool(codes), findings)
        why = check_template(part, tokens, findings)
        skipped += [f"{part.place('')}: {why}"] if why else []
        if part.kind == "adapter":
            check_adapter(part, findings)
        skipped += [f"{part.place(name)}: a pickle" for name in part.weights.pickled]
    if kind == "sentence-transformers":
        check_chain(parts, findings)
    checked += ["tokens and templates", "statements that repeat"]
    if values:
        positive = [positive_scales(codes) for _, codes in coded]
        check_values(parts, positive, findings, strict, progress)
        checked.append("every number")
    else:
        skipped.append("numbers, as asked")
    if load:
        loaded, why = _load(opened, kind, parts, findings)
        checked += ["loading"] if loaded else []
        skipped += [why] if why else []
    return Report(
        str(folder),
        kind,
        tuple(checked),
        tuple(shown(text, MOST) for text in skipped),
        tuple(map(printable, findings.all(()))),
        sum(len(part.weights.tensors) for part in parts),
        sum(part.weights.nbytes for part in parts),
    )


def _shared_rows(parts: list[Part], rows: list[int | None]) -> list[int | None]:
    """Rows for each part's tokens: in a pipeline, those of the text encoder of the same number."""
    known = {part.folder.prefix: count for part, count in zip(parts, rows, strict=True)}
    return [
        count if count is not None else known.get(p.replace("tokenizer", "text_encoder"))
        for p, count in ((part.folder.prefix, known[part.folder.prefix]) for part in parts)
    ]


def _check_codes(part: Part, findings: Findings) -> list[Coded]:
    """The quantized weights of one part; and whether the configuration says so."""
    if part.kind != "transformers":
        return []
    stated = {n: part.folder.object(n, findings) for n in FILES if n in part.folder}
    said = list(statements(part.config, stated))
    codes = read_codes(part.weights.tensors, *stated_bits(said))
    check_quantization(said, codes, part.weights.tensors, findings, part.folder)
    return codes


_LOADED = ("transformers", "sentence-transformers", "diffusers", "adapter")
# With these a loader might leave the folder, wait for ever, or ask for all memory.
_UNSAFE = {
    "adapter-beside-weights", "architecture-refused", "config-implausible", "link-outside",
    "not-a-file", "path-outside", "too-many-files", "wrong-shapes",
}  # fmt: skip


def _load(
    opened: Folder, kind: str, parts: list[Part], findings: Findings
) -> tuple[bool, str | None]:
    """Load the folder in a child process: whether that was done, and why not."""
    unsafe = sorted({finding.code for finding in findings.all(())} & _UNSAFE)
    if unsafe:
        return False, f"loading: not with {', '.join(unsafe)}"
    if kind not in _LOADED:
        return False, f"loading: nothing here loads a folder of this kind ({kind})"
    if any(part.weights.pickled for part in parts):
        return False, "loading: the weights are pickles"
    answer = run_child("load", {"folder": str(opened.root), "kind": kind}, LOAD_SECONDS)
    if answer["outcome"] == MISSING:
        return False, f"loading: {answer['why']}"
    if answer["outcome"] != DONE:
        findings.add(
            Severity.REFUSED,
            "load-failed",
            f"{kind} cannot load the folder: {answer['why']}",
            ".",
            remedy="see the other findings",
        )
        return True, None
    info = answer["info"]
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        for name in info.get(key, ()):
            findings.add(
                Severity.REFUSED,
                "load-incomplete",
                f"{kind} loads the folder with {key.replace('_', ' ')}",
                ".",
                tensor=name,
                remedy="see the other findings",
            )
    for line in answer["said"]:
        findings.add(Severity.WARNING, "load-warning", f"{kind} warns: {line}", ".")
    return True, None
