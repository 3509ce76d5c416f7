"""Training examples with the marks that a detector sets, in place of those that people set.

At run time the rewriter is shown what the detector found: half of a phrase, one too many, two of
three. A rewriter that only ever saw the marks of people is seldom sure of its answer there. So a
share of the pairs is marked by the bundle that training starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from srllm_guard import Guard
from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import Bundle
from train import kept
from train.config import Config
from train.epochs import Corpus, pools
from train.example import Span, apart
from train.team import ALONE, Team

AT_ONCE = 256
"""Texts that are judged between two writes to the disk."""


def detected(
    config: Config,
    start: Path | None,
    weights: Path,
    corpus: Corpus,
    out: Path,
    team: Team = ALONE,
) -> dict[str, tuple[Span, ...]]:
    """For each text that training rewrites and the bundle flags: the spans that it finds there.

    Kept in `out`, so that a run that was killed goes on from what it had. A team shares the texts.

    Raises:
        ConfigError: training starts from no bundle.
    """
    if start is None:
        raise ConfigError(
            f"{config.name} learns from the marks of a bundle.",
            hint="Give the bundle with --from-bundle, or leave [data] detected_marks out.",
        )
    name = f"detected-{kept.key(Bundle.load(start).hash)}"
    found = _known(out, name)
    wanted = dict.fromkeys(
        example.text
        for number in range(config.training.epochs)
        for pool in pools(corpus, config, number).values()
        for example in pool
        if example.unsafe and example.safe and example.text not in found
    )
    team.wait()  # before anyone writes, so that all divide the same texts
    texts = list(wanted)[team.rank :: team.size]
    guard = Guard(start, base=weights)
    path = out / f"{name}-{team.rank}.jsonl"
    rows = kept.rows(path)
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        spans = _judged(guard, part)
        rows += [{"text": text, "spans": each} for text, each in zip(part, spans, strict=True)]
        kept.keep(path, rows)
    team.wait()
    return {text: spans for text, spans in _known(out, name).items() if spans}


def _known(out: Path, name: str) -> dict[str, tuple[Span, ...]]:
    """What is known already, of every process."""
    return {
        row["text"]: _spans(row["spans"])
        for path in sorted(out.glob(f"{name}-*.jsonl"))
        for row in kept.rows(path)
    }


def _judged(guard: Guard, texts: list[str]) -> list[tuple[Span, ...]]:
    """The marks of each text, apart: the rewriter is not told what is wrong with each."""
    found = ([(span.start, span.end) for span in each.spans] for each in guard.detect_many(texts))
    return [tuple((start, end, "bias") for start, end in apart(ranges)) for ranges in found]


def _spans(rows: Iterable[list[int | str]]) -> tuple[Span, ...]:
    return tuple((int(start), int(end), str(category)) for start, end, category in rows)
