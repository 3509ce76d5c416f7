"""How one row chooses its next token from logits, without any tensor library but numpy.

It draws what the reference engine draws (`choice.py`, on torch): the same generator, the same noise
for the same place, so one seed gives one text whatever engine runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srllm_guard.engines.base import Floats, Ids, Request

Indices = NDArray[np.intp]

SHARE = 0.95
"""Of probability that the ids which may be drawn have together (Holtzman et al., 2020)."""

LIKELY = 512
"""So many ids are sorted first; rarely do they have less than `SHARE`."""


class Picker:
    """Chooses the ids of one continuation, in order.

    The largest of logits / temperature + Gumbel noise is a draw from the tempered distribution
    (Gumbel, 1954). The noise hangs on the seed and the place alone, so a guess is checked for a row
    that samples exactly as for one that does not.
    """

    def __init__(self, request: Request) -> None:
        self._barred = request.barred
        self._temperature = request.temperature
        self._draws = np.random.MT19937()
        # As torch.Generator().manual_seed does: the seed of a Mersenne twister, in 32 bits.
        self._draws._legacy_seeding(request.seed & 0xFFFFFFFF)  # noqa: SLF001

    @property
    def greedy(self) -> bool:
        """Whether the likeliest id is always chosen, so that no logits are needed."""
        return not self._barred and self._temperature <= 0

    def __call__(self, logits: Floats, tail: Sequence[int]) -> int:
        """The id that follows `tail`, all ids of the continuation so far; `logits` [V]."""
        if self._barred:
            logits = logits.copy()
            logits[next_barred(self._barred, tuple(tail))] = -np.inf
        if self._temperature <= 0:
            return int(logits.argmax())
        noise = self._noise(len(logits))
        tempered = logits / np.float32(self._temperature)
        kept = nucleus(tempered)
        return int(kept[(tempered[kept] + noise[kept]).argmax()])

    def _noise(self, count: int) -> Floats:
        # torch.rand makes a float32 of the low 24 bits of each number.
        bits = self._draws.random_raw(count) & 0xFFFFFF
        chances = (bits * 2.0**-24).astype(np.float32)
        chances = chances.clip(np.float32(1e-9), np.float32(1 - 1e-7))
        found: Floats = -np.log(-np.log(chances))
        return found


def next_barred(barred: Sequence[Ids], tail: Ids) -> list[int]:
    """The ids that would complete a barred sequence; what the prompt holds does not count."""
    return [
        sequence[-1]
        for sequence in barred
        if len(sequence) == 1 or tail[-len(sequence) + 1 :] == sequence[:-1]
    ]


def nucleus(logits: Floats) -> Indices:
    """Indices of the likeliest ids that together have `SHARE`, likeliest first; `logits` [V]."""
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    few = min(LIKELY, len(chances))
    order = np.argpartition(chances, -few)[-few:]
    if chances[order].sum() <= SHARE:
        order = np.arange(len(chances))
    order = order[np.argsort(-chances[order], kind="stable")]
    before = chances[order].cumsum() - chances[order]
    kept: Indices = order[before <= SHARE]
    return kept
