"""Rows of ids as tensors, and lists in parts: what engines on torch share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """`[B, T]`, int64, padded at the right with `filler`."""
    found = torch.full((len(rows), max(map(len, rows))), filler, dtype=torch.long)
    for n, row in enumerate(rows):
        found[n, : len(row)] = torch.tensor(row)
    return found


def parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive parts of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]
