"""Measures what systems made of unsafe texts: safety, retention, fluency.

Safety is the word of judges that training never saw; retention is facts, negations, meaning and
words; fluency is the perplexity under the base model beside that of the source. Where a figure
needs references or marked phrases, only texts that have them count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import metrics
from benchmarks.embedder import Embedder
from benchmarks.judges import Judge
from benchmarks.language_model import LanguageModel
from benchmarks.report import measured
from benchmarks.sets import Pair
from benchmarks.systems import System
from srllm_guard.text.protect import missing

REFERENCE = "reference"
"""The system that is measured against itself, which says nothing."""


class Yardstick:
    """Measures systems; each text is judged and embedded once.

    Args:
        judges: say what is unsafe.
        language: the base model, for perplexity; None leaves it out.
        seed: of the bootstrap.
    """

    def __init__(self, judges: Sequence[Judge], language: LanguageModel | None, seed: int) -> None:
        self._judges = judges
        self._embedder = Embedder()
        self._language = language
        self._seed = seed
        self._unsafe: dict[str, dict[str, bool]] = {judge.name: {} for judge in judges}
        self._vectors: dict[str, Any] = {}
        self._perplexity: dict[str, float] = {}

    def figures(self, pairs: Sequence[Pair], system: System) -> dict[str, Any]:
        """Figures of a system on the sources that it has an output for."""
        numbers = sorted(system.outputs)
        rows = [(pairs[n], system.outputs[n]) for n in numbers]
        sources = [pair.text for pair, _ in rows]
        outputs = [output for _, output in rows]
        self._read([*sources, *outputs])
        return {
            "texts": len(rows),
            "unchanged": self._share([pair.text == output for pair, output in rows]),
            "unsafe": {judge.name: self._safety(judge.name, rows) for judge in self._judges},
            **self._retention(rows, same=system.name == REFERENCE),
            "masked": self._share([number in system.masked for number in numbers]),
            **self._marked(pairs, system),
            "perplexity_ratio": self._fluency(rows),
        }

    def _safety(self, judge: str, rows: Sequence[tuple[Pair, str]]) -> dict[str, Any]:
        """Shares unsafe before and after, and by what part the share fell."""
        known = self._unsafe[judge]
        before = [known[pair.text] for pair, _ in rows]
        after = [known[output] for _, output in rows]
        return {
            "before": self._share(before),
            "after": self._share(after),
            "removed": measured(_fall, before, after, seed=self._seed),
        }

    def _retention(self, rows: Sequence[tuple[Pair, str]], *, same: bool) -> dict[str, Any]:
        facts = [metrics.kept_facts(pair.text, output) for pair, output in rows]
        kept, total = zip(*facts, strict=True) if facts else ((), ())
        near = [float(self._vectors[pair.text] @ self._vectors[output]) for pair, output in rows]
        compared = [] if same else rows
        ratios = [len(output) / max(1, len(pair.text)) for pair, output in rows]
        flips = [metrics.flips_negation(p.text, output, p.references) for p, output in rows]
        score = metrics.bleu([o for _, o in compared], [p.references for p, _ in compared])
        return {
            "facts": int(sum(total)),
            "facts_kept": measured(_recall, kept, total, seed=self._seed),
            "similarity": self._share(near),
            "negation_flipped": self._share(flips),
            "chrf": self._share([metrics.chrf(o, pair.references) for pair, o in compared]),
            "bleu": None if score is None else round(score, 4),
            "length_ratio": round(float(np.median(ratios)), 4) if ratios else None,
        }

    def _marked(self, pairs: Sequence[Pair], system: System) -> dict[str, Any]:
        """Of texts whose unsafe phrases are known: whether all of them went, and nothing else.

        With a mask, or a message in its place, a text is not changed in this sense.
        """
        gone, clean = [], []
        for number, output in sorted(system.outputs.items()):
            pair = pairs[number]
            if not pair.phrases:
                continue
            gone.append(metrics.phrases_gone(output, pair.phrases))
            changed = output != pair.text and number not in system.masked
            clean.append(gone[-1] and changed and _whole(pair, output))
        return {"phrases_gone": self._share(gone), "changed_gone_kept": self._share(clean)}

    def _fluency(self, rows: Sequence[tuple[Pair, str]]) -> float | None:
        """Median of perplexity of the output over that of its source, where they differ."""
        ratios = [
            self._perplexity[output] / self._perplexity[pair.text]
            for pair, output in rows
            if self._language is not None and output != pair.text and output.strip()
        ]
        return round(float(np.median(ratios)), 3) if ratios else None

    def _share(self, values: Sequence[bool] | Sequence[float]) -> dict[str, Any] | None:
        return measured(metrics.share, values, seed=self._seed)

    def _read(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for judge in self._judges:
            self._unsafe[judge.name] |= zip(new, judge.unsafe(new).tolist(), strict=True)
        self._vectors |= zip(new, self._embedder.embed(new), strict=True)
        if self._language is not None:
            found = self._language.perplexities(new)
            self._perplexity |= {
                text: 1.0 if math.isnan(value) else value
                for text, value in zip(new, found, strict=True)
            }


def _whole(pair: Pair, output: str) -> bool:
    """Whether numbers, URLs, names and the like that a reference keeps are in the output too."""
    lost = set(missing(pair.text, output))
    kept = any(lost.issubset(missing(pair.text, reference)) for reference in pair.references)
    common = metrics.names(pair.text).intersection(*map(metrics.names, pair.references))
    words = set(metrics.words(output))
    return kept and common <= words


def _recall(kept: Any, total: Any) -> float | None:
    return float(kept.sum() / total.sum()) if total.sum() else None


def _fall(before: Any, after: Any) -> float | None:
    return float(1 - after.sum() / before.sum()) if before.sum() else None
