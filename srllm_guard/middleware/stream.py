"""Streams: text that arrives in pieces and leaves in verified pieces."""

from __future__ import annotations

import contextvars
import re
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import TYPE_CHECKING

from srllm_guard.errors import Blocked
from srllm_guard.middleware.driven import adriven, driven
from srllm_guard.middleware.passage import Passage
from srllm_guard.text.incremental import Segmenter

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation
    from srllm_guard.text.segments import Segment

SPARE = 4_000
"""Characters that are no longer needed before they are dropped."""

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LAST_SPACE = re.compile(r"\s(?=\S*\Z)")


class TextStream:
    """One text that arrives in pieces; its state is here, never on the guard.

    A sentence is held until it is complete, and an unsafe one also until it is known what follows
    it. What is released, joined, is what `Guard.rewrite` makes of the whole text, however it was
    cut into pieces, with these exceptions, which only the end of a text can tell:

    - A text that cannot be made safe is withheld from that sentence on; what was verified before
      it stays. After the policy's message, or `Blocked`, nothing more comes.
    - The language is that of the text so far: sentences before one in another language were judged
      as English. Where the beginning looks foreign, 300 characters are awaited. Each rewrite of an
      English sentence has to be English; whether all of them together are is not asked again.
    - What was held for too long (`Policy.max_holdback_chars`, `max_holdback_ms`, without the time
      that judging takes) is judged as if it were complete. With `Policy.protect_quotations` whole
      lines are held until then.
    - What fails inside the model costs the sentence at hand, and not those before it.

    Surrogates that stand for one character together are joined, so that no piece is cut inside it.
    With `mode="observe"` every piece passes at once, and the text is judged in the background after
    its end. Not for use from several threads at a time.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._policy = guard.policy
        self._passage = Passage(guard.runtime, guard.policy)
        self._segmenter = Segmenter()
        self._whole: list[str] = []
        self._text = ""  # as far as it is still needed
        self._told = 0  # up to where segments are told
        self._high = ""  # half a character
        self._complete: list[Segment] = []  # told, and not judged yet
        self._seen = ""  # pushed and not shown, where nothing is held
        self._arrivals: deque[tuple[int, float]] = deque()  # ends of pieces that are held, and when
        self._dropped = 0  # characters before the text that is kept
        self._blocked: Blocked | None = None
        self._closed = False
        self._result: Moderation | None = None

    def feed(self, chunk: str) -> str:
        """Take a piece of the text; returns what may be shown now, often nothing.

        Raises:
            TypeError: not a string.
            Blocked: the rest is withheld, nothing is left to be shown before it, and the policy
                says `on_block="raise"`.
        """
        return self.advance() if self.push(chunk) else ""

    def push(self, chunk: str) -> bool:
        """Take a piece of the text, which costs next to nothing; says whether to `advance`.

        Raises:
            TypeError: not a string.
        """
        if not isinstance(chunk, str):
            raise TypeError(f"expected str, got {type(chunk).__name__}")
        if self._policy.mode == "observe":
            self._whole.append(chunk)
            self._seen += chunk
            return bool(chunk)
        if self.dead:
            return self._blocked is not None
        chunk = _PAIR.sub(_joined, self._high + chunk)
        self._high = chunk[-1:] if "\ud800" <= chunk[-1:] <= "\udbff" else ""
        self._append(chunk[: len(chunk) - len(self._high)])
        self._complete += self._read(final=False)
        return bool(self._complete)

    def advance(self) -> str:
        """Judge what is complete; returns what may be shown now.

        Raises:
            Blocked: as `feed`.
        """
        if self._policy.mode == "observe":
            shown, self._seen = self._seen, ""
            return shown
        if self.dead:
            return self._given("")
        return self._take([], last=False) if self._complete else ""

    def flush(self) -> str:
        """Judge what is held as if it were complete; a word that may go on is still held.

        Raises:
            Blocked: as `feed`.
        """
        if self.dead or self.due is None:
            return self._given("")
        space = _LAST_SPACE.search(self._text, self._told)
        at = space.end() if space else len(self._text)
        if self._text[self._told : at].strip() or not self._passage.settled:
            found = self._cut(at)
        else:
            found, self._told = [], at
        shown = self._take(found, last=True)
        now = time.monotonic()
        self._arrivals = deque((end, now) for end, _ in self._arrivals)
        return shown

    def close(self) -> str:
        """End the text; returns the rest of what may be shown.

        To be called until it gives nothing: where the end was withheld, what was verified before it
        comes first, and the next call raises.

        Raises:
            Blocked: as `feed`.
        """
        if self._closed:
            return self._given("")
        self._closed = True
        if self._policy.mode == "observe":
            self._observe()
            return ""
        if self.dead:
            return self._given("")
        self._append(self._high)
        self._high = ""
        found = self._read(final=True)
        self._told = len(self._text)
        return self._take(found, last=True, final=True)

    @property
    def dead(self) -> bool:
        """Whether nothing more will be shown."""
        return self._passage.dead

    @property
    def due(self) -> float | None:
        """`time.monotonic()` at which `flush` is due; None when nothing is held."""
        limit = self._policy.max_holdback_ms
        if limit is None or not self._arrivals or self._closed or self.dead:
            return None
        return self._arrivals[0][1] + limit / 1e3

    @property
    def result(self) -> Moderation | None:
        """The whole text; None as long as it has not ended, and while it is only observed."""
        return self._result

    def _append(self, chunk: str) -> None:
        if chunk:
            self._whole.append(chunk)
            self._text += chunk
            self._arrivals.append((self._dropped + len(self._text), time.monotonic()))

    def _read(self, *, final: bool) -> list[Segment]:
        """The next segments, with a cut wherever too much would be held."""
        found: list[Segment] = []
        by_lines = self._policy.protect_quotations and not final
        while True:
            limit = self._told + self._policy.max_holdback_chars
            fits = len(self._text) <= limit
            # As much as has to be seen before it is cut, whatever the size of the pieces.
            seen = self._text if fits else self._text[: limit + 1]
            lines = seen[: seen.rfind("\n") + 1] if by_lines else seen
            new = self._segmenter.read(lines, final=final and fits)
            if not (new or fits) and by_lines:
                new = self._segmenter.read(seen)
            if not (new or fits):
                space = _LAST_SPACE.search(self._text[:limit], self._told)
                new = self._cut(space.end() if space else limit)
            found += new
            self._told = max(self._told, *(s.end for s in new[-1:]), 0)
            if fits:
                return found

    def _cut(self, at: int) -> list[Segment]:
        found = self._segmenter.cut(self._text[:at])
        self._told = at
        return found

    def _take(self, found: list[Segment], *, last: bool, final: bool = False) -> str:
        found, self._complete = self._complete + found, []
        calls = self._guard.runtime.gate.open(self._policy.deadline_ms)
        started = time.monotonic()
        shown = self._passage.take(self._text, found, self._told, calls, last=last)
        # A slow model is no reason to cut a sentence whose end may have come meanwhile.
        took = time.monotonic() - started
        self._arrivals = deque((end, since + took) for end, since in self._arrivals)
        released = self._dropped + self._passage.shown
        while self._arrivals and self._arrivals[0][0] <= released:
            self._arrivals.popleft()
        if final or self.dead:
            self._finish()
        else:
            spare = self._segmenter.needed if self._passage.shown > SPARE else 0
            if count := self._passage.forget(spare):
                self._segmenter.forget(count)
                self._text = self._text[count:]
                self._told -= count
                self._dropped += count
        return self._given(shown)

    def _finish(self) -> None:
        self._result = self._passage.result("".join(self._whole))
        self._guard.report([self._result])
        if self._result.action == "block" and self._policy.on_block == "raise":
            self._blocked = Blocked(self._result)

    def _given(self, shown: str) -> str:
        """What may be shown; once nothing may, the block is raised, once."""
        if shown or self._blocked is None:
            return shown
        blocked, self._blocked = self._blocked, None
        raise blocked

    def _observe(self) -> None:
        """Judge the text in a thread; `on_result` hears of it."""

        def judge() -> None:
            self._result = self._guard.moderate("".join(self._whole))

        threading.Thread(
            target=contextvars.copy_context().run, args=(judge,), name="srllm-guard-observe"
        ).start()


class Strings:
    """A stream of strings, all of one text; see `Stage`."""

    def __init__(self, guard: Guard) -> None:
        self.text = TextStream(guard)
        """What the strings make up."""
        self._observes = guard.policy.mode == "observe"

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return self.text.due

    def feed(self, piece: str) -> Iterable[str]:
        """See `Stage`."""
        if not self.text.push(piece):
            return ()
        return [self.text.advance()] if self._observes else _shown(self.text.advance)

    def flush(self) -> Iterable[str]:
        """See `Stage`."""
        return _shown(self.text.flush)

    def close(self) -> Iterable[str]:
        """See `Stage`."""
        return iter(self.text.close, "")


def stream(guard: Guard, chunks: Iterable[str]) -> Generator[str, None, None]:
    """See `Guard.stream`."""
    strings = Strings(guard)
    return driven(chunks, strings, guard.policy, over=lambda: strings.text.dead)


def astream(guard: Guard, chunks: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    """See `Guard.astream`."""
    strings = Strings(guard)
    return adriven(chunks, strings, over=lambda: strings.text.dead)


def _shown(work: Callable[[], str]) -> Iterator[str]:
    if shown := work():
        yield shown


def _joined(pair: re.Match[str]) -> str:
    return pair.group().encode("utf-16", "surrogatepass").decode("utf-16")
