"""Tool calls: prose in the arguments is moderated; names, ids and other arguments stay."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from srllm_guard.structure.mixed import is_json, moderate_mixed

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation

_PLACES = (("function", "arguments"), ("arguments",), ("args",), ("input",))
"""Where arguments stand: OpenAI chat.completions, OpenAI responses, LangChain, Anthropic."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCallModeration:
    """One tool call, and what was done with its arguments."""

    call: Any
    """The call to go on with: the same object if nothing was changed, else a changed copy."""
    moderation: Moderation
    """The result for the arguments, written as JSON. Where `moderation.action` is "block", an
    argument was withheld: the policy's message stands in its place, so think before you run it."""


def moderate_tool_calls(guard: Guard, calls: Iterable[Any]) -> list[ToolCallModeration]:
    """See `Guard.moderate_tool_calls`."""
    found = [(call, *_arguments(call)) for call in calls]
    texts = [_written(arguments) for _, _, arguments in found]
    # Models write broken JSON at times; such arguments are plain text to whoever reads them.
    results = moderate_mixed(guard, texts, [is_json(text) for text in texts])
    return [
        ToolCallModeration(
            _put(call, place, _read(arguments, result)) if result.changed else call, result
        )
        for (call, place, arguments), result in zip(found, results, strict=True)
    ]


def _arguments(call: Any) -> tuple[tuple[str, ...], Any]:
    """Where the arguments of a call stand, and what they are."""
    for place in _PLACES:
        value = call
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if isinstance(value, str | Mapping):
            return place, value
    raise TypeError(
        f"expected a tool call with arguments, args or input (str or dict), "
        f"got {type(call).__name__}"
    )


def _written(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, default=_plain)


def _read(arguments: Any, result: Moderation) -> Any:
    """The arguments with the changes of the result: a string, or a dict for any mapping."""
    if isinstance(arguments, str):
        return result.text
    return _merged(arguments, json.loads(result.text))


def _merged(old: Any, new: Any) -> Any:
    """The old value with the strings of the new one, which has the same shape."""
    if isinstance(old, str):
        return new
    if isinstance(old, Mapping):
        return {
            key: _merged(value, changed)
            for (key, value), changed in zip(old.items(), new.values(), strict=True)
        }
    if isinstance(old, list | tuple):
        return type(old)(_merged(a, b) for a, b in zip(old, new, strict=True))
    return old


def _put(call: Any, place: tuple[str, ...], value: Any) -> Any:
    """A copy of the call with other arguments."""
    name, *rest = place
    if rest:
        inner = call[name] if isinstance(call, Mapping) else getattr(call, name)
        value = _put(inner, tuple(rest), value)
    if isinstance(call, Mapping):
        return {**call, name: value}
    if hasattr(call, "model_copy"):
        return call.model_copy(update={name: value})
    if dataclasses.is_dataclass(call) and not isinstance(call, type):
        return dataclasses.replace(call, **{name: value})
    copied = copy.copy(call)
    setattr(copied, name, value)
    return copied


def _plain(value: object) -> dict[Any, Any] | None:
    """What stands in JSON for a value that it has no form for.

    Any mapping is an object; another value is null there, and itself stays.
    """
    return {str(k): each for k, each in value.items()} if isinstance(value, Mapping) else None
