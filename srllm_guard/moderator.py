"""The story of a text: segments, detection, the ladder, and a last look before it is released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srllm_guard import __version__
from srllm_guard.calls import Calls
from srllm_guard.detector import Detector, Verdict
from srllm_guard.draft import Draft, Repair
from srllm_guard.errors import DeadlineExceeded, EngineError
from srllm_guard.ladder import Ladder
from srllm_guard.language import Language, language
from srllm_guard.policy import Policy
from srllm_guard.results import Detection, Edit, Moderation, Provenance, Span
from srllm_guard.text.protect import protected
from srllm_guard.text.segments import segments

if TYPE_CHECKING:
    from srllm_guard.results import Action
    from srllm_guard.runtime import Runtime

ROUNDS = 3
"""How often a text that is about to be released is judged anew before it is withheld."""


class Moderator:
    """Applies one policy with one model. Keeps no state between calls."""

    def __init__(self, runtime: Runtime, policy: Policy) -> None:
        self._policy = policy
        self._detector = Detector(runtime.prompt, runtime.calibration, runtime.engine.max_tokens)
        self._ladder = Ladder(runtime.prompt, self._detector, policy, self._unsafe)
        chosen = policy.threshold
        self.threshold = runtime.calibration.threshold if chosen is None else chosen
        self.provenance = Provenance(
            bundle=runtime.bundle,
            bundle_hash=runtime.bundle_hash,
            base_hash=runtime.base_hash,
            policy_hash=policy.hash,
            engine=runtime.engine.name,
            device=runtime.engine.device,
            version=__version__,
        )

    def judge(self, texts: Sequence[str], calls: Calls) -> list[Draft]:
        """Segment and judge texts; those of another language are not judged.

        Raises:
            EngineError: the engine failed or missed the deadline.
        """
        languages = [language(text) for text in texts]
        prose = [
            tuple(s for s in segments(text) if s.kind == "prose") if found.verified else ()
            for text, found in zip(texts, languages, strict=True)
        ]
        judged = self._detector.judge(list(zip(texts, prose, strict=True)), calls.detect)
        drafts = []
        for text, parts, verdicts, found in zip(texts, prose, judged, languages, strict=True):
            quoted = self._quotations(text)
            flags = tuple(self._unsafe(v) and not _within(v.spans, quoted) for v in verdicts)
            drafts.append(Draft(text, parts, tuple(verdicts), flags, found))
        return drafts

    def settle(self, drafts: Sequence[Draft], calls: Calls) -> list[Moderation]:
        """Make the drafts safe, together, and say what became of each."""
        enforce = self._policy.mode == "enforce"
        repairs = {n: Repair.of(d) for n, d in enumerate(drafts) if enforce and any(d.flagged)}
        after: dict[int, Detection] = {}
        errors: dict[int, str] = {}
        for _ in range(ROUNDS):
            todo = {n: r for n, r in repairs.items() if n not in after and n not in errors}
            errors |= self._walk(todo, calls)
            ready = {n: r for n, r in todo.items() if n not in errors and r.complete}
            found, failed = self._look(ready, calls)
            errors |= failed
            for n, draft in found.items():
                if any(draft.flagged):
                    repairs[n].reopen(draft)
                else:
                    after[n] = draft.detection
        if self._policy.on_fail == "mask":
            after |= self._last_resort(
                {n: r for n, r in repairs.items() if n not in after and n not in errors}, calls
            )
        return [
            self._repaired(repairs[n], after.get(n), errors.get(n), calls)
            if n in repairs
            else self._untouched(draft, calls)
            for n, draft in enumerate(drafts)
        ]

    def failed(self, text: str, error: EngineError, calls: Calls) -> Moderation:
        """The outcome for a text that could not be judged."""
        draft = Draft(text, (), (), (), Language(None, 0.0, False))
        errors = (_named(error),)
        if self._policy.fail_open or self._policy.mode == "observe":
            return self._result("unverified", draft, calls, errors=errors)
        return self._blocked(draft, calls, errors, errors)

    def _unsafe(self, verdict: Verdict) -> bool:
        return verdict.score >= self.threshold or any(
            1 - verdict.labels[name][0] >= least
            for name, least in self._policy.label_thresholds.items()
        )

    def _quotations(self, text: str) -> list[tuple[int, int]]:
        if not self._policy.protect_quotations:
            return []
        return [(p.start, p.end) for p in protected(text, quotations=True) if p.kind == "quotation"]

    def _walk(self, repairs: dict[int, Repair], calls: Calls) -> dict[int, str]:
        """Walk all open jobs down the ladder; returns what failed."""
        if not repairs:
            return {}
        try:
            jobs = [job for repair in repairs.values() for job in repair.jobs.values()]
            self._ladder.walk(jobs, calls)
            return {}
        except EngineError as error:
            if len(repairs) == 1 or isinstance(error, DeadlineExceeded):
                return dict.fromkeys(repairs, _named(error))
        # One text must not cost the others their rewrite.
        failed: dict[int, str] = {}
        for n, repair in repairs.items():
            failed |= self._walk({n: repair}, calls)
        return failed

    def _look(
        self, repairs: dict[int, Repair], calls: Calls
    ) -> tuple[dict[int, Draft], dict[int, str]]:
        """Judge the texts that are about to be released, and say which could not be judged."""
        if not repairs:
            return {}, {}
        try:
            drafts = self.judge([repair.splice()[0] for repair in repairs.values()], calls)
            return dict(zip(repairs, drafts, strict=True)), {}
        except EngineError as error:
            return {}, dict.fromkeys(repairs, _named(error))

    def _last_resort(self, repairs: dict[int, Repair], calls: Calls) -> dict[int, Detection]:
        """Mask whole segments where nothing else was safe: nothing unsafe is left to be released."""
        for repair in repairs.values():
            for job in repair.jobs.values():
                if job.replacement is None:
                    self._ladder.mask_whole(job)
        return {n: draft.detection for n, draft in self._look(repairs, calls)[0].items()}

    def _untouched(self, draft: Draft, calls: Calls) -> Moderation:
        if draft.language.verified:
            return self._result("pass", draft, calls)
        if self._policy.unverified == "pass" or self._policy.mode == "observe":
            return self._result("unverified", draft, calls)
        return self._blocked(draft, calls, ("unverified",), ())

    def _repaired(
        self, repair: Repair, after: Detection | None, error: str | None, calls: Calls
    ) -> Moderation:
        errors = () if error is None else (error,)
        if after is not None:
            text, edits = repair.splice()
            masked = any(edit.action == "mask" for edit in edits)
            action: Action = "mask" if masked else "rewrite"
            return self._result(action, repair.draft, calls, text, after, edits)
        if self._policy.fail_open and (errors or self._policy.on_fail == "pass"):
            return self._result("unverified", repair.draft, calls, errors=errors)
        return self._blocked(repair.draft, calls, (*repair.reasons, *errors), errors)

    def _blocked(
        self, draft: Draft, calls: Calls, reasons: tuple[str, ...], errors: tuple[str, ...]
    ) -> Moderation:
        message = self._policy.block_message
        edit = Edit(
            start=0,
            end=len(draft.text),
            new_start=0,
            new_end=len(message),
            original=draft.text,
            replacement=message,
            action="block",
            spans=draft.detection.spans,
            reasons=reasons,
        )
        return self._result("block", draft, calls, message, None, (edit,), errors)

    def _result(
        self,
        action: Action,
        draft: Draft,
        calls: Calls,
        text: str | None = None,
        after: Detection | None = None,
        edits: tuple[Edit, ...] = (),
        errors: tuple[str, ...] = (),
    ) -> Moderation:
        timings = {**calls.spent, "total": calls.total()}
        return Moderation(
            action=action,
            text=draft.text if text is None else text,
            original=draft.text,
            before=draft.detection,
            after=after,
            edits=edits,
            provenance=self.provenance,
            timings={stage: round(ms, 3) for stage, ms in timings.items()},
            errors=errors,
        )


def _named(error: EngineError) -> str:
    return f"{type(error).__name__}: {error.message}"


def _within(spans: Sequence[Span], quoted: Sequence[tuple[int, int]]) -> bool:
    """Whether all that is unsafe stands within protected quotations."""
    return bool(spans and quoted) and all(
        any(start <= span.start and span.end <= end for start, end in quoted) for span in spans
    )
