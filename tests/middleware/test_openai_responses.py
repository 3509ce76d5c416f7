"""Responses through a guarded client: every event that says the text again says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("openai")

from openai.types.responses import Response
from pydantic import BaseModel

from srllm_guard import Guard, Moderation
from tests.byte_engine import runtime
from tests.middleware.clients import Async, Sync, is_exactly
from tests.middleware.server import message, response, response_events, serving

UNSAFE = "We met on Monday at noon. You are an idiot and I said so. It was fine all day."
SHOUT = "You are an idiot and I said so."
SAFE = "It was fine all day."
ASK: dict[str, Any] = {"model": "m", "input": "Hello."}

both = pytest.mark.parametrize("kind", [Sync, Async])


class Note(BaseModel):
    text: str


def called(**arguments: str) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "post",
        "arguments": json.dumps(arguments),
        "status": "completed",
    }


@both
def test_all_texts_of_a_response_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": SHOUT}],
    }
    with serving(
        responses=lambda body: response(thought, message(UNSAFE), called(text=SHOUT))
    ) as server:
        got = kind(byte_guard, server).call(lambda c: c.responses.create(**ASK))
    assert is_exactly(got, Response)
    assert got.output_text == byte_guard.rewrite(UNSAFE) != UNSAFE
    reasoning, _, call = got.output
    assert reasoning.summary[0].text == byte_guard.rewrite(SHOUT)
    assert json.loads(call.arguments) == {"text": byte_guard.rewrite(SHOUT)}
    assert (call.name, call.call_id) == ("post", "call_1")


@both
@pytest.mark.parametrize("text", [UNSAFE, SAFE])
def test_all_events_say_what_was_released(byte_guard: Guard, kind: type[Sync], text: str) -> None:
    with serving(responses=lambda body: response_events(text)) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.create(**ASK, stream=True))
    released = byte_guard.rewrite(text)
    by_type = {each.type: each for each in got}
    deltas = [each.delta for each in got if each.type == "response.output_text.delta"]
    assert "".join(deltas) == released
    assert by_type["response.output_text.done"].text == released
    assert by_type["response.content_part.done"].part.text == released
    assert by_type["response.output_item.done"].item.content[0].text == released
    assert by_type["response.completed"].response.output_text == released
    assert "idiot" not in "".join(each.model_dump_json() for each in got)
    order = [each.sequence_number for each in got]
    assert order == sorted(order)


@both
def test_the_stream_helper_agrees(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(responses=lambda body: response_events(UNSAFE)) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.stream(**ASK))
    assert got[-1].response.output_text == byte_guard.rewrite(UNSAFE)
    last = [each for each in got if each.type == "response.output_text.delta"][-1]
    assert last.snapshot == byte_guard.rewrite(UNSAFE)


@both
def test_parsed_responses_are_guarded_and_still_parse(byte_guard: Guard, kind: type[Sync]) -> None:
    text = Note(text=SHOUT).model_dump_json()
    answer = response_events(text)
    with serving(
        responses=lambda b: answer if b.get("stream") else response(message(text))
    ) as server:
        ways = kind(byte_guard, server)
        got = ways.call(lambda c: c.responses.parse(**ASK, text_format=Note))
        events = ways.events(lambda c: c.responses.stream(**ASK, text_format=Note))
    assert got.output_parsed == Note(text=byte_guard.rewrite(SHOUT))
    (done,) = (each for each in events if each.type == "response.output_text.done")
    assert done.parsed == got.output_parsed


@both
def test_arguments_of_a_streamed_call_come_whole(byte_guard: Guard, kind: type[Sync]) -> None:
    item = called(text=SHOUT)
    arguments, place = item["arguments"], {"item_id": "fc_1", "output_index": 0}
    stem = "response.function_call_arguments"
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress")},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "arguments": ""},
        },
        *(
            {"type": f"{stem}.delta", **place, "delta": arguments[n : n + 4]}
            for n in range(0, len(arguments), 4)
        ),
        {"type": f"{stem}.done", **place, "arguments": arguments, "name": "post"},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response(item)},
    ]
    events = [{**event, "sequence_number": n} for n, event in enumerate(events)]
    with serving(responses=lambda body: events) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.stream(**ASK))
    released = {"text": byte_guard.rewrite(SHOUT)}
    (delta,) = (each.delta for each in got if each.type == f"{stem}.delta")
    (done,) = (each.arguments for each in got if each.type == f"{stem}.done")
    assert json.loads(delta) == json.loads(done) == released
    assert json.loads(got[-1].response.output[0].arguments) == released


@both
def test_transcripts_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    stem = "response.audio.transcript"
    said = [{"type": f"{stem}.delta", "delta": UNSAFE[n : n + 5]} for n in range(0, len(UNSAFE), 5)]
    sound = {"type": "response.audio.delta", "delta": "AAAA"}
    part = {"type": "output_audio", "data": "AAAA", "transcript": UNSAFE}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress")},
        *said,
        sound,
        {"type": f"{stem}.done"},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.completed", "response": response()},
    ]
    events = [{**event, "sequence_number": n} for n, event in enumerate(events)]
    with serving(responses=lambda body: events) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.create(**ASK, stream=True))
    released = byte_guard.rewrite(UNSAFE)
    kinds = [each.type for each in got]
    assert "".join(each.delta for each in got if each.type == f"{stem}.delta") == released
    assert kinds.index(f"{stem}.done") > max(
        n for n, each in enumerate(kinds) if each == f"{stem}.delta"
    )
    assert got[kinds.index(sound["type"])].delta == "AAAA"
    assert got[-2].part.transcript == released


@both
def test_what_a_shell_gives_is_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    stem = "response.shell_call_output_content"
    place = {"item_id": "sh_1", "output_index": 0, "command_index": 0}
    data = json.dumps({"said": SHOUT})
    output = [{"stdout": UNSAFE, "stderr": data, "outcome": {"type": "exit", "exit_code": 0}}]
    item = {"type": "shell_call_output", "id": "sh_1", "call_id": "c", "output": output}
    texts = [{"stdout": UNSAFE[:9]}, {"stderr": data}, {"stdout": UNSAFE[9:], "stderr": ""}]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress")},
        *({"type": f"{stem}.delta", **place, "delta": each} for each in texts),
        {"type": f"{stem}.delta", **place, "command_index": 1, "delta": {"stdout": SHOUT}},
        {"type": f"{stem}.done", **place, "output": output},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response(item)},
    ]
    events = [{**event, "sequence_number": n} for n, event in enumerate(events)]
    with serving(responses=lambda b: events if b.get("stream") else response(item)) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.create(**ASK, stream=True))
        whole = kind(byte_guard, server).call(lambda c: c.responses.create(**ASK))
    deltas = [each for each in got if each.type == f"{stem}.delta"]
    assert [(each.command_index, each.delta.stdout, each.delta.stderr) for each in deltas] == [
        (0, byte_guard.rewrite(UNSAFE), None),
        (0, None, json.dumps({"said": byte_guard.rewrite(SHOUT)})),
        (1, byte_guard.rewrite(SHOUT), None),
    ]
    kinds = [each.type for each in got]
    (done,) = (each for each in got if each.type == f"{stem}.done")
    assert kinds.index(f"{stem}.done") == 3
    for each in (done, got[-2].item, got[-1].response.output[0], whole.output[0]):
        assert each.output[0].stdout == byte_guard.rewrite(UNSAFE)
        assert json.loads(each.output[0].stderr) == {"said": byte_guard.rewrite(SHOUT)}
        assert each.output[0].outcome.exit_code == 0


def test_empty_pieces_are_no_results() -> None:
    heard: list[Moderation] = []
    guard = Guard(runtime(), on_result=heard.append)
    events = response_events("")
    empty = {**events[2], "type": "response.output_text.delta", "delta": ""}
    with serving(responses=lambda body: [*events[:3], empty, *events[3:]]) as server:
        list(Sync(guard, server).client.responses.create(**ASK, stream=True))
    assert not heard


def test_annotations_follow_the_text_they_are_about(byte_guard: Guard) -> None:
    start = UNSAFE.index("fine")
    note = {
        "type": "url_citation",
        "start_index": start,
        "end_index": start + 4,
        "url": "u",
        "title": "t",
    }
    events = response_events(UNSAFE)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "annotation_index": 0}
    at = next(n for n, each in enumerate(events) if each["type"].endswith("text.done"))
    added = {"type": "response.output_text.annotation.added", **place, "annotation": note}
    events.insert(at, {**added, "sequence_number": at})
    for event in events[at + 1 :]:
        part = event.get("part") or event.get("item") or {}
        for each in [part, *(part.get("content") or [])]:
            if each.get("type") == "output_text":
                each["annotations"] = [note]
    with serving(responses=lambda body: events) as server:
        got = list(Sync(byte_guard, server).client.responses.create(**ASK, stream=True))
    kinds = [each.type for each in got]
    assert kinds.index("response.output_text.annotation.added") > max(
        n for n, each in enumerate(kinds) if each == "response.output_text.delta"
    )
    text = byte_guard.rewrite(UNSAFE)
    by_type: dict[str, Any] = {each.type: each for each in got}
    moved = by_type["response.output_text.annotation.added"].annotation
    again = by_type["response.content_part.done"].part.annotations[0]
    for each in (moved, again):
        assert text[each.start_index : each.end_index] == "fine"


@both
def test_a_response_that_breaks_off_shows_what_was_held(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    events = response_events(UNSAFE)
    at = next(n for n, each in enumerate(events) if each["type"].endswith("text.done"))
    ended = {
        "type": "response.incomplete",
        "response": response(message(UNSAFE), status="incomplete"),
        "sequence_number": at,
    }
    with serving(responses=lambda body: [*events[:at], ended]) as server:
        got = kind(byte_guard, server).events(lambda c: c.responses.create(**ASK, stream=True))
    deltas = [each.delta for each in got if each.type == "response.output_text.delta"]
    assert "".join(deltas) == got[-1].response.output_text == byte_guard.rewrite(UNSAFE)


@both
def test_what_was_stored_is_guarded_when_it_is_fetched(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(responses=lambda body: response(message(UNSAFE))) as server:
        got = kind(byte_guard, server).call(lambda c: c.responses.retrieve("resp_1"))
    assert got.output_text == byte_guard.rewrite(UNSAFE)


@both
def test_what_is_stored_beside_a_response_is_guarded_too(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    result = {"type": "function_call_output", "id": "fo_1", "call_id": "call_1"}
    asked = {"type": "message", "id": "msg_2", "role": "user", "status": "completed"}
    items = [
        {**asked, "content": [{"type": "input_text", "text": SHOUT}]},
        {**asked, "role": "developer", "content": [{"type": "input_text", "text": SHOUT}]},
        message(UNSAFE),
        called(text=SHOUT),
        {**result, "output": json.dumps({"said": SHOUT})},
        {**result, "output": [{"type": "input_text", "text": SHOUT}]},
        {**result, "type": "local_shell_call_output", "output": json.dumps({"said": SHOUT})},
        {**result, "type": "program_output", "result": SHOUT},
    ]
    listed = {"object": "list", "data": items, "has_more": False}
    stored = {"id": "m", "role": "assistant", "content": UNSAFE, "tool_calls": None}
    chats = {"object": "list", "has_more": False, "data": [stored]}
    with serving(
        items__msg_1=lambda body: message(UNSAFE),
        items=lambda body: listed,
        input_items=lambda body: listed,
        messages=lambda body: chats,
    ) as server:
        ways = kind(byte_guard, server)
        found = [
            ways.call(lambda c: c.get("/responses/resp_1/input_items", cast_to=object)),
            ways.call(lambda c: c.get("/conversations/conv_1/items", cast_to=object)),
        ]
        one = ways.call(lambda c: c.get("/conversations/conv_1/items/msg_1", cast_to=object))
        chat = ways.call(lambda c: c.get("/chat/completions/c/messages", cast_to=object))
    for each in found:
        user, developer, said, call, text, parts, shell, program = each["data"]
        assert user["content"][0]["text"] == byte_guard.rewrite(SHOUT)
        assert developer["content"][0]["text"] == SHOUT
        assert said["content"][0]["text"] == byte_guard.rewrite(UNSAFE)
        assert json.loads(call["arguments"]) == {"text": byte_guard.rewrite(SHOUT)}
        assert json.loads(text["output"]) == {"said": byte_guard.rewrite(SHOUT)}
        assert parts["output"][0]["text"] == byte_guard.rewrite(SHOUT)
        assert json.loads(shell["output"]) == {"said": byte_guard.rewrite(SHOUT)}
        assert program["result"] == byte_guard.rewrite(SHOUT)
    assert one["content"][0]["text"] == byte_guard.rewrite(UNSAFE)
    assert chat["data"][0]["content"] == byte_guard.rewrite(UNSAFE)


@both
def test_what_a_conversation_begins_with_is_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    items = [{"role": "user", "content": SHOUT}, {"role": "system", "content": SHOUT}]
    with serving(conversations=lambda body: {"object": "conversation"}) as server:
        ways = kind(byte_guard, server, inputs=True)
        ways.call(lambda c: c.post("/conversations", cast_to=object, body={"items": items}))
        ways.call(lambda c: c.post("/conversations/c/items", cast_to=object, body={"items": items}))
    for _, body in server.asked:
        assert [each["content"] for each in body["items"]] == [byte_guard.rewrite(SHOUT), SHOUT]
