"""Guess the next tokens of a rewrite from its source: most of a rewrite is a copy.

A pointer walks through the source. While the continuation says what the pointer shows, it moves on;
where they part, the end of the continuation is looked up in the source, its last three tokens, else
two, else one, and the pointer goes to the nearest place behind them. Guesses are checked by the
model, so a bad one costs time and nothing else. After prompt lookup decoding (Saxena, 2023) and
aggressive decoding (Sun et al., arXiv 2106.04970), on plain ints.
"""

from __future__ import annotations

from collections.abc import Sequence

from srllm_guard.engines.base import Ids

LONGEST = 3
"""Most tokens that are looked up."""


class Guesser:
    """The source of one continuation, and where in it the continuation stands."""

    def __init__(self, source: Sequence[int]) -> None:
        self._source = tuple(source)
        self._at = 0
        self._tail: Ids = ()
        # Run of ids -> the places right behind it.
        self._places: dict[Ids, list[int]] = {}
        for width in range(1, LONGEST + 1):
            for end in range(width, len(self._source) + 1):
                self._places.setdefault(self._source[end - width : end], []).append(end)

    def guess(self, count: int) -> Ids:
        """At most `count` ids that may come next; none at the end of the source."""
        return self._source[self._at : self._at + max(count, 0)]

    def take(self, index: int) -> None:
        """Move on: `index` is the next id of the continuation."""
        self._tail = (*self._tail[1 - LONGEST :], index)
        if self._source[self._at : self._at + 1] == (index,):
            self._at += 1
            return
        for width in range(len(self._tail), 0, -1):
            if places := self._places.get(self._tail[-width:]):
                # Of two that are equally near the one ahead: rewrites rarely go back.
                self._at = min(places, key=lambda place: (abs(place - self._at), -place))
                return
        # Found nowhere: most likely it stands in place of the one that the pointer shows.
        self._at += 1
