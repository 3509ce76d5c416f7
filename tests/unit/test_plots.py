from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from srllm_guard.errors import MissingExtra
from train.plots import loss_curves

HISTORY: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "note": "warm-up"},
    {"step": 2, "loss": 1.0, "dev_loss": 1.5},
    {"step": 3, "loss": float("nan"), "dev_loss": 1.25},
]


def test_curves_are_drawn_and_written(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="the extra train is not installed")
    png, numbers = tmp_path / "loss.png", tmp_path / "loss.json"
    loss_curves(HISTORY, png, numbers)
    written = json.loads(numbers.read_text())
    assert written[1] == HISTORY[1]
    assert written[2] == {"step": 3, "loss": None, "dev_loss": 1.25}
    drawn = image.imread(png)
    loss_curves([], png, numbers)
    empty = image.imread(png)
    assert drawn.shape == empty.shape
    assert (drawn != empty).any()


def test_numbers_are_written_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"srllm-guard\[train\]"):
        loss_curves(HISTORY, tmp_path / "loss.png", tmp_path / "loss.json")
    assert len(json.loads((tmp_path / "loss.json").read_text())) == 3
    assert not (tmp_path / "loss.png").exists()
