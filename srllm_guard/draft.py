"""A text on its way through the guard: what was found in it, and how its repairs are put in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from srllm_guard.detector import GAP, Verdict, summarise
from srllm_guard.labels import LABELS, RISKS
from srllm_guard.ladder import Fits, Job
from srllm_guard.language import Language
from srllm_guard.prompt import Range
from srllm_guard.results import Detection, Edit
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
            spans=tuple(
                replace(span, start=span.start - segment.start, end=span.end - segment.start)
                for span in verdict.spans
            ),
            before=self._neighbour(number, -1),
            behind=self._neighbour(number, 1),
            reasons=_reasons(verdict),
            fits=self.fits,
        )

    def _neighbour(self, number: int, step: int) -> tuple[Segment, ...]:
        other = number + step
        if not 0 <= other < len(self.segments) or self.flagged[other]:
            return ()
        left, right = sorted((number, other))
        gap = self.segments[right].start - self.segments[left].end
        return (self.segments[other],) if gap <= GAP else ()


@dataclass(slots=True)
class Repair:
    """The repairs of one text, by the number of the segment."""

    draft: Draft
    jobs: dict[int, Job]

    @classmethod
    def of(cls, draft: Draft) -> Repair:
        """One job for each flagged segment."""
        return cls(draft, {n: draft.job(n) for n, flag in enumerate(draft.flagged) if flag})

    @property
    def complete(self) -> bool:
        """Whether every job has a replacement."""
        return all(job.replacement is not None for job in self.jobs.values())

    @property
    def errors(self) -> tuple[str, ...]:
        """What went wrong inside the model, each once."""
        return tuple(dict.fromkeys(e for job in self.jobs.values() for e in job.errors))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why segments were flagged and attempts refused, each once."""
        return tuple(dict.fromkeys(r for job in self.jobs.values() for r in job.reasons))

    def strays(self, found: Draft) -> bool:
        """Whether an English text was rewritten into one that is not."""
        return self.draft.language.verified and not found.language.verified

    def splice(self) -> tuple[str, tuple[Edit, ...]]:
        """The text with its replacements, put in from the end so that offsets stay right."""
        ordered = sorted(self.jobs.values(), key=lambda job: job.segment.start)
        places = _places(self.draft.text, ordered)
        released = self.draft.text
        for job, (start, end) in zip(reversed(ordered), reversed(places), strict=True):
            released = released[:start] + _new(job) + released[end:]
        edits, shift = [], 0
        for job, (start, end) in zip(ordered, places, strict=True):
            edits.append(_edit(job, start, end, shift))
            shift += len(_new(job)) - (end - start)
        return released, tuple(edits)

    def reopen(self, found: Draft) -> None:
        """Send back to the ladder what is unsafe in the text that was about to be released.

        `found` is that text, judged. A segment that nobody touched can be unsafe now as well: its
        neighbours changed. A text that is no longer English goes back as a whole.
        """
        _, edits = self.splice()
        ordered = sorted(self.jobs.values(), key=lambda job: job.segment.start)
        if self.strays(found):
            for job in ordered:
                job.reopen("unverified_language")
        for number, segment in enumerate(found.segments):
            if not found.flagged[number]:
                continue
            hit = [job for job, edit in zip(ordered, edits, strict=True) if _touches(edit, segment)]
            for job in hit:
                job.reopen("unsafe_in_place")
            if not hit:
                self._add(segment.start - _shift(edits, segment.start), found.job(number))

    def _add(self, start: int, seen: Job) -> None:
        """Open the job of the segment at `start`; `seen` is that segment where it is unsafe now."""
        for number, segment in enumerate(self.draft.segments):
            if segment.start <= start < segment.end and number not in self.jobs:
                job = self.draft.job(number)
                if job.source == seen.source:
                    job.spans, job.reasons = seen.spans, seen.reasons
                job.reasons.append("unsafe_in_place")
                self.jobs[number] = job


def _new(job: Job) -> str:
    return job.source if job.replacement is None else job.replacement


def _places(text: str, ordered: Sequence[Job]) -> list[Range]:
    """What each replacement takes the place of: its segment.

    Where nothing comes instead, also the blanks before it, or behind it at the start of a line.
    """
    found: list[Range] = []
    last = 0
    for job in ordered:
        start, end = job.segment.start, job.segment.end
        if not _new(job):
            before = text[last:start]
            kept = before.rstrip(" \t")
            if (kept and kept[-1] != "\n") or (found and _new(ordered[len(found) - 1])):
                start = last + len(kept)
            else:
                end += len(text[end:]) - len(text[end:].lstrip(" \t"))
        found.append((start, end))
        last = end
    return found


def _edit(job: Job, start: int, end: int, shift: int) -> Edit:
    new, origin = _new(job), job.segment.start
    return Edit(
        start=start,
        end=end,
        new_start=start + shift,
        new_end=start + shift + len(new),
        original=job.text[start:end],
        replacement=new,
        action=job.outcome or "block",
        spans=tuple(replace(s, start=s.start + origin, end=s.end + origin) for s in job.spans),
        reasons=tuple(dict.fromkeys(job.reasons)),
    )


def _touches(edit: Edit, segment: Segment) -> bool:
    return edit.new_start < segment.end and segment.start < max(edit.new_end, edit.new_start + 1)


def _shift(edits: Iterable[Edit], start: int) -> int:
    """By how much what stands at `start` was moved by the edits before it."""
    return sum(len(e.replacement) - len(e.original) for e in edits if e.new_end <= start)


def _reasons(verdict: Verdict) -> list[str]:
    found = []
    for name in RISKS:
        row = verdict.labels[name]
        if row[0] < 0.5:
            found.append(f"{name}: {LABELS[name][max(range(len(row)), key=row.__getitem__)]}")
    return found or ["unsafe"]
