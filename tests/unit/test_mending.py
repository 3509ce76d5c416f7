"""What hangs on a text goes or moves with it: probabilities of tokens, places of annotations."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from srllm_guard import Guard
from srllm_guard.middleware.annotations import differences, moved
from tests.checks import guard

TEXT = "See the bus. You idiot, take the tram."
RELEASED = "See the bus. You person, take the tram."
TOKENS = [{"token": "idiot", "bytes": [105], "logprob": -0.1, "top_logprobs": []}]


def cited(words: str, text: str = TEXT) -> dict[str, Any]:
    """An annotation of these words in a text."""
    start = text.index(words)
    return {
        "type": "url_citation",
        "start_index": start,
        "end_index": start + len(words),
        "title": "a title",
        "url": "http://x.io",
    }


WITHOUT_PLACE = {"type": "file_citation", "file_id": "f", "filename": "f.txt", "index": 3}
ANNOTATIONS = [cited("the bus"), cited("idiot"), cited("You idiot,"), cited("the tram")]
MOVED = [cited("the bus"), cited("the tram", RELEASED)]


def response(text: str) -> Response:
    part = {
        "type": "output_text",
        "text": text,
        "annotations": [*ANNOTATIONS, WITHOUT_PLACE],
        "logprobs": TOKENS,
    }
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
    return Response.model_validate(
        {
            "id": "r",
            "object": "response",
            "created_at": 1.0,
            "model": "m",
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "output": [{**message, "content": [part]}],
        }
    )


def places(annotations: Any) -> list[tuple[int, int]]:
    found = [each if isinstance(each, dict) else each.model_dump() for each in annotations]
    found = [each.get("url_citation") or each for each in found]
    return [(each["start_index"], each["end_index"]) for each in found if "start_index" in each]


@pytest.mark.parametrize("as_dict", [False, True])
def test_parts_of_a_response(byte_guard: Guard, as_dict: bool) -> None:
    made = response(TEXT)
    given: Any = made.model_dump() if as_dict else made
    found = Response.model_validate(byte_guard.wrap(lambda: given)())
    (item,) = found.model_dump()["output"]
    (part,) = item["content"]
    assert (part["text"], part["logprobs"]) == (RELEASED, [])
    assert places(part["annotations"]) == places(MOVED)
    assert part["annotations"][-1] == WITHOUT_PLACE
    assert made == response(TEXT)
    safe = response(TEXT.replace("idiot", "lucky"))
    assert byte_guard.wrap(lambda: safe)() is safe


def test_a_title_alone_moves_nothing(byte_guard: Guard) -> None:
    note = {**cited("the bus"), "title": "An idiot here."}
    block = {"type": "text", "text": "See the bus.", "annotations": [note]}
    found = byte_guard.wrap(lambda: block)()
    assert found == {**block, "annotations": [{**note, "title": "An person here."}]}


@pytest.mark.parametrize("as_dict", [False, True])
def test_chat_completions(byte_guard: Guard, as_dict: bool) -> None:
    notes = []
    for each in ANNOTATIONS:
        inner = {name: value for name, value in each.items() if name != "type"}
        notes.append({"type": "url_citation", "url_citation": inner})
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": {"content": TOKENS, "refusal": None},
        "token_ids": [1, 2],
        "message": {"role": "assistant", "content": TEXT, "annotations": notes},
    }
    made = ChatCompletion.model_validate(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )
    given: Any = made.model_dump() if as_dict else made
    found = ChatCompletion.model_validate(byte_guard.wrap(lambda: given)())
    (new,) = found.choices
    assert (new.message.content, new.logprobs, new.token_ids) == (  # type: ignore[attr-defined]
        *(RELEASED, None, None),
    )
    assert places(new.message.annotations) == places(MOVED)


def test_messages_of_langchain(byte_guard: Guard) -> None:
    metadata = {"model_name": "m", "logprobs": {"content": TOKENS}}
    for content in (TEXT, [{"type": "text", "text": TEXT, "annotations": ANNOTATIONS}]):
        message = AIMessage(content, response_metadata=metadata)  # type: ignore[arg-type]
        found = byte_guard.wrap(lambda message=message: message)()
        assert found.text == RELEASED
        assert found.response_metadata == {"model_name": "m"}
        if not isinstance(content, str):
            assert places(found.content[0]["annotations"]) == places(MOVED)
    assert metadata["logprobs"]
    call = {"name": "f", "args": {"text": TEXT}, "id": "c"}
    called = AIMessage("", tool_calls=[call], response_metadata=metadata)
    assert byte_guard.wrap(lambda: called)().response_metadata == {"model_name": "m"}
    safe = AIMessage("Fine.", response_metadata=metadata)
    assert byte_guard.wrap(lambda: safe)() is safe
    generation = ChatGeneration(message=AIMessage(TEXT), generation_info=metadata)
    assert byte_guard.wrap(lambda: generation)().generation_info == {"model_name": "m"}


def test_what_is_between_two_changes_keeps_its_place(byte_guard: Guard) -> None:
    text, released = (
        f"{who}. See A [cited]. The same (one) is {what}, {who}, as [two] says. B [three]. {who}."
        for who, what in (("You idiot", "stupid"), ("You person", "person"))
    )
    words = ("A [cited]", "(one)", "[two]", "B [three]")
    notes = [cited(each, text) for each in (*words, "stupid")]
    block = {"type": "text", "text": text, "annotations": notes}
    found = byte_guard.wrap(lambda: block)()
    assert found["text"] == released
    assert found["annotations"] == [cited(each, released) for each in words]


@given(
    st.lists(st.sampled_from(["stupid ", "an idiot. ", "so. ", "well ", "é\n", "["]), max_size=9)
)
def test_places_are_those_of_the_same_words(parts: list[str]) -> None:
    before = "".join(parts)
    after = before.replace("stupid ", "").replace("an idiot", "a good person")
    changed = differences(before, after)
    made, last = "", 0
    for each in changed:
        made += before[last : each.start] + after[each.new_start : each.new_end]
        assert each.new_end == len(made)
        last = each.end
    assert made + before[last:] == after
    notes = [{"start_index": n, "end_index": n + 1, "at": n} for n in range(len(before))]
    for each in moved(notes, changed):
        assert after[each["start_index"] : each["end_index"]] == before[each["at"]]


def test_long_texts_are_compared_in_time() -> None:
    before = " ".join(f"It is {n}, stupid." for n in range(900))
    started = time.perf_counter()
    for text in (before, before.replace(".", ","), "so it is " * 5_000):
        differences(text, text.replace("stupid", "person").replace("so", "thus"))
    assert time.perf_counter() - started < 5


def test_a_withheld_text_keeps_no_place() -> None:
    block = {"type": "text", "text": TEXT, "annotations": ANNOTATIONS}
    withheld = guard(ladder=(), block_message="No.").wrap(lambda: block)()
    assert withheld == {"type": "text", "text": "No.", "annotations": []}
