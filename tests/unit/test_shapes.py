"""Where text is found in values of other people's types, and how it is put back."""

from __future__ import annotations

import copy
import datetime
import enum
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, ConfigDict

from srllm_guard.errors import ConfigError, ShapeError
from srllm_guard.middleware.selectors import Known, Paths, place_of
from srllm_guard.middleware.selectors import Path as Expression
from srllm_guard.middleware.shapes import TRUSTED_ROLES, walk
from srllm_guard.structure.visiting import Visitor, Where, collected, replaced, shown

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
COMPLETION = ChatCompletion.model_validate(
    {
        "id": "an id",
        "object": "chat.completion",
        "created": 1,
        "model": "a model",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "one", "logprob": 0.0, "top_logprobs": []}]},
                "message": {"role": "assistant", "content": "one", "refusal": "two"},
            },
            {
                "index": 1,
                "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": None, "tool_calls": [CALL]},
            },
        ],
    }
)
RESPONSE = Response.model_validate(
    {
        "id": "an id",
        "object": "response",
        "created_at": 1.0,
        "model": "a model",
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "instructions": "instructions",
        "output": [
            {
                "id": "r",
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "one"}],
            },
            {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "two", "annotations": []},
                    {"type": "refusal", "refusal": "three"},
                ],
            },
            {
                "type": "function_call",
                "call_id": "c",
                "name": "f",
                "arguments": '{"a": "b"}',
            },
            {
                "id": "w",
                "type": "web_search_call",
                "status": "completed",
                "action": {"type": "search", "query": "a query"},
            },
        ],
    }
)


class Block(BaseModel):
    """As the SDK of Anthropic has them."""

    model_config = ConfigDict(extra="allow")
    type: str


def block(**fields: Any) -> Block:
    return Block.model_validate(fields)


class AnthropicMessage(BaseModel):
    id: str
    type: str = "message"
    role: str = "assistant"
    content: list[Block]
    model: str = "a model"


ANTHROPIC = AnthropicMessage(
    id="an id",
    content=[
        block(type="thinking", thinking="one", signature="xyz"),
        block(type="text", text="two"),
        block(type="tool_use", id="c", name="f", input={"a": "b"}),
        block(type="tool_result", content=[{"type": "text", "text": "three"}]),
        block(type="redacted_thinking", data="xyz"),
    ],
)


class Colour(enum.StrEnum):
    RED = "red"


class Pair(NamedTuple):
    question: str
    n: int


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    colour: Colour = Colour.RED
    pairs: list[Pair] = field(default_factory=list)
    length: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.text))


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")
    text: str
    when: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    answer: Any = None


MESSAGES: list[BaseMessage] = [
    SystemMessage("one"),
    HumanMessage("two", id="an id", name="a name"),
    AIMessage(
        [
            {"type": "text", "text": "three"},
            {"type": "image_url", "image_url": {"url": "u"}},
            "four",
        ],
        tool_calls=[{"name": "f", "args": {"a": "b"}, "id": "c"}],
        additional_kwargs={"refusal": "five", "tool_calls": [CALL]},
        usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
    ),
    ToolMessage("six", tool_call_id="c", artifact={"any": "thing"}),
    ChatMessage(role="critic", content="seven"),
]

VALUES: list[tuple[Any, list[str], int]] = [
    ("one", ["one"], 0),
    (["one", ("two", 3, None), ["three"]], ["one", "two", "three"], 0),
    ({"role": "user", "content": "one"}, ["one"], 0),
    (
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "one"}, {"type": "input_image"}],
        },
        ["one"],
        0,
    ),
    ({"role": "assistant", "content": None, "reasoning_content": "one"}, ["one"], 0),
    (
        {"role": "assistant", "content": "one", "audio": {"id": "x"}, "function_call": None},
        ["one"],
        0,
    ),
    ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, [], 1),
    ([{"type": "text", "text": "one"}, {"type": "image", "source": {}}], ["one"], 0),
    ([{"type": "function_call_output", "call_id": "c", "output": "one"}], ["one"], 0),
    ([{"type": "function_call", "name": "f", "arguments": "{}"}, CALL], [], 2),
    ({"choices": [{"text": "one", "index": 0}, {"delta": {"content": "two"}}]}, ["one", "two"], 0),
    (COMPLETION, ["one", "two"], 1),
    (COMPLETION.model_dump(), ["one", "two"], 1),
    (RESPONSE, ["one", "two", "three", "a query"], 1),
    (RESPONSE.model_dump(), ["one", "two", "three", "a query"], 1),
    (ANTHROPIC, ["one", "two", "three"], 1),
    (ANTHROPIC.model_dump(), ["one", "two", "three"], 1),
    (SimpleNamespace(role="assistant", content=[block(type="text", text="one")]), ["one"], 0),
    (MESSAGES, ["one", "two", "three", "four", "five", "six", "seven"], 2),
    (Answer("one", pairs=[Pair("two", 3)]), ["one", "two"], 0),
    (Pair("one", 3), ["one"], 0),
    (Model(text="one", answer=Answer("two"), more="three"), ["one", "two", "three"], 0),  # type: ignore[call-arg]
    (
        [
            3,
            2.5,
            True,
            None,
            b"bytes",
            Colour.RED,
            uuid.UUID(int=0),
            datetime.date(2026, 1, 1),
            len,
            int,
        ],
        [],
        0,
    ),
]


def parts_of(value: Any, *, trusted: Collection[str] = frozenset()) -> tuple[list[str], list[Any]]:
    """The texts and the tool calls in a value."""
    return collected(lambda visitor: walk(value, visitor), trusted)


def with_parts(value: Any, texts: Sequence[str], calls: Sequence[Any]) -> Any:
    """The value with other texts and tool calls in their place."""
    return replaced(lambda visitor: walk(value, visitor), texts, calls)


def texts_of(value: Any, *, trusted: Collection[str] = frozenset()) -> list[str]:
    return parts_of(value, trusted=trusted)[0]


def with_texts(value: Any, texts: Sequence[str]) -> Any:
    return with_parts(value, texts, parts_of(value)[1])


def ids(value: Any) -> str:
    return type(value[0]).__name__


@pytest.mark.parametrize("case", VALUES, ids=ids)
def test_texts_and_calls_are_found(case: tuple[Any, list[str], int]) -> None:
    value, texts, calls = case
    found = parts_of(value)
    assert (found[0], len(found[1])) == (texts, calls)
    assert texts_of(value) == texts


@pytest.mark.parametrize("case", VALUES, ids=ids)
def test_texts_are_put_back_in_a_copy(case: tuple[Any, list[str], int]) -> None:
    value, texts, _ = case
    before = copy.deepcopy(value)
    new = [text.upper() for text in texts]
    changed = with_texts(value, new)
    assert type(changed) is type(value)
    assert texts_of(changed) == new
    assert value == before
    assert with_texts(value, texts_of(value)) is value
    again = with_texts(changed, texts)
    if value is not COMPLETION and not isinstance(value, dict):
        assert again == value  # nothing else has changed


def test_only_the_way_to_a_text_is_copied() -> None:
    changed = with_texts(MESSAGES, ["1", *texts_of(MESSAGES)[1:]])
    assert changed[0].content == "1"
    assert all(new is old for new, old in zip(changed[1:], MESSAGES[1:], strict=True))
    answer = Answer("one", pairs=[Pair("two", 3)])
    changed = with_texts(answer, ["longer", "two"])
    assert changed.pairs is answer.pairs
    assert changed.length == 6  # a dataclass is made anew, not patched


def test_tool_calls_are_put_back() -> None:
    other = {**CALL, "id": "other"}
    changed = with_parts(COMPLETION, ["one", "two"], [other])
    assert changed.choices[1].message.tool_calls == [other]
    assert changed.choices[0] is COMPLETION.choices[0]


def test_probabilities_of_the_old_tokens_go_with_them() -> None:
    changed = with_texts(COMPLETION, ["1", "two"])
    assert changed.choices[0].logprobs is None
    assert COMPLETION.choices[0].logprobs is not None
    assert with_texts(COMPLETION, ["one", "two"]).choices[0].logprobs is not None


def test_what_the_application_and_the_model_said_is_trusted_on_the_way_in() -> None:
    assert texts_of(MESSAGES, trusted=TRUSTED_ROLES) == ["two", "six", "seven"]
    prompt = ChatPromptValue(messages=MESSAGES)
    assert texts_of(prompt, trusted=TRUSTED_ROLES)[:3] == ["two", "six", "seven"]
    items = [
        {"role": "developer", "content": "no"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "no"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "yes"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "yes"}]},
    ]
    assert parts_of(items, trusted=TRUSTED_ROLES) == (["yes", "yes"], [])


@pytest.mark.parametrize(
    "value",
    [
        {"answer": "a"},
        MappingProxyType({"answer": "a"}),
        {"role": "user", "parts": [{"text": "a"}]},
        {"type": "answer", "note": "a"},
        {"role": "user", "content": {"a": "b"}},
        {"role": "user", "content": 3},
        b"bytes",
        {"a"},
        object(),
        iter(["a"]),
        Path("a"),
        [["a", {"b": "c"}]],
    ],
    ids=lambda value: type(value).__name__,
)
def test_unknown_shapes_are_refused_by_their_type(value: Any) -> None:
    with pytest.raises(ShapeError, match="is not known"):
        texts_of(value)


def test_a_refusal_says_where() -> None:
    with pytest.raises(ShapeError, match=r"type dict at \[0\]\.more\.answer is not known"):
        texts_of([Model(text="a", more=SimpleNamespaceModel(answer={"b": "c"}))])  # type: ignore[call-arg]


class SimpleNamespaceModel(BaseModel):
    answer: dict[str, str]


def test_as_many_texts_go_back_as_came_out() -> None:
    for texts in ([], ["one", "two"]):
        with pytest.raises(ValueError, match="than the value holds"):
            with_texts(["one"], texts)


def test_choices_and_blocks_are_named_by_their_own_index() -> None:
    seen: list[Where] = []

    def visit(text: str, where: Where) -> str:
        seen.append(where)
        return text

    walk(
        {"choices": [{"index": 2, "delta": {"content": "a"}}]}, Visitor(visit, lambda call, _: call)
    )
    assert seen == [("choices", 2, "delta", "content")]
    assert shown(seen[0]) == "choices[2].delta.content"


STRINGS = st.text(max_size=5)
TREES = st.recursive(
    STRINGS | st.none() | st.integers() | st.builds(Pair, STRINGS, st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(lambda text: {"role": "user", "content": text}, STRINGS)
        | st.builds(lambda text: [{"type": "text", "text": text}], STRINGS)
    ),
    max_leaves=12,
)


@given(TREES, st.randoms())
def test_any_nesting_takes_its_texts_back(value: Any, random: Any) -> None:
    texts = texts_of(value)
    assert with_texts(value, texts) is value
    new = [text + random.choice(["", "x"]) for text in texts]
    assert texts_of(with_texts(value, new)) == new
    assert with_texts(with_texts(value, new), texts) == value


# Selectors


def at(selector: Any, value: Any, trusted: frozenset[str] = frozenset()) -> list[str]:
    return collected(lambda visitor: place_of(selector).walk(value, visitor), trusted)[0]


def put(selector: Any, value: Any, texts: list[str]) -> Any:
    return replaced(lambda visitor: place_of(selector).walk(value, visitor), texts, [])


NESTED: Mapping[str, Any] = {
    "choices": [
        {"message": {"content": "one"}},
        {"message": {"content": [{"type": "text", "text": "two"}, {"type": "image"}]}},
        {"message": None},
        {"message": {"content": None}},
    ],
    "a-b": Answer("three", pairs=[Pair("four", 1), Pair("five", 2)]),
    "text": "six",
}


@pytest.mark.parametrize(
    ("selector", "texts"),
    [
        ("choices[*].message.content", ["one", "two"]),
        ("choices[0].message.content", ["one"]),
        ("choices[-1].message.content", []),
        ("a-b.text", ["three"]),
        ("a-b.pairs[*].question", ["four", "five"]),
        ("a-b.pairs[-2][0]", ["four"]),
        ("a-b", ["three", "four", "five"]),
        ("text", ["six"]),
        (["text", "a-b.text"], ["six", "three"]),
        ("nothing?", []),
        ("nothing?.at.all[3]", []),
        ("choices[*].message.nothing?", []),
    ],
)
def test_paths_lead_to_texts(selector: Any, texts: list[str]) -> None:
    assert at(selector, NESTED) == texts
    assert put(selector, NESTED, texts) is NESTED
    changed = put(selector, NESTED, [text.upper() for text in texts])
    assert at(selector, changed) == [text.upper() for text in texts]
    assert put(selector, changed, texts) == NESTED


def test_a_path_may_begin_with_a_bracket() -> None:
    assert at("[1].text", [0, {"text": "one"}]) == ["one"]
    assert at("[*][*]", (["one"], ["two"])) == ["one", "two"]


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("answer", "there is no 'answer' in the dict."),
        ("choices[*].message.contents", r"no 'contents' in the dict at choices\[0\]\.message"),
        ("choices[4]", "no item 4 in the list at choices"),
        ("choices[-5]", "no item -5 in the list at choices"),
        ("text[0]", "no item in the str at text"),
        ("text[*]", "no item in the str at text"),
        ("a-b.text.more", "no 'more' in the str at a-b.text"),
        ("choices[0]", r"type dict at choices\[0\] is not known"),
    ],
)
def test_a_path_that_leads_nowhere(selector: str, says: str) -> None:
    with pytest.raises(ShapeError, match=says) as refused:
        at(selector, NESTED)
    assert refused.value.hint
    assert "one" not in str(refused.value)


@pytest.mark.parametrize(
    ("expression", "where"),
    [
        *(("", 0), (".a", 0), ("a.", 1), ("a..b", 1), ("a[x]", 1), ("a[", 1), ("a]", 1)),
        *(("a b", 1), ("a[0]b", 4), ("a.?", 1), ("a??", 2), ("a[1.5]", 1), ("a[**]", 1)),
    ],
)
def test_paths_that_make_no_sense(expression: str, where: int) -> None:
    with pytest.raises(ConfigError, match=f"makes no sense at character {where}"):
        place_of(expression)


def test_places_of_selectors() -> None:
    assert place_of(None) == Known()
    assert place_of("a.b") == Expression.parse("a.b")
    assert isinstance(place_of(("a", "b")), Paths)
    assert Expression.parse("a.b").root == "a"
    assert Expression.parse("[0].b").root is None
