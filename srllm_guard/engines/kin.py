"""What shares a prompt runs together: the prompt is run once, and nothing else shares a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from srllm_guard.engines.base import Asked, Floats, Ids, Request

AT_ONCE = 64
"""Most places whose logits are held at once when likelihoods are asked for."""

Logits = Any
"""Float32 `[T, V]`: what follows each of T ids; of the tensor library of the engine."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A prompt that was run, and how to go on behind it."""

    first: Logits
    """What follows the prompt, `[1, V]`."""
    run: Callable[[Ids, int], Logits]
    """Ids, and how many of the continuation stand before them -> what follows each. What stood at
    their places, and behind them, is written over."""
    chances: Callable[[Logits, Ids], Floats]
    """Logits `[T, V]` and T ids -> natural logarithms of the probability of each, `[T]`."""


def candidates(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Requests of one prompt, at most `size` of them, in an order that is always the same."""
    order = sorted(requests, key=lambda r: (r.prompt, r.temperature, r.seed, r.barred))
    for _, group in groupby(order, key=lambda request: request.prompt):
        together = list(group)
        for start in range(0, len(together), size):
            yield together[start : start + size]


def scored(asked: Sequence[Asked], begin: Callable[[Ids, int], Begun]) -> list[Floats]:
    """`Engine.score`, in order; `begin` runs a prompt and leaves room for so many ids behind it."""
    order = sorted(range(len(asked)), key=lambda n: (asked[n].prompt, asked[n].ids))
    found: dict[int, Floats] = {}
    for prompt, group in groupby(order, key=lambda n: asked[n].prompt):
        numbers = list(group)
        begun = begin(prompt, max(len(asked[n].ids) for n in numbers))
        given = _likelihoods(begun, [asked[n] for n in numbers])
        found.update(zip(numbers, given, strict=True))
    return [found[n] for n in range(len(asked))]


def _likelihoods(begun: Begun, asked: Iterable[Asked]) -> Iterator[Floats]:
    """Continuations in the order of their ids: each goes on where it parts from the one before.

    So ids that several begin with are run once, and of one that is too unlikely where it parts
    nothing is run at all.
    """
    path: Ids = ()
    rows = [begun.first]  # what follows the first 0, 1, 2 ... ids of the path
    known: list[float] = []  # the logarithms of the path's ids
    for each in asked:
        ids = each.ids
        at = _shared(path, ids)
        known = known[:at]
        del rows[at + 1 :]
        if at < len(ids):
            known += begun.chances(rows[at], ids[at : at + 1]).tolist()
            at += 1
        while at < len(ids) and sum(known) >= each.least:
            fed = ids[at - 1 : min(at - 1 + AT_ONCE, len(ids) - 1)]
            logits = begun.run(fed, at - 1)
            known += begun.chances(logits, ids[at : at + len(fed)]).tolist()
            if len(rows) == at:
                rows += [logits[n : n + 1] for n in range(min(len(fed), AT_ONCE - at))]
            at += len(fed)
        path = ids[: len(rows) - 1]
        yield np.array([*known, *[0.0] * (len(ids) - at)], np.float32)


def _shared(one: Ids, other: Ids) -> int:
    """How many ids both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
