from __future__ import annotations

import math

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


def test_precision_against_recall_of_known_scores() -> None:
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert metrics.precision_recall(truth, scores) == {
        "recall": [1.0, 1.0, 0.5, 0.5, 0.0],
        "precision": [0.5, 0.6667, 0.5, 1.0, 1.0],
    }
    assert metrics.precision_recall(np.ones(3, int), np.ones(3)) is None
    assert metrics.precision_recall(np.zeros(0, int), np.zeros(0)) is None


def test_a_curve_keeps_its_ends_and_not_all_its_points() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 1000)
    found = metrics.precision_recall(truth, draw.random(1000), points=20)
    assert found is not None
    recall, precision = found["recall"], found["precision"]
    assert len(recall) == len(precision) == 20
    assert (recall[0], recall[-1], precision[-1]) == (1.0, 0.0, 1.0)
    assert recall == sorted(recall, reverse=True)
    assert precision[0] == pytest.approx(truth.mean(), abs=1e-4)


def test_macro_f1_is_a_mean_over_the_classes_of_the_truth() -> None:
    truth = np.array([0, 0, 1, 1])
    assert metrics.macro_f1(truth, truth) == 1.0
    assert metrics.macro_f1(truth, np.array([0, 0, 0, 1])) == pytest.approx((0.8 + 2 / 3) / 2)
    # A class that was chosen and never true is an error of the others, not a class with F1 0.
    assert metrics.macro_f1(np.array([0, 0]), np.array([0, 2])) == pytest.approx(2 / 3)
    # A class that is true and was never chosen has F1 0.
    assert metrics.macro_f1(np.array([0, 0, 2]), np.array([0, 0, 0])) == pytest.approx(0.4)
    assert metrics.macro_f1(np.zeros(0, int), np.zeros(0, int)) is None


def test_bins_hold_mean_chance_share_and_count() -> None:
    unsafe, chances = np.array([0, 1, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])
    assert metrics.reliability(unsafe, chances) == [[0.05, 0.5, 2], [0.975, 1.0, 2]]
    assert metrics.reliability(unsafe, chances, bins=1) == [[0.5125, 0.75, 4]]
    assert metrics.reliability(np.array([1]), np.array([0.0])) == [[0.0, 1.0, 1]]
    assert metrics.reliability(np.zeros(0, int), np.zeros(0)) == []


def test_calibration_error_weighs_bins_by_their_texts() -> None:
    unsafe, chances = np.array([0, 1, 1, 1]), np.array([0.05, 0.05, 0.95, 1.0])
    assert metrics.calibration_error(unsafe, chances) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
    unsafe, chances = np.array([1, 0, 0, 0, 0]), np.array([1.0, 0.5, 0.0, 0.0, 0.0])
    assert metrics.calibration_error(unsafe, chances) == pytest.approx(0.1)
    assert metrics.calibration_error(np.array([0, 1]), np.array([0.0, 1.0])) == 0.0
    assert metrics.calibration_error(np.array([0, 1]), np.array([1.0, 0.0])) == 1.0
    assert metrics.calibration_error(np.zeros(0, int), np.zeros(0)) is None


def test_chances_that_are_right_on_the_whole_are_calibrated() -> None:
    draw = np.random.default_rng(0)
    chances = draw.random(20_000)
    unsafe = draw.random(20_000) < chances
    right, sure = (metrics.calibration_error(unsafe, each) for each in (chances, chances**3))
    assert right is not None
    assert sure is not None
    assert right < 0.02
    assert sure > 0.2


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


def test_bleu_is_of_the_corpus_and_not_a_mean_of_texts() -> None:
    pytest.importorskip("sacrebleu")
    right, wrong = "the cat sat on it", "a b c d e f g h i j k"
    assert metrics.bleu([right], [[right]]) == pytest.approx(1.0)
    # 5 of 16 words are right, 4 of 14 pairs, 3 of 12 triples, 2 of 10 quadruples.
    hits = math.prod((5 / 16, 4 / 14, 3 / 12, 2 / 10)) ** 0.25
    other = "l m n o p q r s t u v"
    assert metrics.bleu([right, wrong], [[right], [other]]) == pytest.approx(hits)
    assert metrics.bleu([], []) is None


def test_bleu_punishes_what_is_too_short() -> None:
    pytest.importorskip("sacrebleu")
    found = metrics.bleu(["the cat sat on it"], [["the cat sat on it now"]])
    assert found == pytest.approx(math.exp(1 - 6 / 5))


def test_bleu_takes_texts_with_more_and_with_fewer_references() -> None:
    pytest.importorskip("sacrebleu")
    texts = ["the cat sat on it", "we go home at nine"]
    references = [[texts[0]], ["nothing of it at all", texts[1]]]
    assert metrics.bleu(texts, references) == pytest.approx(1.0)
    fewer = metrics.bleu(texts, [row[:1] for row in references])
    assert fewer is not None
    assert fewer < 0.8


@pytest.mark.parametrize(
    ("source", "output", "flipped"),
    [
        ("He is here.", "He is not here.", True),
        ("He isn't here.", "He is here.", True),
        ("He isn’t here.", "He is not here.", False),
        ("He cannot come.", "He can't come.", False),
        ("i dont know", "i know", True),
        ("No one came.", "Nobody came.", False),
        ("He never said nothing.", "He said something.", False),  # two of them, as none
        ("You do not belong, no.", "You do not belong.", True),
        ("He is notable in Nottingham.", "He is here.", False),
        ("NOT here", "here", True),
        ("Come without him.", "Come with him.", True),
    ],
)
def test_a_negation_that_came_or_went(source: str, output: str, flipped: bool) -> None:
    assert metrics.flips_negation(source, output, []) is flipped
    assert metrics.flips_negation(output, source, []) is flipped


def test_a_negation_that_a_reference_has_is_none_that_came() -> None:
    said, meant = "They are useless.", "They do not help."
    assert metrics.flips_negation(said, meant, ["They are idle."])
    assert not metrics.flips_negation(said, meant, ["They are idle.", "They will not help."])
    assert not metrics.flips_negation(said, said, ["They will not help."])


def test_words_outside_of_the_edits_stay() -> None:
    source, output = "You lazy fool, come at 9.", "You person, come at 9."
    right = [((4, 13), (4, 10))]
    assert metrics.words_changed(source, output, right) == 0.0
    assert metrics.words_changed(source, source, []) == 0.0
    assert metrics.words_changed("a b c d", "a b x d", []) == 0.25
    assert metrics.words_changed("a b c d", "d", []) == 0.75
    assert metrics.words_changed(source, output.replace("come", "go"), right) == pytest.approx(0.2)
    # The words that an edit covers do not count, neither as changed nor as kept.
    assert metrics.words_changed("a b c d", "a x c y", [((2, 3), (2, 3))]) == pytest.approx(1 / 3)


def test_an_edit_of_the_whole_text_leaves_nothing_outside() -> None:
    assert metrics.words_changed("a b", "c", [((0, 3), (0, 1))]) == 0.0
    assert metrics.words_changed("a b", "c d", [((0, 3), (0, 1))]) == 1.0
    assert metrics.words_changed("", "", []) == 0.0


def test_facts_are_counted_one_by_one() -> None:
    source = "Call 3 people by 12 May, see https://example.org/a, all of you fools."
    assert metrics.kept_facts(source, source) == (3, 3)
    assert metrics.kept_facts(source, "Call 3 people, see https://example.org/a.") == (2, 3)
    assert metrics.kept_facts("no facts here", "at all") == (0, 0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Yesterday Anna met Ben's boss in Leeds.", {"Anna", "Ben", "Leeds"}),
        ("Come. Take Ann! Why? Who: Then", {"Ann"}),
        ("I think that God and I agree, Please.", set()),
        ('He said "Stop" to (Look) and\n- Go on\n> Well', set()),
        ("the BBC and iPhone have none, nor has McDonald", set()),
        ("see Anna, anna and ANNA", {"Anna"}),
        ("", set()),
    ],
)
def test_names_have_a_capital_and_begin_no_sentence(text: str, names: set[str]) -> None:
    assert metrics.names(text) == names


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


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ("You \0 fool", "You fool"),
        ("You\0fool", "You fool"),
        ("You  \0\0 \t\0  fool", "You fool"),
        ("You \0, \0 fool", "You , fool"),
        ("\0 You fool \0", "You fool"),
        ("one \0\ntwo", "one \ntwo"),
        ("one\n\0 two", "one\n two"),
        ("one \0\n\0 two", "one two"),  # what stood in between is gone with them
        ("two  blanks\n\nstay", "two  blanks\n\nstay"),
        ("\0", ""),
    ],
)
def test_white_space_around_what_was_deleted_becomes_one_blank(kept: str, text: str) -> None:
    assert metrics.closed_up(kept) == text


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


def test_rows_of_one_text_are_drawn_together() -> None:
    draw = np.random.default_rng(0)
    texts = draw.random(60)
    each = np.repeat(texts, 8)  # eight times the same says no more than once
    groups = draw.permutation(480) % 60
    alone = metrics.bootstrap_interval(metrics.share, texts)
    together = metrics.bootstrap_interval(metrics.share, texts[groups], groups=groups)
    apart = metrics.bootstrap_interval(metrics.share, each)
    assert alone is not None
    assert together is not None
    assert apart is not None
    assert together[1] - together[0] == pytest.approx(alone[1] - alone[0], rel=0.2)
    assert apart[1] - apart[0] < 0.5 * (together[1] - together[0])


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 93, 0.0, 0.0397), (16, 16, 0.8064, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_the_interval_of_a_share_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert metrics.wilson_interval(hits, count) == pytest.approx((low, high), abs=1e-4)
    assert metrics.wilson_interval(0, 0) is None


def test_no_interval_without_a_value() -> None:
    assert metrics.bootstrap_interval(metrics.share, []) is None
    assert metrics.bootstrap_interval(metrics.auroc, np.ones(4), np.ones(4)) is None
