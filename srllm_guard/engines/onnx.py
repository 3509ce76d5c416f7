"""The engine on ONNX Runtime: an exported model, with neither torch nor transformers.

Rows run one by one, so a result does not depend on who shares the call. The decode loop, drafting
and choosing are those of the torch engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srllm_guard.engines.base import (
    Asked,
    Continuation,
    Floats,
    Ids,
    Request,
    Scores,
    Window,
    check_asked,
)
from srllm_guard.engines.kin import Begun, candidates, scored
from srllm_guard.engines.loop import Feed, decode
from srllm_guard.engines.onnx_session import VERSION, Row, Sessions
from srllm_guard.models.exported import Exported

WIDTH = {"cpu": 12, "cuda": 16}
"""Most tokens that a row is fed in a pass: the last one and guesses."""

BATCH = 16
"""Most rows that hold a cache at once."""


class OnnxEngine:
    """An exported model.

    Args:
        exported: the model on disk.
        device: "cpu", "cuda", "cuda:N" or "auto".
        threads: of each session; None takes one for each physical core.
        opening: ids that prompts and windows begin with as a rule; they are computed once (CPU).

    Raises:
        ConfigError: the device or the number of threads makes no sense, or CUDA is not there.
        ModelError: ONNX Runtime cannot load the graphs.
        MissingExtra: it is not installed.
    """

    name = "onnx"

    def __init__(
        self,
        exported: Exported,
        device: str = "auto",
        *,
        threads: int | None = None,
        opening: Ids = (),
    ) -> None:
        self._sessions = Sessions(exported, device, threads)
        self.device = self._sessions.name
        self.max_tokens = exported.sizes.max_tokens
        self._width = WIDTH[self._sessions.device]
        self._opening = Opening(self._sessions, opening)

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        return [self._judge(window) for window in windows]

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        # Who asks the same gets the same: it is decoded once.
        found: dict[Request, Continuation] = {}
        for batch in candidates(dict.fromkeys(requests), BATCH):
            longest = max(len(request.prompt) + request.limit for request in batch)
            step = Steps(self._opening, min(longest, self.max_tokens))
            careful = self._sessions.device == "cpu"
            done = decode(
                batch, step, width=self._width, max_tokens=self.max_tokens, careful=careful
            )
            found.update(zip(batch, done, strict=True))
        return [found[request] for request in requests]

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        check_asked(asked, self.max_tokens)
        return scored(asked, self._begin)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        return {
            "onnxruntime": VERSION,
            "providers": self._sessions.providers,
            "threads": self._sessions.threads,
            "precision": self._sessions.exported.precision,
            "width": self._width,
        }

    def _judge(self, window: Window) -> Scores:
        hidden = self._opening.states(window.ids)  # [1, T, H]
        return Scores(*self._sessions.judge(hidden, window.owner, window.segments))

    def _begin(self, prompt: Ids, more: int) -> Begun:
        """Run a prompt whose continuations are scored; they have at most `more` ids."""
        start = len(prompt)
        row, first = self._opening.begin(prompt, start + more, 1)
        return Begun(first, lambda ids, at: row.logits(ids, start + at, len(ids)), _log_chances)


class Opening:
    """Runs rows from their beginning; what all begin with is computed once (CPU).

    Args:
        sessions: run.
        ids: what rows begin with as a rule. A row that begins otherwise is run whole.
    """

    def __init__(self, sessions: Sessions, ids: Ids) -> None:
        self.sessions = sessions
        self._ids = ids if sessions.device == "cpu" else ()
        self._kept: tuple[Row, Floats] | None = None

    def states(self, ids: Ids) -> Floats:
        """States `[1, T, H]` of a whole text after the lower graph."""
        row = Row(self.sessions, len(ids), whole=False)
        if not self._known(ids):
            return row.hidden(ids, 0)
        kept, states = self._keep()
        row.copy(kept, len(self._ids))
        return np.concatenate((states, row.hidden(ids[len(self._ids) :], len(self._ids))), 1)

    def begin(self, ids: Ids, slots: int, want: int) -> tuple[Row, Floats]:
        """A row with room for `slots` tokens, and what follows its last `want` ids, `[want, V]`."""
        row = Row(self.sessions, slots)
        known = len(self._ids)
        if not self._known(ids) or len(ids) - known < want:
            return row, row.logits(ids, 0, want)
        row.copy(self._keep()[0], known)
        return row, row.logits(ids[known:], known, want)

    def _known(self, ids: Ids) -> bool:
        known = len(self._ids)
        return 0 < known < len(ids) and ids[:known] == self._ids

    def _keep(self) -> tuple[Row, Floats]:
        if self._kept is None:
            row = Row(self.sessions, len(self._ids))
            row.logits(self._ids, 0, 1)
            self._kept = row, Row(self.sessions, len(self._ids), whole=False).hidden(self._ids, 0)
        return self._kept


class Steps:
    """A pass of an exported model for `loop.decode`.

    Args:
        opening: runs the beginning of a row.
        slots: of a row's cache: more than the largest place that is fed.
    """

    def __init__(self, opening: Opening, slots: int) -> None:
        self._opening = opening
        self._slots = slots
        self._rows: dict[int, Row] = {}

    def __call__(self, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        """See `loop.Step`."""
        begun: dict[tuple[Ids, int], tuple[Row, Floats]] = {}
        found = []
        for feed in feeds:
            if feed.at:
                logits = self._rows[feed.row].logits(feed.ids, feed.at, feed.want)
            else:
                logits = self._begin(feed, begun)
            found.append(logits.argmax(-1) if feed.greedy else logits)
        return found

    def _begin(self, feed: Feed, begun: dict[tuple[Ids, int], tuple[Row, Floats]]) -> Floats:
        """The first feed of a row: what is the same for several is run once (CPU)."""
        key = feed.ids, feed.want
        if key in begun:
            first, logits = begun[key]
            self._rows[feed.row] = Row(self._opening.sessions, self._slots)
            self._rows[feed.row].copy(first, len(feed.ids))
            return logits
        self._rows[feed.row], logits = self._opening.begin(feed.ids, self._slots, feed.want)
        if self._opening.sessions.device == "cpu":
            begun[key] = self._rows[feed.row], logits
        return logits


def _log_chances(logits: Floats, chosen: Ids) -> Floats:
    """Natural logarithm of the probability of one id in each row of logits `[T, V]`, `[T]`."""
    top = logits.max(-1)
    total = np.log(np.exp(logits - top[:, None]).sum(-1))
    given = logits[np.arange(len(chosen)), list(chosen)]
    found: Floats = given - top - total
    return found
