"""The repairs of a text on its way through the guard, and how they are put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from srllm_guard.detector import Verdict, moved, windows
from srllm_guard.draft import Draft, reasons
from srllm_guard.job import Job
from srllm_guard.prompt import Range
from srllm_guard.results import Edit
from srllm_guard.text.segments import LINE, Segment


@dataclass(frozen=True, slots=True)
class Sight:
    """What is to be seen of one window in the text to release."""

    first: int
    """Number of its first segment, which names the window."""
    members: tuple[tuple[int, Segment], ...]
    """Numbers of its segments, the one before it included, and where they stand now; without those
    that were left out."""
    wording: tuple[str, ...]
    """What they say."""


@dataclass(slots=True)
class Repair:
    """The repairs of one text, by the number of the segment.

    They are settled from the left to the right: a segment is settled once it was verified behind
    settled ones, and nothing that comes later changes it again. So the beginning of a stream, which
    is out before its end comes, is that of the finished text.
    """

    draft: Draft
    jobs: dict[int, Job]
    settled: int = 0
    """So many segments, the first ones, are settled."""
    known: int | None = None
    """From this number on it is not known yet what stands behind a segment; None: of all it is."""
    after: dict[int, Verdict] = field(default_factory=dict)
    """Verdicts on what is released, by segment."""
    _seen: dict[int, tuple[tuple[str, ...], dict[int, tuple[Segment, Verdict]]]] = field(
        default_factory=dict
    )
    """The wording of each window when it was looked at, and what was unsafe in it."""

    @classmethod
    def of(cls, draft: Draft) -> Repair:
        """One job for each flagged segment."""
        return cls(draft, {n: draft.job(n) for n, flag in enumerate(draft.flagged) if flag})

    def go_on(self, draft: Draft, known: int | None) -> None:
        """Take the draft of the same text after it has grown, and open the jobs of what is new."""
        self.draft, self.known = draft, known
        for n in range(self.settled, len(draft.segments) if known is None else known):
            if draft.flagged[n] and n not in self.jobs:
                self.jobs[n] = draft.job(n)

    def forget(self, segments: int, characters: int) -> None:
        """Leave settled segments behind, and characters that are released."""
        self.draft = self.draft.tail(segments, characters)
        self.jobs = {n - segments: job for n, job in self.jobs.items() if n >= segments}
        self.after = {n - segments: found for n, found in self.after.items() if n >= segments}
        self.settled -= segments
        self._seen.clear()

    @property
    def ready(self) -> int:
        """How many segments, the first ones, have the replacements that they need."""
        for number in range(self.settled, len(self.draft.segments)):
            job = self.jobs.get(number)
            if self.draft.flagged[number] if job is None else job.replacement is None:
                return number
        return len(self.draft.segments)

    @property
    def complete(self) -> bool:
        """Whether every segment has the replacement that it needs."""
        return self.ready == len(self.draft.segments)

    @property
    def done(self) -> bool:
        """Whether every segment is settled."""
        return self.settled == len(self.draft.segments)

    @property
    def errors(self) -> tuple[str, ...]:
        """What went wrong inside the model, each once."""
        return tuple(dict.fromkeys(e for job in self.jobs.values() for e in job.errors))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why segments were flagged and attempts refused, each once."""
        return tuple(dict.fromkeys(r for job in self.jobs.values() for r in job.reasons))

    def splice(self) -> tuple[str, dict[int, Edit]]:
        """The text with its replacements, and the edit of each, by the number of the segment."""
        parts: list[str] = []
        edits: dict[int, Edit] = {}
        last = length = 0
        for number, (start, end) in self._places().items():
            length += start - last
            edit = edits[number] = self._edit(number, start, end, length)
            parts += (self.draft.text[last:start], edit.replacement)
            length += len(edit.replacement)
            last = end
        return "".join([*parts, self.draft.text[last:]]), edits

    def sights(self) -> tuple[str, list[Sight]]:
        """The text to release, and those of its windows that were not looked at in these words."""
        released, edits = self.splice()
        placed = self._placed(edits)
        ready = self.ready
        found = []
        for first, last, context in windows(self.draft.segments):
            if min(last, ready) <= max(first, self.settled):
                continue
            numbers = range(first - context, min(last, ready))
            members = tuple((n, placed[n]) for n in numbers if placed[n].start < placed[n].end)
            wording = tuple(released[segment.start : segment.end] for _, segment in members)
            if first not in self._seen or self._seen[first][0] != wording:
                found.append(Sight(first, members, wording))
        return released, found

    def see(self, sight: Sight, verdicts: Sequence[Verdict], flags: Sequence[bool]) -> None:
        """Take what was found of the members of a window."""
        unsafe = {}
        for (number, segment), verdict, flag in zip(sight.members, verdicts, flags, strict=True):
            if number >= max(sight.first, self.settled):
                self.after[number] = verdict
                if flag:
                    unsafe[number] = segment, verdict
        self._seen[sight.first] = sight.wording, unsafe

    def advance(self) -> bool:
        """Settle what was seen to be safe; returns whether a segment went to the ladder instead.

        That is only the first one that is unsafe: those behind it may be so because of it.
        """
        unsafe = {n: seen for _, found in self._seen.values() for n, seen in found.items()}
        first = min((n for n in unsafe if self.settled <= n < self.ready), default=None)
        self.settled = self.ready if first is None else first
        if first is None:
            return False
        self.after.pop(first, None)
        if job := self.jobs.get(first):
            job.reopen("unsafe_in_place")
        elif self.known is None or first < self.known:
            self.jobs[first] = self._new(first, *unsafe[first])
        else:
            return False
        return True

    def reopen(self, reason: str) -> None:
        """Send all replacements back to the ladder."""
        for job in self.jobs.values():
            job.reopen(reason)
        self.settled = 0
        self.after.clear()
        self._seen.clear()

    def _new(self, number: int, seen: Segment, verdict: Verdict) -> Job:
        """The job of a segment that is unsafe only where it stands now."""
        job = self.draft.job(number)
        job.spans = verdict.moved(-seen.start).spans
        job.reasons = [*reasons(verdict), "unsafe_in_place"]
        return job

    def _placed(self, edits: Mapping[int, Edit]) -> list[Segment]:
        """The segments where they stand once the edits are made; empty where nothing is left."""
        found = []
        shift = 0
        for number, segment in enumerate(self.draft.segments):
            if edit := edits.get(number):
                start, end = edit.new_start, edit.new_end
                shift = edit.new_end - edit.end
            else:
                start, end = segment.start + shift, segment.end + shift
            found.append(replace(segment, start=start, end=end))
        return found

    def _places(self) -> dict[int, Range]:
        """What each replacement takes the place of: its segment.

        Where nothing comes instead, also the blanks before it, or behind it at the start of a line.
        """
        text = self.draft.text
        found: dict[int, Range] = {}
        last = 0
        told = False  # whether the replacement before it says anything
        for number in sorted(self.jobs):
            new = self.jobs[number].replacement
            if new is None:
                continue
            start, end = self.draft.segments[number].start, self.draft.segments[number].end
            if not new:
                before = text[last:start]
                kept = before.rstrip(" \t")
                if LINE.match(kept[-1:]) or (told and not kept):
                    start = last + len(kept)
                else:
                    end += len(text[end:]) - len(text[end:].lstrip(" \t"))
            found[number] = start, end
            last, told = end, bool(new)
        return found

    def _edit(self, number: int, start: int, end: int, new_start: int) -> Edit:
        job = self.jobs[number]
        new = job.replacement or ""
        return Edit(
            start=start,
            end=end,
            new_start=new_start,
            new_end=new_start + len(new),
            original=self.draft.text[start:end],
            replacement=new,
            action=job.outcome or "block",
            spans=moved(job.spans, self.draft.segments[number].start),
            reasons=tuple(dict.fromkeys(job.reasons)),
            rung=job.rung or "block",
        )
