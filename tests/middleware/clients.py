"""A guarded client, sync or async, behind one face: every test of behaviour runs for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from openai import AsyncOpenAI, OpenAI

from srllm_guard import Guard
from tests.middleware.server import Server

Make = Callable[[Any], Any]
"""From a client to what a call of it returns, awaitable where the client is async."""


def is_exactly(value: object, kind: type) -> bool:
    """Whether it is of that class and no other."""
    return type(value) is kind


class Sync:
    """Calls of `OpenAI`."""

    def __init__(self, guard: Guard, server: Server, **directions: Any) -> None:
        self.plain = OpenAI(base_url=server.url, api_key="key", max_retries=0)
        self.client = guard.openai(self.plain, **directions)
        server.at_exit.append(self.plain.close)

    def call(self, make: Make) -> Any:
        return make(self.client)

    def events(self, make: Make, into: list[Any] | None = None) -> list[Any]:
        """All events of a stream; those before an error are in `into`."""
        found = [] if into is None else into
        with make(self.client) as stream:
            for event in stream:
                found.append(event)
        return found


class Async:
    """Calls of `AsyncOpenAI`, each in a loop of its own."""

    def __init__(self, guard: Guard, server: Server, **directions: Any) -> None:
        self._guard, self._url, self._directions = guard, server.url, directions

    def _make(self) -> AsyncOpenAI:
        plain = AsyncOpenAI(base_url=self._url, api_key="key", max_retries=0)
        return self._guard.openai(plain, **self._directions)

    def call(self, make: Make) -> Any:
        async def run() -> Any:
            async with self._make() as client:
                return await make(client)

        return asyncio.run(run())

    def events(self, make: Make, into: list[Any] | None = None) -> list[Any]:
        found = [] if into is None else into

        async def run() -> None:
            async with self._make() as client:
                made = make(client)
                async with await made if asyncio.iscoroutine(made) else made as stream:
                    async for event in stream:
                        found.append(event)

        asyncio.run(run())
        return found
