"""Pairs of an unsafe segment with its marks and a safe variation, as the rewriter is taught.

Left alone a small model copies; told what is wrong, it does not. So unsafe spans are marked in the
prompt. The marks at run time come from a detector that errs, so training also sees marks that are
a word too short, too long, missing or misplaced.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch
from torch import Tensor

from srllm_guard.engines.base import Ids
from srllm_guard.prompt import Prompt, Range
from srllm_guard.text.segments import Segment, segments
from srllm_guard.verify import new_words
from train.diff import removed_spans
from train.example import Example

IGNORED = -100

MAX_CONTEXT = 200
"""Most characters of context that a pair has."""

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Pair:
    """One segment and its safe variation."""

    text: str
    marks: tuple[Range, ...]
    safe: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Token ids of one pair: the prompt, and the answer with its end."""

    prompt: Ids
    target: Ids
    copied: Ids = ()
    """For each token of the answer the one that going on with the source would put there, where
    the answer leaves the source; `IGNORED` elsewhere. Empty: nowhere."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def pairs(example: Example, draw: random.Random, *, nearest: bool = False) -> Iterator[Pair]:
    """The segments of an unsafe example that its safe variation changes, each with its own.

    Of several variations one is drawn; with `nearest`, among those with fewest new words.

    A text of several sentences is aligned with its variation sentence by sentence; sentences that
    were merged, moved or dropped give no pair.
    """
    if not (example.safe and example.unsafe):
        return
    safe = draw.choice(_nearest(example) if nearest else example.safe)
    left, right = segments(example.text), segments(safe)
    if len(left) <= 1 or example.source != "cmd":
        marks = _marks(example.text, safe, [(s, e) for s, e, _ in example.spans or ()])
        if marks and len(example.text) <= 600 and safe.strip():
            yield Pair(example.text, marks, safe)
        return
    texts = [example.text[s.start : s.end] for s in left]
    others = [safe[s.start : s.end] for s in right]
    matcher = SequenceMatcher(None, texts, others, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "replace" or (j - i != m - k and j - i != 1):
            continue
        for at in range(i, j):
            # One sentence may become several; then they stand together in the variation.
            first, last = (k, m - 1) if j - i == 1 else (k + at - i, k + at - i)
            target = safe[right[first].start : right[last].end]
            yield from _one(example, left[at], target)


def left_context(text: str, start: int) -> str:
    """What stands before `start`: cut at a word."""
    before = text[max(0, start - MAX_CONTEXT) : start].strip()
    return before.partition(" ")[2] if start > MAX_CONTEXT else before


def _nearest(example: Example) -> list[str]:
    """The safe variations that bring fewest new words."""
    counts = [len(new_words(example.text, safe)) for safe in example.safe]
    return [safe for safe, count in zip(example.safe, counts, strict=True) if count == min(counts)]


def _one(example: Example, segment: Segment, target: str) -> Iterator[Pair]:
    text = example.text[segment.start : segment.end]
    known = [
        (max(s, segment.start) - segment.start, min(e, segment.end) - segment.start)
        for s, e, _ in example.spans or ()
        if s < segment.end and segment.start < e
    ]
    if marks := _marks(text, target, known):
        yield Pair(text, marks, target, left_context(example.text, segment.start))


def _marks(text: str, safe: str, known: Sequence[Range]) -> tuple[Range, ...]:
    if known:
        return tuple(sorted(known))
    return removed_spans(text, [safe])


def imperfect(marks: Sequence[Range], text: str, draw: random.Random) -> tuple[Range, ...]:
    """Marks as a detector that errs would set them: on word borders, a word more or less."""
    words = [(m.start(), m.end()) for m in _WORD.finditer(text)]
    chosen: list[tuple[int, int]] = []  # first and last word of each mark
    for start, end in marks:
        hit = [n for n, (s, e) in enumerate(words) if s < end and start < e]
        if not hit or (len(marks) > 1 and draw.random() < 0.1):
            continue
        first, last = hit[0], hit[-1]
        first = max(0, first + draw.choice((0, 0, 0, -1, 1)))
        last = min(len(words) - 1, last + draw.choice((0, 0, 0, -1, 1)))
        if last >= first:
            chosen.append((first, last))
    if words and draw.random() < 0.05:
        chosen.append((0, len(words) - 1))
    found: list[Range] = []
    for first, last in sorted(chosen):
        start, end = words[first][0], words[last][1]
        if found and start <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found) or tuple(marks)


def items(
    examples: Sequence[Example],
    prompt: Prompt,
    seed: int,
    *,
    noisy: float = 0.5,
    most_new: int = 0,
    nearest: bool = False,
    more: Sequence[Pair] = (),
) -> list[Item]:
    """Items of all pairs in `examples` and of `more`; a share `noisy` with imperfect marks.

    With `most_new` those authored ones alone that bring no more new words; with `nearest` too
    this holds for every source.
    """
    draw = random.Random(seed)
    found = [
        _item(pair, prompt, draw, noisy)
        for example in examples
        for pair in pairs(example, draw, nearest=nearest)
        if not (most_new and (nearest or example.source == "cmd")) or new(pair) <= most_new
    ]
    return found + [_item(pair, prompt, draw, noisy) for pair in more]


def new(pair: Pair) -> int:
    """How many words of content a variation brings that nobody said before."""
    return len(new_words(pair.text, pair.safe, pair.context))


def _item(pair: Pair, prompt: Prompt, draw: random.Random, noisy: float) -> Item:
    noise = draw.random() < noisy
    marks = imperfect(pair.marks, pair.text, draw) if noise else pair.marks
    target = prompt.target(pair.safe)
    left = left_source(prompt.target(pair.text), target)
    return Item(prompt.rewrite(pair.text, marks, pair.context), target, left)


def left_source(source: Ids, target: Ids) -> Ids:
    """The token of the source that each token of the target stands in place of, if another one.

    Only where the target leaves the source: behind its own words nothing is copied any more.
    """
    found = [IGNORED] * len(target)
    for tag, i, _, j, _ in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if tag not in ("replace", "delete"):
            continue
        # "the fools and the others" becomes "the others": it is left behind the first "the".
        while i < len(source) and j < len(target) and source[i] == target[j]:
            i, j = i + 1, j + 1
        if i < len(source) and j < len(target):
            found[j] = source[i]
    return tuple(found)


def copies(examples: Sequence[Example], prompt: Prompt, seed: int, share: float) -> list[Item]:
    """Safe texts without marks, to be copied; a share of the examples."""
    draw = random.Random(seed)
    return [
        Item(prompt.rewrite(example.text, ()), prompt.target(example.text))
        for example in examples
        if example.unsafe is False and len(example.text) <= 400 and draw.random() < share
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """Items padded to one shape, prompts and answers in one row."""

    ids: Tensor
    """`[B, T]`."""
    mask: Tensor
    """`[B, T]`: 1 where there is a token."""
    labels: Tensor
    """`[B, T]`: the id itself within the answer, `IGNORED` elsewhere."""
    copied: Tensor
    """`[B, T]`: the id that copying would put there, where the answer leaves the source; `IGNORED`
    elsewhere."""


def collate(batch: Sequence[Item]) -> Batch:
    """Pad items at the right."""
    tokens = max(len(item) for item in batch)
    ids = np.zeros((len(batch), tokens), np.int64)
    mask = np.zeros((len(batch), tokens), np.int64)
    labels = np.full((len(batch), tokens), IGNORED, np.int64)
    copied = np.full((len(batch), tokens), IGNORED, np.int64)
    for row, item in enumerate(batch):
        ids[row, : len(item)] = (*item.prompt, *item.target)
        mask[row, : len(item)] = 1
        labels[row, len(item.prompt) : len(item)] = item.target
        copied[row, len(item.prompt) : len(item.prompt) + len(item.copied)] = item.copied
    return Batch(*(torch.from_numpy(array) for array in (ids, mask, labels, copied)))
