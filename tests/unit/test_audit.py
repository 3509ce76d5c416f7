from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.audit import lost_parts, main, near_duplicates, read, tables
from train.schema import Record

UNSAFE: dict[str, Any] = {
    "id": "r-1",
    "text": "The old fools at https://example.org/a lost 3 keys.",
    "safe": "The neighbours at https://example.org/a lost 3 keys.",
    "bias": "yes",
    "toxicity": "mild",
    "sentiment": "negative",
    "harm": "low",
    "targets": ["age"],
    "kind": "derogation",
    "biased_words": ["old fools"],
    "genre": "forum",
    "split": "train",
}
SAFE: dict[str, Any] = UNSAFE | {
    "id": "r-2",
    "text": "A vote on Monday decides about the road.",
    "safe": "A vote on Monday decides about the road.",
    "bias": "no",
    "toxicity": "none",
    "targets": [],
    "kind": "none",
    "biased_words": [],
    "split": "dev",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_good_records_have_no_errors(tmp_path: Path) -> None:
    records, errors = read([write(tmp_path / "a.jsonl", UNSAFE), write(tmp_path / "b.jsonl", SAFE)])
    assert [record.id for record in records] == ["r-1", "r-2"]
    assert errors == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harm": "huge"}, 'a.jsonl line 2, field "harm"'),
        ({"safe": SAFE["text"] + " "}, 'a.jsonl line 2 (r-2): labels say safe, but "safe" differs'),
        ({"biased_words": ["x"]}, 'entry 1 of "biased_words" is not a substring'),
        ({"id": "r-1"}, "a.jsonl line 2: id r-1 is that of a.jsonl line 1"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, errors = read([write(tmp_path / "a.jsonl", UNSAFE, SAFE | change)])
    assert message in "\n".join(errors)


@pytest.mark.parametrize(
    ("safe", "lost"),
    [
        (UNSAFE["safe"], 0),
        (UNSAFE["safe"].replace("3", "some"), 1),
        (UNSAFE["safe"].replace("https://example.org/a", "the site"), 1),
        (None, 0),
    ],
)
def test_lost_numbers_and_urls_are_found(safe: str | None, lost: int) -> None:
    assert len(lost_parts(Record.from_dict(UNSAFE | {"safe": safe}))) == lost


def test_numbers_in_biased_words_may_go() -> None:
    row = UNSAFE | {"safe": "The neighbours at https://example.org/a lost keys."}
    assert lost_parts(Record.from_dict(row)) == ["number"]
    assert lost_parts(Record.from_dict(row | {"biased_words": ["old fools", "lost 3"]})) == []


def jaccard(one: str, other: str) -> float:
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(st.text("ab", min_size=1, max_size=14), max_size=12))
def test_near_duplicates_are_those_of_a_plain_comparison(texts: list[str]) -> None:
    expected = {
        (i, j): jaccard(texts[i], texts[j])
        for j in range(len(texts))
        for i in range(j)
        if jaccard(texts[i], texts[j]) >= 0.6
    }
    assert {(i, j): value for i, j, value in near_duplicates(texts)} == expected


def test_case_and_white_space_do_not_hide_a_duplicate() -> None:
    texts = ["A vote on  Monday.", "Something else entirely", "a VOTE\non monday."]
    assert list(near_duplicates(texts)) == [(0, 2, 1.0)]


def test_tables_count_safe_and_unsafe() -> None:
    shown = tables([Record.from_dict(UNSAFE), Record.from_dict(SAFE)])
    for row in (
        "| train | 0 | 1 | 1 |",
        "| dev | 1 | 0 | 1 |",
        "| all | 1 | 1 | 2 |",
        "| mild | 0 | 1 | 1 |",
        "| derogation | 0 | 1 | 1 |",
        "| forum | 1 | 1 | 2 |",
        "| age | 0 | 1 | 1 |",
        "| no target | 1 | 0 | 1 |",
        "| below 100 | 1 | 1 | 2 |",
    ):
        assert row in shown.splitlines()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", UNSAFE, SAFE)
    other = write(tmp_path / "dev.jsonl", {"text": SAFE["text"].upper()}, {"no": "text"})
    assert main([str(path)]) == 0
    assert "Errors: 0\n\nRemarks: 0" in capsys.readouterr().out
    assert main([str(path), "--against", str(other)]) == 0
    assert "r-2 and dev.jsonl line 1: 1.00 similar" in capsys.readouterr().out
    write(path, UNSAFE, SAFE | {"safe": "Other."})
    assert main([str(path)]) == 1
    assert "Errors: 1" in capsys.readouterr().out
    path.write_text("{")
    assert main([str(path)]) == 1
    assert "a.jsonl line 1: not JSON" in capsys.readouterr().err


def test_the_records_of_the_project_have_no_errors() -> None:
    folder = Path(__file__).parents[2] / "train" / "data"
    records, errors = read(sorted(folder.glob("*.jsonl")))
    assert errors == []
    assert len(records) >= 2300
