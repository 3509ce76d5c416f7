from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srllm_guard.text.incremental import Segmenter
from srllm_guard.text.segments import Segment, segments

PARTS = [
    "Hello there", "I met Mr", " Smith", "etc", "U.S", "He said", "J. ", "The", "the", "a.m.", "5",
    "No. ", "Inc. ", "Theodore", " and so on", ", ", ".", "!", "...", ". ", "! ", " ...", "\n",
    "\n\n", "\r\n", "  ", "\t", "    x = f(1)\n", "    ", "```\n", "```", "~~~", "`", "code();\n",
    "- ", "1. ", "| a | b |\n", "|", "> ", "# ", "**", "*", "_", '"', "'", "“", "”", "(", ")",
    "[x] ", "Bob: ", "Ann: hi\n", "[9:41] Bob: ", "12:30", "User: ", ":)", " :D", "😀",
    "\u200d", "。", "你好", "e\u0301", "\ud83d", "word " * 30, "x" * 700,
]  # fmt: skip
PIECES = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)
TEXT = st.one_of(PIECES, st.text(max_size=200))
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def told(*parts: str, max_chars: int = 600) -> list[list[Segment]]:
    """What is told after each part, and at the end."""
    segmenter = Segmenter(max_chars)
    found = []
    text = ""
    for part in parts:
        text += part
        found.append(segmenter.read(text))
    return [*found, segmenter.read(text, final=True)]


def words(*parts: str) -> list[list[str]]:
    text = "".join(parts)
    return [[text[s.start : s.end] for s in found] for found in told(*parts)]


@given(TEXT, st.lists(st.integers(1, 60), min_size=1, max_size=20))
@QUICK
def test_however_it_grows_the_segments_are_those_of_the_whole(text: str, steps: list[int]) -> None:
    parts: list[str] = []
    at = 0
    while at < len(text):
        step = steps[len(parts) % len(steps)]
        parts.append(text[at : at + step])
        at += step
    assert tuple(chain.from_iterable(told(*parts))) == segments(text)


def test_a_sentence_is_told_when_the_next_one_has_begun() -> None:
    assert words("Hi Ed", ".", " ", "N", "ice day!") == [[], [], [], ["Hi Ed."], [], ["Nice day!"]]


def test_a_line_end_ends_a_sentence() -> None:
    assert words("No stop here", "\n") == [[], ["No stop here"], []]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("I met Mr. ", "Smith. Bye"),
        ("So it goes. :", ") Yes"),
        ("It ended at 5 p.m. ", "on Monday. Bye"),
        ("Sold to Foo Inc. The", "odore left. Bye"),
        ("He left", "... And came. Bye"),
    ],
)
def test_what_may_not_be_the_end_is_no_end(text: str, rest: str) -> None:
    assert words(text, rest)[0] == []


def test_code_is_told_once_it_is_closed() -> None:
    found = told("```\nx. Y. Z.\n", "```\n", "Hi there. You")
    assert [[s.kind for s in each] for each in found] == [[], ["code"], ["prose"], ["prose"]]


def test_an_open_fence_hides_nothing_at_the_end() -> None:
    assert words("```\nYou are. Here you") == [[], ["```", "You are.", "Here you"]]


@pytest.mark.parametrize(
    "line", ["| a. B | c. D |", "**All. Of it.**", "# A. B #", "[9:41] Bob. X"]
)
def test_a_line_whose_end_has_a_say_is_awaited(line: str) -> None:
    before, after, _ = told(line, "\nNext")
    assert before == []
    assert after


def test_a_quotation_that_was_closed_early_does_not_wait_for_the_line() -> None:
    assert words('"Go," he said. "Now." Then he', " left.")[0] == ['"Go," he said.', "Now."]


def test_the_first_lines_of_a_chat_are_awaited() -> None:
    found = words("Bob: Hello there. How are you?\n", "Ann: Fine. And", " you?")
    assert found[0] == []
    assert found[1] == ["Bob", "Hello there.", "How are you?", "Ann", "Fine."]


def test_long_sentences_are_told_in_pieces() -> None:
    text = "word " * 400
    first, rest = told(text)
    assert len(first) > 1
    assert (*first, *rest) == segments(text)


def test_a_cut_ends_what_is_held_and_begins_anew() -> None:
    segmenter = Segmenter()
    text = "One. Two and"
    assert [s.end for s in segmenter.read(text)] == [4]
    assert [(s.start, s.end) for s in segmenter.cut(text)] == [(5, 12)]
    text += " three. Four"
    assert [text[s.start : s.end] for s in segmenter.read(text)] == ["three."]


def test_a_fence_that_was_cut_is_still_closed_by_its_mark() -> None:
    segmenter = Segmenter()
    text = "```\nfirst();\n"
    assert {text[s.start : s.end] for s in segmenter.cut(text)} == {"```", "first();"}
    text += "second.\n```\nAfter it. And"
    assert [(text[s.start : s.end], s.kind) for s in segmenter.read(text)] == [
        ("second.", "prose"), ("```", "code"), ("After it.", "prose"),
    ]  # fmt: skip


def test_what_is_done_with_can_be_forgotten() -> None:
    segmenter = Segmenter()
    text = "First line.\nSecond one. Th"
    segmenter.read(text)
    count = segmenter.needed
    assert count >= len("First line.")
    segmenter.forget(count)
    text = text[count:] + "ird. Fourth"
    assert [text[s.start : s.end] for s in segmenter.read(text)] == ["Third."]
