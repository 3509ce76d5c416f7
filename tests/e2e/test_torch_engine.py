"""Our engine on the shipped weights: the same text and scores as transformers, in fewer passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.exactness import written
from srllm_guard import Guard
from srllm_guard.engines.base import Asked, Request
from srllm_guard.prompt import rewrite_request
from srllm_guard.runtime import Runtime, load
from srllm_guard.text.segments import Segment

MARKED = [
    ("Dale left school at 15 and it does show. He trained 4 apprentices.", "it does show"),
    ("You stupid idiot, the report was due at 5 p.m.", "stupid idiot"),
    ("Ask Ana, she is a woman, so keep the 3 slides simple.", "she is a woman"),
    ("The old cow at desk 9 lost my form again.", "old cow"),
]


@pytest.fixture(scope="module")
def reference() -> Runtime:
    return load(device="cpu", engine="reference")


@pytest.fixture(scope="module")
def requests(guard: Guard) -> list[Request]:
    found = []
    for text, phrase in MARKED:
        start = text.index(phrase)
        segment = Segment(0, len(text), "prose", 0)
        marks = [(start, start + len(phrase))]
        found.append(rewrite_request(guard.runtime.prompt, text, segment, marks))
    return found


def generated(model: Any, request: Request) -> tuple[tuple[int, ...], bool]:
    """What `transformers.generate` finds, and whether it met a stop id."""
    ids, logits = written(model, request)
    return ids, len(logits) > len(ids)


def test_greedy_text_is_that_of_transformers(
    guard: Guard, reference: Runtime, requests: list[Request]
) -> None:
    import torch

    engine: Any = reference.engine
    found = guard.runtime.engine.generate(requests)
    with torch.inference_mode():
        expected = [generated(engine._model, request) for request in requests]
    assert [(each.ids, each.finished) for each in found] == expected
    tokens = sum(len(each.ids) for each in found)
    assert sum(each.steps for each in found) < tokens / 2


def test_barred_and_drawn_text_is_that_of_the_reference(
    guard: Guard, reference: Runtime, requests: list[Request]
) -> None:
    from dataclasses import replace

    prompt = guard.runtime.prompt
    barred = replace(requests[1], barred=prompt.barred(MARKED[1][1]))
    asked = [barred, *(replace(barred, temperature=0.8, seed=seed) for seed in (1, 2))]
    assert guard.runtime.engine.generate(asked) == reference.engine.generate(asked)


def test_scores_and_likelihoods_are_those_of_the_reference(
    guard: Guard, reference: Runtime, requests: list[Request]
) -> None:
    prompt = guard.runtime.prompt
    windows = [prompt.window(text, [(0, len(text))])[0] for text, _ in MARKED]
    found, expected = (run.engine.detect(windows) for run in (guard.runtime, reference))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.labels, other.labels, atol=1e-4)
        np.testing.assert_allclose(one.spans, other.spans, atol=1e-4)
    asked = [Asked(request.prompt, request.draft) for request in requests[:2]]
    ours, theirs = (run.engine.score(asked) for run in (guard.runtime, reference))
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-3)


def test_a_guard_runs_on_it_by_default(guard: Guard, reference: Runtime) -> None:
    info = guard.info()
    assert (info["engine"], info["engine_info"]["precision"]) == ("torch", "fp32")
    other = Guard(reference)
    for text, _ in MARKED[:2]:
        one, two = guard.moderate(text), other.moderate(text)
        assert (one.action, one.text) == (two.action, two.text)
        assert one.before.score == pytest.approx(two.before.score, abs=2e-4)
