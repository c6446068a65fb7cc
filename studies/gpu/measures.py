"""What a model scores on held-out text and questions.

Models of this size solve no problems, so the measures are those that move at this size: loss and
teacher-forced accuracy on the answer's tokens, and what the model does when it answers by itself.
"""

from __future__ import annotations

import re
from itertools import chain

from tokenizers import Tokenizer

from studies.gpu.corpus import Corpus, share
from studies.gpu.decode import Decoder
from studies.gpu.sizes import Size
from studies.gpu.tokens import Chat, chat_rows, document_rows, encode_chats
from studies.gpu.training import State, Trainer

Scores = dict[str, dict[str, float]]
FORM = re.compile(r"\n#### (-?[\d.,]+)$")
ANSWERED = ("arithmetic", "medicine_new")
LONGEST_PROMPT = 128  # tokens, of the questions answered greedily


class Measures:
    """A fixed set of held-out rows and questions, the same for every model."""

    def __init__(self, trainer: Trainer, tokenizer: Tokenizer, corpus: Corpus) -> None:
        size = trainer.size
        self.trainer = trainer
        self.tokenizer = tokenizer
        self.text = {
            name: document_rows(tokenizer, documents, size.length)
            for name, documents in corpus.held_documents.items()
        }
        for name, rows in self.text.items():
            self.text[name] = type(rows)(rows.inputs[: size.scored], rows.labels[: size.scored])
        chats = {
            name: _chosen(tokenizer, corpus, name, size) for name in sorted(corpus.held_questions)
        }
        self.questions = {
            name: chat_rows(some[: size.scored], size.length, packed=False)
            for name, some in chats.items()
        }
        limit = min(LONGEST_PROMPT, size.length - size.answer_tokens)
        self.asked = {
            name: [c for c in chats[name] if len(c.prompt) <= limit][: size.answered]
            for name in ANSWERED
        }
        self.decoder = Decoder(size, [*chain(*self.asked.values())], trainer.device)

    def of(self, state: State) -> Scores:
        """All scores of one model: by task, then by measure."""
        self.trainer.model.load_state_dict(state)
        scores: Scores = {}
        for name, rows in self.text.items():
            loss, accuracy = self.trainer.score(rows)
            scores[f"text_{name}"] = {"loss": loss, "accuracy": accuracy}
        for name, rows in self.questions.items():
            loss, accuracy = self.trainer.score(rows)
            scores[name] = {"loss": loss, "accuracy": accuracy}
        answers = iter(self.decoder.answers(state))
        for name, chats in self.asked.items():
            scores[name] |= self._behaviour(name, chats, [next(answers) for _ in chats])
        return scores

    def _behaviour(
        self, name: str, chats: list[Chat], answers: list[tuple[list[int], bool]]
    ) -> dict[str, float]:
        """Shares of answers that end their turn, that also have the form asked for, and are right.

        The form is GSM8K's: a last line `#### number`. Only arithmetic has it.
        """
        ended = sum(e for _, e in answers) / len(chats)
        if name != "arithmetic":
            return {"ended": ended}
        found = [
            FORM.search(self.tokenizer.decode(tokens)) if end else None for tokens, end in answers
        ]
        wanted = [FORM.search(self.tokenizer.decode(c.answer[:-1])) for c in chats]
        right = [
            bool(f and w and f[1].replace(",", "") == w[1].replace(",", ""))
            for f, w in zip(found, wanted, strict=True)
        ]
        return {
            "ended": ended,
            "form": sum(f is not None for f in found) / len(chats),
            "right": sum(right) / len(chats),
        }

    def said(self, state: State) -> dict[str, dict[str, str]]:
        """The first held-out question of each kind, the answer wanted, and the model's own."""
        answers = iter(self.decoder.answers(state))
        out = {}
        for name, chats in self.asked.items():
            (tokens, ended), *_ = [next(answers) for _ in chats]
            out[name] = {
                "asked": self.tokenizer.decode(chats[0].prompt),
                "wanted": self.tokenizer.decode(chats[0].answer[:-1]),
                "said": self.tokenizer.decode(tokens) + (" <end>" if ended else " …"),
            }
        return out


def _chosen(tokenizer: Tokenizer, corpus: Corpus, name: str, size: Size) -> list[Chat]:
    """Held-out questions that fit, in an order that belongs to the questions."""
    questions = sorted(corpus.held_questions[name], key=lambda q: share(q.prompt))
    return encode_chats(tokenizer, questions[: 8 * size.scored], size.length, size.answer_tokens)
