"""Tool calls: prose in the arguments is moderated; names, ids and other arguments stay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srllm_guard.structure.mixed import is_json, moderate_mixed
from srllm_guard.structure.records import field, with_fields
from srllm_guard.structure.visiting import (
    WITHOUT_TEXT,
    Visitor,
    Where,
    entries,
    is_sequence,
    is_word,
    replaced,
    unknown,
    within,
)

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation

_PLACES = (("function", "arguments"), ("custom", "input"), ("arguments",), ("args",), ("input",))
"""Where arguments stand: OpenAI chat.completions (functions, custom tools), OpenAI responses,
LangChain, Anthropic and custom tools of responses."""


@dataclass(frozen=True, slots=True)
class ToolCallModeration:
    """One tool call, and what was done with its arguments."""

    call: Any
    """The call to go on with: the same object if nothing was changed, else a changed copy."""
    moderation: Moderation
    """The result for the arguments, written as JSON; models, dataclasses and named tuples are
    objects there, and what holds no text and has no form in JSON is null. Where
    `moderation.action` is "block", an argument was withheld: the policy's message stands in its
    place, so think before you run it."""


def moderate_tool_calls(guard: Guard, calls: Iterable[Any]) -> list[ToolCallModeration]:
    """See `Guard.moderate_tool_calls`."""
    found = [(call, *_arguments(call)) for call in calls]
    texts = [arguments_text(call) for call, _, _ in found]
    # Models write broken JSON at times; such arguments are plain text to whoever reads them.
    results = moderate_mixed(guard, texts, [is_json(text) for text in texts])
    return [
        ToolCallModeration(
            _put(call, place, _read(arguments, result)) if result.changed else call, result
        )
        for (call, place, arguments), result in zip(found, results, strict=True)
    ]


def arguments_place(call: Any) -> tuple[str, ...] | None:
    """Names of the fields that lead to the arguments of a call; None where there are none."""
    for place in _PLACES:
        if isinstance(_at(call, place), str | Mapping):
            return place
    return None


def arguments_text(call: Any) -> str:
    """The arguments of a call as they are moderated: a string as it is, all else as JSON.

    Raises:
        TypeError: it is no tool call.
        ShapeError: where the text is in a value within the arguments is not known.
    """
    place, arguments = _arguments(call)
    return arguments if isinstance(arguments, str) else _written(arguments, place)


def _arguments(call: Any) -> tuple[tuple[str, ...], Any]:
    """Where the arguments of a call stand, and what they are."""
    place = arguments_place(call)
    if place is None:
        raise TypeError(
            f"expected a tool call with arguments, args or input (str or dict), "
            f"got {type(call).__name__}"
        )
    return place, _at(call, place)


def _at(call: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        call = field(call, name)
    return call


def _written(value: Any, where: Where) -> str:
    """A value as JSON, its strings in the order in which `_walk` visits them.

    Raises:
        ShapeError: where the text is in a value within it is not known.
    """
    if value is None or type(value) in (bool, int, float):
        return json.dumps(value)
    if isinstance(value, WITHOUT_TEXT):
        return "null"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if is_sequence(value):
        items = [_written(item, (*where, n)) for n, item in enumerate(value)]
        return f"[{', '.join(items)}]"
    found = entries(value)
    if found is None:
        raise unknown(value, where)
    members = [
        f"{json.dumps(str(name), ensure_ascii=False)}: "
        f"{_written(item, (*where, name if is_word(name) else n))}"
        for n, (name, item) in enumerate(found)
    ]
    return f"{{{', '.join(members)}}}"


def _read(arguments: Any, result: Moderation) -> Any:
    """The arguments with the strings of the result."""
    if isinstance(arguments, str):
        return result.text
    # Pairs, for two keys may be written alike.
    made = json.loads(result.text, object_pairs_hook=lambda pairs: [item for _, item in pairs])
    return replaced(lambda visitor: _walk(arguments, visitor, ()), list(_strings(made)), [])


def _strings(items: Any) -> Iterator[str]:
    if isinstance(items, str):
        yield items
    elif isinstance(items, list):
        for item in items:
            yield from _strings(item)


def _walk(value: Any, visitor: Visitor, where: Where) -> Any:
    """Visit each string in arguments."""
    if isinstance(value, WITHOUT_TEXT):
        return value
    if isinstance(value, str):
        new = visitor.text(value, where)
        return value if new == value else new
    return within(value, _walk, visitor, where)


def _put(call: Any, place: tuple[str, ...], value: Any) -> Any:
    """A copy of the call with other arguments."""
    name, *rest = place
    if rest:
        value = _put(field(call, name), tuple(rest), value)
    return with_fields(call, {name: value})
