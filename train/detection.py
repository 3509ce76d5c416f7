"""Windows with targets for the detection heads, and their loss.

Labels come as sets of possible values (`train.example`): the loss asks for the probability of the
whole set, so a label with one possible value is ordinary cross-entropy and an absent one costs
nothing.

Where a text of several sentences is labelled as a whole, nobody says which of them it is. Its
sentences are a bag, as in multiple-instance learning: safe if all of them are, unsafe if any is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srllm_guard.detector import WINDOW
from srllm_guard.engines.base import Window
from srllm_guard.labels import CATEGORIES, LABELS, N_LOGITS, RISKS, SLICES, UNSAFE
from srllm_guard.prompt import Prompt, Range
from srllm_guard.text.segments import segments
from train.example import Example

UNKNOWN = -1
ALONE = -1
"""Of a segment that has a label of its own."""


@dataclass(frozen=True, slots=True)
class Item:
    """One window and what the heads should say of it."""

    window: Window
    unsafe: np.ndarray
    """`[S]`: 1, 0 or `UNKNOWN`; in a bag that of the bag."""
    bag: np.ndarray
    """`[S]`: the number of the bag in this window, or `ALONE`."""
    allowed: np.ndarray
    """`[S, N_LOGITS]` of bool: the possible values of each label; all of them where unknown."""
    spans: np.ndarray
    """`[T, len(CATEGORIES)]`: 1, 0 or `UNKNOWN`."""

    def __len__(self) -> int:
        return len(self.window.ids)


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment of a text under construction."""

    start: int
    end: int
    origin: int
    """Where its example begins in the window's text."""
    example: Example
    judged: bool
    """Whether the labels of the example hold for this segment."""
    clean: bool
    """Whether the segment is known to be the safe part of an unsafe example."""
    bag: bool
    """Whether only the example as a whole is known to be safe or unsafe."""


def items(examples: Sequence[Example], prompt: Prompt, seed: int, *, most: int = 3) -> list[Item]:
    """Windows of one to `most` examples each, in an order and grouping drawn with `seed`.

    Strangers share a window so that a safe segment learns to stay safe beside an unsafe one.
    """
    draw = random.Random(seed)
    order = list(examples)
    draw.shuffle(order)
    found: list[Item] = []
    group: list[Example] = []
    size = 0
    room = draw.randint(1, most)
    for example in order:
        length = min(len(example.text), WINDOW)
        if group and (len(group) >= room or size + length > WINDOW):
            found.append(item(group, prompt, draw))
            group, size, room = [], 0, draw.randint(1, most)
        group.append(example)
        size += length
    if group:
        found.append(item(group, prompt, draw))
    return found


def item(examples: Sequence[Example], prompt: Prompt, draw: random.Random) -> Item:
    """One window that holds all of `examples`, one after the other."""
    text, parts = "", []
    for example in examples:
        if text:
            text += draw.choice((" ", "\n", "\n\n"))
        if example.context:
            context = example.context[-300:]
            end = len(text) + len(context)
            parts.append(
                _Part(len(text), end, len(text), example, judged=False, clean=False, bag=False)
            )
            text += context + "\n"
        parts += _parts(example, len(text))
        text += example.text[:WINDOW]
    return _labelled(text, parts, prompt)


def _parts(example: Example, origin: int) -> list[_Part]:
    """The segments of one example, and for which of them its labels hold."""
    body = example.text[:WINDOW]
    found = segments(body)
    unsafe = bool(example.unsafe)
    bag = example.unsafe is not None and example.spans is None and len(found) > 1
    if not found or (unsafe and len(found) == 1):
        whole = origin, origin + len(body)
        return [_Part(*whole, origin, example, judged=True, clean=False, bag=False)]
    parts = []
    for segment in found:
        hit = any(s < segment.end and segment.start < e for s, e, _ in example.spans or ())
        parts.append(
            _Part(
                origin + segment.start,
                origin + segment.end,
                origin,
                example,
                judged=hit or not unsafe,
                clean=unsafe and not (hit or bag) and example.source == "cmd",
                bag=bag,
            )
        )
    return parts


def _labelled(text: str, parts: Sequence[_Part], prompt: Prompt) -> Item:
    window, ranges = prompt.window(text, [(part.start, part.end) for part in parts])
    unsafe = np.full(len(parts), UNKNOWN, np.int64)
    bag = np.full(len(parts), ALONE, np.int64)
    allowed = np.ones((len(parts), N_LOGITS), bool)
    bags: dict[int, int] = {}
    for row, part in enumerate(parts):
        if part.bag:
            bag[row] = bags.setdefault(part.origin, len(bags))
        if part.clean:
            unsafe[row] = 0
        elif (part.judged or part.bag) and part.example.unsafe is not None:
            unsafe[row] = int(part.example.unsafe)
        allowed[row] = _allowed(part)
    spans = np.full((len(window.ids), len(CATEGORIES)), UNKNOWN, np.int64)
    for token, owner in enumerate(window.owner):
        if owner >= 0:
            spans[token] = _token_target(parts[owner], ranges[token])
    return Item(window, unsafe, bag, allowed, spans)


def _allowed(part: _Part) -> np.ndarray:
    """The possible values of each label, `[N_LOGITS]`; all of them in an unsafe bag."""
    allowed = np.ones(N_LOGITS, bool)
    if part.clean:
        for name in RISKS:
            allowed[SLICES[name]] = [i == 0 for i in range(len(LABELS[name]))]
    elif part.judged:
        for name, values in LABELS.items():
            if name in part.example.labels:
                allowed[SLICES[name]] = [v in part.example.labels[name] for v in values]
    return allowed


def _token_target(part: _Part, where: Range) -> list[int]:
    """What each category's logit should say of the token that stands at `where`."""
    spans = part.example.spans
    if spans is None or not (part.judged or part.clean):
        return [UNKNOWN] * len(CATEGORIES)
    start, end = where[0] - part.origin, where[1] - part.origin
    hit = {category for first, last, category in spans if first < end and start < last}
    if part.example.source == "cmd" or not spans:
        return [int(category in hit) for category in CATEGORIES]
    # Other sets mark one category; what else is wrong with these words they do not say.
    marked = {category for _, _, category in spans}
    return [int(c in hit) if c in marked else UNKNOWN for c in CATEGORIES]


@dataclass(frozen=True, slots=True)
class Batch:
    """Items padded to one shape."""

    ids: Tensor
    """`[B, T]`."""
    owner: Tensor
    """`[B, T]`; -2 is padding."""
    unsafe: Tensor
    """`[B, S]`."""
    bag: Tensor
    """`[B, S]`."""
    allowed: Tensor
    """`[B, S, N_LOGITS]`."""
    spans: Tensor
    """`[B, T, len(CATEGORIES)]`."""


def collate(batch: Sequence[Item]) -> Batch:
    """Pad items to the longest window and the largest number of segments."""
    tokens = max(len(item.window.ids) for item in batch)
    rows = max(item.window.segments for item in batch)
    ids = np.zeros((len(batch), tokens), np.int64)
    owner = np.full((len(batch), tokens), -2, np.int64)
    unsafe = np.full((len(batch), rows), UNKNOWN, np.int64)
    bag = np.full((len(batch), rows), ALONE, np.int64)
    allowed = np.ones((len(batch), rows, N_LOGITS), bool)
    spans = np.full((len(batch), tokens, len(CATEGORIES)), UNKNOWN, np.int64)
    for at, item in enumerate(batch):
        length = len(item.window.ids)
        ids[at, :length] = item.window.ids
        owner[at, :length] = item.window.owner
        unsafe[at, : item.window.segments] = item.unsafe
        bag[at, : item.window.segments] = item.bag
        allowed[at, : item.window.segments] = item.allowed
        spans[at, :length] = item.spans
    arrays = (ids, owner, unsafe, bag, allowed, spans)
    return Batch(*(torch.from_numpy(array) for array in arrays))


@dataclass(frozen=True, slots=True)
class Loss:
    """The parts of the loss, each a mean over what is known in the batch."""

    unsafe: Tensor
    labels: Tensor
    spans: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.unsafe + 0.5 * self.labels + self.spans

    def to_dict(self) -> dict[str, float]:
        """The parts as numbers, for the history."""
        return {
            "unsafe": self.unsafe.item(),
            "labels": self.labels.item(),
            "spans": self.spans.item(),
        }


def loss(labels: Tensor, spans: Tensor, batch: Batch) -> Loss:
    """Loss of the heads' logits, `labels` [B, S, N_LOGITS] and `spans` [B, T, categories]."""
    labels, spans = labels.float(), spans.float()
    unsafe = _unsafe(labels[..., UNSAFE], batch)
    parts = []
    for name in LABELS:
        allowed = batch.allowed[..., SLICES[name]]
        known = ~allowed.all(-1)
        group = labels[..., SLICES[name]].log_softmax(-1)
        likelihood = group.masked_fill(~allowed, -torch.inf).logsumexp(-1)
        parts.append(_mean(-likelihood.masked_fill(~known, 0.0), known))
    return Loss(unsafe, torch.stack(parts).mean(), _binary(spans, batch.spans))


def alone(batch: Batch) -> Tensor:
    """`[B, S]`: what is known of segments that are in no bag: 1, 0 or `UNKNOWN`."""
    return batch.unsafe.masked_fill(batch.bag != ALONE, UNKNOWN)


def bags(batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The first bag of each window, then the second, and so on.

    Yields which windows have one, `[B]`; of these N their segments in it, `[N, S]`, and whether
    it is unsafe, `[N]`.
    """
    for number in range(int(batch.bag.max()) + 1 if batch.bag.numel() else 0):
        inside = batch.bag == number
        there = inside.any(1)
        yield there, inside[there], ((batch.unsafe == 1) & inside).any(1)[there]


def _unsafe(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of segments with labels of their own and of bags, by noisy-or of theirs."""
    each, known = _costs(logits, alone(batch))
    total, count = each.sum(), known.sum()
    for there, inside, unsafe in bags(batch):
        # Minus the logarithm of the chance that no segment is unsafe.
        surprise = (F.softplus(logits[there]) * inside).sum(1).clamp(min=1e-30)
        total = total + torch.where(unsafe, -torch.log(-torch.expm1(-surprise)), surprise).sum()
        # A safe bag costs, and counts, as its segments would alone.
        count = count + torch.where(unsafe, 1, inside.sum(1)).sum()
    return total / count.clamp(min=1)


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return _mean(*_costs(logits, target))


def _costs(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each place, 0 where the target is unknown; and where it is known."""
    known = target != UNKNOWN
    each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), reduction="none")
    return each * known, known


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return values.sum() / known.sum().clamp(min=1)
