"""A text on its way through the guard, and what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from srllm_guard.detector import GAP, NOTHING, Verdict, summarise
from srllm_guard.job import Fits, Job
from srllm_guard.labels import LABELS, RISKS
from srllm_guard.language import Language
from srllm_guard.results import Detection
from srllm_guard.text.segments import Segment


@dataclass(frozen=True, slots=True)
class Draft:
    """A text with the verdicts on its prose segments."""

    text: str
    segments: tuple[Segment, ...]
    verdicts: tuple[Verdict, ...]
    flagged: tuple[bool, ...]
    """Which segments the policy calls unsafe."""
    language: Language
    fits: Fits | None = None
    """Whether a replacement fits into the document that the text is a part of."""

    @property
    def detection(self) -> Detection:
        """What users see of it."""
        return summarise(
            self.verdicts,
            self.flagged,
            verified=self.language.verified,
            language=self.language.code,
        )

    def job(self, number: int) -> Job:
        """The repair of one flagged segment; its safe neighbours are its context."""
        segment, verdict = self.segments[number], self.verdicts[number]
        return Job(
            text=self.text,
            segment=segment,
            spans=verdict.moved(-segment.start).spans,
            before=self._neighbour(number, -1),
            behind=self._neighbour(number, 1),
            reasons=reasons(verdict),
            fits=self.fits,
        )

    def tail(self, segments: int, characters: int) -> Draft:
        """The draft without its first segments and its first characters."""
        return replace(
            self,
            text=self.text[characters:],
            segments=tuple(s.moved(-characters) for s in self.segments[segments:]),
            verdicts=tuple(v.moved(-characters) for v in self.verdicts[segments:]),
            flagged=self.flagged[segments:],
        )

    def unjudged(self, new: Sequence[Segment]) -> Draft:
        """The draft with segments behind it that could not be judged."""
        prose = [segment for segment in new if segment.kind == "prose"]
        return replace(
            self,
            segments=(*self.segments, *prose),
            verdicts=(*self.verdicts, *(NOTHING for _ in prose)),
            flagged=(*self.flagged, *(False for _ in prose)),
        )

    def _neighbour(self, number: int, step: int) -> tuple[Segment, ...]:
        other = number + step
        if not 0 <= other < len(self.segments) or self.flagged[other]:
            return ()
        left, right = sorted((number, other))
        gap = self.segments[right].start - self.segments[left].end
        return (self.segments[other],) if gap <= GAP else ()


def reasons(verdict: Verdict) -> list[str]:
    """Why a segment was flagged: the labels that say so, with their likeliest unsafe value."""
    found = []
    for name in RISKS:
        row = verdict.labels[name]
        if row[0] < 0.5:
            found.append(f"{name}: {LABELS[name][max(range(1, len(row)), key=row.__getitem__)]}")
    return found or ["unsafe"]
