"""The events of a streamed completion, chat or plain: what may be shown goes on, the rest waits."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import Blocked
from srllm_guard.middleware.annotations import moved
from srllm_guard.middleware.held import Held
from srllm_guard.middleware.openai.message import (
    CALLS,
    CONTENT,
    DETAILS,
    HEAD,
    OWN_FIELDS,
    OWN_REPEATS,
    Name,
    Place,
    detail_places,
    dicts,
    text_places,
)
from srllm_guard.middleware.openai.payload import Outcomes, choice_slots, moderate
from srllm_guard.middleware.waiting import earliest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from srllm_guard.guard import Guard
    from srllm_guard.results import Edit

Chunk = dict[str, Any]

OWN = ("choices", "usage", "obfuscation")
"""Fields of a chunk that belong to no other one."""

REPEATS = ("message", "text", "token_ids")
"""Fields of a choice, besides `delta`, in which some servers say again what is or was in that."""


class ChatEvents:
    """One streamed completion, of any number of choices.

    Text goes on sentence by sentence, and arguments of a tool call when the call is complete.
    Annotations come behind the text that they are about, at their places in what was released. The
    probabilities of tokens come with the chunk that ends a choice, and only if nothing in it was
    changed: they hold the text as well.

    What some servers say beside the delta (the message so far, the piece once more) is left out. A
    choice that is no piece, but a whole message, is moderated as one.

    Args:
        guard: of this direction.
        as_json: whether the answer is to be JSON, which is judged as a whole.
    """

    def __init__(self, guard: Guard, *, as_json: bool) -> None:
        self._guard = guard
        self._as_json = as_json
        self._choices: dict[int, _Choice] = {}
        self._frame: Chunk = {}

    @property
    def due(self) -> float | None:
        """When `flush` is due, on the clock of `time.monotonic`; None for never."""
        return earliest(self._choices.values())

    def take(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunks to show, now that this one has come.

        Raises:
            Blocked: a text was withheld, and the policy says `on_block="raise"`.
        """
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            yield chunk
            return
        self._frame = {key: value for key, value in chunk.items() if key not in OWN}
        kept = []
        for choice in (each for each in choices if isinstance(each, dict)):
            state = self._choices.setdefault(choice.get("index", 0), _Choice(self))
            last = yield from state.take(choice)
            kept += [] if last is None else [last]
        if kept or chunk.get("usage"):
            yield {**chunk, "choices": kept}

    def flush(self) -> Iterator[Chunk]:
        """What was held for long enough, judged as if it were complete."""
        now = time.monotonic()
        for each in self._choices.values():
            yield from each.flush(now)

    def end(self) -> Iterator[Chunk]:
        """What is left when the server said nothing of an end."""
        for each in self._choices.values():
            yield from each.close()

    def hold(self, name: Name) -> Held:
        """A new text of the answer."""
        return Held(self._guard, structured=self.structured(name))

    def structured(self, name: Name) -> bool:
        """Whether a text is JSON."""
        return self._as_json and name == CONTENT

    def hold_arguments(self) -> Held:
        """New arguments of a call."""
        return Held(self._guard, structured=True)

    def moderate(self, choice: Chunk, known: Outcomes) -> None:
        """Moderate a choice that is there as a whole, in place."""
        moderate(self._guard, list(choice_slots(choice, as_json=self._as_json)), known)

    def chunk(self, choice: Chunk) -> Chunk:
        """A chunk of this choice alone."""
        return {**self._frame, "choices": [choice]}


class _Choice:
    """One choice: its texts by their field, its calls by their number."""

    def __init__(self, stream: ChatEvents) -> None:
        self._stream = stream
        self._texts: dict[Name, Held] = {}
        self._alone: dict[Name, Callable[[str], Chunk]] = {}
        self._known: Outcomes = {}
        self._calls: dict[tuple[int | None, str], Held] = {}
        self._logprobs: list[Chunk] = []
        self._notes: list[Any] = []
        self._edits: list[Edit] = []
        self._read = self._written = 0  # code points of the content that the edits are counted in
        self._changed = self._begun = False
        self._last: Chunk = {}

    @property
    def due(self) -> float | None:
        return earliest(self._texts.values())

    def take(self, choice: Chunk) -> Generator[Chunk, None, Chunk | None]:
        """Chunks to show before, and what is left of this choice."""
        if not isinstance(choice.get("delta"), dict) and isinstance(choice.get("message"), dict):
            yield from self.close()
            self._stream.moderate(choice, self._known)
            return choice
        self._last = choice
        delta = _delta(choice)
        _leave_out_repeats(choice)
        calls = list(dicts(delta.get("tool_calls")))
        if calls or delta.get("function_call"):
            # Who reads the stream takes the text for complete when the first call begins.
            yield from self._close_texts()
        for name in DETAILS:
            yield from self._take_details(delta, name)
        for place in _text_places(choice):
            self._take_text(place)
        for call in calls:
            number = call.get("index", 0)
            yield from self._close_calls(but=number)
            self._take_call(call, number)
        if calls:
            delta["tool_calls"] = [call for call in calls if not _void(call, ("index", "type"))]
        self._take_call(delta, None)
        self._set_aside(choice, delta)
        says = self._says(choice)
        if not choice.get("finish_reason"):
            return choice if says else None
        if says:
            yield self._stream.chunk({**choice, "finish_reason": None})
        yield from self.close()
        last = _with(choice, {})
        if self._logprobs and not self._changed:
            last["logprobs"] = _joined(self._logprobs)
        return last

    def _take_details(self, delta: Chunk, name: str) -> Iterator[Chunk]:
        """Take the parts of a list of reasoning; what comes behind a text lets it be complete."""
        parts = list(dicts(delta.get(name)))
        for part in parts:
            found = list(detail_places(name, part))
            mine = {place.name for place in found}
            yield from self._finish([n for n in self._texts if n[0] == name and n not in mine])
            for place in found:
                self._take_text(place)
            if not _void(part, (*HEAD, *DETAILS[name])):  # a signature, or all of a step
                for place in found:
                    yield from self._complete(place)
        if isinstance(delta.get(name), list):
            delta[name] = [part for part in parts if not _void(part, HEAD)]

    def _take_text(self, place: Place) -> None:
        """Put what may be shown of a text where a piece of it is; an empty one begins none."""
        if not place.text:
            return
        if place.name not in self._texts:
            self._texts[place.name] = self._stream.hold(place.name)
        self._alone[place.name] = place.alone
        place.put(self._texts[place.name].feed(place.text))

    def _complete(self, place: Place) -> Iterator[Chunk]:
        """Put all that is held of a text where its last piece is."""
        held = self._texts.pop(place.name, None)
        if held is None:
            return
        try:
            while rest := held.close():
                place.put(place.text + rest)
        except Blocked:
            if place.text:
                yield self._made(place.alone(place.text))
            raise
        self._note(place.name, held)

    def _set_aside(self, choice: Chunk, delta: Chunk) -> None:
        """Keep what goes by the text as it came in for when that is complete."""
        if isinstance(delta.get("annotations"), list):
            self._notes += delta.pop("annotations")
        if isinstance(logprobs := choice.get("logprobs"), dict):
            self._logprobs.append(logprobs)
            choice["logprobs"] = None

    def _says(self, choice: Chunk) -> bool:
        """Whether there is anything new in what is left of a choice."""
        if _delta(choice) is choice:
            return bool(choice.get("text"))
        # Some servers say the role again with every piece.
        says = not _void(choice["delta"], ("role",) if self._begun else ())
        self._begun |= says
        return says

    def flush(self, now: float) -> Iterator[Chunk]:
        for name, held in self._texts.items():
            if held.due is not None and held.due <= now and (text := held.flush()):
                yield self._made(self._alone[name](text))

    def close(self) -> Iterator[Chunk]:
        """All that is held."""
        yield from self._close_texts()
        yield from self._close_calls()

    def _close_texts(self) -> Iterator[Chunk]:
        yield from self._finish(list(self._texts))
        notes, self._notes = moved(self._notes, self._edits), []
        if notes:
            yield self._made({"annotations": notes})

    def _finish(self, names: Iterable[Name]) -> Iterator[Chunk]:
        """All that is held of these texts."""
        for name in names:
            held = self._texts.pop(name)
            while text := held.close():
                yield self._made(self._alone[name](text))
            self._note(name, held)

    def _note(self, name: Name, held: Held) -> None:
        """Note what became of a text that is closed."""
        released = held.released
        self._changed |= released.changed
        self._known[held.taken, self._stream.structured(name)] = released
        if name == CONTENT:
            self._enter(held)

    def _enter(self, held: Held) -> None:
        """Enter the edits of a part of the content, at their places in all of it."""
        read, written, released = self._read, self._written, held.released
        self._edits += [
            replace(
                edit,
                start=read + edit.start,
                end=read + edit.end,
                new_start=written + edit.new_start,
                new_end=written + edit.new_end,
            )
            for edit in (released.edits if released.changed else ())
        ]
        self._read, self._written = read + len(held.taken), written + len(released.text)

    def _close_calls(self, but: int | None = -1) -> Iterator[Chunk]:
        for number, place in [key for key in self._calls if key[0] != but]:
            held = self._calls.pop((number, place))
            while text := held.close():
                call: Chunk = {place: {dict(CALLS)[place]: text}}
                delta = call if number is None else {"tool_calls": [{"index": number, **call}]}
                yield self._made(delta)
            self._changed |= held.released.changed

    def _take_call(self, call: Chunk, number: int | None) -> None:
        for place, key in CALLS:
            inner = call.get(place)
            if isinstance(inner, dict) and isinstance(text := inner.get(key), str) and text:
                if (number, place) not in self._calls:
                    self._calls[number, place] = self._stream.hold_arguments()
                inner[key] = self._calls[number, place].feed(text)

    def _made(self, delta: Chunk) -> Chunk:
        choice = {**_with(self._last, delta), "finish_reason": None, "logprobs": None}
        return self._stream.chunk(choice)


def _delta(choice: Chunk) -> Chunk:
    """What holds the new pieces: of a plain completion that is the choice itself."""
    delta = choice.get("delta")
    return delta if isinstance(delta, dict) else choice


def _text_places(choice: Chunk) -> Iterator[Place]:
    if _delta(choice) is not choice:
        yield from text_places(choice["delta"])
    elif isinstance(choice.get("text"), str):
        yield Place(choice, "text", ("text",), lambda text: {"text": text})


def _leave_out_repeats(choice: Chunk) -> None:
    """Leave out what says again, in words or in ids of tokens, what the delta says."""
    delta = _delta(choice)
    for name in REPEATS if delta is not choice else ("token_ids",):
        choice.pop(name, None)
    delta.pop("token_id", None)
    if isinstance(own := delta.get(OWN_FIELDS), dict):
        for name in OWN_REPEATS:
            own.pop(name, None)


def _with(choice: Chunk, delta: Chunk) -> Chunk:
    """The choice with another delta."""
    if _delta(choice) is choice:
        return {**choice, "text": "", **delta}
    return {**choice, "delta": delta}


def _void(value: Chunk, but: tuple[str, ...]) -> bool:
    """Whether a delta says nothing, some fields apart."""
    return not any(
        not _void(each, ()) if isinstance(each, dict) else each not in (None, "", [])
        for key, each in value.items()
        if key not in but
    )


def _joined(logprobs: list[Chunk]) -> Chunk:
    """Probabilities of all tokens, from those of the chunks."""
    joined: Chunk = {}
    for each in logprobs:
        for key, values in each.items():
            if isinstance(values, list) and isinstance(joined.get(key), list):
                joined[key] = [*joined[key], *values]
            elif joined.get(key) is None:
                joined[key] = values
    return joined
