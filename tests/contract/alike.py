"""Two engines, or one alone and in company, say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srllm_guard.engines.base import Asked, Engine, Floats, Request, Window


def judge_alike(one: Engine, other: Engine, windows: Sequence[Window]) -> None:
    for found, expected in zip(one.detect(windows), other.detect(windows), strict=True):
        np.testing.assert_allclose(found.labels, expected.labels, atol=1e-4)
        np.testing.assert_allclose(found.spans, expected.spans, atol=1e-4)


def score_alike(
    one: Engine, other: Engine, requests: Sequence[Request]
) -> tuple[list[Asked], list[Floats]]:
    """Returns what was asked, and what the first engine said."""
    asked = [
        Asked(request.prompt, request.draft[:length])
        for request in requests
        for length in (1, 2, len(request.draft))
    ]
    asked += [Asked((40,), (41, 42)), Asked(requests[0].prompt, (40,) * 150)]
    found = one.score(asked)
    for mine, theirs in zip(found, other.score(asked), strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    return asked, found


def ignore_company(engine: Engine, requests: Sequence[Request], windows: Sequence[Window]) -> None:
    alone = [engine.detect([window])[0] for window in windows]
    for found, expected in zip(engine.detect(windows[::-1])[::-1], alone, strict=True):
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.spans, expected.spans)
    counts = [(c.ids, c.steps) for c in engine.generate(requests)]
    assert counts == [(c.ids, c.steps) for r in requests for c in engine.generate([r])]
