"""How well logits tell unsafe from safe: the dev figures of training and calibration.

One figure a segment whose truth is known; a text that is labelled as a whole counts once, by its
worst segment (`train.detection`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from srllm_guard.labels import UNSAFE
from srllm_guard.prompt import Prompt
from train import detection
from train.batching import by_length
from train.epochs import drawn
from train.example import Example
from train.sources import Options, load

PUBLIC = (
    "paradetox",
    "toxic_spans",
    "edos",
    "implicit_hate",
    "diasafety",
    "hatemoji_build",
    "anno_lexical",
)

Judge = Callable[[detection.Batch], tuple[Tensor, Tensor]]
"""Label logits `[B, S, N_LOGITS]` and span logits `[B, T, categories]` of a batch."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of the segments, and the bags of segments, whose truth is known."""

    logits: np.ndarray
    """Logit of "unsafe", one a segment; of a bag that of its worst."""
    unsafe: np.ndarray
    """The truth, 0 or 1."""
    span_logits: np.ndarray
    """Largest span logit of each token whose truth is known."""
    span_truth: np.ndarray
    """Whether the token belongs to an unsafe span."""

    def figures(self) -> dict[str, Any]:
        """Average precision and AUROC (None where only one class is there), and counts."""
        both = 0 < self.unsafe.sum() < len(self.unsafe)
        return {
            "segments": len(self.unsafe),
            "unsafe": int(self.unsafe.sum()),
            "average_precision": _rounded(average_precision_score, self, both),
            "auroc": _rounded(roc_auc_score, self, both),
            "span_f1": span_f1(self.span_logits, self.span_truth),
        }


def _rounded(metric: Callable[..., float], judged: Judged, both: bool) -> float | None:
    return round(float(metric(judged.unsafe, judged.logits)), 4) if both else None


def span_f1(logits: np.ndarray, truth: np.ndarray) -> float | None:
    """F1 of tokens at the threshold that is best for it; None without unsafe tokens."""
    if not truth.any():
        return None
    order = np.argsort(-logits)
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    return round(float(f1.max()), 4)


def judged(batches: Sequence[Sequence[detection.Item]], judge: Judge) -> Judged:
    """Run `judge` over batches and keep what is known."""
    logits, unsafe, spans, truth = [], [], [], []
    with torch.no_grad():
        for items in batches:
            batch = detection.collate(items)
            labels, tokens = judge(batch)
            risk = labels[..., UNSAFE].float()
            alone = detection.alone(batch)
            known = alone != detection.UNKNOWN
            logits.append(risk[known].numpy())
            unsafe.append(alone[known].numpy())
            for there, inside, label in detection.bags(batch):
                logits.append(risk[there].masked_fill(~inside, -torch.inf).amax(1).numpy())
                unsafe.append(label.long().numpy())
            marked = (batch.spans != detection.UNKNOWN).any(-1)
            spans.append(tokens.amax(-1)[marked].float().numpy())
            truth.append((batch.spans == 1).any(-1)[marked].numpy())
    return Judged(
        *(np.concatenate(part) if part else np.zeros(0) for part in (logits, unsafe, spans, truth))
    )


def dev_sets(
    data: Path, authored: Path, prompt: Prompt, *, most: int = 1500
) -> Iterator[tuple[str, list[list[detection.Item]]]]:
    """Batches of every dev set that has labels, one example a window; at most `most` examples."""
    yield "authored", batches(load(authored, "cmd", "dev"), prompt, most)
    for source in PUBLIC:
        if (data / "train" / f"{source}.jsonl").is_file():
            # Without what `edos` calls not sexist that set has one class, and no figures.
            examples = load(data, source, "dev", Options(edos_negatives=True))
            yield source, batches(examples, prompt, most)


def batches(examples: list[Example], prompt: Prompt, most: int = 0) -> list[list[detection.Item]]:
    """Batches of at most `most` examples, one a window; 0 takes all."""
    items = detection.items(drawn(examples, most, 0), prompt, seed=0, most=1)
    return by_length(items, len, tokens=2048, seed=0)
