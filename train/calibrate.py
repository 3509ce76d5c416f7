"""From logits to probabilities and thresholds, fitted on dev data.

- The probability of "unsafe" is Platt's: a logistic regression of the truth on the logit, over the
  dev splits of all sources but those whose negatives may be hateful otherwise; a text that is
  labelled as a whole counts once, by its worst segment.
- Each label's logits get one temperature (Guo et al., 2017), over the authored dev records, which
  alone know all labels.
- The threshold is the lowest that flags at most `ORDINARY` of ordinary texts: a guard that stops
  ordinary prose is switched off, and up to that point finding more is better. Without ordinary
  texts it is the one with the best F1 on the authored dev segments.
- A rewrite is released below the threshold that has the best F1 on the authored dev segments.
- The span threshold has the best token F1 on the authored dev records.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from srllm_guard.detector import WINDOW
from srllm_guard.errors import ConfigError
from srllm_guard.labels import LABELS, SLICES, UNSAFE
from srllm_guard.models.bundle import Calibration
from srllm_guard.prompt import Prompt
from srllm_guard.text.segments import segments
from train import detection, evaluation
from train.batching import by_length
from train.epochs import Corpus
from train.example import Example, labelled
from train.model import Model

Floats = np.ndarray[Any, Any]

ORDINARY = 0.015
"""Largest share of ordinary texts that the threshold may flag."""

NOISY = ("edos",)
"""Sources whose safe dev examples are safe in one respect only."""

GRID = [round(0.05 + 0.01 * step, 2) for step in range(91)]
"""Thresholds that are tried."""

MOST = 800
"""Examples of each source that the fit reads, drawn from all of its dev split."""


def calibrate(
    model: Model, prompt: Prompt, corpus: Corpus, likelihood: float | None = None
) -> tuple[Calibration, dict[str, Any]]:
    """Fit the calibration on the dev splits; also returns their figures, by source.

    `likelihood` is taken over: it is chosen by reading.

    Raises:
        ConfigError: there is no dev example at all.
    """
    if not any(corpus.dev.values()):
        raise ConfigError(
            "There are no dev examples to calibrate with.",
            hint='Give some records the split "dev".',
        )
    model.eval()
    device = next(model.heads.parameters()).device

    def judge(batch: detection.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        moved = replace(batch, ids=batch.ids.to(device), owner=batch.owner.to(device))
        labels, spans = model.judge(moved)
        return labels.cpu(), spans.cpu()

    found = {
        name: evaluation.judged(evaluation.batches(examples, prompt, MOST), judge)
        for name, examples in corpus.dev.items()
        if examples
    }
    scale, shift = _platt({n: j for n, j in found.items() if n not in NOISY} or found)
    own = found.get("cmd") or next(iter(found.values()))
    highest = _highest(corpus.ordinary, prompt, judge)
    threshold = _threshold(own, highest, scale, shift)
    mine = _sigmoid(scale * own.logits + shift)
    calibration = Calibration(
        scale=scale,
        shift=shift,
        temperatures=_temperatures(
            evaluation.batches(corpus.dev.get("cmd", []), prompt, MOST), judge
        ),
        threshold=threshold,
        release=min(threshold, _best_f1(mine, own.unsafe == 1, GRID)),
        span_threshold=_span_threshold(own),
        likelihood=likelihood,
    )
    return calibration, {name: judged.figures() for name, judged in found.items()}


def _platt(found: dict[str, evaluation.Judged]) -> tuple[float, float]:
    logits = np.concatenate([judged.logits for judged in found.values()])
    truth = np.concatenate([judged.unsafe for judged in found.values()])
    if len(set(truth.tolist())) < 2:
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    # A fit that turns the order round says that the heads learned nothing; leave them as they are.
    scale = float(fitted.coef_[0, 0])
    return (round(scale, 4), round(float(fitted.intercept_[0]), 4)) if scale > 0 else (1.0, 0.0)


def _highest(texts: Sequence[str], prompt: Prompt, judge: evaluation.Judge) -> Floats:
    """The largest logit of "unsafe" among the segments of each text, `[N]`."""
    draw = random.Random(0)
    windows: list[tuple[int, detection.Item]] = []
    for number, text in enumerate(texts):
        safe = labelled(unsafe="no")
        chunks = [Example(chunk, labels=safe, spans=()) for chunk in _chunks(text)]
        windows += [(number, detection.item([chunk], prompt, draw)) for chunk in chunks]
    found: Floats = np.full(len(texts), -np.inf)
    with torch.no_grad():
        for group in by_length(windows, lambda each: len(each[1]), 2048, 0):
            batch = detection.collate([item for _, item in group])
            logits = judge(batch)[0][..., UNSAFE].float()
            logits = logits.masked_fill(batch.unsafe == detection.UNKNOWN, -torch.inf)
            for (number, _), value in zip(group, logits.amax(1).tolist(), strict=True):
                found[number] = max(found[number], value)
    judged: Floats = found[np.isfinite(found)]
    return judged


def _chunks(text: str) -> Iterator[str]:
    """Runs of whole segments that fit into a window."""
    start = end = 0
    for segment in segments(text):
        if segment.end - start > WINDOW and end > start:
            yield text[start:end]
            start = segment.start
        end = segment.end
    if end > start:
        yield text[start:end]


def _threshold(own: evaluation.Judged, ordinary: Floats, scale: float, shift: float) -> float:
    """See the module; where every threshold flags too much, the highest."""
    mine = _sigmoid(scale * own.logits + shift)
    others = _sigmoid(scale * ordinary + shift)
    if not len(others):
        return _best_f1(mine, own.unsafe == 1, GRID)
    return next((c for c in GRID if (others >= c).mean() <= ORDINARY), GRID[-1])


def _span_threshold(own: evaluation.Judged) -> float:
    return _best_f1(_sigmoid(own.span_logits), own.span_truth.astype(bool), GRID)


def _best_f1(chances: Floats, truth: Floats, candidates: Sequence[float]) -> float:
    """The candidate with the best F1; without a hit that which is nearest to one half."""
    best, chosen = 0.0, min(candidates, key=lambda candidate: abs(candidate - 0.5))
    for candidate in candidates:
        flagged = chances >= candidate
        hits = float((flagged & truth).sum())
        f1 = 2 * hits / max(1.0, float(flagged.sum() + truth.sum()))
        if f1 > best:
            best, chosen = f1, candidate
    return chosen


def _temperatures(batches: list[list[detection.Item]], judge: evaluation.Judge) -> dict[str, float]:
    """The temperature of each label that minimises the likelihood loss on exact labels."""
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in LABELS}
    with torch.no_grad():
        for items in batches:
            batch = detection.collate(items)
            logits = judge(batch)[0].float().numpy()
            for name in LABELS:
                allowed = batch.allowed.numpy()[..., SLICES[name]]
                exact = allowed.sum(-1) == 1
                rows[name].append((logits[..., SLICES[name]][exact], allowed[exact].argmax(-1)))
    found = {}
    for name, parts in rows.items():
        if not parts or not sum(len(truth) for _, truth in parts):
            continue
        values = np.concatenate([part[0] for part in parts])
        truth = np.concatenate([part[1] for part in parts])
        grid = np.geomspace(0.3, 5, 60)
        losses = [_cross_entropy(values / t, truth) for t in grid]
        found[name] = round(float(grid[int(np.argmin(losses))]), 3)
    return found


def _cross_entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(-1))
    return float((log_sum - shifted[np.arange(len(truth)), truth]).mean())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    chances: Floats = 1 / (1 + np.exp(-np.clip(x, -60, 60)))
    return chances
