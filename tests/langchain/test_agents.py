"""An agent's history, its streams and its tools hold what was released."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from srllm_guard import Blocked, Guard, Policy
from srllm_guard.errors import ConfigError
from srllm_guard.middleware.langchain import GuardMiddleware
from srllm_guard.middleware.langchain.tool_events import ToolEvents
from srllm_guard.results import Moderation
from tests.langchain.scripted import ScriptedModel

UNSAFE = ("idiot", "stupid", "lazy", "trash")
beta = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def look(city: str) -> str:
    """Look a city up."""
    return f"The idiot of {city} says hello."


def script() -> ScriptedModel:
    call = {"name": "look", "args": {"city": "Stupid old town"}, "id": "c1"}
    return ScriptedModel(
        answers=[
            AIMessage("Let me see, you lazy man. One moment.", tool_calls=[call]),
            AIMessage("It is trash, they say. Bye now."),
        ]
    )


def agent(guard: Guard, model: Any = None, **options: Any) -> Any:
    middleware = GuardMiddleware(guard, tools=True)
    return create_agent(model or script(), [look], middleware=[middleware], **options)


def asked(text: str = "Hello, you idiot.") -> Any:
    return {"messages": [HumanMessage(text, id="h1")]}


def test_history_holds_what_was_released(guard: Guard) -> None:
    model = script()
    runs: tuple[Callable[[Any], Any], ...] = (
        lambda agent: agent.invoke(asked()),
        lambda agent: asyncio.run(agent.ainvoke(asked())),
    )
    for run in runs:
        messages = run(agent(guard, model))["messages"]
        assert [type(each) for each in messages] == [
            HumanMessage,
            AIMessage,
            ToolMessage,
            AIMessage,
        ]
        assert (messages[0].id, messages[0].content) == ("h1", "Hello, you person.")
        assert messages[1].content == "Let me see, you person man. One moment."
        assert messages[1].tool_calls[0]["args"] == {"city": "person old town"}
        assert messages[2].content == "The person of person old town says hello."
        assert messages[3].content == "It is person, they say. Bye now."
    assert not any(word in str(model.asked) for word in UNSAFE)


def test_nothing_is_moderated_twice(guard: Guard, seen: list[Moderation]) -> None:
    running = agent(guard, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    running.invoke(asked(), thread)
    assert len(seen) == 5  # question, answer, arguments, what the tool returned, answer
    running.invoke({"messages": [HumanMessage("And now, you idiot?", id="h2")]}, thread)
    assert len(seen) == 10
    # The same id with other words is another text.
    done = running.invoke({"messages": [HumanMessage("Well, idiot?", id="h2")]}, thread)
    assert "idiot" not in str(done["messages"])


def test_streamed_tokens_are_guarded(guard: Guard, seen: list[Moderation]) -> None:
    async def astream() -> list[Any]:
        stream = agent(guard).astream(asked(), stream_mode=["messages", "updates"])
        return [each async for each in stream]

    sync = list(agent(guard).stream(asked(), stream_mode=["messages", "updates"]))
    assert len(seen) == 5  # streamed answers are not moderated again
    for events in (sync, asyncio.run(astream())):
        assert not any(word in str(events).lower() for word in UNSAFE)
        chunks = [data[0] for mode, data in events if mode == "messages"]
        said = [each for each in chunks if isinstance(each, AIMessageChunk)]
        ids = list(dict.fromkeys(each.id for each in said))
        assert ["".join(str(c.content) for c in said if c.id == id_) for id_ in ids] == [
            "Let me see, you person man. One moment.",
            "It is person, they say. Bye now.",
        ]


@beta
def test_the_event_protocol_is_guarded_tools_included(guard: Guard) -> None:
    def talk(city: str, runtime: ToolRuntime) -> str:
        """Talk of a city."""
        for piece in ("The idiot of ", "this town. ", "He says hello."):
            runtime.emit_output_delta(piece)
        return "The idiot of this town. He says hello."

    def model() -> ScriptedModel:
        call = {"name": "talk", "args": {"city": "Rome"}, "id": "c1"}
        return ScriptedModel(answers=[AIMessage("", tool_calls=[call]), AIMessage("Bye, idiot.")])

    def made() -> Any:
        return create_agent(model(), [talk], middleware=[GuardMiddleware(guard, tools=True)])

    async def arun() -> list[Any]:
        run = await made().astream_events(asked("Hello."), version="v3")
        return [event async for event in run]

    for events in (list(made().stream_events(asked("Hello."), version="v3")), asyncio.run(arun())):
        assert not any(word in str(events) for word in UNSAFE)
        tools = [event["params"]["data"] for event in events if event["method"] == "tools"]
        assert tools[0]["event"] == "tool-started"
        assert tools[-1]["event"] == "tool-finished"
        assert tools[-1]["output"].content == "The person of this town. He says hello."


def test_directions_are_independent(guard: Guard) -> None:
    middleware = GuardMiddleware(guard, inputs=False, outputs=False, tools=False)
    running = create_agent(script(), [look], middleware=[middleware])
    assert running.invoke(asked())["messages"][0].content == "Hello, you idiot."
    assert "lazy" in str(asyncio.run(running.ainvoke(asked())))
    policy = Policy(ladder=("block",), block_message="Withheld.")
    middleware = GuardMiddleware(guard, inputs=policy, outputs=True)
    done = create_agent(script(), [look], middleware=[middleware]).invoke(asked())["messages"]
    assert done[0].content == "Withheld."
    assert done[2].content == "The idiot of person old town says hello."


def test_blocked_ends_the_run(blocking: Guard) -> None:
    running = create_agent(script(), [look], middleware=[GuardMiddleware(blocking)])
    with pytest.raises(Blocked):
        running.invoke(asked())
    with pytest.raises(Blocked):
        running.invoke(asked("Hello."))


def test_commands_of_tools_are_moderated(guard: Guard) -> None:
    def jump(city: str, runtime: ToolRuntime) -> Command[Any]:
        """Jump to a city."""
        message = ToolMessage("You idiot, no.", tool_call_id=runtime.tool_call_id)
        return Command(update={"messages": [message]})

    call = {"name": "jump", "args": {"city": "Rome"}, "id": "c1"}
    model = ScriptedModel(answers=[AIMessage("", tool_calls=[call]), AIMessage("Bye.")])
    middleware = GuardMiddleware(guard, tools=True)
    done = create_agent(model, [jump], middleware=[middleware]).invoke(asked())
    assert done["messages"][2].content == "You person, no."


class Found(NamedTuple):
    place: str
    note: str


def test_what_tools_stream_is_moderated_in_commands_and_tuples(guard: Guard) -> None:
    def streamed(output: Any) -> Any:
        data = {"event": "tool-finished", "tool_call_id": "c1", "output": output}
        event: Any = {"method": "tools", "params": {"data": data}}
        assert ToolEvents(guard=guard).process(event)
        return data["output"]

    message = ToolMessage("You idiot there.", tool_call_id="c1")
    command = streamed(Command(update={"messages": [message], "count": 3}, goto="idiot"))
    assert command.update["messages"][0].content == "You person there."
    assert (command.update["count"], command.goto) == (3, "idiot")
    assert streamed([Found("Rome", "An idiot.")]) == [Found("Rome", "An person.")]
    assert streamed((1, "An idiot.")) == (1, "An person.")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ('{"a": "fine"}', '{"a": "You stupid idiot", "a": "fine"}'),
        ("[" * 100_000, "You idiot."),
        ('{"a": ' * 100_000, "[" * 100_000 + ' "You idiot."'),
    ],
)
def test_json_that_says_more_than_it_holds_is_moderated(
    guard: Guard, first: str, then: str
) -> None:
    running = create_agent(
        ScriptedModel(answers=[AIMessage("Bye.")]),
        [],
        middleware=[GuardMiddleware(guard)],
        checkpointer=InMemorySaver(),
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    running.invoke(asked(first), thread)
    done = running.invoke({"messages": [HumanMessage(then, id="h2")]}, thread)
    assert not any(word in str(done["messages"]) for word in UNSAFE)


class Note(BaseModel):
    """A note."""

    text: str


def noting() -> ScriptedModel:
    call = {"name": "Note", "args": {"text": "You idiot, come."}, "id": "c1"}
    return ScriptedModel(answers=[AIMessage("", tool_calls=[call])])


def test_structured_responses_are_guarded(guard: Guard) -> None:
    running = create_agent(
        noting(), [], middleware=[GuardMiddleware(guard)], response_format=ToolStrategy(Note)
    )
    done = running.invoke(asked())
    assert done["structured_response"] == Note(text="You person, come.")
    assert "idiot" not in str(done)


def rude() -> ScriptedModel:
    return ScriptedModel(answers=[AIMessage("You stupid man.")])


def test_middleware_behind_cannot_slip_anything_into_the_history(guard: Guard) -> None:
    @wrap_model_call
    def exchange(request: Any, handler: Any) -> Any:
        return handler(request.override(model=rude()))

    @wrap_model_call
    def outside(request: Any, handler: Any) -> Any:
        handler(request)
        return AIMessage("You stupid man.", id="o1")

    lists: list[list[Any]] = [
        [GuardMiddleware(guard), exchange],
        [outside, GuardMiddleware(guard)],
    ]
    for middleware in lists:
        done = create_agent(rude(), [], middleware=middleware).invoke(asked())
        assert not any(word in str(done["messages"]).lower() for word in UNSAFE)

    @wrap_model_call
    def structure(request: Any, handler: Any) -> Any:
        return handler(request.override(model=noting()))

    running = create_agent(
        noting(),
        [],
        middleware=[GuardMiddleware(guard), structure],
        response_format=ToolStrategy(Note),
    )
    with pytest.raises(ConfigError, match="last in the list"):
        running.invoke(asked())
