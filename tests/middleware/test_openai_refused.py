"""What a guarded client refuses: ways to what a model writes that nothing would guard."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import pytest

pytest.importorskip("openai")

from openai import AsyncOpenAI, OpenAI

from srllm_guard import Guard
from srllm_guard.errors import ConfigError
from tests.middleware.clients import Async, Sync
from tests.middleware.server import serving

both = pytest.mark.parametrize("kind", [Sync, Async])


def fetch(path: str, client: Any) -> Any:
    return client.get(path, cast_to=object)


def sockets(client: Any) -> Iterator[Any]:
    """Whatever of a client connects by WebSocket."""
    for name, each in inspect.getmembers_static(type(client)):
        if isinstance(each, cached_property) and not name.startswith("with_"):
            resource = getattr(client, name)
            if type(resource).__module__.startswith("openai.resources"):
                if hasattr(resource, "connect"):
                    yield resource.connect
                yield from sockets(resource)


@pytest.mark.parametrize("made", [OpenAI, AsyncOpenAI])
def test_nothing_connects_by_websocket(byte_guard: Guard, made: Any) -> None:
    plain = made(api_key="key")
    client = byte_guard.openai(plain)
    found = [*sockets(client), *sockets(client.with_options(timeout=5))]
    assert len(found) == 2 * len(list(sockets(plain))) > 0
    for connect in found:
        with pytest.raises(ConfigError, match="WebSocket"):
            connect(model="m")


@both
def test_what_is_written_elsewhere_is_refused(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(v1=lambda body: {"object": "list", "data": []}) as server:
        ways = kind(byte_guard, server)
        asked: tuple[tuple[str, Any], ...] = (
            ("threads", lambda c: c.get("/threads/t/messages", cast_to=object)),
            ("threads", lambda c: c.post("/threads/t/runs", cast_to=object, body={})),
            ("agents", lambda c: c.get("/agents/sessions/s/items", cast_to=object)),
            ("evals", lambda c: c.get("/evals/e/runs/r/output_items", cast_to=object)),
            ("batches", lambda c: c.post("/batches", cast_to=object, body={})),
        )
        for name, call in asked:
            with pytest.raises(ConfigError, match=f"/{name}.* not guarded") as error:
                ways.call(call)
            assert "client that was guarded" in str(error.value)
        assert server.asked == []
        for path in ("/evals/e", "/batches/b", "/vector_stores/v/file_batches/b"):
            ways.call(partial(fetch, path))
        kind(byte_guard, server, outputs=False).call(asked[0][1])
    assert len(server.asked) == 4
