"""A stream of what runnables hand on: strings, message chunks, parts of a dict, whole values.

Chunks of one class are one message until one says that it is the last, as LangChain adds them up;
their ids tell nothing, since some providers change them on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessageChunk
from langchain_core.runnables.utils import AddableDict

from srllm_guard.middleware.langchain.answer import Answer
from srllm_guard.middleware.langchain.chunks import MessageStream
from srllm_guard.middleware.langchain.messages import moderated_one, walk_value

if TYPE_CHECKING:
    from srllm_guard.guard import Guard


class ValueStream:
    """The state of one stream of values; made for one stream, and used once."""

    def __init__(self, guard: Guard, key: str | None = None) -> None:
        self._guard = guard
        self._key = key or ""
        self._inner = None if key is None else ValueStream(guard)
        self._current: Answer | MessageStream | None = None
        self._kind: type[BaseMessageChunk] | None = None
        self._met = False

    @property
    def due(self) -> float | None:
        """When `flush` is due by `time.monotonic()`; None while nothing waits for it."""
        if self._inner is not None:
            return self._inner.due
        return None if self._current is None else self._current.due

    def feed(self, value: Any) -> Iterator[Any]:
        """Take a value or a part of one, and give what may be shown now.

        Raises:
            Blocked: also by `flush` and `close`: a text was withheld, and the policy says
                `on_block="raise"`.
            TypeError: nothing that text can be found in.
        """
        if self._inner is not None:
            yield from self._feed_part(value, self._inner)
        elif isinstance(value, str):
            if not isinstance(self._current, Answer):
                yield from self.close()
                self._current = Answer(self._guard)
            if shown := self._current.feed(value):
                yield shown
        elif isinstance(value, BaseMessageChunk):
            if type(value) is not self._kind:
                yield from self.close()
            if not isinstance(self._current, MessageStream):
                self._current, self._kind = MessageStream(self._guard), type(value)
            yield from self._current.feed(value)
            if getattr(value, "chunk_position", None) == "last":
                yield from self.close()
        else:
            yield from self.close()
            yield moderated_one(self._guard, value, walk_value)

    def flush(self) -> Iterator[Any]:
        """Give what was held too long, moderated as it stands."""
        if self._inner is not None:
            yield from map(self._keyed, self._inner.flush())
        elif isinstance(self._current, MessageStream):
            yield from self._current.flush()
        elif self._current is not None and (shown := self._current.flush()):
            yield shown

    def close(self) -> Iterator[Any]:
        """Give the rest."""
        if self._inner is not None:
            if not self._met:
                raise TypeError(f"no part of the dict had the key {self._key!r}")
            yield from map(self._keyed, self._inner.close())
            return
        current, self._current, self._kind = self._current, None, None
        if isinstance(current, MessageStream):
            yield from current.close()
        elif current is not None:
            yield from iter(current.close, "")

    def _feed_part(self, part: Any, inner: ValueStream) -> Iterator[Any]:
        """Take a part of a dict: the text of the key is moderated, all else passes."""
        if not isinstance(part, Mapping):
            raise TypeError(f"expected a dict, got {type(part).__name__}; leave out the key")
        others = {name: value for name, value in part.items() if name != self._key}
        if others or not part:
            yield AddableDict(others)
        if self._key in part:
            self._met = True
            yield from map(self._keyed, inner.feed(part[self._key]))

    def _keyed(self, value: Any) -> Any:
        return AddableDict({self._key: value})
