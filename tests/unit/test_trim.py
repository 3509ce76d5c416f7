"""Deletions are sentences wherever they can be, and come from the least cut to the most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.trim import MOST, trims


def cut(text: str, *phrases: str) -> list[str]:
    marks = sorted((text.index(p), text.index(p) + len(p)) for p in phrases)
    return trims(text, marks)


@pytest.mark.parametrize(
    ("text", "phrase", "wanted"),
    [
        ("Gareth, you buffoon, the call was at 9.", "you buffoon", "Gareth, the call was at 9."),
        ("Ana, a mother of three, vetoed it.", "a mother of three", "Ana vetoed it."),
        ("HR (useless parasites) took 11 weeks.", "useless parasites", "HR took 11 weeks."),
        ("Old people can't learn, so call Ed.", "Old people can't learn", "Call Ed."),
        (
            "Her talk was good for a woman, and short.",
            "for a woman",
            "Her talk was good, and short.",
        ),
        ("He is a fat otter.", "fat", "He is an otter."),
        ("An evil man came.", "evil", "A man came."),
        ("Pay by Friday or I break your arm.", "I break your arm", "Pay by Friday."),
        ("Don't argue, because they can't read!", "they can't read", "Don't argue!"),
        (
            "haggled over it, well, it's a Jewish firm",
            "it's a Jewish firm",
            "haggled over it, well",
        ),
        ("It was built by lazy plumbers.", "lazy plumbers", "It was built."),
        ("“Stupid girls,” she said.", "Stupid girls", "She said."),
    ],
)
def test_one_of_the_ways_leaves_a_sentence(text: str, phrase: str, wanted: str) -> None:
    assert wanted in cut(text, phrase)


def test_the_least_cut_comes_first() -> None:
    found = cut("The king's gallant regiments, all brutes, crossed.", "gallant", "all brutes")
    assert found[0] == "The king's regiments, crossed."
    assert "The king's regiments crossed." in found
    lengths = [len(text) for text in found]
    assert lengths[0] == max(lengths)


def test_nothing_is_left_over_where_all_is_cut() -> None:
    assert cut("Idiots!", "Idiots") == []
    assert trims("Hello there.", []) == []


def test_brackets_and_quotation_marks_stay_in_pairs() -> None:
    for text in cut('She said "they are trash (all of them)" and left.', "trash (all"):
        assert text.count('"') % 2 == 0
        assert text.count("(") == text.count(")")


TEXT = st.lists(
    st.sampled_from(
        ["so", "the", "lazy", "man", ",", ".", "(", ")", '"', "and", "Ed", "—", "😀", "\n"]
    )
).map(" ".join)


@given(TEXT, st.data())
def test_each_is_another_text_with_a_word(text: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    marks = list(zip(ends[::2], ends[1::2], strict=False))
    found = trims(text, marks)
    assert len(found) == len(set(found)) <= MOST
    for each in found:
        assert each != text
        assert any(c.isalnum() for c in each)
        assert len(each) <= len(text) + 2 * len(marks)
