"""One text of an answer in pieces: prose sentence by sentence, JSON when it is whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from srllm_guard.middleware.stream import TextStream
from srllm_guard.structure.mixed import moderate_texts

if TYPE_CHECKING:
    from srllm_guard.guard import Guard

_PERHAPS_JSON = re.compile(r"\s*(?:[{\[]\s*)?\Z")
"""So little that it may become anything."""
_JSON = re.compile(r'\s*(?:\{\s*["}]|\[\s*["{\[\]\d-])')
"""The beginning of an object or array, unlike that of a link or an aside."""


class Answer:
    """A text in pieces, moderated like the whole text; made for one text, and used once.

    What begins like JSON is held until its end and moderated as JSON, so that it stays JSON. Its
    hold-back is not bounded by the policy: no part of a document can be judged by itself.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._stream = TextStream(guard)
        self._held = ""
        self._json: bool | None = False if guard.policy.mode == "observe" else None

    @property
    def due(self) -> float | None:
        """When `flush` is due by `time.monotonic()`; None while nothing waits for it."""
        return self._stream.due

    def feed(self, piece: str) -> str:
        """Take a piece, and give what may be shown now."""
        if self._json is False:
            return self._stream.feed(piece)
        self._held += piece
        if self._json is None and not _PERHAPS_JSON.match(self._held):
            self._json = _JSON.match(self._held) is not None
            if not self._json:
                piece, self._held = self._held, ""
                return self._stream.feed(piece)
        return ""

    def flush(self) -> str:
        """Give what was held too long, moderated as it stands."""
        return self._stream.flush()

    def close(self) -> str:
        """Give the rest, to be called until it gives nothing; see `TextStream.close`.

        Raises:
            Blocked: as `feed` and `flush`: a text was withheld, and the policy says
                `on_block="raise"`.
        """
        held, self._held = self._held, ""
        if self._json:
            return self._released(held) if held else ""
        return (self._stream.feed(held) if held else "") or self._stream.close()

    def _released(self, document: str) -> str:
        (result,) = moderate_texts(self._guard, [document])
        return self._guard.released(result)
