"""How well detection tells unsafe from safe, how often it stops ordinary text, how long it takes.

    python -m benchmarks.detection --data DATA --out benchmarks/results/detection.json

Texts go through the guard's own path (language gate, segments, windows, folded views, calibration,
policy); what is measured is what `Guard.detect` returns, and the verdicts on single segments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import metrics, report, sets
from benchmarks.report import measured
from benchmarks.sets import Case, Cases
from srllm_guard import Guard, Policy
from srllm_guard.draft import Draft
from srllm_guard.errors import GuardError
from srllm_guard.labels import LABELS, RISKS
from srllm_guard.moderator import Moderator
from srllm_guard.runtime import Runtime
from train.schema import write_lines

SINGLES = 100
"""Texts that are judged one by one for the time of a single call."""


@dataclass(slots=True)
class Stopwatch:
    """Time of detection, over all sets."""

    seconds: float = 0.0
    engine: float = 0.0
    """Of these, within the engine."""
    texts: int = 0
    segments: int = 0

    def figures(self) -> dict[str, float]:
        """Milliseconds a segment: all in all, and within the engine."""
        count = max(1, self.segments)
        return {
            "texts": self.texts,
            "segments": self.segments,
            "ms_per_segment": round(self.seconds * 1e3 / count, 2),
            "engine_ms_per_segment": round(self.engine * 1e3 / count, 2),
        }


@dataclass(slots=True)
class Judge:
    """The guard's path up to the verdicts on segments."""

    runtime: Runtime
    policy: Policy
    batch: int
    watch: Stopwatch = field(default_factory=Stopwatch)

    def drafts(self, texts: Sequence[str], name: str) -> Iterator[Draft]:
        """Judge texts; the progress bar carries `name`."""
        moderator = Moderator(self.runtime, self.policy)
        with tqdm(total=len(texts), desc=name, unit="text") as bar:
            for start in range(0, len(texts), self.batch):
                part = texts[start : start + self.batch]
                calls, began = self.runtime.gate.open(None), time.perf_counter()
                found = moderator.judge(part, calls)
                self.watch.seconds += time.perf_counter() - began
                self.watch.engine += calls.spent.get("detect", 0.0) / 1e3
                self.watch.texts += len(part)
                self.watch.segments += sum(len(draft.segments) for draft in found)
                bar.update(len(part))
                yield from found


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of one text, its context left out."""

    score: float
    flagged: bool
    verified: bool
    spans: tuple[metrics.Range, ...]
    """Unsafe phrases in its flagged segments."""
    segments: tuple[tuple[metrics.Range, float, bool], ...]
    """Range, score, and whether it was flagged, of each segment."""
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """For each CMD label the probabilities of its values; of the whole text, context included."""


def judged(case: Case, draft: Draft) -> Judged:
    """Keep of a draft what belongs to the case."""
    rows = [
        (segment, verdict, flag)
        for segment, verdict, flag in zip(
            draft.segments, draft.verdicts, draft.flagged, strict=True
        )
        if segment.end > case.start
    ]
    spans = {(s.start, s.end) for _, verdict, flag in rows if flag for s in verdict.spans}
    return Judged(
        score=max((verdict.score for _, verdict, _ in rows), default=0.0),
        flagged=any(flag for *_, flag in rows),
        verified=draft.language.verified,
        spans=tuple(sorted(spans)),
        segments=tuple(((s.start, s.end), verdict.score, flag) for s, verdict, flag in rows),
        labels={name: getattr(draft.detection, name).probabilities for name in LABELS},
    )


def figures(truth: Any, scores: Any, flagged: Any, seed: int, groups: Any = None) -> dict[str, Any]:
    """Ranking by score, and decisions at the threshold; `[N]` each.

    `groups` `[N]` says which rows are of one text; None: each is one of its own. The calibration
    error has no interval: resampling makes it larger.
    """
    truth, scores, flagged = np.asarray(truth, bool), np.asarray(scores), np.asarray(flagged, bool)
    groups = np.arange(len(truth)) if groups is None else np.asarray(groups)
    both = {"seed": seed, "groups": groups}
    return {
        "count": len(truth),
        "unsafe": int(truth.sum()),
        "average_precision": measured(metrics.average_precision, truth, scores, **both),
        "auroc": measured(metrics.auroc, truth, scores, **both),
        "f1": measured(metrics.f1, truth, flagged, **both),
        "recall": measured(metrics.share, flagged[truth], seed=seed, groups=groups[truth]),
        "false_positive_rate": measured(
            metrics.share, flagged[~truth], seed=seed, groups=groups[~truth]
        ),
        "calibration_error": measured(metrics.calibration_error, truth, scores, interval=False),
    }


def text_level(cases: Sequence[Case], found: Sequence[Judged], seed: int) -> dict[str, Any]:
    """Figures of whole texts, with span F1 over the unsafe ones whose spans are known."""
    marked = [
        metrics.span_f1(said.spans, case.spans)
        for case, said in zip(cases, found, strict=True)
        if case.unsafe and case.spans
    ]
    return {
        **figures(
            [case.unsafe for case in cases],
            [said.score for said in found],
            [said.flagged for said in found],
            seed,
        ),
        "span_f1": measured(metrics.share, marked, seed=seed),
        "unverified": metrics.share([not said.verified for said in found]),
    }


def label_level(cases: Sequence[Case], found: Sequence[Judged], seed: int) -> dict[str, Any]:
    """Figures of each CMD label over the texts whose value is known exactly.

    Accuracy and macro F1 are over all values; AP and AUROC tell the first value from the others,
    for `sentiment` "negative", for the others "no risk" with its complement as the score.
    """
    told: dict[str, Any] = {}
    for name, values in LABELS.items():
        rows = [
            (values.index(case.labels[name]), list(said.labels[name].values()))
            for case, said in zip(cases, found, strict=True)
            if name in case.labels
        ]
        if not rows:
            continue
        truth = np.array([row[0] for row in rows])
        chances = np.array([row[1] for row in rows])  # [N, values]
        chosen = chances.argmax(1)
        risk = name in RISKS
        positive = truth != 0 if risk else truth == 0
        score = 1 - chances[:, 0] if risk else chances[:, 0]
        told[name] = {
            "count": len(rows),
            "accuracy": measured(metrics.share, chosen == truth, seed=seed),
            "macro_f1": measured(metrics.macro_f1, truth, chosen, seed=seed),
            "average_precision": measured(metrics.average_precision, positive, score, seed=seed),
            "auroc": measured(metrics.auroc, positive, score, seed=seed),
            "calibration_error": measured(
                metrics.calibration_error, positive, score, interval=False
            ),
        }
    return told


def segment_level(cases: Sequence[Case], found: Sequence[Judged], seed: int) -> dict[str, Any]:
    """Figures of segments: those that hold part of a span are unsafe, the others are safe."""
    rows = [
        (any(s < end and start < e for s, e in case.spans), score, flag, number)
        for number, (case, said) in enumerate(zip(cases, found, strict=True))
        if case.spans is not None
        for (start, end), score, flag in said.segments
    ]
    truth, scores, flagged, texts = zip(*rows, strict=True) if rows else ((), (), (), ())
    return figures(truth, scores, flagged, seed, texts)


def restraint(found: Sequence[Judged], seed: int) -> dict[str, Any]:
    """How many safe texts, and segments of them, are flagged."""
    flags = [flag for said in found for *_, flag in said.segments]
    return {
        "texts": len(found),
        "flagged": measured(metrics.share, [said.flagged for said in found], seed=seed),
        "segments": len(flags),
        "segments_flagged": measured(metrics.share, flags, seed=seed, interval=False),
        "unverified": metrics.share([not said.verified for said in found]),
    }


def single_calls(guard: Guard, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of `Guard.detect` on one text at a time."""
    times = []
    for text in tqdm(texts, desc="one by one", unit="text"):
        began = time.perf_counter()
        guard.detect(text)
        times.append((time.perf_counter() - began) * 1e3)
    low, high = np.percentile(times, (50, 95))
    return {"texts": len(times), "median_ms": round(float(low), 2), "p95_ms": round(float(high), 2)}


def tables(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The result as Markdown tables with their titles."""
    columns = ["average_precision", "auroc", "f1", "recall", "false_positive_rate"]
    columns += ["calibration_error", "span_f1", "unverified"]
    rows = [
        [name, level, row["count"], row["unsafe"], *(row.get(c) for c in columns)]
        for name, levels in content["sets"].items()
        for level, row in levels.items()
    ]
    head = ["set", "of", "count", "unsafe", "AP", "AUROC", "F1", "recall", "FPR", "ECE"]
    head += ["span F1", "unverified"]
    labels = [[name, *row.values()] for name, row in content["labels"].items()]
    safe = [[name, *row.values()] for name, row in content["ordinary"].items()]
    watch, one = content["time"]["batched"], content["time"]["single"] or {}
    return [
        ("Unsafe against safe", report.table(head, rows)),
        (
            "CMD labels, authored texts",
            report.table(["label", "texts", "accuracy", "macro F1", "AP", "AUROC", "ECE"], labels),
        ),
        (
            "Safe text",
            report.table(
                ["set", "texts", "flagged", "segments", "segments flagged", "unverified"], safe
            ),
        ),
        (
            "Time",
            report.table(
                ["", "ms"],
                [
                    ["a segment, in batches", watch["ms_per_segment"]],
                    ["a segment, within the engine", watch["engine_ms_per_segment"]],
                    ["one text alone, median", one.get("median_ms")],
                    ["one text alone, 95th percentile", one.get("p95_ms")],
                ],
            ),
        ),
    ]


def run(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Measure all sets.

    Raises:
        GuardError: the policy makes no sense, or the engine failed.
    """
    policy = report.policy(args)
    guard = Guard(runtime, policy=policy)
    judge = Judge(runtime, policy, args.batch)
    files: list[Path] = []

    def measure(one: Cases) -> tuple[list[Case], list[Judged]]:
        files.extend(one.files)
        cases = report.sample(one.cases, args.limit, args.seed)
        drafts = judge.drafts([case.text for case in cases], one.name)
        found = [judged(*each) for each in zip(cases, drafts, strict=True)]
        if args.outputs:
            kind = "" if any(case.unsafe for case in cases) else "_safe"
            write_outputs(args.outputs / f"{one.name}{kind}.jsonl", cases, found)
        return cases, found

    content: dict[str, Any] = {"sets": {}, "labels": {}, "ordinary": {}}
    content |= {"reliability": {}, "curves": {}}
    wanted = args.sets.split(",") if args.sets else None
    singles: list[str] = []
    for one in sets.detection(args.data, args.authored, args.split):
        if wanted and one.name not in wanted:
            continue
        cases, found = measure(one)
        content["sets"][one.name] = {"texts": text_level(cases, found, args.seed)}
        truth = np.array([case.unsafe for case in cases])
        scores = np.array([said.score for said in found])
        content["reliability"][one.name] = metrics.reliability(truth, scores)
        if curve := metrics.precision_recall(truth, scores):
            content["curves"][one.name] = curve
        if one.name == "authored":
            singles = [case.text for case in cases[:SINGLES]]
            content["sets"][one.name]["segments"] = segment_level(cases, found, args.seed)
            content["labels"] = label_level(cases, found, args.seed)
    for one in sets.ordinary(args.data, args.authored, args.split):
        if wanted and one.name not in wanted:
            continue
        content["ordinary"][one.name] = restraint(measure(one)[1], args.seed)
    content["time"] = {
        "batched": judge.watch.figures(),
        "single": single_calls(guard, singles) if singles else None,
    }
    return {"header": report.header(args, "detection", guard.info(), files), **content}


def write_outputs(path: Path, cases: Sequence[Case], found: Sequence[Judged]) -> None:
    """Each text with its truth and verdict, for reading by hand; never part of a result."""
    rows = [
        {
            "text": case.text[case.start :],
            "unsafe": case.unsafe,
            "score": said.score,
            "flagged": said.flagged,
            "spans": [case.text[start:end] for start, end in said.spans],
            "marked": [case.text[start:end] for start, end in case.spans or ()],
        }
        for case, said in zip(cases, found, strict=True)
    ]
    write_lines(path, rows)


def parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    made = report.arguments(__doc__, "detection")
    made.add_argument("--sets", help="sets to measure, with commas between (default: all)")
    made.add_argument("--outputs", type=Path, help="folder for all verdicts, to be read by hand")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        content = run(args, report.runtime(args))
    except (GuardError, OSError) as error:
        print(f"benchmarks.detection: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
