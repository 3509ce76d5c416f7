"""Where the text is in a chat message, or in a delta of one, on whichever server wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

Message = dict[str, Any]

Name = tuple[Any, ...]
"""Which text of a message it is; pieces of a stream that have one name are one text."""

CONTENT: Name = ("content",)

MESSAGE_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""Fields of a chat message, or of its delta, that hold text; the last two are servers' own."""

CALLS = (("function", "arguments"), ("custom", "input"), ("function_call", "arguments"))
"""Where a tool call of a chat message, or an old message itself, holds arguments."""

DETAILS = {
    "reasoning_details": ("text", "summary"),
    "thinking_blocks": ("thinking",),
    "reasoning_steps": ("thought",),
}
"""Lists of parts in which OpenRouter, LiteLLM and Perplexity give reasoning, and their texts."""

HEAD = ("type", "id", "index", "format")
"""Fields of such a part that say which one it is; in a stream each piece of it has them."""

OWN_FIELDS = "provider_specific_fields"
"""Where LiteLLM gives again, and in other forms, what it has read out of an answer."""

OWN_THOUGHTS = ("reasoningContent", "reasoningContentBlocks")
"""Such forms: thoughts as Bedrock has them, in a delta and in a message."""

OWN_REPEATS = (*MESSAGE_TEXTS, *DETAILS, *OWN_THOUGHTS)
"""What stands there of a delta that the delta says itself."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one text stands."""

    holder: Any
    """The dict, or the list, that it stands in."""
    key: str | int

    @property
    def text(self) -> str:
        """What stands there."""
        text: str = self.holder[self.key]
        return text

    def put(self, text: str) -> None:
        """Put another text there."""
        self.holder[self.key] = text


@dataclass(frozen=True, slots=True)
class Place(Spot):
    """One text of a message, or one piece of it."""

    name: Name
    alone: Callable[[str], Message]
    """A delta that brings nothing but a piece of this text."""


def places(message: Message) -> Iterator[Place]:
    """The texts of a message, empty ones too, but for arguments of calls."""
    yield from text_places(message)
    for name in DETAILS:
        for part in dicts(message.get(name)):
            yield from detail_places(name, part)


def text_places(message: Message) -> Iterator[Place]:
    """The texts that are strings, or in parts of what is a string elsewhere."""
    for name in (*MESSAGE_TEXTS, *DETAILS):
        if isinstance(message.get(name), str):
            yield Place(message, name, (name,), partial(_as_string, name))
    for name in MESSAGE_TEXTS:
        for part in dicts(message.get(name)):
            yield from _part_places(name, part)
    audio = message.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("transcript"), str):
        yield Place(audio, "transcript", ("audio",), _as_transcript)


def detail_places(name: str, part: dict[str, Any]) -> Iterator[Place]:
    """The texts of one part of a list of `DETAILS`."""
    head = {key: part[key] for key in HEAD if key in part}
    index, kind = (_plain(part.get(key)) for key in ("index", "type"))
    for key in DETAILS[name]:
        if isinstance(part.get(key), str):
            yield Place(part, key, (name, key, index, kind), partial(_in_part, name, head, key))


def dicts(value: object) -> Iterator[dict[str, Any]]:
    """The dicts in a list; nothing where it is none."""
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def _part_places(name: str, part: dict[str, Any]) -> Iterator[Place]:
    if isinstance(part.get("text"), str):
        yield Place(part, "text", (name,), partial(_as_string, name))
    # Mistral's models think in parts of the content that hold parts themselves.
    thought = part.get("thinking")
    inner = [(part, "thinking")] if isinstance(thought, str) else []
    inner += [(each, "text") for each in dicts(thought) if isinstance(each.get("text"), str)]
    for holder, key in inner:
        yield Place(holder, key, (name, "thinking"), partial(_as_thought, name))


def _as_string(name: str, text: str) -> Message:
    return {name: text}


def _as_thought(name: str, text: str) -> Message:
    return {name: [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}


def _as_transcript(text: str) -> Message:
    return {"audio": {"transcript": text}}


def _in_part(name: str, head: dict[str, Any], key: str, text: str) -> Message:
    return {name: [{**head, key: text}]}


def _plain(value: object) -> object:
    """The value where it can be part of a name."""
    return value if isinstance(value, str | int) else None
