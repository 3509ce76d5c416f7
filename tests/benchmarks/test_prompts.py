from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import prompts
from benchmarks.language_model import LanguageModel
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny
from train.schema import KINDS

tiny = contract.tiny

RECORD: dict[str, Any] = {
    "safe": "The clerk is late.",
    "bias": "no",
    "toxicity": "mild",
    "sentiment": "negative",
    "harm": "low",
    "targets": ["individual"],
    "kind": "insult",
    "biased_words": [],
    "genre": "forum",
    "split": "train",
}


def folder(path: Path, *rows: dict[str, Any]) -> Path:
    """Records in two files: a set may have several."""
    path.mkdir()
    lines = [json.dumps(RECORD | {"id": f"r-{n}"} | row) + "\n" for n, row in enumerate(rows)]
    (path / "a.jsonl").write_text("".join(lines[::2]))
    (path / "b.jsonl").write_text("".join(lines[1::2]))
    return path


def test_examples_are_unsafe_texts_of_the_training_split_with_their_rewrites(
    tmp_path: Path,
) -> None:
    good = {"text": "That fool of a clerk is late."}
    safe = {"toxicity": "none", "kind": "none"}
    authored = folder(
        tmp_path / "own",
        good,
        {"text": "From dev.", "kind": "threat", "split": "dev"},
        {"text": "From test.", "kind": "exclusion", "split": "test"},
        {"text": "The clerk is late.", **safe},
        {"text": "Nobody has rewritten this.", "kind": "derogation", "safe": None},
        {"text": "Two\nlines.", "kind": "stereotype"},
        {"text": "x" * (prompts.LONGEST + 1), "kind": "generalisation"},
    )
    for seed in range(5):
        found = prompts.shots(authored, 9, seed)
        assert found == [(good["text"], "The clerk is late.")]


def test_a_text_of_the_greatest_length_is_short_enough(tmp_path: Path) -> None:
    longest = "x" * prompts.LONGEST
    authored = folder(tmp_path / "own", {"text": longest})
    assert prompts.shots(authored, 1, 0) == [(longest, RECORD["safe"])]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Four records of each unsafe kind, which the text names."""
    rows = [
        {"text": f"{kind} {n}", "safe": f"safe {kind} {n}", "kind": kind}
        for kind in KINDS
        if kind != "none"
        for n in range(4)
    ]
    return folder(tmp_path / "own", *rows)


def test_of_a_kind_there_is_one_at_most(many: Path) -> None:
    found = prompts.shots(many, 100, seed=0)
    assert sorted(text.split()[0] for text, _ in found) == sorted(set(KINDS) - {"none"})
    assert all(safe == f"safe {text}" for text, safe in found)


def test_the_seed_alone_decides(many: Path) -> None:
    drawn = [tuple(prompts.shots(many, 5, seed)) for seed in range(6)]
    assert drawn == [tuple(prompts.shots(many, 5, seed)) for seed in range(6)]
    assert len(set(drawn)) > 1
    assert len({text for turns in drawn for text, _ in turns}) > 10  # not the first of each kind
    assert prompts.shots(many, 2, seed=3) == list(drawn[3][:2])
    assert prompts.shots(many, 0, seed=3) == []


def test_the_model_is_asked_with_instruction_and_examples(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LanguageModel(tiny.bundle, tiny.base, "cpu", adapter=False)
    texts, turns = ["You are late.", "x"], [("You fool.", "Hello.")]
    found = prompts.prompted(model, turns, texts, "two texts")
    assert found == model.answers(prompts.SYSTEM, turns, texts)
    assert found != model.answers("Be silent.", turns, texts)
    assert found != model.answers(prompts.SYSTEM, [], texts)
    shown = capsys.readouterr().err
    assert "two texts" in shown
    assert "2/2" in shown
