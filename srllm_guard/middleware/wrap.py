"""A guard around any callable: what it takes and what it gives, at once or in pieces.

A function that returns a stream is one that gives in pieces: what comes back is then a generator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from srllm_guard.errors import ConfigError
from srllm_guard.middleware.driven import adriven, driven
from srllm_guard.middleware.selectors import Known, Selector, place_of
from srllm_guard.middleware.shapes import TRUSTED_ROLES
from srllm_guard.middleware.sides import Arguments, Side
from srllm_guard.middleware.verbs import Direction, directed
from srllm_guard.middleware.waiting import aclose, close
from srllm_guard.policy import Policy

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.structure.formats import Format

F = TypeVar("F", bound=Callable[..., Any])


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
    chosen = directed(guard, direction)
    if chosen is None:
        if selector is not None:
            raise ConfigError(
                f"{name}_text says where text is while {name}s is False.",
                hint=f"Set {name}s=True, or leave {name}_text out.",
            )
        return None
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


class _Source(Iterator[Any]):
    """The items of a sync stream, and what it returns at its end."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.returned: Any = None

    def __next__(self) -> Any:
        try:
            return next(self._items)
        except StopIteration as end:
            self.returned = end.value
            raise

    def close(self) -> None:
        close(self._items)


def _pieces(after: Side | None, items: Iterator[Any]) -> Generator[Any, Any, Any]:
    """The items of a stream, guarded, and what it returns."""
    if after is None:
        return (yield from items)
    source = _Source(items)
    yield from driven(source, after.pieces(), after.guard.policy)
    # A selector speaks of the items, of which this is none.
    return replace(after, place=Known()).apply(source.returned)


def _apieces(after: Side | None, items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """`_pieces` of an async stream, without blocking the event loop."""
    return _untouched(items) if after is None else adriven(items, after.pieces())


async def _untouched(items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    try:
        async for item in items:
            yield item
    finally:
        await aclose(items)


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
