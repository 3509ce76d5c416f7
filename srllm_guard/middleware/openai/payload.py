"""Where the text is in what an OpenAI-compatible server answers or is asked, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import ConfigError
from srllm_guard.middleware.openai.held import Released, judge, moved
from srllm_guard.middleware.shapes import TRUSTED_ROLES

if TYPE_CHECKING:
    from srllm_guard.guard import Guard

Outcomes = dict[tuple[str, bool], Released]
"""What became of texts, by the text and whether it is structured."""

MESSAGE_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
"""Fields of a chat message, or of its delta, that hold text; the last two are servers' own."""

ITEM_TEXTS = {
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "mcp_call": ("arguments", "output"),
    "mcp_approval_request": ("arguments",),
    "multi_agent_call": ("arguments",),
    "function_call_output": ("output",),
    "custom_tool_call_output": ("output",),
}
"""Fields of an item of a response that hold arguments, or what a tool returned."""

JSON_FORMATS = ("json_object", "json_schema")

ASKED_OUTPUTS = ("function_call_output", "custom_tool_call_output")

INSTRUCTIONS = ("system", "developer")
"""Roles of what the application wrote, which is the same when it is fetched again."""


@dataclass(slots=True)
class Slot:
    """One text in an answer."""

    holder: Any
    """The dict, or the list, that it stands in."""
    key: str | int
    structured: bool = False
    """Whether it may be JSON, of which only prose is moderated."""
    beside: dict[str, Any] | None = None
    """What holds its tokens and their probabilities, which are text as well."""

    @property
    def text(self) -> str:
        """The text that is there."""
        value: str = self.holder[self.key]
        return value

    def put(self, released: Released) -> None:
        """Put what is released in its place, and mend what hangs on it."""
        if not released.changed:
            return
        self.holder[self.key] = released.text
        if self.beside is not None:
            self.beside.pop("token_ids", None)
            if self.beside.get("logprobs") is not None:
                self.beside["logprobs"] = [] if isinstance(self.beside["logprobs"], list) else None
        if isinstance(self.holder, dict) and isinstance(self.holder.get("annotations"), list):
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
        slot.put(known[key])
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
    for choice in _dicts(answer.get("choices")):
        if isinstance(message := choice.get("message"), dict):
            yield from _message_slots(message, choice, as_json=as_json)
        yield from _filled(choice, ("text",), beside=choice)
    for item in _dicts(answer.get("output")):
        yield from item_slots(item, as_json=as_json)
    yield from _stored_slots(answer, as_json=as_json)
    for each in _dicts(answer.get("data")):
        yield from answer_slots(each, as_json=as_json)


def item_slots(item: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of an item of a response or conversation."""
    kind = str(item.get("type", ""))
    yield from _filled(item, ITEM_TEXTS.get(kind, ()), structured=True)
    yield from _filled(item, ("content",))
    for key in ("content", "summary"):
        for part in _dicts(item.get(key)):
            yield from part_slots(part, as_json=as_json)
    if kind.endswith("_output"):
        for part in _dicts(item.get("output")):
            yield from _filled(part, ("text",), structured=True, beside=part)


def part_slots(part: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of one part of an item."""
    structured = as_json and part.get("type") == "output_text"
    yield from _filled(part, ("text", "refusal"), structured=structured, beside=part)


def _stored_slots(item: dict[str, Any], *, as_json: bool) -> Iterator[Slot]:
    """The texts of what is fetched by itself: an item, or a message of a stored chat."""
    if item.get("role") in INSTRUCTIONS:
        return
    if "type" in item or "role" not in item:
        yield from item_slots(item, as_json=as_json)
        return
    yield from _message_slots(item, item, as_json=as_json)
    for part in _dicts(item.get("content_parts")):
        yield from _filled(part, ("text",))


def _message_slots(
    message: dict[str, Any], choice: dict[str, Any], *, as_json: bool
) -> Iterator[Slot]:
    for name in MESSAGE_TEXTS:
        structured = as_json and name == "content"
        yield from _filled(message, (name,), structured=structured, beside=choice)
        for part in _dicts(message.get(name)):
            yield from _filled(part, ("text",), beside=choice)
    for call in [*_dicts(message.get("tool_calls")), message]:
        for place, key in CALLS:
            if isinstance(inner := call.get(place), dict):
                yield from _filled(inner, (key,), structured=True, beside=choice)


CALLS = (("function", "arguments"), ("custom", "input"), ("function_call", "arguments"))
"""Where a tool call of a chat message, or an old message itself, holds arguments."""


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


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


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
        if isinstance(body.get(key), list | tuple | str)
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
    said = [each for key in ("messages", "input", "items") for each in _dicts(body.get(key))]
    for message in said:
        structured = message.get("role") != "user"  # what tools say is JSON at times
        if message.get("type") in ASKED_OUTPUTS:
            yield from _filled(message, ("output",), structured=structured)
            parts = message.get("output")
        elif message.get("role", "assistant") not in TRUSTED_ROLES:
            yield from _filled(message, ("content",), structured=structured)
            parts = message.get("content")
        else:
            continue
        for part in _dicts(parts):
            yield from _filled(part, ("text",), structured=structured)


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
