"""Walks through values: each text and tool call is visited, and what comes of it is put back.

Nothing is changed in place: what a walk returns is a copy that shares all that is the same, and the
very same object where nothing has changed.
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
from srllm_guard.structure.records import ABSENT, field, field_names, with_fields, with_items

Where = tuple[str | int, ...]
"""The way to a text: names of fields, and indices."""

BYTES = (bytes, bytearray, memoryview)
"""Types of pictures, files and the like within a value. A whole value of them may be a text as
servers send it, so it is not known."""

WITHOUT_TEXT = (
    *BYTES,
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


@dataclass(frozen=True, slots=True)
class Visitor:
    """What is done with each text, and with each tool call."""

    text: Callable[[str, Where], str]
    call: Callable[[Any, Where], Any]
    trusted: Collection[str] = frozenset()
    """Roles whose messages are passed over."""
    data: Callable[[str, Where], str] | None = None
    """What is done with strings of data that are prose, which nobody says; None is `text`."""


Walk = Callable[[Any, Visitor, Where], Any]
"""Visits what is in a value, and returns the value with what the visitor returned in its place."""


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


def entries(value: Any) -> list[tuple[Any, Any]] | None:
    """The names and values in a mapping, dataclass, pydantic model or named tuple, else None."""
    names = field_names(value)
    if names is None:
        return list(value.items()) if isinstance(value, Mapping) else None
    found = [(name, field(value, name)) for name in names]
    return [(name, each) for name, each in found if each is not ABSENT]


def is_sequence(value: Any) -> bool:
    """Whether a value is a list or tuple of items, and no named tuple."""
    return isinstance(value, list) or type(value) is tuple


def each(values: Any, inner: Walk, visitor: Visitor, where: Where) -> Any:
    """A list or tuple after a walk through each item."""
    new = [inner(value, visitor, (*where, _index(value, n))) for n, value in enumerate(values)]
    return with_items(values, new)


def within(value: Any, inner: Walk, visitor: Visitor, where: Where) -> Any:
    """A value after a walk through each of its items or fields.

    Raises:
        ShapeError: it is no list, tuple, mapping, dataclass, pydantic model or named tuple.
    """
    if is_sequence(value):
        return each(value, inner, visitor, where)
    found = entries(value)
    if found is None:
        raise unknown(value, where)
    changes: dict[Any, Any] = {}
    for n, (name, old) in enumerate(found):
        new = inner(old, visitor, (*where, name if is_word(name) else n))
        if new is not old:
            changes[name] = new
    return with_fields(value, changes)


def is_word(value: Any) -> bool:
    """Whether a value is a string of one word at most, as names of fields, kinds and roles are."""
    return isinstance(value, str) and len(value.split()) <= 1


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


def _index(value: Any, position: int) -> int:
    """Choices and blocks of a stream say which they are; a chunk may hold the third alone."""
    index = ABSENT if isinstance(value, str | list | tuple) else field(value, "index")
    return index if isinstance(index, int) else position
