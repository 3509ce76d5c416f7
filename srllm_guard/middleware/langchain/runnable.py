"""The guard as a link of a chain: `prompt | llm | guard.as_runnable()`."""

# ruff: noqa: A002, ARG002 - the signatures are those of LangChain's Runnable

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Annotated, Any

from langchain_core.messages import AnyMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf

from srllm_guard.guard import Guard
from srllm_guard.middleware.driven import adriven, driven
from srllm_guard.middleware.langchain.messages import moderated, moderated_one, walk_value
from srllm_guard.middleware.langchain.values import ValueStream
from srllm_guard.policy import Policy


def _policy(value: Any) -> Any:
    """A policy as configurations hold it: plain data."""
    return Policy.from_dict(value) if isinstance(value, Mapping) else value


class GuardRunnable(RunnableSerializable[Any, Any]):
    """Moderates what passes: text, messages, prompts, or one key of a dict.

    Of a prompt and of a list of messages, all are moderated but those of the system. Streams are
    moderated sentence by sentence. The string arguments of tool calls are moderated like the text.

    `batch` and `abatch` moderate all inputs in one pass. A chain with a guard in it can be dumped
    but not loaded: a guard holds weights, and which ones is for the application to say.

    Raises:
        Blocked: a text was withheld, and the policy says `on_block="raise"`.
        TypeError: an input in which text cannot be found.
    """

    guard: InstanceOf[Guard] = Field(exclude=True, repr=False)
    """Moderates."""
    key: str | None = None
    """The key of the text, where inputs are dicts; the other keys pass as they are."""
    policy: Annotated[InstanceOf[Policy] | None, BeforeValidator(_policy)] = None
    """In place of the guard's own policy; a mapping of fields makes one. For
    `configurable_fields`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name
        """What goes in."""
        if self.key is not None:
            return dict[str, Any]
        return str | AnyMessage | list[AnyMessage] | PromptValue

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """What comes out: the type of what went in."""
        return self.InputType

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Moderate one value."""
        return self._call_with_config(self._one, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke` without blocking the event loop."""

        async def one(value: Any) -> Any:
            return await asyncio.to_thread(self._one, value)

        return await self._acall_with_config(one, input, config)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Moderate values in one pass."""
        return self._batch_with_config(
            self._many, inputs, config, return_exceptions=return_exceptions
        )

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` without blocking the event loop."""

        async def many(values: list[Any]) -> list[Any]:
            return await asyncio.to_thread(self._many, values)

        return await self._abatch_with_config(
            many, inputs, config, return_exceptions=return_exceptions
        )

    def transform(
        self,
        input: Iterator[Any],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Moderate a stream of chunks; what comes out, added up, is what `invoke` gives."""
        yield from self._transform_stream_with_config(input, self._stream, config)

    async def atransform(
        self,
        input: AsyncIterator[Any],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`transform` without blocking the event loop."""
        async for each in self._atransform_stream_with_config(input, self._astream, config):
            yield each

    def stream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Moderate one value, as a stream."""
        yield from self.transform(iter([input]), config)

    async def astream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""

        async def single() -> AsyncIterator[Any]:
            yield input

        async for each in self.atransform(single(), config):
            yield each

    def _guard(self) -> Guard:
        return self.guard if self.policy is None else self.guard.with_policy(self.policy)

    def _walk(self, value: Any, walk: Any) -> Any:
        return walk_value(value, walk, self.key)

    def _one(self, value: Any) -> Any:
        return moderated_one(self._guard(), value, self._walk)

    def _many(self, values: list[Any]) -> list[Any]:
        return moderated(self._guard(), values, self._walk)

    def _stream(self, values: Iterator[Any]) -> Iterator[Any]:
        guard = self._guard()
        return driven(values, ValueStream(guard, self.key), guard.policy)

    def _astream(self, values: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return adriven(values, ValueStream(self._guard(), self.key))
