"""Passes of the decode loop without graphs: no wider and no longer than they have to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from srllm_guard.engines.base import Ids
from srllm_guard.engines.llama import Cache, Llama
from srllm_guard.engines.loop import Feed
from srllm_guard.engines.opening import Opening


class Steps:
    """A pass of `Llama` for `loop.decode`, over a cache of its own.

    Args:
        model: runs.
        opening: runs the beginning of a row.
        slots: of the cache: at least the largest place that is fed, and one more.
    """

    def __init__(self, model: Llama, opening: Opening, slots: int) -> None:
        self._model = model
        self._opening = opening
        self._slots = slots
        self._cache: Cache = model.new_cache(0, slots)
        self._rows: list[int] = []
        """Number of the row that each row of the cache belongs to."""

    def __call__(self, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        """See `loop.Step`. A row begins with its feed at 0; one that is fed no more is dropped."""
        rows = [feed.row for feed in feeds]
        if all(feed.at == 0 for feed in feeds):
            return self._begin(feeds, rows)
        device = self._model.device
        if rows != self._rows:
            kept = torch.tensor([self._rows.index(row) for row in rows], device=device)
            self._cache, self._rows = self._cache[:, :, kept], rows
        longest = max(len(feed.ids) for feed in feeds)
        ids = torch.zeros(len(feeds), longest, dtype=torch.long)
        starts = torch.tensor([[feed.at] for feed in feeds])
        positions = (starts + torch.arange(longest)).clamp(max=self._slots - 1)
        for n, feed in enumerate(feeds):
            ids[n, : len(feed.ids)] = torch.tensor(feed.ids)
        reach = max(feed.at + len(feed.ids) for feed in feeds)
        hidden = self._model.forward(ids.to(device), positions.to(device), self._cache, reach)
        return _read(self._model, hidden, feeds)

    def _begin(self, feeds: Sequence[Feed], rows: list[int]) -> list[NDArray[Any]]:
        """The first feed of all rows: what is the same for several is run once."""
        self._cache = self._model.new_cache(len(feeds), self._slots)
        self._rows = rows
        found: dict[Ids, tuple[int, Tensor]] = {}
        for n, feed in enumerate(feeds):
            if feed.ids not in found:
                found[feed.ids] = n, self._first(feed, self._cache[:, :, n : n + 1])
            first, _ = found[feed.ids]
            if first != n:
                self._cache[:, :, n] = self._cache[:, :, first]
        return [_chosen(found[feed.ids][1], feed) for feed in feeds]

    def _first(self, feed: Feed, cache: Cache) -> Tensor:
        """Logits `[want, V]` behind the prompt of one row and behind each of its guesses."""
        end = len(feed.ids) - feed.want + 1
        states = self._opening.prompt(feed.ids[:end], cache)  # [1, 1, H]
        if feed.want > 1:
            layers = self._model.shape.layers
            more = self._opening.go_on(feed.ids[end:], end, cache, layers)
            states = torch.cat((states, more), 1)
        return self._model.logits(states[0])


def _read(model: Llama, hidden: Tensor, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
    """What follows the wanted tokens; `hidden` [B, T, H]. The head runs for these only."""
    wanted = [hidden[n, len(feed.ids) - feed.want : len(feed.ids)] for n, feed in enumerate(feeds)]
    logits = model.logits(torch.cat(wanted))  # [sum of want, V]
    parts = logits.split([feed.want for feed in feeds])
    return [_chosen(part, feed) for part, feed in zip(parts, feeds, strict=True)]


def _chosen(logits: Tensor, feed: Feed) -> NDArray[Any]:
    """What a feed asks for: the likeliest ids `[want]`, or the logits."""
    return (logits.argmax(-1) if feed.greedy else logits).cpu().numpy()
