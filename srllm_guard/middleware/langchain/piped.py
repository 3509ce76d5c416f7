"""Items of a stream through what holds them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Protocol

from srllm_guard.middleware.waiting import Waits, atimed, timed


class Stage(Waits, Protocol):
    """What holds items back and gives others."""

    def feed(self, item: Any, /) -> Iterable[Any]:
        """What may be shown, now that this item has come."""
        ...

    def flush(self) -> Iterable[Any]:
        """What was held for long enough."""
        ...

    def close(self) -> Iterable[Any]:
        """The rest."""
        ...


def piped(items: Iterable[Any], stage: Stage) -> Generator[Any, None, None]:
    """Yield what a stage gives; the items are closed with the generator."""
    with closing(timed(items, lambda: stage.due)) as timely:
        for item in timely:
            yield from stage.flush() if item is None else stage.feed(item)
    yield from stage.close()


async def apiped(items: AsyncIterable[Any], stage: Stage) -> AsyncGenerator[Any, None]:
    """`piped`, with the stage's work in a thread."""
    async with aclosing(atimed(items, lambda: stage.due)) as timely:
        async for item in timely:
            work = stage.flush if item is None else partial(stage.feed, item)
            for shown in await asyncio.to_thread(work):
                yield shown
    for shown in await asyncio.to_thread(stage.close):
        yield shown
