"""One message that arrives in chunks: text is released sentence by sentence, the rest is kept.

Text is told apart by where it stands: the content, a content block, a key of `additional_kwargs`.
Text of a place ends when text of another place or a call begins, and is released by then, so that
the order stays. Calls are held until the message ends, since arguments mean nothing before they are
whole. Usage and metadata come after the text that they came after; all else passes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import AIMessageChunk, BaseMessageChunk

from srllm_guard.middleware.langchain.answer import Answer
from srllm_guard.middleware.langchain.messages import (
    ARGUMENTS,
    CALLED,
    NESTED,
    PROSE,
    SAID,
    moderated_one,
    walk_message,
    without_tokens,
)

if TYPE_CHECKING:
    from srllm_guard.guard import Guard

Place = tuple[Hashable, ...]
"""Where a text stands in a message."""
Build = Callable[[Any], dict[str, Any]]
"""Makes the fields of a chunk that holds nothing but a text, or a block, at its place."""


class MessageStream:
    """The state of one message that arrives in chunks; made for one message, and used once."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._observes = guard.policy.mode == "observe"
        self._place: Place | None = None
        self._text: Answer | None = None
        self._build: Build = _content
        self._calls: AIMessageChunk | None = None
        self._later: BaseMessageChunk | None = None
        self._last: BaseMessageChunk | None = None

    @property
    def due(self) -> float | None:
        """When `flush` is due by `time.monotonic()`; None while nothing waits for it."""
        return None if self._text is None else self._text.due

    def feed(self, chunk: BaseMessageChunk) -> Iterator[BaseMessageChunk]:
        """Take a chunk, and give the chunks that may be shown now."""
        shown: list[BaseMessageChunk] = []
        try:
            self._take(chunk, shown)
        finally:
            yield from shown

    def flush(self) -> Iterator[BaseMessageChunk]:
        """Give what was held too long, moderated as it stands."""
        if self._text is not None:
            yield from self._shown(self._text.flush())

    def blank(self) -> BaseMessageChunk:
        """A chunk of the message with nothing in it."""
        return self._chunk({})

    def close(self) -> Iterator[BaseMessageChunk]:
        """Give the rest.

        Raises:
            Blocked: as `feed` and `flush`: a text or an argument of a call was withheld, and the
                policy says `on_block="raise"`.
        """
        yield from self._close_held()
        if self._later is not None:
            later, self._later = self._later, None
            yield later

    def _take(self, chunk: BaseMessageChunk, shown: list[BaseMessageChunk]) -> None:
        """Take a chunk, and put where they are shown those that may be."""
        self._last = chunk
        rest: dict[str, Any] = {
            "content": self._feed_content(chunk, shown),
            "additional_kwargs": self._feed_additional(chunk, shown),
        }
        if self._hold_calls(chunk):
            shown += self._close_text()
        if not self._observes:
            rest["response_metadata"] = without_tokens(chunk.response_metadata)
            if isinstance(chunk, AIMessageChunk):
                rest |= {"tool_call_chunks": [], "tool_calls": [], "invalid_tool_calls": []}
        left = chunk.model_copy(update=rest)
        if getattr(chunk, "chunk_position", None) == "last":
            shown += self._close_held()
            shown.append(self._joined(left))
        elif (self._text or self._calls) and not left.content and not self._observes:
            self._later = self._joined(left) if _carries(left) else self._later
        elif _carries(left) or not _carries(chunk):
            shown.append(left)

    def _close_held(self) -> Iterator[BaseMessageChunk]:
        yield from self._close_text()
        if (held := self._calls) is not None:
            self._calls = None
            done = moderated_one(self._guard, held, walk_message)
            if not self._observes:
                yield done

    def _joined(self, left: BaseMessageChunk) -> BaseMessageChunk:
        """What waited for the end of the text, with what is left of one more chunk."""
        later, self._later = self._later, None
        return left if later is None else later + left

    def _feed_content(self, chunk: BaseMessageChunk, shown: list[BaseMessageChunk]) -> Any:
        """Feed the text of the content; what is left of it passes."""
        content = chunk.content
        if isinstance(content, str):
            self._feed(("content",), content, _content, shown)
            return ""
        left = [self._feed_block(block, (), _block, shown) for block in content]
        return [block for block in left if block is not None]

    def _feed_block(
        self,
        block: Any,
        above: Place,
        build: Build,
        shown: list[BaseMessageChunk],
    ) -> Any:
        """Feed the text of a content block; what is left of it passes, None for nothing."""
        if isinstance(block, str):
            self._feed((*above, "str"), block, build, shown)
            return None
        if not isinstance(block, Mapping):
            return block
        place = (*above, block.get("index"), block.get("type"))
        if self._place is not None and not above and self._place[:2] != place:
            shown += self._close_text()
        if _is_call(block) and not self._observes:
            return None
        frame = {key: block[key] for key in ("type", "index") if key in block}
        left = dict(block)
        for key in (*PROSE, *NESTED):
            value = block.get(key)
            if isinstance(value, list) and key in NESTED:
                within = partial(_framed, build, frame, key, many=True)
                fed = [self._feed_block(each, (*place, key), within, shown) for each in value]
                left[key] = [each for each in fed if each is not None]
            elif isinstance(value, str) or (isinstance(value, Mapping) and key in NESTED):
                within = partial(_framed, build, frame, key)
                left[key] = self._feed_block(value, (*place, key), within, shown)
                if left[key] is None:
                    left[key] = type(value)()
        told = any(value for key, value in left.items() if key not in frame)
        return left if told or left == block else None

    def _feed_additional(
        self, chunk: BaseMessageChunk, shown: list[BaseMessageChunk]
    ) -> dict[str, Any]:
        """Feed the text of `additional_kwargs`; what is left of it passes."""
        left = dict(chunk.additional_kwargs)
        for key in SAID:
            if isinstance(left.get(key), str):
                self._feed((key,), left.pop(key), partial(_additional, key), shown)
        if not self._observes:
            for key in CALLED:
                left.pop(key, None)
        return left

    def _feed(self, place: Place, piece: str, build: Build, shown: list[BaseMessageChunk]) -> None:
        """Feed a piece of text, and show what may be shown; text of another place ends first."""
        if not piece:
            return
        if place != self._place:
            shown += self._close_text()
        if self._text is None:
            self._place, self._text = place, Answer(self._guard)
        self._build = build
        shown += self._shown(self._text.feed(piece))

    def _close_text(self) -> Iterator[BaseMessageChunk]:
        text, self._text, self._place = self._text, None, None
        while text is not None and (rest := text.close()):
            yield from self._shown(rest)

    def _shown(self, text: str) -> list[BaseMessageChunk]:
        return [self._chunk(self._build(text))] if text else []

    def _hold_calls(self, chunk: BaseMessageChunk) -> bool:
        """Hold what a chunk holds of calls; whether there was any."""
        if not isinstance(chunk, AIMessageChunk):
            return False
        content = chunk.content if isinstance(chunk.content, list) else []
        blocks = [block for block in content if isinstance(block, Mapping) and _is_call(block)]
        given = {key: chunk.additional_kwargs[key] for key in CALLED if key in _given(chunk)}
        if not (blocks or given or chunk.tool_call_chunks):
            return False
        held = AIMessageChunk(
            content=cast("list[str | dict[str, Any]]", blocks) or "",
            additional_kwargs=given,
            tool_call_chunks=chunk.tool_call_chunks,
            id=chunk.id,
        )
        self._calls = held if self._calls is None else self._calls + held
        return True

    def _chunk(self, fields: dict[str, Any]) -> BaseMessageChunk:
        """A chunk of this message with nothing in it but these fields."""
        assert self._last is not None  # noqa: S101 - nothing is shown before a chunk has come
        update = {name: value for name, value in _nothing().items() if hasattr(self._last, name)}
        content = "" if isinstance(self._last.content, str) else []
        return self._last.model_copy(update={**update, "content": content, **fields})


def _nothing() -> dict[str, Any]:
    """The fields of chunks in which there may be something, with nothing in them."""
    return {
        "additional_kwargs": {},
        "artifact": None,
        "chunk_position": None,
        "invalid_tool_calls": [],
        "response_metadata": {},
        "tool_call_chunks": [],
        "tool_calls": [],
        "usage_metadata": None,
    }


def _content(text: str) -> dict[str, Any]:
    return {"content": text}


def _block(block: Any) -> dict[str, Any]:
    return {"content": [block]}


def _additional(key: str, text: str) -> dict[str, Any]:
    return {"additional_kwargs": {key: text}}


def _framed(
    build: Build, frame: Any, key: str, inner: Any, *, many: bool = False
) -> dict[str, Any]:
    """The fields of a chunk with a block in which there is nothing but `inner`."""
    return build({**frame, key: [inner] if many else inner})


def _is_call(block: Mapping[str, Any]) -> bool:
    """Whether a content block is a call or a part of one."""
    return any(isinstance(block.get(key), str | Mapping) for key in ARGUMENTS)


def _given(chunk: BaseMessageChunk) -> list[str]:
    return [key for key in CALLED if chunk.additional_kwargs.get(key)]


def _carries(chunk: BaseMessageChunk) -> bool:
    """Whether a chunk says anything beyond that it belongs to its message."""
    return bool(
        chunk.content
        or chunk.additional_kwargs
        or chunk.response_metadata
        or getattr(chunk, "usage_metadata", None)
        or getattr(chunk, "tool_call_chunks", None)
        or getattr(chunk, "chunk_position", None)
    )
