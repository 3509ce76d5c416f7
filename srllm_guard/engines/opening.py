"""What was computed for the beginning of a text is kept: the constant opening, and prompts."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from srllm_guard.engines.base import Ids
from srllm_guard.engines.llama import Cache, Llama

KEPT = 1024
"""Most tokens of prompts that are kept: a ladder asks the same prompt again on every rung."""


class Opening:
    """Runs single rows from their beginning.

    A result is the same bits whether something was kept or not: the opening and a prompt are always
    run in passes of their own.

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
        self._prompts: OrderedDict[Ids, tuple[Cache, Tensor]] = OrderedDict()
        """Prompt -> its keys and values, and the state of its last token `[1, 1, H]`."""

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

    def prompt(self, ids: Ids, cache: Cache) -> Tensor:
        """Run a prompt through all layers, or take what was kept of it.

        Args:
            ids: the whole prompt.
            cache: written, `[layers, 2, 1, S, M, D]`.

        Returns:
            The state of its last token before the final norm, `[1, 1, H]`.
        """
        if ids in self._prompts:
            self._prompts.move_to_end(ids)
            kept, last = self._prompts[ids]
            cache[:, :, :, : len(ids)] = kept
            return last
        last = self.run(ids, cache, self._model.shape.layers)[:, -1:].clone()
        if len(ids) > KEPT:
            return last
        self._prompts[ids] = cache[:, :, :, : len(ids)].clone(), last
        while sum(map(len, self._prompts)) > KEPT:
            self._prompts.popitem(last=False)
        return last

    def forget(self) -> None:
        """Drop the prompts that were kept."""
        self._prompts.clear()

    def go_on(self, ids: Ids, start: int, cache: Cache, layers: int) -> Tensor:
        """Run the ids of one row from place `start` on; the cache holds what stands before."""
        end = start + len(ids)
        given = torch.tensor([ids], device=self._model.device)
        positions = torch.arange(start, end, device=self._model.device).unsqueeze(0)
        return self._model.forward(given, positions, cache, end, layers)
