"""The ladder: rewrite, sample, leave out, mask, block; each step verified before it counts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from srllm_guard.calls import Calls
from srllm_guard.detector import GAP, NOTHING, Detector, Verdict
from srllm_guard.engines.base import Asked, Request
from srllm_guard.errors import DeadlineExceeded, EngineError
from srllm_guard.job import Job, Outcome
from srllm_guard.language import language
from srllm_guard.policy import Policy
from srllm_guard.prompt import Prompt, Range, rewrite_request
from srllm_guard.text.protect import unprotected
from srllm_guard.text.segments import LINE, Segment
from srllm_guard.trim import trims
from srllm_guard.verify import closeness, faults, new_words, omission_faults, says_nothing

Flags = Callable[[str, Sequence[Verdict]], list[bool]]
"""Which verdicts on segments of a text the policy calls unsafe."""

DELETED = 3.0
"""How much less likely a deletion may be than what the model says: it makes nothing up. Of 16 dev
rewrites by deletion within -5.0, 14 were read as good; of 27 others within -2.0, 20."""

COARSE = 1.0
"""How much less likely a rewrite may be where nothing but coarse words is wrong and it brings at
most one new word. Of 45 rewrites of ParaDetox sources within -3.0, 38 were read as good; of the
next 18, 10."""

BETWEEN = 12
"""Most characters between two masked phrases that become one mask, if they say nothing."""

BREAKS = "breaks_structure"
"""The reason why a replacement is refused that does not fit."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to make a segment safe."""

    name: str
    outcome: Outcome
    propose: Callable[[Sequence[Job]], list[list[str]]]
    """Replacements for each job, the preferred one first."""
    scored: bool = False
    """Whether the model has to be sure of what is proposed."""

    @property
    def rung(self) -> str:
        """The rung that it belongs to."""
        return "rewrite" if self.name == "barred" else self.name


class Ladder:
    """Walks jobs down the rungs of a policy.

    Args:
        prompt: the instruction format.
        detector: judges replacements in place.
        policy: rungs, and bounds of the checks.
        flags: which verdicts are unsafe; a mask holds where there is none.
        doubts: likewise, and stricter; a rewrite holds where there is none.
        likelihood: a rewrite holds if the model gives it at least this; None asks for none.
    """

    def __init__(
        self,
        prompt: Prompt,
        detector: Detector,
        policy: Policy,
        flags: Flags,
        doubts: Flags,
        likelihood: float | None = None,
    ) -> None:
        self._prompt = prompt
        self._detector = detector
        self._policy = policy
        self._flags = flags
        self._doubts = doubts
        self._likelihood = likelihood

    def walk(self, jobs: Sequence[Job], calls: Calls) -> None:
        """Give every job that can be made safe its replacement; the rest keep None.

        An attempt that fails inside the engine costs the job that attempt; where the policy fails
        open it ends the job.

        Raises:
            DeadlineExceeded: no time is left. What was verified until then stays.
        """
        number = -1
        for number, attempt in enumerate(self._attempts(calls)):
            open_jobs = [
                job
                for job in jobs
                if job.replacement is None
                and job.tried <= number
                and not (job.errors and self._policy.fail_open)
            ]
            if open_jobs:
                self._try(attempt, open_jobs, calls)
            for job in open_jobs:
                job.tried = number + 1
        if self._policy.on_fail == "mask":
            self._mask_whole([job for job in jobs if job.tried <= number + 1])

    def _mask_whole(self, jobs: Iterable[Job]) -> None:
        """Replace whole segments by the mask: nothing of the original is left to be unsafe."""
        for job in jobs:
            if job.replacement is None and not (job.errors and self._policy.fail_open):
                job.replacement, job.outcome = self._policy.mask_text, "mask"
                job.rung = "mask"
                job.tried += 1

    def _try(self, attempt: Attempt, jobs: Sequence[Job], calls: Calls) -> None:
        try:
            self._settle(jobs, attempt.propose(jobs), attempt, calls)
        except DeadlineExceeded:
            raise
        except EngineError as error:
            if len(jobs) == 1:
                jobs[0].reasons.append(f"{attempt.name}: {type(error).__name__}")
                jobs[0].errors.append(error.line)
                return
            # One segment must not cost the others their rewrite.
            for job in jobs:
                self._try(attempt, [job], calls)

    def _attempts(self, calls: Calls) -> Iterator[Attempt]:
        policy, sure = self._policy, self._likelihood is not None
        for rung in policy.rungs:
            if rung == "rewrite":
                yield Attempt("rewrite", "rewrite", lambda jobs: self._edit(jobs, calls), sure)
                if not sure:
                    # Kept from what it wants to say, the model is never sure: of 86 dev segments
                    # this released none.
                    yield Attempt(
                        "barred", "rewrite", lambda jobs: self._decode(jobs, calls, barred=True)
                    )
            elif rung == "candidates":
                yield Attempt("candidates", "rewrite", lambda jobs: self._sample(jobs, calls), sure)
            elif rung == "omit":
                yield Attempt("omit", "rewrite", lambda jobs: [[""] for _ in jobs])
            elif rung == "mask":
                yield Attempt("mask", "mask", lambda jobs: [self._masks(job) for job in jobs])

    def _edit(self, jobs: Sequence[Job], calls: Calls) -> list[list[str]]:
        """What the model says, and deletions where it can tell whether they still are sentences."""
        found = self._decode(jobs, calls)
        if self._likelihood is None:
            return found
        return [
            list(dict.fromkeys([*texts, *self._cuts(job)]))
            for job, texts in zip(jobs, found, strict=True)
        ]

    def _decode(
        self, jobs: Sequence[Job], calls: Calls, *, barred: bool = False
    ) -> list[list[str]]:
        found = calls.generate([self._request(job, barred=barred) for job in jobs])
        return [[self._prompt.decode(each.ids).strip() if each.finished else ""] for each in found]

    def _sample(self, jobs: Sequence[Job], calls: Calls) -> list[list[str]]:
        count = self._policy.candidates
        requests = []
        for job in jobs:
            greedy = self._request(job, barred=True)
            # The seed hangs on the segment alone, so it does not matter what else is asked for.
            first = zlib.crc32(job.source.encode("utf-8", "surrogatepass")) ^ self._policy.seed
            requests += [
                replace(greedy, temperature=self._policy.temperature, seed=(first + n) % 2**32)
                for n in range(count)
            ]
        found = calls.generate(requests)
        texts = [self._prompt.decode(each.ids).strip() if each.finished else "" for each in found]
        return [list(dict.fromkeys(texts[n : n + count])) for n in range(0, len(texts), count)]

    def _request(self, job: Job, *, barred: bool) -> Request:
        marks = self._marks(job)
        phrases = [job.source[start:end] for start, end in marks] if barred else []
        sequences = {ids for phrase in phrases for ids in self._prompt.barred(phrase)}
        greedy = rewrite_request(self._prompt, job.text, job.segment, marks)
        return replace(greedy, barred=tuple(sorted(sequences)))

    def _marks(self, job: Job) -> list[Range]:
        return unprotected(job.source, job.spans, self._policy) or [(0, len(job.source))]

    def _cuts(self, job: Job) -> list[str]:
        if job.cuts is None:
            job.cuts = trims(job.source, self._marks(job))
        return job.cuts

    def _masks(self, job: Job) -> list[str]:
        """The unsafe phrases masked; or all but the protected parts."""
        whole = [replace(job.spans[0], start=0, end=len(job.source))] if job.spans else []
        return [
            _masked(job.source, ranges, self._policy.mask_text)
            for ranges in (
                unprotected(job.source, job.spans, self._policy),
                unprotected(job.source, whole, self._policy),
            )
            if ranges
        ]

    def _settle(
        self,
        jobs: Sequence[Job],
        proposals: Sequence[Sequence[str]],
        attempt: Attempt,
        calls: Calls,
    ) -> None:
        """Verify proposals, and take for each job the best that holds."""
        open_ = self._checked(jobs, proposals, attempt)
        chances: dict[tuple[int, str], float] = {}
        if attempt.scored and self._likelihood is not None:
            chances = self._chances(open_, calls)
            open_ = self._likely(open_, chances, self._likelihood, attempt)
        bound = self._doubts if attempt.outcome == "rewrite" else self._flags
        unsafe = self._judge([(job, text) for job, _, text in open_], bound, calls)
        ranked: dict[int, list[tuple[float, float, int, str]]] = {}
        for (job, rank, text), (verdict, flagged) in zip(open_, unsafe, strict=True):
            if flagged:
                job.reasons.append(f"{attempt.name}: still_unsafe")
                continue
            if attempt.outcome == "mask":
                first = 0.0, 0.0
            elif chances:
                first = -round(chances[id(job), text], 2), verdict.score
            else:
                # Safety first, in tenths; among equals the closest to what was said.
                first = round(verdict.score, 1), -closeness(job.source, text)
            ranked.setdefault(id(job), []).append((*first, rank, text))
        for job in jobs:
            if choice := ranked.get(id(job)):
                job.replacement, job.outcome = min(choice)[3], attempt.outcome
                job.rung = attempt.rung

    def _checked(
        self, jobs: Sequence[Job], proposals: Sequence[Sequence[str]], attempt: Attempt
    ) -> list[tuple[Job, int, str]]:
        """The proposals that their text alone does not speak against, with their ranks."""
        found = []
        for job, texts in zip(jobs, proposals, strict=True):
            for rank, text in enumerate(texts):
                if wrong := self._wrong(job, text, attempt):
                    job.reasons += [f"{attempt.name}: {reason}" for reason in wrong]
                else:
                    found.append((job, rank, text))
        return found

    def _chances(
        self, open_: Sequence[tuple[Job, int, str]], calls: Calls
    ) -> dict[tuple[int, str], float]:
        """The likelihood of each proposal of the model or the scissors, by job and text."""
        jobs = {id(job): job for job, _, _ in open_}
        asks = {number: self._request(job, barred=False).prompt for number, job in jobs.items()}
        keys = [(id(job), text) for job, _, text in open_]
        # What is less likely is refused, however much less.
        least = (self._likelihood or 0.0) - max(DELETED, COARSE)
        asked = [Asked(asks[number], self._prompt.target(text), least) for number, text in keys]
        return dict(zip(keys, calls.score(asked), strict=True))

    def _likely(
        self,
        open_: Sequence[tuple[Job, int, str]],
        chances: Mapping[tuple[int, str], float],
        least: float,
        attempt: Attempt,
    ) -> list[tuple[Job, int, str]]:
        """The proposals that are likely enough; less will do for coarse words and deletions."""
        found = []
        for job, rank, text in open_:
            chance = chances[id(job), text]
            plain = job.is_coarse and len(new_words(job.source, text, job.near)) <= 1
            bound = least - COARSE if plain else least
            if chance >= bound or (chance >= least - DELETED and text in self._cuts(job)):
                found.append((job, rank, text))
            else:
                job.reasons.append(f"{attempt.name}: unlikely")
        return found

    def _wrong(self, job: Job, text: str, attempt: Attempt) -> tuple[str, ...]:
        if job.fits is not None and not job.fits(job.segment.start, job.segment.end, text):
            return (BREAKS,)
        if attempt.outcome == "mask":
            return ("unchanged",) if text == job.source else ()
        if attempt.name == "omit":
            if not job.has_company:
                return ("stands_alone",)
            return omission_faults(job.source, job.spans, self._policy)
        if text and not LINE.fullmatch(text):
            return ("line_break",)
        if not language(text).verified and language(job.source).verified:
            return ("unverified_language",)
        return faults(job.source, text, job.spans, self._policy, job.near)

    def _judge(
        self, proposals: Sequence[tuple[Job, str]], bound: Flags, calls: Calls
    ) -> list[tuple[Verdict, bool]]:
        """Detect each replacement in place, behind its safe neighbour; say which are unsafe."""
        texts = []
        for job, new in proposals:
            # A margin, never judged, shows where a quotation begins and ends.
            first = max(0, (job.before or (job.segment,))[0].start - GAP)
            last = job.segment.end + GAP
            start = job.segment.start - first
            text = job.text[first : job.segment.start] + new + job.text[job.segment.end : last]
            here = [Segment(start, start + len(new), "prose", 0)] if new else []
            left = [Segment(s.start - first, s.end - first, "prose", 0) for s in job.before]
            texts.append((text, [*left, *here], len(left), bool(here)))
        found = self._detector.judge(
            [(text, parts) for text, parts, _, _ in texts],
            lambda windows: calls.detect(windows, "verify"),
        )
        return [
            (verdicts[at], bound(text, verdicts)[at]) if here else (NOTHING, False)
            for verdicts, (text, _, at, here) in zip(found, texts, strict=True)
        ]


def _masked(source: str, ranges: Sequence[Range], mask: str) -> str:
    """Replace ranges from the end, so that offsets stay right.

    Neighbours share one mask, also where little stands between them that says anything.
    """
    joined: list[Range] = []
    for start, end in ranges:
        between = source[joined[-1][1] : start] if joined else ""
        if joined and len(between) <= BETWEEN and says_nothing(between):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    for start, end in reversed(joined):
        source = source[:start] + mask + source[end:]
    return source
