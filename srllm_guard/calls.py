"""Calls to an engine: one at a time, bounded in time, and checked before anyone believes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from srllm_guard.engines.base import Asked, Continuation, Engine, Request, Scores, Window
from srllm_guard.errors import DeadlineExceeded, EngineError, GuardError
from srllm_guard.labels import CATEGORIES, N_LOGITS

T = TypeVar("T")

MOST_ID = 2**32
"""Tokenizers count tokens in 32 bits."""


class Gate:
    """The way to one engine. Safe to share between threads: callers take turns."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._turn = threading.Lock()

    def open(self, deadline_ms: float | None) -> Calls:
        """Calls on behalf of one text or batch, all within one deadline."""
        return Calls(self, deadline_ms)

    def run(self, work: Callable[[], T], seconds: float | None) -> T:
        """Do `work` when it is our turn, and wait at most `seconds` for both.

        Raises:
            DeadlineExceeded: it took longer. The work goes on in the background until it ends;
                its result is dropped, and later callers wait for their turn as ever.
            EngineError: the work failed.
        """
        if seconds is None:
            with self._turn:
                return _guarded(work)
        if seconds <= 0:
            raise DeadlineExceeded("No time was left for the model.")
        task = _Task(work, self._turn)
        threading.Thread(target=task.run, name="srllm-guard-engine", daemon=True).start()
        return task.result(seconds)


@dataclass(slots=True)
class Calls:
    """Detection and generation of one `Gate`, within one deadline, with their times."""

    gate: Gate
    deadline_ms: float | None
    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)
    """Milliseconds by stage."""

    def detect(self, windows: Sequence[Window], stage: str = "detect") -> list[Scores]:
        """Judge windows.

        Raises:
            EngineError: the engine failed, took too long, or gave what cannot be scores.
        """
        if not windows:
            return []
        found = self._timed(stage, lambda: self.gate.engine.detect(windows))
        _check_count(found, windows)
        for scores, window in zip(found, windows, strict=True):
            labels, spans = getattr(scores, "labels", None), getattr(scores, "spans", None)
            _check_floats(labels, "labels", (window.segments, N_LOGITS))
            _check_floats(spans, "spans", (len(window.ids), len(CATEGORIES)))
        return found

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """Decode continuations; errors as `detect`."""
        if not requests:
            return []
        found = self._timed("rewrite", lambda: self.gate.engine.generate(requests))
        _check_count(found, requests)
        for continuation in found:
            _check_continuation(continuation)
        return found

    def score(self, asked: Sequence[Asked]) -> list[float]:
        """Natural logarithm of the probability of each continuation; errors as `detect`."""
        if not asked:
            return []
        found = self._timed("rewrite", lambda: self.gate.engine.score(asked))
        _check_count(found, asked)
        for chances, each in zip(found, asked, strict=True):
            _check_floats(chances, "likelihoods", (len(each.ids),))
        return [float(chances.astype(np.float64).sum()) for chances in found]

    def total(self) -> float:
        """Milliseconds since the calls were opened."""
        return (time.perf_counter() - self.started) * 1e3

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        left = None if self.deadline_ms is None else (self.deadline_ms - self.total()) / 1e3
        try:
            return self.gate.run(work, left)
        finally:
            took = (time.perf_counter() - start) * 1e3
            self.spent[stage] = self.spent.get(stage, 0.0) + took


class _Task(Generic[T]):
    """Work in a thread of its own, whose result may come too late."""

    def __init__(self, work: Callable[[], T], turn: threading.Lock) -> None:
        self._work = work
        self._turn = turn
        self._done = threading.Event()
        self._abandoned = False
        self._value: T
        self._error: BaseException | None = None

    def run(self) -> None:
        with self._turn:
            if self._abandoned:
                return
            try:
                self._value = _guarded(self._work)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                self._error = error
            self._done.set()

    def result(self, seconds: float) -> T:
        if not self._done.wait(min(seconds, threading.TIMEOUT_MAX)):
            self._abandoned = True
            raise DeadlineExceeded("The model did not answer within the deadline of the policy.")
        if self._error is not None:
            raise self._error
        return self._value


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except GuardError:
        raise
    except Exception as error:
        # The message may quote what was judged; the type says enough.
        raise EngineError(
            f"The engine failed with {type(error).__name__}.", hint="See the cause above."
        ) from error


def _check_count(found: object, asked: Sequence[object]) -> None:
    if not isinstance(found, list) or len(found) != len(asked):
        count = len(found) if isinstance(found, list) else type(found).__name__
        raise EngineError(f"The engine gave {count} results where {len(asked)} were asked for.")


def _check_floats(values: object, name: str, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.shape != shape:
        got = getattr(values, "shape", type(values).__name__)
        raise EngineError(f"The engine gave {name} of shape {got} where {shape} is right.")
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise EngineError(f"The engine gave {name} that are not finite numbers.")


def _check_continuation(found: object) -> None:
    ids = getattr(found, "ids", None)
    if not isinstance(ids, tuple) or not all(isinstance(i, int) and 0 <= i < MOST_ID for i in ids):
        raise EngineError("The engine gave a continuation that is no tuple of token ids.")
    if not isinstance(getattr(found, "finished", None), bool):
        raise EngineError("The engine did not say whether a continuation is finished.")
