"""The decode loop of every engine of ours: draft, verify, accept. It knows token ids only.

Each pass feeds a row its last token and a few that are guessed from the source; the model says what
follows each of them. As long as that is the next guess, a pass yields one more token. What comes
out is what decoding token by token gives; only the number of passes changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from srllm_guard.engines.base import Continuation, Ids, Request, check_request
from srllm_guard.engines.guesser import Guesser
from srllm_guard.engines.pick import Picker


@dataclass(frozen=True, slots=True)
class Feed:
    """What one row gives a pass."""

    row: int
    """Number of the row, the same in every pass."""
    at: int
    """Place of the first id; the model has seen, and still has, all ids before it."""
    ids: Ids
    """One id at least. What they write behind the last that is right is written over later."""
    want: int
    """For so many of the last ids it is asked what follows them."""
    greedy: bool
    """Whether the likeliest id is all that is asked for."""


Step = Callable[[Sequence[Feed]], Sequence[NDArray[Any]]]
"""One pass of a model: for each feed the likeliest ids, int64 `[want]`, or float32 logits
`[want, V]` where the feed is not greedy."""


MORE = 4
"""After a miss a careful row is fed so many ids more than were right."""


def decode(
    requests: Sequence[Request],
    step: Step,
    *,
    width: int,
    max_tokens: int,
    careful: bool = False,
) -> list[Continuation]:
    """Decode continuations together.

    Args:
        requests: one for each row.
        step: runs the model.
        width: most tokens that a row is fed after its prompt; 1 guesses nothing.
        max_tokens: most tokens of a prompt with its continuation.
        careful: guess less after a miss, and more again after hits: for devices where each token
            of a pass costs. It changes the number of passes only.

    Raises:
        EngineError: a prompt leaves no room for a token, or has none itself.
    """
    rows = [_Row(n, request, width, max_tokens, careful) for n, request in enumerate(requests)]
    while still := [row for row in rows if row.result is None]:
        feeds = [row.feed() for row in still]
        for row, found in zip(still, step(feeds), strict=True):
            row.take(found)
    return [row.result for row in rows if row.result is not None]


class _Row:
    """One continuation in the making."""

    def __init__(
        self, number: int, request: Request, width: int, max_tokens: int, careful: bool
    ) -> None:
        self._number = number
        self._stop = request.stop
        self._limit = check_request(request, max_tokens)
        self._most = self._width = width
        self._careful = careful
        self._pick = Picker(request)
        self._guesser = Guesser(request.draft or request.prompt)
        self._start = len(request.prompt)
        self._fresh = request.prompt  # what the model has not seen yet
        self._guesses: Ids = ()
        self._ids: list[int] = []
        self._steps = self._guessed = self._accepted = 0
        self.result: Continuation | None = None
        """Set when the row has ended."""

    def feed(self) -> Feed:
        """What to run next: what is new, and guesses."""
        left = self._limit - len(self._ids)
        self._guesses = self._guesser.guess(min(self._width, left) - 1)
        self._steps += 1
        self._guessed += len(self._guesses)
        return Feed(
            row=self._number,
            at=self._start + len(self._ids) - len(self._fresh),
            ids=(*self._fresh, *self._guesses),
            want=len(self._guesses) + 1,
            greedy=self._pick.greedy,
        )

    def take(self, found: NDArray[Any]) -> None:
        """Accept what the model says as long as it is what was guessed, and one id more."""
        hits = 0
        for place in range(len(self._guesses) + 1):
            index = int(found[place]) if self._pick.greedy else self._pick(found[place], self._ids)
            if index in self._stop:
                return self._end(finished=True)
            self._ids.append(index)
            self._guesser.take(index)
            right = place < len(self._guesses) and self._guesses[place] == index
            hits += right
            self._accepted += right
            if len(self._ids) == self._limit:
                return self._end(finished=False)
            if not right:
                break
        self._fresh = (self._ids[-1],)
        if self._careful:
            wanted = hits + MORE if hits < len(self._guesses) else 2 * self._width
            self._width = min(wanted, self._most)
        return None

    def _end(self, *, finished: bool) -> None:
        self.result = Continuation(
            tuple(self._ids), finished, self._steps, self._guessed, self._accepted
        )
