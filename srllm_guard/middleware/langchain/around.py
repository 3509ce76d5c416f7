"""The chat model in a runnable is exchanged for another one, wherever it stands in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import (
    Runnable,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase

Exchange = Callable[[BaseChatModel], BaseChatModel]


def exchange(runnable: Runnable[Any, Any], new: Exchange) -> Runnable[Any, Any]:
    """Exchange the chat models in bindings, retries, fallbacks, sequences and maps.

    That is what `bind_tools`, `with_structured_output`, `with_retry` and their like return. Where
    there is no chat model, the same object comes back.
    """
    if isinstance(runnable, BaseChatModel):
        return new(runnable)
    parts: dict[str, Any] = {}
    if isinstance(runnable, RunnableBindingBase):
        parts = {"bound": exchange(runnable.bound, new)}
    elif isinstance(runnable, RunnableSequence):
        parts = {
            "first": exchange(runnable.first, new),
            "middle": _all(runnable.middle, new),
            "last": exchange(runnable.last, new),
        }
    elif isinstance(runnable, RunnableParallel):
        steps = {name: exchange(step, new) for name, step in runnable.steps__.items()}
        same = all(steps[name] is step for name, step in runnable.steps__.items())
        parts = {"steps__": runnable.steps__ if same else steps}
    elif isinstance(runnable, RunnableWithFallbacks):
        parts = {
            "runnable": exchange(runnable.runnable, new),
            "fallbacks": _all(runnable.fallbacks, new),
        }
    if all(part is getattr(runnable, name) for name, part in parts.items()):
        return runnable
    return runnable.model_copy(update=parts)  # type: ignore[attr-defined,no-any-return]


def _all(runnables: Any, new: Exchange) -> Any:
    """Exchange in each of them; the same sequence where there was nothing to exchange."""
    found = [exchange(each, new) for each in runnables]
    same = all(a is b for a, b in zip(runnables, found, strict=True))
    return runnables if same else found
