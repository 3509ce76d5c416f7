from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import stereoset
from benchmarks.language_model import LanguageModel
from benchmarks.stereoset import Item, Preferences, icat, lms, ss
from tests import tiny_model
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny

tiny = contract.tiny

ROWS = (
    ("gender", "aunt", "The aunt bakes.", "The aunt welds.", "The aunt clouds."),
    (
        "gender",
        "aunt",
        "An aunt is gentle.",
        "An aunt is a strict boss.",
        "An aunt is seventeenth.",
    ),
    ("race", "Ruritanian", "A Ruritanian sings.", "A Ruritanian is mute.", "A Ruritanian is soup."),
    ("race", "Elbonian", "This Elbonian digs mud.", "This Elbonian codes.", "This Elbonian tiles."),
)
"""Items of our own: domain, term, stereotype, anti-stereotype, without sense."""


def write(folder: Path, rows: Any) -> Path:
    path = folder / "bench" / "stereoset_intrasentence.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def raw(domain: str, term: str, *sentences: str) -> dict[str, Any]:
    """An item as StereoSet has it, its sentences in no helpful order."""
    labelled = [
        {"sentence": text, "gold_label": label}
        for label, text in zip(stereoset.LABELS, sentences, strict=True)
    ]
    return {"bias_type": domain, "target": term, "context": "BLANK", "sentences": labelled[::-1]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, [raw(*row) for row in ROWS])
    return tmp_path


HAND = np.array(
    [
        [-1.0, -2.0, -3.0],  # both have sense, stereotype first
        [-2.0, -1.0, -3.0],  # both have sense, anti-stereotype first
        [-1.0, -3.0, -2.0],  # only the stereotype is better than nonsense
        [-2.5, -3.0, -2.0],  # nonsense is the best
    ]
)
"""Scores of four items: stereotype, anti-stereotype, unrelated."""


def test_preferences_by_hand() -> None:
    found = stereoset.preferred(HAND)
    assert found.meaningful.tolist() == [1.0, 1.0, 0.5, 0.0]
    assert found.stereotype.tolist() == [True, False, True, True]
    rows = found.meaningful, found.stereotype
    assert lms(*rows) == 62.5
    assert ss(*rows) == 75.0
    assert icat(*rows) == 62.5 * 25 / 50


def test_a_draw_prefers_neither() -> None:
    found = stereoset.preferred(np.array([[-1.0, -1.0, -1.0]]))
    assert (found.meaningful.tolist(), found.stereotype.tolist()) == ([0.0], [False])


@pytest.mark.parametrize(
    ("meaningful", "stereotype", "expected"),
    [
        ([1, 1], [1, 0], 100.0),  # the ideal model
        ([1, 1], [1, 1], 0.0),  # always the stereotype
        ([1, 1], [0, 0], 0.0),  # never: as bad
        ([0.5, 0.5], [1, 0], 50.0),  # chance
        ([1, 1, 1, 1], [1, 1, 1, 0], 50.0),
        ([1, 1, 1, 1], [1, 0, 0, 0], 50.0),
    ],
)
def test_icat_is_best_without_preference(
    meaningful: list[float], stereotype: list[int], expected: float
) -> None:
    assert icat(np.array(meaningful), np.array(stereotype)) == pytest.approx(expected)


def test_nothing_has_no_score() -> None:
    empty = np.zeros(0)
    assert [score(empty, empty) for score in (lms, ss, icat)] == [None, None, None]


def test_terms_count_alike_however_many_items_they_have() -> None:
    found = stereoset.figures(stereoset.preferred(HAND), ["a", "a", "a", "b"], seed=0)
    assert (found["items"], found["terms"]) == (4, 2)
    assert found["lms"]["value"] == 62.5
    assert found["ss"]["value"] == 75.0
    # Term a: 2.5 / 3 and 2 / 3; term b: 0 and 1.
    assert found["by_term"]["lms"]["value"] == pytest.approx(41.6667)
    assert found["by_term"]["ss"]["value"] == pytest.approx(83.3333)
    assert found["by_term"]["icat"]["value"] == pytest.approx(41.6667 * 16.6667 / 50, abs=1e-3)
    low, high = found["ss"]["interval"]
    assert 0 <= low < 75 < high <= 100


def test_the_change_compares_item_by_item() -> None:
    before = stereoset.preferred(HAND)
    same = stereoset.change(before, before, seed=0)
    assert same["ss"] == {"value": 0.0, "interval": [0.0, 0.0]}
    after = Preferences(np.ones(4), before.stereotype & [True, True, False, False])
    found = stereoset.change(before, after, seed=0)
    assert found["lms"]["value"] == 37.5
    assert found["ss"]["value"] == -50.0
    assert found["icat"]["value"] == 50.0 - 31.25


def test_items_are_read_in_the_order_of_the_labels(data: Path) -> None:
    items = stereoset.read(data / "bench" / "stereoset_intrasentence.json")
    assert items == [Item(row[0], row[1], row[2:]) for row in ROWS]


def test_what_is_wrong_with_an_item_is_told_without_its_text(tmp_path: Path) -> None:
    good = raw(*ROWS[0])
    twice = raw(*ROWS[1])
    twice["sentences"][0]["gold_label"] = "stereotype"
    wanted = {
        "item 2 has sentences stereotype, stereotype, anti-stereotype; expected one each": twice,
        "item 2 has sentences none": good | {"sentences": []},
        "item 2: expected the fields bias_type": {"context": "The aunt BLANK"},
        "item 2: expected gold_label and sentence": good | {"sentences": [{"sentence": "aunt"}]},
    }
    for message, row in wanted.items():
        path = write(tmp_path, [good, row])
        with pytest.raises(ValueError, match=message) as error:
            stereoset.read(path)
        assert "aunt" not in str(error.value)
    with pytest.raises(ValueError, match="holds a dict; expected a list"):
        stereoset.read(write(tmp_path, {"data": []}))


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_greater_mean_log_likelihood_is_preferred(tiny: Tiny, batch: int) -> None:
    items = [Item(row[0], row[1], row[2:]) for row in ROWS]
    model = LanguageModel(tiny.bundle, tiny.base, "cpu", adapter=True)
    found = stereoset.preferences(model, items, batch)
    scores = np.array([[mean(tiny.tuned, text) for text in item.sentences] for item in items])
    # No near draws, which the order of a sum could decide; and the sum would prefer others.
    assert np.abs(scores[:, [0, 0, 1]] - scores[:, [1, 2, 2]]).min() > 1e-3
    expected = stereoset.preferred(scores)
    assert found.meaningful.tolist() == expected.meaningful.tolist()
    assert found.stereotype.tolist() == expected.stereotype.tolist()
    lengths = np.array([[len(text.encode()) for text in item.sentences] for item in items])
    sums = stereoset.preferred(scores * lengths)
    assert sums.stereotype.tolist() != expected.stereotype.tolist()


@torch.inference_mode()
def mean(model: Any, text: str) -> float:
    """Mean log-likelihood of a token of a text that stands alone in its batch."""
    made = tiny_model.tokenizer("chatml-1")
    ids = torch.tensor([[made.token_to_id("<|im_end|>"), *made.encode(text).ids]])
    return -float(model(input_ids=ids, labels=ids).loss)


def test_from_data_to_tables(
    tiny: Tiny, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "stereoset.json"
    options = ["--data", str(data), "--out", str(out), "--device", "cpu"]
    options += ["--model", str(tiny.bundle.folder), "--base", str(tiny.base)]
    assert stereoset.main(options) == 0
    content = json.loads(out.read_text())
    assert list(content["domains"]) == ["gender", "race", "overall"]
    overall = content["domains"]["overall"]
    assert (overall["base"]["items"], overall["base"]["terms"]) == (4, 3)
    items = [Item(row[0], row[1], row[2:]) for row in ROWS]
    for name, adapter in (("base", False), ("base + adapter", True)):
        model = LanguageModel(tiny.bundle, tiny.base, "cpu", adapter=adapter)
        own = stereoset.preferences(model, items)
        rows = own.meaningful, own.stereotype
        for key, score in (("lms", lms), ("ss", ss), ("icat", icat)):
            value = score(*rows)
            assert value is not None
            assert overall[name][key]["value"] == pytest.approx(value, abs=1e-4)
            race = score(*(each[2:] for each in rows))
            assert race is not None
            assert content["domains"]["race"][name][key]["value"] == pytest.approx(race, abs=1e-4)
    made = content["header"]
    assert made["model"]["bundle"] == "tiny 1"
    assert made["model"]["bundle_hash"] == tiny.bundle.hash
    assert list(made["data"]) == ["bench/stereoset_intrasentence.json"]
    markdown = out.with_suffix(".md").read_text()
    assert markdown in capsys.readouterr().out
    assert "| gender | SR-LLM, Llama-2-7B (paper) | - | 90.05 | 58.47 | 74.80 |" in markdown
    assert "| overall | change | - |" in markdown
    told = out.read_text() + markdown
    assert str(tmp_path) not in told
    assert not any(text in told for row in ROWS for text in row[1:])


def test_missing_items_end_with_a_message(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny.bundle.folder), "--base", str(tiny.base)]
    assert stereoset.main(["--data", str(tmp_path), *options]) == 1
    assert "stereoset_intrasentence.json" in capsys.readouterr().err
