"""`Guard.openai`: a client of the openai package whose completions and responses are guarded."""

from __future__ import annotations

import asyncio
import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

from srllm_guard.errors import ConfigError, MissingExtra
from srllm_guard.middleware.openai import http
from srllm_guard.middleware.openai.chat import ChatEvents
from srllm_guard.middleware.openai.payload import asked, moderated_body, wants_json
from srllm_guard.middleware.openai.responses import ResponseEvents
from srllm_guard.middleware.verbs import Direction, directed
from srllm_guard.policy import Policy

try:
    from openai import AsyncOpenAI, OpenAI
    from openai._resource import AsyncAPIResource, SyncAPIResource
except ImportError as error:
    raise MissingExtra(extra="openai", needed_for="guarding OpenAI-compatible clients") from error

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.middleware.events import Events

C = TypeVar("C")

RESPONSES = re.compile(r"/responses(?:/[^/]+){0,2}/?$")
COMPLETIONS = re.compile(r"/completions(?:/[^/]+){0,2}/?$")
CONVERSATIONS = re.compile(r"/conversations(?:/[^/]+/items(?:/[^/]+)?)?/?$")
"""Ends of the paths whose answers hold what a model wrote, now or, where it is stored, before."""

UNSEEN = re.compile(r"/(threads|agents/sessions|evals(?=/.+/output_items)|batches(?=/?$))(?:/|$)")
"""Paths where a model writes in other ways, which nothing here reads."""


def guarded(guard: Guard, client: C, *, inputs: Direction, outputs: Direction) -> C:
    """See `Guard.openai`."""
    if not isinstance(client, OpenAI | AsyncOpenAI):
        raise TypeError(
            f"expected OpenAI or AsyncOpenAI of the openai package, got {type(client).__name__}"
        )
    if isinstance(client, _Sync | _Async):
        raise ConfigError(
            "The client is guarded already.", hint="Guard the client that it was made from."
        )
    kind = type(client)
    mixin = _Sync if isinstance(client, OpenAI) else _Async
    ways = Ways(directed(guard, inputs), directed(guard, outputs))
    made: Any = client.copy()
    # Copies of a client are made by its class, so the guard is in the class: it cannot be lost.
    members = {"_srllm_ways": ways, **_without_sockets(kind)}
    made.__class__ = type(f"Guarded{kind.__name__}", (mixin, kind), members)
    return cast(C, made)


@dataclass(frozen=True, slots=True)
class Ways:
    """The guards of both directions; None guards nothing."""

    inputs: Guard | None
    outputs: Guard | None

    def refuse(self, options: Any) -> None:
        """Refuse a request to which nothing would be guarded.

        Raises:
            ConfigError: it is one.
        """
        met = UNSEEN.search(_path(options.url))
        if met is None or (self.inputs is None and self.outputs is None):
            return
        if met[1] != "batches" or options.method.lower() == "post":
            raise ConfigError(
                f"A guarded client does not ask for /{met[1]}: what a model writes there is not "
                "guarded.",
                hint="Use chat.completions or responses, or the client that was guarded, and "
                "moderate its texts by guard.moderate_many.",
            )

    def asks(self, options: Any) -> bool:
        """Whether what a request says is guarded."""
        body = _body(options)
        return self.inputs is not None and _guards(options.url) and isinstance(body, dict)

    def ask(self, options: Any) -> Any:
        """The options of a request, with what it says moderated."""
        assert self.inputs is not None  # noqa: S101 - `asks` has been asked
        body = _body(options)
        changed = asked(self.inputs, body)
        if changed is body:
            return options
        return options.model_copy(update={"json_data": changed, "extra_json": None})

    def body(self, response: Any, options: Any) -> Any:
        """A response that was read, with what it says moderated."""
        assert self.outputs is not None  # noqa: S101 - `guards` has been asked
        as_json = wants_json(_body(options))
        body = moderated_body(self.outputs, response.content, response.text, as_json=as_json)
        return response if body is None else http.with_body(response, body)

    def events(self, options: Any) -> Events:
        """What makes the events of a response anew."""
        assert self.outputs is not None  # noqa: S101
        kind = ResponseEvents if RESPONSES.search(_path(options.url)) else ChatEvents
        return kind(self.outputs, as_json=wants_json(_body(options)))

    @property
    def policy(self) -> Policy:
        """By which answers are guarded."""
        assert self.outputs is not None  # noqa: S101
        return self.outputs.policy

    def guards(self, options: Any) -> bool:
        """Whether the answer to a request is guarded."""
        return self.outputs is not None and _guards(options.url)


class _Sync(OpenAI):
    """What a guarded client does otherwise."""

    _srllm_ways: ClassVar[Ways]

    def request(self, cast_to: Any, options: Any, **rest: Any) -> Any:
        """Moderate what is sent, once, however often it has to be sent."""
        self._srllm_ways.refuse(options)
        if self._srllm_ways.asks(options):
            options = self._srllm_ways.ask(options)
        return super().request(cast_to, options, **rest)

    def _process_response(self, *, options: Any, response: Any, **rest: Any) -> Any:
        if self._srllm_ways.guards(options):
            if _streams(response, rest.get("stream")):
                ways = self._srllm_ways
                response = http.with_events(response, ways.events(options), ways.policy)
            else:
                response.read()
                response = self._srllm_ways.body(response, options)
        return super()._process_response(options=options, response=response, **rest)


class _Async(AsyncOpenAI):
    """What a guarded client does otherwise; the model runs in a thread."""

    _srllm_ways: ClassVar[Ways]

    async def request(self, cast_to: Any, options: Any, **rest: Any) -> Any:
        """Moderate what is sent, once, however often it has to be sent."""
        self._srllm_ways.refuse(options)
        if self._srllm_ways.asks(options):
            options = await asyncio.to_thread(self._srllm_ways.ask, options)
        return await super().request(cast_to, options, **rest)

    async def _process_response(self, *, options: Any, response: Any, **rest: Any) -> Any:
        if self._srllm_ways.guards(options):
            if _streams(response, rest.get("stream")):
                response = http.with_async_events(response, self._srllm_ways.events(options))
            else:
                await response.aread()
                response = await asyncio.to_thread(self._srllm_ways.body, response, options)
        return await super()._process_response(options=options, response=response, **rest)


def _body(options: Any) -> Any:
    """What a request sends, `extra_body` included."""
    body, extra = options.json_data, options.extra_json
    return {**body, **extra} if isinstance(body, dict) and extra else body


def _guards(url: str) -> bool:
    path = _path(url)
    return any(each.search(path) for each in (RESPONSES, COMPLETIONS, CONVERSATIONS))


def _path(url: str) -> str:
    return url.partition("?")[0].partition("#")[0]


def _streams(response: Any, asked_for: object) -> bool:
    """Whether the body is events: what it says it is counts before what was asked for."""
    kind = response.headers.get("content-type", "")
    return kind.startswith("text/event-stream") or bool(asked_for and "json" not in kind)


def _without_sockets(kind: type) -> dict[str, Any]:
    """The resources of a class of clients, but for connections that the guard cannot see into."""
    members = inspect.getmembers_static(kind)
    return {name: _made(each) for name, each in members if isinstance(each, cached_property)}


def _made(resource: cached_property[Any]) -> cached_property[Any]:
    return cached_property(lambda client: _closed(resource.func(client)))


def _closed(resource: Any) -> Any:
    """A resource that does not connect by WebSocket, nor does any that is reached by it."""

    def connect(*_: object, **__: object) -> NoReturn:
        raise ConfigError(
            "A guarded client does not connect by WebSocket: what comes there is not guarded.",
            hint="Use chat.completions or responses with stream=True, or the client that was "
            "guarded, and give what comes to guard.stream.",
        )

    if isinstance(resource, SyncAPIResource | AsyncAPIResource):
        if hasattr(resource, "connect"):
            resource.connect = connect
        for name, each in inspect.getmembers_static(type(resource)):
            if isinstance(each, cached_property) and not name.startswith("with_"):
                _closed(getattr(resource, name))
    return resource
