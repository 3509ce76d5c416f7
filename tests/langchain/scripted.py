"""A chat model that says what it is told to, whole or in chunks, with tools, usage and metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import PrivateAttr


class ScriptedModel(BaseChatModel):
    """Gives the next of its answers each time, and remembers what it was asked."""

    answers: list[AIMessage]
    model_name: str = "script"
    _asked: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _kwargs: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @property
    def asked(self) -> list[list[BaseMessage]]:
        return self._asked

    @property
    def kwargs(self) -> list[dict[str, Any]]:
        return self._kwargs

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._next(messages, kwargs).model_copy()
        info = {"finish_reason": "stop", "model_name": self.model_name}
        return ChatResult(generations=[ChatGeneration(message=answer, generation_info=info)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._next(messages, kwargs)
        for chunk in _chunks(answer):
            yield ChatGenerationChunk(message=chunk)
        end = AIMessageChunk(content="", usage_metadata=answer.usage_metadata)
        info = {"finish_reason": "stop", "model_name": self.model_name}
        yield ChatGenerationChunk(message=end, generation_info=info)

    def _next(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
        self._asked.append(messages)
        self._kwargs.append(kwargs)
        return self.answers[(len(self._asked) - 1) % len(self.answers)]


def _chunks(answer: AIMessage) -> Iterator[AIMessageChunk]:
    if isinstance(answer.content, str):
        for piece in re.findall(r"\s*\S+", answer.content):
            yield AIMessageChunk(content=piece)
    else:
        for n, block in enumerate(answer.content):
            assert isinstance(block, dict)
            for piece in re.findall(r"\s*\S+", block.get("text", "")):
                yield AIMessageChunk(content=[{"type": "text", "text": piece, "index": n}])
            if "text" not in block:
                yield AIMessageChunk(content=[{**block, "index": n}])
    for n, call in enumerate(answer.tool_calls):
        args = json.dumps(call["args"])
        half = len(args) // 2
        for name, id_, part in ((call["name"], call["id"], args[:half]), (None, None, args[half:])):
            chunk = tool_call_chunk(name=name, args=part, id=id_, index=n)
            yield AIMessageChunk(content="", tool_call_chunks=[chunk])
