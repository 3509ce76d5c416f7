from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from srllm_guard import detector
from srllm_guard.detector import DIGITS, GAP, NOTHING, WINDOW, Detector, Verdict, summarise
from srllm_guard.engines.base import Scores, Window
from srllm_guard.labels import CATEGORIES, LABELS, N_LOGITS, SLICES, UNSAFE
from srllm_guard.models.bundle import Calibration
from srllm_guard.prompt import Prompt
from srllm_guard.results import Span
from srllm_guard.text.segments import Segment, segments
from tests.byte_engine import TEMPLATE, ByteEngine
from tests.tiny_model import tokenizer


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt(tokenizer(TEMPLATE), TEMPLATE)


def judge(
    prompt: Prompt, *texts: str, engine: ByteEngine | None = None, most: int = 4096
) -> list[list[Verdict]]:
    """Verdicts on the prose of texts."""
    engine = engine or ByteEngine()
    parts = [(text, [s for s in segments(text) if s.kind == "prose"]) for text in texts]
    return Detector(prompt, Calibration(), most).judge(parts, engine.detect)


def phrases(text: str, verdicts: Sequence[Verdict], least: float = 0.5) -> list[str]:
    spans = [span for verdict in verdicts for span in verdict.spans if span.score >= least]
    return [text[span.start : span.end] for span in spans]


def test_each_segment_gets_its_own_verdict(prompt: Prompt) -> None:
    text = "All is well. You are an idiot. Bye now."
    [verdicts] = judge(prompt, text)
    assert [verdict.score > 0.5 for verdict in verdicts] == [False, True, False]
    assert phrases(text, verdicts) == ["idiot"]


def test_texts_are_judged_together_and_kept_apart(prompt: Prompt) -> None:
    texts = ["You idiot.", "", "All is well. Bye.", "```\nidiot\n```", "Trash."]
    engine = ByteEngine()
    found = judge(prompt, *texts, engine=engine)
    assert [len(verdicts) for verdicts in found] == [1, 0, 2, 0, 1]
    assert len(engine.judged) == 3
    assert found == [judge(prompt, text)[0] for text in texts]


def test_nothing_to_judge_is_no_call(prompt: Prompt) -> None:
    def fail(windows: Sequence[Window]) -> list[Scores]:
        raise AssertionError

    assert Detector(prompt, Calibration(), 4096).judge([("", []), ("...", [])], fail) == [[], []]


def test_windows_hold_each_segment_once_beside_one_as_context(prompt: Prompt) -> None:
    text = " ".join(f"Sentence {n:03} speaks of the trains that leave on time." for n in range(60))
    parts = segments(text)
    engine = ByteEngine()
    judge(prompt, text, engine=engine)
    assert len(engine.judged) > 2
    read = [engine.read(window.ids) for window in engine.judged]
    for window in engine.judged:
        assert len(window.ids) <= WINDOW + 30
        owners = [owner for owner in window.owner if owner >= 0]
        assert owners == sorted(owners)
        assert set(owners) == set(range(window.segments))
    held = [
        [n for n, part in enumerate(parts) if text[part.start : part.end] in each] for each in read
    ]
    assert held[0][0] == 0
    assert held[-1][-1] == len(parts) - 1
    for left, right in pairwise(held):
        assert right[0] == left[-1]  # the context; its verdict is that of its own window
        assert right == list(range(right[0], right[-1] + 1))


def test_context_does_not_count_twice(prompt: Prompt) -> None:
    """The last sentence of a window is context in the next one, and judged in its own only."""
    filler = "The train leaves on time. " * 33
    text = filler + "You idiot here. " + filler
    [verdicts] = judge(prompt, text)
    assert [n for n, verdict in enumerate(verdicts) if verdict.score > 0.5] == [33]


def test_segments_far_apart_share_no_window(prompt: Prompt) -> None:
    engine = ByteEngine()
    code = "```\n" + "x = 1\n" * 40 + "```"
    assert len(code) > GAP
    judge(prompt, f"Look here.\n{code}\nThat is all.", engine=engine)
    assert len(engine.judged) == 2
    assert not any("x = 1" in engine.read(window.ids) for window in engine.judged)


def test_code_between_segments_belongs_to_none(prompt: Prompt) -> None:
    engine = ByteEngine()
    text = "Look here.\n```\nidiot\n```\nThat is all."
    [verdicts] = judge(prompt, text, engine=engine)
    assert [verdict.score > 0.5 for verdict in verdicts] == [False, False]
    assert len(engine.judged) == 1


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Oh you ｉｄｉｏｔ there", "ｉｄｉｏｔ"),
        ("Oh you i\u200bd\u200bi\u200bo\u200bt there", "i\u200bd\u200bi\u200bo\u200bt"),
        ("Oh you i d i o t there", "i d i o t"),
        ("😀😀 Oh you іdіоt there", "іdіоt"),
        ("Oh you iiidiot there", "iiidiot"),
        ("\ufeffMüller — you idiot", "idiot"),
        ("Oh you idiots there", "idiots"),
        ("Oh you STUPID there", "STUPID"),
    ],
)
def test_spans_stand_in_the_original(prompt: Prompt, text: str, phrase: str) -> None:
    [[verdict]] = judge(prompt, text)
    assert phrases(text, [verdict]) == [phrase]


def test_both_views_give_their_spans(prompt: Prompt) -> None:
    text = "You idiot and s t u p i d person."
    [verdicts] = judge(prompt, text)
    assert phrases(text, verdicts) == ["idiot", "s t u p i d"]


def test_a_plain_text_is_read_once(prompt: Prompt) -> None:
    engine = ByteEngine()
    judge(prompt, "You are an idiot.", engine=engine)
    assert len(engine.judged) == 1
    judge(prompt, "You are an ｉｄｉｏｔ.", engine=engine)
    assert len(engine.judged) == 3


@pytest.mark.parametrize("most", [40, 57, 100])
def test_what_is_longer_than_the_model_takes_is_judged_in_parts(prompt: Prompt, most: int) -> None:
    text = "The sun shines on the hill. Birds sing in the old trees, you idiot, all day. Bye now."
    engine = ByteEngine()
    [verdicts] = judge(prompt, text, engine=engine, most=most)
    prefix = len(prompt.window("", [])[0].ids)
    assert all(prefix < len(window.ids) <= most for window in engine.judged)
    assert all(w.ids[:prefix] == engine.judged[0].ids[:prefix] for w in engine.judged)
    assert "".join(engine.read(w.ids[prefix:]) for w in engine.judged) == text
    assert [verdict.score > 0.5 for verdict in verdicts] == [False, True, False]


def test_the_rows_of_segments_that_a_part_does_not_hold_are_not_believed(prompt: Prompt) -> None:
    class Wild(ByteEngine):
        def detect(self, windows: Sequence[Window]) -> list[Scores]:
            found = super().detect(windows)
            for window, scores in zip(windows, found, strict=True):
                for row in set(range(window.segments)) - set(window.owner):
                    scores.labels[row] = 50
            return found

    text = "The sun shines on the hill. Birds sing in the old trees. Bye now."
    [verdicts] = judge(prompt, text, engine=Wild(), most=40)
    assert max(verdict.score for verdict in verdicts) < 0.5


def test_a_segment_whose_view_is_empty_gets_the_mildest_verdict(prompt: Prompt) -> None:
    def run(windows: Sequence[Window]) -> list[Scores]:
        return [
            Scores(
                np.full((w.segments, N_LOGITS), 9, np.float32),
                np.full((len(w.ids), len(CATEGORIES)), 9, np.float32),
            )
            for w in windows
        ]

    parts = [Segment(0, 3, "prose", 0), Segment(3, 5, "prose", 0)]
    [[blank, word]] = Detector(prompt, Calibration(), 4096).judge([("   ab", parts)], run)
    assert (blank.score, blank.spans) == (0.0, ())
    assert word.score > 0.99


def test_calibration(prompt: Prompt) -> None:
    logits = np.zeros((1, N_LOGITS), np.float32)
    logits[0, UNSAFE] = 2.0
    logits[0, SLICES["toxicity"]] = (0.0, 2.0, 4.0)

    def run(windows: Sequence[Window]) -> list[Scores]:
        return [Scores(logits, np.zeros((len(w.ids), 3), np.float32)) for w in windows]

    calibration = Calibration(scale=0.5, shift=-1.0, temperatures={"toxicity": 2.0})
    text = "Hello."
    [[verdict]] = Detector(prompt, calibration, 99).judge(
        [(text, [Segment(0, 6, "prose", 0)])], run
    )
    assert verdict.score == 0.5
    powers = np.exp([0.0, 1.0, 2.0])
    assert verdict.labels["toxicity"] == pytest.approx(powers / powers.sum(), abs=10**-DIGITS)
    assert verdict.labels["bias"] == (0.5, 0.5)
    assert verdict.spans[0].start == 0  # at least one phrase, whatever its score


def test_a_span_stays_in_its_segment(prompt: Prompt) -> None:
    text = "a" * 3000 + "idiot" + "b" * 3000
    parts = [Segment(2900, 3003, "prose", 0), Segment(3003, 3100, "prose", 0)]
    [verdicts] = Detector(prompt, Calibration(), 4096).judge([(text, parts)], ByteEngine().detect)
    for verdict, part in zip(verdicts, parts, strict=True):
        assert all(part.start <= s.start < s.end <= part.end for s in verdict.spans)


def test_the_summary_takes_each_risk_where_it_is_worst(prompt: Prompt) -> None:
    [verdicts] = judge(prompt, "Some lazy people. What trash. Fine.")
    found = summarise(verdicts, [True, True, False], verified=True, language="en")
    assert (found.bias.value, found.toxicity.value, found.harm.value) == ("yes", "high", "low")
    assert found.score == max(verdict.score for verdict in verdicts)
    assert [span.category for span in found.spans] == ["bias", "toxicity"]
    for name, values in LABELS.items():
        assert tuple(getattr(found, name).probabilities) == values
        assert sum(getattr(found, name).probabilities.values()) == pytest.approx(1, abs=1e-3)


def test_the_summary_of_nothing_is_safe() -> None:
    found = summarise([], [], verified=True, language=None)
    assert (found.score, found.unsafe, found.spans) == (0.0, False, ())
    assert (found.bias.value, found.sentiment.value) == ("no", "neutral")


@pytest.mark.parametrize(("weak", "told"), [(1.5, ["fools", "met"]), (0.0, ["fools"])])
def test_a_span_is_nearly_as_likely_as_the_surest(weak: float, told: list[str]) -> None:
    text = "The fools all met"
    ranges = [(0, 3), (4, 9), (10, 13), (14, 17)]
    logits = np.full((4, len(CATEGORIES)), -9.0)
    logits[1, 0], logits[3, 0] = 3.0, weak  # .95 beside .82 or .5
    segment = Segment(0, len(text), "prose", 0)
    found, weaker = detector._spans(text, segment, ranges, logits, 0.3)
    assert [text[span.start : span.end] for span in found] == told
    assert [text[span.start : span.end] for span in (*found, *weaker)] == ["fools", "met"]


def test_a_weak_span_is_kept_where_it_reaches_the_threshold() -> None:
    ranges = [(0, 1), (2, 3), (4, 5)]
    logits = np.full((3, len(CATEGORIES)), -9.0)
    logits[0, 0], logits[2, 0] = -0.6, -1.2  # .35 beside .23
    segment = Segment(0, 5, "prose", 0)
    for threshold, count in ((0.2, 1), (0.25, 0), (0.4, 0)):
        found, weaker = detector._spans("a b c", segment, ranges, logits, threshold)
        assert (len(found), len(weaker)) == (1, count)


@pytest.mark.parametrize("other", [0.4, 0.95])
def test_of_two_views_both_say_what_is_weaker(prompt: Prompt, other: float) -> None:
    def verdict(score: float, at: int) -> Verdict:
        sure, weak = Span(at, at + 2, "bias", 0.9), Span(at + 2, at + 4, "bias", 0.55)
        return replace(NOTHING, score=score, spans=(sure,), weaker=(weak,))

    made = Detector(prompt, Calibration(), 4096)
    worse = made._worse(verdict(0.9, 0), verdict(other, 10))
    assert {span.start for span in worse.weaker} == {2, 12}
    worse = made._worse(verdict(0.9, 0), verdict(other, 1))  # spans that overlap
    assert {span.start for span in (*worse.spans, *worse.weaker)} == {0, 1, 2, 3}
    assert {span.start for span in worse.moved(5).weaker} >= {7, 8}
    marked = worse.with_weaker()
    told = [[span.start for span in spans] for spans in (marked.spans, marked.weaker)]
    assert sorted(map(sorted, told)) == [[0, 2], [1, 3]]  # nothing is forgotten
