from __future__ import annotations

import asyncio
import datetime
import enum
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from pydantic import BaseModel, ConfigDict

from srllm_guard import Guard
from srllm_guard.errors import ShapeError
from srllm_guard.structure.tool_calls import _written
from tests.byte_engine import ByteEngine
from tests.checks import check, guard

ARGUMENTS = {"to": "idiot@x.io", "text": "You idiot, hi", "n": [1, 2.5, None], "mode": "idiot"}
RELEASED = ARGUMENTS | {"text": "You person, hi"}
WHEN = datetime.date(2026, 1, 1)


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


class Letter(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str
    mode: str = "idiot"


class Line(NamedTuple):
    text: str
    n: int


@dataclass(frozen=True)
class Form:
    lines: list[Line]
    letter: Letter | None = None


class Tone(enum.StrEnum):
    RUDE = "You idiot"


def test_arguments_that_are_no_json_are_judged(byte_guard: Guard) -> None:
    form = Form([Line("so lazy", 1), Line("fine text", 2)], Letter(text="You idiot", more="a b"))  # type: ignore[call-arg]
    letter = Letter(text="A fine day")
    args = {"form": form, "letter": letter, "tone": Tone.RUDE, "when": WHEN, "raw": b"You idiot"}
    [done] = byte_guard.moderate_tool_calls([{"name": "say", "args": args}])
    new = done.call["args"]
    assert new["form"] == Form(
        [Line("so person", 1), Line("fine text", 2)],
        Letter(text="You person", more="a b"),  # type: ignore[call-arg]
    )
    assert [type(each) for each in new["form"].lines] == [Line, Line]
    assert new["form"].lines[1] is form.lines[1]
    assert new["letter"] is args["letter"]
    assert (new["tone"], new["when"], new["raw"]) == (Tone.RUDE, WHEN, b"You idiot")
    assert form.lines[0].text == "so lazy"
    assert json.loads(done.moderation.original) == {
        "form": {
            "lines": [{"text": "so lazy", "n": 1}, {"text": "fine text", "n": 2}],
            "letter": {"text": "You idiot", "mode": "idiot", "more": "a b"},
        },
        "letter": {"text": "A fine day", "mode": "idiot"},
        "tone": None,
        "when": None,
        "raw": None,
    }
    check(done.moderation)


def test_keys_may_be_of_any_type_and_written_alike(byte_guard: Guard) -> None:
    args = {1: "You idiot", "1": "so lazy", (1, 2): {None: "an idiot"}, "b": 1}
    [done] = byte_guard.moderate_tool_calls([{"args": args}])
    released = {1: "You person", "1": "so person", (1, 2): {None: "an person"}, "b": 1}
    assert done.call["args"] == released
    check(done.moderation)


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ({"tags": {"You idiot"}}, "type set at args.tags"),
        ({"form": [Form([]), {"raw": {"You idiot"}}]}, r"type set at args.form\[1\].raw"),
        ({"You idiot": object()}, r"type object at args\[0\]"),
    ],
)
def test_arguments_in_which_no_text_is_known(
    byte_guard: Guard, args: dict[str, Any], where: str
) -> None:
    with pytest.raises(ShapeError, match=where) as refused:
        byte_guard.moderate_tool_calls([{"name": "say", "args": args}])
    assert "idiot" not in str(refused.value)


def test_input_of_custom_tools(byte_guard: Guard) -> None:
    chat = {"id": "1", "type": "custom", "custom": {"name": "idiot", "input": "You idiot"}}
    item = {"type": "custom_tool_call", "call_id": "1", "name": "idiot", "input": "You idiot"}
    done = byte_guard.moderate_tool_calls([chat, item])
    assert [each.call for each in done] == [
        {**chat, "custom": {"name": "idiot", "input": "You person"}},
        {**item, "input": "You person"},
    ]


PLAIN = st.recursive(
    st.text(max_size=8) | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=3))
def test_plain_arguments_are_written_as_json_writes_them(args: dict[str, Any]) -> None:
    assert _written(args, ()) == json.dumps(args, ensure_ascii=False)


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
