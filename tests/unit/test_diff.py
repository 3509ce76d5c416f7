from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.diff import removed_spans, same_words, words


def removed(text: str, *rewrites: str) -> list[str]:
    return [text[start:end] for start, end in removed_spans(text, rewrites)]


@pytest.mark.parametrize(
    ("text", "rewrites", "gone"),
    [
        ("this damn thing is broken .", ["This thing is broken."], ["damn"]),
        ("he is a total clown", ["he is unwise"], ["a total clown"]),
        ("no one gives a damn about it", ["no one cares about it"], ["gives a damn"]),
        ("a dumb, lazy plan", ["a plan"], ["dumb, lazy"]),
        ("the rent is h*gh and $tupid today", ["the rent is high today"], ["h*gh and $tupid"]),
        ("what a stupid day. stupid me", ["what a day. me"], ["stupid", "stupid"]),
        ("go away. clown of the day", ["of the day"], ["go away", "clown"]),
    ],
)
def test_words_that_a_rewrite_takes_away(text: str, rewrites: list[str], gone: list[str]) -> None:
    assert removed(text, *rewrites) == gone


def test_only_what_all_rewrites_take_away_counts() -> None:
    text = "why would this silly clown even speak"
    assert removed(text, "why would this clown speak") == ["silly", "even"]
    assert removed(text, "why would this clown speak", "would this person even talk") == ["silly"]


@pytest.mark.parametrize(
    "rewrite",
    [
        "I don't think so, Ed",
        "i DON 'T think so ed !",
        "i dont think so ed",
        "well , i don 't really think so ed",
    ],
)
def test_case_punctuation_spelling_of_contractions_and_insertions_do_not_count(
    rewrite: str,
) -> None:
    assert removed("i don 't think so , ed .", rewrite) == []


def test_function_words_alone_are_no_span() -> None:
    assert removed("it is up to the mayor of the town", "up to mayor of town") == []


def test_no_rewrite_removes_nothing() -> None:
    assert removed("you clown") == []
    assert removed("", "other") == []


def test_same_words() -> None:
    assert same_words("Don 't, ED!", "dont ed")
    assert not same_words("you clown", "you")


@given(text=st.text(max_size=60), rewrite=st.text(max_size=60))
def test_spans_lie_in_order_within_any_text(text: str, rewrite: str) -> None:
    end = 0
    for start, stop in removed_spans(text, [rewrite]):
        assert end <= start < stop <= len(text)
        end = stop
    assert removed_spans(text, [text]) == ()
    assert all(text[word.start : word.end].strip() for word in words(text))
