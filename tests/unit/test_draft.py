"""Why a segment was flagged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from srllm_guard.detector import NOTHING
from srllm_guard.draft import reasons


@pytest.mark.parametrize(
    ("name", "chances", "told"),
    [
        ("harm", (0.4, 0.35, 0.25), "harm: medium"),
        ("harm", (0.4, 0.25, 0.35), "harm: high"),
        ("toxicity", (0.45, 0.3, 0.25), "toxicity: mild"),
        ("toxicity", (0.1, 0.2, 0.7), "toxicity: high"),
        ("bias", (0.4, 0.6), "bias: yes"),
        ("bias", (0.5, 0.5), "unsafe"),
    ],
)
def test_a_reason_never_is_the_safe_value(name: str, chances: tuple[float, ...], told: str) -> None:
    verdict = replace(NOTHING, labels={**NOTHING.labels, name: chances})
    assert reasons(verdict) == [told]
