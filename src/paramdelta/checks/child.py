"""What runs in a child process: rendering a template, building a model, loading a folder.

``python -m paramdelta.checks.child TASK FOLDER`` reads FOLDER/request.json and writes
FOLDER/answer.json. No code of the folder that is checked is run, nothing is downloaded.
"""

import contextlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paramdelta.checks.process import DONE, FAILED, MISSING
from paramdelta.documents import parse_json

RENDER_MEMORY = 1 << 30  # bytes
RENDER_SECONDS = 3
MAX_TEXT = 1 << 20  # characters of a rendered conversation
NEW_TOKENS = 4

Answer = dict[str, Any]


class _Undone(Exception):
    """The task cannot be done here: a package is missing, or does not know the model."""


def main(task: str, folder: Path) -> None:
    """Run one task."""
    request = parse_json((folder / "request.json").read_bytes())
    answer = _answer(_TASKS[task], request)
    (folder / "answer.json").write_text(json.dumps(answer, default=str), encoding="utf-8")


def _answer(work: Callable[[Answer], Answer], request: Answer) -> Answer:
    try:
        return {"outcome": DONE} | work(request)
    except _Undone as error:
        return {"outcome": MISSING, "why": str(error)}
    except ImportError as error:
        return {"outcome": MISSING, "why": _words(error)}
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
        return {"outcome": FAILED, "why": _words(error)}


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# -- rendering -------------------------------------------------------------------------------------


def _render(request: Answer) -> Answer:
    """Render a conversation as transformers does: in a sandbox, with its filters and functions."""
    _limit(RENDER_MEMORY, RENDER_SECONDS)
    environment = _sandbox()
    template = environment.from_string(request["template"])
    first, said, second, last = request["conversation"]
    plain = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": said},
        {"role": "user", "content": second},
        {"role": "assistant", "content": last},
    ]
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in plain]
    problem: Exception | None = None
    text = ""
    for messages in (plain, parts):  # some templates of models that see want a list of parts
        try:
            rendered = "".join(_pieces(template, messages, request["roles"]))
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            problem = problem or error
            continue
        if all(each in rendered for each in request["conversation"]):
            return {"text": rendered}
        text = text or rendered
    if problem is not None and not text:
        raise problem
    return {"text": text}


def _pieces(template: Any, messages: list[Answer], roles: dict[str, str]) -> Iterator[str]:
    """The rendered text, refused where it grows without end."""
    count = 0
    for piece in template.generate(
        messages=messages, add_generation_prompt=False, tools=None, documents=None, **roles
    ):
        count += len(piece)
        if count > MAX_TEXT:
            raise ValueError(f"the rendered text has more than {MAX_TEXT} characters")
        yield piece


def _sandbox() -> Any:
    """The environment of transformers' apply_chat_template."""
    from datetime import datetime

    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise _Undone("jinja2 is not installed") from None

    class Generation(Extension):
        """The tag that marks what the assistant says: its body is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_body")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _limit(memory: int, seconds: int) -> None:
    """Bound this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


# -- names and shapes ------------------------------------------------------------------------------


def _build(request: Answer) -> Answer:
    """Build each model; an answer for each. ``request``: ``models`` (see `_build_transformers`)."""
    return {"models": [_answer(_BUILDERS[model["kind"]], model) for model in request["models"]]}


def _build_transformers(request: Answer) -> Answer:
    """Build the class of config.json without memory for its weights, and "load" names and shapes.

    transformers itself renames, converts and ties; what it misses, does not know or cannot fit is
    the answer. ``request``: ``config``; ``tensors``: name -> [dtype, shape].
    """
    transformers, torch = _libraries()
    config = _config(transformers, request["config"])
    kind = _class(transformers, request["config"])
    try:
        with torch.device("meta"):
            kind._from_config(config) if hasattr(kind, "_from_config") else kind(config)
    except ImportError as error:
        raise _Undone(_words(error)) from None
    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "BOOL": torch.bool,
    }  # fmt: skip
    state = {
        name: torch.empty(shape, dtype=dtypes.get(dtype, torch.uint8), device="meta")
        for name, (dtype, shape) in request["tensors"].items()
    }
    try:
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # noqa: BLE001 - an internal of the library, not of the folder
        raise _Undone(f"transformers {transformers.__version__}: {_words(error)}") from None
    return {
        "class": kind.__name__,
        "missing": sorted(map(str, info["missing_keys"])),
        "unexpected": sorted(map(str, info["unexpected_keys"])),
        "mismatched": [
            [str(n), list(stored), list(wanted)] for n, stored, wanted in info["mismatched_keys"]
        ],
        "errors": [str(message)[:300] for message in info.get("error_msgs", ())][:20],
        "rows": _rows(model),
        "version": transformers.__version__,
    }


def _build_diffusers(request: Answer) -> Answer:
    """The same for a component of diffusers, whose names are those of its files."""
    try:
        import diffusers
    except ImportError:
        raise _Undone("diffusers is not installed") from None
    import torch

    name = request["config"].get("_class_name")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not hasattr(kind, "from_config"):
        raise _Undone(f"diffusers {diffusers.__version__} has no class {name!r}")
    with torch.device("meta"):
        model = kind.from_config(request["config"])
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    stored = {name: shape for name, (_, shape) in request["tensors"].items()}
    if hasattr(model, "_fix_state_dict_keys_on_load"):
        renamed = dict(stored)
        model._fix_state_dict_keys_on_load(renamed)
        stored = renamed
    return {
        "class": name,
        "missing": sorted(wanted.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - wanted.keys()),
        "mismatched": [
            [name, stored[name], wanted[name]]
            for name in sorted(wanted.keys() & stored.keys())
            if stored[name] != wanted[name]
        ],
        "errors": [],
        "rows": None,
        "version": diffusers.__version__,
    }


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise _Undone(f"{error.name} is not installed") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers, torch


def _config(transformers: Any, content: Answer) -> Any:
    """The configuration as transformers' own class reads it; code of the folder is not run."""
    known = content.get("model_type")
    if not isinstance(known, str) or known not in transformers.CONFIG_MAPPING:
        raise _Undone(f"transformers {transformers.__version__} does not know model_type {known!r}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        return transformers.CONFIG_MAPPING[known].from_pretrained(folder, local_files_only=True)


def _class(transformers: Any, content: Answer) -> Any:
    names = content.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if name is None:
        raise _Undone("config.json names no class in architectures")
    if not hasattr(kind, "from_pretrained"):
        raise _Undone(f"transformers {transformers.__version__} has no class {name!r}")
    return kind


def _rows(model: Any) -> int | None:
    """Rows of the input embedding of text."""
    with contextlib.suppress(Exception):
        shape = model.get_input_embeddings().weight.shape
        return int(shape[0]) if len(shape) == 2 else None
    return None


# -- loading ---------------------------------------------------------------------------------------


def _load(request: Answer) -> Answer:
    """Load the folder as its users do. ``request``: ``folder``, ``kind``."""
    folder, kind = request["folder"], request["kind"]
    try:
        with _overheard() as said:
            info = _LOADERS[kind](folder)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise _Undone("the folder has code of its own, which is not run") from None
        raise
    return {"info": info, "said": said[:50]}


def _load_transformers(folder: str) -> Answer:
    transformers, torch = _libraries()
    content = parse_json((Path(folder) / "config.json").read_bytes())
    kind = _class(transformers, content)
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, local_files_only=True,
        torch_dtype="auto",
    )  # fmt: skip
    found: Answer = {key: sorted(map(str, value))[:50] for key, value in info.items() if value}
    found["generated"] = []
    if model.can_generate():
        found["generated"] = _generate(transformers, torch, model.eval(), folder)
    return found


def _generate(transformers: Any, torch: Any, model: Any, folder: str) -> list[int]:
    """A few tokens after a prompt; raises where a number is not finite."""
    files = {path.name for path in Path(folder).iterdir()}
    ids = torch.tensor([[1]])
    if files & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt"}:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        ids = tokenizer("Name a red fruit.", return_tensors="pt")["input_ids"]
        ids = ids if ids.numel() else torch.tensor([[1]])
    if model.main_input_name != "input_ids":
        return []  # it answers to a sound or an image
    with torch.no_grad():
        given = {"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {}
        logits = model(input_ids=ids, **given).logits
        if not torch.isfinite(logits).all():
            raise ValueError("the model's outputs are not finite")
        out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(number) for number in out[0][-NEW_TOKENS:]]


def _load_sentence_transformers(folder: str) -> Answer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise _Undone("sentence-transformers is not installed") from None
    import numpy as np

    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    vector = model.encode("Name a red fruit.")
    if not np.isfinite(vector).all():
        raise ValueError("the model's outputs are not finite")
    return {"dimensions": int(vector.shape[-1])}


def _load_diffusers(folder: str) -> Answer:
    try:
        from diffusers import DiffusionPipeline
    except ImportError:
        raise _Undone("diffusers is not installed") from None
    pipeline = DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )
    return {"components": sorted(pipeline.components)}


def _load_adapter(folder: str) -> Answer:
    transformers, _ = _libraries()
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise _Undone("peft is not installed") from None
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base or not Path(base).is_dir():
        raise _Undone(f"its base model {base!r} is not on this machine")
    content = parse_json((Path(base) / "config.json").read_bytes())
    kind = _class(transformers, content)
    model = kind.from_pretrained(base, local_files_only=True, use_safetensors=True)
    PeftModel.from_pretrained(model, folder, local_files_only=True, use_safetensors=True)
    return {}


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect all warnings and all that libraries log as one."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split())[:500])

    ear = Ear(logging.WARNING)
    names = ("transformers", "diffusers", "sentence_transformers", "peft", "")
    for name in names:
        logging.getLogger(name).addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [
            " ".join(str(w.message).split())[:500]
            for w in caught
            if not issubclass(w.category, _OF_CODE)
        ]
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(ear)
    said[:] = [line for line in dict.fromkeys(said) if not any(part in line for part in _HARMLESS)]


# Said of this machine, of the libraries or of the call, not of the folder.
_OF_CODE = (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
_HARMLESS = (
    " is deprecated", "GPU", "CUDA", "device_map", "fast path", "fallback to torch",
    "not installed", "HF_TOKEN", "implementation for faster", "falling back to naive",
    "unauthenticated requests", "flash",
)  # fmt: skip
_LOADERS: dict[str, Callable[[str], Answer]] = {
    "transformers": _load_transformers,
    "sentence-transformers": _load_sentence_transformers,
    "diffusers": _load_diffusers,
    "adapter": _load_adapter,
}
_BUILDERS: dict[str, Callable[[Answer], Answer]] = {
    "transformers": _build_transformers,
    "diffusers": _build_diffusers,
}
_TASKS: dict[str, Callable[[Answer], Answer]] = {
    "render": _render,
    "build": _build,
    "load": _load,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
