from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from benchmarks import report, robustness
from benchmarks.robustness import HOMOGLYPHS, INVISIBLE, LEET, PERTURBATIONS, perturbed
from benchmarks.sets import Case
from tests.byte_engine import ByteEngine, runtime

TEXT = (
    "These people never learn anything about kindness, and their leaders shout stupid things every "
    "single morning while everybody else would rather drink coffee before work begins again."
)
KEPT = "Mail anna@example.org or see https://example.org/stupid/people before 12 March at 10:30am."

NAMES = sorted(PERTURBATIONS)


def undone(text: str, shapes: dict[str, str]) -> str:
    back = {sign: letter for letter, signs in shapes.items() for sign in signs}
    return "".join(back.get(sign, sign) for sign in text).lower()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_every_third_long_word_changes_and_short_ones_stay(name: str, seed: int) -> None:
    words = TEXT.split()
    long = [word for word in words if len(word.strip(",.")) >= 4]
    if name == "spacing":
        changed = len(re.findall(r"\b\w(?: \w){3,}\b", perturbed(name, TEXT, seed)))
    else:
        pairs = zip(words, perturbed(name, TEXT, seed).split(), strict=True)
        changed = sum(old != new for old, new in pairs)
        assert all(old == new or len(old) > 3 for old, new in pairs)
    assert len(long) // 3 - 1 <= changed <= len(long) // 3 + 1


@pytest.mark.parametrize("name", NAMES)
def test_addresses_and_numbers_stay_as_they_are(name: str) -> None:
    for seed in range(9):
        made = perturbed(name, KEPT, seed)
        for part in (
            "anna@example.org",
            "https://example.org/stupid/people",
            "12 March",
            "10:30am",
        ):
            assert part in made
    assert any(perturbed(name, KEPT, seed) != KEPT for seed in range(9))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    assert perturbed(name, TEXT, 1) == perturbed(name, TEXT, 1)
    assert len({perturbed(name, TEXT, seed) for seed in range(20)}) > 2
    assert perturbed(name, "a 1 to we", 0) == "a 1 to we"
    assert perturbed(name, "", 0) == ""
    assert perturbed(name, "oh, stupid!", 0) != "oh, stupid!"


@given(st.text("aeioustnxyZBC ,.'", max_size=80), st.integers(0, 99))
def test_what_was_done_can_be_undone(text: str, seed: int) -> None:
    for name, shapes in (("leetspeak", LEET), ("homoglyphs", HOMOGLYPHS)):
        assert undone(perturbed(name, text, seed), shapes) == text.lower()
    visible = perturbed("zero-width", text, seed).translate(dict.fromkeys(map(ord, INVISIBLE)))
    assert visible == text
    assert perturbed("spacing", text, seed).replace(" ", "") == text.replace(" ", "")


@given(st.text("abcd", min_size=4, max_size=9), st.integers(0, 99))
def test_a_typo_is_one_slip_within_a_word(word: str, seed: int) -> None:
    made = perturbed("typos", word, seed)
    assert made != word
    assert (made[0], made[-1]) == (word[0], word[-1])
    swaps = {word[:n] + word[n + 1] + word[n] + word[n + 2 :] for n in range(len(word) - 1)}
    drops = {word[:n] + word[n + 1 :] for n in range(len(word))}
    doubles = {word[:n] + word[n] + word[n:] for n in range(len(word))}
    assert made in swaps | drops | doubles


def test_every_perturbation_takes_a_text_and_a_generator() -> None:
    for perturb in PERTURBATIONS.values():
        made = [perturb(TEXT, random.Random(4)) for _ in range(2)]
        assert made[0] == made[1] != TEXT


CASES = [
    Case("oh, how stupid", True),
    Case("a stupid cat", True),
    Case("sun and rain tomorrow", False),
    Case("a stupid cat. And such lovely music", False, start=14),
] * 4


def by_word(texts: Sequence[str], name: str) -> list[float]:
    return [float("stupid" in text) for text in texts]


def test_a_reader_of_whole_words_loses_what_is_disguised() -> None:
    found = robustness.drops(by_word, CASES, seed=0)
    assert (found["count"], found["unsafe"]) == (16, 8)
    assert found["clean"]["value"] == 1.0  # the context of the last case is not read
    for row in found["perturbations"].values():
        assert row["changed"] == 1.0
        fall = 1 - row["average_precision"]["value"]
        assert row["drop"]["value"] == pytest.approx(fall, abs=2e-4)
        assert row["drop"]["value"] > 0
        low, high = row["drop"]["interval"]
        assert low <= row["drop"]["value"] <= high


def test_the_interval_of_a_drop_is_paired() -> None:
    noise = random.Random(0)
    fixed = [noise.random() for _ in CASES]
    found = robustness.drops(lambda texts, name: fixed, CASES, seed=0)
    low, high = found["clean"]["interval"]
    assert low < high
    for row in found["perturbations"].values():
        assert row["drop"] == {"value": 0.0, "interval": [0.0, 0.0]}


def test_one_class_alone_has_no_drop() -> None:
    found = robustness.drops(by_word, CASES[:2], seed=0)
    assert found["clean"] is None
    assert all(row["drop"] is None for row in found["perturbations"].values())


def test_from_data_to_tables(byte_engine: ByteEngine, tmp_path: Path) -> None:
    out = tmp_path / "out" / "robustness.json"
    options = ["--data", str(tmp_path), "--limit", "12", "--out", str(out)]
    args = report.arguments("What.", "robustness").parse_args(options)
    content = robustness.run(args, runtime(byte_engine))
    assert list(content["sets"]) == ["authored"]  # the folder has no other
    assert content["sets"]["authored"]["count"] == 12
    assert set(content["sets"]["authored"]["perturbations"]) == set(PERTURBATIONS)
    markdown = report.write(out, content, robustness.tables(content["sets"]))
    assert json.loads(out.read_text()) == content
    assert "| authored | homoglyphs | 12 |" in markdown
    assert str(tmp_path) not in markdown


def test_a_missing_bundle_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robustness.main(["--data", str(tmp_path), "--model", "./no/such/bundle"]) == 1
    assert "no/such/bundle" in capsys.readouterr().err
