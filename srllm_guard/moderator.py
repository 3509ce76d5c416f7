"""The story of a text: segments, detection, the ladder, and a last look before it is released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from srllm_guard import __version__
from srllm_guard.calls import Calls
from srllm_guard.detector import DIGITS, Detector, Verdict, summarise
from srllm_guard.draft import Draft
from srllm_guard.errors import DeadlineExceeded, EngineError
from srllm_guard.ladder import Ladder
from srllm_guard.language import Language, language
from srllm_guard.policy import Policy
from srllm_guard.repair import Repair
from srllm_guard.results import Detection, Edit, Moderation, Provenance, Span
from srllm_guard.text.protect import Protected, protected
from srllm_guard.text.segments import Segment, segments

if TYPE_CHECKING:
    from srllm_guard.results import Action
    from srllm_guard.runtime import Runtime


class Moderator:
    """Applies one policy with one model. Keeps no state between calls."""

    def __init__(self, runtime: Runtime, policy: Policy) -> None:
        self._policy = policy
        self._detector = Detector(runtime.prompt, runtime.calibration, runtime.engine.max_tokens)
        calibrated = runtime.calibration
        chosen, release = policy.threshold, policy.release_threshold
        self.threshold = calibrated.threshold if chosen is None else chosen
        self.release = min(calibrated.release if release is None else release, self.threshold)
        least = policy.min_likelihood
        self.likelihood = calibrated.likelihood if least is None else least
        self._ladder = Ladder(
            runtime.prompt, self._detector, policy, self._flags, self._doubts, self.likelihood
        )
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
        """Segment and judge texts; of a text in another language, what may be English alone.

        Raises:
            EngineError: the engine failed or missed the deadline.
        """
        languages = [language(text) for text in texts]
        prose = [
            tuple(s for s in segments(text) if s.kind == "prose" and _readable(text, s, found))
            for text, found in zip(texts, languages, strict=True)
        ]
        judged = self._detector.judge(list(zip(texts, prose, strict=True)), calls.detect)
        drafts = []
        for text, parts, plain, found in zip(texts, prose, judged, languages, strict=True):
            verdicts = self._marked(text, plain)
            flags = self._flags(text, verdicts)
            drafts.append(Draft(text, parts, tuple(verdicts), tuple(flags), found))
        return drafts

    def judge_on(
        self, draft: Draft, text: str, new: Sequence[Segment], calls: Calls, found: Language
    ) -> Draft:
        """The draft of a text that has grown; what was judged keeps its verdict.

        Args:
            draft: of its beginning, or of the last of it: back to the segment before the last
                window at least.
            text: that of the draft, and more.
            new: the segments that came.
            calls: to the engine.
            found: what language the text is in by now.

        Raises:
            EngineError: as `judge`.
        """
        more = [s for s in new if s.kind == "prose" and _readable(text, s, found)]
        parts = (*draft.segments, *more)
        known = len(draft.segments)
        run = calls.detect
        judged = self._detector.judge([(text, parts)], run, known=known)[0] if more else []
        verdicts = self._marked(text, judged[known:])
        flags = self._flags(text, verdicts)
        return replace(
            draft,
            text=text,
            segments=parts,
            verdicts=(*draft.verdicts, *verdicts),
            flagged=(*draft.flagged, *flags),
            language=found,
        )

    def settle(self, drafts: Sequence[Draft], calls: Calls) -> list[Moderation]:
        """Make the drafts safe, together, and say what became of each."""
        repairs = {n: Repair.of(d) for n, d in enumerate(drafts) if self._repairable(d)}
        errors = self.mend(repairs, calls)
        return [
            self._repaired(repairs[n], errors.get(n), calls)
            if n in repairs
            else self._untouched(draft, calls)
            for n, draft in enumerate(drafts)
        ]

    def mend(
        self, repairs: Mapping[int, Repair], calls: Calls, *, partial: bool = False
    ) -> dict[int, str]:
        """Walk jobs down the ladder and look at the texts to release, until they are settled.

        Args:
            repairs: by number; they are changed.
            calls: to the engine.
            partial: the beginning of a text is worth settling where its end cannot be made safe.

        Returns:
            The numbers of those that could not be judged or ran out of time, and why.
        """
        errors: dict[int, str] = {}
        left = dict(repairs)
        while left:
            errors |= self._walk(left, calls)
            left = {n: r for n, r in left.items() if n not in errors and (partial or r.complete)}
            errors |= self._look(left, calls)
            left = {n: r for n, r in left.items() if n not in errors}
            left = {n: r for n, r in left.items() if r.advance() or not (partial or self._stays(r))}
        return errors

    def failed(self, text: str, error: EngineError, calls: Calls) -> Moderation:
        """The outcome for a text that could not be judged."""
        draft = Draft(text, (), (), (), Language(None, 0.0, False))
        errors = (error.line,)
        if self._policy.fail_open or self._policy.mode == "observe":
            return self._result("unverified", draft, calls, errors=errors)
        return self._withheld(draft, calls, errors, errors)

    def _repairable(self, draft: Draft) -> bool:
        """Whether the ladder has something to do: not where all that is unverified is withheld."""
        released = draft.language.verified or self._policy.unverified == "pass"
        return self._policy.mode == "enforce" and any(draft.flagged) and released

    def _flags(self, text: str, verdicts: Sequence[Verdict]) -> list[bool]:
        """Which verdicts on segments of `text` the policy calls unsafe."""
        return self._from(self.threshold, text, verdicts)

    def _doubts(self, text: str, verdicts: Sequence[Verdict]) -> list[bool]:
        """Which verdicts on rewritten segments of `text` are too doubtful to release them."""
        return self._from(self.release, text, verdicts)

    def _from(self, least: float, text: str, verdicts: Sequence[Verdict]) -> list[bool]:
        flags = [self._unsafe(verdict, least) for verdict in verdicts]
        if self._policy.protect_quotations and any(flags):
            quoted = _quotations(text)
            pairs = zip(verdicts, flags, strict=True)
            return [flag and not _within((*v.spans, *v.weaker), quoted) for v, flag in pairs]
        return flags

    def _marked(self, text: str, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts; where all that they mark stays, what is less sure is marked as well."""
        if self._policy.protect_quotations and any(verdict.weaker for verdict in verdicts):
            quoted = _quotations(text)
            return [v.with_weaker() if _within(v.spans, quoted) else v for v in verdicts]
        return list(verdicts)

    def _unsafe(self, verdict: Verdict, least: float) -> bool:
        return verdict.score >= least or any(
            round(1 - verdict.labels[name][0], DIGITS) >= chance
            for name, chance in self._policy.label_thresholds.items()
        )

    def _walk(self, repairs: Mapping[int, Repair], calls: Calls) -> dict[int, str]:
        """Walk all open jobs down the ladder; returns which had no time for it."""
        try:
            jobs = [job for repair in repairs.values() for job in repair.jobs.values()]
            self._ladder.walk(jobs, calls)
        except DeadlineExceeded as error:
            return dict.fromkeys(repairs, error.line)
        return {}

    def _look(self, repairs: Mapping[int, Repair], calls: Calls) -> dict[int, str]:
        """Judge what is about to be released; returns which texts could not be judged."""
        seen = {n: repair.sights() for n, repair in repairs.items()}
        asked = [(n, text, sight) for n, (text, sights) in seen.items() for sight in sights]
        try:
            found = self._detector.judge(
                [(text, [segment for _, segment in sight.members]) for _, text, sight in asked],
                lambda windows: calls.detect(windows, "verify"),
                together=True,
            )
        except EngineError as error:
            if len(repairs) == 1 or isinstance(error, DeadlineExceeded):
                return dict.fromkeys(repairs, error.line)
            # One text must not cost the others their release.
            alone = (self._look({n: repair}, calls) for n, repair in repairs.items())
            return {n: why for failed in alone for n, why in failed.items()}
        for (n, text, sight), plain in zip(asked, found, strict=True):
            verdicts = self._marked(text, plain)
            repairs[n].see(sight, verdicts, self._flags(text, verdicts))
        return {}

    def _stays(self, repair: Repair) -> bool:
        """Whether a text that is ready is English where it was; otherwise it goes back whole."""
        if not repair.done or not repair.draft.language.verified:
            return True
        if language(repair.splice()[0]).verified:
            return True
        repair.reopen("unverified_language")
        return False

    def _untouched(self, draft: Draft, calls: Calls) -> Moderation:
        if draft.language.verified:
            return self._result("pass", draft, calls)
        if self._policy.unverified == "pass" or self._policy.mode == "observe":
            return self._result("unverified", draft, calls)
        return self._withheld(draft, calls, ("unverified",), (), "block")

    def _repaired(self, repair: Repair, error: str | None, calls: Calls) -> Moderation:
        errors = repair.errors if error is None else (*repair.errors, error)
        if repair.done:
            text, edits = repair.splice()
            found = language(text)
            verdicts = [verdict for _, verdict in sorted(repair.after.items())]
            after = summarise(
                verdicts, [False] * len(verdicts), verified=found.verified, language=found.code
            )
            masked = any(edit.action == "mask" for edit in edits.values())
            action: Action = "mask" if masked else "rewrite"
            edited = tuple(edits.values())
            return self._result(action, repair.draft, calls, text, after, edited, errors)
        if self._policy.fail_open and (errors or self._policy.on_fail == "pass"):
            return self._result("unverified", repair.draft, calls, errors=errors)
        return self._withheld(repair.draft, calls, (*repair.reasons, *errors), errors)

    def _withheld(
        self,
        draft: Draft,
        calls: Calls,
        reasons: tuple[str, ...],
        errors: tuple[str, ...],
        action: Literal["mask", "block"] | None = None,
    ) -> Moderation:
        """The whole text masked or blocked, as the policy ends the ladder."""
        action = action or ("mask" if self._policy.on_fail == "mask" else "block")
        message = self._policy.mask_text if action == "mask" else self._policy.block_message
        edit = Edit(
            start=0,
            end=len(draft.text),
            new_start=0,
            new_end=len(message),
            original=draft.text,
            replacement=message,
            action=action,
            spans=draft.detection.spans,
            reasons=reasons,
            rung=action,
        )
        return self._result(action, draft, calls, message, None, (edit,), errors)

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


def _readable(text: str, segment: Segment, found: Language) -> bool:
    """Whether a segment is to be judged: foreign text carries no English past the model.

    Of a few words the language cannot be told, so they are judged wherever they stand.
    """
    return found.verified or language(text[segment.start : segment.end]).code in ("en", None)


def _quotations(text: str) -> list[Protected]:
    return [part for part in protected(text, quotations=True) if part.kind == "quotation"]


def _within(spans: Sequence[Span], quoted: Sequence[Protected]) -> bool:
    """Whether all that is unsafe stands within quotations."""
    return bool(spans) and all(
        any(part.start <= span.start and span.end <= part.end for part in quoted) for span in spans
    )
