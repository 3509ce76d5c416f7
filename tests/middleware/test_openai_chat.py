"""Chat and plain completions through a guarded client, against a server on loopback."""

from __future__ import annotations

import json
import threading
from itertools import zip_longest
from typing import Any, Literal

import pytest

pytest.importorskip("openai")

from openai import LengthFinishReasonError, Stream
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from srllm_guard import Guard, Moderation, Policy
from srllm_guard.errors import Blocked
from tests.byte_engine import runtime
from tests.middleware.clients import Async, Sync, is_exactly
from tests.middleware.server import chat, chat_chunks, chunk, serving

UNSAFE = "We met on Monday at noon. You are an idiot and I said so. It was fine all day."
SAFE = "We met on Monday at noon. It was fine all day."
SHOUT = "You are an idiot and I said so."
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}

both = pytest.mark.parametrize("kind", [Sync, Async])


class Note(BaseModel):
    name: str
    text: str


def contents(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for each in chunks
        for choice in each.choices
        if choice.index == index
    )


def call(index: int | None = None, **arguments: str) -> dict[str, Any]:
    made = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "post", "arguments": json.dumps(arguments)},
    }
    return made if index is None else {**made, "index": index}


@both
def test_every_choice_is_guarded_and_all_else_is_kept(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(chat__completions=lambda body: chat(UNSAFE, SAFE)) as server:
        got = kind(byte_guard, server).call(lambda c: c.chat.completions.create(**ASK, n=2))
    assert is_exactly(got, ChatCompletion)
    first, second = (choice.message.content for choice in got.choices)
    assert first == byte_guard.rewrite(UNSAFE) != UNSAFE
    assert second == SAFE
    assert got.usage.total_tokens == 8
    assert got.id == "chatcmpl-1"


def test_a_safe_answer_is_the_same_bytes(byte_guard: Guard) -> None:
    with serving(chat__completions=lambda body: chat(SAFE, odd="field")) as server:
        ways = Sync(byte_guard, server)
        mine = ways.client.chat.completions.with_raw_response.create(**ASK)
        plain = ways.plain.chat.completions.with_raw_response.create(**ASK)
    assert mine.content == plain.content


@both
def test_a_stream_is_what_rewrite_makes_of_the_text(byte_guard: Guard, kind: type[Sync]) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    last = {**chunk({}), "choices": [], "usage": usage}
    answer = [*chat_chunks(UNSAFE), last, "[DONE]"]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, stream=True)
        )
    assert contents(got) == byte_guard.rewrite(UNSAFE)
    assert all(is_exactly(each, ChatCompletionChunk) for each in got)
    assert got[0].choices[0].delta.role == "assistant"
    ends = [n for n, each in enumerate(got) if each.choices and each.choices[0].finish_reason]
    assert ends == [len(got) - 2]
    assert got[-1].usage is not None
    assert got[-1].choices == []


def test_a_stream_is_of_the_same_type(byte_guard: Guard) -> None:
    with serving(chat__completions=lambda body: chat_chunks(SAFE)) as server:
        stream = Sync(byte_guard, server).client.chat.completions.create(**ASK, stream=True)
        assert is_exactly(stream, Stream)
        assert contents(list(stream)) == SAFE
        assert stream.response.is_closed


@both
def test_choices_of_a_stream_are_apart(byte_guard: Guard, kind: type[Sync]) -> None:
    other = SHOUT + " " + SAFE
    pairs = zip_longest(chat_chunks(UNSAFE), chat_chunks(other, size=9, index=1))
    answer = [each for pair in pairs for each in pair if each]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, n=2, stream=True)
        )
    assert contents(got, 0) == byte_guard.rewrite(UNSAFE)
    assert contents(got, 1) == byte_guard.rewrite(other)


@both
def test_one_chunk_may_hold_all_of_it(byte_guard: Guard, kind: type[Sync]) -> None:
    answer = [chunk({"role": "assistant", "content": UNSAFE}, finish_reason="stop")]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, stream=True)
        )
    assert contents(got) == byte_guard.rewrite(UNSAFE)
    assert [each.choices[0].finish_reason for each in got][-1] == "stop"


@both
def test_a_stream_without_an_end_is_finished(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(chat__completions=lambda body: chat_chunks(UNSAFE)[:-1]) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, stream=True)
        )
    assert contents(got) == byte_guard.rewrite(UNSAFE)


@both
def test_the_stream_helper_agrees_with_itself(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(chat__completions=lambda body: [*chat_chunks(UNSAFE), "[DONE]"]) as server:
        got = kind(byte_guard, server).events(lambda c: c.chat.completions.stream(**ASK))
    (done,) = (each for each in got if each.type == "content.done")
    deltas = "".join(each.delta for each in got if each.type == "content.delta")
    assert done.content == deltas == byte_guard.rewrite(UNSAFE)


@both
def test_parsed_answers_are_guarded_and_still_parse(byte_guard: Guard, kind: type[Sync]) -> None:
    text = Note(name="note-1", text=SHOUT).model_dump_json()
    with serving(
        chat__completions=lambda b: chat_chunks(text) if b.get("stream") else chat(text)
    ) as server:
        ways = kind(byte_guard, server)
        got = ways.call(lambda c: c.chat.completions.parse(**ASK, response_format=Note))
        note = got.choices[0].message.parsed
        streamed = ways.events(lambda c: c.chat.completions.stream(**ASK, response_format=Note))
    assert note == Note(name="note-1", text=byte_guard.rewrite(SHOUT))
    (done,) = (each for each in streamed if each.type == "content.done")
    assert done.parsed == note


@both
def test_arguments_of_calls_are_guarded_as_json(byte_guard: Guard, kind: type[Sync]) -> None:
    with serving(
        chat__completions=lambda body: chat(None, tool_calls=[call(text=SHOUT, id="idiot-7")])
    ) as server:
        got = kind(byte_guard, server).call(lambda c: c.chat.completions.create(**ASK))
    (made,) = got.choices[0].message.tool_calls
    assert (made.id, made.function.name) == ("call_1", "post")
    assert json.loads(made.function.arguments) == {
        "text": byte_guard.rewrite(SHOUT),
        "id": "idiot-7",
    }


@both
def test_calls_in_a_stream_come_whole_behind_the_text(byte_guard: Guard, kind: type[Sync]) -> None:
    first, second = call(0, text=SHOUT), call(1, text=SAFE)

    def pieces(made: dict[str, Any]) -> list[dict[str, Any]]:
        arguments = made["function"]["arguments"]
        head = {**made, "function": {"name": "post", "arguments": ""}}
        rest = [
            {"index": made["index"], "function": {"arguments": arguments[n : n + 7]}}
            for n in range(0, len(arguments), 7)
        ]
        return [chunk({"tool_calls": [each]}) for each in [head, *rest]]

    answer = [
        *chat_chunks(UNSAFE)[:-1],
        *pieces(first),
        *pieces(second),
        chunk({}, finish_reason="tool_calls"),
    ]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(lambda c: c.chat.completions.stream(**ASK))
    kinds = [each.type for each in got if each.type.endswith(".done")]
    assert kinds == ["content.done", *["tool_calls.function.arguments.done"] * 2]
    done = [each for each in got if each.type == "tool_calls.function.arguments.done"]
    assert [json.loads(each.arguments)["text"] for each in done] == [
        byte_guard.rewrite(SHOUT),
        SAFE,
    ]
    (text,) = (each.content for each in got if each.type == "content.done")
    assert text == byte_guard.rewrite(UNSAFE)


@both
def test_refusals_and_transcripts_are_text_and_sound_is_left_alone(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    audio = {"id": "a", "data": "AAAA", "expires_at": 1, "transcript": SHOUT}
    with serving(chat__completions=lambda body: chat(None, refusal=SHOUT, audio=audio)) as server:
        got = kind(byte_guard, server).call(lambda c: c.chat.completions.create(**ASK))
    message = got.choices[0].message
    assert message.refusal == byte_guard.rewrite(SHOUT)
    assert message.audio.model_dump() == {**audio, "transcript": byte_guard.rewrite(SHOUT)}


@both
def test_transcripts_in_a_stream_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    answer = [
        chunk({"role": "assistant", "audio": {"id": "a", "transcript": ""}}),
        *(chunk({"audio": {"transcript": UNSAFE[n : n + 7]}}) for n in range(0, len(UNSAFE), 7)),
        chunk({"audio": {"data": "AAAA"}}),
        chunk({"audio": {"expires_at": 1}}),
        chunk({}, finish_reason="stop"),
    ]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, stream=True)
        )
    sounds = [each.choices[0].delta.audio for each in got if each.choices[0].delta.audio]
    said = "".join(each.transcript or "" for each in sounds)
    assert said == byte_guard.rewrite(UNSAFE) != UNSAFE
    assert sounds[0].id == "a"
    assert [each.data for each in sounds if each.data] == ["AAAA"]
    assert [each.expires_at for each in sounds if each.expires_at] == [1]
    assert got[-1].choices[0].finish_reason == "stop"


@both
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_empty_pieces_are_no_results(kind: type[Sync], mode: Literal["enforce", "observe"]) -> None:
    heard: list[Moderation] = []
    guard = Guard(runtime(), policy=Policy(mode=mode), on_result=heard.append)
    detail = {"type": "reasoning.text", "text": "", "index": 0}
    answer = [
        chunk({"role": "assistant", "content": "", "reasoning_details": [detail]}),
        chunk({"reasoning_details": [{**detail, "signature": "s1g"}]}),
        chunk({"content": ""}, finish_reason="stop"),
    ]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True))
    for thread in threading.enumerate():
        if thread.name == "srllm-guard-observe":
            thread.join()
    assert not heard
    assert "s1g" in str([each.model_dump() for each in got])


@both
@pytest.mark.parametrize("text", [SHOUT, SAFE])
def test_probabilities_of_tokens_do_not_spell_what_was_changed(
    byte_guard: Guard, kind: type[Sync], text: str
) -> None:
    def spelled(piece: str) -> dict[str, Any]:
        return {
            "content": [{"token": piece, "logprob": -0.5, "bytes": None, "top_logprobs": []}],
            "refusal": None,
        }

    whole = chat(text)
    whole["choices"][0]["logprobs"] = spelled(text)
    pieces = [
        chunk({"content": text[n : n + 9]}, logprobs=spelled(text[n : n + 9]))
        for n in range(0, len(text), 9)
    ]
    answer = [*pieces, chunk({}, finish_reason="stop")]
    with serving(chat__completions=lambda b: answer if b.get("stream") else whole) as server:
        ways = kind(byte_guard, server)
        got = ways.call(lambda c: c.chat.completions.create(**ASK))
        chunks = ways.events(lambda c: c.chat.completions.create(**ASK, stream=True))
    *before, last = (each.choices[0].logprobs for each in chunks)
    assert before == [None] * len(before)
    if text == SAFE:
        assert got.choices[0].logprobs is not None
        assert "".join(each.token for each in last.content) == text
    else:
        assert got.choices[0].logprobs is None
        assert last is None


@both
def test_probabilities_of_tokens_do_not_spell_changed_arguments(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    tokens = [{"token": SHOUT, "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    spelled = {"content": tokens, "refusal": None}
    whole = chat(None, tool_calls=[call(text=SHOUT)])
    whole["choices"][0]["logprobs"] = spelled
    answer = [
        chunk({"tool_calls": [call(0, text=SHOUT)]}, logprobs=spelled),
        chunk({}, finish_reason="tool_calls"),
    ]
    with serving(chat__completions=lambda b: answer if b.get("stream") else whole) as server:
        ways = kind(byte_guard, server)
        got = ways.call(lambda c: c.chat.completions.create(**ASK))
        chunks = ways.events(lambda c: c.chat.completions.create(**ASK, stream=True))
    assert got.choices[0].message.tool_calls[0].function.name == "post"
    for each in (got, *chunks):
        assert "idiot" not in each.model_dump_json()


def cited(part: str, text: str = UNSAFE) -> dict[str, Any]:
    start = text.index(part)
    place = {"start_index": start, "end_index": start + len(part), "url": "u", "title": "t"}
    return {"type": "url_citation", "url_citation": place}


def test_places_of_citations_follow_the_text(byte_guard: Guard) -> None:
    notes = [cited("Monday"), cited("idiot"), cited("fine all day")]
    with serving(chat__completions=lambda body: chat(UNSAFE, annotations=notes)) as server:
        got = Sync(byte_guard, server).client.chat.completions.create(**ASK)
    text = got.choices[0].message.content
    assert text is not None
    places = [each.url_citation for each in got.choices[0].message.annotations or []]
    assert [text[each.start_index : each.end_index] for each in places] == [
        "Monday",
        "fine all day",
    ]


@both
@pytest.mark.parametrize("interrupted", [False, True])
def test_places_of_citations_in_a_stream_follow_the_text(
    byte_guard: Guard, kind: type[Sync], interrupted: bool
) -> None:
    text = UNSAFE + " " + UNSAFE.replace("Monday", "Tuesday").replace("fine", "grim")
    notes = [cited(each, text) for each in ("Monday", "idiot", "fine", "Tuesday", "grim")]
    first, *pieces, last = chat_chunks(text)
    if interrupted:  # the text goes on behind a call
        pieces.insert(len(UNSAFE) // 5 + 1, chunk({"tool_calls": [call(0, text=SAFE)]}))
    early, late = chunk({"annotations": notes[:3]}), chunk({"annotations": notes[3:]})
    answer = [first, early, *pieces, late, last]
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(byte_guard, server).events(
            lambda c: c.chat.completions.create(**ASK, stream=True)
        )
    released = contents(got)
    assert "idiot" not in released
    deltas = [each.choices[0].delta.model_dump() for each in got]
    ends = [n for n, each in enumerate(deltas) if each.get("content")]
    shown = [(n, note) for n, each in enumerate(deltas) for note in each.get("annotations") or ()]
    places = [note["url_citation"] for _, note in shown]
    assert [released[each["start_index"] : each["end_index"]] for each in places] == [
        "Monday",
        "fine",
        "Tuesday",
        "grim",
    ]
    assert interrupted or min(n for n, _ in shown) > max(ends)


@both
def test_plain_completions_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    def made(text: str, end: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": end, "logprobs": None}
        return {
            "id": "c",
            "object": "text_completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }

    pieces = [made(UNSAFE[n : n + 6], None) for n in range(0, len(UNSAFE), 6)]
    answer = [*pieces, made("", "stop"), "[DONE]"]
    with serving(v1__completions=lambda b: answer if b.get("stream") else made(UNSAFE, "stop")) as (
        server
    ):
        ways = kind(byte_guard, server)
        got = ways.call(lambda c: c.completions.create(model="m", prompt="Hello."))
        chunks = ways.events(lambda c: c.completions.create(model="m", prompt="H.", stream=True))
    assert is_exactly(got, Completion)
    assert got.choices[0].text == byte_guard.rewrite(UNSAFE)
    assert "".join(each.choices[0].text for each in chunks) == byte_guard.rewrite(UNSAFE)
    assert chunks[-1].choices[0].finish_reason == "stop"


@both
def test_what_is_withheld_says_so_or_raises(kind: type[Sync]) -> None:
    quiet = Guard(runtime(), policy=Policy(ladder=()))
    loud = Guard(runtime(), policy=Policy(ladder=(), on_block="raise"))
    with serving(
        chat__completions=lambda b: chat_chunks(SHOUT) if b.get("stream") else chat(SHOUT)
    ) as server:
        got = kind(quiet, server).call(lambda c: c.chat.completions.create(**ASK))
        assert got.choices[0].message.content == quiet.policy.block_message
        with pytest.raises(Blocked) as blocked:
            kind(loud, server).call(lambda c: c.chat.completions.create(**ASK))
        assert "idiot" not in str(blocked.value)
        seen: list[Any] = []
        with pytest.raises(Blocked):
            kind(loud, server).events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
        assert contents(seen) == ""
        assert server.closed.wait(5)


@both
def test_observing_changes_nothing_and_tells(kind: type[Sync]) -> None:
    seen: list[Any] = []
    guard = Guard(runtime(), policy=Policy(mode="observe"), on_result=seen.append)
    with serving(chat__completions=lambda body: chat_chunks(UNSAFE)) as server:
        got = kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True))
    assert contents(got) == UNSAFE


def test_errors_of_the_helper_are_its_own(byte_guard: Guard) -> None:
    text = Note(name="n", text=SAFE).model_dump_json()
    answer = [*chat_chunks(text)[:-1], chunk({}, finish_reason="length")]
    with (
        serving(chat__completions=lambda body: answer) as server,
        pytest.raises(LengthFinishReasonError),
    ):
        Sync(byte_guard, server).events(
            lambda c: c.chat.completions.stream(**ASK, response_format=Note)
        )
