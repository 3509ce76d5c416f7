"""Wait for the next item of an iterator, but no longer than until something is due."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

Due = Callable[[], float | None]
"""`time.monotonic()` at which waiting ends; None where nothing is waited for."""


class Waits(Protocol):
    """What something is due for."""

    @property
    def due(self) -> float | None:
        """`time.monotonic()` at which it is; None for never."""
        ...


def earliest(parts: Iterable[Waits]) -> float | None:
    """When the first of several is due; None for never."""
    return min((at for part in parts if (at := part.due) is not None), default=None)


def timed(
    items: Iterable[T], due: Due, *, thread: bool = True
) -> Generator[tuple[T, ...], None, None]:
    """Yield each item in a tuple, and an empty one when `due()` has passed before the next came.

    The items are drawn in a thread of their own, one at a time and only when one is asked for, in a
    copy of the caller's context. What they raise is raised here, in order.

    Args:
        items: closed, if it can be, when this generator is; where it is in the middle of its next
            item then, it is closed as soon as that has come.
        due: asked before each wait; it has to move on once an empty tuple was yielded.
        thread: False where nothing will ever be due; the items are drawn right here then.
    """
    if not thread:
        yield from _drawn_here(items)
        return
    source = _Source(items)
    try:
        while True:
            source.ask()
            while (drawn := source.wait(_left(due()))) is None:
                yield ()
            if drawn.error is not None:
                raise drawn.error
            if not drawn.items:
                return
            yield drawn.items
    finally:
        source.close()


async def atimed(items: AsyncIterable[T], due: Due) -> AsyncGenerator[tuple[T, ...], None]:
    """`timed` of an async iterable.

    The items are drawn by one task, all of them, so that what spans several of them (a timeout, a
    task group) works; however this generator ends, that task was cancelled and has ended before.
    """
    turns: asyncio.Queue[asyncio.Future[_Drawn[T]]] = asyncio.Queue()
    task = asyncio.create_task(_draw(items, turns))
    try:
        while True:
            turn: asyncio.Future[_Drawn[T]] = asyncio.get_running_loop().create_future()
            turns.put_nowait(turn)
            while not (await asyncio.wait({turn}, timeout=_left(due())))[0]:
                yield ()
            drawn = turn.result()
            if drawn.error is not None:
                raise drawn.error
            if not drawn.items:
                break
            yield drawn.items
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()  # what the items raised when they were closed


def close(items: object, iterator: object = None) -> None:
    """Close an iterator and what it came from, each if it can be."""
    for each in (items,) if iterator is items else (iterator, items):
        method = getattr(each, "close", None)
        if callable(method):
            method()


async def aclose(items: object, iterator: object = None) -> None:
    """`close` of what is asynchronous; some streams call it `close` as well."""
    for each in (items,) if iterator is items else (iterator, items):
        method = getattr(each, "aclose", None) or getattr(each, "close", None)
        closing = method() if callable(method) else None
        if inspect.isawaitable(closing):
            await closing


@dataclass(frozen=True, slots=True)
class _Drawn(Generic[T]):
    """What came of one request: an item, an error, or neither at the end."""

    items: tuple[T, ...] = ()
    error: BaseException | None = None


class _Source(Generic[T]):
    """Draws items in a thread, one for each request."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._drawn: SimpleQueue[_Drawn[T]] = SimpleQueue()
        self._pending = False
        self._fault: Exception | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="srllm-guard-stream", daemon=True
        )
        self._thread.start()

    def ask(self) -> None:
        """Request the next item."""
        self._pending = True
        self._requests.put(True)

    def wait(self, seconds: float | None) -> _Drawn[T] | None:
        """What came of the request, or None if nothing did in time."""
        try:
            drawn = self._drawn.get(timeout=seconds)
        except Empty:
            return None
        self._pending = False
        return drawn

    def close(self) -> None:
        """Close the items, and raise what they raise at that, unless they still are at work."""
        self._requests.put(False)
        if not self._pending:
            self._thread.join()
            if self._fault is not None:
                raise self._fault

    def _run(self) -> None:
        items: Iterator[T] | None = None
        while self._requests.get():
            try:
                items = iter(self._items) if items is None else items
                drawn = _Drawn((next(items),))
            except StopIteration:
                drawn = _Drawn()
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                drawn = _Drawn(error=error)
            self._drawn.put(drawn)
            del drawn  # not kept alive until the next one is asked for
        try:
            close(self._items, items)
        except Exception as error:  # noqa: BLE001 - likewise
            self._fault = error


def _drawn_here(items: Iterable[T]) -> Generator[tuple[T], None, None]:
    iterator = iter(items)
    try:
        for item in iterator:
            yield (item,)
    finally:
        close(items, iterator)


async def _draw(items: AsyncIterable[T], turns: asyncio.Queue[asyncio.Future[_Drawn[T]]]) -> None:
    """Draw an item for each turn, until it is cancelled; then close the items."""
    iterator: AsyncIterator[T] | None = None
    try:
        while True:
            turn = await turns.get()
            try:
                iterator = aiter(items) if iterator is None else iterator
                drawn = _Drawn((await anext(iterator),))
            except StopAsyncIteration:
                drawn = _Drawn()
            except asyncio.CancelledError:
                turn.cancel()
                raise
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                drawn = _Drawn(error=error)
            turn.set_result(drawn)
            del drawn, turn
    finally:
        await aclose(items, iterator)


def _left(due: float | None) -> float | None:
    return None if due is None else max(0.0, due - time.monotonic())
