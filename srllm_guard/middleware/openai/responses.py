"""The events of a streamed response: each says again what came before it, and all must agree."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from srllm_guard.middleware.openai.held import Held, Released, moved
from srllm_guard.middleware.openai.payload import (
    Outcomes,
    Slot,
    answer_slots,
    item_slots,
    moderate,
    part_slots,
)
from srllm_guard.middleware.waiting import earliest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from srllm_guard.guard import Guard

Event = dict[str, Any]

TEXTS = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}
"""Texts that come as `.delta` and `.done`, with the field of the latter that holds all of it."""

PLACE = ("item_id", "output_index", "content_index", "summary_index")
"""Fields of an event that say together which text it is about."""

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
        yield from ({**held.envelope, "delta": text} for held in ready if (text := held.flush()))

    def end(self) -> Iterator[Event]:
        """What is left of texts whose end was never said."""
        return self._close(None)

    def _delta(self, stem: str, event: Event) -> Iterator[Event]:
        key = _key(stem, event)
        if key not in self._open:
            self._open[key] = Held(self._guard, structured=self._structured(stem))
        held = self._open[key]
        # Probabilities of tokens hold the text as well; `done` has them where nothing was changed.
        event = {**event, "logprobs": []} if "logprobs" in event else event
        held.envelope = {name: value for name, value in event.items() if name != "obfuscation"}
        if text := held.feed(str(event.get("delta", ""))):
            yield {**event, "delta": text}

    def _done(self, stem: str, event: Event) -> Iterator[Event]:
        field, structured = TEXTS[stem], self._structured(stem)
        held = self._open.pop(_key(stem, event), None)
        if held is not None:
            yield from self._finish(held, structured=structured)
        text = event.get(field)
        if isinstance(text, str) and text:
            moderate(self._guard, [Slot(event, field, structured, event)], self._known)
        yield event

    def _finish(self, held: Held, *, structured: bool) -> Iterator[Event]:
        """Events that end a text, and what became of it for those that say it again."""
        while rest := held.close():
            yield {**held.envelope, "delta": rest}
        self._known[held.taken, structured] = held.released
        yield from _annotations(held.aside, held.released)

    def _close(self, output: int | None) -> Iterator[Event]:
        """End the open texts of an output item, or all of them."""
        for key in list(self._open):
            held = self._open[key]
            if output is None or held.envelope.get("output_index") == output:
                del self._open[key]
                yield from self._finish(held, structured=self._structured(key[0]))

    def _structured(self, stem: str) -> bool:
        return TEXTS[stem] in ("arguments", "input") or (
            self._as_json and stem == "response.output_text"
        )


def _key(stem: str, event: Event) -> tuple[Any, ...]:
    return (stem, *(event.get(name) for name in PLACE))


def _annotations(events: list[Event], released: Released) -> list[Event]:
    """Events about places in a text, at their places in what was released."""
    return [
        {**event, "annotation": new[0]}
        for event in events
        if (new := moved([event.get("annotation")], released.edits))
    ]
