from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srllm_guard.labels import LABELS
from train.schema import (
    GENRES,
    KINDS,
    SPLITS,
    TARGETS,
    Record,
    SchemaError,
    read_records,
    to_line,
    write_records,
)

UNSAFE: dict[str, Any] = {
    "id": "r-1",
    "text": "The old fools upstairs lost 3 keys.",
    "safe": "The neighbours upstairs lost 3 keys.",
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
    "text": "The neighbours lost 3 keys.",
    "safe": "The neighbours lost 3 keys.",
    "bias": "no",
    "toxicity": "none",
    "targets": [],
    "kind": "none",
    "biased_words": [],
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_record_comes_back_as_it_was() -> None:
    record = Record.from_dict(UNSAFE)
    assert record.targets == ("age",)
    assert record.biased_words == ("old fools",)
    assert record.to_dict() == UNSAFE
    assert json.loads(to_line(record)) == UNSAFE


def test_a_record_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Record.from_dict(UNSAFE).text = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("labels", "unsafe"),
    [
        ({"bias": "no", "toxicity": "none", "harm": "low"}, False),
        ({"bias": "yes", "toxicity": "none", "harm": "low"}, True),
        ({"bias": "no", "toxicity": "mild", "harm": "low"}, True),
        ({"bias": "no", "toxicity": "none", "harm": "medium"}, True),
    ],
)
def test_unsafe_follows_bias_toxicity_and_harm_only(labels: dict[str, str], unsafe: bool) -> None:
    assert Record.from_dict(UNSAFE | labels | {"sentiment": "negative"}).unsafe is unsafe


@pytest.mark.parametrize("name", list(UNSAFE))
def test_each_field_is_required(name: str) -> None:
    row = {key: value for key, value in UNSAFE.items() if key != name}
    with pytest.raises(SchemaError, match=f'missing "{name}"'):
        Record.from_dict(row)


@pytest.mark.parametrize("name", [*LABELS, "kind", "genre", "split"])
def test_a_wrong_value_is_named_with_the_allowed_ones(name: str) -> None:
    allowed = {**LABELS, "kind": KINDS, "genre": GENRES, "split": SPLITS}[name]
    with pytest.raises(SchemaError) as error:
        Record.from_dict(UNSAFE | {name: "severe"}, "a.jsonl line 7")
    assert "a.jsonl line 7" in str(error.value)
    assert f'"{name}"' in str(error.value)
    assert "'severe'" in str(error.value)
    assert all(f'"{value}"' in str(error.value) for value in allowed)


def test_an_unknown_target_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(SchemaError, match="'elves' is not one of \"age\"") as error:
        Record.from_dict(UNSAFE | {"targets": ["age", "elves"]})
    assert all(f'"{target}"' in str(error.value) for target in TARGETS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 5}, 'field "text": expected a string, found int'),
        ({"text": None}, 'field "text": expected a string, found null'),
        ({"text": "a\ud800b"}, 'field "text": lone surrogate at character 1'),
        ({"bias": True}, 'field "bias": bool is not one of'),
        ({"targets": "age"}, 'field "targets": expected a list of strings, found str'),
        ({"biased_words": [1]}, 'field "biased_words": expected a string, found int'),
        ({"note": "x"}, 'unknown "note"'),
    ],
)
def test_types_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Record.from_dict(UNSAFE | change)


def test_the_text_never_appears_in_an_error() -> None:
    rows = [
        UNSAFE | {"bias": "maybe"},
        UNSAFE | {"safe": 1},
        {"text": UNSAFE["text"]},
        UNSAFE | {"extra": UNSAFE["text"]},
    ]
    for row in rows:
        with pytest.raises(SchemaError) as error:
            Record.from_dict(row)
        assert "fools" not in str(error.value)


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(SchemaError, match="expected a JSON object, found list"):
        Record.from_dict([UNSAFE])


def test_safe_may_be_unknown() -> None:
    record = Record.from_dict(UNSAFE | {"safe": None})
    assert record.safe is None
    assert record.contradictions() == ()


def test_records_that_agree_with_themselves() -> None:
    assert Record.from_dict(UNSAFE).contradictions() == ()
    assert Record.from_dict(SAFE).contradictions() == ()


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (UNSAFE, {"safe": UNSAFE["text"]}, '"safe" equals "text"'),
        (SAFE, {"safe": "Other."}, '"safe" differs from "text"'),
        (UNSAFE, {"safe": " "}, '"safe" is empty'),
        (SAFE, {"text": "", "safe": ""}, '"text" is empty'),
        (UNSAFE, {"kind": "none"}, '"kind" must be "none"'),
        (SAFE, {"kind": "insult"}, '"kind" must be "none"'),
        (UNSAFE, {"biased_words": []}, '"biased_words" must be empty exactly'),
        (UNSAFE, {"biased_words": ["Old fools"]}, "entry 1 .* is not a substring"),
        (UNSAFE, {"biased_words": ["old fools", " "]}, "entry 2 .* is not a substring"),
        (UNSAFE, {"targets": ["age", "age"]}, '"targets" holds an entry twice'),
    ],
)
def test_contradictions_are_found(
    row: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    found = Record.from_dict(row | change).contradictions()
    assert re.search(message, "\n".join(found)), found


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    odd = UNSAFE | {"id": "r-3", "text": "Line\u2028end\r\n\x85 old fools 👵🏽", "safe": "é\tn\n"}
    records = [Record.from_dict(row) for row in (UNSAFE, SAFE, odd)]
    path = tmp_path / "a.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    assert path.read_bytes().count(b"\n") == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = Record.from_dict(UNSAFE)
    write_records(path, [good])
    with pytest.raises(UnicodeEncodeError):
        write_records(path, [good, replace(good, text="\ud800")])
    assert read_records(path) == [good]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken\n", r"a\.jsonl line 3: not JSON"),
        (b"\xff\n", r"a\.jsonl line 3: not UTF-8"),
        (b"[]\n", r"a\.jsonl line 3: expected a JSON object"),
    ],
)
def test_the_line_of_a_bad_record_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", UNSAFE)
    path.write_bytes(path.read_bytes() + b"\n" + line)
    with pytest.raises(SchemaError, match=message):
        read_records(path)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_line(text: str) -> None:
    record = Record.from_dict(UNSAFE | {"text": text})
    line = to_line(record)
    assert line.count("\n") == 1
    assert Record.from_dict(json.loads(line)) == record
