"""The guarded client and the remote engine on the real weights, over real connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("torch")

from srllm_guard import Guard
from srllm_guard.engines import remote
from srllm_guard.engines.base import Request
from srllm_guard.errors import ModelError
from tests.e2e import conftest as e2e
from tests.middleware.clients import Async, Sync
from tests.middleware.server import chat, chat_chunks, chunk, response_events, serving
from tests.middleware.vllm import completions

guard = e2e.guard

UNSAFE = (
    "The meeting starts at nine on Tuesday. Send me the invoice by Friday, you stupid idiot. "
    "Please bring the printed report."
)
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}

both = pytest.mark.parametrize("kind", [Sync, Async])


def shown(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for each in chunks for choice in each.choices)


@both
def test_an_unsafe_answer_comes_back_safe(guard: Guard, kind: type[Sync]) -> None:
    answer = [*chat_chunks(UNSAFE), "[DONE]"]
    with serving(
        chat__completions=lambda b: answer if b.get("stream") else chat(UNSAFE),
        responses=lambda body: response_events(UNSAFE),
    ) as server:
        ways = kind(guard, server)
        whole = ways.call(lambda c: c.chat.completions.create(**ASK)).choices[0].message.content
        streamed = ways.events(lambda c: c.chat.completions.create(**ASK, stream=True))
        events = ways.events(lambda c: c.responses.create(model="m", input="H.", stream=True))
    assert whole == guard.rewrite(UNSAFE)
    assert "stupid" not in whole
    assert not guard.detect(whole).unsafe
    assert shown(streamed) == whole
    assert events[-1].response.output_text == whole


def test_what_a_model_says_is_streamed_as_rewrite_has_it(guard: Guard) -> None:
    runtime = guard.runtime
    prompt = runtime.prompt

    def answer(body: dict[str, Any]) -> Iterator[Any]:
        ids = tuple(prompt.encode(body["messages"][-1]["content"]))
        (said,) = runtime.engine.generate([Request(ids, frozenset({prompt.end}), 40)])
        texts.append("")
        for index in said.ids:
            piece = prompt.decode([index])
            texts[-1] += piece
            yield chunk({"content": piece})
        yield chunk({}, finish_reason="length")

    texts: list[str] = []
    asked: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "The capital of France is"}],
    }
    with serving(chat__completions=answer) as server:
        got = Sync(guard, server).events(lambda c: c.chat.completions.create(**asked, stream=True))
    assert len(texts[0]) > 20
    assert shown(got) == guard.rewrite(texts[0])


def test_a_guard_on_a_server_rewrites_as_one_here_does(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srllm_guard.runtime.load", lambda model, **_: guard.runtime)
    with serving(completions=completions(guard.runtime.engine)) as server:
        far = remote.load(server.url, served="sr-llm")
        found = Guard(far).moderate(UNSAFE)
        assert isinstance(far.engine, remote.RemoteEngine)
        far.engine.close()
    here = guard.moderate(UNSAFE)
    assert len(server.asked) > 2
    same = replace(found, provenance=here.provenance)
    assert same == here


def test_a_server_of_another_model_is_refused(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srllm_guard.runtime.load", lambda model, **_: guard.runtime)

    def unlike(body: dict[str, Any]) -> dict[str, Any]:
        places = [{str(index): {"logprob": -9.0}} for index in body["prompt"]]
        choice = {"token_ids": [1], "finish_reason": "length", "prompt_logprobs": places}
        return {"choices": [choice]}

    with (
        serving(completions=unlike) as server,
        pytest.raises(ModelError, match="not the bundle's"),
    ):
        remote.load(server.url, served="other")
