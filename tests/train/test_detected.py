"""A share of the pairs is marked as the bundle that training starts from marks it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from srllm_guard import Guard
from srllm_guard.errors import ConfigError
from srllm_guard.prompt import Prompt
from tests.train.conftest import CONFIG
from train import epochs
from train.config import Config
from train.corpus import corpus
from train.detected import detected
from train.example import Span
from train.run import main, run

FIRST = CONFIG.replace("epochs = 4", "epochs = 2")
MARKED = FIRST.replace("copies = 0.5", "copies = 0.0\ndetected_marks = 1.0").replace(
    "[data.detection]\ncmd = 0\n", ""
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, base: Path, authored: Path) -> Path:
    folder = tmp_path_factory.mktemp("first")
    (folder / "tiny.toml").write_text(FIRST)
    asked = [str(folder / "tiny.toml"), "--base", str(base), "--authored", str(authored)]
    assert main([*asked, "--out", str(folder), "--threads", "1"]) == 0
    return folder / "bundle"


def test_marks_are_those_that_the_guard_finds(
    first: Path, base: Path, authored: Path, prompt: Prompt, tmp_path: Path
) -> None:
    (tmp_path / "marked.toml").write_text(MARKED)
    config = Config.from_toml(tmp_path / "marked.toml")
    made = corpus(config, None, authored)
    found = detected(config, first, base, made, tmp_path)
    guard = Guard(first, base=base)
    unsafe = [e for e in made.train["cmd"] if e.unsafe and e.safe]
    for example in unsafe:
        spans = guard.detect(example.text).spans
        covered = {n for span in spans for n in range(span.start, span.end)}
        marked = {n for s, e, _ in found.get(example.text, ()) for n in range(s, e)}
        assert marked == covered
    assert any(found.values())
    [kept] = tmp_path.glob("detected-*-0.jsonl")
    rows = kept.read_text("utf-8").splitlines()
    assert {json.loads(row)["text"] for row in rows} == {e.text for e in unsafe}
    # What was found is found again, and nothing is judged twice.
    before = kept.read_bytes()
    assert detected(config, first, base, made, tmp_path) == found
    assert kept.read_bytes() == before

    odd: dict[str, tuple[Span, ...]] = {e.text: ((0, 3, "bias"),) for e in unsafe}
    plain = epochs.epoch(made, prompt, config, 0)
    taught = epochs.epoch(replace(made, detected=odd), prompt, config, 0)
    assert plain != taught
    none = replace(config, data=replace(config.data, detected_marks=0.0))
    assert epochs.epoch(replace(made, detected=odd), prompt, none, 0) == plain


def test_marks_need_a_bundle(base: Path, authored: Path, tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_text(MARKED)
    with pytest.raises(ConfigError, match="marks of a bundle"):
        run(path, None, authored, base, tmp_path / "out")


def test_a_run_with_marks_gives_a_bundle(
    first: Path, base: Path, authored: Path, tmp_path: Path
) -> None:
    (tmp_path / "marked.toml").write_text(MARKED)
    asked = [str(tmp_path / "marked.toml"), "--base", str(base), "--authored", str(authored)]
    asked += ["--from-bundle", str(first), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(asked) == 0
    assert Guard(tmp_path / "out" / "bundle", base=base).info()
