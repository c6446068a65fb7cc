"""What was finished: samples of each model and task, in a folder. A later run continues it."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paramdelta.documents import DocumentError, parse_json
from paramdelta.evaluation.harness import Answered, Sample


class Results:
    """The folder ``samples`` of an output. A file is there as a whole, or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "samples"

    def find(self, model: str, task: str, digest: str) -> Answered | None:
        """What was finished with exactly these settings; None if there is nothing."""
        try:
            read = parse_json(self._path(model, task).read_bytes())
            if read["digest"] != digest:
                return None
            samples = tuple(Sample(**sample) for sample in read["samples"])
            return Answered(samples, tuple(read["notes"]))
        except (OSError, DocumentError, ValueError, KeyError, TypeError):
            return None

    def keep(self, model: str, task: str, digest: str, settings: Any, done: Answered) -> None:
        """Write the samples of a model on a task, atomically and durably."""
        text = {
            "digest": digest,
            "settings": settings,
            "notes": list(done.notes),
            "samples": [asdict(sample) for sample in done.samples],
        }
        write(self._path(model, task), json.dumps(text, indent=1, ensure_ascii=False) + "\n")

    def _path(self, model: str, task: str) -> Path:
        return self.folder / model / f"{task}.json"


def digest_of(settings: Mapping[str, Any]) -> str:
    """The digest of everything that a score depends on."""
    plain = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole: after a crash it is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(made).unlink()
        raise
