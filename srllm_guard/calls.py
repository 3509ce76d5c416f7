"""Calls to an engine: bounded in time, checked before anyone believes them, never made twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srllm_guard.batcher import Batcher, Found, Item, Verb
from srllm_guard.engines.base import Asked, Continuation, Engine, Floats, Request, Scores, Window
from srllm_guard.errors import EngineError
from srllm_guard.labels import CATEGORIES, N_LOGITS

MOST_ID = 2**32
"""Tokenizers count tokens in 32 bits."""


class Gate:
    """The way to one engine. Safe to share between threads, see `Batcher`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.batcher = Batcher(engine)

    def open(self, deadline_ms: float | None) -> Calls:
        """Calls on behalf of one text or batch, all within one deadline."""
        return Calls(self, deadline_ms)


@dataclass(slots=True)
class Calls:
    """Detection and generation of one `Gate`, within one deadline, with their times."""

    gate: Gate
    deadline_ms: float | None
    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)
    """Milliseconds by stage."""
    _judged: dict[Window, Scores] = field(default_factory=dict)
    """What was judged is not judged again: a rewrite in place is often all of the text's window."""

    def detect(self, windows: Sequence[Window], stage: str = "detect") -> list[Scores]:
        """Judge windows.

        Raises:
            EngineError: the engine failed, took too long, or gave what cannot be scores.
        """
        fresh = [window for window in dict.fromkeys(windows) if window not in self._judged]
        found = self._timed(stage, _DETECT, fresh)
        self._judged.update(zip(fresh, found, strict=True))
        return [self._judged[window] for window in windows]

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """Decode continuations; errors as `detect`."""
        return self._timed("rewrite", _GENERATE, requests)

    def score(self, asked: Sequence[Asked]) -> list[float]:
        """Natural logarithm of the probability of each continuation; errors as `detect`."""
        found = self._timed("rewrite", _SCORE, asked)
        return [float(chances.astype(np.float64).sum()) for chances in found]

    def total(self) -> float:
        """Milliseconds since the calls were opened."""
        return (time.perf_counter() - self.started) * 1e3

    def _timed(self, stage: str, verb: Verb[Item, Found], items: Sequence[Item]) -> list[Found]:
        if not items:
            return []
        start = time.perf_counter()
        left = None if self.deadline_ms is None else (self.deadline_ms - self.total()) / 1e3
        try:
            return self.gate.batcher.run(verb, items, left)
        finally:
            took = (time.perf_counter() - start) * 1e3
            self.spent[stage] = self.spent.get(stage, 0.0) + took


def _scores(windows: Sequence[Window], found: object) -> list[Scores]:
    checked: list[Scores] = _counted(found, windows)
    for scores, window in zip(checked, windows, strict=True):
        labels, spans = getattr(scores, "labels", None), getattr(scores, "spans", None)
        _check_floats(labels, "labels", (window.segments, N_LOGITS))
        _check_floats(spans, "spans", (len(window.ids), len(CATEGORIES)))
    return checked


def _continuations(requests: Sequence[Request], found: object) -> list[Continuation]:
    checked: list[Continuation] = _counted(found, requests)
    for continuation in checked:
        _check_continuation(continuation)
    return checked


def _likelihoods(asked: Sequence[Asked], found: object) -> list[Floats]:
    checked: list[Floats] = _counted(found, asked)
    for chances, each in zip(checked, asked, strict=True):
        _check_floats(chances, "likelihoods", (len(each.ids),))
    return checked


_DETECT = Verb("detect", _scores)
_GENERATE = Verb("generate", _continuations)
_SCORE = Verb("score", _likelihoods)


def _counted(found: object, asked: Sequence[object]) -> list[Any]:
    if not isinstance(found, list) or len(found) != len(asked):
        count = len(found) if isinstance(found, list) else type(found).__name__
        raise EngineError(f"The engine gave {count} results where {len(asked)} were asked for.")
    return found


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
