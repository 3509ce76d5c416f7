"""The text in LangChain's values: found, moderated in one batch, and put back in place.

A value is walked twice by the same function. The first walk gathers what is to be moderated, the
second puts in its place what is released. A value in which nothing changes is the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import (
    ChatPromptValue,
    ImagePromptValue,
    StringPromptValue,
)

from srllm_guard.runtime import in_one_deadline
from srllm_guard.structure.mixed import moderate_texts
from srllm_guard.structure.tool_calls import ToolCallModeration, arguments_text

if TYPE_CHECKING:
    from srllm_guard.guard import Guard
    from srllm_guard.results import Moderation

V = TypeVar("V")
M = TypeVar("M", bound=BaseMessage)

PROSE = ("text", "reasoning", "thinking", "refusal")
"""Keys of a content block whose strings are prose."""
NESTED = ("content", "summary", "output", "value")
"""Keys of a content block that may hold further blocks."""
ARGUMENTS = ("args", "arguments", "input", "partial_json")
"""Keys of a content block or tool call that hold the arguments of a call."""
SAID = ("refusal", "reasoning_content")
"""Keys of `additional_kwargs` whose strings are prose."""
CALLED = ("tool_calls", "function_call")
"""Keys of `additional_kwargs` that hold calls as the provider wrote them."""
SYSTEM = ("system", "developer")
"""Roles of messages that the application writes."""


class Walk(Protocol):
    """What is done at each place of a walk."""

    def text(self, text: str) -> str:
        """Take prose, and give what stands in its place."""
        ...

    def arguments(self, value: Any) -> Any:
        """Take the arguments of a call, a string or a mapping, and give what stands there."""
        ...


class Gathered:
    """The first walk: remembers what is there."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def text(self, text: str) -> str:
        """See `Walk.text`."""
        self.texts.append(text)
        return text

    def arguments(self, value: Any) -> Any:
        """See `Walk.arguments`."""
        self.calls.append({"args": value})
        return value


class Released:
    """The second walk: gives what is released, in the same order.

    Raises `Blocked` at what was withheld, where the policy says so.
    """

    def __init__(
        self, guard: Guard, texts: Iterator[Moderation], calls: Iterator[ToolCallModeration]
    ) -> None:
        self._guard = guard
        self._texts = texts
        self._calls = calls

    def text(self, text: str) -> str:
        """See `Walk.text`."""
        new = self._guard.released(next(self._texts))
        return text if new == text else new

    def arguments(self, value: Any) -> Any:
        """See `Walk.arguments`."""
        del value
        done = next(self._calls)
        self._guard.released(done.moderation)
        return done.call["args"]


def moderated(
    guard: Guard, values: Sequence[V], walk: Callable[[V, Walk], V]
) -> list[V | Exception]:
    """Moderate values, all their texts in one batch and all within one deadline.

    Args:
        guard: moderates.
        values: what is moderated.
        walk: visits the text of one value and gives the value with what stands there afterwards.

    Returns:
        For each value what is released, or the error that it ended in: `Blocked`, a `TypeError` of
        `walk` for what holds no text, or `ShapeError` for arguments of a call in which the place of
        text is not known.
    """
    gathered = [Gathered() for _ in values]
    failed: dict[int, Exception] = {}
    for n, (value, found) in enumerate(zip(values, gathered, strict=True)):
        try:
            walk(value, found)
            for call in found.calls:
                arguments_text(call)
        except TypeError as error:
            failed[n] = error
    good = [found for n, found in enumerate(gathered) if n not in failed]
    guard = in_one_deadline(guard)
    results = iter(moderate_texts(guard, [text for found in good for text in found.texts]))
    done = iter(guard.moderate_tool_calls([call for found in good for call in found.calls]))
    released: list[V | Exception] = []
    for n, (value, found) in enumerate(zip(values, gathered, strict=True)):
        if n in failed:
            released.append(failed[n])
            continue
        # A walk that ends early must not shift what belongs to the next value.
        texts = iter([next(results) for _ in found.texts])
        calls = iter([next(done) for _ in found.calls])
        try:
            released.append(walk(value, Released(guard, texts, calls)))
        except Exception as error:  # noqa: BLE001 - each value has its own outcome
            released.append(error)
    return released


def moderated_one(guard: Guard, value: V, walk: Callable[[V, Walk], V]) -> V:
    """Moderate one value; see `moderated`, but errors are raised."""
    (result,) = moderated(guard, [value], walk)
    if isinstance(result, Exception):
        raise result
    return result


def walk_value(value: Any, walk: Walk, key: str | None = None) -> Any:
    """Visit what runnables hand on: strings, messages, lists of them, prompts, dicts by a key.

    Of several messages all are visited but those of the system, which the application wrote.

    Raises:
        TypeError: anything else.
    """
    if key is not None:
        if not isinstance(value, Mapping) or key not in value:
            raise TypeError(
                f"expected a dict with the key {key!r}, got {_described(value)}; "
                "give the guard another key"
            )
        new = walk_value(value[key], walk)
        return value if new is value[key] else {**value, key: new}
    if isinstance(value, str):
        return walk.text(value) if value.strip() else value
    if isinstance(value, BaseMessage):
        return walk_message(value, walk)
    if isinstance(value, StringPromptValue):
        return _updated(value, "text", walk_value(value.text, walk))
    if isinstance(value, ChatPromptValue):
        return _updated(value, "messages", _walk_messages(value.messages, walk))
    if isinstance(value, ImagePromptValue):
        return value
    if isinstance(value, list | tuple) and all(isinstance(each, BaseMessage) for each in value):
        return _walk_messages(value, walk)
    raise TypeError(
        f"expected a str, a message, messages or a prompt, got {_described(value)}; "
        "of a dict, the guard needs the key: guard.as_runnable(key=...)"
    )


def is_system(message: BaseMessage) -> bool:
    """Whether the application wrote a message, as instructions."""
    if isinstance(message, ChatMessage):
        return message.role in SYSTEM
    return isinstance(message, SystemMessage)


def is_asked(message: BaseMessage) -> bool:
    """Whether a message comes from the user or from a tool: neither instructions nor an answer."""
    if isinstance(message, ChatMessage):
        return message.role not in (*SYSTEM, "assistant", "ai")
    return isinstance(message, HumanMessage | ToolMessage | FunctionMessage)


def walk_message(message: M, walk: Walk) -> M:
    """Visit all the text of a message."""
    new: dict[str, Any] = {"content": _walk_content(message.content, walk)}
    if isinstance(message, AIMessageChunk):
        # Its tool calls are made from these by the constructor.
        new["tool_call_chunks"] = _each(message.tool_call_chunks, walk_call, walk)
    elif isinstance(message, AIMessage):
        new["tool_calls"] = _each(message.tool_calls, walk_call, walk)
        new["invalid_tool_calls"] = _each(message.invalid_tool_calls, walk_call, walk)
    new["additional_kwargs"] = _walk_additional(message.additional_kwargs, walk)
    update = {name: value for name, value in new.items() if value is not getattr(message, name)}
    if not update:
        return message
    update["response_metadata"] = without_tokens(message.response_metadata)
    if "tool_call_chunks" in update:
        fields = {name: getattr(message, name) for name in type(message).model_fields}
        return type(message)(**{**fields, **update})
    return message.model_copy(update=update)


def walk_call(call: Any, walk: Walk) -> Any:
    """Visit the arguments of one call, whoever wrote it."""
    if not isinstance(call, Mapping):
        return call
    new = dict(call)
    for key in ARGUMENTS:
        value = call.get(key)
        if value and isinstance(value, str | Mapping):
            new[key] = walk.arguments(value)
    if isinstance(call.get("function"), Mapping):
        new["function"] = walk_call(call["function"], walk)
    return call if all(new[key] is value for key, value in call.items()) else new


def walk_block(block: Any, walk: Walk) -> Any:
    """Visit one content block."""
    if isinstance(block, str):
        return walk.text(block) if block.strip() else block
    if not isinstance(block, Mapping):
        return block
    new = dict(walk_call(block, walk))
    for key in PROSE:
        value = block.get(key)
        if isinstance(value, str) and value.strip():
            new[key] = walk.text(value)
    for key in NESTED:
        value = block.get(key)
        if isinstance(value, list):
            new[key] = _each(value, walk_block, walk)
        elif isinstance(value, str | Mapping):
            new[key] = walk_block(value, walk)
    return block if all(new[key] is value for key, value in block.items()) else new


def without_tokens(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the likelihoods of tokens, which spell the text that was moderated."""
    return {name: value for name, value in metadata.items() if name != "logprobs"}


def pieces(message: BaseMessage) -> Iterable[Any]:
    """All that is moderated in a message: texts, and the arguments of calls."""
    found = Gathered()
    walk_message(message, found)
    return [*found.texts, *(call["args"] for call in found.calls)]


def _walk_messages(messages: Sequence[M], walk: Walk) -> Sequence[M]:
    return _each(messages, lambda m, w: m if is_system(m) else walk_message(m, w), walk)


def _walk_content(content: Any, walk: Walk) -> Any:
    if isinstance(content, list):
        return _each(content, walk_block, walk)
    return walk_block(content, walk)


def _walk_additional(values: dict[str, Any], walk: Walk) -> dict[str, Any]:
    new = dict(values)
    for key in SAID:
        if isinstance(values.get(key), str):
            new[key] = walk_block(values[key], walk)
    for key in CALLED:
        value = values.get(key)
        if isinstance(value, list):
            new[key] = _each(value, walk_call, walk)
        elif isinstance(value, Mapping):
            new[key] = walk_call(value, walk)
    return values if all(new[key] is value for key, value in values.items()) else new


def _each(values: Sequence[V], visit: Callable[[V, Walk], V], walk: Walk) -> Sequence[V]:
    """Visit each value; the same sequence if nothing changed."""
    new = [visit(value, walk) for value in values]
    if all(a is b for a, b in zip(values, new, strict=True)):
        return values
    return tuple(new) if isinstance(values, tuple) else new


def _updated(value: Any, name: str, new: Any) -> Any:
    return value if new is getattr(value, name) else value.model_copy(update={name: new})


def _described(value: object) -> str:
    """The type of a value, of a dict its keys as well: nothing of its text."""
    if isinstance(value, Mapping):
        return f"a dict with the keys {sorted(map(str, value))}"
    return type(value).__name__
