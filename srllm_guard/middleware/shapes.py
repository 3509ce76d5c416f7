"""Where the text is in what functions take and return, and how it is put back.

Known are strings, chat messages, content blocks, completions and responses as OpenAI, Anthropic
and LangChain have them (dicts, or objects with the same fields), and lists, tuples, dataclasses,
pydantic models and named tuples of all these. Nothing is changed in place: what comes back is a
copy that shares all that is the same, and the very same object where nothing has changed.
"""

from __future__ import annotations

import datetime
import enum
import numbers
import types
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srllm_guard.errors import ShapeError
from srllm_guard.middleware.records import (
    ABSENT,
    field,
    field_names,
    with_fields,
    with_items,
)

Where = tuple[str | int, ...]
"""The way to a text: names of fields, and indices."""

TRUSTED_ROLES = frozenset({"system", "developer", "assistant", "ai", "model"})
"""Roles whose messages are not moderated on their way in: the application wrote the instructions,
and what the model said was moderated when it said it."""

WITHOUT_TEXT = (
    type(None),
    numbers.Number,
    enum.Enum,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
)
"""Types that hold no text; values of them are left alone."""

_LANGCHAIN = frozenset({"human", "ai", "system", "tool", "function", "chat", "developer", "remove"})
_TEXTLESS_BLOCKS = ("image", "input_image", "audio", "input_audio", "video", "file", "input_file")
_BLOCK_TEXTS = ("text", "refusal", "thinking", "reasoning")
_BLOCK_PARTS = ("content", "output", "summary")
_MESSAGE_TEXTS = ("refusal", "reasoning_content", "reasoning")
_ARGUMENTS = ("function", "arguments", "args", "input")


@dataclass(frozen=True, slots=True)
class Visitor:
    """What is done with each text, and with each tool call."""

    text: Callable[[str, Where], str]
    call: Callable[[Any, Where], Any]
    trusted: Collection[str] = frozenset()
    """Roles whose messages are passed over."""


def collected(
    walk_it: Callable[[Visitor], Any], trusted: Collection[str] = frozenset()
) -> tuple[list[str], list[Any]]:
    """The texts and tool calls that a walk meets."""
    texts: list[str] = []
    calls: list[Any] = []

    def keep(found: Any, into: list[Any]) -> Any:
        into.append(found)
        return found

    walk_it(Visitor(lambda text, _: keep(text, texts), lambda call, _: keep(call, calls), trusted))
    return texts, calls


def replaced(
    walk_it: Callable[[Visitor], Any],
    texts: Sequence[str],
    calls: Sequence[Any],
    trusted: Collection[str] = frozenset(),
) -> Any:
    """What a walk returns that meets these texts and tool calls instead."""
    next_text, next_call = iter(texts), iter(calls)
    try:
        made = walk_it(Visitor(lambda *_: next(next_text), lambda *_: next(next_call), trusted))
    except StopIteration:
        raise ValueError("fewer texts or tool calls were given than the value holds") from None
    if [*next_text, *next_call]:
        raise ValueError("more texts or tool calls were given than the value holds")
    return made


def walk(value: Any, visitor: Visitor, where: Where = ()) -> Any:
    """Visit each text and tool call in a value, in order.

    Returns:
        The value with what the visitor returned in their place.

    Raises:
        ShapeError: where the text is in such a value is not known.
    """
    if isinstance(value, WITHOUT_TEXT):
        return value
    if isinstance(value, str):
        return visitor.text(value, where)
    if isinstance(value, list) or type(value) is tuple:
        return _each(value, walk, visitor, where)
    if (inner := _known(value)) is not None:
        return inner(value, visitor, where)
    names = field_names(value)
    if names is None or isinstance(value, Mapping):
        raise unknown(value, where)
    changes: dict[str, Any] = {}
    for name in names:
        old = field(value, name)
        new = walk(old, visitor, (*where, name))
        if new is not old:
            changes[name] = new
    return with_fields(value, changes)


def unknown(value: Any, where: Where) -> ShapeError:
    """The error for a value in which no text is known."""
    place = f" at {shown(where)}" if where else ""
    return ShapeError(
        f"Where the text is in a value of type {type(value).__name__}{place} is not known."
    )


def shown(where: Where) -> str:
    """The way to a text as a path expression."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)[
        0 if where and isinstance(where[0], int) else 1 :
    ]


Walk = Callable[[Any, Visitor, Where], Any]


def _known(value: Any) -> Walk | None:
    """How to walk through what speaks the language of chats."""
    if isinstance(field(value, "choices"), list | tuple):
        return _completion
    if _is_message(value):
        return _message
    if field(value, "object") == "response" and isinstance(field(value, "output"), list):
        return _response
    return _block if _is_block(value) else None


def _each(values: Any, inner: Walk, visitor: Visitor, where: Where) -> Any:
    new = [inner(value, visitor, (*where, _index(value, n))) for n, value in enumerate(values)]
    return with_items(values, new)


def _index(value: Any, position: int) -> int:
    """Choices and blocks of a stream say which they are; a chunk may hold the third alone."""
    index = ABSENT if isinstance(value, str | list | tuple) else field(value, "index")
    return index if isinstance(index, int) else position


def _part(value: Any, name: str, inner: Walk, visitor: Visitor, where: Where) -> Any:
    """The value after a walk through one of its fields, if it is there."""
    old = field(value, name)
    if old is ABSENT or old is None:
        return value
    if isinstance(old, list | tuple):
        new = _each(old, inner, visitor, (*where, name))
    else:
        new = inner(old, visitor, (*where, name))
    return value if new is old else with_fields(value, {name: new})


def _completion(value: Any, visitor: Visitor, where: Where) -> Any:
    return _part(value, "choices", _choice, visitor, where)


def _response(value: Any, visitor: Visitor, where: Where) -> Any:
    return _part(value, "output", _content, visitor, where)


def _choice(value: Any, visitor: Visitor, where: Where) -> Any:
    new = value
    for name, inner in (("message", _message), ("delta", _message), ("text", _text)):
        new = _part(new, name, inner, visitor, where)
    if new is not value and field(new, "logprobs") not in (ABSENT, None):
        new = with_fields(new, {"logprobs": None})  # they spell the text out, token by token
    return new


def _message(value: Any, visitor: Visitor, where: Where) -> Any:
    if _role(value) in visitor.trusted:
        return value
    new = _part(value, "content", _content, visitor, where)
    new = _beside_content(new, visitor, where)
    # LangChain keeps what the provider sent, besides what it has made of it.
    return _part(new, "additional_kwargs", _beside_content, visitor, where)


def _beside_content(value: Any, visitor: Visitor, where: Where) -> Any:
    for name in _MESSAGE_TEXTS:
        value = _part(value, name, _text, visitor, where)
    for name in ("tool_calls", "invalid_tool_calls", "function_call"):
        value = _part(value, name, _call, visitor, where)
    return _part(value, "parsed", walk, visitor, where)


def _content(value: Any, visitor: Visitor, where: Where) -> Any:
    """Content of a message: a string or blocks; of an item of it."""
    if isinstance(value, str):
        return visitor.text(value, where)
    if _is_message(value):
        return _message(value, visitor, where)
    return _block(value, visitor, where)


def _block(value: Any, visitor: Visitor, where: Where) -> Any:
    """A content block, or an item of a response; kinds that hold no text stay as they are."""
    kind = field(value, "type")
    if not isinstance(kind, str):
        raise unknown(value, where)
    call = kind == "function" or kind.endswith(("_call", "tool_use"))
    if "assistant" in visitor.trusted and (call or kind == "reasoning"):
        return value
    if call:
        value = _call(value, visitor, where)
    for name in _BLOCK_TEXTS:
        value = _part(value, name, _text, visitor, where)
    for name in _BLOCK_PARTS:
        value = _part(value, name, _content, visitor, where)
    return value


def _text(value: Any, visitor: Visitor, where: Where) -> Any:
    return visitor.text(value, where) if isinstance(value, str) else value


def _call(value: Any, visitor: Visitor, where: Where) -> Any:
    """A tool call; without arguments (a search of the server's) there is nothing to see in it."""
    for name in _ARGUMENTS:
        inner = field(value, name)
        if name == "function" and inner is not ABSENT:
            inner = field(inner, "arguments")
        if isinstance(inner, str | Mapping):
            return visitor.call(value, where)
    return value


def _role(value: Any) -> str | None:
    role = field(value, "role")
    if not isinstance(role, str):
        role = field(value, "type")
    return role.lower().removesuffix("messagechunk") if isinstance(role, str) else None


def _is_message(value: Any) -> bool:
    of_langchain = field(value, "additional_kwargs") is not ABSENT and _role(value) in _LANGCHAIN
    if not (of_langchain or isinstance(field(value, "role"), str)):
        return False
    names = ("content", "tool_calls", "function_call")
    return any(field(value, name) is not ABSENT for name in names)


def _is_block(value: Any) -> bool:
    """Whether a value by itself is a content block; user classes with a field `type` are not."""
    kind = field(value, "type")
    if not isinstance(kind, str) or not (isinstance(value, Mapping) or _of_sdk(value)):
        return False
    if kind in _TEXTLESS_BLOCKS or kind.startswith(("image", "audio")):
        return True
    names = (*_BLOCK_TEXTS, *_BLOCK_PARTS, *_ARGUMENTS)
    return any(field(value, name) is not ABSENT for name in names)


def _of_sdk(value: Any) -> bool:
    root = type(value).__module__.partition(".")[0]
    return root in ("openai", "anthropic", "litellm") or root.startswith("langchain")
