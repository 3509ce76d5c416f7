"""Streams of a wrapped function: the text of the items is guarded as one, all else stays as it was.

Known are strings, chunks of chat completions, events of OpenAI's responses and of Anthropic's
messages (dicts, or the objects of an SDK, which are pydantic models), and message chunks of
LangChain; of anything else a selector says where the text is.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import ShapeError
from srllm_guard.middleware.anthropic import EVENTS, HELPERS, MessageEvents
from srllm_guard.middleware.records import ABSENT, field
from srllm_guard.middleware.selectors import Known, Place
from srllm_guard.middleware.shapes import WITHOUT_TEXT, Visitor, Where
from srllm_guard.middleware.stream import Strings, TextStream
from srllm_guard.middleware.waiting import earliest

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.middleware.driven import Stage
    from srllm_guard.middleware.openai.http import Events


class Pieces:
    """The state of one stream, whatever its items are; see `Stage`."""

    def __init__(self, guard: Guard, place: Place) -> None:
        self._guard = guard
        self._place = place
        self._part: Stage | None = None

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return None if self._part is None else self._part.due

    def feed(self, item: Any) -> Iterable[Any]:
        """See `Stage`.

        Raises:
            ShapeError: where the text is in such an item is not known.
        """
        if isinstance(item, WITHOUT_TEXT):
            return [item]
        kind = _kind(item, self._place, self._part)
        if isinstance(self._part, kind):
            return self._part.feed(item)
        before, self._part = self.close(), kind(self._guard, self._place)
        return chain(before, self._part.feed(item))

    def flush(self) -> Iterable[Any]:
        """See `Stage`."""
        return () if self._part is None else self._part.flush()

    def close(self) -> Iterable[Any]:
        """See `Stage`."""
        return () if self._part is None else self._part.close()


class Texts(Strings):
    """Strings: the pieces of one text."""

    def __init__(self, guard: Guard, _: Place) -> None:
        super().__init__(guard)


class Places:
    """Items of which a selector says where the text is: each place is one text.

    What is held of a place when the stream ends is given in a copy of its last item.
    """

    def __init__(self, guard: Guard, place: Place) -> None:
        self._guard = guard
        self._place = place
        self._texts: dict[Where, TextStream] = {}
        self._last: dict[Where, Any] = {}

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return earliest(self._texts.values())

    def feed(self, item: Any) -> Iterator[Any]:
        """See `Stage`."""

        def fed(piece: str, where: Where) -> str:
            self._last[where] = item
            text = self._texts.setdefault(where, TextStream(self._guard))
            shown = text.feed(piece)
            return piece if shown == piece else shown

        def moderated(call: Any, _: Where) -> Any:
            (done,) = self._guard.moderate_tool_calls([call])
            self._guard.released(done.moderation)
            return done.call

        shown = self._place.walk(item, Visitor(fed, moderated))
        if shown != "" or item == "":
            yield shown

    def flush(self) -> Iterator[Any]:
        """See `Stage`."""
        now = time.monotonic()
        for where, text in self._texts.items():
            if text.due and text.due <= now and (shown := text.flush()):
                yield self._made(where, shown)

    def close(self) -> Iterator[Any]:
        """See `Stage`."""
        texts, self._texts = self._texts, {}
        for where, text in texts.items():
            while rest := text.close():
                yield self._made(where, rest)

    def _made(self, where: Where, rest: str) -> Any:
        """An item that brings nothing but the rest of one text."""
        visitor = Visitor(partial(_only, where, rest), lambda call, _: call)
        return self._place.walk(self._last[where], visitor)


class Chunks(ABC):
    """Items of a stream of some API, each given in the type that it came in."""

    def __init__(self, guard: Guard, _: Place) -> None:
        self._events = self.events(guard)
        self._types: dict[str, type] = {}

    @staticmethod
    @abstractmethod
    def events(guard: Guard) -> Events:
        """What guards them as dicts."""

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return self._events.due

    def feed(self, item: Any) -> Iterator[Any]:
        """See `Stage`."""
        as_dict = copy.deepcopy(item) if isinstance(item, dict) else _dumped(item)
        name = _name(as_dict)
        if name == "error":
            yield from self.close()  # who reads the error reads nothing behind it
        self._types[name] = type(item)
        for each in self._events.take(copy.deepcopy(as_dict)):
            yield item if each == as_dict else self._made(each)

    def flush(self) -> Iterable[Any]:
        """See `Stage`."""
        return map(self._made, self._events.flush())

    def close(self) -> Iterable[Any]:
        """See `Stage`."""
        return map(self._made, self._events.end())

    def _made(self, event: dict[str, Any]) -> Any:
        """An event in the type that it came in."""
        made = self._types[_name(event)]
        if issubclass(made, dict):
            return event
        # The SDK does not validate what comes in, since servers do not always conform.
        if made.__module__.startswith(("openai.", "anthropic.")):
            return made.construct(**event)  # type: ignore[attr-defined]
        return made.model_validate(event)  # type: ignore[attr-defined]


class Completions(Chunks):
    """Chunks of a completion, plain or chat."""

    @staticmethod
    def events(guard: Guard) -> Events:
        """See `ChatEvents`."""
        from srllm_guard.middleware.openai.chat import ChatEvents

        return ChatEvents(guard, as_json=False)


class Responses(Chunks):
    """Events of a response of OpenAI's API."""

    @staticmethod
    def events(guard: Guard) -> Events:
        """See `ResponseEvents`."""
        from srllm_guard.middleware.openai.responses import ResponseEvents

        return ResponseEvents(guard, as_json=False)


class AnthropicMessages(Chunks):
    """Events of messages of Anthropic's API."""

    @staticmethod
    def events(guard: Guard) -> Events:
        """See `MessageEvents`."""
        return MessageEvents(guard)


class Messages:
    """Message chunks of LangChain, told apart as in its own streams; see `ValueStream`."""

    def __init__(self, guard: Guard, _: Place) -> None:
        from srllm_guard.middleware.langchain.values import ValueStream

        self._values = ValueStream(guard)

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return self._values.due

    def feed(self, item: Any) -> Iterator[Any]:
        """See `Stage`."""
        return self._values.feed(item)

    def flush(self) -> Iterator[Any]:
        """See `Stage`."""
        return self._values.flush()

    def close(self) -> Iterator[Any]:
        """See `Stage`."""
        return self._values.close()


def _kind(item: Any, place: Place, part: Stage | None) -> type[Texts | Places | Chunks | Messages]:
    """What an item is taken for, behind the part of the stream that came before it."""
    if not isinstance(place, Known):
        return Places
    if isinstance(item, str):
        return Texts
    if any(base.__name__ == "BaseMessageChunk" for base in type(item).__mro__):
        return Messages
    if isinstance(item, dict) or hasattr(item, "model_dump"):
        name = _name(item)
        if _is_chunk(item):
            return Completions
        if name.startswith("response."):
            return Responses
        if _is_event(item, name) or (isinstance(part, AnthropicMessages) and name in HELPERS):
            return AnthropicMessages
        if isinstance(part, Chunks) and name == "error":
            return type(part)
    raise ShapeError(
        f"A stream gave a value of type {type(item).__name__}, and how its text goes on in the "
        "next one is not known.",
        hint='Say where it is by output_text: a path such as "delta.text", or a pair of functions '
        "(get, put). What stands there is taken for pieces of one text.",
    )


def _is_chunk(item: Any) -> bool:
    choices = field(item, "choices")
    return isinstance(choices, list) and all(
        field(choice, "delta") is not ABSENT or field(choice, "text") is not ABSENT
        for choice in choices
    )


def _is_event(item: Any, name: str) -> bool:
    """Whether it is an event of Anthropic's API."""
    return name in EVENTS and field(item, EVENTS[name]) is not ABSENT


def _name(event: Any) -> str:
    """The type of an event; empty for chunks, which are all of one type."""
    name = field(event, "type")
    return name if isinstance(name, str) else ""


def _dumped(item: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = item.model_dump(by_alias=True, exclude_unset=True, warnings=False)
    return dumped


def _only(wanted: Where, rest: str, _: str, where: Where) -> str:
    """What stands at each place of an item that brings the rest of one text."""
    return rest if where == wanted else ""
