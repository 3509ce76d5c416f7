"""Counting of the parity benchmark, on the byte engine."""

from __future__ import annotations

from benchmarks import parity
from benchmarks.parity import compare
from srllm_guard import Guard
from tests.byte_engine import ByteEngine, runtime

TEXTS = ["Nice day.", "You are an idiot.", "The bus leaves at 9."]


def test_a_guard_is_like_itself(byte_guard: Guard) -> None:
    found = compare(byte_guard, {"same": Guard(runtime(ByteEngine()))}, TEXTS)["same"]
    assert found["texts"] == 3
    assert found["actions_changed"] == found["released_otherwise"] == found["tokens_flipped"] == 0
    assert found["score_difference_max"] == 0
    assert found["tokens"] > 0


def test_another_policy_shows_as_other_actions(byte_guard: Guard) -> None:
    from srllm_guard import Policy

    other = Guard(runtime(ByteEngine()), policy=Policy(ladder=("mask",)))
    found = {"other": compare(byte_guard, {"other": other}, TEXTS)["other"]}
    assert found["other"]["actions_changed"] == found["other"]["released_otherwise"] == 1
    [(title, text)] = parity.tables({"precisions": found})
    assert "ONNX Runtime" in title
    assert "| other | 1 of 3 | 1 of 3 |" in text
