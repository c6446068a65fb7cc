"""Greedy answers from a model, many at once.

All rows walk from position 0 together: inside its prompt a row is told its next token, after it
the row takes its own. So there is one step, always of the same shape, and on a GPU it is captured
once as a graph and replayed for every position of every model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from studies.gpu.model import Llama
from studies.gpu.sizes import Size
from studies.gpu.tokens import END, Chat

LOOK_EVERY = 32  # positions between two looks at whether all rows have ended


class Decoder:
    """Answers a fixed set of prompts with whatever weights it is given."""

    def __init__(self, size: Size, chats: list[Chat], device: torch.device) -> None:
        self.prompts = [len(c.prompt) for c in chats]
        self.length = min(size.length, max(self.prompts) + size.answer_tokens)
        on_gpu = device.type == "cuda"
        self.model = Llama(size).to(device).eval()
        for parameter in self.model.parameters():  # not the rotations: they need float32
            parameter.data = parameter.data.to(torch.bfloat16 if on_gpu else torch.float32)
        told = torch.full((len(chats), self.length), -1)
        for row, chat in zip(told, chats, strict=True):
            row[: len(chat.prompt)] = torch.tensor(chat.prompt)
        self.told = told.to(device)
        self.tokens = self.told.clone()
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        shape = (len(chats), size.heads, self.length, size.hidden // size.heads)
        dtype = self.model.model.norm.weight.dtype
        self.cache = [
            (
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(size.layers)
        ]
        self.graph = self._capture() if on_gpu else None

    def _step(self) -> None:
        """Write the token at place + 1 of every row, and move on."""
        now = self.tokens.index_select(1, self.place)[:, 0]
        own = self.model.step(now, self.place, self.cache).argmax(-1)
        self.place += 1
        told = self.told.index_select(1, self.place)[:, 0]
        self.tokens.index_copy_(1, self.place, torch.where(told >= 0, told, own)[:, None])

    def _capture(self) -> torch.cuda.CUDAGraph:
        """One step as a graph, after a warm-up on a side stream as CUDA asks for."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._step()
        return graph

    @torch.no_grad()
    def answers(self, state: dict[str, Tensor]) -> list[tuple[list[int], bool]]:
        """For each prompt the tokens answered, without END, and whether the turn was ended."""
        self.model.load_state_dict(state)
        self.tokens.copy_(self.told)
        self.place.zero_()
        after = torch.arange(self.length, device=self.told.device)
        inside = after < torch.tensor(self.prompts, device=self.told.device)[:, None]
        for number in range(self.length - 1):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step()
            if number % LOOK_EVERY == 0:
                ended = (self.tokens == END) & ~inside
                if bool(ended.any(1).all()):
                    break
        out = []
        for start, row in zip(self.prompts, self.tokens.tolist(), strict=True):
            answer = row[start:]
            ended = END in answer
            out.append((answer[: answer.index(END)] if ended else answer, ended))
        return out
