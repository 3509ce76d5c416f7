from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from srllm_guard import Guard
from tests.byte_engine import ByteEngine
from tests.checks import check, guard

ARGUMENTS = {"to": "idiot@x.io", "text": "You idiot, hi", "n": [1, 2.5, None], "mode": "idiot"}
RELEASED = ARGUMENTS | {"text": "You person, hi"}


def openai(arguments: str) -> dict[str, Any]:
    return {
        "id": "idiot_1",
        "type": "function",
        "function": {"name": "say_idiot", "arguments": arguments},
    }


def test_openai_arguments_are_a_string(byte_guard: Guard) -> None:
    call = openai(json.dumps(ARGUMENTS))
    [done] = byte_guard.moderate_tool_calls([call])
    assert done.call == openai(json.dumps(RELEASED))
    assert call == openai(json.dumps(ARGUMENTS))
    assert done.moderation.action == "rewrite"
    check(done.moderation)


def test_langchain_arguments_are_a_dict(byte_guard: Guard) -> None:
    message = AIMessage("", tool_calls=[{"name": "idiot", "args": ARGUMENTS, "id": "idiot"}])
    [done] = byte_guard.moderate_tool_calls(message.tool_calls)
    assert done.call == {"name": "idiot", "args": RELEASED, "id": "idiot", "type": "tool_call"}
    assert done.call["args"]["n"] == [1, 2.5, None]


def test_anthropic_and_responses_calls(byte_guard: Guard) -> None:
    use = {"type": "tool_use", "id": "1", "name": "say", "input": ARGUMENTS}
    call = {"type": "function_call", "call_id": "1", "arguments": json.dumps(ARGUMENTS)}
    done = byte_guard.moderate_tool_calls([use, call])
    assert [each.call for each in done] == [
        use | {"input": RELEASED},
        call | {"arguments": json.dumps(RELEASED)},
    ]


class Function(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    function: Function


@dataclass
class Plain:
    name: str
    args: dict[str, Any]


def test_objects_keep_their_type(byte_guard: Guard) -> None:
    call = ToolCall(id="1", function=Function(name="say", arguments='{"t": "You idiot"}'))
    plain = Plain("say", {"t": ("You idiot", object), "u": "fine text"})
    first, second = byte_guard.moderate_tool_calls([call, plain])
    assert first.call == ToolCall(
        id="1", function=Function(name="say", arguments='{"t": "You person"}')
    )
    assert call.function.arguments == '{"t": "You idiot"}'
    assert second.call == Plain("say", {"t": ("You person", object), "u": "fine text"})


def test_arguments_in_any_mapping_are_judged(byte_guard: Guard) -> None:
    alone = {"name": "say", "args": MappingProxyType({"t": "You idiot"})}
    within = {"name": "say", "args": {"a": MappingProxyType({"t": "so lazy", "n": 1}), "b": "Hi"}}
    beside = {"name": "say", "args": {"a": MappingProxyType({"n": object}), "b": "You idiot"}}
    keyed = {"name": "say", "args": MappingProxyType({"t": MappingProxyType({(1, 2): "so lazy"})})}
    done = byte_guard.moderate_tool_calls([alone, within, beside, keyed])
    assert [each.call["args"] for each in done] == [
        {"t": "You person"},
        {"a": {"t": "so person", "n": 1}, "b": "Hi"},
        {"a": {"n": object}, "b": "You person"},
        {"t": {(1, 2): "so person"}},
    ]


def test_a_safe_call_is_the_same_object(byte_guard: Guard) -> None:
    calls = [openai('{"text": "Hello there"}'), {"name": "x", "args": {}, "id": None}]
    done = byte_guard.moderate_tool_calls(calls)
    assert all(each.call is call for each, call in zip(done, calls, strict=True))
    assert [each.moderation.action for each in done] == ["pass", "pass"]
    assert byte_guard.moderate_tool_calls([]) == []


def test_broken_json_is_text(byte_guard: Guard) -> None:
    [done] = byte_guard.moderate_tool_calls([openai('{"text": "You idiot')])
    assert done.call["function"]["arguments"] == '{"text": "You person'


def test_a_withheld_argument_says_so() -> None:
    [done] = guard(ByteEngine(), ladder=("block",)).moderate_tool_calls(
        [openai(json.dumps(ARGUMENTS))]
    )
    assert done.moderation.action == "block"
    arguments = json.loads(done.call["function"]["arguments"])
    assert arguments["text"].startswith("[This text was withheld")
    assert {**arguments, "text": ""} == {**ARGUMENTS, "text": ""}


def test_what_is_no_tool_call(byte_guard: Guard) -> None:
    with pytest.raises(TypeError, match="got int"):
        byte_guard.moderate_tool_calls([5])


def test_the_async_twin(byte_guard: Guard) -> None:
    calls = [openai(json.dumps(ARGUMENTS))]
    assert asyncio.run(byte_guard.amoderate_tool_calls(calls)) == byte_guard.moderate_tool_calls(
        calls
    )
