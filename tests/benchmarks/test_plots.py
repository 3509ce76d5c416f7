from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from benchmarks import plots
from srllm_guard.errors import MissingExtra

ROWS = [(0.1, 0.05, 40), (0.5, 0.4, 20), (0.93, 0.9, 60)]
GROUPS: dict[str, dict[str, Any]] = {
    "source": {"before": {"value": 0.8, "interval": [0.6, 0.9]}, "after": None},
    "guard, $1 = 100%": {"before": 0.8, "after": {"value": 0.1}},
    "nothing": {},
}
CURVES = {"authored": {"recall": [1.0, 0.5, 0.0], "precision": [0.4, 0.8, 1.0]}}

DRAWN: dict[str, Callable[[Path], None]] = {
    "reliability": lambda path: plots.reliability(path, ROWS),
    "bars": lambda path: plots.bars(path, "Unsafe", GROUPS),
    "curve": lambda path: plots.curve(path, CURVES),
}


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file in pixels."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_written_and_always_the_same(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    DRAWN[name](first)
    DRAWN[name](second)
    assert min(size(first)) > 100
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_the_extra_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtra, match=r"srllm-guard\[bench\]"):
        DRAWN[name](tmp_path / "none.png")


def test_pictures_show_what_they_are_given(tmp_path: Path) -> None:
    def drawn(name: str, draw: Callable[..., None], *content: Any) -> bytes:
        path = tmp_path / f"{name}.png"
        draw(path, *content)
        return path.read_bytes()

    other = {**GROUPS, "source": {"before": {"value": 0.8, "interval": [0.5, 0.9]}, "after": None}}
    assert drawn("a", plots.bars, "Unsafe", GROUPS) != drawn("b", plots.bars, "Unsafe", other)
    assert drawn("a", plots.reliability, ROWS) != drawn("b", plots.reliability, ROWS[:2])
    curves = {"authored": {"recall": [1.0, 0.5, 0.0], "precision": [0.4, 0.7, 1.0]}}
    assert drawn("a", plots.curve, CURVES) != drawn("b", plots.curve, curves)


def test_more_bars_make_a_higher_picture(tmp_path: Path) -> None:
    plots.bars(tmp_path / "few.png", "Unsafe", GROUPS)
    more = {**GROUPS, **{f"system {n}": {"before": 0.5} for n in range(9)}}
    plots.bars(tmp_path / "many.png", "Unsafe", more)
    few, many = size(tmp_path / "few.png"), size(tmp_path / "many.png")
    assert many[0] == few[0]
    assert many[1] > 1.5 * few[1]


def test_nothing_is_drawn_as_empty_axes(tmp_path: Path) -> None:
    plots.reliability(tmp_path / "r.png", [])
    plots.bars(tmp_path / "b.png", "Unsafe", {"guard": {"before": None, "after": None}})
    plots.curve(tmp_path / "c.png", {})
    assert all(min(size(tmp_path / f"{name}.png")) > 100 for name in "rbc")


def test_groups_may_be_none_at_all(tmp_path: Path) -> None:
    plots.bars(tmp_path / "b.png", "Unsafe", {})
    assert min(size(tmp_path / "b.png")) > 100


def test_a_curve_needs_as_many_of_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="authored has 2 values of recall and 1 of precision"):
        plots.curve(tmp_path / "c.png", {"authored": {"recall": [0, 1], "precision": [1]}})


FIGURE = {"value": 0.5, "interval": [0.4, 0.6]}
RESULTS: dict[str, dict[str, Any]] = {
    "detection": {
        "sets": {"authored": {"texts": {"average_precision": FIGURE}}},
        "reliability": {"authored": ROWS},
        "curves": CURVES,
    },
    "quality": {
        "sets": {
            "appdia": {
                "systems": {
                    "guard": {"unsafe": {"a-judge": {"before": FIGURE, "after": FIGURE}}},
                    "source": {"unsafe": {"a-judge": {"before": FIGURE, "after": FIGURE}}},
                }
            }
        }
    },
    "robustness": {
        "sets": {
            "authored": {
                "clean": FIGURE,
                "perturbations": {"typos": {"average_precision": FIGURE}},
            }
        }
    },
    "identity": {
        "templates": {"by_kind": {"age": FIGURE, "gender": FIGURE}},
        "toxigen_groups": {
            "groups": {"Asian": {"recall": FIGURE, "false_positive_rate": None}},
        },
    },
}


def test_a_folder_of_results_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    assert plots.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "curves.png",
        "detection.png",
        "identity.png",
        "identity_toxigen.png",
        "quality_appdia_a_judge.png",
        "reliability_authored.png",
        "robustness.png",
    }
    assert {Path(line).name for line in capsys.readouterr().out.split()} == names


def test_only_what_is_there_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "robustness.json").write_text(json.dumps(RESULTS["robustness"]))
    assert plots.draw(tmp_path, tmp_path) == [tmp_path / "robustness.png"]


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_that_cannot_be_read_ends_with_a_message(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    if content is not None:
        folder.mkdir()
        (folder / "detection.json").write_text(content)
    assert plots.main(["--results", str(folder)]) == 1
    assert "benchmarks.plots:" in capsys.readouterr().err
