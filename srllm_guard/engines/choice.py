"""How the next token is chosen: barred sequences, and sampling with a seed of its own a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from srllm_guard.engines.base import Request
from srllm_guard.engines.pick import SHARE, next_barred


class Choice(LogitsProcessor):
    """Bars sequences, and turns greedy decoding of a row into sampling with a seed of its own.

    The largest of logits / temperature + Gumbel noise is a draw from the tempered distribution
    (Gumbel, 1954), so rows that sample and rows that do not share one batch, and what a row draws
    does not depend on its neighbours.
    """

    def __init__(self, requests: Sequence[Request], start: int) -> None:
        self._requests = requests
        self._start = start
        self._draws = [torch.Generator().manual_seed(r.seed) for r in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` [B, T] with the prompts, `scores` [B, V]."""
        scores = scores.float().clone()
        for n, request in enumerate(self._requests):
            if request.barred:
                tail = tuple(input_ids[n, self._start :].tolist())
                scores[n, next_barred(request.barred, tail)] = -torch.inf
            if request.temperature > 0:
                chances = torch.rand(scores.shape[1], generator=self._draws[n])
                noise = -torch.log(-torch.log(chances.clamp(1e-9, 1 - 1e-7)))
                tempered = _nucleus(scores[n] / request.temperature)
                scores[n] = tempered + noise.to(scores.device)
        return scores


def _nucleus(logits: Tensor) -> Tensor:
    """Keep the likeliest ids that together have `SHARE`; `logits` [V]."""
    ordered, index = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.index_fill(0, index[before > SHARE], -torch.inf)
