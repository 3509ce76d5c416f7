"""`benchmarks.concurrency` for a moment: it counts, and it sees what is wrong."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import concurrency
from srllm_guard import Guard
from tests.byte_engine import ByteEngine, runtime

TEXTS = ["You are an idiot and I said so.", "It was fine all day.", "What a stupid thing to say."]


def answers(guard: Guard) -> dict[str, Any]:
    return {text: guard.moderate(text) for text in TEXTS}


def test_all_callers_get_the_right_answers(byte_guard: Guard) -> None:
    right = answers(byte_guard)
    seen, took = concurrency.run(
        byte_guard, TEXTS, right, seconds=0.5, callers=4, threads=3, seed=1
    )
    told = [figures for each in seen.values() if (figures := each.figures())["calls"]]
    assert told
    for figures in told:
        assert (figures["wrong"], figures["errors"]) == (0, {})
        assert 0 < figures["median_ms"] <= figures["p95_ms"]
    assert took >= 0.5


def test_wrong_answers_and_errors_are_counted() -> None:
    guard = Guard(runtime())
    spoiled = {text: replace(found, text="other") for text, found in answers(guard).items()}
    seen, _ = concurrency.run(guard, TEXTS, spoiled, seconds=0.2, callers=2, threads=2)
    assert all(each.wrong == len(each.ms) for each in seen.values())
    assert any(each.wrong for each in seen.values())
    seen, _ = concurrency.run(guard, [3], {}, seconds=0.5, callers=1, threads=1)  # type: ignore[list-item]
    assert {error for each in seen.values() for error in each.errors} == {"TypeError"}


def test_memory_is_sampled() -> None:
    with concurrency.Memory() as memory:
        time.sleep(0.05)
    figures = memory.figures()
    if concurrency.resident() is None:
        assert figures is None
    else:
        assert figures is not None
        assert 0 < figures["first_mb"] <= figures["most_mb"]
    memory.samples = [(n / 2, 100 + n / 20) for n in range(40)]
    figures = memory.figures()
    assert figures is not None
    assert figures["slope_mb_a_minute"] == pytest.approx(6)


def test_one_command_makes_json_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.report.runtime", lambda args: runtime(ByteEngine()))
    out = tmp_path / "concurrency.json"
    words = ["--seconds", "0.3", "--callers", "3", "--threads", "2", "--texts", "5"]
    assert concurrency.main([*words, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["texts"] == 5
    assert content["wrong"] == content["errors"] == 0
    assert content["calls_a_second"] > 0
    assert "| async | 3 |" in out.with_suffix(".md").read_text()
