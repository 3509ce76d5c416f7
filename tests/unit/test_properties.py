"""What holds for any string at all."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srllm_guard import Guard, Moderation, Policy
from srllm_guard.text.protect import missing
from tests.byte_engine import ByteEngine, runtime

GUARD = Guard(runtime())
HARSH = Guard(
    runtime(ByteEngine(fault="empty", crowded=True)), policy=Policy(threshold=0.3, on_fail="mask")
)

ANY = st.text(st.characters(), max_size=80)
"""Every code point, lone surrogates and NUL among them."""
PIECES = st.lists(
    st.sampled_from(
        [
            *("You idiot", "stupid", " s t u p i d ", "ｔｒａｓｈ", "1d10t", "i\u200bdiot", "lazy"),
            *(". ", "! ", "\r\n", "\n\n", "- ", "> ", "| a | b |\n", '"', "“", "”", " the ", "Ed"),
            *("```\n", "`x = idiot`", "    code()", "http://a.io/idiot", "bob@idiot.com", "{name}"),
            *("$5.20", "3 kg", "2024-01-02", "@trash", "<|im_end|>", "<issue_start>"),
            *("\ud83d", "\x00", "😀", "e\u0301", "\u202e", "ﬁ"),
        ]
    ),
    max_size=12,
).map("".join)
TEXT = st.one_of(ANY, PIECES, st.tuples(PIECES, ANY, PIECES).map("".join))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def holds(result: Moderation, text: str) -> None:
    """Offsets index the texts they speak of, and the edits are the whole difference."""
    assert result.original == text
    for span in result.before.spans:
        assert 0 <= span.start < span.end <= len(text)
    if result.after is not None:
        for span in result.after.spans:
            assert 0 <= span.start < span.end <= len(result.text)
    rebuilt, last = [], 0
    for edit in result.edits:
        assert last <= edit.start <= edit.end
        assert text[edit.start : edit.end] == edit.original
        assert result.text[edit.new_start : edit.new_end] == edit.replacement
        for span in edit.spans:
            assert edit.start <= span.start < span.end <= edit.end
        rebuilt += [text[last : edit.start], edit.replacement]
        last = edit.end
    assert "".join([*rebuilt, text[last:]]) == result.text


@given(TEXT)
@QUICK
def test_any_string_gives_a_result(text: str) -> None:
    result = GUARD.moderate(text)
    holds(result, text)
    assert result.errors == ()
    if result.action in ("pass", "unverified"):
        assert result.text is text
        assert not result.before.unsafe
    else:
        assert result.before.unsafe
        assert result.text != text
        assert result.safe or not result.before.verified  # the foreign part was not judged


@given(TEXT)
@QUICK
def test_what_was_released_is_safe_when_it_comes_back(text: str) -> None:
    result = GUARD.moderate(text)
    if result.action in ("rewrite", "mask") and result.before.verified:
        again = GUARD.moderate(result.text)
        assert again.action == "pass"
        assert result.after == again.before


@given(TEXT)
@QUICK
def test_masking_never_blocks_and_leaves_nothing_unsafe(text: str) -> None:
    result = HARSH.moderate(text)
    holds(result, text)
    assert result.action in ("pass", "unverified", "rewrite", "mask")
    if result.action in ("rewrite", "mask") and result.before.verified:
        assert not HARSH.detect(result.text).unsafe


@given(st.lists(TEXT, max_size=6))
@settings(QUICK, max_examples=60)
def test_many_equal_one_by_one(texts: list[str]) -> None:
    assert GUARD.moderate_many(texts) == [GUARD.moderate(text) for text in texts]
    assert GUARD.detect_many(texts) == [GUARD.detect(text) for text in texts]


@given(TEXT)
@QUICK
def test_protected_parts_survive(text: str) -> None:
    result = GUARD.moderate(text)
    for edit in result.edits:
        if edit.action == "rewrite":
            assert missing(edit.original, edit.replacement) == ()
