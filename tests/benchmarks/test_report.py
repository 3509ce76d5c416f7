from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import metrics, report


def test_samples_are_seeded_and_nested() -> None:
    items = list(range(50))
    ten = report.sample(items, 10, seed=0)
    assert report.sample(items, 10, seed=0) == ten
    assert report.sample(items, 20, seed=0)[:10] == ten
    assert report.sample(items, 10, seed=1) != ten
    assert sorted(report.sample(items, None, seed=0)) == items
    assert items == list(range(50))


def test_the_command_names_no_folder_of_this_machine() -> None:
    parser = report.arguments("What it measures.", "detection")
    args = parser.parse_args(
        ["--data", "/secret/place", "--model", "/secret/bundle", "--limit", "5"]
    )
    args.column = ["ours=/secret/file.jsonl"]
    told = report.command(args, "detection")
    assert "secret" not in told
    assert told.startswith("python -m benchmarks.detection --data DATA ")
    for part in (
        "--model bundle",
        "--limit 5",
        "--column ours=file.jsonl",
        "--authored train/data",
    ):
        assert part in told


@pytest.mark.parametrize("wrong", ["0", "-1", "x"])
def test_a_limit_is_positive(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.arguments("What.", "x").parse_args(["--data", ".", "--limit", wrong])
    assert "--limit" in capsys.readouterr().err


def test_tables_show_intervals_and_dashes() -> None:
    found = report.measured(metrics.share, [0, 1, 1, 1])
    assert found is not None
    assert found["value"] == 0.75
    text = report.table(["a", "b"], [["x|y", found], [3, None]])
    low, high = found["interval"]
    assert text.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        f"| x\\|y | 0.750 [{low:.3f}, {high:.3f}] |",
        "| 3 | - |",
    ]
    assert report.measured(metrics.share, []) is None


def test_a_share_of_flags_has_an_interval_even_where_all_agree() -> None:
    assert report.measured(metrics.share, [False] * 93) == {"value": 0.0, "interval": [0.0, 0.0397]}
    grid = np.zeros((4, 91), bool)  # of which the rows are resampled
    assert report.measured(metrics.share, grid) == {"value": 0.0, "interval": [0.0, 0.0]}
    texts = [0, 0, 0, 1, 1, 1]
    found = report.measured(metrics.share, [True] * 3 + [False] * 3, groups=texts)
    assert found == {"value": 0.5, "interval": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["/tmp/some/avx/int8", "/tmp/some/vnni/int8"], ["avx/int8", "vnni/int8"]),
        (["bf16"], ["bf16"]),
    ],
)
def test_a_command_tells_folders_apart(told: list[str], words: list[str]) -> None:
    args = argparse.Namespace(also=told)
    wanted = " ".join(f"--also {word}" for word in words)
    assert report.command(args, "quality") == f"python -m benchmarks.quality {wanted}"


@pytest.mark.parametrize("what", report.SAME)
def test_only_what_was_run_alike_is_joined(what: str) -> None:
    def made(value: str) -> dict[str, Any]:
        found: dict[str, Any] = {"command": value, "data": {}, "model": {"engine_info": {}}}
        *folders, key = report.SAME[what].split("/")
        place = found
        for folder in folders:
            place = place[folder]
        place[key] = value
        return found

    with pytest.raises(ValueError, match=f"first.json is of another {what}"):
        report.joined(Path("first.json"), made("a"), made("b"))
    assert report.joined(Path("first.json"), made("a"), made("a"))["command"] == "a && a"


def test_results_are_written_with_what_made_them(tmp_path: Path) -> None:
    data = tmp_path / "dev" / "some.jsonl"
    data.parent.mkdir()
    data.write_text("{}\n")
    args = report.arguments("What.", "detection").parse_args(["--data", str(tmp_path)])
    info = {"bundle": "b 1", "bundle_hash": "c" * 64, "threshold": 0.5} | {
        "engine": "reference",
        "device": "cpu",
    }
    content = {"header": report.header(args, "detection", info, [data, data])}
    out = tmp_path / "results" / "detection.json"
    markdown = report.write(out, content, [("Title", "| a |\n")])
    read = json.loads(out.read_text())["header"]
    assert read["data"] == {"dev/some.jsonl": "ca3d163bab055381"}
    assert read["versions"]["torch"]
    assert read["hardware"]["cores"] >= 1
    assert read["seed"] == 0
    assert out.with_suffix(".md").read_text() == markdown
    assert "## Title" in markdown
    assert "cccccccccccc" in markdown
    assert str(tmp_path) not in out.read_text()
