"""The repair of one flagged segment, as far as it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from srllm_guard.detector import GAP
from srllm_guard.results import Span
from srllm_guard.text.segments import Segment

Outcome = Literal["rewrite", "mask"]

Fits = Callable[[int, int, str], bool]
"""Whether the document around a text keeps its structure when a range of the text is replaced."""


@dataclass(slots=True)
class Job:
    """One flagged segment on its way down the ladder."""

    text: str
    """The whole text that it stands in."""
    segment: Segment
    spans: tuple[Span, ...]
    """The unsafe phrases, at offsets of the segment."""
    before: tuple[Segment, ...] = ()
    """The safe segment right before, if there is one: context for verification."""
    behind: tuple[Segment, ...] = ()
    """The safe segment right behind."""
    reasons: list[str] = field(default_factory=list)
    """Why it was flagged, and why earlier attempts were refused."""
    replacement: str | None = None
    """What was verified; None as long as nothing was."""
    outcome: Outcome | None = None
    rung: str | None = None
    """The rung that gave the replacement."""
    tried: int = 0
    """Attempts that are behind it; it never goes back to one of them."""
    errors: list[str] = field(default_factory=list)
    """What went wrong inside the model."""
    cuts: list[str] | None = None
    """Deletions of the unsafe phrases, once somebody asked for them."""
    fits: Fits | None = None
    """Whether a replacement breaks the document that `text` is a part of; None: nothing can."""

    @property
    def source(self) -> str:
        """The segment as it was."""
        return self.text[self.segment.start : self.segment.end]

    @property
    def near(self) -> str:
        """The segment and what stands right before it: the words that a rewrite may say again."""
        return self.text[max(0, self.segment.start - GAP) : self.segment.end]

    @property
    def is_coarse(self) -> bool:
        """Whether all that was found is toxic, and nothing biased or harmful."""
        return bool(self.spans) and all(span.category == "toxicity" for span in self.spans)

    @property
    def has_company(self) -> bool:
        """Whether a safe sentence stands beside it on its line."""
        gaps = [self.text[s.end : self.segment.start] for s in self.before]
        gaps += [self.text[self.segment.end : s.start] for s in self.behind]
        return any(not gap.strip(" \t") for gap in gaps)

    def reopen(self, reason: str) -> None:
        """Take the replacement back: the next attempt has to find another one."""
        self.replacement = self.outcome = self.rung = None
        self.reasons.append(reason)
