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
from functools import lru_cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import ShapeError
from srllm_guard.middleware.anthropic import EVENTS, HELPERS, MessageEvents
from srllm_guard.middleware.selectors import Known, Place
from srllm_guard.middleware.stream import Strings, TextStream
from srllm_guard.middleware.waiting import earliest
from srllm_guard.structure.mixed import moderate_texts
from srllm_guard.structure.records import ABSENT, field
from srllm_guard.structure.visiting import BYTES, WITHOUT_TEXT, Visitor, Where, entries

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.middleware.driven import Stage
    from srllm_guard.middleware.events import Events

REMEMBERED = 64
"""Strings of data beside the texts of a stream that are moderated once; most are in each item."""


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
        if isinstance(item, WITHOUT_TEXT) and not isinstance(item, BYTES):
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

    What is held of a place when the stream ends is given in a copy of its last item. Data beside
    the texts, such as the name of a provider, is moderated as a whole in each item.
    """

    def __init__(self, guard: Guard, place: Place) -> None:
        self._guard = guard
        self._place = place
        self._texts: dict[Where, TextStream] = {}
        self._last: dict[Where, tuple[Any, list[Any]]] = {}
        """The last item of each place, with what is released of the tool calls in it."""
        self._data = lru_cache(REMEMBERED)(self._moderated)

    @property
    def due(self) -> float | None:
        """See `Stage`."""
        return earliest(self._texts.values())

    def feed(self, item: Any) -> Iterator[Any]:
        """See `Stage`."""
        calls: list[Any] = []

        def fed(piece: str, where: Where) -> str:
            self._last[where] = item, calls
            text = self._texts.setdefault(where, TextStream(self._guard))
            shown = text.feed(piece)
            return piece if shown == piece else shown

        def called(call: Any, _: Where) -> Any:
            (done,) = self._guard.moderate_tool_calls([call])
            self._guard.released(done.moderation)
            calls.append(done.call)
            return done.call

        shown = self._place.walk(item, Visitor(fed, called, data=self._beside))
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
        item, calls = self._last[where]
        next_call = iter(calls)
        visitor = Visitor(
            partial(_only, where, rest), lambda *_: next(next_call), data=self._beside
        )
        return self._place.walk(item, visitor)

    def _beside(self, data: str, _: Where) -> str:
        shown = self._data(data)
        return data if shown == data else shown

    def _moderated(self, data: str) -> str:
        (result,) = moderate_texts(self._guard, [data])
        return self._guard.released(result)


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
        as_dict = _plain(item) if isinstance(item, dict) else _dumped(item)
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
            return made.parse_obj(event) if hasattr(made, "parse_obj") else event
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
    if _is_dict(item) or hasattr(item, "model_dump"):
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


def _is_dict(item: Any) -> bool:
    """Whether it is a dict that can be made anew: one that is read by its keys, or parses them."""
    if not isinstance(item, dict):
        return False
    named = (name for name in item if isinstance(name, str) and not hasattr(dict, name))
    return hasattr(item, "parse_obj") or not any(hasattr(item, name) for name in named)


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


def _plain(value: Any) -> Any:
    """A copy of dicts of any class, and of what is in them, of plain ones."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in entries(value) or ()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return copy.deepcopy(value)


def _only(wanted: Where, rest: str, _: str, where: Where) -> str:
    """What stands at each place of an item that brings the rest of one text."""
    return rest if where == wanted else ""
