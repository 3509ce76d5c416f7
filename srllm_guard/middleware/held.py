"""One text of a streamed answer: what came in, what was given out, and what is held between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srllm_guard.middleware.stream import TextStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from srllm_guard.guard import Guard
    from srllm_guard.results import Edit, Moderation


@dataclass(frozen=True, slots=True)
class Released:
    """What became of one text."""

    text: str
    """What is shown."""
    changed: bool
    """Whether that is not what came in."""
    edits: tuple[Edit, ...] = ()
    """What was replaced in it."""

    @classmethod
    def of(cls, guard: Guard, result: Moderation) -> Released:
        """The outcome of a moderation.

        Raises:
            Blocked: it was withheld, and the policy says `on_block="raise"`.
        """
        return cls(guard.released(result), result.changed, result.edits)


def judge(guard: Guard, texts: Sequence[str], *, structured: bool) -> list[Moderation]:
    """Moderate texts together; structured ones as JSON where they are JSON."""
    if not texts:
        return []
    if structured:
        calls = guard.moderate_tool_calls([{"arguments": text} for text in texts])
        return [each.moderation for each in calls]
    return guard.moderate_many(texts)


class Whole:
    """A text that is judged when it is there as a whole: JSON, which half of it is not."""

    due = None
    """Never: half a document cannot be released."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._observes = guard.policy.mode == "observe"
        self._chunks: list[str] = []
        self.result: Moderation | None = None
        """Set by `close`."""

    def feed(self, chunk: str) -> str:
        """Take a piece; nothing of it may be shown yet, unless the policy only observes."""
        self._chunks.append(chunk)
        return chunk if self._observes else ""

    def flush(self) -> str:
        """Nothing, see `due`."""
        return ""

    def close(self) -> str:
        """The text to show; nothing when it was closed before.

        Raises:
            Blocked: it was withheld, and the policy says `on_block="raise"`.
        """
        text, self._chunks = "".join(self._chunks), []
        if not text:
            return ""
        (self.result,) = judge(self._guard, [text], structured=True)
        released = self._guard.released(self.result)
        return "" if self._observes else released


class Held:
    """A `TextStream`, or a `Whole`, that remembers."""

    def __init__(self, guard: Guard, *, structured: bool) -> None:
        self._text: TextStream | Whole = Whole(guard) if structured else TextStream(guard)
        self._taken: list[str] = []
        self._given: list[str] = []
        self.envelope: dict[str, Any] = {}
        """The last event that brought a piece of it: what is released later is put in its like."""
        self.aside: list[dict[str, Any]] = []
        """Events about it that wait for its end."""

    @property
    def due(self) -> float | None:
        """When `flush` is due, on the clock of `time.monotonic`; None for never."""
        return self._text.due

    @property
    def taken(self) -> str:
        """What came in."""
        return "".join(self._taken)

    @property
    def released(self) -> Released:
        """What became of it, once it is closed."""
        given, result = "".join(self._given), self._text.result
        return Released(given, given != self.taken, result.edits if result else ())

    def feed(self, chunk: str) -> str:
        """Take a piece; what may be shown now."""
        self._taken.append(chunk)
        return self._give(self._text.feed(chunk))

    def flush(self) -> str:
        """What may be shown, now that it was held for long enough."""
        return self._give(self._text.flush())

    def close(self) -> str:
        """The rest, to be called until it gives nothing; see `TextStream.close`.

        Raises:
            Blocked: the text was withheld, and the policy says `on_block="raise"`.
        """
        return self._give(self._text.close())

    def _give(self, text: str) -> str:
        self._given.append(text)
        return text
