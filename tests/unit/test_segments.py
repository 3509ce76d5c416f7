from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srllm_guard.text.segments import Segment, segments


def pieces(text: str, max_chars: int = 600) -> list[str]:
    return [text[s.start : s.end] for s in segments(text, max_chars)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Smith met Dr. Jones at 5 p.m. They left.", None),
        ("See No. 5 by J. R. R. Tolkien. No. I won't.", None),
        ("The U.S. Senate met. I live in the U.S. We like it.", None),
        ("Use e.g. this, i.e. that etc. and more. Done.", None),
        ("v2.0 costs 3.5 euros. Read https://x.com/a.b?c=d. Mail a@b.co now.", None),
        ("what?! you idiot... go home. lol", ["what?!", "you idiot...", "go home.", "lol"]),
        ("I hate this! 😡😡 you know why 😀", ["I hate this! 😡😡", "you know why 😀"]),
        ("Nice. :) Then bye", ["Nice. :)", "Then bye"]),
        ('"Go away!" he said. She left.', ['"Go away!" he said.', "She left."]),
        ('"You are late."', ["You are late."]),
        ("“One thing. Another.” She left.", ["One thing.", "Another.", "She left."]),
        ("He is 5'10\". So am I. Yes.", ["He is 5'10\".", "So am I.", "Yes."]),
        ("**What is it?**", ["What is it?"]),
        ("**Bold** and **more**", ["**Bold** and **more**"]),
        ("word . Next", ["word .", "Next"]),
        ("好的。再见！", ["好的。", "再见！"]),
        ("😀😀", ["😀😀"]),
        ("--- ... ***", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    if expected is None:  # the sentences are those that a reader sees: split before capitals
        expected = re.split(
            r"(?<=p\.m\.) (?=They)|(?<=n\.) (?=No\.)|(?<=No\.) (?=I )|(?<=met\.) |(?<=S\.) (?=We)"
            r"|(?<=more\.) |(?<=euros\.) |(?<=d\.) (?=Mail)",
            text,
        )
    assert pieces(text) == expected


def test_structure_stays_outside() -> None:
    text = (
        "## Title here ##\r\n\r\n- first item\r\n  1. second item. And more.\r\n"
        "> > quoted line\r\n- [ ] task\r\na) choice\r\n• bullet\r\n"
    )
    assert pieces(text) == [
        "Title here",
        "first item",
        "second item.",
        "And more.",
        "quoted line",
        "task",
        "choice",
        "bullet",
    ]


def test_table_cells() -> None:
    assert pieces("| a cell | b. Two. |\n|:---|---:|\n| c \\| d | e |") == [
        "a cell",
        "b. Two.",
        "c \\| d",
        "e",
    ]


def test_code_blocks_are_one_segment() -> None:
    text = "Look:\n\n```py\nx = 1\n\ny = 2\n```\n\n    x = foo();\n    return y\n\nEnd.\n~~~\nopen"
    found = [(s.kind, text[s.start : s.end]) for s in segments(text)]
    assert found == [
        ("prose", "Look:"),
        ("code", "```py\nx = 1\n\ny = 2\n```"),
        ("code", "x = foo();\n    return y"),
        ("prose", "End."),
        ("code", "~~~"),
        ("prose", "open"),
    ]


def test_indented_prose_is_prose() -> None:
    assert [s.kind for s in segments("A letter.\n\n    All of them are lazy.")] == ["prose"] * 2


def test_paragraphs_are_counted_from_zero() -> None:
    found = segments("\n\nOne. Two.\nThree.\n \t\n\nFour.")
    assert [s.paragraph for s in found] == [0, 0, 0, 1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029"])
def test_every_line_end_is_a_boundary(end: str) -> None:
    assert pieces(f"no stop{end}here") == ["no stop", "here"]


def test_chat_prefixes() -> None:
    told = pieces("10:02 Marjolein: hello. bye\n[10:03] Jan Smit: no")
    assert told == ["Marjolein", "hello.", "bye", "Jan Smit", "no"]
    assert pieces("User: what\nAssistant: yes") == ["what", "yes"]
    assert pieces("Stefan: one\nAnn: two") == ["Stefan", "one", "Ann", "two"]
    assert pieces("Stefan: one") == ["Stefan: one"]
    assert pieces("Women: weak\nMen: strong") == ["Women: weak", "Men: strong"]


def test_what_stands_where_a_name_does_is_judged() -> None:
    """By its form an insult before a colon cannot be told from the name of a speaker."""
    told = pieces("Bitch: they should die\nScum: hi there")
    assert told == ["Bitch", "they should die", "Scum", "hi there"]
    for stamp in ("10:30 ", "[9:41] ", "[1/2/24, 9:41 PM] - "):
        assert pieces(f"{stamp}Stupid Bitch: ok") == ["Stupid Bitch", "ok"]
        for line in ("All Women Are Stupid: agreed.", "Kill All Jews: ok", "Muslims: bad"):
            assert pieces(stamp + line) == [line]


def test_long_sentences_are_cut_at_the_best_place() -> None:
    assert pieces("aaaa bbbb, cccc dddd eeee", 20) == ["aaaa bbbb,", "cccc dddd eeee"]
    assert pieces("aaaa bbbb cccc dddd eeee", 12) == ["aaaa bbbb", "cccc dddd", "eeee"]
    assert pieces("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert pieces("xxxe\u0301xxx", 4) == ["xxx", "e\u0301xx", "x"]


def test_max_chars_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        segments("x", 0)


STRUCTURED = st.text(
    alphabet=st.sampled_from(list("aA1 .!?\n\r\t->#*_`~|\"'“”()[]:,\u2028\u0301é好。😀\x00\ud800")),
    max_size=200,
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(STRUCTURED, st.text(max_size=200)), st.integers(1, 40))
def test_offsets(text: str, max_chars: int) -> None:
    found = segments(text, max_chars)
    for a, b in pairwise(found):
        assert a.end <= b.start
        assert a.paragraph <= b.paragraph
    rebuilt, last = "", 0
    for s in found:
        assert 0 <= s.start < s.end <= len(text)
        piece = text[s.start : s.end]
        assert piece == piece.strip()
        if s.kind == "prose":
            assert len(piece) <= max_chars
            assert not re.search(r"[\n\r\u2028\u2029]", piece)
        rebuilt += text[last : s.start] + piece
        last = s.end
    assert rebuilt + text[last:] == text


PREFIX = re.compile(r"\s*(?:>|[A-Za-z]\)|[ivxIVX]{1,5}\)|\([a-z]\)|\[[ xX]\]|[-*+\d.)\s#|])*")


@settings(max_examples=300, deadline=None)
@given(st.one_of(STRUCTURED, st.text(max_size=200)))
def test_every_letter_is_in_a_segment_or_a_prefix(text: str) -> None:
    inside = bytearray(len(text))
    for s in segments(text):
        inside[s.start : s.end] = b"\x01" * (s.end - s.start)
    for line in re.finditer(r"[^\n\r\u2028\u2029]+", text):
        prefix = PREFIX.match(line.group())
        body = line.start() + (prefix.end() if prefix else 0)
        for at in range(body, line.end()):
            assert inside[at] or not text[at].isalpha()


@pytest.mark.parametrize(
    "unit",
    ["a", "\n", ". ", "ab. ", " ", "a\n", "!] ", "|a", "> ", "    a\n\n", "```\n", '"', "*", "A: ",
     "\r\n", "e\u0301", "😀", "    f(\n", "(", "- "],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    segments(text)
    assert time.process_time() - started < 60  # some seconds; hours if it were not


def test_segment_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Segment(0, 1, "prose", 0).start = 3  # type: ignore[misc]
