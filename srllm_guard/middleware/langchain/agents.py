"""Middleware for agents of LangChain: what is asked, what is answered, what tools return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    PrivateStateAttr,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langgraph.types import Command

from srllm_guard.errors import ConfigError
from srllm_guard.middleware.langchain.chat_model import guard_model
from srllm_guard.middleware.langchain.ledger import Ledger
from srllm_guard.middleware.langchain.messages import moderated_one, walk_message
from srllm_guard.middleware.langchain.tool_events import ToolEvents
from srllm_guard.middleware.verbs import directed
from srllm_guard.policy import Policy

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ModelRequest, ModelResponse
    from langchain_core.messages import ToolMessage
    from langgraph.prebuilt.tool_node import ToolCallRequest
    from langgraph.runtime import Runtime

    from srllm_guard.guard import Guard


def _union(old: list[str] | None, new: list[str] | None) -> list[str]:
    return list(dict.fromkeys([*(old or ()), *(new or ())]))


class GuardState(AgentState[Any]):
    """The state of an agent that is guarded."""

    srllm_guard_released: NotRequired[Annotated[list[str], PrivateStateAttr, _union]]
    """Digests of the messages in the history that were moderated; nobody sets them from outside."""


class GuardMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Moderates the messages of an agent; its history and its streams hold what was released.

    Args:
        guard: moderates.
        inputs: whether what users say is moderated before the model sees it.
        outputs: whether answers and the arguments of tool calls are moderated, before a token is
            streamed or a tool is called.
        tools: whether what tools return is moderated, before the model sees it.

    Each direction is on, off, or has a policy of its own. Put it last in the list of middleware: if
    one behind it exchanges the model, that one's tokens are streamed as they are, and moderated
    only then. What tools stream themselves is moderated in `stream_events(version="v3")`.

    Raises:
        Blocked: a text was withheld, and the policy says `on_block="raise"`.
    """

    state_schema: type[AgentState[Any]] = GuardState

    def __init__(
        self,
        guard: Guard,
        *,
        inputs: bool | Policy = True,
        outputs: bool | Policy = True,
        tools: bool | Policy = False,
    ) -> None:
        super().__init__()
        self._inputs = directed(guard, inputs)
        self._outputs = directed(guard, outputs)
        self._tools = directed(guard, tools)
        if self._tools is not None:
            self.transformers = (partial(ToolEvents, guard=self._tools),)

    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Moderate what users said and was not moderated yet."""
        del runtime
        said = (each for each in state["messages"] if isinstance(each, HumanMessage))
        return _settled(self._inputs, said, state)

    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Moderate what another middleware made of the answer."""
        del runtime
        last = next(
            (each for each in reversed(state["messages"]) if isinstance(each, AIMessage)), None
        )
        return _settled(self._outputs, [] if last is None else [last], state)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Call a model that releases what was moderated, also while it streams."""
        if self._outputs is None:
            return handler(request)
        ledger = Ledger(self._outputs.policy.hash)
        response = handler(_guarded(self._outputs, request, ledger))
        return _released(self._outputs, response, ledger)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Moderate what a tool returns."""
        result = handler(request)
        return result if self._tools is None else _returned(self._tools, result)

    async def abefore_model(
        self, state: AgentState[Any], runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """`before_model` without blocking the event loop."""
        return await asyncio.to_thread(self.before_model, state, runtime)

    async def aafter_model(
        self, state: AgentState[Any], runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """`after_model` without blocking the event loop."""
        return await asyncio.to_thread(self.after_model, state, runtime)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """`wrap_model_call` without blocking the event loop."""
        if self._outputs is None:
            return await handler(request)
        ledger = Ledger(self._outputs.policy.hash)
        response = await handler(_guarded(self._outputs, request, ledger))
        return await asyncio.to_thread(_released, self._outputs, response, ledger)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """`wrap_tool_call` without blocking the event loop."""
        result = await handler(request)
        if self._tools is None:
            return result
        return await asyncio.to_thread(_returned, self._tools, result)


def _settled(
    guard: Guard | None, messages: Iterable[BaseMessage], state: AgentState[Any]
) -> dict[str, Any] | None:
    """The update of the state after messages were moderated that had not been yet."""
    if guard is None:
        return None
    released = cast("GuardState", state).get("srllm_guard_released", ())
    ledger = Ledger(guard.policy.hash, released)
    todo = [message for message in messages if message not in ledger]
    if not todo:
        return None
    done = _moderated(guard, todo)
    for message in done:
        ledger.add(message)
    # Messages take the place of those with the same id.
    changed = [new for old, new in zip(todo, done, strict=True) if new is not old]
    return {"messages": changed, "srllm_guard_released": ledger.digests()}


def _guarded(guard: Guard, request: ModelRequest[Any], ledger: Ledger) -> ModelRequest[Any]:
    model = guard_model(guard, request.model, inputs=False, on_answer=ledger.add)
    return request.override(model=model)


def _released(
    guard: Guard, response: ModelResponse[Any], ledger: Ledger
) -> ExtendedModelResponse[Any]:
    """The response with what was not released by the guarded model moderated."""
    answers = [m for m in response.result if isinstance(m, AIMessage) and m not in ledger]
    if answers:
        done = dict(zip(map(id, answers), _moderated(guard, answers), strict=True))
        result = [done.get(id(message), message) for message in response.result]
        changed = any(new is not old for new, old in zip(result, response.result, strict=True))
        if changed and response.structured_response is not None:
            raise ConfigError(
                "A middleware behind GuardMiddleware exchanged the model, and what it structured "
                "is unsafe.",
                hint="Put GuardMiddleware last in the list of middleware.",
            )
        for message in done.values():
            ledger.add(message)
        response = replace(response, result=result)
    command: Command[Any] = Command(update={"srllm_guard_released": ledger.digests()})
    return ExtendedModelResponse(response, command)


def _returned(guard: Guard, result: Any) -> Any:
    """What a tool returned, moderated: a message, or a command with messages for the history."""
    if isinstance(result, BaseMessage):
        return moderated_one(guard, result, walk_message)
    if isinstance(result, Command) and isinstance(result.update, dict):
        given = result.update.get("messages")
        if isinstance(given, list | tuple | BaseMessage | str):
            messages = convert_to_messages(given if isinstance(given, list | tuple) else [given])
            update = {**result.update, "messages": _moderated(guard, messages)}
            return replace(result, update=update)
    return result


def _moderated(guard: Guard, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    return moderated_one(
        guard, list(messages), lambda all_, walk: [walk_message(m, walk) for m in all_]
    )
