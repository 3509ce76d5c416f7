"""The comparison with transformers, on the shipped weights: two segments in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import exactness


def test_what_transformers_writes_is_what_we_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exactness.json"
    assert exactness.main(["--limit", "2", "--precision", "fp32", "--out", str(out)]) == 0
    exact = json.loads(out.read_text())["precisions"]["fp32"]
    assert (exact["identical"], exact["texts"], exact["flipped"]) == (2, 2, 0)
    assert exact["logit_difference_max"] < 1e-3
    assert exact["decisions_changed"] == 0
    assert "| fp32 | 2 of 2 |" in capsys.readouterr().out
    assert "| fp32 | 2 of 2 |" in out.with_suffix(".md").read_text()


def test_a_precision_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exactness.main(["--precision", "int3"]) == 1
    assert "Unknown precision 'int3'" in capsys.readouterr().err
