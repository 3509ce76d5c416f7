"""A chat model around another one: what it is asked and what it answers is moderated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, InstanceOf, model_validator

from srllm_guard.guard import Guard
from srllm_guard.middleware.driven import adriven, driven
from srllm_guard.middleware.langchain.around import exchange
from srllm_guard.middleware.langchain.generations import (
    GenerationStream,
    OnAnswer,
    walk_generations,
)
from srllm_guard.middleware.langchain.messages import (
    Walk,
    is_asked,
    moderated_one,
    walk_message,
)
from srllm_guard.middleware.verbs import directed
from srllm_guard.policy import Policy

if TYPE_CHECKING:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )
    from langchain_core.language_models.base import LangSmithParams

ADOPTED = (
    "cache",
    "callbacks",
    "custom_get_token_ids",
    "disable_streaming",
    "metadata",
    "output_version",
    "profile",
    "rate_limiter",
    "tags",
    "verbose",
)
"""Settings of the inner model that act around a call, and so act around the guarded one; as far as
its langchain-core has them."""


class GuardedChatModel(BaseChatModel):
    """A chat model whose messages are moderated; in all else it is the model within.

    Args:
        guard: moderates.
        inner: the chat model that answers. It is called below its callbacks, cache and rate
            limiter, which this model takes over: each acts once, and sees what was released.
        inputs: whether messages of users and tools are moderated before the model sees them.
            Instructions and its own earlier answers are not. A policy moderates by that policy.
        outputs: whether answers and the arguments of tool calls are moderated, streams included.

    Answers that are JSON are moderated as JSON. Likelihoods of tokens (`logprobs`) are left out of
    streams, and wherever the text was changed: they spell what was moderated.

    Raises:
        Blocked: a text was withheld, and the policy says `on_block="raise"`.
    """

    guard: InstanceOf[Guard] = Field(exclude=True, repr=False)
    inner: InstanceOf[BaseChatModel]
    inputs: bool | InstanceOf[Policy] = True
    outputs: bool | InstanceOf[Policy] = True
    on_answer: OnAnswer | None = Field(default=None, exclude=True, repr=False)
    """Called with every answer as it was released, and streams as one message."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _adopt(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("inner"), BaseChatModel):
            return values
        inner = values["inner"]
        known = [name for name in ADOPTED if name in type(inner).model_fields]
        return {**{name: getattr(inner, name) for name in known}, **values}

    @property
    def model_name(self) -> str | None:
        """The name of the model within, where it has one."""
        names = (getattr(self.inner, name, None) for name in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str) and name), None)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Bind tools as the model within does, with the guard around it."""
        return exchange(self.inner.bind_tools(tools, **kwargs), self._around)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[Any, Any]:
        """Structure answers as the model within does, with the guard around it."""
        inner = self.inner.with_structured_output(schema, **kwargs)
        guarded = exchange(inner, self._around)
        if guarded is inner:  # what it made does not show the model in it
            return super().with_structured_output(schema, **kwargs)
        return guarded

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of the model within."""
        return self.inner.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        """Number of tokens as the model within counts them."""
        return self.inner.get_num_tokens_from_messages(messages, tools)

    @property
    def _llm_type(self) -> str:
        return f"guarded-{self.inner._llm_type}"  # noqa: SLF001 - a model's own hooks

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self.inner._identifying_params, **self._guarded_by()}  # noqa: SLF001

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # The run's callbacks would see what is not moderated yet: they get it from this model.
        del run_manager
        asked = self._asked(messages)
        return self._answered(self.inner._generate(asked, stop=stop, **kwargs))  # noqa: SLF001

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        asked = await asyncio.to_thread(self._asked, messages)
        result = await self.inner._agenerate(asked, stop=stop, **kwargs)  # noqa: SLF001
        return await asyncio.to_thread(self._answered, result)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        del run_manager
        chunks = self.inner._stream(self._asked(messages), stop=stop, **kwargs)  # noqa: SLF001
        guard = directed(self.guard, self.outputs)
        if guard is None:
            yield from chunks
            return
        stream = GenerationStream(guard, self.on_answer)
        yield from driven(chunks, stream, guard.policy)
        stream.tell()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del run_manager
        asked = await asyncio.to_thread(self._asked, messages)
        chunks = self.inner._astream(asked, stop=stop, **kwargs)  # noqa: SLF001
        guard = directed(self.guard, self.outputs)
        if guard is None:
            async for chunk in chunks:
                yield chunk
            return
        stream = GenerationStream(guard, self.on_answer)
        async with aclosing(adriven(chunks, stream)) as released:
            async for shown in released:
                yield shown
        stream.tell()

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return super()._should_stream(
            async_api=async_api, run_manager=run_manager, **kwargs
        ) and self._inner_streams(async_api, kwargs)

    def _should_use_protocol_streaming(
        self, *, async_api: bool, run_manager: Any = None, **kwargs: Any
    ) -> bool:
        return super()._should_use_protocol_streaming(
            async_api=async_api, run_manager=run_manager, **kwargs
        ) and self._inner_streams(async_api, kwargs)

    def _inner_streams(self, async_api: bool, kwargs: dict[str, Any]) -> bool:
        return self.inner._should_stream(async_api=async_api, **{"stream": True, **kwargs})  # noqa: SLF001

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.inner._get_ls_params(stop=stop, **kwargs)  # noqa: SLF001

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        inner = self.inner._get_invocation_params(stop=stop, **kwargs)  # noqa: SLF001
        return {**inner, **self._guarded_by()}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The key of the cache: what is in it was released by these policies.
        inner = self.inner._get_llm_string(stop=stop, **kwargs)  # noqa: SLF001
        return f"{inner}---{sorted(self._guarded_by().items())}"

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.inner._combine_llm_outputs(llm_outputs)  # noqa: SLF001

    def _guarded_by(self) -> dict[str, Any]:
        """What tells one guarded model from another around the same model."""
        runtime = self.guard.runtime
        directions = {"guard_inputs": self.inputs, "guard_outputs": self.outputs}
        return {"guard_bundle": runtime.bundle_hash} | {
            name: guard and guard.policy.hash
            for name, guard in ((name, directed(self.guard, d)) for name, d in directions.items())
        }

    def _around(self, inner: BaseChatModel) -> Self:
        if inner is self.inner:
            return self
        given = {name: getattr(self, name) for name in self.model_fields_set if name not in ADOPTED}
        return type(self)(**{**given, "inner": inner})

    def _asked(self, messages: list[BaseMessage]) -> list[BaseMessage]:
        guard = directed(self.guard, self.inputs)
        return messages if guard is None else moderated_one(guard, messages, _walk_asked)

    def _answered(self, result: ChatResult) -> ChatResult:
        guard = directed(self.guard, self.outputs)
        if guard is not None:
            new = moderated_one(guard, result.generations, walk_generations)
            if new is not result.generations:
                result = result.model_copy(update={"generations": new})
        if self.on_answer is not None:
            for generation in result.generations:
                self.on_answer(generation.message)
        return result


@overload
def guard_model(
    guard: Guard,
    model: BaseChatModel,
    *,
    inputs: bool | Policy = ...,
    outputs: bool | Policy = ...,
    on_answer: OnAnswer | None = ...,
) -> GuardedChatModel: ...


@overload
def guard_model(
    guard: Guard,
    model: Runnable[Any, Any],
    *,
    inputs: bool | Policy = ...,
    outputs: bool | Policy = ...,
    on_answer: OnAnswer | None = ...,
) -> Runnable[Any, Any]: ...


def guard_model(
    guard: Guard,
    model: Runnable[Any, Any],
    *,
    inputs: bool | Policy = True,
    outputs: bool | Policy = True,
    on_answer: OnAnswer | None = None,
) -> Runnable[Any, Any]:
    """See `Guard.guard_model`; the arguments are the fields of `GuardedChatModel`."""

    def guarded(inner: BaseChatModel) -> BaseChatModel:
        return GuardedChatModel(
            guard=guard, inner=inner, inputs=inputs, outputs=outputs, on_answer=on_answer
        )

    found = exchange(model, guarded)
    if found is model:
        raise TypeError(
            f"expected a chat model or a runnable with one in it, got {type(model).__name__}; "
            "where the model is chosen at run time, guard what it answers: "
            "model | guard.as_runnable()"
        )
    return found


def _walk_asked(messages: list[BaseMessage], walk: Walk) -> list[BaseMessage]:
    new = [walk_message(each, walk) if is_asked(each) else each for each in messages]
    return messages if all(a is b for a, b in zip(messages, new, strict=True)) else new
