"""A conversation with a mix, and the same prompt put to the models that it was made from."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paramdelta.errors import MisfitError, ParamDeltaError
from paramdelta.live.model import load, load_tokenizer, recipe_of, set_scale
from paramdelta.planning.plan import Plan
from paramdelta.recipe import Delta, Recipe

Show = Callable[[str], None]


class Speaker:
    """A model and its tokenizer. ``limit``: tokens of an answer, at most."""

    def __init__(self, source: Recipe | Plan, limit: int, **options: Any) -> None:
        """``options``: those of `paramdelta.load`. Raises as `load`, and MisfitError if there is no
        chat template.
        """
        self.tokenizer = load_tokenizer(source)
        if not self.tokenizer.chat_template:
            raise MisfitError(
                "the mix has no chat template, so it cannot converse",
                code="no-chat-template",
                remedy="check that post is a chat model; its chat template becomes the mix's",
            )
        self.model = load(source, **options)
        if not self.model.can_generate():
            raise MisfitError(
                f"{type(self.model).__name__} does not generate text", code="cannot-generate"
            )
        self.limit = limit

    def answer(self, messages: Sequence[dict[str, str]], show: Show) -> str:
        """Continue a conversation; ``show`` gets the text piece by piece.

        Raises:
            MisfitError: the template refuses the conversation, or it fills the model's context.
        """
        given = self._prompt(messages)
        length = given["input_ids"].shape[1]
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = self.limit if context is None else min(self.limit, context - length)
        if room < 1:
            raise MisfitError(
                "the conversation is longer than the model's context",
                code="conversation-too-long",
                expected=f"less than {context} tokens",
                got=f"{length} tokens",
                remedy="/clear starts a new one",
            )
        pieces: list[str] = []
        streamer = _streamer(self.tokenizer, pieces, show)
        with contextlib.suppress(KeyboardInterrupt):  # the answer ends, the conversation goes on
            self.model.generate(
                **given.to(self.model.device), streamer=streamer, max_new_tokens=room
            )
        return "".join(pieces).strip()

    def _prompt(self, messages: Sequence[dict[str, str]]) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            raise MisfitError(
                "the chat template refuses the conversation",
                code="template-refused",
                got=str(error),
                remedy="/clear starts a new one",
            ) from None


class Chat:
    """A conversation with a mix. ``system``: the system prompt; "" for none."""

    def __init__(
        self, source: Recipe | Plan, limit: int = 512, system: str = "", **options: Any
    ) -> None:
        """The other arguments are those of `Speaker`."""
        from transformers.utils import logging

        self._options = options | {"limit": limit}
        self._mix = Speaker(source, **self._options)
        logging.disable_progress_bar()  # from now on, bars would be between the answers
        self._parents: dict[Delta, Speaker] = {}
        self._scale: float | Sequence[float] = 1.0
        self._system = system
        self.clear()

    @property
    def recipe(self) -> Recipe:
        """The recipe with the scale that the mix has now."""
        return recipe_of(self._mix.model)

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def answer(self, text: str, show: Show) -> str:
        """Say something to the mix. Raises as `Speaker.answer`; then it was not said."""
        messages = [*self.messages, {"role": "user", "content": text}]
        told = self._mix.answer(messages, show)
        self.messages = [*messages, {"role": "assistant", "content": told}]
        return told

    def set_scale(self, scale: float | Sequence[float]) -> None:
        """Mix at another scale; raises as `paramdelta.set_scale`. What was said stays."""
        set_scale(self._mix.model, scale)
        self._scale = scale

    def compare(self, text: str, start: Callable[[str], None], show: Show) -> None:
        """Say something, without what was said before, to the models of the recipe and to the mix.

        ``start`` gets the name of each: base, post, new base, ParamΔ; ``show`` its answer. The
        models of a Δ are loaded when they are first needed, once, and stay in memory. Where a Δ has
        no post and base of its own, because it is stored or an adapter, they are left out.
        """
        system = [message for message in self.messages if message["role"] == "system"]
        messages = [*system, {"role": "user", "content": text}]
        for name, speaker in self._speakers():
            start(name)
            try:
                speaker().answer(messages, show)
            except ParamDeltaError as error:
                show(str(error))
            show("\n")

    def _speakers(self) -> Iterator[tuple[str, Callable[[], Speaker]]]:
        deltas = self.recipe.deltas
        pairs = [delta for delta in deltas if delta.base is not None]
        for delta in pairs:
            number = f" {deltas.index(delta) + 1}" if len(deltas) > 1 else ""
            pair = Delta(delta.post, delta.base)
            yield f"base{number}", lambda pair=pair: self._parent(pair, 0.0)  # type: ignore[misc]
            yield f"post{number}", lambda pair=pair: self._parent(pair, 1.0)  # type: ignore[misc]
        try:
            yield "new base", lambda: self._at(0.0)
        finally:
            self._at(self._scale)
        yield "ParamΔ", lambda: self._mix

    def _parent(self, pair: Delta, scale: float) -> Speaker:
        """Base, or post: the mix of their own Δ onto base."""
        if pair not in self._parents:
            recipe = Recipe(str(pair.base), [pair], allow=self.recipe.allow)
            self._parents[pair] = Speaker(recipe, **self._options)
        set_scale(self._parents[pair].model, scale)
        return self._parents[pair]

    def _at(self, scale: float | Sequence[float]) -> Speaker:
        set_scale(self._mix.model, scale)
        return self._mix


def _streamer(tokenizer: Any, pieces: list[str], show: Show) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]
        """Hands on the text of an answer as it grows."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            """See TextStreamer."""
            new = text if any(map(str.strip, pieces)) else text.lstrip()
            if new:
                pieces.append(new)
                show(new)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
