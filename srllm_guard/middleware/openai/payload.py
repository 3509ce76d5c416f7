"""Where the text is in what an OpenAI-compatible server answers or is asked, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import ConfigError
from srllm_guard.middleware.annotations import moved
from srllm_guard.middleware.held import Released, judge
from srllm_guard.middleware.openai.message import (
    CALLS,
    CONTENT,
    OWN_FIELDS,
    OWN_THOUGHTS,
    Spot,
    dicts,
    places,
)
from srllm_guard.middleware.shapes import TRUSTED_ROLES

if TYPE_CHECKING:
    from srllm_guard.guard import Guard

Outcomes = dict[tuple[str, bool], Released]
"""What became of texts, by the text and whether it is structured."""

ITEM_TEXTS = {
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "mcp_call": ("arguments", "output"),
    "mcp_approval_request": ("arguments",),
    "multi_agent_call": ("arguments",),
    "program_output": ("result",),
}
"""Fields of an item of a response that hold arguments or a result, besides `output` of outputs."""

JSON_FORMATS = ("json_object", "json_schema")

PART_TEXTS = ("text", "refusal", "transcript")
"""Fields of a part of an item."""

OUTPUT_TEXTS = ("text", "stdout", "stderr")
"""Fields of a part of what a tool returned."""

INSTRUCTIONS = ("system", "developer")
"""Roles of what the application wrote, which is the same when it is fetched again."""


@dataclass(frozen=True, slots=True)
class Slot(Spot):
    """One text in an answer."""

    structured: bool = False
    """Whether it may be JSON, of which only prose is moderated."""
    beside: dict[str, Any] | None = None
    """What holds its tokens and their probabilities, which are text as well."""

    def release(self, released: Released) -> None:
        """Put what is released in its place, and mend what hangs on it."""
        if not released.changed:
            return
        self.put(released.text)
        if self.beside is not None:
            self.beside.pop("token_ids", None)
            if self.beside.get("logprobs") is not None:
                self.beside["logprobs"] = [] if isinstance(self.beside["logprobs"], list) else None
        annotated = isinstance(self.holder, dict) and self.key in ("content", "text")
        if annotated and isinstance(self.holder.get("annotations"), list):
            self.holder["annotations"] = moved(self.holder["annotations"], released.edits)


def moderate(guard: Guard, found: Sequence[Slot], known: Outcomes) -> bool:
    """Moderate texts of an answer in place, together; says whether one was changed.

    Args:
        guard: of this direction.
        found: where they are.
        known: what became of texts so far; the same text gets the same again.

    Raises:
        Blocked: one was withheld, and the policy says `on_block="raise"`.
    """
    keys = [(slot.text, slot.structured) for slot in found]
    for structured in (False, True):
        fresh = [key for key in dict.fromkeys(keys) if key[1] is structured and key not in known]
        results = judge(guard, [text for text, _ in fresh], structured=structured)
        released = [Released.of(guard, result) for result in results]
        known.update(zip(fresh, released, strict=True))
    for slot, key in zip(found, keys, strict=True):
        slot.release(known[key])
    return any(known[key].changed for key in keys)


def wants_json(body: object) -> bool:
    """Whether a request asks for an answer in JSON."""
    if not isinstance(body, dict):
        return False
    text = body.get("text")
    asked = body.get("response_format") or (isinstance(text, dict) and text.get("format"))
    return isinstance(asked, dict) and asked.get("type") in JSON_FORMATS


def answer_slots(answer: object, *, as_json: bool) -> Iterator[Slot]:
    """The texts of a completion, chat completion, response or stored item, or of a list of them."""
    if not isinstance(answer, dict):
        return
    for choice in dicts(answer.get("choices")):
        yield from choice_slots(choice, as_json=as_json)
    for item in dicts(answer.get("output")):
        yield from item_slots(item, as_json=as_json)
    yield from _stored_slots(answer, as_json=as_json)
    for each in dicts(answer.get("data")):
        yield from answer_slots(each, as_json=as_json)


def choice_slots(choice: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of a choice that is there as a whole."""
    for name in ("message", "delta"):
        if isinstance(message := choice.get(name), dict):
            yield from _message_slots(message, choice, as_json=as_json)
    yield from _filled(choice, ("text",), beside=choice)


def item_slots(item: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of an item of a response or conversation."""
    kind = str(item.get("type", ""))
    yield from _filled(item, ITEM_TEXTS.get(kind, ()), structured=True)
    yield from _filled(item, ("content",))
    for key in ("content", "summary"):
        for part in dicts(item.get(key)):
            yield from part_slots(part, as_json=as_json)
    if kind.endswith("_output"):
        yield from field_slots(item, "output", structured=True)  # JSON at times


def part_slots(part: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of one part of an item."""
    structured = as_json and part.get("type") == "output_text"
    yield from _filled(part, PART_TEXTS, structured=structured, beside=part)


def field_slots(holder: dict[str, Any], key: str, *, structured: bool) -> Iterator[Slot]:
    """The texts of a field that holds a string, or parts of what a tool or user gave."""
    yield from _filled(holder, (key,), structured=structured, beside=holder)
    for part in dicts(holder.get(key)):
        yield from _filled(part, OUTPUT_TEXTS, structured=structured, beside=part)


def _stored_slots(item: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of what is fetched by itself: an item, or a message of a stored chat."""
    if item.get("role") in INSTRUCTIONS:
        return
    if "type" in item or "role" not in item:
        yield from item_slots(item, as_json=as_json)
        return
    yield from _message_slots(item, item, as_json=as_json)
    for part in dicts(item.get("content_parts")):
        yield from _filled(part, ("text",))


def _message_slots(
    message: dict[str, Any], choice: dict[str, Any], *, as_json: bool
) -> Iterator[Slot]:
    for place in places(message):
        if place.text:
            structured = as_json and place.name == CONTENT
            yield Slot(place.holder, place.key, structured, choice)
    for call in [*dicts(message.get("tool_calls")), message]:
        for name, key in CALLS:
            if isinstance(inner := call.get(name), dict):
                yield from _filled(inner, (key,), structured=True, beside=choice)
    if isinstance(again := message.get(OWN_FIELDS), dict):
        yield from _message_slots(again, choice, as_json=as_json)
        piece, blocks = (again.get(name) for name in OWN_THOUGHTS)
        for thought in dicts([piece, *(block.get("reasoningText") for block in dicts(blocks))]):
            yield from _filled(thought, ("text",))


def _filled(
    holder: dict[str, Any],
    keys: Sequence[str],
    *,
    structured: bool = False,
    beside: dict[str, Any] | None = None,
) -> Iterator[Slot]:
    for key in keys:
        if isinstance(value := holder.get(key), str) and value:
            yield Slot(holder, key, structured, beside)


def asked(guard: Guard, body: dict[str, Any]) -> dict[str, Any]:
    """A request with the texts of users and tools moderated; the same object if nothing changes.

    Where a text is withheld and the policy does not raise, its message is what is sent.

    Raises:
        Blocked: one was withheld, and the policy says `on_block="raise"`.
        ConfigError: the prompt is token ids, which nobody can read.
    """
    # What the caller gave is not ours to change, and may hold what JSON has no form for.
    copied = {
        key: _copy(body[key])
        for key in ("messages", "input", "items", "prompt")
        if isinstance(body.get(key), list | tuple | str | dict)
    }
    changed = moderate(guard, list(_asked_slots(copied)), {})
    return {**body, **copied} if changed else body


def _asked_slots(body: dict[str, Any]) -> Iterator[Slot]:
    yield from _filled(body, ("prompt", "input"))
    if isinstance(prompts := body.get("prompt"), list):
        if not all(isinstance(each, str) for each in prompts):
            raise ConfigError(
                "The prompt is a list of token ids, and what is sent is to be moderated.",
                hint="Send text, or leave inputs=False.",
            )
        yield from (Slot(prompts, index) for index, text in enumerate(prompts) if text)
    elif isinstance(prompts, dict) and isinstance(variables := prompts.get("variables"), dict):
        yield from _filled(variables, tuple(variables))
        for part in variables.values():
            if isinstance(part, dict):
                yield from _filled(part, ("text",))
    for key in ("messages", "input", "items"):
        for message in dicts(body.get(key)):
            yield from _said_slots(message)


def _said_slots(message: dict[str, Any]) -> Iterator[Slot]:
    """The texts of a message or item of a request, if a user or a tool says it."""
    kind, structured = str(message.get("type", "")), message.get("role") != "user"
    if kind.endswith("_call_output"):
        key = "output"
    elif kind == "program_output":
        key = "result"
    elif kind == "mcp_approval_response":
        key = "reason"
    elif message.get("role", "assistant") not in TRUSTED_ROLES:
        key = "content"
    else:
        return
    yield from field_slots(message, key, structured=structured)  # what tools say is JSON at times


def _copy(value: Any) -> Any:
    """A copy of the mappings and lists in a value, down to its leaves."""
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(each) for each in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_unset=True)
    return value


def moderated_body(guard: Guard, body: bytes, text: str, *, as_json: bool) -> bytes | None:
    """What to answer instead of a body; None for the body itself.

    Args:
        guard: of this direction.
        body: what the server answered.
        text: the same, decoded.
        as_json: whether the answer was to be JSON.

    Raises:
        Blocked: a text was withheld, and the policy says `on_block="raise"`.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        released = guard.rewrite(text)
        return None if released == text else released.encode("utf-8", "surrogatepass")
    found = list(answer_slots(answer, as_json=as_json))
    return json.dumps(answer).encode() if moderate(guard, found, {}) else None
