"""The events of a streamed message of Anthropic's API: what may be shown goes on, the rest waits.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from srllm_guard.errors import ShapeError
from srllm_guard.middleware.held import Held
from srllm_guard.middleware.shapes import walk
from srllm_guard.middleware.waiting import earliest
from srllm_guard.structure.records import ABSENT
from srllm_guard.structure.visiting import Visitor, collected, replaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from srllm_guard.guard import Guard
    from srllm_guard.middleware.events import Event

Block = dict[str, Any]

Key = tuple[Any, str]
"""Which text it is: the index of its block, and the field of the deltas that bring it."""

TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Deltas that bring a piece of a text, and the field that it is in."""

BEGUN = ("text", "thinking")
"""Kinds of blocks that may begin with a text; it is in the field of that name, as in deltas."""

ECHOES = {"text": "text", "thinking": "thinking", "input_json": "partial_json"}
"""Events by which the SDK's `messages.stream` says a delta again, with all of the text so far."""

HELPERS = frozenset({*ECHOES, "citation", "signature", "compaction"})
"""All events that only `messages.stream` gives; they stand behind the delta that they are about."""

EVENTS = {
    "message_start": "message",
    "content_block_start": "content_block",
    "content_block_delta": "delta",
    "content_block_stop": "index",
    "message_delta": "delta",
    "message_stop": "type",
    "ping": "type",
}
"""The events of the API, and a field that each of them has; `error` is one in other APIs too."""


class MessageEvents:
    """One streamed message after the other.

    Text and thinking go on sentence by sentence, and the input of a tool when it is complete; all
    of a block comes before its signature, its citations and its end. Blocks that come as a whole
    are moderated as in a message. What says a text again says what was released.

    Args:
        guard: of this direction.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._open: dict[Key, Held] = {}
        self._begun: dict[Key, Event] = {}  # starts of blocks that bring text, which may go on
        self._told: dict[Key, tuple[str, str]] = {}  # what came in, and what was shown
        self._known: dict[str, str] = {}  # what became of texts
        self._inputs: list[tuple[Any, Any]] = []  # what became of what tools are given
        self._echoes: dict[Key, Event] = {}  # the last of each text
        self._last: tuple[Key, str] | None = None  # text of the last delta, and shown
        self._cited: Held | None = None  # whose end the last citation waits for

    @property
    def due(self) -> float | None:
        """When `flush` is due, on the clock of `time.monotonic`; None for never."""
        return earliest(self._open.values())

    def take(self, event: Event) -> Iterator[Event]:
        """The events to show, now that this one has come.

        Raises:
            Blocked: a text was withheld, and the policy says `on_block="raise"`.
            ShapeError: where the text is in such an event is not known.
        """
        kind, index = str(event.get("type", "")), event.get("index")
        if kind == "content_block_delta":
            yield from self._delta(event)
        elif kind in HELPERS:
            yield from self._helper(event)
        elif kind == "ping":
            yield event
        else:
            yield from self._close(index if kind.startswith("content_block") else None)
            if kind == "message_start":
                self._told, self._known, self._inputs, self._last = {}, {}, [], None
            if kind == "content_block_start" and (field := _begins(event["content_block"])):
                self._begun[index, field] = event
            else:
                yield self._retold(event)

    def flush(self) -> Iterator[Event]:
        """What was held for long enough, judged as if it were complete."""
        now = time.monotonic()
        for key, held in self._open.items():
            if held.due is not None and held.due <= now and (text := held.flush()):
                yield from self._shown(held, key, text)

    def end(self) -> Iterator[Event]:
        """What is left of blocks whose end was never said."""
        return self._close(None)

    def _delta(self, event: Event) -> Iterator[Event]:
        delta, index = event["delta"], event.get("index")
        kind = delta.get("type") if isinstance(delta, dict) else None
        if kind == "signature_delta":
            yield from self._close(index)
            yield event
        elif kind == "citations_delta":
            if _of(self._begun, index):
                yield from self._close(index)
            self._cited = next((self._open[key] for key in _of(self._open, index)), None)
            yield from self._behind({**event, "delta": self._whole(delta)})
        elif kind == "compaction_delta":  # comes once, with all of the text
            yield {**event, "delta": self._whole(delta)}
        elif kind in TEXTS and isinstance(delta.get(TEXTS[kind]), str):
            yield from self._piece(event, TEXTS[kind])
        else:
            raise ShapeError(
                f"A block goes on with a {kind or type(delta).__name__}, and where the text is in "
                "that is not known.",
                hint="Leave such deltas out, or say by output_text where the text is.",
            )

    def _piece(self, event: Event, field: str) -> Iterator[Event]:
        key, piece, shown = (event.get("index"), field), event["delta"][field], ""
        if not piece:  # which begins no text, and ends none
            self._last = key, ""
            return
        if key not in self._open:
            start = self._begun.pop(key, None)
            yield from self._close(key[0])
            self._open[key] = Held(self._guard, structured=field == "partial_json")
            if start is not None:
                block = start["content_block"]
                shown = self._open[key].feed(block[field])
                yield {**start, "content_block": {**block, field: ""}}
        held = self._open[key]
        held.envelope = event
        shown += held.feed(piece)
        self._last = key, shown
        if shown:
            yield {**event, "delta": {**event["delta"], field: shown}}

    def _shown(self, held: Held, key: Key, text: str) -> Iterator[Event]:
        """Events that show a piece of a text which no event brings."""
        yield {**held.envelope, "delta": {**held.envelope["delta"], key[1]: text}}
        if key in self._echoes:
            yield self._echo(held, key, text)

    def _echo(self, held: Held, key: Key, text: str) -> Event:
        """What the SDK's helper says of a piece."""
        field, echo, so_far = key[1], self._echoes[key], held.released
        snapshot = so_far.text if field != "partial_json" else echo.get("snapshot")
        if field == "partial_json" and so_far.changed:
            self._note(field, held.taken, so_far.text)
            snapshot = self._whole({"type": "tool_use", "input": snapshot})["input"]
        return {**echo, field: text, "snapshot": snapshot}

    def _helper(self, event: Event) -> Iterator[Event]:
        """What to show for an event of the SDK's helper."""
        kind = event["type"]
        if kind == "citation":
            yield from self._behind(self._whole(event))
        elif kind == "compaction":
            yield self._whole(event)
        elif kind == "signature":
            yield event
        else:
            field = ECHOES[kind]
            if self._last is None or self._last[0][1] != field:
                raise ShapeError(
                    f"An event of the type {kind} came without the delta that it says again.",
                    hint="Give all events of the stream, or the text of each as a string.",
                )
            key, shown = self._last
            self._echoes[key] = event
            if shown and key in self._open:
                yield self._echo(self._open[key], key, shown)

    def _behind(self, event: Event) -> Iterator[Event]:
        """A citation, once the text that it is about is there."""
        if self._cited is None:
            yield event
        else:
            self._cited.aside.append(event)

    def _close(self, index: Any) -> Iterator[Event]:
        """End what is open of a block, or of all of them."""
        for key in _of(self._open, index):
            held = self._open.pop(key)
            while text := held.close():
                yield from self._shown(held, key, text)
            came, shown = self._told.get(key, ("", ""))
            self._told[key] = came + held.taken, shown + held.released.text
            self._note(key[1], *self._told[key])
            yield from held.aside
            self._cited = None
        for key in _of(self._begun, index):
            yield self._retold(self._begun.pop(key))
        for key in _of(self._echoes, index):
            del self._echoes[key]

    def _note(self, field: str, came: str, shown: str) -> None:
        """Note what became of a text, for what says it again."""
        if field != "partial_json":
            self._known[came] = shown
            return
        with suppress(ValueError, RecursionError):  # it was cut off, for one
            self._inputs.append((json.loads(came), json.loads(shown)))

    def _retold(self, event: Event) -> Event:
        """An event with what is released of a block or message in it, said before or not."""
        if isinstance(block := event.get("content_block"), dict):
            return {**event, "content_block": self._whole(block)}
        for name in ("message", "delta"):
            if isinstance(part := event.get(name), dict):
                return {**event, name: self._moderated(part)}
        return event

    def _whole(self, block: Block) -> Block:
        """A block, or the like, that is there as a whole."""
        (released,) = self._moderated({"content": [block]})["content"]
        return cast("Block", released)

    def _moderated(self, message: Block) -> Block:
        """Some fields of a message; what is known of them is not moderated again."""

        def walked(visitor: Visitor) -> Block:
            new = walk({"role": "assistant", "content": None, **message}, visitor)
            return {name: new[name] for name in message}

        texts, calls = collected(walked)
        fresh = [text for text in dict.fromkeys(texts) if text and text not in self._known]
        results = self._guard.moderate_many(fresh) if fresh else []
        shown = [self._guard.released(result) for result in results]
        self._known.update(zip(fresh, shown, strict=True))
        called = [self._called(call) for call in calls]
        new = replaced(walked, [self._known.get(text, text) for text in texts], called)
        return cast("Block", new)

    def _called(self, call: Block) -> Block:
        """A call of a tool, as it is released."""
        given = call.get("input", ABSENT)
        if given == {}:  # as it begins
            return call
        for came, shown in self._inputs:
            if came == given:
                return call if shown == came else {**call, "input": shown}
        (done,) = self._guard.moderate_tool_calls([call])
        self._guard.released(done.moderation)
        if given is not ABSENT:
            self._inputs.append((given, done.call["input"]))
        return cast("Block", done.call)


def _begins(block: Any) -> str:
    """The field with the text that a block begins with; empty where there is none to go on."""
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if kind in BEGUN and block.get(kind) and isinstance(block[kind], str) else ""


def _of(keys: Iterable[Key], index: Any) -> list[Key]:
    """Those of one block; of all for None."""
    return [key for key in keys if index is None or key[0] == index]
