"""Runs a piece of work in a child process: offline, with a time limit, in an empty folder.

What the child imports (torch, transformers) and what it reads must not be able to harm this one.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import paramdelta
from paramdelta.documents import parse_json

DONE, FAILED, MISSING = "done", "failed", "missing"  # how a task ended
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONSAFEPATH": "1",
}
MAX_ANSWER = 256 << 20  # bytes
_PURE = {"render", "build"}  # tasks whose answer follows from the request alone
_KEPT = 8  # answers to such requests: all outputs of a sweep ask the same
_answers: dict[bytes, dict[str, Any]] = {}


def run_child(task: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run a task of `check.child`; its answer, whose ``outcome`` is `DONE`, `FAILED` or `MISSING`.

    `MISSING`: the task cannot be done here, because of a package; ``why`` says which.
    ``seconds``: after which the child is ended. A question that was answered before in this process
    is not asked again.
    """
    asked = json.dumps(request)
    key = hashlib.sha256(f"{task} {asked}".encode()).digest()
    if key in _answers:
        return _answers[key]
    answer = _run(task, asked, seconds)
    if task in _PURE and answer["outcome"] == DONE:
        while len(_answers) >= _KEPT:
            del _answers[next(iter(_answers))]
        _answers[key] = answer
    return answer


def _run(task: str, request: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="paramdelta-check-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(request, encoding="utf-8")
        try:
            # The empty folder is where the child starts, so that no module is imported from here.
            ended = subprocess.run(  # noqa: S603 - our own module
                [sys.executable, "-m", "paramdelta.checks.child", task, str(folder)],
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"outcome": FAILED, "why": f"it was not done after {seconds:.0f} seconds"}
        answer = folder / "answer.json"
        if answer.is_file() and answer.stat().st_size <= MAX_ANSWER:
            result = parse_json(answer.read_bytes())
            assert isinstance(result, dict)
            return result
        return {"outcome": FAILED, "why": _why(ended)}


def _why(ended: "subprocess.CompletedProcess[bytes]") -> str:
    """Why a child left no answer."""
    if ended.returncode < 0:
        return f"the process was ended by {signal.Signals(-ended.returncode).name}"
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:200] if said else f"the process ended with {ended.returncode}"


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment, offline; no path in it depends on the current folder."""
    package = Path(paramdelta.__file__).resolve().parents[1]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(package), *(path for path in inherited if Path(path).is_absolute())]
    return os.environ | _OFFLINE | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(folder / "hf"),
    }  # fmt: skip
