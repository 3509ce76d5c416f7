"""What the trainer consumes from any source: a text with the labels and spans that are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from srllm_guard.labels import CATEGORIES, LABELS

Span = tuple[int, int, str]
"""Start and end (code points, end exclusive) and category of unsafe wording."""

ALLOWED: dict[str, tuple[str, ...]] = {"unsafe": ("no", "yes"), **LABELS}
"""Labels of an example with their values: those of CMD, and "unsafe", which sums up the risks."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text as the trainer takes it, from whatever source."""

    text: str
    """The text to judge and, if it is unsafe, to rewrite."""
    safe: tuple[str, ...] = ()
    """Safe variations, empty if there are none; that of a safe CMD record is the text itself."""
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict, hash=False)
    """For each label of `ALLOWED` that is known: the values that are possible."""
    spans: tuple[Span, ...] | None = None
    """(start, end exclusive, category) of unsafe wording; () if there is none, None if unknown."""
    context: str = ""
    """What stood before the text, such as the message it answers."""
    source: str = ""
    """Name of the data set."""
    split: str = ""
    """"train", "dev" or "test"; empty as long as it is not decided."""
    id: str = ""
    """Unique within source and split."""

    @property
    def unsafe(self) -> bool | None:
        """Whether the text is unsafe; None where that is unknown."""
        known = self.labels.get("unsafe", frozenset())
        return next(iter(known)) == "yes" if len(known) == 1 else None

    def __post_init__(self) -> None:
        for name, values in self.labels.items():
            if name not in ALLOWED or not values or not values.issubset(ALLOWED[name]):
                raise ValueError(f'label "{name}": {sorted(values)} is not within {ALLOWED}')
        end = 0
        for span in self.spans or ():
            if not end <= span[0] < span[1] <= len(self.text) or span[2] not in CATEGORIES:
                raise ValueError(f"span {span}: not in order, not in the text, or no category")
            end = span[1]


def labelled(**labels: str) -> dict[str, frozenset[str]]:
    """Labels from keyword arguments; several possible values are divided by blanks."""
    return {name: frozenset(values.split()) for name, values in labels.items()}


def occurrences(text: str, phrases: Iterable[str], category: str) -> tuple[Span, ...]:
    """All places where the phrases stand as whole words, else anywhere; overlaps make one span."""
    found: list[Span] = []
    for phrase in filter(None, phrases):
        exact = re.escape(phrase)
        whole = [*re.finditer(rf"(?<!\w){exact}(?!\w)", text)]
        found += [(m.start(), m.end(), category) for m in whole or re.finditer(exact, text)]
    return merged(found)


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in order; those of one category that overlap are joined."""
    result: list[Span] = []
    for start, end, category in sorted(spans):
        if result and start < result[-1][1] and category == result[-1][2]:
            result[-1] = (result[-1][0], max(end, result[-1][1]), category)
        else:
            result.append((start, end, category))
    return tuple(result)


def apart(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order; those that overlap or touch are joined."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
