"""The guarded client itself: it cannot be lost, and errors, ends and cancellations pass through."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("openai")

import openai
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from starlette.responses import Response

from srllm_guard import Guard, Policy
from srllm_guard.errors import Blocked, ConfigError
from tests.byte_engine import ByteEngine, runtime
from tests.middleware.clients import Async, Sync
from tests.middleware.server import Cut, Fault, chat, chat_chunks, chunk, message, response, serving

UNSAFE = "We met on Monday at noon. You are an idiot and I said so. It was fine all day."
SHOUT = "You are an idiot and I said so."
SAFE = "It was fine all day."
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}

both = pytest.mark.parametrize("kind", [Sync, Async])


def shown(chunks: list[Any]) -> str:
    return "".join(each.choices[0].delta.content or "" for each in chunks)


def test_it_is_a_client_and_the_one_given_stays_as_it_was(byte_guard: Guard) -> None:
    with serving(chat__completions=lambda body: chat(UNSAFE)) as server:
        ways = Sync(byte_guard, server)
        assert isinstance(ways.client, OpenAI)
        assert type(ways.plain) is OpenAI
        assert ways.plain.chat.completions.create(**ASK).choices[0].message.content == UNSAFE
        assert ways.client.api_key == "key"
        assert ways.client.base_url == ways.plain.base_url


@pytest.mark.parametrize(
    "variant",
    [
        lambda c: c.copy(),
        lambda c: c.with_options(timeout=5, max_retries=1),
        lambda c: c.copy(http_client=openai.DefaultHttpxClient()),
    ],
)
def test_copies_are_guarded(byte_guard: Guard, variant: Any) -> None:
    with serving(chat__completions=lambda body: chat(UNSAFE)) as server:
        copied = variant(Sync(byte_guard, server).client)
        got = copied.chat.completions.create(**ASK)
        copied.close()
    assert got.choices[0].message.content == byte_guard.rewrite(UNSAFE)


def test_raw_responses_are_guarded(byte_guard: Guard) -> None:
    answer = chat_chunks(UNSAFE)
    with serving(chat__completions=lambda b: answer if b.get("stream") else chat(UNSAFE)) as server:
        create = Sync(byte_guard, server).client.chat.completions
        raw = create.with_raw_response.create(**ASK)
        assert raw.parse().choices[0].message.content == byte_guard.rewrite(UNSAFE)
        assert "idiot" not in raw.text
        assert raw.http_response.headers["content-type"] == "application/json"
        assert raw.elapsed.total_seconds() > 0
        assert int(raw.headers["content-length"]) == len(raw.content)
        streamed = create.with_raw_response.create(**ASK, stream=True).parse()
        assert shown(list(streamed)) == byte_guard.rewrite(UNSAFE)
        with create.with_streaming_response.create(**ASK) as body:
            assert "idiot" not in "".join(body.iter_text())
        with create.with_streaming_response.create(**ASK, stream=True) as body:
            lines = list(body.iter_lines())
    assert "idiot" not in "\n".join(lines)
    assert any(line.startswith("data: ") for line in lines)


def test_raw_responses_of_the_async_client_are_guarded(byte_guard: Guard) -> None:
    async def run(client: Any) -> str:
        create = client.chat.completions.with_streaming_response.create
        async with create(**ASK, stream=True) as body:
            return "\n".join([line async for line in body.iter_lines()])

    with serving(chat__completions=lambda body: chat_chunks(UNSAFE)) as server:
        text = Async(byte_guard, server).call(run)
    assert "data: " in text
    assert "idiot" not in text


def test_azure_is_guarded(byte_guard: Guard) -> None:
    with serving(chat__completions=lambda body: chat(UNSAFE)) as server:
        client = byte_guard.openai(
            AzureOpenAI(
                azure_endpoint=server.url.removesuffix("/v1"), api_version="1", api_key="key"
            )
        )
        got = client.with_options(max_retries=0).chat.completions.create(**ASK)
        client.close()
    assert isinstance(client, AzureOpenAI)
    assert "/deployments/m/" in server.asked[0][0]
    assert got.choices[0].message.content == byte_guard.rewrite(UNSAFE)


@both
def test_other_endpoints_are_untouched(byte_guard: Guard, kind: type[Sync]) -> None:
    models = {"object": "list", "data": [{"id": SHOUT, "object": "model"}]}
    with serving(models=lambda body: models) as server:
        got = kind(byte_guard, server, inputs=True).call(lambda c: c.models.retrieve("x"))
    assert got.model_dump()["data"][0]["id"] == SHOUT


@both
def test_what_is_asked_is_guarded_when_it_is_to_be(kind: type[Sync]) -> None:
    guard = Guard(runtime())
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SHOUT},
        {"role": "user", "content": SHOUT},
        {"role": "assistant", "content": SHOUT},
        {"role": "user", "content": [{"type": "text", "text": SHOUT}]},
        {"role": "tool", "tool_call_id": "1", "content": SHOUT},
    ]
    with serving(
        chat__completions=lambda body: chat(SHOUT),
        responses=lambda body: response(message(SHOUT)),
        v1__completions=lambda body: {"choices": [{"text": SHOUT}]},
    ) as server:
        ways = kind(guard, server, inputs=True, outputs=False)
        got = ways.call(lambda c: c.chat.completions.create(model="m", messages=messages))
        items = [
            {"role": "user", "content": SHOUT},
            {"role": "user", "content": [{"type": "input_text", "text": SHOUT}]},
            {"type": "function_call_output", "call_id": "1", "output": SHOUT},
            {"role": "developer", "content": SHOUT},
        ]
        ways.call(lambda c: c.responses.create(model="m", input=items))
        ways.call(lambda c: c.responses.create(model="m", input=SHOUT, instructions=SHOUT))
        ways.call(lambda c: c.completions.create(model="m", prompt=[SHOUT, SAFE]))
        with pytest.raises(ConfigError, match="token ids"):
            ways.call(lambda c: c.completions.create(model="m", prompt=[1, 2]))
    assert got.choices[0].message.content == SHOUT
    mild = guard.rewrite(SHOUT)
    sent = [body for _, body in server.asked]
    system, user, assistant, parts, tool = (each["content"] for each in sent[0]["messages"])
    assert (system, user, assistant, tool) == (SHOUT, mild, SHOUT, mild)
    assert parts == [{"type": "text", "text": mild}]
    assert messages[1]["content"] == SHOUT
    user, parts, output, developer = sent[1]["input"]
    assert (user["content"], parts["content"][0]["text"], output["output"]) == (mild, mild, mild)
    assert developer["content"] == SHOUT
    assert (sent[2]["input"], sent[2]["instructions"]) == (mild, SHOUT)
    assert sent[3]["prompt"] == [mild, SAFE]
    assert len(sent) == 4


@both
def test_what_any_tool_gave_is_guarded_when_it_is_sent(byte_guard: Guard, kind: type[Sync]) -> None:
    said = {"stdout": SHOUT, "stderr": SHOUT, "outcome": {"type": "exit", "exit_code": 0}}
    items = [
        {"type": "local_shell_call_output", "id": "1", "output": json.dumps({"stdout": SHOUT})},
        {"type": "shell_call_output", "call_id": "2", "output": [said]},
        {"type": "apply_patch_call_output", "call_id": "3", "output": SHOUT},
        {"type": "mcp_approval_response", "approve": False, "reason": SHOUT},
        {"type": "program_output", "call_id": "5", "result": SHOUT, "status": "completed"},
        {"type": "computer_call_output", "call_id": "4", "output": {"image_url": SHOUT}},
        {"type": "shell_call", "call_id": "2", "action": {"commands": [SHOUT]}},
    ]
    with serving(responses=lambda body: response(message(SAFE))) as server:
        ways = kind(byte_guard, server, inputs=True)
        ways.call(lambda c: c.responses.create(model="m", input=items))
    ((_, body),) = server.asked
    mild = byte_guard.rewrite(SHOUT)
    local, shell, patch, approval, program, *rest = body["input"]
    assert json.loads(local["output"]) == {"stdout": mild}
    assert shell["output"] == [{**said, "stdout": mild, "stderr": mild}]
    assert (patch["output"], approval["reason"], program["result"]) == (mild, mild, mild)
    assert rest == items[5:]
    assert said["stdout"] == SHOUT


@both
def test_variables_of_a_prompt_are_guarded_when_they_are_sent(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    prompt: dict[str, Any] = {
        "id": "pmpt_1",
        "version": "2",
        "variables": {
            "said": SHOUT,
            "city": "Paris",
            "note": {"type": "input_text", "text": SHOUT},
            "photo": {"type": "input_image", "image_url": SHOUT},
        },
    }
    with serving(responses=lambda body: response(message(SAFE))) as server:
        ways = kind(byte_guard, server, inputs=True)
        ways.call(lambda c: c.responses.create(prompt=prompt))
    ((_, body),) = server.asked
    mild = byte_guard.rewrite(SHOUT)
    assert body["prompt"]["variables"] == {
        **prompt["variables"],
        "said": mild,
        "note": {"type": "input_text", "text": mild},
    }
    assert body["prompt"]["id"] == "pmpt_1"
    assert prompt["variables"]["said"] == SHOUT


@both
def test_each_direction_has_its_policy_and_nothing_blocked_is_sent(kind: type[Sync]) -> None:
    guard = Guard(runtime())
    loud = Policy(ladder=(), on_block="raise")
    with serving(chat__completions=lambda body: chat(SHOUT)) as server:
        ways = kind(guard, server, inputs=loud)
        got = ways.call(lambda c: c.chat.completions.create(**ASK))
        assert got.choices[0].message.content == guard.rewrite(SHOUT)
        asked = {"model": "m", "messages": [{"role": "user", "content": SHOUT}]}
        with pytest.raises(Blocked):
            ways.call(lambda c: c.chat.completions.create(**asked))
    assert len(server.asked) == 1


@both
def test_parts_of_what_tools_say_stay_json(kind: type[Sync]) -> None:
    guard = Guard(runtime(), policy=Policy(ladder=("block",)))
    said = json.dumps({"note": SHOUT, "id": "idiot-7"})
    parts = [{"type": "text", "text": said}]
    messages = [{"role": "tool", "tool_call_id": "1", "content": parts}]
    items = [
        {
            "type": "function_call_output",
            "call_id": "1",
            "output": [{"type": "input_text", "text": said}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": SHOUT}]},
    ]
    with serving(
        chat__completions=lambda body: chat(SAFE), responses=lambda body: response(message(SAFE))
    ) as server:
        ways = kind(guard, server, inputs=True)
        ways.call(lambda c: c.chat.completions.create(model="m", messages=messages))
        ways.call(lambda c: c.responses.create(model="m", input=items))
    first, second = (body for _, body in server.asked)
    for text in (
        first["messages"][0]["content"][0]["text"],
        second["input"][0]["output"][0]["text"],
    ):
        assert json.loads(text) == {"note": guard.policy.block_message, "id": "idiot-7"}
    assert second["input"][1]["content"][0]["text"] == guard.policy.block_message


def test_what_is_blocked_is_not_asked_for_again() -> None:
    guard = Guard(runtime(), policy=Policy(ladder=(), on_block="raise"))
    with serving(chat__completions=lambda body: chat(SHOUT)) as server:
        client = Sync(guard, server).client.with_options(max_retries=2)
        with pytest.raises(Blocked):
            client.chat.completions.create(**ASK)
    assert len(server.asked) == 1


@both
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_server_pass_through(
    byte_guard: Guard, kind: type[Sync], stream: bool
) -> None:
    fault = Fault(500, b'{"error": {"message": "out of order"}}')
    with serving(chat__completions=lambda body: fault) as server:
        ways = kind(byte_guard, server)
        with pytest.raises(openai.InternalServerError, match="out of order"):
            ways.call(lambda c: c.chat.completions.create(**ASK, stream=stream))


@both
def test_a_lost_connection_shows_nothing_that_was_not_verified(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    def answer(body: dict[str, Any]) -> Iterator[Any]:
        yield from chat_chunks(SAFE + " " + UNSAFE)[:-2]
        yield 0.2
        yield Cut()

    seen: list[Any] = []
    with serving(chat__completions=answer) as server:
        ways = kind(byte_guard, server)
        with pytest.raises(openai.APIConnectionError):
            ways.events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    arrived = "".join(
        each["choices"][0]["delta"].get("content", "")
        for each in chat_chunks(SAFE + " " + UNSAFE)[:-2]
    )
    assert shown(seen) == byte_guard.rewrite(arrived)


@both
def test_an_error_within_a_stream_comes_after_what_was_held(
    byte_guard: Guard, kind: type[Sync]
) -> None:
    error = {"error": {"message": "overloaded"}}
    answer = [chunk({"content": "Fine day. You idiot, and another"}), error]
    seen: list[Any] = []
    with serving(chat__completions=lambda body: answer) as server:
        ways = kind(byte_guard, server)
        with pytest.raises(openai.APIError, match="overloaded"):
            ways.events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    assert shown(seen) == "Fine day. You person, and another"


@both
@pytest.mark.parametrize("ended", [True, False])
def test_a_block_at_the_end_comes_after_what_was_verified(kind: type[Sync], ended: bool) -> None:
    engine = ByteEngine(fault="raise", within="generate", only="stupid")
    policy = Policy(ladder=("rewrite", "omit", "block"), on_block="raise")
    blocking = Guard(runtime(engine), policy=policy)
    answer = [chunk({"content": "You idiot there. But see that stupid man over there"})]
    if ended:
        answer.append(chunk({}, finish_reason="stop"))
    seen: list[Any] = []
    with serving(chat__completions=lambda body: answer) as server:
        ways = kind(blocking, server)
        with pytest.raises(Blocked):
            ways.events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    assert shown(seen).strip() == "You person there."


def endless(body: dict[str, Any]) -> Iterator[Any]:
    yield chunk({"role": "assistant", "content": ""})
    while True:
        yield chunk({"content": SAFE + " "})
        yield 0.02


def test_who_stops_early_ends_the_answer(byte_guard: Guard) -> None:
    with serving(chat__completions=endless) as server:
        with Sync(byte_guard, server).client.chat.completions.create(**ASK, stream=True) as stream:
            first = next(iter(stream))
            assert first is not None
        assert server.closed.wait(10)
        assert stream.response.is_closed


def test_who_is_cancelled_ends_the_answer(byte_guard: Guard) -> None:
    async def run(client: AsyncOpenAI) -> None:
        async def read() -> None:
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.5)

    with serving(chat__completions=endless) as server:
        Async(byte_guard, server).call(run)
        assert server.closed.wait(10)


@both
def test_what_is_held_for_too_long_is_judged_as_it_is(kind: type[Sync]) -> None:
    guard = Guard(runtime(), policy=Policy(max_holdback_ms=50))
    came: list[float] = []

    def answer(body: dict[str, Any]) -> Iterator[Any]:
        yield chunk({"content": "You are an idiot and I said"})
        yield 1.0
        came.append(time.monotonic())
        yield chunk({"content": " so."})
        yield chunk({}, finish_reason="stop")

    class Seen(list[Any]):
        def append(self, each: Any) -> None:
            super().append((time.monotonic(), each))

    seen = Seen()
    with serving(chat__completions=answer) as server:
        kind(guard, server).events(lambda c: c.chat.completions.create(**ASK, stream=True), seen)
    assert seen[0][0] < came[0]
    text = shown([each for _, each in seen])
    assert "idiot" not in text
    assert text.endswith(" so.")


def test_a_packed_body_is_unpacked_first(byte_guard: Guard) -> None:
    def answer(body: dict[str, Any]) -> Response:
        from starlette.responses import JSONResponse

        packed = gzip.compress(bytes(JSONResponse(chat(UNSAFE)).body))
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        return Response(packed, headers=headers)

    with serving(chat__completions=answer) as server:
        got = Sync(byte_guard, server).client.chat.completions.create(**ASK)
    assert got.choices[0].message.content == byte_guard.rewrite(UNSAFE)


def test_what_is_no_json_is_text(byte_guard: Guard) -> None:
    with serving(chat__completions=lambda body: Response(SHOUT, media_type="text/plain")) as server:
        raw = Sync(byte_guard, server).client.chat.completions.with_raw_response.create(**ASK)
    assert raw.text == byte_guard.rewrite(SHOUT)


def test_what_cannot_be_guarded_is_refused(byte_guard: Guard) -> None:
    client = byte_guard.openai(OpenAI(api_key="key"))
    with pytest.raises(ConfigError, match="guarded already"):
        byte_guard.openai(client)
    with pytest.raises(TypeError, match="got str"):
        byte_guard.openai("client")
