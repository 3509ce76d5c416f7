"""A guarded chat model is the model within, but for what is unsafe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, FakeMessagesListChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from pydantic import BaseModel

from srllm_guard import Blocked, Guard, Policy
from srllm_guard.middleware.langchain import GuardedChatModel, chat_model
from srllm_guard.results import Moderation
from tests.langchain.scripted import ScriptedModel

UNSAFE, SAFE = "You idiot, come at 5.", "You person, come at 5."
USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def answering(text: str = UNSAFE, **fields: Any) -> ScriptedModel:
    return ScriptedModel(answers=[AIMessage(text, usage_metadata=USAGE, **fields)])


def astream(model: Any, value: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [chunk async for chunk in model.astream(value)]

    return asyncio.run(main())


def total(chunks: list[Any]) -> Any:
    first, *others = chunks
    return first + others if others else first


def test_both_directions_of_every_call(guard: Guard) -> None:
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda model: model.invoke(UNSAFE),
        lambda model: asyncio.run(model.ainvoke(UNSAFE)),
        lambda model: model.batch([UNSAFE])[0],
        lambda model: asyncio.run(model.abatch([UNSAFE]))[0],
        lambda model: total(list(model.stream(UNSAFE))),
        lambda model: total(astream(model, UNSAFE)),
    )
    for call in calls:
        inner = answering()
        done = call(guard.guard_model(inner))
        assert done.content == SAFE
        assert done.usage_metadata == USAGE
        assert done.response_metadata["finish_reason"] == "stop"
        assert inner.asked == [[HumanMessage(SAFE)]]


def test_directions_can_be_switched_off_or_have_their_own_policy(guard: Guard) -> None:
    inner = answering()
    assert guard.guard_model(inner, outputs=False).invoke(UNSAFE).content == UNSAFE
    assert guard.guard_model(inner, inputs=False).invoke(UNSAFE).content == SAFE
    policy = Policy(ladder=("block",), block_message="No.")
    assert guard.guard_model(inner, outputs=policy).invoke(UNSAFE).content == "No."
    assert total(list(guard.guard_model(inner, outputs=policy).stream("Hi."))).content == "No."
    assert [asked[0].content for asked in inner.asked] == [SAFE, UNSAFE, SAFE, "Hi."]
    assert total(list(guard.guard_model(inner, outputs=False).stream("Hi."))).content == UNSAFE


def test_instructions_and_earlier_answers_reach_the_model_as_they_are(guard: Guard) -> None:
    inner = answering("Hello.")
    said = [
        SystemMessage("No idiot."),
        HumanMessage(UNSAFE),
        AIMessage("idiot", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage(UNSAFE, tool_call_id="1"),
    ]
    guard.guard_model(inner).invoke(said)
    assert inner.asked[0] == [
        said[0],
        HumanMessage(SAFE),
        said[2],
        ToolMessage(SAFE, tool_call_id="1"),
    ]


def test_tools_go_to_the_model_and_calls_are_moderated(guard: Guard) -> None:
    def send(text: str) -> str:
        """Send a text."""
        return text

    call = {"name": "send", "args": {"text": UNSAFE}, "id": "c1"}
    inner = answering("", tool_calls=[call])
    bound = guard.guard_model(inner).bind_tools([send], tool_choice="any")
    for done in (bound.invoke("Hi."), total(list(bound.stream("Hi.")))):
        assert done.tool_calls == [{**call, "args": {"text": SAFE}, "type": "tool_call"}]
    assert inner.kwargs[0]["tools"][0]["function"]["name"] == "send"
    assert inner.kwargs[0]["tool_choice"] == "any"
    assert guard.guard_model(inner.bind_tools([send])).invoke("Hi.").tool_calls[0]["args"] == {
        "text": SAFE
    }


class Note(BaseModel):
    """A note."""

    text: str


def test_structured_output(guard: Guard) -> None:
    inner = answering("", tool_calls=[{"name": "Note", "args": {"text": UNSAFE}, "id": "c1"}])
    model = guard.guard_model(inner)
    assert model.with_structured_output(Note).invoke("Hi.") == Note(text=SAFE)
    raw = model.with_structured_output(Note, include_raw=True).invoke("Hi.")
    assert isinstance(raw, dict)
    assert raw["parsed"] == Note(text=SAFE)
    assert "idiot" not in str(raw)


def test_retries_and_fallbacks_around_and_within(blocking: Guard, guard: Guard) -> None:
    other: Runnable[Any, Any] = RunnableLambda(
        lambda _: AIMessage("Let us talk of something else.")
    )
    safe = blocking.guard_model(answering()).with_fallbacks([other])
    assert safe.invoke("Hi.").content == "Let us talk of something else."
    assert asyncio.run(safe.ainvoke("Hi.")).content == "Let us talk of something else."
    within = guard.guard_model(answering().with_retry().with_fallbacks([answering("Hello.")]))
    assert within.invoke("Hi.").content == SAFE


@pytest.mark.parametrize("stream", [False, True])
def test_blocked_is_raised_without_the_text(blocking: Guard, stream: bool) -> None:
    inner = answering()
    model = blocking.guard_model(inner)
    with pytest.raises(Blocked) as caught:
        list(model.stream("Hi.")) if stream else model.invoke("Hi.")
    assert "idiot" not in repr(caught.value)
    with pytest.raises(Blocked):
        list(model.stream(UNSAFE)) if stream else model.invoke(UNSAFE)
    assert len(inner.asked) == 1  # what cannot be asked safely is not asked


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.names: list[str] = []
        self.said: list[str] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.names.append("start")

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.names.append("end")
        self.said.append(response.generations[0][0].text)


def test_callbacks_act_once_and_see_what_was_released(guard: Guard) -> None:
    for on_inner in (False, True):
        recorder = Recorder()
        inner = ScriptedModel(answers=[AIMessage(UNSAFE)], callbacks=[recorder] * on_inner)
        config: Any = {} if on_inner else {"callbacks": [recorder]}
        model = guard.guard_model(inner)
        model.invoke("Hi.", config)
        list(model.stream("Hi.", config))
        assert recorder.names == ["start", "end"] * 2
        assert recorder.said == [SAFE] * 2
        assert "".join(recorder.tokens) == SAFE


class Telling(FakeListChatModel):
    """Tells of every token as it streams."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in super()._stream(*args, **kwargs):
            told = {"logprobs": {"content": [{"token": chunk.message.content}]}, "system": None}
            yield ChatGenerationChunk(message=chunk.message, generation_info=told)


def test_what_is_told_of_chunks_adds_up(guard: Guard) -> None:
    model = guard.guard_model(Telling(responses=[UNSAFE]), outputs=Policy(mode="observe"))
    (told,) = (
        chunk.response_metadata["logprobs"]["content"]
        for chunk in model.stream("Hi.")
        if "logprobs" in chunk.response_metadata
    )
    assert "".join(each["token"] for each in told) == UNSAFE


def test_every_text_is_moderated_once(guard: Guard, seen: list[Moderation]) -> None:
    guard.guard_model(answering()).invoke("Hi there.")
    list(guard.guard_model(answering()).stream("Hi there."))
    assert [result.original for result in seen] == ["Hi there.", UNSAFE] * 2


def test_the_cache_holds_what_was_released_under_its_policy(guard: Guard) -> None:
    cache = InMemoryCache()
    inner = ScriptedModel(answers=[AIMessage(UNSAFE)], cache=cache)
    model = guard.guard_model(inner)
    assert [model.invoke("Hi.").content for _ in range(2)] == [SAFE, SAFE]
    assert len(inner.asked) == 1
    assert inner.invoke("Hi.").content == UNSAFE
    assert guard.guard_model(inner, outputs=Policy(mode="observe")).invoke("Hi.").content == UNSAFE
    assert model.invoke("Hi.").content == SAFE
    assert len(inner.asked) == 3


def test_it_says_of_itself_what_the_model_says(guard: Guard) -> None:
    model = guard.guard_model(answering())
    assert model.model_name == "script"
    assert model._get_ls_params()["ls_model_name"] == "script"
    assert model._llm_type == "guarded-scripted"
    assert isinstance(model, GuardedChatModel)
    field = ConfigurableField(id="out")
    chosen = model.configurable_fields(outputs=field)
    assert chosen.invoke("Hi.", {"configurable": {"out": False}}).content == UNSAFE
    assert chosen.invoke("Hi.").content == SAFE


def test_models_that_do_not_stream_answer_whole(guard: Guard) -> None:
    inner = FakeMessagesListChatModel(responses=[AIMessage(UNSAFE, id="7")])
    (done,) = guard.guard_model(inner).stream("Hi.")
    assert (done.content, done.id) == (SAFE, "7")
    (done,) = astream(guard.guard_model(inner), "Hi.")
    assert done.content == SAFE
    whole = ScriptedModel(answers=[AIMessage(UNSAFE)], disable_streaming=True)
    (done,) = guard.guard_model(whole).stream("Hi.")
    assert done.content == SAFE


def test_models_of_langchain_core_stream_by_characters(guard: Guard) -> None:
    model = guard.guard_model(FakeListChatModel(responses=[UNSAFE]))
    assert total(list(model.stream("Hi."))).content == SAFE
    assert total(astream(model, "Hi.")).content == SAFE


class Closing(ScriptedModel):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        try:
            for n in range(1000):
                message = AIMessageChunk(content=f"Lunch is at {n}. ")
                yield ChatGenerationChunk(message=message)
        finally:
            self.answers.append(AIMessage("closed"))


def test_a_consumer_that_leaves_ends_the_model(guard: Guard) -> None:
    inner = Closing(answers=[])
    stream = guard.guard_model(inner).stream("Hi.")
    assert "Lunch" in str(next(chunk.content for chunk in stream if chunk.content))
    stream.close()  # type: ignore[attr-defined]
    assert [answer.content for answer in inner.answers] == ["closed"]


class Failing(ScriptedModel):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for text in ("Lunch is at noon. ", "Bring a chair. ", "You idiot, come"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        raise ConnectionError("gone")


def test_an_error_of_the_model_comes_after_what_was_verified(guard: Guard) -> None:
    out: list[str] = []
    stream = guard.guard_model(Failing(answers=[])).stream("Hi.")
    with pytest.raises(ConnectionError):
        out.extend(str(chunk.content) for chunk in stream)
    assert "".join(out) == "Lunch is at noon. Bring a chair. You person, come"


def test_a_block_at_the_end_comes_after_what_was_verified(torn: Guard) -> None:
    out: list[str] = []
    said = "You idiot there. But see that stupid man over there"
    stream = torn.guard_model(answering(said)).stream("Hi.")
    with pytest.raises(Blocked):
        out.extend(str(chunk.content) for chunk in stream)
    assert "".join(out).strip() == "You person there."


def test_what_is_no_chat_model_is_refused(guard: Guard) -> None:
    with pytest.raises(TypeError, match="RunnableLambda"):
        guard.guard_model(RunnableLambda(lambda value: value))


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_events_of_the_content_block_protocol_are_guarded(guard: Guard) -> None:
    call: Any = {"name": "send", "args": {"text": UNSAFE}, "id": "c1"}
    model = guard.guard_model(answering(UNSAFE, tool_calls=[call]))
    stream = model.stream_events("Hi.", version="v3")
    assert "idiot" not in str(list(stream))
    assert stream.output.text == SAFE
    assert stream.output.tool_calls[0]["args"] == {"text": SAFE}


def test_settings_that_the_installed_langchain_does_not_have_are_not_adopted(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_model, "ADOPTED", (*chat_model.ADOPTED, "of_a_later_version"))
    assert guard.guard_model(answering(tags=["a"])).invoke("Hi.").content == SAFE
