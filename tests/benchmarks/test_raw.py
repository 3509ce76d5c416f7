from __future__ import annotations

import pytest

from benchmarks.metrics import Range
from benchmarks.raw import marked, rewritten
from srllm_guard.text.segments import segments
from tests.byte_engine import ByteEngine, runtime


def places(text: str, *phrases: str) -> list[Range]:
    """Where phrases stand, each once."""
    return [(text.index(phrase), text.index(phrase) + len(phrase)) for phrase in phrases]


def told(text: str, ranges: list[Range]) -> list[tuple[str, list[str]]]:
    """Of every marked segment its text, and that of its marks, by their offsets in it."""
    return [
        (text[s.start : s.end], [text[s.start : s.end][a:b] for a, b in marks])
        for s, marks in marked(text, ranges)
    ]


TEXT = "The boat is late. Ask the lazy clerk, that stupid fool.\n- Bring 3 chairs."


def test_marks_are_at_offsets_of_their_segment() -> None:
    ranges = places(TEXT, "stupid", "lazy")
    assert told(TEXT, ranges) == [("Ask the lazy clerk, that stupid fool.", ["lazy", "stupid"])]
    assert [marks for _, marks in marked(TEXT, ranges)] == [[(8, 12), (25, 31)]]
    assert marked(TEXT, []) == []


def test_a_mark_across_segments_is_cut_at_their_ends() -> None:
    (start, _), (_, end) = places(TEXT, "late", "lazy")
    assert told(TEXT, [(start, end)]) == [
        ("The boat is late.", ["late."]),
        ("Ask the lazy clerk, that stupid fool.", ["Ask the lazy"]),
    ]


def test_a_mark_that_touches_a_segment_from_outside_is_not_in_it() -> None:
    first, second, third = segments(TEXT)
    assert marked(TEXT, [(first.end, second.start), (second.end, third.start)]) == []


@pytest.mark.parametrize(
    ("ranges", "joined"),
    [
        ([(0, 4), (2, 8)], [(0, 8)]),
        ([(2, 8), (0, 4)], [(0, 8)]),
        ([(0, 8), (4, 6)], [(0, 8)]),  # the longer one reaches further than the later one
        ([(0, 3), (3, 8)], [(0, 8)]),
        ([(0, 3), (4, 8)], [(0, 3), (4, 8)]),
        ([(0, 4), (2, 6), (5, 8), (10, 12)], [(0, 8), (10, 12)]),
    ],
)
def test_marks_that_overlap_or_touch_are_joined(ranges: list[Range], joined: list[Range]) -> None:
    ((_, found),) = marked("Abcdefgh ijklmn op.", ranges)
    assert found == joined


def test_code_is_not_rewritten() -> None:
    text = "See this:\n```\nstupid = 1\n```\nWhat a stupid name."
    ranges = [(n, n + 6) for n in range(len(text)) if text.startswith("stupid", n)]
    assert len(ranges) == 2
    assert told(text, ranges) == [("What a stupid name.", ["stupid"])]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_only_marked_segments_change(batch: int) -> None:
    texts = [
        "- You idiot, go!\n\n  The boat  is here. It is trash, all.\r\n> a lazy crew. Bye.",
        "A stupid day is a stupid day. Nothing to see here.",
        "The idiot stays: nobody marked anything here.",
    ]
    marks = [
        places(texts[0], "idiot", "trash", "lazy"),
        places(texts[1], "stupid"),
        [],
    ]
    assert rewritten(runtime(ByteEngine()), texts, marks, batch) == [
        "- You person, go!\n\n  The boat  is here. It is person, all.\r\n> a person crew. Bye.",
        "A person day is a stupid day. Nothing to see here.",
        texts[2],
    ]


def test_offsets_hold_when_rewrites_are_longer_or_shorter() -> None:
    text = "x idiotic idiots here. It is so. The big lazy one left. Oh no, a."
    marks = places(text, "idiotic idiots here", "big", "lazy one left", "a.")
    assert rewritten(runtime(ByteEngine()), [text], [marks]) == [
        "x person. It is so. The person person. Oh no, person"
    ]


def test_each_marked_segment_is_asked_for_once_and_greedily() -> None:
    engine = ByteEngine()
    running = runtime(engine)
    rewritten(running, [TEXT, "Fine."], [places(TEXT, "boat", "lazy", "stupid"), []])
    assert len(engine.asked) == 2
    first, second = engine.asked
    assert [(r.temperature, r.barred) for r in engine.asked] == [(0.0, ())] * 2
    assert first.stop == {running.prompt.end}
    assert "The\0 boat\0 is late." in engine.read(first.prompt)
    assert "boat" not in engine.read(second.prompt)
    assert second.limit > len("Ask the lazy clerk, that stupid fool.")


def test_nothing_marked_asks_for_nothing() -> None:
    engine = ByteEngine()
    assert rewritten(runtime(engine), [TEXT, ""], [[], []]) == [TEXT, ""]
    assert engine.asked == []


def test_a_rewrite_that_is_cut_off_changes_nothing() -> None:
    engine = ByteEngine(fault="unfinished", within="generate", only="lazy")
    marks = places(TEXT, "boat", "lazy")
    found = rewritten(runtime(engine), [TEXT], [marks], batch=1)
    assert found == [TEXT.replace("boat", "person")]


def test_marks_are_needed_for_every_text() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rewritten(runtime(ByteEngine()), [TEXT, TEXT], [[]])
