"""The figures: each from plain values, so that any system can be measured by them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from srllm_guard.text.protect import missing, protected

Array = NDArray[Any]
Interval = tuple[float, float]
Range = tuple[int, int]

_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|cannot|without|\w+n['’]t|[dw]ont|cant|aint)\b",
    re.IGNORECASE,
)

_NAME = re.compile(r"\b[A-Z][a-z]+\b")
_START = re.compile(r"(?:^|[.!?:;…\n\"“(*•>-])\s*([A-Z][a-z]+)\b")
_CAPITALS = frozenset(
    {"I", "God", "Please", "The", "A", "An", "It", "We", "You", "They", "He", "She"}
)

ROUNDS = 500
"""Resamples of a bootstrap."""


def average_precision(unsafe: Array, scores: Array) -> float | None:
    """Average precision of scores `[N]` for the truth `[N]`; None where one class is absent."""
    return float(average_precision_score(unsafe, scores)) if _both(unsafe) else None


def auroc(unsafe: Array, scores: Array) -> float | None:
    """Area under the ROC curve; None where one class is absent."""
    return float(roc_auc_score(unsafe, scores)) if _both(unsafe) else None


def f1(unsafe: Array, flagged: Array) -> float | None:
    """F1 of the flagged texts; None where nothing is unsafe or nothing is safe."""
    if not _both(unsafe):
        return None
    hits = float((unsafe.astype(bool) & flagged.astype(bool)).sum())
    return 2 * hits / float(unsafe.sum() + flagged.sum())


def precision_recall(
    unsafe: Array, scores: Array, points: int = 60
) -> dict[str, list[float]] | None:
    """Precision against recall, at most `points` of each, recall falling; None as for AP."""
    if not _both(unsafe):
        return None
    precision, recall, _ = precision_recall_curve(unsafe, scores)
    rows = np.unique(np.linspace(0, len(recall) - 1, min(points, len(recall))).astype(int))
    return {
        "recall": [round(float(recall[n]), 4) for n in rows],
        "precision": [round(float(precision[n]), 4) for n in rows],
    }


def macro_f1(truth: Array, chosen: Array) -> float | None:
    """Mean of the F1 of each class that occurs in the truth `[N]`; None of nothing."""
    return (
        float(f1_score(truth, chosen, average="macro", labels=np.unique(truth)))
        if len(truth)
        else None
    )


def share(values: Array | Sequence[bool] | Sequence[float]) -> float | None:
    """Mean of values, such as flags; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def span_f1(predicted: Iterable[Range], gold: Iterable[Range]) -> float:
    """F1 of the characters in two sets of ranges of one text.

    As in SemEval-2021 task 5 (Pavlopoulos et al., 2021): 1 if both are empty, 0 if one is. The
    figure of a set is the mean over its texts.
    """
    found, truth = _characters(predicted), _characters(gold)
    if not found or not truth:
        return float(not found and not truth)
    return 2 * len(found & truth) / (len(found) + len(truth))


def chrf(output: str, references: Sequence[str]) -> float:
    """Character F-score (chrF; Popovic, 2015) of one text for the closest reference, 0..1.

    Settings are sacrebleu's defaults.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    return float(_chrf().sentence_score(output, list(references)).score) / 100


def chrf_signature() -> str:
    """The settings of `chrf`, as sacrebleu reports them."""
    scorer = _chrf()
    scorer.sentence_score("a", ["a"])  # the signature counts references
    return str(scorer.get_signature())


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """Corpus BLEU (Papineni et al., 2002), 0..1, by sacrebleu's defaults; None of nothing."""
    if not outputs:
        return None
    width = max(len(each) for each in references)
    # sacrebleu wants as many references for all; it skips None.
    columns = [[each[n] if n < len(each) else None for each in references] for n in range(width)]
    score = import_module("sacrebleu.metrics").BLEU().corpus_score(list(outputs), columns)
    return float(score.score) / 100


def flips_negation(source: str, output: str, references: Sequence[str]) -> bool:
    """Whether a negation came or went that neither the source nor a reference has.

    Only whether the number of negations is odd counts: two of them say the same as none.
    """
    known = {_negations(text) % 2 for text in (source, *references)}
    return _negations(output) % 2 not in known


def words_changed(source: str, output: str, edits: Sequence[tuple[Range, Range]]) -> float:
    """Share of the words outside of the edits that came, went or are not the same.

    `edits` are pairs of ranges, in the source and in the output.
    """
    left = without_ranges(source, [edit[0] for edit in edits]).split()
    right = without_ranges(output, [edit[1] for edit in edits]).split()
    same = sum(
        size
        for *_, size in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    )
    most = max(len(left), len(right))
    return 1 - same / most if most else 0.0


def reliability(unsafe: Array, chances: Array, bins: int = 15) -> list[list[float]]:
    """Non-empty bins of equal width of chances `[N]`: mean chance, share unsafe, count."""
    rows = np.minimum((np.asarray(chances) * bins).astype(int), bins - 1)
    return [
        [
            round(float(chances[rows == n].mean()), 6),
            round(float(unsafe[rows == n].mean()), 6),
            int((rows == n).sum()),
        ]
        for n in range(bins)
        if (rows == n).any()
    ]


def calibration_error(unsafe: Array, chances: Array) -> float | None:
    """Expected calibration error (Guo et al., 2017) of chances `[N]`; None of nothing."""
    rows = reliability(unsafe, chances)
    return sum(abs(c - u) * n for c, u, n in rows) / len(unsafe) if rows else None


def kept_facts(source: str, output: str) -> tuple[int, int]:
    """How many numbers, dates, addresses and the like `output` kept, and how many `source` has."""
    total = len(protected(source))
    return total - len(missing(source, output)), total


def words(text: str) -> list[str]:
    """The words of a text, as they are written."""
    return re.findall(r"\w+", text)


def names(text: str) -> set[str]:
    """Words with a capital that begin no sentence, without possessive; a rough idea of names."""
    found = (m.group() for m in _NAME.finditer(text))
    starts = {m.group(1) for m in _START.finditer(text)}
    return {word for word in found if word not in starts and word not in _CAPITALS}


def phrases_gone(output: str, phrases: Iterable[str]) -> bool:
    """Whether none of the phrases stands in `output` as whole words; case does not count."""
    return not any(
        re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", output, re.IGNORECASE) for phrase in phrases
    )


def without_ranges(text: str, ranges: Iterable[Range]) -> str:
    """Delete ranges from a text; white space that stood around them becomes one blank."""
    gone = _characters(ranges)
    return closed_up("".join("\0" if n in gone else letter for n, letter in enumerate(text)))


def closed_up(kept: str) -> str:
    """A text without its NULs, which stand for what was deleted, and the white space around."""
    return re.sub(r"[^\S\n]*\0+(?:\s*\0+)*[^\S\n]*", " ", kept).strip()


def bootstrap_interval(
    statistic: Callable[..., float | None],
    *columns: Array | Sequence[float] | Sequence[bool],
    groups: Array | Sequence[int] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Interval | None:
    """95% interval of `statistic(*columns)`, rows drawn with replacement (Efron, 1979).

    Args:
        statistic: takes arrays `[N]`, one a column; None where it has no value.
        columns: `[N]` each.
        groups: `[N]`, the text that each row is of; texts are drawn, with all of their rows, since
            those of one text are no independent sample. None: each row is a text.
        rounds: resamples.
        seed: of the draws.

    Returns:
        The percentiles 2.5 and 97.5; None without rows, or where the statistic has no value.
    """
    arrays = [np.asarray(column) for column in columns]
    if not len(arrays[0]) or statistic(*arrays) is None:
        return None
    named = np.arange(len(arrays[0])) if groups is None else np.asarray(groups)
    order = np.argsort(named, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(named[order])) + 1)
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        drawn = draw.integers(len(members), size=len(members))
        rows = np.concatenate([members[one] for one in drawn])
        if (value := statistic(*(array[rows] for array in arrays))) is not None:
            values.append(value)
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def wilson_interval(hits: int, count: int) -> Interval | None:
    """95% score interval of a share (Wilson, 1927); None of nothing.

    Resampling says nothing of a share of 0 or 1; this does.
    """
    if not count:
        return None
    z, part = 1.959964, hits / count
    middle = part + z * z / (2 * count)
    reach = z * math.sqrt(part * (1 - part) / count + z * z / (4 * count * count))
    low, high = ((middle + sign * reach) / (1 + z * z / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _negations(text: str) -> int:
    return len(_NEGATION.findall(text))


def _both(unsafe: Array) -> bool:
    return bool(0 < unsafe.sum() < len(unsafe))


def _characters(ranges: Iterable[Range]) -> set[int]:
    return {n for start, end in ranges for n in range(start, end)}


@cache
def _chrf() -> Any:
    return import_module("sacrebleu.metrics").CHRF()
