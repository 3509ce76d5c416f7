"""What is judged, repaired and released of a text that grows: the moderator's work, bit by bit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from srllm_guard.calls import Calls
from srllm_guard.detector import Verdict, moved, summarise, windows
from srllm_guard.draft import Draft
from srllm_guard.errors import EngineError
from srllm_guard.language import Language, language
from srllm_guard.middleware.tongue import Tongue
from srllm_guard.moderator import Moderator
from srllm_guard.policy import Policy
from srllm_guard.repair import Repair
from srllm_guard.results import Action, Edit, Moderation
from srllm_guard.runtime import Runtime
from srllm_guard.text.segments import Segment

LEAD = 400
"""Characters that are kept before the last window: repairs look at what stands around."""

_BLANK = re.compile(r"[ \t]*+")
_SPACE = re.compile(r"\s*+")


@dataclass(slots=True)
class _Record:
    """What the result will say, at offsets of the whole text."""

    before: list[Verdict] = field(default_factory=list)
    flagged: list[bool] = field(default_factory=list)
    after: list[Verdict] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    """What was released."""
    length: int = 0
    """Of all parts, in characters."""
    hidden: int | None = None
    """From this part on nothing is shown: the message of a block that is raised."""
    unverified: bool = False
    """Whether something was released that could not be judged or made safe."""
    foreign: bool = False
    """Whether something was released that the model was not validated for."""


class Passage:
    """One text that grows. Released is what `Guard.rewrite` makes of its beginning.

    Sentences are judged in the windows in which they would be judged in the whole text, all of one
    call together, and settled from the left to the right. Of the text only as much is kept as is
    needed to go on; offsets are those of the kept text.
    """

    def __init__(self, runtime: Runtime, policy: Policy) -> None:
        self._moderator = Moderator(runtime, policy)
        self._policy = policy
        self._repair = Repair(Draft("", (), (), (), Language(None, 0.0, True)), {})
        self._tongue = Tongue()
        self._doubtful: list[Segment] = []  # told, but of a language that is not known yet
        self._heard = 0  # where the language is known up to
        self._base = 0  # where the kept text begins in the whole
        self._done = 0  # so many segments are released
        self._barred = False  # whether what follows must not be released unverified
        self._foreign = False  # whether that is so because of its language
        self._record = _Record()
        self.shown = 0
        """Up to here all was released."""
        self.dead = False
        """Whether the rest of the text is withheld."""

    @property
    def settled(self) -> bool:
        """Whether nothing that was told waits for what follows it."""
        return self._repair.done

    def take(
        self, text: str, new: Sequence[Segment], told: int, calls: Calls, *, last: bool
    ) -> str:
        """Judge what was told, make it safe, and release what is settled.

        Args:
            text: the kept text.
            new: the segments in it that were told since the last call.
            told: up to where all is told.
            calls: to the engine.
            last: what follows has no say in what was told.

        Returns:
            What is released now; nothing is once the passage is dead.
        """
        first = len(self._record.parts)
        try:
            self._judge(text, new, calls, last)
            self._mend(text, told, calls, last)
        finally:
            for stage, ms in {**calls.spent, "total": calls.total()}.items():
                self._record.spent[stage] = self._record.spent.get(stage, 0.0) + ms
        return "".join(self._record.parts[first : self._record.hidden])

    def forget(self, most: int) -> int:
        """Leave behind what is not needed any more.

        Args:
            most: characters of the kept text, at most.

        Returns:
            How many characters; offsets are smaller by so many now.
        """
        repair = self._repair
        first = 0
        for start, stop, _ in windows(repair.draft.segments):
            first = start
            if repair.settled < stop:
                break
        kept = max(0, min(first, repair.settled) - 1)
        starts = [s.start - LEAD for s in repair.draft.segments[kept : kept + 1]]
        starts += [s.start for s in self._doubtful[:1]]
        count = max(0, min([most, self.shown, self._heard, *starts]))
        if kept or count:
            repair.forget(kept, count)
        self._doubtful = [s.moved(-count) for s in self._doubtful]
        self._done -= kept
        self._base += count
        self._heard -= count
        self.shown -= count
        return count

    def result(self, original: str) -> Moderation:
        """One result for all that came and went."""
        record, found = self._record, language(original)
        text = "".join(record.parts)
        after = None
        doubtful = record.unverified or (self.dead and record.foreign)
        if record.edits and (doubtful or not self.dead):
            seen = language(text)
            after = summarise(
                record.after,
                [False] * len(record.after),
                verified=seen.verified and not doubtful,
                language=seen.code,
            )
        return Moderation(
            action=self._action(found),
            text=text,
            original=original,
            before=summarise(
                record.before, record.flagged, verified=found.verified, language=found.code
            ),
            after=after,
            edits=tuple(record.edits),
            provenance=self._moderator.provenance,
            timings={stage: round(ms, 3) for stage, ms in record.spent.items()},
            errors=tuple(dict.fromkeys(record.errors)),
        )

    def _action(self, found: Language) -> Action:
        record = self._record
        if self.dead:
            return "mask" if record.edits[-1].action == "mask" else "block"
        if record.unverified or not (record.edits or found.verified):
            return "unverified"
        if not record.edits:
            return "pass"
        return "mask" if any(edit.action == "mask" for edit in record.edits) else "rewrite"

    def _judge(self, text: str, new: Sequence[Segment], calls: Calls, last: bool) -> None:
        """Take the segments into the draft, once it is known in what language they are."""
        draft = replace(self._repair.draft, text=text)
        told = self._languages(text, new, last)
        for verified, group in groupby(told, key=lambda pair: pair[1].verified):
            if not verified and self._policy.unverified == "block":
                self._barred = self._foreign = True
                break
            self._record.foreign |= not verified
            known = len(draft.segments)
            parts, languages = zip(*group, strict=True)
            found = languages[-1]
            try:
                draft = self._moderator.judge_on(draft, text, parts, calls, found)
            except EngineError as error:
                self._record.errors.append(error.line)
                if not self._policy.fail_open:
                    self._barred = True
                    break
                self._record.unverified = True
                draft = draft.unjudged(parts)
            self._record.before += [v.moved(self._base) for v in draft.verdicts[known:]]
            self._record.flagged += draft.flagged[known:]
        self._repair.draft = draft

    def _languages(
        self, text: str, new: Sequence[Segment], last: bool
    ) -> list[tuple[Segment, Language]]:
        """The segments of which the language is known by now."""
        ready: list[tuple[Segment, Language]] = []
        for segment in new:
            found = self._tongue.hear(text[self._heard : segment.end])
            self._heard = segment.end
            self._doubtful.append(segment)
            if found is not None:
                ready += [(each, found) for each in self._doubtful]
                self._doubtful = []
        if last:
            ready += [(each, self._tongue.found) for each in self._doubtful]
            self._doubtful = []
        return ready

    def _mend(self, text: str, told: int, calls: Calls, last: bool) -> None:
        """Make safe what is in the draft, and release what is settled."""
        repair = self._repair
        count = len(repair.draft.segments)
        open_end = not (last or self._barred or self._is_followed(text, told))
        repair.go_on(repair.draft, count - 1 if open_end else None)
        errors: dict[int, str] = {}
        if repair.jobs or any(repair.draft.flagged[repair.settled :]):
            errors = self._moderator.mend({0: repair}, calls, partial=True)
            while self._excused(errors):
                errors = self._moderator.mend({0: repair}, calls, partial=True)
        else:
            repair.settled = count
        self._release(text, told)
        job = repair.jobs.get(repair.settled)
        if errors or self._barred or (job is not None and job.replacement is None):
            self._record.errors += [*errors.values(), *(job.errors if job else ())]
            self._withhold(text, job.reasons if job else [])

    def _is_followed(self, text: str, told: int) -> bool:
        """Whether it is known what stands behind the last segment, on its line."""
        segments = self._repair.draft.segments
        if not segments or "omit" not in self._policy.rungs:
            return True
        blank = _BLANK.match(text, segments[-1].end)
        at = blank.end() if blank else len(text)
        return text[at : at + 1] in ("\n", "\r", "\u2028", "\u2029") if at >= told else True

    def _excused(self, errors: dict[int, str]) -> bool:
        """Whether a policy that fails open lets pass what could not be made safe."""
        repair, policy = self._repair, self._policy
        job = repair.jobs.get(repair.settled)
        stuck = job is not None and job.replacement is None
        if not policy.fail_open or not (errors or stuck):
            return False
        if errors:
            for number in range(repair.settled, len(repair.draft.segments)):
                repair.jobs.pop(number, None)
            repair.settled = len(repair.draft.segments)
            self._record.errors += errors.values()
        elif job is not None and (job.errors or policy.on_fail == "pass"):
            del repair.jobs[repair.settled]
            repair.settled += 1
            self._record.errors += job.errors
        else:
            return False
        self._record.unverified = True
        return True

    def _release(self, text: str, told: int) -> None:
        """Put out what was settled since the last time."""
        repair, record = self._repair, self._record
        edits = repair.splice()[1]
        for number in range(self._done, repair.settled):
            edit = edits.get(number)
            if edit is None:
                record.after.append(repair.after.get(number, repair.draft.verdicts[number]))
                continue
            start, end = self._range(text, edit)
            self._put(text[self.shown : start])
            new_start = record.length
            self._put(edit.replacement)
            if number in repair.after:
                record.after.append(repair.after[number])
            record.errors += repair.jobs[number].errors
            record.edits.append(
                replace(
                    edit,
                    start=start + self._base,
                    end=end + self._base,
                    new_start=new_start,
                    new_end=record.length,
                    original=text[start:end],
                    spans=moved(edit.spans, self._base),
                )
            )
            self.shown = end
        self._done = repair.settled
        end = told
        if not repair.done:
            end = repair.draft.segments[self._done - 1].end if self._done else 0
        elif self._doubtful or self._barred:
            end = max((s.end for s in repair.draft.segments), default=0)
        if end > self.shown:
            self._put(text[self.shown : end])
            self.shown = end

    def _range(self, text: str, edit: Edit) -> tuple[int, int]:
        """What an edit replaces of what is not shown yet.

        Where the blanks that would go with a sentence are shown, those behind it go instead.
        """
        if edit.start >= self.shown:
            return edit.start, edit.end
        blank = _BLANK.match(text, edit.end)
        return self.shown, blank.end() if blank else edit.end

    def _withhold(self, text: str, reasons: Sequence[str]) -> None:
        """Put the policy's message in the place of all that follows."""
        record, policy = self._record, self._policy
        if record.length and (space := _SPACE.match(text, self.shown)):
            self._put(space.group())
            self.shown = space.end()
        masked = policy.on_fail == "mask" and not self._foreign
        message = policy.mask_text if masked else policy.block_message
        draft = self._repair.draft
        flagged = zip(draft.verdicts, draft.flagged, range(len(draft.flagged)), strict=True)
        spans = [s for v, flag, n in flagged if flag and n >= self._done for s in v.spans]
        start = record.length
        if not masked and policy.on_block == "raise":
            record.hidden = len(record.parts)
        self._put(message)
        record.edits.append(
            Edit(
                start=self.shown + self._base,
                end=len(text) + self._base,
                new_start=start,
                new_end=record.length,
                original=text[self.shown :],
                replacement=message,
                action="mask" if masked else "block",
                spans=moved(spans, self._base),
                reasons=tuple(dict.fromkeys([*(reasons or ["unverified"]), *record.errors])),
                rung="mask" if masked else "block",
            )
        )
        self.shown = len(text)
        self.dead = True

    def _put(self, part: str) -> None:
        if part:
            self._record.parts.append(part)
            self._record.length += len(part)
