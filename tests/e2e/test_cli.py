"""The command line on real weights, as a user runs it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "srllm_guard", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_csv_keeps_its_columns_and_gains_the_verdicts(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["1", "The parcel came on Tuesday."], ["2", "You stupid idiot, go away."]]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "comment"], *rows])
    done = run("rewrite", "--input", str(source), "--output", str(target), "--column", "comment")
    assert done.returncode in (1, 3), done.stderr
    with target.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["comment"] for row in found] == [row[1] for row in rows]
    assert found[0]["guard_action"] == "pass"
    assert found[0]["guard_text"] == rows[0][1]
    assert found[1]["guard_action"] != "pass"


def test_detect_in_a_pipe_prints_json(tmp_path: Path) -> None:
    done = run("detect", "--json", stdin="You stupid idiot, go away.")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["unsafe"] is True
