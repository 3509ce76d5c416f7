"""What every engine is: token ids in, ids and scores out. Text never reaches an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from srllm_guard.errors import EngineError

Floats = NDArray[np.float32]
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are judged together: consecutive segments, each the context of those behind it.

    What follows a segment has no say in its scores: a stream is judged as the finished text is.
    """

    ids: Ids
    """Token ids, the prompt's prefix included; T of them."""
    owner: tuple[int, ...]
    """For each token the index of its segment, 0 to `segments - 1`, or -1 for none."""
    segments: int
    """Number of segments, S."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw logits of one window."""

    labels: Floats
    """`[S, N_LOGITS]`, laid out as `srllm_guard.labels` says."""
    spans: Floats
    """`[T, len(CATEGORIES)]`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation to decode."""

    prompt: Ids
    """Token ids of the whole prompt."""
    stop: frozenset[int]
    """The first of these ids ends the continuation and is left out of it."""
    limit: int
    """Most new tokens; a continuation that reaches it without a stop id is cut there."""
    barred: tuple[Ids, ...] = ()
    """Token sequences that must not occur in the continuation."""
    temperature: float = 0.0
    """0 decodes greedily; above, tokens are drawn from the tempered distribution."""
    seed: int = 0
    """Seed of the draws; the same request gives the same continuation."""
    draft: Ids = ()
    """Token ids that the continuation will most likely copy from, in order. They change how fast it
    is found, never what is found; without them the prompt itself is guessed from."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A continuation whose likelihood is wanted."""

    prompt: Ids
    """Token ids that stand before it; at least one."""
    ids: Ids
    """Its token ids, T of them; at least one."""
    least: float = -math.inf
    """Below this sum of logarithms nobody wants to know more: an engine may stop there and give 0.0
    for the tokens that are left, so that the sum stays below it."""


def check_asked(asked: Sequence[Asked], max_tokens: int) -> None:
    """Refuse what a model of `max_tokens` cannot score.

    Raises:
        EngineError: a prompt or a continuation is empty, or both together are too long.
    """
    for each in asked:
        if len(each.prompt) + len(each.ids) > max_tokens or not (each.prompt and each.ids):
            raise EngineError(
                f"A prompt of {len(each.prompt)} tokens with a continuation of {len(each.ids)} was "
                f"to be scored; the model takes 1 of each at least, {max_tokens} in all.",
                hint="Send shorter segments.",
                retryable=False,
            )


def check_request(request: Request, max_tokens: int) -> int:
    """Refuse what a model of `max_tokens` cannot go on with.

    Returns:
        Most new tokens that the continuation may have.

    Raises:
        EngineError: the prompt is empty, or leaves no room for a token.
    """
    limit = min(request.limit, max_tokens - len(request.prompt))
    if limit <= 0 or not request.prompt:
        raise EngineError(
            f"A prompt has {len(request.prompt)} tokens; the model takes {max_tokens}, "
            f"and {request.limit} new ones were asked for.",
            hint="Send shorter segments.",
            retryable=False,
        )
    return limit


@dataclass(frozen=True, slots=True)
class Continuation:
    """What was decoded for one request."""

    ids: Ids
    """New token ids without the stop id."""
    finished: bool
    """Whether a stop id was met within the limit."""
    steps: int = field(default=0, compare=False)
    """Forward passes that it took, prefill included; 0 where the engine does not count."""
    guessed: int = field(default=0, compare=False)
    """Tokens that were drafted from the source and checked in these passes."""
    accepted: int = field(default=0, compare=False)
    """Those of them that were right."""


@runtime_checkable
class Engine(Protocol):
    """Runs the model of one bundle.

    An engine is called from one thread at a time, keeps no state between calls that shows, and
    answers in the order asked. Errors are `EngineError`s. It may have `together`, an int: the most
    items that it answers faster in one call than one after another.
    """

    name: str
    """Short name for provenance, such as `reference`."""
    device: str
    """Where it runs, such as `cpu` or `cuda:0`."""
    max_tokens: int
    """Most tokens of a window, or of a prompt with its continuation."""

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """Judge windows; one `Scores` for each, in order."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """Decode continuations; one for each request, in order."""
        ...

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """Natural logarithm of the probability of each token of a continuation, `[T]`, in order."""
        ...

    def info(self) -> dict[str, Any]:
        """Versions and settings, for `Guard.info()`; JSON-ready."""
        ...
