"""The label scheme of the Content Moderation Dataset (SR-LLM, section 3), and where its logits lie.

The detection head gives one row of `N_LOGITS` numbers a segment: first the logit of "unsafe", then
one group of logits for each label, in the order of `LABELS`.
"""

from __future__ import annotations

LABELS: dict[str, tuple[str, ...]] = {
    "bias": ("no", "yes"),
    "toxicity": ("none", "mild", "high"),
    "sentiment": ("negative", "neutral", "positive"),
    "harm": ("low", "medium", "high"),
}
"""Each label with its values; for bias, toxicity and harm the first value is the safe one."""

RISKS: tuple[str, ...] = ("bias", "toxicity", "harm")
"""The labels that make a text unsafe. Negative sentiment alone is a complaint, not a risk."""

CATEGORIES: tuple[str, ...] = RISKS
"""Categories of spans, in the order of the token head's logits."""

UNSAFE = 0
"""Index of the logit of "unsafe" in a row of label logits."""


def _slices() -> dict[str, slice]:
    start, found = UNSAFE + 1, {}
    for name, values in LABELS.items():
        found[name] = slice(start, start + len(values))
        start += len(values)
    return found


SLICES: dict[str, slice] = _slices()
"""Where the logits of each label lie in a row of label logits."""

N_LOGITS: int = UNSAFE + 1 + sum(len(values) for values in LABELS.values())
"""Length of a row of label logits."""
