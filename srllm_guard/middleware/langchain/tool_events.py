"""What tools stream by themselves, moderated before anyone who follows an agent's run sees it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.messages import BaseMessage
from langgraph.stream import StreamTransformer
from langgraph.types import Command

from srllm_guard.middleware.langchain.answer import Answer
from srllm_guard.middleware.langchain.messages import (
    Walk,
    moderated_one,
    walk_block,
    walk_message,
)

if TYPE_CHECKING:
    from langgraph.stream._types import ProtocolEvent

    from srllm_guard.guard import Guard


class ToolEvents(StreamTransformer):
    """Moderates the events of the channel "tools" of `stream_events(version="v3")`.

    The model's own tokens need no transformer: the model that streams them is a guarded one. A
    tool's output is streamed before the middleware sees what the tool returned.

    Args:
        scope: namespace of the graph, given by langgraph.
        guard: moderates.
    """

    before_builtins: ClassVar[bool] = True
    required_stream_modes: ClassVar[tuple[str, ...]] = ("tools",)
    supports_sync: ClassVar[bool] = True

    def __init__(self, scope: tuple[str, ...] = (), *, guard: Guard) -> None:
        super().__init__(scope)
        self._guard = guard
        self._texts: dict[str, Answer] = {}

    def init(self) -> dict[str, Any]:
        """No projection: events are changed where they are."""
        return {}

    def process(self, event: ProtocolEvent) -> bool:
        """Moderate one event; False where all of it is held back."""
        data = event["params"].get("data")
        if event["method"] != "tools" or not isinstance(data, dict):
            return True
        call = str(data.get("tool_call_id"))
        match data.get("event"):
            case "tool-output-delta":
                return self._piece(data, call)
            case "tool-finished":
                # What is still held of the pieces is in the output.
                self._texts.pop(call, None)
                data["output"] = moderated_one(self._guard, data.get("output"), _walk)
            case "tool-error":
                self._texts.pop(call, None)
                data["message"] = moderated_one(self._guard, data.get("message"), _walk)
        return True

    async def aprocess(self, event: ProtocolEvent) -> bool:
        """`process` without blocking the event loop."""
        if event["method"] != "tools":
            return True
        return await asyncio.to_thread(self.process, event)

    def _piece(self, data: dict[str, Any], call: str) -> bool:
        piece = data.get("delta")
        if not isinstance(piece, str):
            data["delta"] = moderated_one(self._guard, piece, _walk)
            return True
        data["delta"] = self._texts.setdefault(call, Answer(self._guard)).feed(piece)
        return bool(data["delta"])


def _walk(value: Any, walk: Walk) -> Any:
    """Visit all strings of what a tool returned, or of the state that its command sets."""
    if isinstance(value, Command):
        return replace(value, update=_walk(value.update, walk))
    if isinstance(value, BaseMessage):
        return walk_message(value, walk)
    if isinstance(value, str):
        return walk_block(value, walk)
    if isinstance(value, dict):
        return {key: _walk(each, walk) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_walk(each, walk) for each in value)
    if isinstance(value, list | tuple):
        return type(value)(_walk(each, walk) for each in value)
    return value
