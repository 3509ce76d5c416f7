"""The line in front of an engine: who shares a call, who gets what, and what others do not cost."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from srllm_guard import Guard, Policy
from srllm_guard.batcher import PART, Batcher, Verb
from srllm_guard.errors import DeadlineExceeded, EngineError
from tests.byte_engine import ByteEngine, runtime


@dataclass
class Squares:
    """An "engine" for numbers: it stops at its gate, and dislikes some of them."""

    together: int = 64
    poison: int | None = None
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    inside: threading.Event = field(default_factory=threading.Event)
    busy: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def square(self, items: Sequence[int]) -> list[int]:
        return self._answer("square", items, lambda n: n * n)

    def negate(self, items: Sequence[int]) -> list[int]:
        return self._answer("negate", items, lambda n: -n)

    def _answer(self, name: str, items: Sequence[int], f: Callable[[int], int]) -> list[int]:
        assert not self.busy, "called from two threads at once"
        self.busy = True
        try:
            self.calls.append((name, list(items)))
            self.threads.append(threading.current_thread())
            self.inside.set()
            assert self.gate.wait(10)
            if self.poison in items:
                raise RuntimeError(f"cannot digest {self.poison}")
            return [f(n) for n in items]
        finally:
            self.busy = False


def checked(items: Sequence[int], found: Any) -> list[int]:
    if len(found) != len(items):
        raise EngineError("wrong count")
    return list(found)


SQUARE: Verb[int, int] = Verb("square", checked)
NEGATE: Verb[int, int] = Verb("negate", checked)


@dataclass
class Held:
    """A batcher whose engine is busy with a first call until `let_go`."""

    engine: Squares
    batcher: Any
    pool: ThreadPoolExecutor

    def occupy(self) -> Future[list[int]]:
        self.engine.gate.clear()
        self.engine.inside.clear()
        first = self.pool.submit(self.batcher.run, SQUARE, [1])
        assert self.engine.inside.wait(10)
        return first

    def queue(self, *args: Any) -> Future[list[int]]:
        count = len(self.batcher._line)
        found = self.pool.submit(self.batcher.run, *args)
        until(lambda: len(self.batcher._line) > count)
        return found

    def let_go(self) -> None:
        self.engine.gate.set()


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.001)


def idle(batcher: Batcher) -> None:
    """What holds when nobody asks any more."""
    until(lambda: not batcher._busy)
    assert not batcher._line


@pytest.fixture
def make() -> Iterator[Callable[..., Held]]:
    made: list[Held] = []

    def held(**settings: Any) -> Held:
        engine = Squares(**settings)
        made.append(Held(engine, Batcher(engine), ThreadPoolExecutor(16)))  # type: ignore[arg-type]
        return made[-1]

    yield held
    for each in made:
        each.let_go()
        each.pool.shutdown()
        idle(each.batcher)


def test_a_single_caller_runs_the_engine_in_its_own_thread(make: Callable[..., Held]) -> None:
    held = make()
    assert [held.batcher.run(SQUARE, [n, 2]) for n in (1, 3)] == [[1, 4], [9, 4]]
    assert set(held.engine.threads) == {threading.current_thread()}
    assert held.batcher.run(SQUARE, []) == []
    assert len(held.engine.calls) == 2


def test_those_who_wait_share_the_next_call(make: Callable[..., Held]) -> None:
    held = make()
    first = held.occupy()
    waiting = [held.queue(SQUARE, [n, 10 * n]) for n in range(2, 8)]
    held.let_go()
    assert first.result(10) == [1]
    assert [each.result(10) for each in waiting] == [[n * n, 100 * n * n] for n in range(2, 8)]
    assert [len(items) for _, items in held.engine.calls] == [1, 12]


def test_different_verbs_take_turns_in_the_order_of_arrival(make: Callable[..., Held]) -> None:
    held = make()
    held.occupy()
    asked = [(SQUARE, [2]), (SQUARE, [3]), (NEGATE, [4]), (NEGATE, [5]), (SQUARE, [6])]
    waiting = [held.queue(*each) for each in asked]
    held.let_go()
    assert [each.result(10) for each in waiting] == [[4], [9], [-4], [-5], [36]]
    assert held.engine.calls[1:] == [("square", [2, 3]), ("negate", [4, 5]), ("square", [6])]


def test_an_engine_that_gains_nothing_by_company_is_asked_for_one_at_a_time(
    make: Callable[..., Held],
) -> None:
    held = make(together=1)
    held.occupy()
    waiting = [held.queue(SQUARE, [n, n]) for n in (2, 3, 4)]
    held.let_go()
    assert [each.result(10) for each in waiting] == [[4, 4], [9, 9], [16, 16]]
    assert held.engine.calls[1:] == [("square", [n, n]) for n in (2, 3, 4)]


def test_no_call_grows_beyond_what_the_engine_gains_by(make: Callable[..., Held]) -> None:
    held = make(together=16)
    held.occupy()
    waiting = [held.queue(SQUARE, [n] * 6) for n in range(8)]
    held.let_go()
    assert [each.result(10) for each in waiting] == [[n * n] * 6 for n in range(8)]
    assert all(len(items) <= 16 for _, items in held.engine.calls)


def test_a_short_text_need_not_wait_for_a_whole_book(make: Callable[..., Held]) -> None:
    held = make(together=1)
    held.occupy()
    book = held.queue(SQUARE, list(range(100, 100 + 5 * PART)))
    short = held.queue(SQUARE, [7])
    held.let_go()
    assert short.result(10) == [49]
    assert book.result(10) == [n * n for n in range(100, 100 + 5 * PART)]
    sizes = [len(items) for _, items in held.engine.calls]
    assert sizes == [1, PART, 1, *[PART] * 4]


@pytest.mark.parametrize("together", [1, 64])
def test_what_fails_for_one_caller_is_made_again_for_the_others(
    make: Callable[..., Held], together: int
) -> None:
    held = make(poison=3, together=together)
    held.occupy()
    waiting = [held.queue(SQUARE, [n]) for n in (2, 3, 4)]
    held.let_go()
    assert waiting[0].result(10) == [4]
    with pytest.raises(EngineError, match="failed with RuntimeError") as caught:
        waiting[1].result(10)
    assert "digest" not in str(caught.value)
    assert waiting[2].result(10) == [16]


class Gone(BaseException):
    """What is no `Exception`, such as an interrupt."""


def test_whatever_ends_a_shared_call_ends_no_service(make: Callable[..., Held]) -> None:
    held = make()
    held.occupy()
    waiting = [held.queue(SQUARE, [n]) for n in (2, 3, 4)]
    answer = held.engine.square

    def shy(items: Sequence[int]) -> list[int]:
        if len(items) > 1 or 3 in items:
            raise Gone
        return answer(items)

    held.engine.square = shy  # type: ignore[method-assign]
    held.let_go()
    assert waiting[0].result(10) == [4]
    assert isinstance(waiting[1].exception(10), Gone)
    assert waiting[2].result(10) == [16]
    assert held.batcher.run(SQUARE, [5], 10.0) == [25]


def test_whose_deadline_passes_in_the_line_is_gone_from_it(make: Callable[..., Held]) -> None:
    held = make()
    held.occupy()
    hasty = held.queue(SQUARE, [5], 0.02)
    patient = held.queue(SQUARE, [6], 60)
    with pytest.raises(DeadlineExceeded):
        hasty.result(10)
    held.let_go()
    assert patient.result(10) == [36]
    assert held.engine.calls[1:] == [("square", [6])]
    with pytest.raises(DeadlineExceeded, match="No time was left"):
        held.batcher.run(SQUARE, [1], 0)


def test_whose_deadline_passes_in_a_shared_call_does_not_end_it(make: Callable[..., Held]) -> None:
    held = make()
    held.occupy()
    hasty = held.queue(SQUARE, [5], 0.2)
    patient = held.queue(SQUARE, [6])
    shared = threading.Event()
    answer = held.engine.square

    def slowly(items: Sequence[int]) -> list[int]:
        assert shared.wait(10)
        return answer(items)

    held.engine.square = slowly  # type: ignore[method-assign]
    held.let_go()
    with pytest.raises(DeadlineExceeded):
        hasty.result(10)
    shared.set()
    assert patient.result(10) == [36]
    assert held.engine.calls[1:] == [("square", [5, 6])]


def test_parts_behind_a_deadline_are_never_begun(make: Callable[..., Held]) -> None:
    held = make(together=1)
    held.engine.gate.clear()
    with pytest.raises(DeadlineExceeded):
        held.batcher.run(SQUARE, list(range(10 * PART)), 0.05)
    held.let_go()
    idle(held.batcher)
    assert [len(items) for _, items in held.engine.calls] == [PART]


def test_an_interrupt_leaves_the_engine_to_others(make: Callable[..., Held]) -> None:
    held = make()
    answer = held.engine.square

    def interrupted(items: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    held.engine.square = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        held.batcher.run(SQUARE, [1])
    held.engine.square = answer  # type: ignore[method-assign]
    assert held.batcher.run(SQUARE, [3]) == [9]


def test_where_no_thread_can_be_started_the_caller_serves_the_line(
    make: Callable[..., Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = make()

    def full(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert held.batcher.run(SQUARE, [3], 10.0) == [9]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_of_its_parent(make: Callable[..., Held]) -> None:
    held = make()
    held.occupy()
    child = os.fork()
    if child == 0:
        held.engine.gate, held.engine.busy = threading.Event(), False
        held.engine.gate.set()
        os._exit(0 if held.batcher.run(SQUARE, [3], 5.0) == [9] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("together", [1, 8, 64])
def test_sixteen_callers_get_what_each_gets_alone(
    make: Callable[..., Held], together: int, seed: int
) -> None:
    held = make(together=together, poison=13)
    draw = random.Random(seed)

    def ask(numbers: list[int]) -> None:
        verb, sign = draw.choice([(SQUARE, 1), (NEGATE, -1)])
        seconds = draw.choice([None, 60.0])
        try:
            found = held.batcher.run(verb, numbers, seconds)
        except EngineError:
            assert 13 in numbers
        else:
            assert found == [n * n if sign > 0 else -n for n in numbers]

    asked = [[draw.randrange(60) for _ in range(draw.randrange(1, 20))] for _ in range(300)]
    list(held.pool.map(ask, asked))


class Shared(ByteEngine):
    """Counts the most that it was asked in one call."""

    together = 64
    largest = 0

    def _result(self, verb: str, texts: Sequence[str], found: list[Any]) -> list[Any]:
        self.largest = max(self.largest, len(texts))
        time.sleep(0.001)
        return super()._result(verb, texts, found)


TEXTS = ["You idiot Ed.", "All is well.", "You idiot Bob, trash!", "You stupid man.", ""] * 8


@pytest.mark.parametrize("within", ["detect", "generate"])
@pytest.mark.parametrize("fault", ["raise", "nan", "count"])
def test_a_fault_in_one_text_does_not_reach_other_callers(fault: str, within: str) -> None:
    engine = Shared(fault=fault, within=within, only="Bob")
    guard = Guard(runtime(engine), policy=Policy(deadline_ms=60_000))
    expected = [guard.moderate(text) for text in TEXTS[:5]] * 8
    engine.largest = 0
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(guard.moderate, TEXTS)) == expected
    assert engine.largest > 1


def test_a_hanging_call_costs_the_others_their_deadline_and_no_more() -> None:
    engine = Shared(fault="hang", only="Bob")
    guard = Guard(runtime(engine), policy=Policy(deadline_ms=150))
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(guard.moderate, TEXTS[:10]))
    assert all(result.safe or result.action == "unverified" for result in results)
    engine.fault = None
    engine.release.set()
    until(lambda: not guard.runtime.gate.batcher._busy)
    assert guard.rewrite(TEXTS[0]) == "You person Ed."


def test_cancelled_tasks_leave_the_others_theirs() -> None:
    engine = Shared()
    guard = Guard(runtime(engine))
    expected = guard.moderate(TEXTS[0])

    async def some() -> list[Any]:
        tasks = [asyncio.create_task(guard.amoderate(TEXTS[0])) for _ in range(12)]
        await asyncio.sleep(0.005)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(some())
    assert all(result == expected for result in found[1::2])
    assert guard.moderate(TEXTS[0]) == expected
