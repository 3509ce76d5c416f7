"""Messages in chunks: every provider's way of streaming text, calls and reasoning is guarded."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, ChatMessageChunk, ToolMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from srllm_guard import Blocked, Guard, Policy
from srllm_guard.middleware.langchain.chunks import MessageStream

UNSAFE, SAFE = "You idiot, come at 5.", "You person, come at 5."


def shown(guard: Guard, chunks: list[Any]) -> list[Any]:
    stream = MessageStream(guard)
    return [each for chunk in chunks for each in stream.feed(chunk)] + [*stream.close()]


def total(chunks: list[Any]) -> Any:
    first, *others = chunks
    return first + others if others else first


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


def blocks(*made: dict[str, Any]) -> list[AIMessageChunk]:
    return [AIMessageChunk(content=[block], id="1") for block in made]


def test_anthropic_thinks_signs_says_and_calls(guard: Guard) -> None:
    chunks = blocks(
        *({"type": "thinking", "thinking": p, "index": 0} for p in pieces("He is lazy, I see.")),
        {"type": "thinking", "signature": "s1g", "index": 0},
        *({"type": "text", "text": p, "index": 1} for p in pieces(UNSAFE)),
        {"type": "tool_use", "id": "t", "name": "send", "input": {}, "index": 2},
        *(
            {"type": "input_json_delta", "partial_json": p, "index": 2}
            for p in pieces('{"text": "You idiot, call me."}')
        ),
    )
    for n, chunk in enumerate(chunks[-11:]):
        part = chunk.content[0]
        assert isinstance(part, dict)
        args = part.get("partial_json", "")
        first = {"name": "send", "id": "t"} if n == 0 else {"name": None, "id": None}
        chunk.tool_call_chunks = [tool_call_chunk(args=args, index=2, **first)]
    done = shown(guard, chunks)
    assert not any(word in str(done) for word in ("idiot", "lazy"))
    whole = total(done)
    assert whole.content[0] == {
        "type": "thinking",
        "thinking": "He is person, I see.",
        "signature": "s1g",
        "index": 0,
    }
    assert whole.content[1] == {"type": "text", "text": SAFE, "index": 1}
    assert whole.content[2]["partial_json"] == '{"text": "You person, call me."}'
    assert whole.tool_calls[0]["args"] == {"text": "You person, call me."}
    order = [block["index"] for chunk in done for block in chunk.content]
    assert order == sorted(order)


def test_responses_of_openai_summarise_and_refuse(guard: Guard) -> None:
    done = shown(
        guard,
        blocks(
            *(
                {
                    "type": "reasoning",
                    "summary": [{"type": "summary_text", "text": p, "index": 0}],
                    "index": 0,
                }
                for p in pieces("He is lazy, I see.")
            ),
            *({"type": "refusal", "refusal": p, "index": 1} for p in pieces(UNSAFE)),
            {"type": "function_call", "name": "f", "arguments": "", "call_id": "c", "index": 2},
            *(
                {"type": "function_call", "arguments": p, "index": 2}
                for p in pieces('{"text": "You idiot, call me."}')
            ),
        ),
    )
    assert not any(word in str(done) for word in ("idiot", "lazy"))
    content = total(done).content
    assert content[0]["summary"][0]["text"] == "He is person, I see."
    assert content[1]["refusal"] == SAFE
    assert content[2]["arguments"] == '{"text": "You person, call me."}'


def test_reasoning_beside_the_content(guard: Guard) -> None:
    chunks = [
        AIMessageChunk(content="", additional_kwargs={"reasoning_content": p}, id="1")
        for p in pieces("He is lazy, I see.")
    ] + [AIMessageChunk(content=p, id="1") for p in pieces(UNSAFE)]
    done = shown(guard, chunks)
    assert "lazy" not in str(done)
    whole = total(done)
    assert whole.additional_kwargs == {"reasoning_content": "He is person, I see."}
    assert whole.content == SAFE


def test_calls_as_the_provider_wrote_them(guard: Guard) -> None:
    chunks = [
        AIMessageChunk(
            content="",
            id="1",
            additional_kwargs={
                "tool_calls": [{"index": 0, "id": "c" * (n == 0), "function": {"arguments": p}}]
            },
        )
        for n, p in enumerate(pieces('{"text": "You idiot, call me."}'))
    ]
    (call,) = total(shown(guard, chunks)).additional_kwargs["tool_calls"]
    assert call["function"]["arguments"] == '{"text": "You person, call me."}'


def test_calls_are_held_until_they_are_whole_and_stay_if_safe(guard: Guard) -> None:
    args = '{"city":   "Rome"}'
    stream = MessageStream(guard)
    for n, piece in enumerate(pieces(args)):
        name = "look" if n == 0 else None
        chunk = tool_call_chunk(name=name, args=piece, id=name, index=0)
        assert not [*stream.feed(AIMessageChunk(content="", tool_call_chunks=[chunk], id="1"))]
    (done,) = stream.close()
    assert isinstance(done, AIMessageChunk)
    assert done.tool_call_chunks == [tool_call_chunk(name="look", args=args, id="look", index=0)]
    assert done.tool_calls[0]["args"] == {"city": "Rome"}


def test_the_end_comes_after_the_text(guard: Guard) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    chunks = [
        AIMessageChunk(content="You idi", id="1"),
        AIMessageChunk(content="", id="1", response_metadata={"finish_reason": "stop"}),
        AIMessageChunk(content="ot, come.", id="1", usage_metadata=usage),  # type: ignore[arg-type]
        AIMessageChunk(content="", id="1", chunk_position="last"),
    ]
    done = shown(guard, chunks)
    assert done[0].content == "You person, come."
    assert done[-1].chunk_position == "last"
    assert done[-1].response_metadata == {"finish_reason": "stop"}
    assert done[-1].usage_metadata == usage
    assert len(done) == 2


def test_a_last_chunk_with_text_gives_it_first(guard: Guard) -> None:
    done = shown(guard, [AIMessageChunk(content=UNSAFE, id="1", chunk_position="last")])
    assert [(each.content, each.chunk_position) for each in done] == [(SAFE, None), ("", "last")]


def test_other_messages_keep_what_they_need_to_be_added_up(guard: Guard) -> None:
    role = [ChatMessageChunk(content=p, role="assistant") for p in pieces(UNSAFE)]
    assert total(shown(guard, list(role))).content == SAFE
    tool = [ToolMessageChunk(content=p, tool_call_id="c") for p in pieces(UNSAFE)]
    assert total(shown(guard, list(tool))).content == SAFE


def test_images_pass_and_keep_their_order(guard: Guard) -> None:
    image = {"type": "image", "url": "https://example.org/idiot.png", "index": 1}
    done = shown(guard, blocks({"type": "text", "text": UNSAFE, "index": 0}, image))
    assert total(done).content == [{"type": "text", "text": SAFE, "index": 0}, image]


@pytest.mark.parametrize("text", ['{"note": "You idiot, come.", "n": 1}', '["You idiot, come."]'])
def test_json_is_held_and_stays_json(guard: Guard, text: str) -> None:
    chunks = [AIMessageChunk(content=p, id="1") for p in pieces(text, 1)]
    assert total(shown(guard, list(chunks))).content == text.replace("idiot", "person")


@pytest.mark.parametrize(
    "text", ["{", "[see below] You idiot.", "{x} You idiot.", " [1]: You idiot."]
)
def test_what_only_looks_like_json_is_text(guard: Guard, text: str) -> None:
    chunks = [AIMessageChunk(content=p, id="1") for p in pieces(text, 1)]
    assert total(shown(guard, list(chunks))).content == guard.rewrite(text)


def test_what_is_withheld_raises_before_anything_of_it_is_shown(blocking: Guard) -> None:
    stream = MessageStream(blocking)
    out: list[Any] = []
    chunks = [AIMessageChunk(content=p, id="1") for p in pieces(UNSAFE)]

    def run() -> None:
        for chunk in chunks:
            out.extend(stream.feed(chunk))
        out.extend(stream.close())

    with pytest.raises(Blocked):
        run()
    assert "idiot" not in str(out)


def test_observing_changes_and_delays_nothing(guard: Guard, seen: list[Any]) -> None:
    watch = guard.with_policy(Policy(mode="observe"))
    call = tool_call_chunk(name="f", args='{"text": "You idiot, call me."}', id="c", index=0)
    chunks = [
        AIMessageChunk(content="You idi", id="1", response_metadata={"logprobs": {"a": 1}}),
        AIMessageChunk(content="ot, come.", id="1"),
        AIMessageChunk(content="", id="1", tool_call_chunks=[call]),
    ]
    stream = MessageStream(watch)
    for chunk in chunks:
        assert total([*stream.feed(chunk)]) == chunk
    assert not [*stream.close()]
