"""The guard in LangChain: a runnable, a chat model around another one, a middleware for agents.

    prompt | llm | guard.as_runnable()
    guard.guard_model(llm)
    create_agent(llm, tools, middleware=[GuardMiddleware(guard)])

The first two need langchain-core, the middleware needs langchain; each name is imported when it is
first used. The text of messages is moderated; their class, id, name, usage, metadata and everything
else that is no prose is kept, and a message that is safe is the same object.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import MissingExtra

if TYPE_CHECKING:
    from srllm_guard.middleware.langchain.agents import GuardMiddleware
    from srllm_guard.middleware.langchain.chat_model import GuardedChatModel, guard_model
    from srllm_guard.middleware.langchain.runnable import GuardRunnable

__all__ = ["GuardMiddleware", "GuardRunnable", "GuardedChatModel", "guard_model"]

_HOMES = {
    "GuardMiddleware": "agents",
    "GuardRunnable": "runnable",
    "GuardedChatModel": "chat_model",
    "guard_model": "chat_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("langchain", "langchain_core", "langgraph"):
            raise
        extra = "langchain" if package == "langchain_core" else "agents"
        raise MissingExtra(extra=extra, needed_for=name) from error
    globals()[name] = value
    return value
