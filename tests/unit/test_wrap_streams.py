"""Wrapped generators, and functions that return streams: pieces of text, and what is around."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseTextDeltaEvent

from srllm_guard import Blocked, Guard, Moderation, Policy
from srllm_guard.errors import ConfigError, ShapeError
from tests.byte_engine import runtime
from tests.checks import guard

PIECES = ["Hello the", "re. You are an id", "iot. What a fine", " day."]
WHOLE, RELEASED = "".join(PIECES), "Hello there. You are an person. What a fine day."


def collect(items: Any) -> list[Any]:
    if hasattr(items, "__anext__"):

        async def drain() -> list[Any]:
            return [item async for item in items]

        return asyncio.run(drain())
    return list(items)


def generators(pieces: list[Any]) -> list[Any]:
    """Functions that give these pieces, in each way that there is."""

    def generator() -> Iterator[Any]:
        yield from pieces

    async def async_generator() -> AsyncIterator[Any]:
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    return [generator, async_generator, lambda: iter(pieces), lambda: async_generator()]


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("limit", [None, 5_000])
def test_the_joined_text_is_that_of_rewrite(way: int, limit: float | None) -> None:
    guarded = guard(max_holdback_ms=limit)
    pieces = collect(guarded.wrap(generators(PIECES)[way])())
    assert "".join(pieces) == guarded.rewrite(WHOLE) == RELEASED
    assert "" not in pieces


def test_a_coroutine_may_return_a_stream(byte_guard: Guard) -> None:
    async def create() -> Any:
        return generators(PIECES)[1]()

    async def run() -> str:
        stream = await byte_guard.wrap(create)()
        return "".join([piece async for piece in stream])

    assert asyncio.run(run()) == RELEASED


def test_inputs_are_guarded_when_the_generator_starts(byte_guard: Guard) -> None:
    def echo(text: str) -> Iterator[str]:
        yield text

    async def aecho(text: str) -> AsyncIterator[str]:
        yield text

    for function in (echo, aecho):
        pieces = collect(byte_guard.wrap(function, inputs=True, outputs=False)("An idiot."))
        assert pieces == ["An person."]


def test_what_a_generator_returns_is_kept_and_guarded(byte_guard: Guard) -> None:
    @byte_guard.wrap
    def answer() -> Generator[str, None, Any]:
        yield "Hello."
        return ["You idiot.", 3]

    def outer() -> Generator[str, None, Any]:
        found = yield from answer()
        return found

    walked = outer()
    assert next(walked) == "Hello."
    with pytest.raises(StopIteration) as stopped:
        next(walked)
    assert stopped.value.value == ["You person.", 3]


@pytest.mark.parametrize("way", [0, 1])
def test_closing_closes_the_source(byte_guard: Guard, way: int) -> None:
    closed = []

    def generator() -> Iterator[str]:
        try:
            for _ in range(200):
                yield "A fine sentence. "
        finally:
            closed.append(True)

    async def async_generator() -> AsyncIterator[str]:
        try:
            for _ in range(200):
                yield "A fine sentence. "
        finally:
            closed.append(True)

    def run() -> None:
        with_text: Any = guard(max_holdback_chars=50).wrap(generator)()
        assert next(with_text)
        with_text.close()

    async def arun() -> None:
        with_text: Any = guard(max_holdback_chars=50).wrap(async_generator)()
        assert await anext(with_text)
        await with_text.aclose()

    asyncio.run(arun()) if way else run()
    assert closed == [True]


def test_what_is_thrown_in_closes_the_source() -> None:
    closed = []

    def generator() -> Iterator[str]:
        try:
            for _ in range(200):
                yield "A fine sentence. "
        finally:
            closed.append(True)

    items: Any = guard(max_holdback_chars=50).wrap(generator)()
    next(items)
    with pytest.raises(KeyError, match="stop"):
        items.throw(KeyError("stop"))
    assert closed == [True]


@pytest.mark.parametrize("way", [0, 1])
def test_an_error_of_the_source_comes_after_what_came_before_it(
    byte_guard: Guard, way: int
) -> None:
    def generator() -> Iterator[str]:
        yield from PIECES
        raise OSError("cut off")

    async def async_generator() -> AsyncIterator[str]:
        for piece in PIECES:
            yield piece
        raise OSError("cut off")

    seen: list[str] = []

    def run() -> None:
        seen.extend(byte_guard.wrap(generator)())

    async def arun() -> None:
        async for piece in byte_guard.wrap(async_generator)():
            seen.append(piece)  # noqa: PERF401 - a comprehension would be lost with the error

    with pytest.raises(OSError, match="cut off"):
        asyncio.run(arun()) if way else run()
    assert "".join(seen) == RELEASED


def test_withheld_text_raises_where_the_policy_says_so() -> None:
    raising = guard(ladder=(), on_block="raise")
    for function in generators(PIECES):
        with pytest.raises(Blocked) as raised:
            collect(raising.wrap(function)())
        assert "idiot" not in str(raised.value)


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("selector", [None, "text"])
def test_a_block_at_the_end_is_raised_after_what_was_verified(
    way: int, selector: str | None
) -> None:
    raising = guard(ladder=("block",), on_block="raise")
    pieces: list[Any] = ["Fine day. You idiot"]
    given = pieces if selector is None else [Token(piece, 1) for piece in pieces]
    seen: list[Any] = []
    made = raising.wrap(generators(given)[way], output_text=selector)()

    async def run() -> None:
        async for each in made:
            seen.append(each)  # noqa: PERF401 - a comprehension would be lost with the error

    with pytest.raises(Blocked):
        asyncio.run(run()) if hasattr(made, "__anext__") else seen.extend(made)
    assert "".join(each if selector is None else each.text for each in seen) == "Fine day. "


def test_a_thread_draws_only_where_something_can_be_due() -> None:
    def generator() -> Iterator[str]:
        yield threading.current_thread().name

    assert collect(guard(mode="observe").wrap(generator)()) == ["MainThread"]
    assert collect(guard(max_holdback_ms=None).wrap(generator)()) == ["MainThread"]


def test_context_variables_are_seen_by_the_source(byte_guard: Guard) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    def generator() -> Iterator[str]:
        yield user.get()

    async def async_generator() -> AsyncIterator[str]:
        yield user.get()

    user.set("somebody")
    for function in (generator, async_generator):
        assert collect(byte_guard.wrap(function)()) == ["somebody"]


def test_a_stream_is_one_result_for_the_audit() -> None:
    heard: list[Moderation] = []
    hooked = Guard(runtime(), on_result=heard.append)
    collect(hooked.wrap(generators(PIECES)[0])())
    assert [(result.original, result.text) for result in heard] == [(WHOLE, RELEASED)]


# Objects around the text


def chunk(content: str | None, index: int = 0, **more: Any) -> ChatCompletionChunk:
    finish, usage = more.pop("finish", None), more.pop("usage", None)
    choices = [{"index": index, "delta": {"content": content, **more}, "finish_reason": finish}]
    return ChatCompletionChunk.model_validate(
        {
            "id": "an id",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "a model",
            "choices": [] if usage else choices,
            "usage": usage,
        }
    )


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("way", [0, 1])
def test_chunks_of_openai(byte_guard: Guard, way: int, as_dict: bool) -> None:
    chunks: list[Any] = [
        chunk("", role="assistant"),
        *map(chunk, PIECES),
        chunk(None, finish="stop"),
        chunk(None, usage=USAGE),
    ]
    given = [each.model_dump() for each in chunks] if as_dict else chunks
    found = collect(byte_guard.wrap(generators(given)[way])())
    assert all(type(each) is type(given[0]) for each in found)
    found = [ChatCompletionChunk.model_validate(each) for each in found] if as_dict else found
    texts = [each.choices[0].delta.content or "" for each in found if each.choices]
    assert "".join(texts) == RELEASED
    assert [each.choices[0].finish_reason for each in found if each.choices][-1] == "stop"
    assert found[-1] == chunks[-1]
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]) == WHOLE


def test_choices_are_texts_of_their_own(byte_guard: Guard) -> None:
    chunks = [chunk("You are an id", 0), chunk("All is w", 1), chunk("iot.", 0), chunk("ell.", 1)]
    found = collect(byte_guard.wrap(generators(chunks)[0])())
    texts = {0: "", 1: ""}
    for each in found:
        texts[each.choices[0].index] += each.choices[0].delta.content or ""
    assert texts == {0: "You are an person.", 1: "All is well."}


def test_events_of_responses(byte_guard: Guard) -> None:
    place = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
    events = [
        ResponseTextDeltaEvent.model_validate(
            {"type": "response.output_text.delta", "delta": piece, "sequence_number": n, **place}
        )
        for n, piece in enumerate(PIECES)
    ]
    found = collect(byte_guard.wrap(generators(events)[0])())
    assert all(isinstance(each, ResponseTextDeltaEvent) for each in found)
    assert "".join(each.delta for each in found) == RELEASED


def test_message_chunks_of_langchain(byte_guard: Guard) -> None:
    chunks = [AIMessageChunk(content=piece, id="an id") for piece in PIECES]
    last = AIMessageChunk(
        content="", id="an id", chunk_position="last", response_metadata={"model": "m"}
    )
    for function in generators([*chunks, last])[:2]:
        found = collect(byte_guard.wrap(function)())
        joined = sum(found[1:], found[0])
        assert joined.content == RELEASED
        assert joined.id == "an id"
        assert joined.response_metadata == {"model": "m"}


def test_one_message_after_the_other(byte_guard: Guard) -> None:
    chunks = [
        AIMessageChunk(content="An id", id="1", chunk_position="last"),
        AIMessageChunk(content="iot here.", id="2"),
    ]
    found = collect(byte_guard.wrap(generators(chunks)[0])())
    assert [each.id for each in found if each.content] == ["1", "2"]
    assert [each.content for each in found if each.content] == ["An id", "iot here."]


def test_an_id_that_changes_on_the_way_makes_no_new_message(byte_guard: Guard) -> None:
    chunks = [
        AIMessageChunk(content="You id", id="run-1"),
        AIMessageChunk(content="iot there.", id="chatcmpl-2"),
    ]
    for function in generators(chunks):
        found = collect(byte_guard.wrap(function)())
        assert "".join(str(each.content) for each in found) == "You person there."


@dataclass(frozen=True)
class Token:
    text: str
    n: int
    kind: str = "idiot"


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("by_functions", [False, True])
def test_a_selector_says_where_the_text_of_an_item_is(
    byte_guard: Guard, way: int, by_functions: bool
) -> None:
    tokens = [Token(piece, n) for n, piece in enumerate(PIECES)]
    functions = (lambda token: [token.text], lambda token, new: replace(token, text=new[0]))
    wrapped = byte_guard.wrap(
        generators(tokens)[way], output_text=functions if by_functions else "text"
    )
    found = collect(wrapped())
    assert "".join(token.text for token in found) == RELEASED
    assert {token.kind for token in found} == {"idiot"}
    assert [token.n for token in found][:4] == [0, 1, 2, 3]


def test_several_places_are_several_texts(byte_guard: Guard) -> None:
    items = [{"a": "You id", "b": "Fi", "n": 1}, {"a": "iot.", "b": "ne.", "n": 2}, {"n": 3}]
    wrapped = byte_guard.wrap(generators(items)[0], output_text=["a?", "b?"])
    found = collect(wrapped())
    assert "".join(each.get("a", "") for each in found) == "You person."
    assert "".join(each.get("b", "") for each in found) == "Fine."


def routed(content: str, provider: str, **delta: Any) -> dict[str, Any]:
    """A chunk as a router of requests gives it."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": content, **delta}}
    return {"chunk": {"id": "an id", "provider": provider, "choices": [choice]}}


def test_data_beside_a_text_is_no_piece_of_one() -> None:
    heard: list[Moderation] = []
    hooked = Guard(runtime(), on_result=heard.append)
    for provider, released in (("Google AI Studio", "Google AI Studio"), ("An idiot", "An person")):
        items = [routed(piece, provider) for piece in PIECES]
        heard.clear()
        found = collect(hooked.wrap(generators(items)[0], output_text="chunk")())
        assert [each["chunk"]["provider"] for each in found] == [released] * len(found)
        texts = [each["chunk"]["choices"][0]["delta"]["content"] for each in found]
        assert "".join(texts) == RELEASED
        assert [result.original for result in heard] == [provider, WHOLE]


def test_what_is_held_to_the_end_comes_without_what_was_unsafe_beside_it(
    byte_guard: Guard,
) -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": '{"a": "An idiot"}'}}
    items = [routed("You id", "a"), routed("iot", '{"by": "An idiot"}', tool_calls=[call])]
    found = collect(byte_guard.wrap(generators(items)[0], output_text="chunk")())
    deltas = [each["chunk"]["choices"][0]["delta"] for each in found]
    assert "".join(delta["content"] for delta in deltas) == "You person"
    assert deltas[-1]["content"]
    assert "idiot" not in str(found)
    assert found[-1]["chunk"]["provider"] == '{"by": "An person"}'


def test_what_holds_no_text_passes_in_its_place(byte_guard: Guard) -> None:
    found = collect(byte_guard.wrap(generators([None, 3, "Hello.", None])[0])())
    assert found[:2] == [None, 3]
    assert sorted(found[2:], key=str) == ["Hello.", None]


@pytest.mark.parametrize("item", [{"text": "idiot"}, Token("idiot", 1), b"idiot", ["idiot"]])
def test_items_whose_text_may_go_on_anywhere_are_refused(byte_guard: Guard, item: Any) -> None:
    for function in generators([item]):
        with pytest.raises(ShapeError, match=type(item).__name__) as refused:
            collect(byte_guard.wrap(function)())
        assert "output_text" in refused.value.hint


def test_a_stream_has_no_format(byte_guard: Guard) -> None:
    with pytest.raises(ConfigError, match="returns a stream"):
        collect(byte_guard.wrap(generators(PIECES)[0], format="json")())


def test_nothing_is_in_the_way_where_only_inputs_are_guarded(byte_guard: Guard) -> None:
    def adder() -> Generator[int, int, str]:
        total = 0
        while total < 5:
            total += yield total
        return "done"

    items = byte_guard.wrap(adder, outputs=False)()
    assert next(items) == 0
    assert items.send(3) == 3
    with pytest.raises(StopIteration, match="done"):
        items.send(3)


def test_many_streams_keep_apart(byte_guard: Guard) -> None:
    @byte_guard.wrap
    async def count(n: int) -> AsyncIterator[str]:
        for piece in (f"Number {n} is an id", f"iot. Number {n} ", "is fine."):
            await asyncio.sleep(0)
            yield piece

    async def one(n: int) -> str:
        return "".join([piece async for piece in count(n)])

    async def run() -> list[str]:
        return await asyncio.gather(*(one(n) for n in range(16)))

    assert asyncio.run(run()) == [
        f"Number {n} is an person. Number {n} is fine." for n in range(16)
    ]


def test_observing_adds_nothing_to_a_stream() -> None:
    observed = guard(mode="observe")
    for function in generators(PIECES)[:2]:
        assert "".join(collect(observed.wrap(function)())) == WHOLE


def test_the_policy_of_a_direction_counts_for_streams(byte_guard: Guard) -> None:
    never = Policy(ladder=(), block_message="[withheld]")
    text = "".join(collect(byte_guard.wrap(generators(PIECES)[0], outputs=never)()))
    assert "[withheld]" in text
    assert "idiot" not in text
