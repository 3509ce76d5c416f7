"""Wrapped streams of Anthropic's API: its events, as dicts, as models, and those of its helper."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.responses import ResponseErrorEvent
from pydantic import BaseModel, ConfigDict

from srllm_guard import Blocked, Guard, Moderation
from srllm_guard.errors import ShapeError
from tests.byte_engine import runtime
from tests.checks import guard

Event = dict[str, Any]

SAID = "Hello there. You are an idiot. What a fine day."
THOUGHT = "He is lazy, I see. So be it."
INPUT = json.dumps({"to": "idiot-7", "text": "You are an idiot."})
QUERY = json.dumps({"query": "when is noon"})
FOUND = {"type": "web_search_result", "title": "idiot", "url": "u", "encrypted_content": "QUJD"}
CITED = {"type": "char_location", "cited_text": "a fine day", "document_index": 0}
TOLD = {"type": "text", "text": "You idiot."}


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


def started(index: int, kind: str, **block: Any) -> Event:
    content_block = {"type": kind, **block}
    return {"type": "content_block_start", "index": index, "content_block": content_block}


def delta(index: int, kind: str, **field: Any) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **field}}


def stopped(index: int) -> Event:
    return {"type": "content_block_stop", "index": index}


def begun() -> Event:
    message = {"id": "msg", "role": "assistant", "content": [], "model": "m", "type": "message"}
    return {"type": "message_start", "message": message}


def ended(reason: str = "end_turn") -> list[Event]:
    change = {"stop_reason": reason, "stop_sequence": None}
    last = {"type": "message_delta", "delta": change, "usage": {"output_tokens": 9}}
    return [last, {"type": "message_stop"}]


def message() -> list[Event]:
    """A message with a block of each kind, as the API documents it."""
    return [
        begun(),
        started(0, "thinking", thinking="", signature=""),
        {"type": "ping"},
        *(delta(0, "thinking_delta", thinking=piece) for piece in pieces(THOUGHT)),
        delta(0, "signature_delta", signature="s1g"),
        stopped(0),
        started(1, "text", text=""),
        *(delta(1, "text_delta", text=piece) for piece in pieces(SAID)),
        delta(1, "citations_delta", citation=CITED),
        stopped(1),
        started(2, "tool_use", id="t", name="send", input={}),
        delta(2, "input_json_delta", partial_json=""),
        *(delta(2, "input_json_delta", partial_json=piece) for piece in pieces(INPUT)),
        stopped(2),
        started(3, "server_tool_use", id="s", name="web_search", input={}),
        delta(3, "input_json_delta", partial_json=QUERY),
        stopped(3),
        started(4, "web_search_tool_result", tool_use_id="s", content=[FOUND]),
        stopped(4),
        started(5, "redacted_thinking", data="QUJD"),
        stopped(5),
        started(6, "mcp_tool_result", content=[TOLD]),
        stopped(6),
        *ended("tool_use"),
    ]


class Part(BaseModel):
    """As the SDK of Anthropic has parts of an event."""

    model_config = ConfigDict(extra="allow")
    type: str


class Sent(BaseModel):
    """As the SDK has events; fields of the others are extras."""

    model_config = ConfigDict(extra="allow")
    type: str
    delta: Part | dict[str, Any] | None = None
    content_block: Part | None = None


def modelled(event: Event) -> Sent:
    return Sent.model_validate(event)


def dumped(event: Any) -> Event:
    made: Event = event.model_dump(exclude_unset=True) if isinstance(event, Sent) else event
    return made


def guarded(guard: Guard, events: list[Any], *, way: int = 0) -> list[Any]:
    def generator() -> Iterator[Any]:
        yield from events

    async def async_generator() -> Any:
        for event in events:
            yield event

    async def collected() -> list[Any]:
        return [event async for event in guard.wrap(async_generator)()]

    return asyncio.run(collected()) if way else list(guard.wrap(generator)())


def text_of(events: list[Event], index: int, field: str) -> str:
    return "".join(
        event["delta"].get(field, "")
        for event in events
        if event["type"] == "content_block_delta" and event["index"] == index
    )


def places(events: list[Event], kind: str, index: int) -> list[int]:
    return [n for n, e in enumerate(events) if e["type"] == kind and e.get("index") == index]


@pytest.mark.parametrize("as_model", [False, True])
@pytest.mark.parametrize("way", [0, 1])
def test_a_message_of_all_kinds(byte_guard: Guard, way: int, as_model: bool) -> None:
    events = message()
    given = [modelled(each) for each in events] if as_model else events
    before = copy.deepcopy(given)
    found = guarded(byte_guard, given, way=way)
    assert given == before
    assert {type(each) for each in found} == {type(given[0])}
    found = [dumped(each) for each in found]
    assert text_of(found, 0, "thinking") == byte_guard.rewrite(THOUGHT)
    assert text_of(found, 1, "text") == byte_guard.rewrite(SAID)
    sent = json.loads(text_of(found, 2, "partial_json"))
    assert sent == {"to": "idiot-7", "text": byte_guard.rewrite("You are an idiot.")}
    assert text_of(found, 3, "partial_json") == QUERY
    (place,) = places(found, "content_block_start", 6)
    (told,) = found[place]["content_block"]["content"]
    assert told["text"] == byte_guard.rewrite("You idiot.")
    others = [e for e in events if e["type"] != "content_block_delta" and e.get("index") != 6]
    kept = [e for e in found if e["type"] != "content_block_delta" and e.get("index") != 6]
    assert kept == others
    for index in range(4):  # all of a block comes between its start and its stop
        (start,), (stop,) = (places(found, f"content_block_{k}", index) for k in ("start", "stop"))
        assert all(start < n < stop for n in places(found, "content_block_delta", index))
    signature = delta(0, "signature_delta", signature="s1g")
    assert found.index(signature) == max(places(found, "content_block_delta", 0))
    citation = delta(1, "citations_delta", citation=CITED)
    assert found.index(citation) == max(places(found, "content_block_delta", 1))


def test_what_is_safe_is_the_same_object_as_soon_as_it_is_known(byte_guard: Guard) -> None:
    texts = ["All is well. ", "So it was", " today. ", "Yes."]
    events = [
        begun(),
        started(0, "text", text=""),
        *(delta(0, "text_delta", text=t) for t in texts),
    ]
    source = iter([*events, stopped(0), *ended()])
    shown = byte_guard.wrap(lambda: source)()
    assert all(next(shown) is each for each in events[:2])
    assert next(shown)["delta"]["text"] == "All is well."
    assert next(source) == delta(0, "text_delta", text=" today. ")


def test_blocks_are_texts_of_their_own(byte_guard: Guard) -> None:
    said = [(0, "You id"), (1, "All is w"), (0, "iot."), (1, "ell.")]
    events = [delta(n, "text_delta", text=text) for n, text in said]
    found = guarded(byte_guard, [*events, stopped(1), stopped(0)])
    assert text_of(found, 0, "text") == "You person."
    assert text_of(found, 1, "text") == "All is well."
    assert places(found, "content_block_delta", 1) < places(found, "content_block_stop", 1)


def test_blocks_without_an_end_are_finished(byte_guard: Guard) -> None:
    for events in (message()[:-3], message()[:-10]):
        found = guarded(byte_guard, [each for each in events if each["type"] != stopped(0)["type"]])
        assert text_of(found, 1, "text") == byte_guard.rewrite(SAID)
    events = [begun(), started(0, "text", text=""), delta(0, "text_delta", text="You idiot.")]
    found = guarded(byte_guard, [*events, *ended()])
    assert [each["type"] for each in found[2:]] == [
        "content_block_delta",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("kind", ["text", "thinking"])
def test_the_text_that_a_block_begins_with_goes_on(byte_guard: Guard, kind: str) -> None:
    first = started(0, kind, **{kind: "You id"})
    found = guarded(
        byte_guard,
        [begun(), first, delta(0, f"{kind}_delta", **{kind: "iot. Fine."}), stopped(0), *ended()],
    )
    assert found[1]["content_block"][kind] + text_of(found, 0, kind) == "You person. Fine."
    assert [each["type"] for each in found[:2]] == ["message_start", "content_block_start"]
    for events in ([stopped(0)], [delta(0, "citations_delta", citation=CITED)], ended(), []):
        found = guarded(byte_guard, [started(0, kind, **{kind: "You idiot."}), *events])
        assert found == [started(0, kind, **{kind: "You person."}), *events]


def test_a_block_that_begins_with_a_text_and_goes_on_with_another(byte_guard: Guard) -> None:
    first, call = started(0, "text", text="You idiot."), started(0, "text", text="You person.")
    piece = delta(0, "input_json_delta", partial_json=QUERY)
    assert guarded(byte_guard, [first, piece, stopped(0)]) == [call, piece, stopped(0)]


def test_messages_that_begin_with_text_are_moderated(byte_guard: Guard) -> None:
    for content in ([{"type": "text", "text": "You idiot."}], "You idiot.", ["You idiot."]):
        event = begun()
        event["message"]["content"] = content
        (found,) = guarded(byte_guard, [event])
        assert str(found["message"]["content"]) == str(content).replace("idiot", "person")


def test_a_call_that_begins_with_its_input_is_moderated(byte_guard: Guard) -> None:
    call = started(0, "tool_use", id="t", name="send", input={"text": "You idiot.", "to": "idiot"})
    (found, _) = guarded(byte_guard, [call, stopped(0)])
    assert found["content_block"]["input"] == {"text": "You person.", "to": "idiot"}


def test_messages_one_after_the_other(byte_guard: Guard) -> None:
    found = guarded(byte_guard, [*message(), *message()])
    half = len(found) // 2
    assert found[:half] == found[half:]
    assert found[:half] == guarded(byte_guard, message())


@pytest.mark.parametrize("way", [0, 1])
def test_what_is_held_for_too_long_is_judged_as_it_is(way: int) -> None:
    hasty = guard(max_holdback_ms=50)
    events = [begun(), started(0, "text", text=""), delta(0, "text_delta", text="You idiot and")]
    came: list[float] = []

    def generator() -> Iterator[Event]:
        yield from events
        time.sleep(0.6)
        came.append(time.monotonic())
        yield delta(0, "text_delta", text=" so.")

    async def async_generator() -> Any:
        for event in events:
            yield event
        await asyncio.sleep(0.6)
        came.append(time.monotonic())
        yield delta(0, "text_delta", text=" so.")

    seen: list[tuple[float, Event]] = []

    async def collected() -> None:
        async for event in hasty.wrap(async_generator)():
            seen.append((time.monotonic(), event))

    if way:
        asyncio.run(collected())
    else:
        seen += ((time.monotonic(), event) for event in hasty.wrap(generator)())
    assert seen[2][0] < came[0]
    assert "idiot" not in text_of([event for _, event in seen], 0, "text")


def test_what_is_withheld_says_so_or_raises_behind_what_was_verified() -> None:
    events = [begun(), started(0, "text", text="")]
    events += [delta(0, "text_delta", text=piece) for piece in pieces("Fine day. You idiot")]
    events += [stopped(0), *ended()]
    found = guarded(guard(ladder=("block",), block_message="[withheld]"), events)
    assert text_of(found, 0, "text") == "Fine day. [withheld]"
    assert found[-1] == ended()[-1]
    seen: list[Event] = []
    loud = guard(ladder=("block",), on_block="raise")
    with pytest.raises(Blocked) as blocked:
        seen.extend(loud.wrap(lambda: iter(events))())
    assert text_of(seen, 0, "text") == "Fine day. "
    assert "idiot" not in str(blocked.value)


def test_what_is_withheld_from_a_call_raises() -> None:
    loud = guard(ladder=(), on_block="raise")
    for event in (
        delta(0, "input_json_delta", partial_json=INPUT),
        started(0, "tool_use", input={"text": "You are an idiot."}),
        started(0, "text", text="You idiot."),
    ):
        with pytest.raises(Blocked):
            guarded(loud, [event, stopped(0)])


def test_an_error_comes_behind_what_was_held(byte_guard: Guard) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    found = guarded(byte_guard, [delta(0, "text_delta", text="You idiot"), error])
    assert found == [delta(0, "text_delta", text="You person"), error]
    fault = ResponseErrorEvent(type="error", code="c", message="Overloaded", sequence_number=1)
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    said = {"type": "response.output_text.delta", "delta": "You idiot", **place}
    found = guarded(byte_guard, [said, fault])
    assert found == [{**said, "delta": "You person"}, fault]
    chunk = {"choices": [{"index": 0, "delta": {"content": "You idiot"}, "finish_reason": None}]}
    first, last = guarded(byte_guard, [chunk, error])
    assert (first["choices"][0]["delta"], last) == ({"content": "You person"}, error)
    with pytest.raises(ShapeError):
        guarded(byte_guard, [error])


def test_streams_of_several_apis_one_after_the_other(byte_guard: Guard) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "You idiot"}, "finish_reason": None}]}
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    said = {"type": "response.output_text.delta", "delta": "You idiot", **place}
    found = guarded(byte_guard, [chunk, said, delta(0, "text_delta", text="You idiot"), chunk])
    assert "idiot" not in str(found)
    assert [each.get("type", "chunk") for each in found] == [
        "chunk",
        "response.output_text.delta",
        "content_block_delta",
        "chunk",
    ]


@pytest.mark.parametrize(
    "event",
    [
        delta(0, "song_delta", song="You idiot."),
        delta(0, "text_delta", text=["You idiot."]),
        {"type": "content_block_delta", "index": 0, "delta": "You idiot."},
        {"type": "content_block_delta", "index": 0, "text": "You idiot."},
        {"type": "song", "text": "You idiot."},
        {"type": "text", "text": "You idiot.", "snapshot": "You idiot."},
    ],
)
def test_events_whose_text_may_be_anywhere_are_refused(byte_guard: Guard, event: Event) -> None:
    for events in ([event], [begun(), event]):
        with pytest.raises(ShapeError) as refused:
            guarded(byte_guard, events)
        assert "idiot" not in str(refused.value)
        assert "output_text" in refused.value.hint or "as a string" in refused.value.hint


@dataclass
class Plain:
    type: str
    index: int
    delta: Any
    choices: Any = None


@pytest.mark.parametrize(
    "event",
    [
        Plain(**delta(0, "text_delta", text="You idiot.")),
        SimpleNamespace(**delta(0, "text_delta", text="You idiot.")),
        SimpleNamespace(type="response.output_text.delta", delta="You idiot."),
        SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content="You idiot."))]),
        Plain("", 0, None, [SimpleNamespace(index=0, text="You idiot.")]),
    ],
)
def test_objects_that_are_no_models_are_refused(byte_guard: Guard, event: Any) -> None:
    with pytest.raises(ShapeError, match=type(event).__name__) as refused:
        guarded(byte_guard, [event])
    assert "output_text" in refused.value.hint


def test_observing_changes_nothing() -> None:
    heard: list[Moderation] = []
    observed = Guard(runtime(), policy=guard(mode="observe").policy, on_result=heard.append)
    empty = delta(2, "input_json_delta", partial_json="")
    assert guarded(observed, message()) == [each for each in message() if each != empty]


def test_every_text_is_one_result_for_the_audit() -> None:
    heard: list[Moderation] = []
    guarded(Guard(runtime(), on_result=heard.append), helped())
    texts = [result.original for result in heard]
    assert sorted(texts) == sorted([THOUGHT, SAID, INPUT, QUERY, "You idiot.", "a fine day"])


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_empty_pieces_are_no_results(mode: str) -> None:
    heard: list[Moderation] = []
    quiet = Guard(runtime(), policy=guard(mode=mode).policy, on_result=heard.append)
    empty = [delta(0, "text_delta", text=""), {"type": "text", "text": "", "snapshot": ""}]
    assert guarded(quiet, [begun(), *empty, stopped(0)]) == [begun(), stopped(0)]
    for thread in threading.enumerate():
        if thread.name == "srllm-guard-observe":
            thread.join()
    assert not heard
    first, rest = started(0, "text", text="You id"), delta(0, "text_delta", text="iot.")
    again = {"type": "text", "text": "iot.", "snapshot": "You idiot."}
    found = guarded(quiet, [first, *empty, rest, again, *empty, stopped(0)])
    said = "You idiot." if mode == "observe" else "You person."
    assert found == [
        started(0, "text", text=""),
        delta(0, "text_delta", text=said),
        {"type": "text", "text": said, "snapshot": said},
        stopped(0),
    ]


# What `messages.stream` of the SDK makes of the events


def helped() -> list[Event]:
    """The events of `message`, with those that the helper of the SDK adds."""
    content: list[Event] = []
    json_of: dict[int, str] = {}
    made: list[Event] = []
    for event in message():
        kind, index = event["type"], event.get("index", 0)
        if kind == "content_block_start":
            content.append(dict(event["content_block"]))
        block = content[index] if content else {}
        if kind == "content_block_stop":
            event = {**event, "content_block": dict(block)}
        elif kind == "message_stop":
            event = {**event, "message": {**begun()["message"], "content": content}}
        made.append(event)
        if kind != "content_block_delta":
            continue
        piece = event["delta"]
        if "partial_json" in piece:
            json_of[index] = json_of.get(index, "") + piece["partial_json"]
            whole = json_of[index] in (INPUT, QUERY)
            block["input"] = json.loads(json_of[index]) if whole else {}
            if block["type"] != "tool_use":  # as the SDK has it
                continue
            echo = {"type": "input_json", "snapshot": dict(block["input"])}
        elif "citation" in piece:
            block["citations"] = [CITED]
            echo = {"type": "citation", "snapshot": [CITED]}
        elif "signature" in piece:
            block["signature"] = piece["signature"]
            echo = {"type": "signature"}
        else:
            (field,) = piece.keys() - {"type"}
            block[field] += piece[field]
            echo = {"type": field, "snapshot": block[field]}
        made.append({**piece, **echo})
    return made


@pytest.mark.parametrize("as_model", [False, True])
def test_events_of_the_helper_agree_with_the_deltas(byte_guard: Guard, as_model: bool) -> None:
    given: list[Any] = [modelled(each) for each in helped()] if as_model else helped()
    found = [dumped(each) for each in guarded(byte_guard, given)]
    said, thought = byte_guard.rewrite(SAID), byte_guard.rewrite(THOUGHT)
    for kind, text in (("text", said), ("thinking", thought)):
        echoes = [each for each in found if each["type"] == kind]
        assert "".join(each[kind] for each in echoes) == text == echoes[-1]["snapshot"]
        for each in echoes:
            before = found[found.index(each) - 1]
            assert before["delta"][kind] == each[kind]
            assert text.startswith(each["snapshot"])
    (sent,) = (each for each in found if each["type"] == "input_json")
    mild = {"to": "idiot-7", "text": byte_guard.rewrite("You are an idiot.")}
    assert json.loads(sent["partial_json"]) == sent["snapshot"] == mild
    assert text_of(found, 3, "partial_json") == QUERY
    ends = [each["content_block"] for each in found if each["type"] == "content_block_stop"]
    assert ends[0] == {
        "type": "thinking",
        "thinking": thought,
        "signature": "s1g",
    }
    assert ends[1] == {"type": "text", "text": said, "citations": [CITED]}
    assert ends[2]["input"] == mild
    assert ends[6]["content"][0]["text"] == byte_guard.rewrite("You idiot.")
    assert found[-1]["message"]["content"] == ends
    for kind in ("signature", "citation"):
        (place,) = (n for n, each in enumerate(found) if each["type"] == kind)
        assert kind in found[place - 1]["delta"]


def test_events_of_the_helper_are_not_made_up(byte_guard: Guard) -> None:
    """What one text was said again by says nothing of the next one."""
    found = guarded(byte_guard, [*helped(), *message()])
    at = len(guarded(byte_guard, helped()))
    assert found[at:] == guarded(byte_guard, message())
    (sent,) = (each for each in found if each["type"] == "input_json")
    assert "idiot." not in str(sent)
    text = {"text": "You idiot."}
    events = [
        started(0, "tool_use", id="t", input={}),
        delta(0, "input_json_delta", partial_json=json.dumps(text)),
        {"type": "input_json", "partial_json": json.dumps(text), "snapshot": text},
        stopped(0),
        started(1, "server_tool_use", id="s", input={}),
        delta(1, "input_json_delta", partial_json=QUERY),
        stopped(1),
    ]
    found = guarded(byte_guard, events)
    assert found[-3:] == events[-3:]
    assert "idiot" not in str(found)


def test_input_that_was_cut_off_is_moderated_where_it_is_told_again(byte_guard: Guard) -> None:
    text, snapshot = '{"text": "You are an idiot. An', {"text": "You are an idiot. An"}
    block = {"type": "tool_use", "id": "t", "name": "send", "input": snapshot}
    events = [
        started(0, "tool_use", id="t", name="send", input={}),
        delta(0, "input_json_delta", partial_json=text),
        {"type": "input_json", "partial_json": text, "snapshot": snapshot},
        {**stopped(0), "content_block": block},
    ]
    found = guarded(byte_guard, [begun(), *events])
    assert "idiot" not in str(found)
    assert found[-1]["content_block"]["input"] == found[-2]["snapshot"]


def test_what_is_cited_is_moderated(byte_guard: Guard) -> None:
    quoted = {**CITED, "cited_text": "You idiot."}
    block = {"type": "text", "text": "Fine.", "citations": [quoted]}
    events = [
        delta(0, "text_delta", text="Fine."),
        delta(0, "citations_delta", citation=quoted),
        {"type": "citation", "citation": quoted, "snapshot": [quoted]},
        {**stopped(0), "content_block": block},
    ]
    found = guarded(byte_guard, events)
    assert str(found) == str(events).replace("idiot", "person")


def test_what_the_helper_says_again_is_moderated_even_if_it_differs(byte_guard: Guard) -> None:
    events = [
        started(0, "text", text=""),
        delta(0, "text_delta", text="Fine."),
        {**stopped(0), "content_block": {"type": "text", "text": "You idiot."}},
    ]
    found = guarded(byte_guard, events)
    assert found[-1]["content_block"]["text"] == "You person."
    for lone in ("text", "thinking", "input_json"):
        with pytest.raises(ShapeError, match=lone):
            guarded(byte_guard, [begun(), {"type": lone, "text": "You idiot.", "snapshot": ""}])


def test_summaries_of_what_was_left_out_are_moderated(byte_guard: Guard) -> None:
    piece = {"content": "You idiot.", "encrypted_content": "QUJD"}
    events = [
        begun(),
        started(0, "compaction", content=None),
        delta(0, "compaction_delta", **piece),
        {"type": "compaction", **piece},
        {**stopped(0), "content_block": {"type": "compaction", **piece}},
    ]
    found = guarded(byte_guard, events)
    mild = {**piece, "content": "You person."}
    assert found[2:] == [
        delta(0, "compaction_delta", **mild),
        {"type": "compaction", **mild},
        {**stopped(0), "content_block": {"type": "compaction", **mild}},
    ]


def test_streams_need_no_package_of_an_api() -> None:
    """Dicts of a stream come from anywhere, whatever is installed."""
    code = """
import sys
sys.modules["openai"] = sys.modules["anthropic"] = None
from tests.checks import guard
from srllm_guard.errors import MissingExtra
chunk = {"choices": [{"index": 0, "delta": {"content": "You idiot."}, "finish_reason": "stop"}]}
place = {"item_id": "m", "output_index": 0, "content_index": 0}
said = {"type": "response.output_text.delta", "delta": "You idiot.", **place}
delta = {"type": "text_delta", "text": "You idiot."}
event = {"type": "content_block_delta", "index": 0, "delta": delta}
for item in (chunk, said, event):
    print(*guard().wrap(lambda: iter([item]))())
try:
    guard().openai(object())
except MissingExtra as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.count("You person.") == 3
    assert "openai" in ran.stdout
