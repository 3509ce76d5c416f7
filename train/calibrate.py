"""From logits to probabilities and thresholds, fitted on dev data.

- The probability of "unsafe" is Platt's: a logistic regression of the truth on the logit, over the
  dev splits of all sources.
- Each label's logits get one temperature (Guo et al., 2017), over the authored dev records, which
  alone know all labels.
- The threshold is the one with the best F1 on the authored dev segments, among those that flag at
  most `ORDINARY` of ordinary news sentences: a guard that stops ordinary prose is switched off.
- The span threshold has the best token F1 on the authored dev records.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from srllm_guard.labels import LABELS, SLICES
from srllm_guard.models.bundle import Calibration
from srllm_guard.prompt import Prompt
from train import detection, evaluation
from train.batching import by_length
from train.example import Example
from train.finetune import Corpus
from train.model import Model

ORDINARY = 0.01
"""Largest share of ordinary sentences that the threshold may flag."""

MOST = 400
"""Examples of each source that the fit reads."""


def calibrate(model: Model, prompt: Prompt, corpus: Corpus) -> tuple[Calibration, dict[str, Any]]:
    """Fit the calibration on the dev splits; also returns their figures, by source."""
    model.eval()
    device = next(model.heads.parameters()).device

    def judge(batch: detection.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        moved = detection.Batch(
            batch.ids.to(device), batch.owner.to(device), batch.unsafe, batch.allowed, batch.spans
        )
        labels, spans = model.judge(moved)
        return labels.cpu(), spans.cpu()

    found = {
        name: evaluation.judged(_batches(examples, prompt), judge)
        for name, examples in corpus.dev.items()
        if examples
    }
    scale, shift = _platt(found)
    own = found.get("cmd") or next(iter(found.values()))
    ordinary = found.get("anno_lexical", own)
    calibration = Calibration(
        scale=scale,
        shift=shift,
        temperatures=_temperatures(_batches(corpus.dev.get("cmd", []), prompt), judge),
        threshold=_threshold(own, ordinary, scale, shift),
        span_threshold=_span_threshold(own),
    )
    return calibration, {name: judged.figures() for name, judged in found.items()}


def _batches(examples: list[Example], prompt: Prompt) -> list[list[detection.Item]]:
    return by_length(detection.items(examples[:MOST], prompt, 0, most=1), len, 2048, 0)


def _platt(found: dict[str, evaluation.Judged]) -> tuple[float, float]:
    logits = np.concatenate([judged.logits for judged in found.values()])
    truth = np.concatenate([judged.unsafe for judged in found.values()])
    if len(set(truth.tolist())) < 2:
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    # A fit that turns the order round says that the heads learned nothing; leave them as they are.
    scale = float(fitted.coef_[0, 0])
    return (round(scale, 4), round(float(fitted.intercept_[0]), 4)) if scale > 0 else (1.0, 0.0)


def _threshold(
    own: evaluation.Judged, ordinary: evaluation.Judged, scale: float, shift: float
) -> float:
    mine = _sigmoid(scale * own.logits + shift)
    others = _sigmoid(scale * ordinary.logits[ordinary.unsafe == 0] + shift)
    best, chosen = -1.0, 0.5
    for candidate in np.linspace(0.05, 0.95, 91):
        if len(others) and (others >= candidate).mean() > ORDINARY:
            continue
        flagged = mine >= candidate
        hits = float((flagged & (own.unsafe == 1)).sum())
        f1 = 2 * hits / max(1.0, float(flagged.sum() + own.unsafe.sum()))
        if f1 > best:
            best, chosen = f1, float(candidate)
    return round(chosen, 2)


def _span_threshold(own: evaluation.Judged) -> float:
    chances = _sigmoid(own.span_logits)
    best, chosen = -1.0, 0.5
    for candidate in np.linspace(0.05, 0.95, 91):
        marked = chances >= candidate
        f1 = 2 * float((marked & own.span_truth).sum()) / max(1, marked.sum() + own.span_truth.sum())
        if f1 > best:
            best, chosen = f1, float(candidate)
    return round(chosen, 2)


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
    return 1 / (1 + np.exp(-x))
