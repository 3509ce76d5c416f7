"""Answers of chat models with what LangChain puts around them, whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, BaseMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.utils._merge import merge_dicts

from srllm_guard.middleware.langchain.chunks import MessageStream
from srllm_guard.middleware.langchain.messages import Walk, walk_message, without_tokens

if TYPE_CHECKING:
    from srllm_guard.guard import Guard

OnAnswer = Callable[[BaseMessage], object]
"""Called with an answer that was released."""


def walk_generations(generations: list[ChatGeneration], walk: Walk) -> list[ChatGeneration]:
    """Visit the messages of generations."""
    new = []
    for generation in generations:
        message = walk_message(generation.message, walk)
        if message is not generation.message:
            info = generation.generation_info
            generation = ChatGeneration(
                message=message, generation_info=info and without_tokens(info)
            )
        new.append(generation)
    return generations if all(a is b for a, b in zip(generations, new, strict=True)) else new


class GenerationStream:
    """The state of one answer in chunks; see `MessageStream`.

    What the provider said about the whole answer (`generation_info`) comes with the last chunk.
    """

    def __init__(self, guard: Guard, on_answer: OnAnswer | None) -> None:
        self._messages = MessageStream(guard)
        self._observes = guard.policy.mode == "observe"
        self._on_answer = on_answer
        self._info: dict[str, Any] = {}
        self._shown: list[BaseMessageChunk] = []

    @property
    def due(self) -> float | None:
        """When `flush` is due by `time.monotonic()`; None while nothing waits for it."""
        return self._messages.due

    def feed(self, chunk: ChatGenerationChunk) -> Iterator[ChatGenerationChunk]:
        """Take a chunk, and give the chunks that may be shown now."""
        self._info = merge_dicts(self._info, chunk.generation_info or {})
        shown = self._made(self._messages.feed(chunk.message))
        return self._ended(shown) if _is_last(chunk.message) else shown

    def flush(self) -> Iterator[ChatGenerationChunk]:
        """Give what was held too long, moderated as it stands."""
        return self._made(self._messages.flush())

    def close(self) -> Iterator[ChatGenerationChunk]:
        """Give the rest."""
        return self._ended(self._made(self._messages.close()))

    def _ended(self, shown: Iterator[ChatGenerationChunk]) -> Iterator[ChatGenerationChunk]:
        """The last chunks, with what the provider said about the whole answer."""
        last: list[ChatGenerationChunk] = []
        try:
            for each in shown:
                yield from last
                last = [each]
        except Exception:
            yield from last
            raise
        info, self._info = self._info if self._observes else without_tokens(self._info), {}
        if info:
            (chunk,) = last or self._made([self._messages.blank()])
            last = [ChatGenerationChunk(message=chunk.message, generation_info=info)]
        yield from last

    def tell(self) -> None:
        """Tell who listens of the whole answer."""
        if self._on_answer is not None and self._shown:
            first, *others = self._shown
            self._on_answer(first + others if others else first)

    def _made(self, messages: Iterable[BaseMessageChunk]) -> Iterator[ChatGenerationChunk]:
        for message in messages:
            if self._on_answer is not None:
                self._shown.append(message)
            yield ChatGenerationChunk(message=message)


def _is_last(message: BaseMessageChunk) -> bool:
    return getattr(message, "chunk_position", None) == "last"
