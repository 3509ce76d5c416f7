"""Engines in front of engines: one that times the model, one that answers from memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from srllm_guard.engines.base import Asked, Continuation, Engine, Floats, Request, Scores, Window
from srllm_guard.runtime import Runtime

T = TypeVar("T")


class _Before:
    """An engine that stands before another one and is called as that is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.device = engine.device
        self.max_tokens = engine.max_tokens
        self.together: int = getattr(engine, "together", 1)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        return self._engine.info()


class Watched(_Before):
    """An engine that tells how long the model worked."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._ms = 0.0

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        return self._timed(lambda: self._engine.detect(windows))

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        return self._timed(lambda: self._engine.generate(requests))

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        return self._timed(lambda: self._engine.score(asked))

    def spent(self) -> float:
        """Milliseconds in the model since this was last asked."""
        ms, self._ms = self._ms, 0.0
        return ms

    def _timed(self, work: Callable[[], T]) -> T:
        # An engine is called from one thread at a time, so this sum needs no lock.
        start = time.perf_counter()
        try:
            return work()
        finally:
            self._ms += (time.perf_counter() - start) * 1e3


class Remembering(_Before):
    """An engine that runs the model once for each question: what is left is everything else."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._known: dict[Hashable, Any] = {}

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        return self._each(windows, self._engine.detect)

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        return self._each(requests, self._engine.generate)

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        return self._each(asked, self._engine.score)

    def _each(self, questions: Iterable[Any], ask: Callable[[list[Any]], list[T]]) -> list[T]:
        found: list[T] = []
        for question in questions:
            if question not in self._known:
                self._known[question] = ask([question])[0]
            found.append(self._known[question])
        return found


def watched(runtime: Runtime) -> tuple[Runtime, Watched]:
    """The same runtime with a watch in front of its engine."""
    watch = Watched(runtime.engine)
    return replace(runtime, engine=watch), watch


def remembering(runtime: Runtime) -> Runtime:
    """The same runtime, which runs the model once for each question."""
    return replace(runtime, engine=Remembering(runtime.engine))
