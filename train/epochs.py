"""What a run learns from: its examples, and the steps of each epoch.

A step is one batch of pairs to rewrite and the share of detection batches that goes with it. What
it holds depends on the seed and its number alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from srllm_guard.prompt import Prompt
from train import detection, rewriting
from train.batching import by_length
from train.config import Config
from train.example import Example, Span
from train.readings import Reading


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples of each source, for training and for the dev losses."""

    train: dict[str, list[Example]]
    dev: dict[str, list[Example]]
    ordinary: list[str] = field(default_factory=list)
    """Safe prose that is read for the threshold alone."""
    deletions: list[rewriting.Pair] = field(default_factory=list)
    """Pairs that `train.deletions` made of the training examples."""
    detected: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    """Spans that `train.detected` found in training examples, by text."""
    readings: list[Reading] = field(default_factory=list)
    """What readers said of rewrites."""


@dataclass(frozen=True, slots=True)
class Step:
    """The batches of one step."""

    rewriting: list[rewriting.Item]
    detection: list[list[detection.Item]]


def epoch(corpus: Corpus, prompt: Prompt, config: Config, number: int) -> list[Step]:
    """The steps of one epoch, drawn from the seed and the epoch's number."""
    settings = config.training
    seed = settings.seed * 1000 + number
    pool = pools(corpus, config, number)
    share, draw = config.data.detected_marks, random.Random(seed)
    pairs = rewriting.items(
        [
            replace(each, spans=spans) if spans and draw.random() < share else each
            for part in pool.values()
            for each in part
            for spans in [corpus.detected.get(each.text)]
        ],
        prompt,
        seed,
        noisy=config.data.noisy_marks,
        most_new=config.data.most_new,
        nearest=config.data.nearest,
        more=corpus.deletions,
    )
    pairs += rewriting.copies(pool.get("cmd", []), prompt, seed, config.data.copies)
    pairs = [item for item in pairs if len(item) <= settings.max_length]
    judged: list[Example] = []
    for name, most in config.data.detection.items():
        judged += drawn(corpus.train[name], most, seed)
    windows = detection.items(judged, prompt, seed)
    own = corpus.train["cmd"] if "cmd" in config.data.detection else []
    for turn in range(1, config.data.authored_turns):
        windows += detection.items(own, prompt, seed + turn)
    windows = [item for item in windows if len(item) <= settings.max_length]
    left = by_length(pairs, len, settings.rewriting_tokens, seed)
    right = by_length(windows, len, settings.detection_tokens, seed)
    count = len(left) or len(right)
    bounds = [round(len(right) * n / max(count, 1)) for n in range(count + 1)]
    return [
        Step(left[n] if n < len(left) else [], right[bounds[n] : bounds[n + 1]])
        for n in range(count)
    ]


def pools(corpus: Corpus, config: Config, number: int) -> dict[str, list[Example]]:
    """The examples of each source that an epoch teaches to rewrite; all of them have a rewrite."""
    seed = config.training.seed * 1000 + number
    return {
        name: drawn([each for each in corpus.train[name] if each.safe], most, seed)
        for name, most in config.data.rewriting.items()
    }


def drawn(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most `most` examples, drawn with `seed`; 0 takes all."""
    if not most or most >= len(examples):
        return list(examples)
    return random.Random(seed).sample(examples, most)
