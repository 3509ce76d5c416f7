"""Streams through what holds them back: one loop for threads, and one for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Protocol

from srllm_guard.errors import Blocked
from srllm_guard.middleware.waiting import Waits, atimed, timed

if TYPE_CHECKING:
    from srllm_guard.policy import Policy


class Stage(Waits, Protocol):
    """What holds the items of one stream back, and gives others.

    Each call gives what may be shown by then. Where the model may have work, it gives an iterator,
    and the work is done as that is drawn from; a list or tuple was no work. What is given before an
    error was verified before it.

    Raises:
        Blocked: a text was withheld, and the policy says `on_block="raise"`.
    """

    def feed(self, item: Any, /) -> Iterable[Any]:
        """What may be shown, now that this item has come."""
        ...

    def flush(self) -> Iterable[Any]:
        """What was held for long enough."""
        ...

    def close(self) -> Iterable[Any]:
        """All of the rest, now that no item comes any more."""
        ...


def driven(
    items: Iterable[Any], stage: Stage, policy: Policy, *, over: Callable[[], bool] = lambda: False
) -> Generator[Any, None, None]:
    """Yield what a stage gives for the items; they are closed with this generator.

    What the items raise is raised after all that the stage had of them. They are drawn in a thread
    of their own only where something can be due before the next one.

    Args:
        items: what comes in.
        stage: used for this stream alone.
        policy: of the stage.
        over: whether nothing more will be shown, so that no item is asked for.
    """
    thread = policy.max_holdback_ms is not None and policy.mode == "enforce"
    with closing(timed(items, lambda: stage.due, thread=thread)) as arriving:
        ended = False
        while not ended:
            broken = None
            try:
                drawn = None if over() else next(arriving, None)
            except Exception as error:  # noqa: BLE001 - raised again after what came before it
                drawn, broken = None, error
            ended = drawn is None
            yield from _given(stage, drawn, broken)


async def adriven(
    items: AsyncIterable[Any], stage: Stage, *, over: Callable[[], bool] = lambda: False
) -> AsyncGenerator[Any, None]:
    """`driven` without blocking the event loop: a thread does what the model has to do."""
    async with aclosing(atimed(items, lambda: stage.due)) as arriving:
        ended = False
        while not ended:
            broken = None
            try:
                drawn = None if over() else await anext(arriving, None)
            except Exception as error:  # noqa: BLE001 - raised again after what came before it
                drawn, broken = None, error
            ended = drawn is None
            shown: Iterable[Any] = _given(stage, drawn, broken)
            failed: Exception | None = None
            if isinstance(shown, Iterator):
                shown, failed = await asyncio.to_thread(_collected, shown)
            for each in shown:
                yield each
            if failed is not None:
                raise failed


def _given(stage: Stage, drawn: tuple[Any, ...] | None, broken: Exception | None) -> Iterable[Any]:
    """What a stage gives for what was drawn: an item, nothing in time, or None at the end."""
    if drawn is None:
        return _rest(stage, broken)
    return stage.feed(*drawn) if drawn else stage.flush()


def _rest(stage: Stage, broken: Exception | None) -> Iterator[Any]:
    """The rest, and then the error that ended the items; only a block goes before that."""
    try:
        yield from stage.close()
    except Blocked:
        raise
    except Exception:
        if broken is None:
            raise
    if broken is not None:
        raise broken


def _collected(shown: Iterator[Any]) -> tuple[list[Any], Exception | None]:
    """All that an iterator gives, and the error that ended it."""
    found: list[Any] = []
    try:
        found.extend(shown)
    except Exception as error:  # noqa: BLE001 - raised where it is waited for
        return found, error
    return found, None
