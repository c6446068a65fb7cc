"""Asks a checkpoint questions in its chat format. The only module that imports torch."""

import contextlib
import importlib.util
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta.errors import UsageError

NEW_TOKENS = 32
BATCH = 128


@dataclass(frozen=True)
class Answer:
    """The answer of a model, and whether the model ended its turn within `NEW_TOKENS` tokens."""

    text: str
    ended: bool

    def is_right(self, expected: str) -> bool:
        """Exactly the expected text, and the turn ended properly."""
        return self.ended and self.text == expected


def require_packages() -> None:
    """Raise UsageError if torch or transformers are not installed. Neither is imported."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise _missing()


def _missing() -> UsageError:
    return UsageError(
        "the demo needs torch and transformers",
        code="missing-package",
        where=sys.executable,
        remedy="install them with: pip install torch transformers; `paramdelta mix` needs neither",
    )


class Model:
    """A loaded checkpoint that answers by greedy decoding."""

    def __init__(self, folder: Path, form: Path) -> None:
        """Load the weights of ``folder``, and tokenizer and chat template of ``form``.

        Raises:
            UsageError: torch and transformers are not installed.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are on this machine
        try:
            import torch
            import transformers
        except ImportError:
            raise _missing() from None
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        with contextlib.redirect_stderr(io.StringIO()):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(form)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32
            ).eval()
        settings = transformers.GenerationConfig.from_pretrained(form)
        ends = settings.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._settings = transformers.GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(self._ends),
            pad_token_id=settings.pad_token_id,
        )
        self._tokenizer.padding_side = "left"

    def answer(self, questions: list[str]) -> list[Answer]:
        """Answer every question in a separate conversation."""
        answers: list[Answer] = []
        for start in range(0, len(questions), BATCH):
            prompts = [self._prompt(q) for q in questions[start : start + BATCH]]
            batch = self._tokenizer(
                prompts, add_special_tokens=False, padding=True, return_tensors="pt"
            )
            with self._torch.inference_mode():
                tokens = self._model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    generation_config=self._settings,
                )
            new = tokens[:, batch["input_ids"].shape[1] :].tolist()
            answers += [self._read(row) for row in new]
        return answers

    def _prompt(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        text: Any = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def _read(self, tokens: list[int]) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Answer(str(text).strip(), end is not None)
