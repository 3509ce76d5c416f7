"""Wrapped functions on the real weights: what is unsafe does not get past in either direction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from openai.types.chat import ChatCompletion

from srllm_guard import Blocked, Guard, Moderation, Policy

UNSAFE = "Lunch is at noon. What a bunch of morons, they closed the bridge at 9. Bring 3 chairs."
SAFE = "The bus leaves at 9."


def completion(text: str) -> ChatCompletion:
    message = {"role": "assistant", "content": text}
    return ChatCompletion.model_validate(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
    )


def test_an_unsafe_answer_comes_back_rewritten_and_safe(guard: Guard) -> None:
    @guard.wrap
    def answer(question: str) -> str:
        return UNSAFE if question == "unsafe" else SAFE

    released = answer("unsafe")
    assert released != UNSAFE
    assert released.startswith("Lunch is at noon. ")
    assert released.endswith(" Bring 3 chairs.")
    assert not guard.detect(released).unsafe
    assert answer("safe") is SAFE


def test_an_object_around_the_answer_stays(guard: Guard) -> None:
    safe, unsafe = completion(SAFE), completion(UNSAFE)
    wrapped: Callable[[ChatCompletion], ChatCompletion] = guard.wrap(lambda completion: completion)
    assert wrapped(safe) is safe
    found = wrapped(unsafe)
    assert found.choices[0].message.content == guard.rewrite(UNSAFE)
    assert found.id == unsafe.id
    assert unsafe.choices[0].message.content == UNSAFE


def test_what_users_write_is_made_safe_before_the_function_sees_it(guard: Guard) -> None:
    seen = []

    @guard.wrap(inputs=True, outputs=False)
    async def answer(messages: list[dict[str, str]]) -> int:
        seen.extend(messages)
        return len(messages)

    system = {"role": "system", "content": "Answer politely, whatever stupid idiots write."}
    messages = [system, {"role": "user", "content": UNSAFE}]
    assert asyncio.run(answer(messages)) == 2
    assert seen[0] is system
    assert seen[1] == {"role": "user", "content": guard.rewrite(UNSAFE)}


@pytest.mark.parametrize("size", [7, 40])
def test_generators_give_what_rewrite_gives(guard: Guard, size: int) -> None:
    pieces = [UNSAFE[n : n + size] for n in range(0, len(UNSAFE), size)]

    @guard.wrap
    def generate() -> Iterator[str]:
        yield from pieces

    @guard.wrap
    async def agenerate() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    async def joined() -> str:
        return "".join([piece async for piece in agenerate()])

    assert "".join(generate()) == asyncio.run(joined()) == guard.rewrite(UNSAFE)


def test_a_withheld_answer_is_raised_without_its_text(guard: Guard) -> None:
    heard: list[Moderation] = []
    strict = Guard(
        guard.runtime, policy=Policy(ladder=(), on_block="raise"), on_result=heard.append
    )
    with pytest.raises(Blocked) as raised:
        strict.wrap(lambda: UNSAFE)()
    assert "morons" not in f"{raised.value} {raised.value!r}"
    assert raised.value.moderation.original == UNSAFE
    assert heard == [raised.value.moderation]
