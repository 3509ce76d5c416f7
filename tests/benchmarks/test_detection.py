from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import detection
from benchmarks.sets import Case
from srllm_guard.detector import NOTHING, Verdict
from srllm_guard.draft import Draft
from srllm_guard.language import Language
from srllm_guard.results import Span
from srllm_guard.text.segments import Segment

TEXT = "Hello, you fool.\nFine. You are late."


def draft(*scores: float) -> Draft:
    parts = ((0, 16), (17, 22), (23, 36))
    verdicts = tuple(
        Verdict(score, NOTHING.labels, (Span(start, end, "toxicity", score),))
        for score, (start, end) in zip(scores, parts, strict=True)
    )
    return Draft(
        TEXT,
        tuple(Segment(start, end, "prose", 0) for start, end in parts),
        verdicts,
        tuple(score >= 0.5 for score in scores),
        Language("en", 1.0, True),
    )


def test_context_is_left_out_of_the_verdict() -> None:
    whole = detection.judged(Case(TEXT, True), draft(0.9, 0.1, 0.6))
    assert (whole.score, whole.flagged, whole.spans) == (0.9, True, ((0, 16), (23, 36)))
    part = detection.judged(Case(TEXT, True, start=17), draft(0.9, 0.1, 0.4))
    assert (part.score, part.flagged, part.spans) == (0.4, False, ())


def test_text_and_segment_levels() -> None:
    cases = [Case(TEXT, True, ((7, 15),)), Case(TEXT, False, ()), Case(TEXT, True)]
    found = [
        detection.judged(case, draft(*scores))
        for case, scores in zip(
            cases, [(0.9, 0.1, 0.2), (0.1, 0.1, 0.6), (0.2, 0.3, 0.4)], strict=True
        )
    ]
    texts = detection.text_level(cases, found, seed=0)
    assert (texts["count"], texts["unsafe"]) == (3, 2)
    assert texts["auroc"]["value"] == 0.5
    assert texts["recall"]["value"] == 0.5
    assert texts["false_positive_rate"]["value"] == 1.0
    assert texts["span_f1"]["value"] == pytest.approx(2 * 8 / (8 + 16), abs=1e-4)
    segments = detection.segment_level(cases, found, seed=0)
    assert (segments["count"], segments["unsafe"]) == (6, 1)  # nobody marked the third text
    assert segments["auroc"]["value"] == 1.0
    assert segments["false_positive_rate"]["value"] == 0.2


def test_restraint_counts_texts_and_segments() -> None:
    found = [detection.judged(Case(TEXT, False), draft(*s)) for s in ((0.9, 0.1, 0.9), (0, 0, 0))]
    told = detection.restraint(found, seed=0)
    assert told["flagged"]["value"] == 0.5
    assert told["segments_flagged"] == {"value": 0.3333}
    assert told["unverified"] == 0.0


def test_a_missing_bundle_ends_with_a_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = detection.main(["--data", str(tmp_path), "--model", "./no/such/bundle"])
    assert status == 1
    assert "no/such/bundle" in capsys.readouterr().err
