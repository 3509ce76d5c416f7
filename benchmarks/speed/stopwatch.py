"""Times of systems that take turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

SETTLE = 0.03
"""Seconds between two turns: thread pools spin for a while after their work."""


@dataclass(slots=True)
class Runs(Generic[Result]):
    """What one system took, and what it gave in the first round."""

    ms: list[float] = field(default_factory=list)
    """Milliseconds of each run."""
    results: list[Result] = field(default_factory=list)
    """One for each item, in the order of the items."""

    def figures(self) -> dict[str, Any]:
        """Median, 95th percentile and number of the runs."""
        return summary(self.ms)


def summary(ms: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile of milliseconds, and their number."""
    if not ms:
        return {"median_ms": None, "p95_ms": None, "n": 0}
    median, high = np.percentile(ms, (50, 95))
    return {"median_ms": round(float(median), 3), "p95_ms": round(float(high), 3), "n": len(ms)}


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Milliseconds that `work` takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def interleaved(
    systems: Mapping[str, Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    rounds: int,
    warm: Sequence[Item] = (),
    settle: float = SETTLE,
    seed: int = 0,
) -> dict[str, Runs[Result]]:
    """Time every system on every item, in turn.

    Each item is given to all systems before the next one is; in which order is drawn anew, so that
    nobody always follows the same neighbour.

    Args:
        systems: what is timed, by name.
        items: what each run is about.
        rounds: how often each item is run.
        warm: items that all systems run first, untimed.
        settle: seconds of rest before each timed run.
        seed: of the order.
    """
    drawn = random.Random(seed)  # noqa: S311
    runs: dict[str, Runs[Result]] = {name: Runs() for name in systems}
    for item in warm:
        for work in systems.values():
            work(item)
    names = list(systems)
    for number in range(rounds):
        for item in items:
            drawn.shuffle(names)
            for name in names:
                time.sleep(settle)
                ms, result = timed(lambda work=systems[name], item=item: work(item))  # type: ignore[misc]
                runs[name].ms.append(ms)
                if number == 0:
                    runs[name].results.append(result)
    return runs
