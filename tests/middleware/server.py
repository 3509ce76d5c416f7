"""A small server on loopback that speaks the API of OpenAI: scripted answers, or a real model's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], Any]
"""From the body of a request: a dict to send as JSON, a list of events to stream, a `Fault`, or a
whole `Response`."""


@dataclass(frozen=True)
class Fault:
    """An answer that is none."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long it takes."""


class Cut(Exception):
    """Ends a stream in the middle of an answer, without a goodbye."""


@dataclass
class Server:
    """What the tests say to the server, and what it saw."""

    answers: dict[str, Answer] = field(default_factory=dict)
    """By the end of the path, such as `/chat/completions`."""
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when a stream has ended, in whatever way."""
    at_exit: list[Callable[[], object]] = field(default_factory=list)
    """Called before the server stops: whose connections are closed by nobody else."""

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        body = json.loads(await request.body() or b"{}")
        self.asked.append((request.url.path, body))
        self.headers.append(dict(request.headers))
        for path, answer in self.answers.items():
            if path in request.url.path:
                made = await asyncio.to_thread(answer, body)
                return await self._respond(made)
        return JSONResponse({"error": {"message": "no such path"}}, 404)

    async def _respond(self, made: Any) -> Response:
        if isinstance(made, Response):
            return made
        if isinstance(made, Fault):
            await asyncio.sleep(made.seconds)
            return Response(made.body, made.status, made.headers, "application/json")
        if isinstance(made, dict):
            return JSONResponse(made)
        return StreamingResponse(self._stream(iter(made)), media_type="text/event-stream")

    async def _stream(self, events: Iterator[Any]) -> AsyncIterator[bytes]:
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                if isinstance(event, Cut):
                    raise event
                if isinstance(event, float):
                    await asyncio.sleep(event)
                    continue
                name = event.get("type") if isinstance(event, dict) else None
                head = f"event: {name}\n" if name else ""
                data = event if isinstance(event, str) else json.dumps(event)
                yield f"{head}data: {data}\n\n".encode()
        finally:
            self.closed.set()


@contextmanager
def serving(**answers: Answer) -> Iterator[Server]:
    """A server that runs in a thread, on a port of its own; answers by their path with `_`."""
    server = Server({"/" + path.replace("__", "/"): each for path, each in answers.items()})
    app = Starlette(routes=[Route("/{path:path}", server.handle, methods=["GET", "POST"])])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none"
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not runner.started:
        if time.monotonic() > until:
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    port = runner.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        for each in server.at_exit:
            each()
        runner.should_exit = runner.force_exit = True
        thread.join(10)


def chat(*contents: str | None, **message: Any) -> dict[str, Any]:
    """A chat completion with a choice for each content."""
    choices = [
        {
            "index": n,
            "message": {"role": "assistant", "content": content, **message},
            "finish_reason": "stop",
            "logprobs": None,
        }
        for n, content in enumerate(contents)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }


def chunk(delta: dict[str, Any], index: int = 0, **choice: Any) -> dict[str, Any]:
    """One event of a streamed chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": None, **choice}],
    }


def chat_chunks(text: str, size: int = 5, index: int = 0) -> list[dict[str, Any]]:
    """A streamed chat completion: the role, pieces of a text, the end."""
    return [
        chunk({"role": "assistant", "content": ""}, index),
        *(chunk({"content": text[n : n + size]}, index) for n in range(0, len(text), size)),
        chunk({}, index, finish_reason="stop"),
    ]


def response(*output: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    """A response of these output items."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": status,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def message(text: str, **part: Any) -> dict[str, Any]:
    """An output item that is a message of one text."""
    content = {"type": "output_text", "text": text, "annotations": [], **part}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }


def response_events(text: str, size: int = 5) -> list[dict[str, Any]]:
    """A streamed response of one message."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item, part = message(text), message(text)["content"][0]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress")},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "content": [], "status": "in_progress"},
        },
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": text[n : n + size]}
            for n in range(0, len(text), size)
        ),
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response(item)},
    ]
    for event in events:
        if event["type"].startswith("response.output_text."):
            event["logprobs"] = []
    return [{**event, "sequence_number": n} for n, event in enumerate(events)]
