"""The whole of `benchmarks.latency`, from the command to the files, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import latency
from benchmarks.speed import goals
from srllm_guard import Guard
from srllm_guard.models.bundle import Bundle, write_manifest
from tests.benchmarks.test_prompting import record
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny

tiny = contract.tiny

WORDS = ("train", "boat", "tram", "plane", "coach", "ferry", "sledge", "truck")
SENTENCES = [f"The {word} no. {n} is late." for n in range(5) for word in WORDS]


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path) -> list[str]:
    """Arguments for a bundle whose random heads flag about a quarter of the sentences."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in tiny.bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    guard = Guard(folder, "cpu", base=tiny.base)
    scores = sorted(found.score for found in guard.detect_many(SENTENCES))
    middle = scores[len(scores) * 3 // 4]
    manifest = tiny.bundle.manifest
    calibration = replace(manifest.calibration, threshold=middle)
    write_manifest(folder, replace(manifest, calibration=calibration))
    assert Bundle.load(folder).manifest.calibration.threshold == middle
    rows = [
        {
            **record(n, text, "That is late." if unsafe else text, kind, "dev"),
            "biased_words": ["late"] if unsafe else [],
        }
        for n, (text, unsafe, kind) in enumerate(
            (text, unsafe, kind)
            for text in SENTENCES
            for unsafe, kind in ((False, "none"), (True, "insult"))
        )
    ]
    authored = tmp_path / "authored"
    authored.mkdir()
    (authored / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--quick",
        *("--model", str(folder), "--base", str(tiny.base), "--authored", str(authored)),
        *("--out", str(tmp_path / "out" / "latency.json")),
    ]


def run(command: list[str], tmp_path: Path, *more: str) -> dict[str, Any]:
    assert latency.main([*command, *more]) == 0
    content: dict[str, Any] = json.loads((tmp_path / "out" / "latency.json").read_text())
    return content


def test_one_command_makes_json_tables_and_a_picture(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    # Random weights fail every check, so longer texts would walk the whole ladder many times.
    rows = ["ceiling", "detection", "sentence", "batches", "callers"]
    systems = ["transformers", "transformers, prompt lookup", "torch fp32", "llama.cpp"]
    content = run(command, tmp_path, "--rows", *rows, "--systems", *systems)
    assert [name for name in content if name in latency.NAMES] == rows
    decoded = content["sentence"]["decode"]
    assert list(decoded) == systems[:3]
    assert {row["same_output"] for row in decoded.values()} == {1.0}
    assert 0 < decoded["torch fp32"]["steps"] <= decoded["transformers"]["steps"]
    # A base that is no GGUF file, or no llama.cpp at all.
    assert list(content["skipped"]) == ["llama.cpp"]
    assert set(content["batches"]) == {"transformers", "torch fp32"}
    assert content["ceiling"]["cpu"]["weights"] > 0
    assert content["header"]["hardware"]["cores"] >= 1
    assert content["header"]["command"].startswith("python -m benchmarks.latency --authored")
    markdown = (tmp_path / "out" / "latency.md").read_text()
    assert markdown in capsys.readouterr().out
    for title in ("Goals", "Skipped", "Ceiling, cpu", "One sentence, Guard.rewrite"):
        assert f"## {title}" in markdown
    assert "This was a smoke run" in markdown
    assert "bootstrap" not in markdown
    assert (tmp_path / "out" / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in (tmp_path / "out" / "latency.json").read_text()


@pytest.mark.slow
def test_start_and_memory_are_of_other_processes(command: list[str], tmp_path: Path) -> None:
    systems = ["transformers", "torch fp32"]
    content = run(command, tmp_path, "--rows", "start", "memory", "--systems", *systems)
    assert set(content["memory"]) == set(systems)
    assert all(50 < row["mb"] < 5_000 for row in content["memory"].values())
    start = content["start"]
    assert (
        start["import srllm_guard"]["median_ms"]
        < start["torch fp32: warm, to a safe answer"]["median_ms"]
    )
    assert any("cold" in name for name in start)


def test_a_row_that_fails_costs_no_other(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("benchmarks.speed.rows.detection", fail)
    content = run(command, tmp_path, "--rows", "detection", "ceiling", "--systems", "torch fp32")
    assert content["skipped"] == {"row detection": "RuntimeError: no such luck"}
    assert content["ceiling"]
    assert "no such luck" in (tmp_path / "out" / "latency.md").read_text()


def test_an_unknown_system_is_an_error(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main([*command, "--systems", "abacus"]) == 1
    assert "unknown system 'abacus'" in capsys.readouterr().err


def test_rows_of_an_earlier_run_are_taken_over(tmp_path: Path) -> None:
    def result(command: str, bundle: str, **rows: Any) -> dict[str, Any]:
        header = {"command": command, "data": {command: "0"}, "model": {"bundle_hash": bundle}}
        told = {"skipped": {}, "seconds": dict.fromkeys(rows, 1.0)}
        return {"header": header, "load_before": 0.5, "quick": False, **told, **rows}

    earlier = tmp_path / "earlier.json"
    start = {"import srllm_guard": {"median_ms": 90.0}}
    earlier.write_text(json.dumps(result("first", "abc", start=start)), encoding="utf-8")
    made = latency.joined(earlier, result("second", "abc", document={}))
    assert made["start"] == start
    assert made["header"]["command"] == "first && second"
    assert made["header"]["data"] == {"first": "0", "second": "0"}
    assert made["seconds"] == {"start": 1.0, "document": 1.0}
    assert made["goals"] == goals.reached({"start": start, "document": {}})
    with pytest.raises(ValueError, match="of another bundle"):
        latency.joined(earlier, result("second", "xyz", document={}))
