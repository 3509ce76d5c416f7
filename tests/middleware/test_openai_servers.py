"""Servers that speak the API with fields of their own: whatever they say again is guarded too."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openai")

from srllm_guard import Blocked, Guard, Policy
from tests.byte_engine import runtime
from tests.middleware.clients import Async, Sync
from tests.middleware.server import chat, chat_chunks, chunk, serving

UNSAFE = "We met on Monday at noon. You are an idiot and I said so. It was fine all day."
SHOUT = "You are an idiot and I said so."
SAFE = "It was fine all day."
LAZY = "He is lazy, I see. So be it."
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}

both = pytest.mark.parametrize("kind", [Sync, Async])


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


def streamed(guard: Guard, kind: type[Sync], answer: Any) -> list[dict[str, Any]]:
    """Chunks of a guarded client, as dicts, and nothing unsafe in any of them."""
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True))
    assert not any(
        word in each.model_dump_json(warnings=False) for each in got for word in ("idiot", "lazy")
    )
    return [each.model_dump(exclude_unset=True, warnings=False) for each in got]


def asked(guard: Guard, kind: type[Sync], answer: Any) -> dict[str, Any]:
    """The message of a guarded client, as a dict."""
    with serving(chat__completions=lambda body: answer) as server:
        got = kind(guard, server).call(lambda c: c.chat.completions.create(**ASK))
    made: dict[str, Any] = got.choices[0].message.model_dump(exclude_unset=True, warnings=False)
    return made


def deltas(chunks: list[dict[str, Any]], name: str) -> list[Any]:
    found = (choice["delta"].get(name) for each in chunks for choice in each["choices"])
    return [value for value in found if value]


def parts(chunks: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [part for value in deltas(chunks, name) for part in value]


def joined(found: list[dict[str, Any]], key: str, **where: Any) -> str:
    return "".join(
        part.get(key) or ""
        for part in found
        if all(part.get(name) == value for name, value in where.items())
    )


@both
def test_what_stands_beside_the_delta_is_left_out(byte_guard: Guard, kind: type[Sync]) -> None:
    """Perplexity says all of the message again with each piece, Together says the piece twice."""
    so_far = ""
    answer = []
    for piece in pieces(UNSAFE):
        so_far += piece
        message = {"role": "assistant", "content": so_far}
        answer.append(chunk({"content": piece, "token_id": 7}, message=message, text=piece))
    last = {"role": "assistant", "content": so_far}
    answer.append(chunk({}, finish_reason="stop", message=last, text=""))
    got = streamed(byte_guard, kind, answer)
    assert "".join(deltas(got, "content")) == byte_guard.rewrite(UNSAFE)
    assert not deltas(got, "token_id")
    for choice in (choice for each in got for choice in each["choices"]):
        assert not choice.keys() & {"message", "text"}
    assert got[-1]["choices"][0]["finish_reason"] == "stop"


@both
def test_a_message_without_a_delta_is_moderated(byte_guard: Guard, kind: type[Sync]) -> None:
    answer = [{**chat(UNSAFE, SAFE), "object": "chat.completion.chunk"}]
    (got,) = streamed(byte_guard, kind, answer)
    first, second = (choice["message"]["content"] for choice in got["choices"])
    assert (first, second) == (byte_guard.rewrite(UNSAFE), SAFE)
    assert got["choices"][0]["finish_reason"] == "stop"


@both
def test_a_message_behind_its_pieces_says_what_was_released(kind: type[Sync]) -> None:
    text = "You idiot. " * 9 + "Fine."
    guard = Guard(runtime(), policy=Policy(max_holdback_chars=20))
    answer = [*chat_chunks(text)[:-1], {**chat(text), "object": "chat.completion.chunk"}]
    got = streamed(guard, kind, answer)
    *_, last = (choice for each in got for choice in each["choices"])
    released = "".join(
        choice["delta"].get("content") or ""
        for each in got
        for choice in each["choices"]
        if choice.get("delta")
    )
    assert last["message"]["content"] == released


DETAILS = [
    {"type": "reasoning.summary", "summary": LAZY, "index": 0, "format": "f"},
    {"type": "reasoning.text", "text": UNSAFE, "signature": "s1g", "index": 1, "format": "f"},
    {"type": "reasoning.encrypted", "data": "QUJD", "id": "r", "index": 2, "format": "f"},
]


@both
def test_details_of_reasoning_are_moderated(byte_guard: Guard, kind: type[Sync]) -> None:
    got = asked(byte_guard, kind, chat(SAFE, reasoning=LAZY, reasoning_details=DETAILS))
    assert got["reasoning"] == byte_guard.rewrite(LAZY)
    assert got["reasoning_details"] == [
        {**DETAILS[0], "summary": byte_guard.rewrite(LAZY)},
        {**DETAILS[1], "text": byte_guard.rewrite(UNSAFE)},
        DETAILS[2],
    ]


@both
def test_details_of_reasoning_in_a_stream_are_texts_by_their_index(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    summary, text, secret = DETAILS
    said = [{**summary, "summary": piece} for piece in pieces(LAZY)]
    said += [{**text, "text": piece, "signature": None} for piece in pieces(UNSAFE)]
    said += [{**text, "text": ""}, secret]
    answer = [
        *(
            chunk(
                {"reasoning": each.get("summary") or each.get("text"), "reasoning_details": [each]}
            )
            for each in said
        ),
        *chat_chunks(SAFE)[1:],
    ]
    got = streamed(byte_guard, kind, answer)
    found = parts(got, "reasoning_details")
    assert joined(found, "summary", index=0) == byte_guard.rewrite(LAZY)
    assert joined(found, "text", index=1) == byte_guard.rewrite(UNSAFE)
    assert joined(found, "signature", index=1) == "s1g"
    assert found[-1] == secret
    order = [part["index"] for part in found]
    assert order == sorted(order)
    signed = [n for n, part in enumerate(found) if part.get("signature")]
    assert signed == [max(n for n, part in enumerate(found) if part["index"] == 1)]
    assert all((part["type"], part["format"]) for part in found)
    assert "".join(deltas(got, "reasoning")) == byte_guard.rewrite(LAZY + UNSAFE)
    assert "".join(deltas(got, "content")) == SAFE


@both
def test_details_that_no_end_was_said_of_are_finished(byte_guard: Guard, kind: type[Sync]) -> None:
    part = {"type": "reasoning.text", "text": SHOUT}
    got = streamed(byte_guard, kind, [chunk({"reasoning_details": [part]})])
    assert joined(parts(got, "reasoning_details"), "text") == byte_guard.rewrite(SHOUT)


@both
def test_details_are_not_held_for_too_long(kind: type[Sync]) -> None:
    guard = Guard(runtime(), policy=Policy(max_holdback_ms=50))
    came: list[float] = []

    def answer(body: dict[str, Any]) -> Iterator[Any]:
        part = {"type": "reasoning.text", "text": "You are an idiot and I said"}
        yield chunk({"reasoning_details": [part]})
        yield 1.0
        came.append(time.monotonic())
        yield chunk({"content": SAFE}, finish_reason="stop")

    class Seen(list[Any]):
        def append(self, each: Any) -> None:
            super().append((time.monotonic(), each))

    seen = Seen()
    with serving(chat__completions=answer) as server:
        kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    at, first = seen[0]
    assert at < came[0]
    assert "person" in first.choices[0].delta.reasoning_details[0]["text"]


@both
@pytest.mark.parametrize("signed", [False, True])
def test_details_that_are_withheld_raise_behind_what_was_verified(
    kind: type[Sync], signed: bool
) -> None:
    guard = Guard(runtime(), policy=Policy(ladder=("block",), on_block="raise"))
    part = {"type": "reasoning.text", "text": "Fine day. You idiot", "index": 0}
    answer = [chunk({"reasoning_details": [{**part, "signature": "s"} if signed else part]})]
    seen: list[Any] = []
    with serving(chat__completions=lambda body: answer) as server, pytest.raises(Blocked):
        kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    found = parts([each.model_dump() for each in seen], "reasoning_details")
    assert joined(found, "text") == "Fine day. "


def thinking(**block: Any) -> dict[str, Any]:
    """A message, or a delta, in which LiteLLM says three times what Claude thinks."""
    again = {"reasoningText": {"text": block["thinking"], "signature": block.get("signature")}}
    return {
        "reasoning_content": block["thinking"],
        "thinking_blocks": [{"type": "thinking", **block}],
        "provider_specific_fields": {
            "thinking_blocks": [{"type": "thinking", **block}],
            "reasoningContentBlocks": [again],
            "citations": ["kept"],
        },
    }


@both
def test_blocks_of_thinking_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    got = asked(byte_guard, kind, chat(SAFE, **thinking(thinking=LAZY, signature="s1g")))
    mild = byte_guard.rewrite(LAZY)
    assert got == chat(SAFE, **thinking(thinking=mild, signature="s1g"))["choices"][0]["message"]
    answer = [
        *(chunk(thinking(thinking=piece, signature=None)) for piece in pieces(LAZY)),
        chunk(thinking(thinking="", signature="s1g")),
        *chat_chunks(SAFE)[1:],
    ]
    chunks = streamed(byte_guard, kind, answer)
    found = parts(chunks, "thinking_blocks")
    assert joined(found, "thinking") == mild
    assert [n for n, each in enumerate(found) if each.get("signature")] == [len(found) - 1]
    assert {"citations": ["kept"]} in deltas(chunks, "provider_specific_fields")


@both
def test_thoughts_as_bedrock_has_them_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    def thought(text: str) -> dict[str, Any]:
        own = {"reasoningContent": {"text": text}, "refusal": text, "citations": ["kept"]}
        return {"reasoning_content": text, "provider_specific_fields": own}

    mild = byte_guard.rewrite(LAZY)
    got = asked(byte_guard, kind, chat(SAFE, **thought(LAZY)))
    assert got == chat(SAFE, **thought(mild))["choices"][0]["message"]
    answer = [*(chunk(thought(piece)) for piece in pieces(LAZY)), *chat_chunks(SAFE)[1:]]
    chunks = streamed(byte_guard, kind, answer)
    assert "".join(deltas(chunks, "reasoning_content")) == mild
    for own in deltas(chunks, "provider_specific_fields"):
        assert own == {"citations": ["kept"]}


@both
def test_steps_of_reasoning_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    steps: list[dict[str, Any]] = [
        {"type": "web_search", "thought": text, "web_search": {"search_keywords": ["noon"]}}
        for text in (SHOUT, SAFE, LAZY)
    ]
    mild = [{**step, "thought": byte_guard.rewrite(step["thought"])} for step in steps]
    got = asked(byte_guard, kind, chat(SAFE, reasoning_steps=steps))
    assert got["reasoning_steps"] == mild
    answer = [*(chunk({"reasoning_steps": [step]}) for step in steps), *chat_chunks(SAFE)]
    assert parts(streamed(byte_guard, kind, answer), "reasoning_steps") == mild


@both
def test_thoughts_in_parts_of_the_content_are_guarded(byte_guard: Guard, kind: type[Sync]) -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    whole = chat(None, content=None)
    whole["choices"][0]["message"]["content"] = [thought(LAZY), {"type": "text", "text": SHOUT}]
    first, second = asked(byte_guard, kind, whole)["content"]
    assert first == thought(byte_guard.rewrite(LAZY))
    assert second["text"] == byte_guard.rewrite(SHOUT)
    answer = [chunk({"content": [thought(piece)]}) for piece in pieces(LAZY)]
    answer += chat_chunks(SHOUT)[1:]
    found = deltas(streamed(byte_guard, kind, answer), "content")
    thoughts = [part["thinking"][0] for value in found if isinstance(value, list) for part in value]
    assert joined(thoughts, "text") == byte_guard.rewrite(LAZY)
    said = "".join(value for value in found if isinstance(value, str))
    assert said == byte_guard.rewrite(SHOUT)


def test_places_of_citations_follow_the_content_alone(byte_guard: Guard) -> None:
    text = "We met on Monday at noon, and it was fine all day long."
    start = text.index("long")
    place = {"start_index": start, "end_index": start + 4, "url": "u", "title": "t"}
    notes = [{"type": "url_citation", "url_citation": place}]
    got = asked(byte_guard, Sync, chat(text, reasoning=UNSAFE, annotations=notes))
    assert got["reasoning"] == byte_guard.rewrite(UNSAFE)
    assert got["annotations"] == notes


def test_observing_leaves_all_of_a_message_but_its_repeats() -> None:
    guard = Guard(runtime(), policy=Policy(mode="observe"))
    answer = [
        chunk(thinking(thinking=LAZY, signature="s1g"), message={"content": SHOUT}),
        *chat_chunks(SHOUT),
    ]
    with serving(chat__completions=lambda body: answer) as server:
        got = Sync(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True))
    found = json.dumps([each.model_dump() for each in got])
    assert LAZY in found
    assert "s1g" in found
