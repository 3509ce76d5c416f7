from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sets

AUTHORED = Path(__file__).parents[2] / "train" / "data"


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_sets_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "toxigen_annotated.jsonl").touch()
    assert [one.name for one in sets.detection(tmp_path, AUTHORED, "dev")] == ["authored"]
    assert [one.name for one in sets.ordinary(tmp_path, AUTHORED, "dev")] == ["authored"]


def test_authored_records_bring_their_truth_and_spans() -> None:
    (one,) = sets.detection(Path("nowhere"), AUTHORED, "dev")
    assert len(one.cases) > 100
    for case in one.cases:
        assert bool(case.spans) == case.unsafe
    (safe,) = sets.ordinary(Path("nowhere"), AUTHORED, "dev")
    assert safe.cases == tuple(case for case in one.cases if not case.unsafe)
    pairs = sets.rewriting("authored", Path("nowhere"), AUTHORED, "dev").pairs
    assert len(pairs) == sum(case.unsafe for case in one.cases)
    assert all(phrase in pair.text for pair in pairs for phrase in pair.phrases)


def test_rewrites_are_the_safe_side(tmp_path: Path) -> None:
    write(
        tmp_path / "dev" / "appdia.jsonl",
        {"text": "bad", "safe": ["good", "bad", " ", "good"]},
        {"text": "worse", "safe": [""]},
    )
    found = {one.name: one for one in sets.detection(tmp_path, AUTHORED, "dev")}
    told = [(case.text, case.unsafe) for case in found["appdia"].cases]
    assert told == [("bad", True), ("good", False), ("worse", True)]
    pairs = sets.rewriting("appdia", tmp_path, AUTHORED, "dev").pairs
    assert [(pair.id, pair.text) for pair in pairs] == [("appdia-1", "bad")]


def test_context_stands_before_the_text_and_is_not_judged(tmp_path: Path) -> None:
    row = {"context": "c" * 400, "text": "You fool.", "category": "Offending User", "unsafe": 1}
    write(tmp_path / "train" / "diasafety.jsonl", row)
    write(tmp_path / "dev" / "diasafety.jsonl", row)
    found = {one.name: one for one in sets.detection(tmp_path, AUTHORED, "dev")}
    (case,) = found["diasafety"].cases
    assert case.text == "c" * 300 + "\nYou fool."
    assert case.text[case.start :] == "You fool."


def test_sexism_has_its_negatives(tmp_path: Path) -> None:
    rows = [{"text": "one", "sexist": 1}, {"text": "two", "sexist": 0}]
    write(tmp_path / "train" / "edos.jsonl", *rows)
    write(tmp_path / "dev" / "edos.jsonl", *rows)
    found = {one.name: one for one in sets.detection(tmp_path, AUTHORED, "dev")}
    assert [case.unsafe for case in found["edos"].cases] == [True, False]


def test_an_unknown_set_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown set 'x'; the sets are paradetox"):
        sets.rewriting("x", tmp_path, AUTHORED, "dev")
