"""What the guard costs around other people's calls, when all that they answer is safe.

Overhead is measured on an engine that answers from memory, so the model's own time, which is large
and varies, is not in it: of each wrapper the time with the guard, less that without it, less that
of `Guard.detect` of the same text. Delays of streams are measured on the real model.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks.speed.stopwatch import interleaved, summary
from benchmarks.speed.texts import Texts
from benchmarks.speed.watched import remembering
from srllm_guard import Guard
from srllm_guard.text.segments import segments

RATE = 50.0
"""Words a second that a stream comes at."""

SENTENCES = 4
"""Of the text of an answer."""

Call = Callable[[str], Any]
Pair = tuple[Call, Call]
"""A call without and with the guard; both answer with the text that they are given."""


def answers(texts: Texts, guard: Guard, count: int) -> list[str]:
    """Texts of several sentences that pass.

    Raises:
        ValueError: none does.
    """
    found: list[str] = []
    for start in range(0, len(texts.safe) - SENTENCES, SENTENCES):
        text = " ".join(texts.safe[start : start + SENTENCES])
        if len(found) < count and guard.moderate(text).action == "pass":
            found.append(text)
    if not found:
        raise ValueError(f"no text of {SENTENCES} safe sentences passes")
    return found


def overhead(guard: Guard, items: Sequence[str], rounds: int) -> dict[str, Any]:
    """Milliseconds that each wrapper adds to a call and to `Guard.detect`.

    Returns:
        `detect`: the bare detection, the model apart; `wrappers`: by name; `skipped`: reasons.
    """
    quick = Guard(remembering(guard.runtime), policy=guard.policy)
    pairs: dict[str, Pair] = {}
    skipped: dict[str, str] = {}
    with asyncio.Runner() as runner:
        for name, make in _makers(quick, runner).items():
            try:
                pairs[name] = make()
                for text in items:
                    _same(pairs[name], text)
            except ImportError as error:
                pairs.pop(name, None)
                skipped[name] = f"{type(error).__name__}: {error}"
        jobs: dict[str, Call] = {"detect": quick.detect}
        for name, (bare, guarded) in pairs.items():
            jobs |= {f"{name}, bare": bare, f"{name}, guarded": guarded}
        runs = interleaved(jobs, items, rounds=rounds, warm=items, settle=0.0)
    found = {}
    for name in pairs:
        columns = (runs[f"{name}, guarded"].ms, runs[f"{name}, bare"].ms)
        found[name] = {
            **summary([g - b for g, b in zip(*columns, strict=True)]),
            "guarded_ms": runs[f"{name}, guarded"].figures()["median_ms"],
            "bare_ms": runs[f"{name}, bare"].figures()["median_ms"],
            "overhead_ms": summary(
                [g - b - d for g, b, d in zip(*columns, runs["detect"].ms, strict=True)]
            )["median_ms"],
        }
    return {"detect": runs["detect"].figures(), "wrappers": found, "skipped": skipped}


def delays(
    guard: Guard, items: Sequence[str], rounds: int = 1, rate: float = RATE
) -> dict[str, Any]:
    """Delays of streams of safe sentences that come at a steady rate.

    Returns:
        Medians in milliseconds: `first` and `total` with and without the guard and what it adds;
        `sentence`, when the first sentence was complete, which is what the guard has to wait for.
    """
    guard.detect(items[0])
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        for text in items:
            bare = _arrival(_paced(text, rate))
            guarded = _arrival(guard.stream(_paced(text, rate)))
            complete = _complete(text, rate)
            row = {
                "first_bare_ms": bare[0],
                "first_guarded_ms": guarded[0],
                "first_added_ms": guarded[0] - bare[0],
                "sentence_ms": complete,
                "first_after_sentence_ms": guarded[0] - complete,
                "total_bare_ms": bare[1],
                "total_added_ms": guarded[1] - bare[1],
            }
            for key, ms in row.items():
                rows.setdefault(key, []).append(ms)
    medians = {key: summary(ms)["median_ms"] for key, ms in rows.items()}
    return {"words_per_s": rate, "n": rounds * len(items), **medians}


def _makers(guard: Guard, runner: asyncio.Runner) -> Mapping[str, Callable[[], Pair]]:
    return {
        "Guard.rewrite": lambda: (lambda text: text, guard.rewrite),
        "wrap": lambda: (_answer, guard.wrap(_answer)),
        "stream": lambda: (
            lambda text: "".join(iter(_chunks(text))),
            lambda text: "".join(guard.stream(iter(_chunks(text)))),
        ),
        "astream": lambda: (
            lambda text: runner.run(_joined(_later(text))),
            lambda text: runner.run(_joined(guard.astream(_later(text)))),
        ),
        "LangChain runnable": lambda: _runnable(guard),
        "openai client": lambda: _client(guard),
    }


def _same(pair: Pair, text: str) -> None:
    """Refuse to time what does not answer with the text."""
    for call in pair:
        if (found := call(text)) != text:
            raise RuntimeError(f"{len(text)} safe characters came back as {len(found)} others")


def _answer(text: str) -> str:
    return text


def _runnable(guard: Guard) -> Pair:
    from langchain_core.runnables import RunnableLambda

    answer = RunnableLambda(_answer)
    return answer.invoke, (answer | guard.as_runnable()).invoke


def _client(guard: Guard) -> Pair:
    """The client of the openai package on a server within the process, so no network is timed."""
    from openai import DefaultHttpxClient, OpenAI

    # httpx, or the httpx2 that newer releases of openai are built on.
    kinds = (kind.__module__.partition(".")[0] for kind in DefaultHttpxClient.__mro__)
    http: Any = import_module(next(name for name in kinds if name.startswith("httpx")))
    transport = http.MockTransport(lambda request: http.Response(200, json=_completion(request)))
    client = OpenAI(
        api_key="none",
        base_url="http://benchmark.invalid/v1",
        http_client=http.Client(transport=transport),
    )
    return _asking(client), _asking(guard.openai(client))


def _asking(client: Any) -> Call:
    def ask(text: str) -> Any:
        messages = [{"role": "user", "content": text}]
        made = client.chat.completions.create(model="echo", messages=messages)
        return made.choices[0].message.content

    return ask


def _completion(request: Any) -> dict[str, Any]:
    """A chat completion that says what the user said."""
    said = json.loads(request.content)["messages"][-1]["content"]
    message = {"role": "assistant", "content": said}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "echo",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }


def _chunks(text: str) -> list[str]:
    """Words with the space behind them."""
    return re.findall(r"\S+\s*", text)


async def _later(text: str) -> AsyncIterator[str]:
    for chunk in _chunks(text):
        yield chunk


async def _joined(chunks: AsyncIterator[str]) -> str:
    return "".join([chunk async for chunk in chunks])


def _paced(text: str, rate: float) -> Iterator[str]:
    """The chunk of number n comes n / rate seconds after the start, however slow its reader is."""
    start = time.perf_counter()
    for number, chunk in enumerate(_chunks(text), 1):
        time.sleep(max(0.0, start + number / rate - time.perf_counter()))
        yield chunk


def _arrival(chunks: Iterator[str]) -> tuple[float, float]:
    """Milliseconds to the first text and to the end."""
    start = time.perf_counter()
    first = None
    for chunk in chunks:
        if chunk and first is None:
            first = time.perf_counter()
    end = time.perf_counter()
    return ((first or end) - start) * 1e3, (end - start) * 1e3


def _complete(text: str, rate: float) -> float:
    """Milliseconds until the chunk has come that ends the first sentence."""
    end = segments(text)[0].end
    seen = 0
    for number, chunk in enumerate(_chunks(text), 1):
        seen += len(chunk)
        if seen >= end:
            return number / rate * 1e3
    return len(_chunks(text)) / rate * 1e3
