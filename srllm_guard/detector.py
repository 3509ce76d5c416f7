"""Detection: text in, one verdict for each segment out.

Consecutive segments are judged in windows, so each has those before it as context, and every token
is read once. Where the text hides what it says (look-alike letters, l33t, zero-width characters), a
folded view is judged beside the plain one, and the worse verdict counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from srllm_guard.engines.base import Floats, Scores, Window
from srllm_guard.labels import CATEGORIES, LABELS, SLICES, UNSAFE
from srllm_guard.models.bundle import Calibration
from srllm_guard.prompt import Prompt, Range
from srllm_guard.results import Detection, LabelScore, Span
from srllm_guard.text.normalize import View, fold_in_turn, view
from srllm_guard.text.segments import Segment

WINDOW = 900
"""Most characters of a window."""

GAP = 120
"""Segments further apart than this (a block of code between them) share no window."""

DIGITS = 4
"""Probabilities are rounded to this, so that the size of a batch cannot show in a result."""

SURE = 0.7
"""A span is at least this share as likely as the surest one of its segment: what is weaker beside
it mostly lies on harmless words. On 550 dev texts span F1 rises from .592 to .597 (authored) and
from .499 to .545 (toxic_spans)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the heads say of one segment."""

    score: float
    """Calibrated probability that it is unsafe."""
    labels: dict[str, tuple[float, ...]]
    """Probability of each value of each label."""
    spans: tuple[Span, ...]
    """The phrases that are most likely unsafe, at offsets of the whole text. Always at least one,
    so that a segment which a strict policy flags says where."""
    weaker: tuple[Span, ...] = ()
    """Other phrases that reach the threshold, but are not marked: they are far less likely than the
    surest one, or overlap it."""

    def moved(self, by: int) -> Verdict:
        """The verdict where the text that it speaks of begins `by` characters later."""
        return replace(self, spans=moved(self.spans, by), weaker=moved(self.weaker, by))

    def with_weaker(self) -> Verdict:
        """The verdict with those of the weaker phrases marked that overlap no other."""
        spans, weaker = list(self.spans), list[Span]()
        for span in self.weaker:
            apart = all(span.end <= other.start or other.end <= span.start for other in spans)
            (spans if apart else weaker).append(span)
        spans.sort(key=lambda span: span.start)
        return replace(self, spans=tuple(spans), weaker=tuple(weaker))


@dataclass(frozen=True, slots=True)
class _Piece:
    """One window of one text, and how its tokens lie in that text."""

    text: int
    """Number of the text."""
    segments: tuple[int, ...]
    """Numbers of the segments that are judged; -1 stands for one that is context only."""
    window: Window
    ranges: tuple[Range, ...]
    """Where each token stands in the text."""


Doubles = NDArray[np.float64]

Run = Callable[[Sequence[Window]], list[Scores]]
"""Runs windows through an engine."""


class Detector:
    """Judges texts with the heads of one bundle."""

    def __init__(self, prompt: Prompt, calibration: Calibration, max_tokens: int) -> None:
        self._prompt = prompt
        self._calibration = calibration
        self._max_tokens = max_tokens

    def judge(
        self,
        texts: Sequence[tuple[str, Sequence[Segment]]],
        run: Run,
        *,
        together: bool = False,
        known: int = 0,
    ) -> list[list[Verdict]]:
        """Verdicts of the segments of each text, in order.

        Args:
            texts: each text with those of its segments that are to be judged.
            run: runs windows through the engine; its errors pass through.
            together: all segments of a text share one window, whatever its length.
            known: so many segments of each text, the first ones, only stand before the others.

        Returns:
            For each text the verdicts of its segments; `NOTHING` for those that are known.
        """
        pieces = [
            piece
            for number, (text, segments) in enumerate(texts)
            for group in ([(0, len(segments), 0)] if together else windows(segments))
            if group[1] > known
            for piece in self._pieces(number, text, segments, group)
        ]
        # What is said twice is judged once: a megabyte of one letter is a thousand equal windows.
        asked = list(dict.fromkeys(piece.window for piece in pieces))
        scores = dict(zip(asked, run(asked), strict=True)) if asked else {}
        found: list[list[Verdict | None]] = [[None] * len(segments) for _, segments in texts]
        for piece in pieces:
            text, segments = texts[piece.text]
            for row, number in enumerate(piece.segments):
                if number < known:
                    continue
                tokens = [n for n, owner in enumerate(piece.window.owner) if owner == row]
                if not tokens:  # the row of a segment without a token says nothing
                    continue
                verdict = self._verdict(
                    text, segments[number], piece, row, tokens, scores[piece.window]
                )
                found[piece.text][number] = self._worse(verdict, found[piece.text][number])
        return [[verdict or NOTHING for verdict in verdicts] for verdicts in found]

    def _pieces(
        self, number: int, text: str, segments: Sequence[Segment], where: tuple[int, int, int]
    ) -> Iterator[_Piece]:
        """The window at `where` (see `windows`), once for each view that differs."""
        first, last, context = where
        judged = (-1,) * context + tuple(range(first, last))
        group = segments[first - context : last]
        start, end = group[0].start, group[-1].end
        within = [(segment.start - start, segment.end - start) for segment in group]
        plain = view(text[start:end])
        views = [plain]
        folded = fold_in_turn(text[start:end], [stop for _, stop in within])
        if folded.text != plain.text:
            views.append(folded)
        for seen in views:
            window, ranges = self._prompt.window(seen.text, [_seen(seen, r) for r in within])
            placed = tuple(_placed(seen, where, start) for where in ranges)
            yield from _fitting(number, judged, window, placed, self._max_tokens)

    def _worse(self, verdict: Verdict, other: Verdict | None) -> Verdict:
        """The worse of two verdicts on a segment, with what both say for certain is unsafe."""
        if other is None:
            return verdict
        # Of equal ones the first: the plain view counts before the folded one.
        worse, less = (verdict, other) if verdict.score > other.score else (other, verdict)
        least = self._calibration.span_threshold
        sure = tuple(span for span in less.spans if span.score >= least)
        both = replace(worse, weaker=sure).with_weaker()
        return replace(both, weaker=(*worse.weaker, *less.weaker, *both.weaker))

    def _verdict(
        self,
        text: str,
        segment: Segment,
        piece: _Piece,
        row: int,
        tokens: Sequence[int],
        scores: Scores,
    ) -> Verdict:
        calibration = self._calibration
        logits = scores.labels[row].astype(np.float64)
        score = _sigmoid(calibration.scale * logits[UNSAFE] + calibration.shift)
        labels = {
            name: tuple(
                round(float(p), DIGITS)
                for p in _softmax(logits[SLICES[name]] / calibration.temperatures.get(name, 1.0))
            )
            for name in LABELS
        }
        ranges = [piece.ranges[n] for n in tokens]
        spans = _spans(text, segment, ranges, scores.spans[tokens], calibration.span_threshold)
        return Verdict(round(float(score), DIGITS), labels, *spans)


def moved(spans: Iterable[Span], by: int) -> tuple[Span, ...]:
    """Spans at offsets that are larger by `by`."""
    return tuple(replace(span, start=span.start + by, end=span.end + by) for span in spans)


def summarise(
    verdicts: Sequence[Verdict],
    flagged: Sequence[bool],
    *,
    verified: bool,
    language: str | None,
) -> Detection:
    """One `Detection` of a whole text from the verdicts of its segments.

    Each risk label is that of the segment where its safe value is least likely; sentiment is the
    mean over the segments.
    """
    labels = {}
    for name, values in LABELS.items():
        rows = [verdict.labels[name] for verdict in verdicts] or [NOTHING.labels[name]]
        if name == "sentiment":
            chances = tuple(
                round(sum(column) / len(rows), DIGITS) for column in zip(*rows, strict=True)
            )
        else:
            chances = min(rows, key=lambda row: row[0])
        best = max(range(len(values)), key=lambda n: chances[n])
        labels[name] = LabelScore(values[best], dict(zip(values, chances, strict=True)))
    spans = [s for v, flag in zip(verdicts, flagged, strict=True) if flag for s in v.spans]
    return Detection(
        score=max((verdict.score for verdict in verdicts), default=0.0),
        unsafe=any(flagged),
        spans=tuple(sorted(spans, key=lambda span: span.start)),
        verified=verified,
        language=language,
        **labels,
    )


NOTHING = Verdict(
    0.0,
    {
        "bias": (1.0, 0.0),
        "toxicity": (1.0, 0.0, 0.0),
        "sentiment": (0.0, 1.0, 0.0),
        "harm": (1.0, 0.0, 0.0),
    },
    (),
)
"""The verdict on a segment without a token."""


def windows(segments: Sequence[Segment]) -> Iterator[tuple[int, int, int]]:
    """First and last (exclusive) segment of each window, and whether the one before is context.

    Windows are filled from the left: those of a text begin where those of its beginning do.
    """
    first = 0
    while first < len(segments):
        context = int(
            first > 0
            and segments[first].start - segments[first - 1].end <= GAP
            and segments[first].end - segments[first - 1].start <= WINDOW
        )
        start, last = segments[first - context].start, first + 1
        while (
            last < len(segments)
            and segments[last].end - start <= WINDOW
            and segments[last].start - segments[last - 1].end <= GAP
        ):
            last += 1
        yield first, last, context
        first = last


def _seen(seen: View, where: Range) -> Range:
    """The range of a view that stands for a range of its original."""
    offsets = seen.offsets
    return bisect_left(offsets, where[0]), bisect_left(offsets, where[1])


def _placed(seen: View, where: Range, shift: int) -> Range:
    """Where a range of a view of `text[shift:]` lies in that text; (0, 0) for an empty one."""
    if where[0] == where[1]:
        return 0, 0
    start, end = seen.original(*where)
    return shift + start, shift + end


def _fitting(
    number: int, judged: tuple[int, ...], window: Window, placed: tuple[Range, ...], most: int
) -> Iterator[_Piece]:
    """The piece, in parts that each have the prefix where the model takes fewer tokens."""
    prefix = next((n for n, where in enumerate(placed) if where[0] < where[1]), 0)
    step = max(1, most - prefix)
    for start in range(prefix, max(prefix + 1, len(window.ids)), step):
        ids, owner, ranges = (
            (*row[:prefix], *row[start : start + step])
            for row in (window.ids, window.owner, placed)
        )
        yield _Piece(number, judged, Window(ids, owner, window.segments), ranges)


def _spans(
    text: str, segment: Segment, ranges: Sequence[Range], logits: Floats, threshold: float
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Runs of tokens that are likely unsafe, grown to whole words within their segment.

    Those that are far less likely than the surest one come apart, if they reach the threshold.
    `ranges` and `logits` are those of the segment's tokens.
    """
    chances = _sigmoid(logits.astype(np.float64))  # [tokens, categories]
    peak = chances.max(-1)
    # Where nothing reaches the threshold, the likeliest phrase is named all the same.
    cut = min(threshold, float(peak.max()) * 0.6)
    marked = [n for n, chance in enumerate(peak) if chance >= cut]
    found: list[Span] = []
    for _, group in groupby(enumerate(marked), key=lambda pair: pair[1] - pair[0]):
        run = [n for _, n in group]
        start, end = _whole_words(text, segment, ranges[run[0]][0], ranges[run[-1]][1])
        mean = chances[run].mean(0)
        category = CATEGORIES[int(mean.argmax())]
        score = round(float(peak[run].max()), DIGITS)
        if found and not any(c.isalnum() for c in text[found[-1].end : start]):
            last = found.pop()
            category = category if score > last.score else last.category
            start, end, score = last.start, max(end, last.end), max(score, last.score)
        if start < end:
            found.append(Span(start, end, category, score))
    least = SURE * max((span.score for span in found), default=0.0)
    sure = tuple(span for span in found if span.score >= least)
    return sure, tuple(span for span in found if threshold <= span.score < least)


def _whole_words(text: str, segment: Segment, start: int, end: int) -> Range:
    start, end = max(start, segment.start), min(end, segment.end)
    while start > segment.start and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while segment.start < end < segment.end and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def _sigmoid(x: Doubles) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))


def _softmax(x: Doubles) -> Doubles:
    powers = np.exp(x - x.max())
    return np.asarray(powers / powers.sum())
