"""Server-sent events, however their bytes come in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from srllm_guard.middleware.openai.sse import Decoder, Message


def decoded(raw: bytes, cuts: list[int]) -> list[Message]:
    decoder, at = Decoder(), 0
    found: list[Message] = []
    for cut in [*sorted(cut for cut in cuts if cut < len(raw)), len(raw)]:
        found += decoder.feed(raw[at:cut])
        at = cut
    return found


lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
messages = st.builds(
    Message,
    data=st.lists(lines, min_size=1, max_size=3).map("\n".join),
    event=st.none() | lines.filter(bool).map(lambda text: "e" + text),
    id=st.none() | lines,
)


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 200), max_size=6))
def test_what_was_written_is_read(sent: list[Message], cuts: list[int]) -> None:
    raw = b"".join(each.encode() for each in sent)
    assert decoded(raw, cuts) == sent


@given(st.lists(st.integers(0, 60), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_every_end_of_line_is_one(cuts: list[int], end: str) -> None:
    text = [": hello", "event: a", "data: one", "data:two", "", "retry: 3", "", "data", "", ""]
    found = decoded(end.join(text).encode() + b"\n", cuts)
    assert found == [Message("one\ntwo", "a"), Message("")]


def test_what_is_not_finished_is_none() -> None:
    assert decoded(b"data: one\n\ndata: two\n", []) == [Message("one")]
