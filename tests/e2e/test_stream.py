"""Streams on the real weights say what `rewrite` says, however the text is cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from srllm_guard import Guard, Policy
from srllm_guard.middleware.stream import TextStream

TEXTS = [
    "The train leaves at 9:40. Bring your own lunch, and don't be late! See you there.",
    "You are such an idiot. The meeting is at 3 pm. Bring the report.",
    "I met Mr. Smith today. Women are too emotional to lead a team. He left at 5.",
    "Thanks for the help!\n\nBut you people are all trash and should shut up. Call me at 555-0199.",
    "- Buy milk\n- Tell that stupid cow to pay her rent\n- Water the plants\n",
    '"Get lost, you moron," he said. She closed the door. It was raining.',
    "Old people can't use computers. My grandma wrote this app. It has 40 users. Nice, isn't it?",
    "Just shut the hell up. You are a worthless piece of garbage. Nobody likes you.",
    (
        "Immigrants are lazy and steal our jobs. The unemployment rate was 4.1% in May. "
        "The report is at https://example.com/jobs. Only a fool would believe the rest of it. "
        "We will discuss it on Monday."
    ),
    "Here is how it works:\n\n```python\nprint('idiot')\n```\n\nRun it twice. It is easy, dummy.",
]


@pytest.fixture(scope="module")
def patient(guard: Guard) -> Guard:
    """A guard that no slow machine makes cut a sentence, and that draws no candidates."""
    return guard.with_policy(Policy(max_holdback_ms=None, candidates=0))


@pytest.fixture(scope="module")
def wanted(patient: Guard) -> list[str]:
    return patient.rewrite_many(TEXTS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stream_says_what_rewrite_says(patient: Guard, wanted: list[str], seed: int) -> None:
    draw = random.Random(seed)
    assert sum(text != new for text, new in zip(TEXTS, wanted, strict=True)) > 5
    for text, new in zip(TEXTS, wanted, strict=True):
        chunks, at = [], 0
        while at < len(text):
            step = draw.randint(1, (4, 30, 200)[seed])
            chunks.append(text[at : at + step])
            at += step
        assert "".join(patient.stream(chunks)) == new


def test_a_long_stream_says_what_rewrite_says(patient: Guard) -> None:
    """More than one window, with repairs at their borders."""
    filler = "The committee met on the second floor and went through the list of open points. "
    text = "".join(filler + ("You are an idiot. " if n % 4 == 1 else "") for n in range(15))
    stream = TextStream(patient)
    parts = [stream.feed(text[n : n + 37]) for n in range(0, len(text), 37)]
    found = "".join([*parts, stream.close()])
    assert stream.result == patient.moderate(text)
    assert stream.result is not None
    assert stream.result.text == found


def test_async_streams_on_one_guard_keep_apart(patient: Guard, wanted: list[str]) -> None:
    async def letters(text: str) -> AsyncIterator[str]:
        for n in range(0, len(text), 11):
            await asyncio.sleep(0)
            yield text[n : n + 11]

    async def joined(text: str) -> str:
        return "".join([part async for part in patient.astream(letters(text))])

    async def run() -> list[str]:
        return await asyncio.gather(*map(joined, TEXTS[:6]))

    assert asyncio.run(run()) == wanted[:6]


def test_what_is_released_before_a_block_is_safe(guard: Guard) -> None:
    strict = guard.with_policy(Policy(ladder=("block",)))
    stream = TextStream(strict)
    text = "The train leaves at 9:40. Bring your lunch. You are such an idiot. Bye now."
    parts = [stream.feed(sign) for sign in text]
    found = "".join([*parts, stream.close()])
    assert found == f"The train leaves at 9:40. Bring your lunch. {strict.policy.block_message}"
    assert not strict.detect(found).unsafe
