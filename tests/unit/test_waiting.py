from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from srllm_guard.middleware.waiting import atimed, timed

NAME = contextvars.ContextVar("NAME", default="nobody")


def never() -> None:
    return None


def test_items_come_in_order() -> None:
    assert list(timed(iter("abc"), never)) == [("a",), ("b",), ("c",)]
    assert list(timed([], never)) == []


def test_nothing_comes_when_it_is_due() -> None:
    ready = threading.Event()

    def slow() -> Iterator[str]:
        yield "a"
        ready.wait(10)
        yield "b"

    due: list[float | None] = [None]
    found = []
    for item in timed(slow(), lambda: due[0]):
        found.append(item)
        due[0] = time.monotonic() if item == ("a",) else None
        if not item:
            ready.set()
    assert found == [("a",), (), ("b",)]


def test_an_error_comes_after_what_came_before_it() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise ValueError("broken")

    found: list[tuple[str, ...]] = []
    with pytest.raises(ValueError, match="broken"):
        found.extend(timed(broken(), never))
    assert found == [("a",)]


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    drawn = []

    def counted() -> Iterator[int]:
        for n in range(5):
            drawn.append(n)
            yield n

    items = timed(counted(), never)
    assert next(items) == (0,)
    assert drawn == [0]
    items.close()


def test_closing_closes_the_items_in_the_callers_context() -> None:
    seen = []

    def named() -> Iterator[str]:
        try:
            yield NAME.get()
            yield "more"
        finally:
            seen.append(NAME.get())

    NAME.set("Ed")
    items = timed(named(), never)
    assert next(items) == ("Ed",)
    items.close()
    assert seen == ["Ed"]
    assert not [t for t in threading.enumerate() if t.name == "srllm-guard-stream"]


def test_what_is_in_the_middle_of_an_item_is_closed_after_it() -> None:
    ready, closed = threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        try:
            ready.wait(10)
            yield "a"
        finally:
            closed.set()

    items = timed(slow(), time.monotonic)
    assert next(items) == ()
    items.close()
    assert not closed.is_set()
    ready.set()
    assert closed.wait(10)


def test_async_items_come_in_order_and_in_one_task() -> None:
    async def letters() -> AsyncIterator[str]:
        async with asyncio.timeout(10):  # has to be left by the task that entered it
            yield NAME.get()
            yield "b"

    async def run() -> list[tuple[str, ...]]:
        NAME.set("Ed")
        return [item async for item in atimed(letters(), never)]

    assert asyncio.run(run()) == [("Ed",), ("b",)]


def test_async_nothing_comes_when_it_is_due() -> None:
    async def run() -> list[tuple[str, ...]]:
        ready = asyncio.Event()

        async def slow() -> AsyncIterator[str]:
            yield "a"
            await ready.wait()
            yield "b"

        due: list[float | None] = [None]
        found = []
        async for item in atimed(slow(), lambda: due[0]):
            found.append(item)
            due[0] = time.monotonic() if item == ("a",) else None
            if not item:
                ready.set()
        return found

    assert asyncio.run(run()) == [("a",), (), ("b",)]


def test_async_errors_pass_through() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise ValueError("broken")

    async def run() -> list[tuple[str, ...]]:
        items = atimed(broken(), never)
        found = [await anext(items)]
        with pytest.raises(ValueError, match="broken"):
            await anext(items)
        return found

    assert asyncio.run(run()) == [("a",)]


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_async_items_are_closed_and_no_task_is_left(how: str) -> None:
    closed = []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def consume(started: asyncio.Event) -> None:
        async with aclosing(atimed(endless(), never)) as items:
            async for _ in items:
                started.set()
                if how == "close":
                    return

    async def run() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(consume(started))
        await started.wait()
        if how == "cancel":
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() == (how == "cancel")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert closed == [True]
