from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

from srllm_guard import Blocked, Policy
from srllm_guard.middleware.driven import Stage, adriven, driven
from tests.checks import guard

Run = Callable[..., None]

PATIENT = Policy(max_holdback_ms=None)


class Holding:
    """Holds one item back; those in capitals are work."""

    due = None

    def __init__(self, last: Exception | None = None) -> None:
        self.threads: list[str] = []
        self._held: list[str] = []
        self._last = last

    def feed(self, item: str) -> Iterable[str]:
        shown, self._held = self._held, [item]
        return self._work(shown) if item.isupper() else shown

    def flush(self) -> Iterable[str]:
        return ()

    def close(self) -> Iterator[str]:
        yield from self._held
        if self._last is not None:
            raise self._last

    def _work(self, shown: list[str]) -> Iterator[str]:
        self.threads.append(threading.current_thread().name)
        yield from shown


def sync(into: list[str], items: Iterable[str], stage: Stage, **more: Any) -> None:
    into.extend(driven(items, stage, PATIENT, **more))


def asynchronous(into: list[str], items: Iterable[str], stage: Stage, **more: Any) -> None:
    async def source() -> AsyncIterator[str]:
        for item in items:
            yield item

    async def run() -> None:
        async for shown in adriven(source(), stage, **more):
            into.append(shown)  # noqa: PERF401 - a comprehension would be lost with the error

    asyncio.run(run())


both = pytest.mark.parametrize("run", [sync, asynchronous])


def broken(*items: str) -> Iterator[str]:
    yield from items
    raise OSError("gone")


@both
def test_all_is_given_in_order(run: Run) -> None:
    found: list[str] = []
    run(found, "aBc", Holding())
    assert found == ["a", "B", "c"]


@both
def test_an_error_of_the_items_comes_after_what_was_held(run: Run) -> None:
    found: list[str] = []
    with pytest.raises(OSError, match="gone"):
        run(found, broken("a", "b"), Holding())
    assert found == ["a", "b"]


@both
def test_an_error_of_the_end_comes_after_what_was_held(run: Run) -> None:
    found: list[str] = []
    with pytest.raises(TypeError, match="end"):
        run(found, "ab", Holding(TypeError("end")))
    assert found == ["a", "b"]


@both
def test_only_a_block_goes_before_an_error_of_the_items(run: Run) -> None:
    found: list[str] = []
    with pytest.raises(OSError, match="gone"):
        run(found, broken("a"), Holding(TypeError("end")))
    blocked = Blocked(guard(ladder=("block",)).moderate("You idiot."))
    with pytest.raises(Blocked):
        run(found, broken("b"), Holding(blocked))
    assert found == ["a", "b"]


@both
def test_nothing_is_drawn_once_it_is_over(run: Run) -> None:
    found: list[str] = []
    run(found, broken("a", "b"), Holding(), over=lambda: found == ["a"])
    assert found == ["a", "b"]


def test_only_work_goes_to_a_thread() -> None:
    stage = Holding()
    asynchronous([], "aBcD", stage)
    assert len(stage.threads) == 2
    assert "MainThread" not in stage.threads
    stage = Holding()
    sync([], "aBcD", stage)
    assert stage.threads == ["MainThread"] * 2
