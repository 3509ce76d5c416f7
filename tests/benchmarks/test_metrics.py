from __future__ import annotations

import numpy as np
import pytest

from benchmarks import metrics


def test_ranking_figures_of_known_scores() -> None:
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert metrics.auroc(truth, scores) == 0.75
    assert metrics.average_precision(truth, scores) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("truth", [np.zeros(3, int), np.ones(3, int), np.zeros(0, int)])
def test_one_class_alone_has_no_ranking(truth: metrics.Array) -> None:
    scores = np.linspace(0, 1, len(truth))
    assert metrics.auroc(truth, scores) is None
    assert metrics.average_precision(truth, scores) is None
    assert metrics.f1(truth, scores > 0.5) is None


def test_f1_of_decisions() -> None:
    truth, flagged = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert metrics.f1(truth, flagged) == 0.5
    assert metrics.f1(truth, np.zeros(4, int)) == 0.0


@pytest.mark.parametrize(
    ("predicted", "gold", "value"),
    [
        ([], [], 1.0),
        ([(0, 3)], [], 0.0),
        ([], [(0, 3)], 0.0),
        ([(0, 4)], [(0, 4)], 1.0),
        ([(0, 2), (2, 4)], [(0, 4)], 1.0),
        ([(0, 4)], [(2, 6)], 0.5),
        ([(0, 4), (1, 3)], [(0, 4)], 1.0),
    ],
)
def test_span_f1_counts_characters(
    predicted: list[metrics.Range], gold: list[metrics.Range], value: float
) -> None:
    assert metrics.span_f1(predicted, gold) == value


def test_chrf_takes_the_closest_reference() -> None:
    pytest.importorskip("sacrebleu")
    assert metrics.chrf("the cat sat", ["a dog", "the cat sat"]) == pytest.approx(1.0)
    far, near = metrics.chrf("the cat", ["a dog ran"]), metrics.chrf("the cat", ["the cats"])
    assert 0 <= far < near < 1
    assert metrics.chrf("", ["a dog"]) == 0.0
    assert "nc:6" in metrics.chrf_signature()


def test_facts_are_counted_one_by_one() -> None:
    source = "Call 3 people by 12 May, see https://example.org/a, all of you fools."
    assert metrics.kept_facts(source, source) == (3, 3)
    assert metrics.kept_facts(source, "Call 3 people, see https://example.org/a.") == (2, 3)
    assert metrics.kept_facts("no facts here", "at all") == (0, 0)


def test_phrases_are_gone_as_whole_words() -> None:
    assert metrics.phrases_gone("They work the late shift.", ["lazy", "late shifts"])
    assert not metrics.phrases_gone("LAZY as ever", ["lazy"])
    assert metrics.phrases_gone("the class", ["ass"])
    assert not metrics.phrases_gone("what (the hell) now", ["(the hell)"])


def test_ranges_are_deleted_with_one_blank_left() -> None:
    text = "You lazy, stupid fool\nwork"
    assert metrics.without_ranges(text, [(4, 8)]) == "You , stupid fool\nwork"
    assert metrics.without_ranges(text, [(4, 9), (10, 16)]) == "You fool\nwork"
    assert metrics.without_ranges(text, [(0, len(text))]) == ""
    assert metrics.without_ranges(text, []) == text


def test_interval_holds_the_mean_and_narrows_with_rows() -> None:
    draw = np.random.default_rng(0)
    few, many = draw.random(30), draw.random(3000)
    wide = metrics.bootstrap_interval(metrics.share, few)
    narrow = metrics.bootstrap_interval(metrics.share, many)
    assert wide is not None
    assert narrow is not None
    assert wide[0] < few.mean() < wide[1]
    assert narrow[0] < many.mean() < narrow[1]
    assert narrow[1] - narrow[0] < 0.3 * (wide[1] - wide[0])
    assert metrics.bootstrap_interval(metrics.share, few) == wide
    assert metrics.bootstrap_interval(metrics.share, few, seed=1) != wide


def test_interval_resamples_rows_and_not_columns_apart() -> None:
    truth = np.array([0, 1] * 20)
    bounds = metrics.bootstrap_interval(metrics.auroc, truth, truth.astype(float), rounds=50)
    assert bounds == (1.0, 1.0)


def test_no_interval_without_a_value() -> None:
    assert metrics.bootstrap_interval(metrics.share, []) is None
    assert metrics.bootstrap_interval(metrics.auroc, np.ones(4), np.ones(4)) is None
