"""What all prompts begin with is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from srllm_guard.engines.base import Ids
from srllm_guard.engines.llama import Cache, Llama


class Opening:
    """Runs single rows from their beginning; that of `ids` is computed by the first of them only.

    Args:
        model: runs.
        ids: what rows begin with as a rule, P of them; they are kept as keys and values. A row that
            begins otherwise is run whole.
    """

    def __init__(self, model: Llama, ids: Ids) -> None:
        self._model = model
        self._ids = ids
        self._kept: dict[int, tuple[Cache, Tensor]] = {}
        """Number of layers -> keys and values of `ids`, and their states `[1, P, H]`."""

    def run(self, ids: Ids, cache: Cache, layers: int) -> Tensor:
        """Run one row through the first `layers` layers.

        Args:
            ids: T of them, from the beginning of the text.
            cache: written, `[layers, 2, 1, S, M, D]`.
            layers: where to exit.

        Returns:
            Hidden states before the final norm, `[1, T, H]`.
        """
        known = len(self._ids)
        if not known or len(ids) <= known or ids[:known] != self._ids:
            return self.go_on(ids, 0, cache, layers)
        if layers not in self._kept:
            kept = self._model.new_cache(1, known, layers)
            self._kept[layers] = kept, self.go_on(self._ids, 0, kept, layers)
        kept, states = self._kept[layers]
        cache[:, :, :, :known] = kept
        return torch.cat((states, self.go_on(ids[known:], known, cache, layers)), 1)

    def go_on(self, ids: Ids, start: int, cache: Cache, layers: int) -> Tensor:
        """Run the ids of one row from place `start` on; the cache holds what stands before."""
        end = start + len(ids)
        given = torch.tensor([ids], device=self._model.device)
        positions = torch.arange(start, end, device=self._model.device).unsqueeze(0)
        return self._model.forward(given, positions, cache, end, layers)
