"""Where the text is in what functions take and return, and how it is put back.

Known are strings, chat messages, content blocks, completions and responses as OpenAI, Anthropic
and LangChain have them (dicts, or objects with the same fields), and lists, tuples, dataclasses,
pydantic models and named tuples of all these.

What else stands in a message, a block, a completion or a response is data: prose in it is visited,
and values for machines stay (`srllm_guard.structure.prose`). So do names and ids of these, code,
probabilities of tokens, and what an answer repeats of the request: instructions, settings, tools.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from srllm_guard.middleware.mending import mended
from srllm_guard.structure.prose import is_prose
from srllm_guard.structure.records import ABSENT, field, with_fields
from srllm_guard.structure.tool_calls import arguments_place
from srllm_guard.structure.visiting import (
    BYTES,
    WITHOUT_TEXT,
    Visitor,
    Walk,
    Where,
    each,
    entries,
    is_sequence,
    is_word,
    unknown,
    within,
)

TRUSTED_ROLES = frozenset({"system", "developer", "assistant", "ai", "model"})
"""Roles whose messages are not moderated on their way in: the application wrote the instructions,
and what the model said was moderated when it said it."""

_LANGCHAIN = frozenset({"human", "ai", "system", "tool", "function", "chat", "developer", "remove"})
_MEDIA = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "output_audio"),
    *("video", "video_url", "file", "input_file", "document", "redacted_thinking"),
)
_CALLS = ("_call", "_call_chunk", "tool_use", "approval_request")
_RESULTS = ("_output", "tool_result")
_TOOLS = ("mcp_list_tools", "additional_tools", "tool_search_output")
_CALLED = ("tool_calls", "invalid_tool_calls", "tool_call_chunks", "function_call")
_ARGUMENTS = ("function", "custom", "arguments", "args", "input")
_PARTS = ("content", "output", "summary")
_SAID = (
    *_PARTS,
    *("text", "output_text", "transcript"),
    *("refusal", "thinking", "reasoning", "reasoning_content"),
)
"""Fields whose strings are text, be they prose or a single word."""
_KINDS = ("type", "role", "object")
_NAMES = ("id", "name", "model", "model_name")
_CODE = ("code", "diff")
_TOKENS = ("logprobs", "prompt_logprobs", "top_logprobs", "token_ids", "prompt_token_ids")
_SETTINGS = ("reasoning", "text", "prompt", "tool_choice", "tools")
"""Fields of a response that repeat the request, unless they are strings."""

_ENCODED = re.compile(
    r"(?:data:[^,\s]{0,200},)?+(?:[\w+/-]{60,}+=*\s*+)++[\w+/-]*=*\s*\Z", re.ASCII
)
"""Bytes in base64, on one line or on many."""


def walk(value: Any, visitor: Visitor, where: Where = ()) -> Any:
    """Visit each text and tool call in a value, in order.

    Returns:
        The value with what the visitor returned in their place.

    Raises:
        ShapeError: where the text is in such a value is not known.
    """
    if isinstance(value, BYTES):
        raise unknown(value, where)
    return _value(value, visitor, where)


def _value(value: Any, visitor: Visitor, where: Where) -> Any:
    if isinstance(value, WITHOUT_TEXT):
        return value
    if isinstance(value, str):
        return visitor.text(value, where)
    if (inner := _known(value)) is not None:
        return inner(value, visitor, where)
    if isinstance(value, Mapping):
        raise unknown(value, where)
    return within(value, _value, visitor, where)


def _known(value: Any) -> Walk | None:
    """How to walk through what speaks the language of chats."""
    if is_sequence(value):
        return None
    if _is_completion(value):
        return _completion
    if _is_message(value):
        return _message
    if field(value, "object") == "response" and is_sequence(field(value, "output")):
        return _response
    return _block if _is_block(value) else None


def _completion(value: Any, visitor: Visitor, where: Where) -> Any:
    new = _part(value, "choices", _choice, visitor, where)
    return _rest(new, visitor, where, but=("choices",))


def _choice(value: Any, visitor: Visitor, where: Where) -> Any:
    new = value
    for name in ("message", "delta"):
        new = _part(new, name, _said, visitor, where)
    return mended(value, _rest(new, visitor, where, but=("message", "delta")))


def _said(value: Any, visitor: Visitor, where: Where) -> Any:
    return visitor.text(value, where) if isinstance(value, str) else _message(value, visitor, where)


def _response(value: Any, visitor: Visitor, where: Where) -> Any:
    settings = [name for name in _SETTINGS if not isinstance(field(value, name), str)]
    new = _part(value, "output", _content, visitor, where)
    return _rest(new, visitor, where, but=("output", "instructions", *settings))


def _message(value: Any, visitor: Visitor, where: Where) -> Any:
    if _role(value) in visitor.trusted:
        return value
    new = _part(value, "content", _content, visitor, where)
    new = _beside_content(new, visitor, where, own=_is_own(value))
    return mended(value, new)


def _beside_content(value: Any, visitor: Visitor, where: Where, *, own: bool = False) -> Any:
    for name in _CALLED:
        value = _part(value, name, _call, visitor, where)
    # LangChain keeps what the provider sent, besides what it has made of it.
    value = _part(value, "additional_kwargs", _beside_content, visitor, where)
    but = ("content", "additional_kwargs", *_CALLED)
    return _rest(value, visitor, where, but=but, own=own)


def _content(value: Any, visitor: Visitor, where: Where) -> Any:
    """Content of a message: a string or blocks; of an item of it."""
    if isinstance(value, str):
        return visitor.text(value, where)
    if _is_message(value):
        return _message(value, visitor, where)
    return _block(value, visitor, where)


def _block(value: Any, visitor: Visitor, where: Where) -> Any:
    """A content block, or an item of a response."""
    kind = field(value, "type")
    if not is_word(kind):
        raise unknown(value, where)
    asks = kind in ("function", "custom", "reasoning") or kind.endswith(_CALLS)
    if "assistant" in visitor.trusted and asks:
        return value
    but = ("tools",) if kind in _TOOLS else ()
    return mended(value, _call(value, visitor, where, but=but))


def _inner(value: Any, visitor: Visitor, where: Where) -> Any:
    """Content of a block, which may be data as well."""
    if isinstance(value, str) or is_word(field(value, "type")):
        return _content(value, visitor, where)
    return _data(value, visitor, where)


def _call(value: Any, visitor: Visitor, where: Where, but: Collection[str] = ()) -> Any:
    """What may be a tool call: its arguments, what came of it, and the rest."""
    place = arguments_place(value) or ()
    if place:  # first, for what comes back is made of the call as it came in
        value = visitor.call(value, where)
    if len(place) > 1:
        value = _part(value, place[0], partial(_rest, but=place[1:]), visitor, where)
    for name in _PARTS:
        value = _part(value, name, _inner, visitor, where)
    return _rest(value, visitor, where, but=(*but, *_PARTS, *place[:1]))


def _rest(
    value: Any, visitor: Visitor, where: Where, *, but: Collection[str] = (), own: bool = False
) -> Any:
    """What else stands in a message, a block or the like.

    Args:
        value: in which it is.
        visitor: as in `walk`.
        where: as in `walk`.
        but: fields that were visited.
        own: every string but names and kinds is a text, see `_is_own`.
    """
    found = entries(value) or _attributes(value)
    if not (found or _known(value)):
        return _data(value, visitor, where)
    left = [(name, old) for name, old in found if name not in but and not _is_name(name, old)]
    return _fields(value, left, visitor, where, own=own)


def _data(
    value: Any, visitor: Visitor, where: Where, *, name: object = None, own: bool = False
) -> Any:
    """What stands in a field of this name: prose, and what is known; the rest stays."""
    if isinstance(value, WITHOUT_TEXT):
        return value
    if isinstance(value, str):
        if own or name in _SAID:
            return visitor.text(value, where)
        if name in _CODE or not _is_prose(value):
            return value
        return (visitor.data or visitor.text)(value, where)
    if name in _TOKENS:
        return value
    if is_sequence(value):
        return each(value, partial(_data, name=name, own=own), visitor, where)
    if (inner := _known(value)) is not None:
        return inner(value, visitor, where)
    found = entries(value)
    if found is not None:
        return _fields(value, found, visitor, where, own=_is_own(value))
    if "artifact" in where:  # what a tool keeps for the program may be anything
        return value
    raise unknown(value, where)


def _fields(
    value: Any, found: Iterable[tuple[Any, Any]], visitor: Visitor, where: Where, *, own: bool
) -> Any:
    changes: dict[Any, Any] = {}
    for n, (name, old) in enumerate(found):
        here = (*where, name if is_word(name) else n)
        new = _data(old, visitor, here, name=name, own=own and not _is_name(name, old))
        if new is not old:
            changes[name] = new
    return with_fields(value, changes)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """The public attributes of an object of any class."""
    slots = (getattr(base, "__slots__", ()) for base in type(value).__mro__)
    names = [*getattr(value, "__dict__", ())]
    for each_of in slots:
        names += [each_of] if isinstance(each_of, str) else each_of
    found = [(name, field(value, name)) for name in names if not name.startswith("_")]
    return [(name, each) for name, each in found if each is not ABSENT]


def _part(value: Any, name: Any, inner: Walk, visitor: Visitor, where: Where) -> Any:
    """The value after a walk through one of its fields, if it is there."""
    old = field(value, name)
    if old is ABSENT or old is None:
        return value
    here = (*where, name)
    new = each(old, inner, visitor, here) if is_sequence(old) else inner(old, visitor, here)
    return value if new is old else with_fields(value, {name: new})


def _role(value: Any) -> str | None:
    role = field(value, "role")
    if not isinstance(role, str):
        role = field(value, "type")
    return role.lower().removesuffix("messagechunk") if isinstance(role, str) else None


def _is_completion(value: Any) -> bool:
    choices = field(value, "choices")
    if not is_sequence(choices):
        return False
    spoken = ("message", "delta", "text")
    if not choices:  # as at the end of a stream
        return isinstance(field(value, "object"), str)
    return all(any(field(choice, name) is not ABSENT for name in spoken) for choice in choices)


def _is_message(value: Any) -> bool:
    of_langchain = field(value, "additional_kwargs") is not ABSENT and _role(value) in _LANGCHAIN
    if not (of_langchain or is_word(field(value, "role"))):
        return False
    names = ("content", "tool_calls", "function_call")
    return any(field(value, name) is not ABSENT for name in names)


def _is_block(value: Any) -> bool:
    """Whether a value by itself is a content block; user classes with a field `type` are not."""
    kind = field(value, "type")
    if not is_word(kind) or not (isinstance(value, Mapping) or _of_sdk(value)):
        return False
    if kind in (*_MEDIA, *_TOOLS) or kind.endswith((*_CALLS, *_RESULTS)):
        return True
    return any(field(value, name) is not ABSENT for name in (*_SAID, *_ARGUMENTS))


def _is_name(name: object, value: Any) -> bool:
    """Whether a field of a message or the like says what it is, or whose."""
    return (name in _KINDS and is_word(value)) or (name in _NAMES and isinstance(value, str))


def _is_prose(text: str) -> bool:
    return not (len(text) > 1_000 and _ENCODED.match(text)) and is_prose(text)


def _is_own(value: Any) -> bool:
    """Whether a value is of a class of no known SDK: of the user's, as a rule."""
    return not (isinstance(value, Mapping) or _of_sdk(value))


def _of_sdk(value: Any) -> bool:
    root = type(value).__module__.partition(".")[0]
    return root in ("openai", "anthropic", "litellm") or root.startswith("langchain")
