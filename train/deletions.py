"""Deletions that the rewriter itself finds likely, as pairs to learn from.

A small model that is taught to say something in place of a prejudice learns to make things up.
Where the variation of a record brings many new words, its rewriter learns to delete instead: of all
ways to cut the marked phrases (`srllm_guard.trim`) the one that the bundle before finds likeliest,
if it finds it likely at all. On authored dev segments nearly all above -4.5 are sentences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from srllm_guard.engines.base import Asked, Engine
from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import Bundle
from srllm_guard.policy import Policy
from srllm_guard.prompt import Prompt
from srllm_guard.results import Span
from srllm_guard.runtime import load
from srllm_guard.trim import trims
from srllm_guard.verify import faults
from train import kept
from train.config import Config
from train.epochs import Corpus
from train.rewriting import Pair, new, pairs
from train.team import ALONE, Team

MOST = 4
"""Ways of cutting a segment that are compared."""


def deletions(
    config: Config,
    start: Path | None,
    weights: Path,
    prompt: Prompt,
    corpus: Corpus,
    out: Path,
    team: Team = ALONE,
) -> list[Pair]:
    """Pairs of the authored training records; kept in `out`, so that a resumed run reads them.

    Of a team one process works them out.

    Raises:
        ConfigError: training starts from no bundle, so nobody can say what is likely.
    """
    if start is None:
        raise ConfigError(
            f"{config.name} learns from deletions that a bundle finds likely.",
            hint="Give the bundle with --from-bundle, or leave [data] deletions out.",
        )
    draw = random.Random(config.training.seed)
    wide = [
        pair
        for example in corpus.train.get("cmd", [])
        for pair in pairs(example, draw)
        if config.data.most_new and new(pair) > config.data.most_new
    ]
    least = config.data.deletions
    asked = kept.key(Bundle.load(start).hash, least, [asdict(pair) for pair in wide])
    path = out / f"deletions-{asked}.jsonl"
    if team.leads and not path.is_file():
        engine = load(start, base=weights).engine
        kept.keep(path, (asdict(pair) for pair in likely(engine, prompt, wide, least)))
    team.wait()
    return [
        Pair(row["text"], tuple((s, e) for s, e in row["marks"]), row["safe"], row["context"])
        for row in kept.rows(path)
    ]


def likely(engine: Engine, prompt: Prompt, found: Sequence[Pair], least: float) -> Iterator[Pair]:
    """The likeliest deletion of each pair whose logarithm of probability is at least `least`."""
    for pair in found:
        texts = [text for text in trims(pair.text, pair.marks) if not _faulty(pair, text)][:MOST]
        asked = prompt.rewrite(pair.text, pair.marks, pair.context)
        scores = engine.score([Asked(asked, prompt.target(text)) for text in texts])
        chances = {text: float(s.sum()) for text, s in zip(texts, scores, strict=True)}
        if chances and chances[best := max(chances, key=chances.__getitem__)] >= least:
            yield Pair(pair.text, pair.marks, best, pair.context)


def _faulty(pair: Pair, text: str) -> bool:
    spans = [Span(start, end, "bias", 1.0) for start, end in pair.marks]
    return bool(faults(pair.text, text, spans, Policy(), pair.context))
