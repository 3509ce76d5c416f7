"""What turns a source into an output: the guard, what it is compared with, and files of others.

A system is a name with one output for each source; everything is measured on these alone, so
a new system is one more function here, or a file given by `--column`.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.judges import MissingJudge
from benchmarks.language_model import LanguageModel, Turn
from benchmarks.metrics import closed_up, share, without_ranges
from benchmarks.prompts import prompted
from benchmarks.raw import rewritten
from benchmarks.report import measured
from benchmarks.sets import Pair
from srllm_guard import Guard
from srllm_guard.results import Moderation
from srllm_guard.runtime import Runtime
from srllm_guard.text.segments import segments
from train.example import occurrences
from train.schema import SchemaError, json_lines

REFUSALS = ("rewrite", "barred", "candidates", "omit", "mask")
"""Names that a reason for refusal begins with."""

STAGES = ("detect", "rewrite", "verify")
"""Stages of `Moderation.timings`."""

IN_PLACE = "unsafe_in_place"
"""The reason of a replacement that was taken back."""


@dataclass(frozen=True, slots=True)
class System:
    """Outputs for some of the sources of a set."""

    name: str
    outputs: dict[int, str]
    """By the number of the source."""
    masked: frozenset[int] = frozenset()
    """Sources of which the output holds a mask, or is a message in their place."""

    @classmethod
    def of(cls, name: str, outputs: Sequence[str]) -> System:
        """A system with an output for every source."""
        return cls(name, dict(enumerate(outputs)))

    @classmethod
    def guard(cls, name: str, results: Sequence[Moderation]) -> System:
        """What a guard made of every source."""
        masked = {n for n, result in enumerate(results) if result.action in ("mask", "block")}
        return cls(name, {n: r.text for n, r in enumerate(results)}, frozenset(masked))


@dataclass(slots=True)
class Watch:
    """Where the time of the guard goes."""

    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Milliseconds by stage."""
    segments: int = 0
    flagged: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """Milliseconds: of detection a segment, of rewriting and verifying a flagged segment."""
        ladder = self.stages["rewrite"] + self.stages["verify"]
        return {
            "segments": self.segments,
            "flagged_segments": self.flagged,
            "detect_ms_per_segment": _ratio(self.stages["detect"], self.segments),
            "rewrite_ms_per_flagged_segment": _ratio(self.stages["rewrite"], self.flagged),
            "ladder_ms_per_flagged_segment": _ratio(ladder, self.flagged),
            "seconds": round(self.seconds, 2),
        }


def moderate(
    guard: Guard, texts: Sequence[str], batch: int, name: str
) -> tuple[list[Moderation], Watch]:
    """Moderate texts, and tell how long it took; the progress bar carries `name`."""
    found: list[Moderation] = []
    watch = Watch()
    with tqdm(total=len(texts), desc=name, unit="text") as bar:
        for start in range(0, len(texts), batch):
            began = time.perf_counter()
            part = guard.moderate_many(texts[start : start + batch])
            watch.seconds += time.perf_counter() - began
            # One call: each of its results carries the times of all of it.
            for stage in STAGES:
                watch.stages[stage] += max(result.timings.get(stage, 0.0) for result in part)
            for result in part:
                flags = flagged(result)
                watch.segments += len(flags)
                watch.flagged += sum(flags)
            found += part
            bar.update(len(part))
    return found, watch


def flagged(result: Moderation) -> list[bool]:
    """For each prose segment of the original, whether it was flagged: its spans tell."""
    if not result.before.verified:
        return []
    spans = result.before.spans
    return [
        any(span.start < part.end and part.start < span.end for span in spans)
        for part in segments(result.original)
        if part.kind == "prose"
    ]


def compared(
    runtime: Runtime,
    pairs: Sequence[Pair],
    results: Sequence[Moderation],
    base: LanguageModel | None,
    examples: Sequence[Turn],
) -> list[System]:
    """The guard's outputs, and what they are compared with, from the same sources in one run.

    Args:
        runtime: runs the adapter alone.
        pairs: the sources.
        results: what the guard made of them.
        base: answers prompts; None leaves that system out.
        examples: turns that stand before each source in its prompt.
    """
    texts = [pair.text for pair in pairs]
    spans = [[(s.start, s.end) for s in result.before.spans] for result in results]
    gold = [
        [(start, end) for start, end, _ in occurrences(pair.text, pair.phrases, "bias")]
        for pair in pairs
    ]
    found = [
        System.of("source, unchanged", texts),
        System.of("listed words deleted", listed_words_deleted(texts)),
        System.of(
            "flagged spans deleted",
            [without_ranges(*each) for each in zip(texts, spans, strict=True)],
        ),
        System.of("reference", [pair.references[0] for pair in pairs]),
    ]
    if base is not None:
        shot = prompted(base, examples, texts, f"base, {len(examples)}-shot")
        found.append(System.of(f"base, {len(examples)}-shot", shot))
    found.append(System.of("adapter alone", rewritten(runtime, texts, spans)))
    if any(gold):
        known = rewritten(runtime, texts, gold)
        outputs = {n: known[n] for n in range(len(texts)) if gold[n]}
        found.append(System("adapter alone, gold marks", outputs))
    found.append(System.guard("guard", results))
    return found


def listed_words_deleted(texts: Sequence[str]) -> list[str]:
    """What a word list makes of texts: the words of glin-profanity's English list are deleted.

    Raises:
        MissingJudge: glin-profanity is not installed.
    """
    if importlib.util.find_spec("glin_profanity") is None:
        raise MissingJudge("glin-profanity")
    words = import_module("glin_profanity").Filter({"languages": ["english"], "replace_with": "\0"})
    found = [words.check_profanity(text).get("processed_text") or text for text in texts]
    return [closed_up(new) if "\0" in new else new for new in found]


def column(option: str, pairs: Sequence[Pair]) -> System:
    """Outputs of another system, from `NAME=FILE`: JSON Lines with `text` and `output`.

    Sources that the file lacks have no output.

    Raises:
        ValueError: the option is not of that form, or a row lacks a field.
    """
    name, sign, file = option.partition("=")
    if not (name and sign and file):
        raise ValueError(f"--column is {option!r}; expected NAME=FILE")
    known: dict[str, str] = {}
    for place, row in json_lines(Path(file)):
        match row:
            case {"text": str(text), "output": str(output)}:
                known[text] = output
            case _:
                raise SchemaError(f'{place}: expected the strings "text" and "output"')
    return System(name, {n: known[p.text] for n, p in enumerate(pairs) if p.text in known})


def ladder(results: Sequence[Moderation], seed: int) -> dict[str, Any]:
    """What became of the texts, and how often each rung helped or was refused."""
    hit = [result for result in results if result.before.unsafe]
    edits = [edit for result in results for edit in result.edits]
    reasons = Counter(reason for edit in edits for reason in edit.reasons)
    refused = {r: n for r, n in reasons.most_common() if r.split(":")[0] in REFUSALS}
    refused |= {r: n for r, n in reasons.items() if r == IN_PLACE}
    return {
        "texts": len(results),
        "flagged": measured(share, [result.before.unsafe for result in results], seed=seed),
        "unverified": share([not result.before.verified for result in results]),
        "of_flagged": {
            action: measured(share, [result.action == action for result in hit], seed=seed)
            for action in ("rewrite", "mask", "block")
        },
        "result_of": dict(Counter(edit.rung for edit in edits).most_common()),
        "refused": refused,
        "flagged_for": {r: n for r, n in reasons.most_common() if r not in refused},
        "errors": sum(bool(result.errors) for result in results),
    }


def _ratio(milliseconds: float, count: int) -> float | None:
    return round(milliseconds / count, 2) if count else None
