"""From the results of the parts of a document to one result of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from srllm_guard.detector import DIGITS, summarise
from srllm_guard.labels import LABELS, RISKS
from srllm_guard.ladder import BREAKS
from srllm_guard.policy import Policy
from srllm_guard.results import (
    Action,
    Detection,
    Edit,
    EditAction,
    LabelScore,
    Moderation,
    Provenance,
    Span,
)
from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Change, Part, apply

_WORST: tuple[Action, ...] = ("pass", "rewrite", "mask", "unverified", "block")


def detection(document: Document, found: Sequence[Detection]) -> Detection:
    """What was found in the judged parts, as one of the whole text."""
    spans = [
        span
        for number, each in zip(document.judged, found, strict=True)
        for span in _moved(document.parts[number], each.spans)
    ]
    return _merged(found, spans)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One part that changes."""

    number: int
    edits: tuple[Edit, ...]
    """At offsets of the part."""
    changes: tuple[Change, ...]
    """The same, at offsets of the document."""
    wanted: str
    """How the part reads then."""
    after: Detection | None


def moderation(
    document: Document,
    results: Sequence[Moderation],
    policy: Policy,
    provenance: Provenance,
    timings: Mapping[str, float],
) -> Moderation:
    """The result of a document from those of its judged parts, in order.

    A part that cannot be made safe is withheld by itself; the document as a whole only where
    that would break its structure. The action is the worst that was done to a part: one that was
    blocked counts for more than one that was released unverified, and that for more than a mask or
    a rewrite.
    """
    before = detection(document, [result.before for result in results])
    errors = tuple(dict.fromkeys(error for result in results for error in result.errors))
    pairs = list(zip(document.judged, results, strict=True))
    common = {
        "original": document.text,
        "before": before,
        "provenance": provenance,
        "timings": timings,
        "errors": errors,
    }
    changed = [(number, result) for number, result in pairs if result.edits]
    if not changed:
        action = _action([result.action for result in results])
        return Moderation(action=action, text=document.text, after=None, edits=(), **common)  # type: ignore[arg-type]
    outcomes = [_outcome(document, number, result, policy) for number, result in changed]
    whole = [outcome for outcome in outcomes if outcome is not None]
    if len(whole) < len(outcomes) or not _holds(document, whole):
        reasons = [r for _, result in changed for edit in result.edits for r in edit.reasons]
        edit = _withheld_whole(document, before, (*dict.fromkeys(reasons), BREAKS), policy)
        return Moderation(
            action=edit.action,
            text=edit.replacement,
            after=None,
            edits=(edit,),
            **common,  # type: ignore[arg-type]
        )
    changes = [change for outcome in whole for change in outcome.changes]
    edits = _edits(document, whole)
    after = {outcome.number: outcome.after for outcome in whole}
    left = [
        (number, after.get(number) if number in after else result.before)
        for number, result in pairs
    ]
    spans = [
        _shifted(span, changes)
        for number, each in left
        if number not in after and each is not None
        for span in _moved(document.parts[number], each.spans)
    ]
    return Moderation(
        action=_action([*(result.action for result in results), *(edit.action for edit in edits)]),
        text=apply(document.text, changes),
        after=_merged([each for _, each in left if each is not None], spans),
        edits=edits,
        **common,  # type: ignore[arg-type]
    )


def _action(done: Iterable[Action]) -> Action:
    """The worst of what was done to parts."""
    return max(done, key=_WORST.index, default="pass")


def _outcome(
    document: Document, number: int, result: Moderation, policy: Policy
) -> _Outcome | None:
    edits = result.edits
    if result.after is not None:
        changes = document.changes(number, [(e.start, e.end, e.replacement) for e in edits])
        if changes is not None:
            return _Outcome(number, edits, tuple(changes), result.text, result.after)
        reasons = tuple(dict.fromkeys([*(r for edit in edits for r in edit.reasons), BREAKS]))
        action, message = _last(policy)
        edits = (_whole(result.original, result.before, action, message, reasons),)
    found = document.withhold(number, edits[0].replacement)
    if found is None:
        return None
    change, wanted = found
    return _Outcome(number, (edits[0],), (change,), wanted, None)


def _holds(document: Document, outcomes: Sequence[_Outcome]) -> bool:
    """Whether all changes hold together, each of which holds in its block."""
    changes = [change for outcome in outcomes for change in outcome.changes]
    apart = all(a[1] <= b[0] for a, b in pairwise(changes))
    if not apart or document.read is None:
        return apart
    wanted = {outcome.number: outcome.wanted for outcome in outcomes}
    withheld = {outcome.number for outcome in outcomes if outcome.after is None}
    return document.holds(changes, wanted, withheld)


def _edits(document: Document, outcomes: Sequence[_Outcome]) -> tuple[Edit, ...]:
    """The edits at offsets of the document."""
    found, shift = [], 0
    for outcome in outcomes:
        part = document.parts[outcome.number]
        for edit, (start, end, new) in zip(outcome.edits, outcome.changes, strict=True):
            found.append(
                Edit(
                    start=start,
                    end=end,
                    new_start=start + shift,
                    new_end=start + shift + len(new),
                    original=document.text[start:end],
                    replacement=new,
                    action=edit.action,
                    spans=_moved(part, edit.spans),
                    reasons=edit.reasons,
                    rung=edit.rung,
                )
            )
            shift += len(new) - (end - start)
    return tuple(found)


def _last(policy: Policy) -> tuple[EditAction, str]:
    """What takes the place of what is withheld."""
    if policy.on_fail == "mask":
        return "mask", policy.mask_text
    return "block", policy.block_message


def _whole(
    text: str, before: Detection, action: EditAction, message: str, reasons: tuple[str, ...]
) -> Edit:
    return Edit(0, len(text), 0, len(message), text, message, action, before.spans, reasons, action)


def _withheld_whole(
    document: Document, before: Detection, reasons: tuple[str, ...], policy: Policy
) -> Edit:
    action, message = _last(policy)
    return _whole(document.text, before, action, document.message(message), reasons)


def _moved(part: Part, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans of a part at offsets of the document."""
    found = []
    for span in spans:
        start, end = part.source(span.start, span.end)
        found.append(replace(span, start=start, end=end))
    return tuple(found)


def _shifted(span: Span, changes: Sequence[Change]) -> Span:
    """A span that nothing touched, at offsets of the changed text."""
    by = sum(len(new) - (end - start) for start, end, new in changes if end <= span.start)
    return replace(span, start=span.start + by, end=span.end + by)


def _merged(found: Sequence[Detection], spans: Sequence[Span]) -> Detection:
    """One detection of several, as `summarise` makes one of several segments."""
    if not found:
        return summarise((), (), verified=True, language=None)
    odd = [each for each in found if not each.verified]
    known = odd or [each for each in found if each.language is not None] or list(found)
    worst = {
        name: min((getattr(each, name) for each in found), key=partial(_safety, name))
        for name in RISKS
    }
    chances = {
        value: round(
            sum(each.sentiment.probabilities[value] for each in found) / len(found), DIGITS
        )
        for value in LABELS["sentiment"]
    }
    return Detection(
        score=max(each.score for each in found),
        unsafe=any(each.unsafe for each in found),
        sentiment=LabelScore(max(chances, key=lambda value: chances[value]), chances),
        spans=tuple(sorted(spans, key=lambda span: span.start)),
        verified=not odd,
        language=known[0].language,
        **worst,
    )


def _safety(name: str, label: LabelScore) -> float:
    return label.probabilities[LABELS[name][0]]
