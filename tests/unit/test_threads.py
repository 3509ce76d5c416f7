from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from srllm_guard import Guard, Policy
from tests.byte_engine import ByteEngine, runtime

TEXTS = [
    "All is well here.",
    "You are an idiot, Ed!",
    "s t u p i d people 😀 everywhere.\r\nBye.",
    "Lazy? No: trash, trash and trash.",
    "Das ist ein ganz normaler deutscher Satz, den hier wohl niemand verstehen kann.",
    "",
] * 6


class AloneEngine(ByteEngine):
    """Refuses to be called by two threads at once."""

    busy = False

    def _result(self, *args: Any) -> Any:
        assert not self.busy
        self.busy = True
        time.sleep(0.001)  # lets the other threads in, if they can
        try:
            return super()._result(*args)
        finally:
            self.busy = False


@pytest.fixture
def guard() -> Guard:
    return Guard(runtime(AloneEngine()))


def test_sixteen_threads_give_the_results_of_one(guard: Guard) -> None:
    expected = [guard.moderate(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guard.moderate, TEXTS)) == expected
        halves = list(pool.map(guard.moderate_many, [TEXTS[n:] for n in range(16)]))
    assert halves == [expected[n:] for n in range(16)]


def test_guards_that_share_a_runtime_take_turns(guard: Guard) -> None:
    other = Guard(guard.runtime, policy=Policy(ladder=("mask",), deadline_ms=60_000))
    calls = [guard.rewrite, other.rewrite] * 8
    expected = [call(TEXTS[1]) for call in calls]
    assert len(set(expected)) == 2
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda call: call(TEXTS[1]), calls)) == expected


def test_tasks_of_one_loop_give_the_results_of_one(guard: Guard) -> None:
    async def gather() -> list[Any]:
        return await asyncio.gather(*(guard.amoderate(text) for text in TEXTS[:32]))

    assert asyncio.run(gather()) == [guard.moderate(text) for text in TEXTS[:32]]
