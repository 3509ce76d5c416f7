"""Streams: text that arrives in pieces and leaves in verified pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import aclosing, closing
from typing import TYPE_CHECKING

from srllm_guard.middleware.waiting import atimed, timed

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation


class TextStream:
    """One text that arrives in pieces; its state is here, never on the guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._parts: list[str] = []
        self._result: Moderation | None = None

    def feed(self, chunk: str) -> str:
        """Take a piece of the text; returns what may be shown now, often nothing."""
        if not isinstance(chunk, str):
            raise TypeError(f"expected str, got {type(chunk).__name__}")
        self._parts.append(chunk)
        return ""

    def flush(self) -> str:
        """Judge what is held as if it were complete."""
        return ""

    def close(self) -> str:
        """End the text; returns the rest of what may be shown."""
        self._result = self._guard.moderate("".join(self._parts))
        return self._guard.released(self._result)

    @property
    def due(self) -> float | None:
        """`time.monotonic()` at which `flush` is due; None when nothing is held."""
        return None

    @property
    def result(self) -> Moderation | None:
        """The whole text; None as long as it has not ended."""
        return self._result


def stream(guard: Guard, chunks: Iterable[str]) -> Generator[str, None, None]:
    """See `Guard.stream`."""
    text = TextStream(guard)
    with closing(timed(chunks, lambda: text.due)) as pieces:
        for piece in pieces:
            if shown := text.flush() if piece is None else text.feed(piece):
                yield shown
    if shown := text.close():
        yield shown


async def astream(guard: Guard, chunks: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    """See `Guard.astream`."""
    text = TextStream(guard)
    async with aclosing(atimed(chunks, lambda: text.due)) as pieces:
        async for piece in pieces:
            if piece is None:
                shown = await asyncio.to_thread(text.flush)
            else:
                shown = await asyncio.to_thread(text.feed, piece)
            if shown:
                yield shown
    if shown := await asyncio.to_thread(text.close):
        yield shown
