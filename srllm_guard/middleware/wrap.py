"""A guard around any callable: what it takes and what it gives, at once or in pieces.

A function that returns a stream is one that gives in pieces: what comes back is then a generator.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from srllm_guard.errors import ConfigError
from srllm_guard.middleware.selectors import Known, Selector, place_of
from srllm_guard.middleware.shapes import TRUSTED_ROLES
from srllm_guard.middleware.sides import Arguments, Side
from srllm_guard.middleware.waiting import atimed, timed
from srllm_guard.policy import Policy

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.middleware.verbs import Direction
    from srllm_guard.structure.formats import Format

F = TypeVar("F", bound=Callable[..., Any])

_END: Any = object()


def wrap(
    guard: Guard,
    function: F,
    *,
    inputs: Direction = False,
    outputs: Direction = True,
    input_text: Selector | None = None,
    output_text: Selector | None = None,
    format: Format = "text",
) -> F:
    """See `Guard.wrap`."""
    if isinstance(function, classmethod | staticmethod):
        inner = wrap(
            guard,
            function.__func__,
            inputs=inputs,
            outputs=outputs,
            input_text=input_text,
            output_text=output_text,
            format=format,
        )
        return cast("F", type(function)(inner))
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"expected a function or another callable, got {_described(function)}")
    before = _side(guard, inputs, "input", input_text, trusted=TRUSTED_ROLES)
    after = _side(guard, outputs, "output", output_text, format=format)
    taken = None if before is None else Arguments.of(function, before)
    return cast("F", _named(_around(_Call(function, taken, after)), function))


def _side(
    guard: Guard, direction: Direction, name: str, selector: Selector | None, **options: Any
) -> Side | None:
    """The side for one direction; None where it is not guarded."""
    if not isinstance(direction, bool | Policy):
        raise ConfigError(
            f"{name}s is a {type(direction).__name__}.", hint="Give True, False or a Policy."
        )
    place = place_of(selector)
    if direction is False:
        if selector is not None:
            raise ConfigError(
                f"{name}_text says where text is while {name}s is False.",
                hint=f"Set {name}s=True, or leave {name}_text out.",
            )
        return None
    chosen = guard.with_policy(direction) if isinstance(direction, Policy) else guard
    return Side(chosen, place, **options)


@dataclass(frozen=True, slots=True)
class _Call:
    """A function with what guards it; None guards nothing."""

    function: Callable[..., Any]
    taken: Arguments | None
    after: Side | None

    def start(self, args: Any, kwargs: Any) -> Any:
        """What the function returns for guarded arguments."""
        if self.taken is not None:
            args, kwargs = self.taken.guarded(args, kwargs)
        return self.function(*args, **kwargs)

    async def astart(self, args: Any, kwargs: Any) -> Any:
        """`start` without blocking the event loop; what is returned is not awaited."""
        if self.taken is not None:
            args, kwargs = await self.taken.aguarded(args, kwargs)
        return self.function(*args, **kwargs)


def _around(call: _Call) -> Callable[..., Any]:
    """A function of the same kind: sync or async, at once or in pieces."""
    for test, made in (
        (inspect.isasyncgenfunction, _async_generator),
        (inspect.isgeneratorfunction, _generator),
        (inspect.iscoroutinefunction, _coroutine),
    ):
        # Of an object that can be called it is its method that is of a kind.
        if test(call.function) or test(type(call.function).__call__):
            return made(call)
    return _plain(call)


def _async_generator(call: _Call) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(_apieces(call.after, await call.astart(args, kwargs))) as items:
            async for item in items:
                yield item

    return guarded


def _generator(call: _Call) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from _pieces(call.after, call.start(args, kwargs)))

    return guarded


def _coroutine(call: _Call) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await _awaited(call.after, await call.astart(args, kwargs))

    return guarded


def _plain(call: _Call) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = call.start(args, kwargs)
        if call.after is None:
            return result
        if inspect.isawaitable(result):
            return _awaited(call.after, result)
        made = _streamed(call.after, result)
        return call.after.apply(result) if made is None else made

    return guarded


async def _awaited(after: Side | None, result: Awaitable[Any]) -> Any:
    found = await result
    if after is None:
        return found
    made = _streamed(after, found)
    return await after.aapply(found) if made is None else made


def _streamed(after: Side, result: Any) -> Any:
    """A generator where the result is a stream, else None."""
    if isinstance(result, AsyncIterator):
        return _apieces(after, result)
    return _pieces(after, result) if isinstance(result, Iterator) else None


class _Source:
    """The items of a sync stream, each in a tuple, and what it returns at its end."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.returned: Any = None

    def items(self) -> Generator[tuple[Any], None, None]:
        try:
            while True:
                try:
                    item = next(self._items)
                except StopIteration as end:
                    self.returned = end.value
                    return
                yield (item,)
        finally:
            close = getattr(self._items, "close", None)
            if callable(close):
                close()


async def _asource(items: AsyncIterator[Any]) -> AsyncGenerator[tuple[Any], None]:
    try:
        async for item in items:
            yield (item,)
    finally:
        close = getattr(items, "aclose", None) or getattr(items, "close", None)
        closing = close() if callable(close) else None
        if inspect.isawaitable(closing):
            await closing


def _pieces(after: Side | None, items: Iterator[Any]) -> Generator[Any, Any, Any]:
    """The items of a stream, guarded, and what it returns."""
    if after is None:
        return (yield from items)
    pieces = after.pieces()
    source = _Source(items)
    error: Exception | None = None
    # Items are drawn in another thread, and only where somebody waits for a time as well.
    patient = after.guard.policy.max_holdback_ms is None
    drawn = source.items() if patient else timed(source.items(), lambda: pieces.due)
    with closing(drawn) as arriving:
        while True:
            try:
                item = next(arriving, _END)
            except Exception as raised:  # noqa: BLE001 - raised again after what came before it
                error = raised
                break
            if item is _END:
                break
            yield from pieces.flush() if item is None else pieces.take(item[0])
        yield from pieces.end()
    if error is not None:
        raise error
    # A selector speaks of the items, of which this is none.
    return replace(after, place=Known()).apply(source.returned)


async def _apieces(after: Side | None, items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """`_pieces` of an async stream, without blocking the event loop."""
    if after is None:
        async for (only,) in _asource(items):
            yield only
        return
    pieces = after.pieces()
    error: Exception | None = None
    async with aclosing(atimed(_asource(items), lambda: pieces.due)) as arriving:
        while True:
            try:
                item = await anext(arriving, _END)
            except Exception as raised:  # noqa: BLE001 - raised again after what came before it
                error = raised
                break
            if item is _END:
                break
            work = pieces.flush if item is None else functools.partial(pieces.take, item[0])
            for shown in await asyncio.to_thread(work):
                yield shown
        for shown in await asyncio.to_thread(pieces.end):
            yield shown
    if error is not None:
        raise error


def _named(made: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`made` with name, docstring, annotations and signature of the function that it guards."""
    origin = function
    while isinstance(origin, functools.partial):
        origin = origin.func
    functools.update_wrapper(made, origin, updated=("__dict__",) if _is_plain(origin) else ())
    if not hasattr(origin, "__name__"):
        made.__name__, made.__qualname__ = type(origin).__name__, type(origin).__qualname__
    made.__wrapped__ = function  # type: ignore[attr-defined]
    return made


def _is_plain(function: Callable[..., Any]) -> bool:
    return inspect.isfunction(function) or inspect.ismethod(function)


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
