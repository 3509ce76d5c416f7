"""Group items of like length, so that little of a padded batch is padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def by_length(
    items: Iterable[T], length: Callable[[T], int], tokens: int, seed: int
) -> list[list[T]]:
    """Batches of at most `tokens` padded tokens each, in an order drawn with `seed`.

    An item that is longer than `tokens` is a batch of its own.
    """
    found: list[list[T]] = []
    group: list[T] = []
    for item in sorted(items, key=length):
        if group and (len(group) + 1) * length(item) > tokens:
            found.append(group)
            group = []
        group.append(item)
    if group:
        found.append(group)
    random.Random(seed).shuffle(found)
    return found
