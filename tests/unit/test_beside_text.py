"""What stands beside the known texts of messages, blocks, completions and responses."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, ConfigDict

from srllm_guard import Guard
from srllm_guard.errors import ShapeError
from srllm_guard.middleware.shapes import TRUSTED_ROLES, walk
from srllm_guard.structure.visiting import collected, replaced

UNSAFE, SAFE = "You stupid man", "You person man"


def texts_of(value: Any, **options: Any) -> list[str]:
    return collected(lambda visitor: walk(value, visitor), **options)[0]


@dataclass(frozen=True)
class Poll:
    question: str
    choices: list[str]


@dataclass(frozen=True)
class Post:
    role: str
    content: str
    title: str
    tags: list[str] = field(default_factory=list)
    by: Any = None


class Note(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: str


@dataclass(frozen=True)
class Source:
    type: str
    id: str
    name: str
    note: str


class Line(NamedTuple):
    role: str
    content: str
    aside: str


class Slotted:
    __slots__ = ("content", "role", "title")

    def __init__(self, role: str, content: str, title: str) -> None:
        self.role, self.content, self.title = role, content, title


class TestNothingGoesByInSilence:
    @pytest.mark.parametrize(
        "value",
        [
            {"question": UNSAFE, "choices": [UNSAFE, "b"]},
            {"question": UNSAFE, "choices": []},
            {"choices": [{"message": {"content": "Fine."}}, {"note": UNSAFE}]},
            {"type": "image_caption", "caption": UNSAFE},
            {"role": UNSAFE, "content": "Fine."},
            {"type": UNSAFE, "text": "Fine."},
            {"role": "user", "content": "Fine.", "more": {"a b": [{UNSAFE}]}},
            {"role": "user", "tool_calls": [object()]},
            {"choices": [{"message": object()}]},
        ],
    )
    def test_what_only_looks_like_a_chat_is_refused(self, byte_guard: Guard, value: Any) -> None:
        with pytest.raises(ShapeError) as refused:
            byte_guard.wrap(lambda: value)()
        assert "stupid" not in str(refused.value)

    def test_a_refusal_says_where(self) -> None:
        message = {"role": "user", "content": "Fine.", "more": [{"tags": {"a", "b"}}]}
        with pytest.raises(ShapeError, match=r"type set at \[0\]\.more\[0\]\.tags is not known"):
            texts_of([message])

    @pytest.mark.parametrize(
        ("value", "released"),
        [
            (Poll(UNSAFE, [UNSAFE, "b"]), Poll(SAFE, [SAFE, "b"])),
            (
                {"type": "email", "subject": UNSAFE, "content": "Fine."},
                {"type": "email", "subject": SAFE, "content": "Fine."},
            ),
            (
                {"role": "assistant", "content": "Fine.", "notes": [{"by": "idiot", "on": UNSAFE}]},
                {"role": "assistant", "content": "Fine.", "notes": [{"by": "idiot", "on": SAFE}]},
            ),
            (
                {"type": "image", "url": "http://x.io/idiot.png", "caption": UNSAFE},
                {"type": "image", "url": "http://x.io/idiot.png", "caption": SAFE},
            ),
            (
                Post("user", "Fine.", "idiot", ["idiot"], {"id": "idiot"}),
                Post("user", "Fine.", "person", ["person"], {"id": "idiot"}),
            ),
            (
                Post("user", "Fine.", "x", by=Poll("idiot", ["b"])),
                Post("user", "Fine.", "x", by=Poll("person", ["b"])),
            ),
            (
                Note(role="user", content="Fine.", more="idiot"),  # type: ignore[call-arg]
                Note(role="user", content="Fine.", more="person"),  # type: ignore[call-arg]
            ),
            (Line("user", "Fine.", "idiot"), Line("user", "Fine.", "person")),
            (
                SimpleNamespace(role="user", content="Fine.", title="idiot", _raw=object()),
                SimpleNamespace(role="user", content="Fine.", title="person"),
            ),
            (
                {"choices": [{"message": "idiot"}, {"text": "x", "note": UNSAFE}], "more": UNSAFE},
                {"choices": [{"message": "person"}, {"text": "x", "note": SAFE}], "more": SAFE},
            ),
            (
                {"type": "custom", "custom": {"name": "idiot", "input": UNSAFE}, "note": UNSAFE},
                {"type": "custom", "custom": {"name": "idiot", "input": SAFE}, "note": SAFE},
            ),
            (
                {"type": "x_call", "args": {"a": UNSAFE}, "input": UNSAFE, "output": "idiot"},
                {"type": "x_call", "args": {"a": SAFE}, "input": SAFE, "output": "person"},
            ),
            (
                {"type": "function", "function": {"arguments": "{}", "name": "f", "why": UNSAFE}},
                {"type": "function", "function": {"arguments": "{}", "name": "f", "why": SAFE}},
            ),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_prose_in_other_fields_is_moderated(
        self, byte_guard: Guard, value: Any, released: Any
    ) -> None:
        found = byte_guard.wrap(lambda: value)()
        if isinstance(found, SimpleNamespace):
            del found._raw
        assert found == released
        assert type(found) is type(value)
        safe: Callable[[Any], Any] = byte_guard.wrap(lambda value: value)
        assert safe(released) is released

    def test_kinds_and_ids_within_a_class_of_the_users_are_data(self, byte_guard: Guard) -> None:
        post = Post("user", "Fine.", "x", by=Source("idiot", "idiot", UNSAFE, "idiot"))
        found = byte_guard.wrap(lambda: post)()
        assert found.by == Source("idiot", "idiot", SAFE, "person")

    @pytest.mark.parametrize("format", ["text", "json"])
    def test_json_within_strings_stays_json(self, byte_guard: Guard, format: Any) -> None:
        unsafe, safe = (f'{{"kind": "idiot", "say": ["{each}"]}}' for each in (UNSAFE, SAFE))
        for value, released in (
            ({"role": "tool", "content": unsafe}, {"role": "tool", "content": safe}),
            (
                {"role": "user", "content": "1", "log": unsafe},
                {"role": "user", "content": "1", "log": safe},
            ),
            (unsafe, safe),
        ):
            assert byte_guard.wrap(lambda value=value: value, format=format)() == released

    def test_objects_of_any_class(self, byte_guard: Guard) -> None:
        found = byte_guard.wrap(lambda: Slotted("user", "idiot", "idiot"))()
        assert (found.role, found.content, found.title) == ("user", "person", "person")

    def test_instructions_and_answers_are_trusted_with_all_that_is_in_them(self) -> None:
        messages = [
            {"role": "system", "content": "no", "note": "No, not this."},
            {"role": "user", "content": "yes", "note": "Yes, and this."},
            {"type": "mcp_approval_request", "name": "f", "arguments": '{"a": "No, not this."}'},
        ]
        assert texts_of(messages, trusted=TRUSTED_ROLES) == ["yes", "Yes, and this."]


IDS = {"id": "an idiot", "model": "an idiot", "object": "chat.completion", "created": 1}
ENDED = {"finish_reason": "stop", "index": 0}


class TestRealPayloads:
    """Ids, enumerations, numbers and settings stay, and nothing of them is refused."""

    @pytest.mark.parametrize(
        ("value", "texts"),
        [
            (  # vLLM
                {
                    **IDS,
                    "choices": [
                        {
                            **ENDED,
                            "message": {
                                "role": "assistant",
                                "content": "Fine.",
                                "reasoning": "Hm.",
                                "annotations": None,
                                "tool_calls": [],
                            },
                            "logprobs": {"content": [{"token": " You", "top_logprobs": []}]},
                            "stop_reason": None,
                            "token_ids": [1, 2],
                        }
                    ],
                    "service_tier": None,
                    "system_fingerprint": "fp_idiot",
                    "usage": {"total_tokens": 3, "prompt_tokens_details": None},
                    "prompt_logprobs": [None, {"7": {"decoded_token": " You idiot", "rank": 1}}],
                    "kv_transfer_params": None,
                },
                ["Fine.", "Hm."],
            ),
            (  # OpenRouter
                {
                    **IDS,
                    "provider": "openai",
                    "choices": [
                        {
                            **ENDED,
                            "native_finish_reason": "completed",
                            "message": {
                                "role": "assistant",
                                "content": "Fine.",
                                "reasoning_details": [
                                    {"type": "reasoning.text", "text": "Hm.", "format": "x-v1"}
                                ],
                            },
                        }
                    ],
                },
                ["Fine.", "Hm."],
            ),
            (  # Azure
                {
                    **IDS,
                    "choices": [
                        {
                            **ENDED,
                            "message": {"role": "assistant", "content": "Fine."},
                            "content_filter_results": {
                                "hate": {"filtered": False, "severity": "safe"}
                            },
                        }
                    ],
                    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
                },
                ["Fine."],
            ),
            (  # Perplexity
                {
                    **IDS,
                    "choices": [{**ENDED, "message": {"role": "assistant", "content": "Fine."}}],
                    "citations": ["https://x.io/an-idiot"],
                    "search_results": [{"title": "A fine day", "url": "https://x.io/idiot"}],
                },
                ["Fine.", "A fine day"],
            ),
            (  # the last chunk of a stream, and the first of Azure
                [
                    {**IDS, "choices": [], "usage": {"total_tokens": 3}},
                    {**IDS, "object": "", "choices": []},
                ],
                [],
            ),
            (  # audio of OpenAI
                {
                    "role": "assistant",
                    "content": None,
                    "audio": {"id": "a", "data": "aWRpb3Q=", "expires_at": 1, "transcript": "Hi"},
                },
                ["Hi"],
            ),
            (  # Anthropic
                {
                    "id": "an idiot",
                    "type": "message",
                    "role": "assistant",
                    "model": "an idiot",
                    "stop_reason": "end_turn",
                    "stop_sequence": None,
                    "usage": {"input_tokens": 1, "service_tier": "standard"},
                    "content": [
                        {
                            "type": "text",
                            "text": "Fine.",
                            "citations": [
                                {
                                    "type": "char_location",
                                    "cited_text": "A fine day.",
                                    "document_index": 0,
                                    "start_char_index": 0,
                                }
                            ],
                            "cache_control": {"type": "ephemeral", "ttl": "5m"},
                        },
                        {
                            "type": "web_search_tool_result",
                            "tool_use_id": "t",
                            "content": [
                                {
                                    "type": "web_search_result",
                                    "title": "A fine page",
                                    "url": "https://x.io/idiot",
                                    "encrypted_content": "aWRpb3Q=",
                                    "page_age": "April 30, 2025",
                                }
                            ],
                        },
                    ],
                },
                ["A fine page", "Fine.", "A fine day."],
            ),
            (
                [
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "It is."},
                    },
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aWRp"},
                    },
                    {"type": "image", "image": {"format": "png", "source": {"bytes": b"idiot"}}},
                ],
                ["It is."],
            ),
        ],
        ids=["vllm", "openrouter", "azure", "perplexity", "chunks", "audio", "anthropic", "media"],
    )
    def test_dicts(self, value: Any, texts: list[str]) -> None:
        assert sorted(texts_of(value)) == sorted(texts)

    def test_fields_that_the_sdk_does_not_know(self, byte_guard: Guard) -> None:
        message = {"role": "assistant", "content": "Fine.", "note": UNSAFE, "trace": "an-idiot"}
        choice = {**ENDED, "message": message, "flags": {"idiot": 0.5, "level": "idiot"}}
        made = ChatCompletion.model_validate({**IDS, "choices": [choice], "region": "idiot"})
        found = byte_guard.wrap(lambda: made)()
        assert found.choices[0].message.note == SAFE  # type: ignore[attr-defined]
        expected = made.model_dump()
        expected["choices"][0]["message"]["note"] = SAFE
        assert found.model_dump() == expected

    def test_items_of_responses(self) -> None:
        settings = {
            "instructions": "No, not this.",
            "tools": [{"type": "function", "name": "f", "description": "No, not this."}],
            "text": {"format": {"type": "json_schema", "schema": {"title": "Not this."}}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "tool_choice": "auto",
        }
        items: list[dict[str, Any]] = [
            {
                "type": "file_search_call",
                "queries": ["Query one?"],
                "results": [{"file_id": "f", "score": 0.5, "text": "two"}],
            },
            {"type": "code_interpreter_call", "code": "print('No, not this')", "outputs": None},
            {"type": "image_generation_call", "result": "aWRpb3Q=", "revised_prompt": "three it"},
            {
                "type": "mcp_call",
                "name": "f",
                "arguments": '{"a": "b"}',
                "output": "four",
                "server_label": "idiot",
            },
            {
                "type": "mcp_list_tools",
                "server_label": "idiot",
                "tools": [{"name": "f", "description": "No, not this.", "input_schema": {}}],
            },
            {
                "type": "shell_call_output",
                "output": [{"stdout": "five it", "stderr": "", "outcome": {"type": "timeout"}}],
            },
            {"type": "apply_patch_call", "operation": {"type": "x", "diff": "-No, not this."}},
            {"type": "computer_call", "action": {"type": "click", "button": "left", "x": 1}},
        ]
        items = [{"id": "an idiot", "status": "completed", **each} for each in items]
        body: dict[str, Any] = {**IDS, "object": "response", "output": items, **settings}
        calls = collected(lambda visitor: walk(body, visitor))[1]
        assert sorted(texts_of(body)) == ["Query one?", "five it", "four", "three it", "two"]
        assert [call["type"] for call in calls] == ["mcp_call"]
        assert sorted(texts_of(items)) == sorted(texts_of(body))
        made = Response.model_construct(**body)
        assert sorted(texts_of(made)) == sorted(texts_of(body))

    def test_messages_of_langchain(self, byte_guard: Guard) -> None:
        metadata = {
            "model_name": "an-idiot",
            "token_usage": {"total_tokens": 3},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": " You"}]},
            "grounding": {"segment": {"text": "idiot"}},
        }
        wrapped: Callable[[], list[Any]] = byte_guard.wrap(
            lambda: [
                AIMessage("Fine.", response_metadata=metadata),
                HumanMessage("Fine.", name="an idiot", id="an idiot"),
                ToolMessage(
                    "Fine.",
                    tool_call_id="idiot",
                    artifact=[Document(UNSAFE, metadata={"source": "idiot.txt"}), object()],
                ),
                AIMessage(
                    "",
                    additional_kwargs={
                        "signatures": {"a": b"idiot"},
                        "function_call": {"name": "f", "arguments": f'{{"a": "{UNSAFE}"}}'},
                    },
                ),
                AIMessageChunk(
                    content="",
                    tool_call_chunks=[
                        {"name": "f", "args": f'{{"a": "{UNSAFE}"}}', "id": "i", "index": 0}
                    ],
                ),
                ChatGeneration(message=AIMessage(UNSAFE)),
            ]
        )
        found = wrapped()
        assert found[0].response_metadata["grounding"] == {"segment": {"text": "person"}}
        assert (found[1].name, found[1].id) == ("an idiot", "an idiot")
        assert found[2].artifact[0].page_content == SAFE
        assert found[3].additional_kwargs["function_call"]["arguments"] == f'{{"a": "{SAFE}"}}'
        assert found[4].tool_call_chunks[0]["args"] == f'{{"a": "{SAFE}"}}'
        assert found[4].tool_calls[0]["args"] == {"a": SAFE}
        assert (found[5].text, found[5].message.content) == (SAFE, SAFE)

    def test_what_is_parsed(self) -> None:
        class Parsed(BaseModel):
            title: str
            labels: dict[str, str]

        parsed = Parsed(title="one", labels={"a": "Text two.", "b": "idiot"})
        assert texts_of({"role": "assistant", "content": "x", "parsed": parsed}) == [
            *("x", "one", "Text two.")
        ]

    @pytest.mark.parametrize("line", [76, 10_000_000])
    def test_bytes_as_text_are_not_read(self, line: int) -> None:
        data = base64.b64encode(bytes(range(256)) * 8_000).decode()
        data = "\n".join(data[n : n + line] for n in range(0, len(data), line))
        url = f"data:image/png;base64,{data}"
        message = {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
                {"type": "file", "file": {"file_data": data, "filename": "a.png"}},
            ],
        }
        start = time.process_time()
        assert texts_of(message) == []
        assert time.process_time() - start < 1


def test_texts_beside_go_back_where_they_were() -> None:
    value = {
        "role": "assistant",
        "content": "one",
        "notes": ["Text two.", {"a": "Text three.", ("b", 1): "Text four."}],
    }
    assert texts_of(value) == ["one", "Text two.", "Text three.", "Text four."]
    new = replaced(lambda visitor: walk(value, visitor), ["1", "2.", "3.", "4."], [])
    assert new == {
        "role": "assistant",
        "content": "1",
        "notes": ["2.", {"a": "3.", ("b", 1): "4."}],
    }
