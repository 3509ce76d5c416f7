"""The events of a streamed response: each says again what came before it, and all must agree."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from srllm_guard.middleware.annotations import moved
from srllm_guard.middleware.held import Held, Released
from srllm_guard.middleware.openai.payload import (
    Outcomes,
    Slot,
    answer_slots,
    field_slots,
    item_slots,
    moderate,
    part_slots,
)
from srllm_guard.middleware.waiting import earliest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from srllm_guard.guard import Guard
    from srllm_guard.middleware.events import Event

TEXTS = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.audio.transcript": "transcript",
    "response.shell_call_output_content": "output",
}
"""Texts that come as `.delta` and `.done`, with the field of the latter that holds all of it."""

STRUCTURED = ("arguments", "input", "output")
"""Such fields that may hold JSON."""

PLACE = ("item_id", "output_index", "content_index", "summary_index", "command_index")
"""Fields of an event that say together which text it is about, or which two of a shell."""

ENDS = ("response.completed", "response.incomplete", "response.failed")


class ResponseEvents:
    """One streamed response.

    Deltas go on sentence by sentence, and arguments of calls when they are complete; what says the
    text again, up to the whole response at the end, says what was released.

    Args:
        guard: of this direction.
        as_json: whether the answer is to be JSON, which is judged as a whole.
    """

    def __init__(self, guard: Guard, *, as_json: bool) -> None:
        self._guard = guard
        self._as_json = as_json
        self._open: dict[tuple[Any, ...], Held] = {}
        self._known: Outcomes = {}

    @property
    def due(self) -> float | None:
        """When `flush` is due, on the clock of `time.monotonic`; None for never."""
        return earliest(self._open.values())

    def take(self, event: Event) -> Iterator[Event]:
        """The events to show, now that this one has come.

        Raises:
            Blocked: a text was withheld, and the policy says `on_block="raise"`.
        """
        kind = str(event.get("type", ""))
        stem, _, verb = kind.rpartition(".")
        if stem in TEXTS and verb == "delta":
            return (yield from self._delta(stem, event))
        if stem in TEXTS and verb == "done":
            return (yield from self._done(stem, event))
        if kind == "response.output_text.annotation.added":
            held = self._open.get(_key("response.output_text", event))
            if held is not None:
                held.aside.append(event)
                return
        if kind == "response.output_item.done":
            yield from self._close(event.get("output_index"))
        elif kind in ENDS:
            yield from self.end()
        found: list[Slot] = []
        if isinstance(part := event.get("part"), dict):
            found += part_slots(part, as_json=self._as_json)
        if isinstance(item := event.get("item"), dict):
            found += item_slots(item, as_json=self._as_json)
        found += answer_slots(event.get("response"), as_json=self._as_json)
        moderate(self._guard, found, self._known)
        yield event

    def flush(self) -> Iterator[Event]:
        """What was held for long enough, judged as if it were complete."""
        now = time.monotonic()
        ready = [each for each in self._open.values() if each.due is not None and each.due <= now]
        yield from (_with(held.envelope, text) for held in ready if (text := held.flush()))

    def end(self) -> Iterator[Event]:
        """What is left of texts whose end was never said."""
        return self._close(None)

    def _delta(self, stem: str, event: Event) -> Iterator[Event]:
        # Probabilities of tokens hold the text as well; `done` has them where nothing was changed.
        event = {**event, "logprobs": []} if "logprobs" in event else event
        for each, piece in _split(event):
            key = _key(stem, each)
            if key not in self._open:
                self._open[key] = Held(self._guard, structured=self._structured(stem))
            held = self._open[key]
            held.envelope = {name: value for name, value in each.items() if name != "obfuscation"}
            if text := held.feed(piece):
                yield _with(each, text)

    def _done(self, stem: str, event: Event) -> Iterator[Event]:
        place = _key(stem, event)
        for key in [each for each in self._open if each[: len(place)] == place]:
            yield from self._finish(key)
        found = field_slots(event, TEXTS[stem], structured=self._structured(stem))
        moderate(self._guard, list(found), self._known)
        yield event

    def _finish(self, key: tuple[Any, ...]) -> Iterator[Event]:
        """Events that end a text, and what became of it for those that say it again."""
        held = self._open.pop(key)
        while rest := held.close():
            yield _with(held.envelope, rest)
        self._known[held.taken, self._structured(key[0])] = held.released
        yield from _annotations(held.aside, held.released)

    def _close(self, output: int | None) -> Iterator[Event]:
        """End the open texts of an output item, or all of them."""
        for key, held in list(self._open.items()):
            if output is None or held.envelope.get("output_index") == output:
                yield from self._finish(key)

    def _structured(self, stem: str) -> bool:
        return TEXTS[stem] in STRUCTURED or (self._as_json and stem == "response.output_text")


def _split(event: Event) -> list[tuple[Event, str]]:
    """The pieces of text in a delta, each with an event that brings it alone."""
    delta = event.get("delta")
    found: list[tuple[Event, Any]] = [(event, delta)]
    if isinstance(delta, dict):
        found = [({**event, "delta": {name: piece}}, piece) for name, piece in delta.items()]
    return [(each, piece) for each, piece in found if isinstance(piece, str) and piece]


def _with(event: Event, text: str) -> Event:
    """What `_split` gave, with another piece."""
    delta = event["delta"]
    return {**event, "delta": dict.fromkeys(delta, text) if isinstance(delta, dict) else text}


def _key(stem: str, event: Event) -> tuple[Any, ...]:
    """Which text an event is about; without a delta, the beginning of that."""
    delta = event.get("delta")
    names = delta if isinstance(delta, dict) else ()
    return (stem, *(event.get(name) for name in PLACE), *names)


def _annotations(events: list[Event], released: Released) -> list[Event]:
    """Events about places in a text, at their places in what was released."""
    return [
        {**event, "annotation": new[0]}
        for event in events
        if (new := moved([event.get("annotation")], released.edits))
    ]
