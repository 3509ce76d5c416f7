"""Fields are read as people read them, and what is put back is seen by every way to read it."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from huggingface_hub import ChatCompletionOutput, ChatCompletionStreamOutput

from srllm_guard import Guard
from srllm_guard.errors import ShapeError
from srllm_guard.middleware.shapes import walk
from srllm_guard.structure.visiting import collected

UNSAFE, SAFE = "You idiot, hi", "You person, hi"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "An idiot"}'}}


class Attributes(dict[str, Any]):
    """A dict whose items are its attributes, as many write it."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


@dataclass(frozen=True)
class Frozen(Mapping[str, Any]):
    role: str
    content: str

    def __getitem__(self, name: str) -> Any:
        if name not in ("role", "content"):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(("role", "content"))

    def __len__(self) -> int:
        return 2


def completion(text: str, arguments: str = "{}", note: str = "a_note") -> Any:
    function = {"name": "f", "arguments": arguments}
    message = {
        "role": "assistant",
        "content": text,
        "tool_calls": [{**CALL, "function": function}],
        "note": note,
    }
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return ChatCompletionOutput.parse_obj(
        {"id": "i", "model": "m", "created": 1, "system_fingerprint": "s", "choices": [choice]}
    )


def test_dataclasses_that_are_dicts(byte_guard: Guard) -> None:
    made = completion(UNSAFE, '{"a": "An idiot"}', UNSAFE)
    found = byte_guard.wrap(lambda: made)()
    message = found.choices[0].message
    assert (message.content, message.note) == (SAFE, SAFE)
    assert message.tool_calls[0].function.arguments == '{"a": "An person"}'
    read = found["choices"][0]["message"]
    assert (read["content"], read["note"]) == (SAFE, SAFE)
    assert read["tool_calls"][0]["function"]["arguments"] == '{"a": "An person"}'
    assert type(found) is ChatCompletionOutput
    assert type(message) is type(made.choices[0].message)
    assert made == completion(UNSAFE, '{"a": "An idiot"}', UNSAFE)
    assert made["choices"][0]["message"]["content"] == UNSAFE
    safe = completion(SAFE)
    assert byte_guard.wrap(lambda: safe)() is safe


def test_what_people_read_is_what_is_judged() -> None:
    made = completion("one two")
    made.choices[0].message.content = "three four"
    assert "three four" in collected(lambda visitor: walk(made, visitor))[0]


def chunk(text: str | None, finish: str | None = None) -> Any:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return ChatCompletionStreamOutput.parse_obj(
        {"id": "i", "model": "m", "created": 1, "system_fingerprint": "s", "choices": [choice]}
    )


def test_streams_of_dataclasses_that_are_dicts(byte_guard: Guard) -> None:
    chunks = [chunk("Hello. You id"), chunk("iot, hi."), chunk("", "stop")]
    before = copy.deepcopy(chunks)
    found = list(byte_guard.wrap(lambda: iter(chunks))())
    assert {type(each) for each in found} == {ChatCompletionStreamOutput}
    texts = [each.choices[0].delta.content or "" for each in found]
    assert "".join(texts) == "Hello. You person, hi."
    assert [each["choices"][0]["delta"]["content"] or "" for each in found] == texts
    assert found[-1].choices[0].finish_reason == "stop"
    assert chunks == before


def test_dicts_whose_items_are_attributes(byte_guard: Guard) -> None:
    message: Any = Attributes(role="user", content=UNSAFE)
    found = byte_guard.wrap(lambda: message)()
    assert (found.content, found["content"]) == (SAFE, SAFE)
    assert (type(found), message.content) == (Attributes, UNSAFE)


def test_such_dicts_cannot_be_made_anew_in_a_stream(byte_guard: Guard) -> None:
    item: Any = Attributes(choices=[{"index": 0, "delta": {"content": UNSAFE}}])
    with pytest.raises(ShapeError, match="type Attributes"):
        list(byte_guard.wrap(lambda: iter([item]))())
    wrapped: Any = byte_guard.wrap(lambda: iter([item]), output_text="choices[*].delta.content")
    found = list(wrapped())
    assert "".join(each.choices[0]["delta"]["content"] for each in found) == SAFE
    ordered = OrderedDict(item)
    (*_, last) = byte_guard.wrap(lambda: iter([ordered]))()
    assert last["choices"][0]["delta"]["content"] == SAFE


def test_mappings_of_other_kinds(byte_guard: Guard) -> None:
    wrapped: Any = byte_guard.wrap(lambda value: value)
    frozen = wrapped(Frozen("user", UNSAFE))
    assert frozen == Frozen("user", SAFE)
    user = wrapped(UserDict({"role": "user", "content": UNSAFE, "data": UNSAFE}))
    assert user == UserDict({"role": "user", "content": SAFE, "data": SAFE})
