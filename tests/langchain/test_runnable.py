"""The guard as a runnable keeps LangChain's contract, and all of a message but its unsafe text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda

from srllm_guard import Blocked, Guard, Policy
from srllm_guard.errors import ShapeError
from srllm_guard.results import Moderation
from tests.byte_engine import ByteEngine, runtime
from tests.langchain.scripted import ScriptedModel

UNSAFE, SAFE = "You idiot, come at 5.", "You person, come at 5."


def everything() -> AIMessage:
    return AIMessage(
        content=[
            {"type": "text", "text": UNSAFE, "annotations": [{"type": "citation", "url": "u"}]},
            {"type": "image", "url": "https://example.org/idiot.png"},
            {"type": "reasoning", "reasoning": "He is lazy."},
        ],
        id="m1",
        name="Ed",
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model": "x", "logprobs": {"content": ["idiot"]}},
        tool_calls=[{"name": "idiot", "args": {"text": UNSAFE, "n": 3}, "id": "idiot"}],
    )


def test_what_is_around_the_text_is_kept(guard: Guard) -> None:
    message = everything()
    done = guard.as_runnable().invoke(message)
    assert type(done) is AIMessage
    assert done.content == [
        {"type": "text", "text": SAFE, "annotations": [{"type": "citation", "url": "u"}]},
        {"type": "image", "url": "https://example.org/idiot.png"},
        {"type": "reasoning", "reasoning": "He is person."},
    ]
    assert (done.id, done.name, done.usage_metadata) == ("m1", "Ed", message.usage_metadata)
    assert done.tool_calls == [
        {"name": "idiot", "args": {"text": SAFE, "n": 3}, "id": "idiot", "type": "tool_call"}
    ]
    assert done.response_metadata == {"model": "x"}  # likelihoods spell the text
    assert message == everything()


@pytest.mark.parametrize(
    "value",
    [
        "Lunch is at noon.",
        AIMessage("Lunch is at noon.", id="1", response_metadata={"logprobs": [1]}),
        [HumanMessage("Hello there."), AIMessage("Hello.")],
        StringPromptValue(text="Hello there."),
        ChatPromptValue(messages=[HumanMessage("Hello there.")]),
        AIMessage([{"type": "text", "text": "Hello there."}, "And you?"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_safe_values_are_the_same_object(guard: Guard, value: Any) -> None:
    assert guard.as_runnable().invoke(value) is value


def test_instructions_of_the_application_stay(guard: Guard) -> None:
    messages = [
        SystemMessage("Never say idiot."),
        ChatMessage(content="Never say idiot.", role="developer"),
        HumanMessage(UNSAFE, id="7"),
        ToolMessage(UNSAFE, tool_call_id="1", artifact={"raw": UNSAFE}),
    ]
    done = guard.as_runnable().invoke(messages)
    assert done[:2] == messages[:2]
    assert done[2] == HumanMessage(SAFE, id="7")
    assert done[3] == ToolMessage(SAFE, tool_call_id="1", artifact={"raw": UNSAFE})


def test_prompts_are_moderated(guard: Guard) -> None:
    chat = ChatPromptTemplate.from_messages([("system", "No idiot."), ("human", "{q}")])
    done = (chat | guard.as_runnable()).invoke({"q": UNSAFE})
    assert done == ChatPromptValue(messages=[SystemMessage("No idiot."), HumanMessage(SAFE)])
    text = PromptTemplate.from_template("{q}") | guard.as_runnable()
    assert text.invoke({"q": UNSAFE}) == StringPromptValue(text=SAFE)


def test_a_dict_is_moderated_by_its_key(guard: Guard) -> None:
    runnable = guard.as_runnable(key="answer")
    value = {"answer": UNSAFE, "question": UNSAFE}
    assert runnable.invoke(value) == {"answer": SAFE, "question": UNSAFE}
    assert joined(list(runnable.stream(value))) == {"answer": SAFE, "question": UNSAFE}
    safe = {"answer": "Hello."}
    assert runnable.invoke(safe) is safe


@pytest.mark.parametrize("value", [3, None, {"answer": UNSAFE}, [UNSAFE, 3]])
def test_what_holds_no_text_is_refused_without_it(guard: Guard, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        guard.as_runnable().invoke(value)
    assert "idiot" not in str(caught.value)
    with pytest.raises(TypeError, match="missing"):
        list(guard.as_runnable(key="missing").stream({"answer": UNSAFE}))


def test_json_stays_json(guard: Guard) -> None:
    text = json.dumps({"idiot": "idiot", "note": UNSAFE})
    done = guard.as_runnable().invoke(text)
    assert json.loads(done) == {"idiot": "idiot", "note": SAFE}
    cut = [text[n : n + 3] for n in range(0, len(text), 3)]
    assert "".join(guard.as_runnable().transform(iter(cut))) == done


def test_a_batch_is_one_pass(
    guard: Guard, byte_engine: ByteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    detect = byte_engine.detect

    def counted(windows: Any) -> Any:
        calls.append(len(windows))
        return detect(windows)

    monkeypatch.setattr(byte_engine, "detect", counted)
    values = [f"Lunch is at {n}." for n in range(20)]
    guard.moderate_many(values)
    one_pass = list(calls)
    assert guard.as_runnable().batch(values, {"max_concurrency": 2}) == values
    assert asyncio.run(guard.as_runnable().abatch(values)) == values
    assert calls == 3 * one_pass


def test_each_of_a_batch_has_its_own_outcome(blocking: Guard) -> None:
    runnable = blocking.as_runnable()
    values = ["Hello.", UNSAFE, 3, "Bye."]
    for done in (
        runnable.batch(values, return_exceptions=True),
        asyncio.run(runnable.abatch(values, return_exceptions=True)),
    ):
        assert (done[0], done[3]) == ("Hello.", "Bye.")
        assert isinstance(done[1], Blocked)
        assert isinstance(done[2], TypeError)
    with pytest.raises(Blocked):
        runnable.batch(values)


def test_arguments_that_cannot_be_read_cost_the_others_nothing(guard: Guard) -> None:
    call = {"name": "f", "args": {"tags": {"a tag"}}, "id": "1"}
    values = [AIMessage(UNSAFE), AIMessage("", tool_calls=[call]), AIMessage("Bye.")]
    first, second, third = guard.as_runnable().batch(values, return_exceptions=True)
    assert (first.content, third.content) == (SAFE, "Bye.")
    assert isinstance(second, ShapeError)
    assert "args.tags" in str(second)


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.started: list[dict[str, Any]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.events.append(("start", inputs))
        self.started.append(kwargs)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append(("end", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", error))


def test_callbacks_tags_metadata_and_run_name_arrive(guard: Guard) -> None:
    async def ainvoke(runnable: Any) -> Any:
        return await runnable.ainvoke(UNSAFE)

    async def astream(runnable: Any) -> Any:
        return joined([chunk async for chunk in runnable.astream(UNSAFE)])

    calls: list[Callable[[Any], Any]] = [
        lambda runnable: runnable.invoke(UNSAFE),
        lambda runnable: runnable.batch([UNSAFE])[0],
        lambda runnable: joined(list(runnable.stream(UNSAFE))),
        lambda runnable: asyncio.run(ainvoke(runnable)),
        lambda runnable: asyncio.run(astream(runnable)),
    ]
    for call in calls:
        recorder = Recorder()
        runnable = guard.as_runnable().with_config(
            callbacks=[recorder], tags=["t"], metadata={"m": 1}, run_name="check"
        )
        assert call(runnable) == SAFE
        assert [name for name, _ in recorder.events] == ["start", "end"]
        assert recorder.events[-1] == ("end", SAFE)
        (started,) = recorder.started
        assert (started["name"], started["tags"], started["metadata"]["m"]) == ("check", ["t"], 1)


def test_blocked_reaches_retries_and_fallbacks(blocking: Guard) -> None:
    recorder = Recorder()
    runnable = blocking.as_runnable()
    with pytest.raises(Blocked) as caught:
        runnable.invoke(UNSAFE, {"callbacks": [recorder]})
    assert "idiot" not in repr(caught.value)
    assert recorder.events[-1] == ("error", caught.value)
    fallback: Runnable[Any, Any] = RunnableLambda(lambda text: "Let us talk about something else.")
    safe = runnable.with_fallbacks([fallback], exceptions_to_handle=(Blocked,))
    assert safe.invoke(UNSAFE) == "Let us talk about something else."
    assert asyncio.run(safe.ainvoke(UNSAFE)) == "Let us talk about something else."
    retried = runnable.with_retry(retry_if_exception_type=(Blocked,), stop_after_attempt=2)
    with pytest.raises(Blocked):
        retried.invoke(UNSAFE, {"callbacks": [recorder]})


def test_the_message_of_the_policy_takes_the_place(guard: Guard) -> None:
    policy = Policy(ladder=("block",), block_message="Withheld.")
    runnable = guard.with_policy(policy).as_runnable()
    assert runnable.invoke(AIMessage(UNSAFE, id="1")) == AIMessage("Withheld.", id="1")


def test_a_policy_can_be_chosen_at_run_time(guard: Guard) -> None:
    runnable = guard.as_runnable().configurable_fields(policy=ConfigurableField(id="policy"))
    assert runnable.invoke(UNSAFE) == SAFE
    watch: Any = {"configurable": {"policy": Policy(mode="observe")}}
    assert runnable.invoke(UNSAFE, watch) == UNSAFE
    plain: Any = {"configurable": {"policy": {"ladder": ["block"], "block_message": "No."}}}
    assert runnable.invoke(UNSAFE, plain) == "No."
    assert runnable.config_schema().model_json_schema()


def test_it_can_be_drawn_named_described_and_dumped(guard: Guard) -> None:
    runnable = guard.as_runnable()
    chain = ChatPromptTemplate.from_template("{q}") | ScriptedModel(answers=[]) | runnable
    assert runnable.get_name() == "GuardRunnable"
    assert "GuardRunnable" in [node.name for node in chain.get_graph().nodes.values()]
    assert runnable.get_input_jsonschema()
    assert runnable.get_output_jsonschema()
    dumped = json.loads(dumps(chain))["kwargs"]["last"]
    assert (dumped["type"], dumped["id"][-1]) == ("not_implemented", "GuardRunnable")


def chunks_of(text: str) -> Iterator[AIMessageChunk]:
    yield AIMessageChunk(content="", id="c1", name="Ed")
    for word in text.split(" "):
        yield AIMessageChunk(content=word + " ", id="c1", response_metadata={"logprobs": [word]})
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    yield AIMessageChunk(content="", id="c1", usage_metadata=usage)  # type: ignore[arg-type]
    yield AIMessageChunk(
        content="", id="c1", response_metadata={"finish_reason": "stop"}, chunk_position="last"
    )


TEXT = "Lunch is at noon. You idiot, come at 5. Bring three chairs."


def test_message_chunks_stream_with_what_belongs_to_them(guard: Guard) -> None:
    shown = list(guard.as_runnable().transform(chunks_of(TEXT)))
    assert {chunk.id for chunk in shown} == {"c1"}
    assert shown[0].name == "Ed"
    assert shown[-1].chunk_position == "last"
    assert not any(chunk.content for chunk in shown[-1:])
    total = joined(shown)
    assert total.content == guard.rewrite(TEXT + " ")
    assert total.usage_metadata["total_tokens"] == 3
    assert total.response_metadata == {"finish_reason": "stop"}


def test_streams_are_incremental(guard: Guard) -> None:
    drawn: list[int] = []

    def source() -> Iterator[AIMessageChunk]:
        for n, chunk in enumerate(chunks_of(TEXT)):
            drawn.append(n)
            yield chunk

    stream = guard.as_runnable().transform(source())
    texts = ((chunk.content, len(drawn)) for chunk in stream if chunk.content)
    text, after = next(texts)
    assert text.startswith("Lunch is at noon.")
    assert after < len(TEXT.split())
    assert "".join([text, *(text for text, _ in texts)]) == guard.rewrite(TEXT + " ")


def test_async_streams_say_the_same(guard: Guard) -> None:
    async def source() -> AsyncIterator[AIMessageChunk]:
        for chunk in chunks_of(TEXT):
            yield chunk

    async def main() -> list[Any]:
        return [chunk async for chunk in guard.as_runnable().atransform(source())]

    assert joined(asyncio.run(main())) == joined(
        list(guard.as_runnable().transform(chunks_of(TEXT)))
    )


def test_events_of_a_chain_name_the_guard(guard: Guard) -> None:
    chain = ScriptedModel(answers=[AIMessage(TEXT)]) | guard.as_runnable()

    async def main() -> list[Any]:
        return [event async for event in chain.astream_events("Hi.", version="v2")]

    events = [event for event in asyncio.run(main()) if event["name"] == "GuardRunnable"]
    assert [events[0]["event"], events[-1]["event"]] == ["on_chain_start", "on_chain_end"]
    said = [e["data"]["chunk"].content for e in events if e["event"] == "on_chain_stream"]
    assert "".join(said) == guard.rewrite(TEXT)


def test_whole_values_in_a_stream_pass_whole(guard: Guard) -> None:
    values: list[Any] = [HumanMessage(UNSAFE, id="1"), [AIMessage(UNSAFE)], "a ", "b."]
    shown = list(guard.as_runnable().transform(iter(values)))
    assert shown[:2] == [HumanMessage(SAFE, id="1"), [AIMessage(SAFE)]]
    assert "".join(shown[2:]) == "a b."


def test_two_messages_in_a_stream_stay_two(guard: Guard) -> None:
    chunks = [AIMessageChunk(content=UNSAFE, id=id_, chunk_position="last") for id_ in "12"]
    shown: list[BaseMessage] = list(guard.as_runnable().transform(iter(chunks)))
    assert [(chunk.id, chunk.content) for chunk in shown if chunk.content] == [
        ("1", SAFE),
        ("2", SAFE),
    ]


def test_an_id_that_changes_on_the_way_makes_no_new_message(guard: Guard) -> None:
    chunks = [AIMessageChunk(content=c, id=f"{n}") for n, c in enumerate(UNSAFE)]
    assert joined(list(guard.as_runnable().transform(iter(chunks)))).content == SAFE


@pytest.mark.parametrize("key", [None, "answer"])
@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("error", [None, OSError("gone")])
def test_the_end_comes_after_what_was_verified(
    torn: Guard, guard: Guard, key: str | None, way: str, error: Exception | None
) -> None:
    text = "You idiot there. But see that stupid man over there"

    def source() -> Iterator[Any]:
        yield text if key is None else {key: text}
        if error is not None:
            raise error

    async def asource() -> AsyncIterator[Any]:
        for each in source():
            yield each

    out: list[Any] = []
    link = (guard if error else torn).as_runnable(key=key)

    async def run() -> None:
        async for each in link.atransform(asource()):
            out.append(each)  # noqa: PERF401 - a comprehension would be lost with the error

    with pytest.raises(OSError if error else Blocked):
        asyncio.run(run()) if way == "async" else out.extend(link.transform(source()))
    said = "".join(each if key is None else each.get(key, "") for each in out)
    assert said.strip() == (guard.rewrite(text) if error else "You person there.")


def test_an_error_before_the_key_has_come_is_its_own(guard: Guard) -> None:
    def source() -> Iterator[Any]:
        yield {"other": 1}
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(guard.as_runnable(key="answer").transform(source()))


def test_every_text_is_reported_once(guard: Guard, seen: list[Moderation]) -> None:
    guard.as_runnable().batch([UNSAFE, AIMessage(TEXT)])
    list(guard.as_runnable().transform(chunks_of(TEXT)))
    assert [result.original for result in seen] == [UNSAFE, TEXT, TEXT + " "]


def joined(chunks: list[Any]) -> Any:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total


def test_a_deadline_is_one_for_all_of_a_message() -> None:
    """Its text and the arguments of its call are two batches."""
    engine = ByteEngine(fault="hang")
    results: list[Moderation] = []
    guard = Guard(runtime(engine), policy=Policy(deadline_ms=400), on_result=results.append)
    start = time.perf_counter()
    guard.as_runnable().invoke(everything())
    took = time.perf_counter() - start
    engine.release.set()
    assert 0.3 < took < 0.75
    assert len(results) == 3
    assert all(each.errors[0].startswith("DeadlineExceeded: ") for each in results)
