"""Heads for several layers, side by side, on a small base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from train import layers


def test_each_layer_gets_heads_and_a_time(
    base: Path, authored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LAYERS", (1, 2))
    out = tmp_path / "docs" / "layers.json"
    places = ["--data", str(tmp_path), "--authored", str(authored), "--out", str(out)]
    layers.main([str(base), *places, "--epochs", "20"])
    told = json.loads(out.read_text())
    assert set(told) == {"milliseconds_64_tokens", "authored"}
    first, second = told["milliseconds_64_tokens"].values()
    assert min(first, second) > 0
    by_layer = told["authored"]
    assert set(by_layer) == {"1", "2"}
    assert by_layer["1"] != by_layer["2"]
    assert all(0 < each["average_precision"] <= 1 for each in by_layer.values())
