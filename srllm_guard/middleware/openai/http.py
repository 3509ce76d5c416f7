"""HTTP responses, of httpx or httpx2, with other bytes in them: whole bodies, and event streams."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from srllm_guard.middleware.driven import adriven, driven
from srllm_guard.middleware.openai.sse import Decoder, Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from srllm_guard.middleware.events import Event, Events
    from srllm_guard.policy import Policy

DROPPED = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that say how the old bytes were sent."""

END = "[DONE]"


def with_body(response: Any, body: bytes) -> Any:
    """A response that is like another one, but for its body."""
    return _like(response, content=body)


def with_events(response: Any, events: Events, policy: Policy) -> Any:
    """A response that is like another one, not read yet, but for the events that it streams."""
    return _like(
        response, stream=_kind(response, "SyncByteStream", _Bytes)(response, events, policy)
    )


def with_async_events(response: Any, events: Events) -> Any:
    """`with_events` of a response that is read asynchronously."""
    return _like(response, stream=_kind(response, "AsyncByteStream", _AsyncBytes)(response, events))


def _like(response: Any, **body: Any) -> Any:
    headers = [each for each in response.headers.multi_items() if each[0].lower() not in DROPPED]
    made = type(response)(
        response.status_code,
        headers=headers,
        request=response.request,
        extensions=response.extensions,
        history=response.history,
        default_encoding=response.default_encoding,
        **body,
    )
    with suppress(RuntimeError):  # not known before the end of a stream
        made.elapsed = response.elapsed
    return made


def _kind(response: Any, name: str, stream: type) -> Any:
    """The class of byte streams that the package of a response accepts."""
    return _made(stream, getattr(sys.modules[type(response).__module__.partition(".")[0]], name))


@cache
def _made(stream: type, accepted: type) -> type:
    return type(stream.__name__, (stream, accepted), {})


class _Bytes:
    """Bytes of events made anew. It runs once, and whoever iterates takes it up where it is."""

    def __init__(self, response: Any, events: Events, policy: Policy) -> None:
        self._response = response
        self._items = driven(_messages(response), _Encoded(events), policy)

    def __iter__(self) -> Iterator[bytes]:
        return self._items

    def close(self) -> None:
        _hang_up(self._response)
        self._response.close()
        with suppress(ValueError):  # another thread is in it, and will find the response closed
            self._items.close()


class _AsyncBytes:
    """`_Bytes`, read asynchronously; the model runs in a thread."""

    def __init__(self, response: Any, events: Events) -> None:
        self._response = response
        self._items = adriven(_amessages(response), _Encoded(events))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._items

    async def aclose(self) -> None:
        with suppress(RuntimeError):  # another task is in it, and will find the response closed
            await self._items.aclose()
        await self._response.aclose()


class _Encoded:
    """Events as they are sent: messages come in, and bytes go out."""

    def __init__(self, events: Events) -> None:
        self._events = events

    @property
    def due(self) -> float | None:
        return self._events.due

    def feed(self, message: Message) -> Iterator[bytes]:
        if message.data.startswith(END):
            yield from self.close()
            yield message.encode()
            return
        try:
            event = json.loads(message.data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            yield message.encode()
            return
        if event.get("error") or event.get("type") == "error":
            yield from self.close()  # who reads the error reads nothing behind it
        yield from _encoded(self._events.take(event), message)

    def flush(self) -> Iterator[bytes]:
        return _encoded(self._events.flush(), None)

    def close(self) -> Iterator[bytes]:
        return _encoded(self._events.end(), None)


def _messages(response: Any) -> Generator[Message]:
    decoder = Decoder()
    for chunk in response.iter_bytes():
        yield from decoder.feed(chunk)


async def _amessages(response: Any) -> AsyncGenerator[Message]:
    decoder = Decoder()
    async for chunk in response.aiter_bytes():
        for message in decoder.feed(chunk):
            yield message


def _encoded(events: Iterable[Event], message: Message | None) -> Iterator[bytes]:
    """Events in the form of the message that they come instead of."""
    named = message is None or message.event is not None
    name, number = (None, None) if message is None else (message.event, message.id)
    for event in events:
        kind = event.get("type", name) if named else None
        yield Message(json.dumps(event), kind, number).encode()


def _hang_up(response: Any) -> None:
    """Let go of a connection that somebody may be waiting on in another thread.

    To close a socket does not wake who reads from it; to shut it down does. HTTP/2 shares one
    among many streams, and closes this one alone.
    """
    stream = response.extensions.get("network_stream")
    if response.is_closed or stream is None or not response.http_version.startswith("HTTP/1"):
        return
    connection = stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
