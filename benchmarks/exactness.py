"""Whether our engine says what transformers says, and how far other precisions are from it.

    python -m benchmarks.exactness --limit 300

Unsafe authored records of the split; each segment with gold marks is rewritten once, greedily, by
`transformers.generate` on the merged model and by the torch engine. In float32 on a CPU the ids
must be the same. Then the engine reads the ids that transformers wrote: how often another id is the
likeliest, and how far logits differ. Last the segment is judged: how far its score moves, and
whether it crosses the threshold. Other precisions do the same with the first of the segments.

Milliseconds are CPU time, with one thread, all systems in turn on each text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import report, sets
from benchmarks.raw import marked
from benchmarks.sets import Pair
from srllm_guard import Guard
from srllm_guard.engines.base import Ids, Request, Window
from srllm_guard.engines.llama import Llama
from srllm_guard.engines.loading import load_model
from srllm_guard.engines.torch import TorchEngine
from srllm_guard.errors import GuardError
from srllm_guard.labels import UNSAFE
from srllm_guard.models.bundle import Calibration
from srllm_guard.models.store import find_base, find_bundle
from srllm_guard.prompt import Prompt, rewrite_request
from srllm_guard.runtime import Runtime, load
from train.example import occurrences

T = TypeVar("T")
FIRST = "fp32"
"""What other precisions are compared with."""
DEFAULT = (FIRST, "fp16", "bf16", "int8")
"""Precisions."""
THEIRS = "transformers.generate"
TOKENS = 64
"""Of the windows that detection is timed with."""


@dataclass(frozen=True, slots=True)
class Case:
    """One segment: to be rewritten, and to be judged."""

    request: Request
    window: Window


@dataclass(slots=True)
class Tally:
    """What was counted for one precision."""

    identical: list[bool] = field(default_factory=list)
    """For each text whether the ids are those of transformers."""
    flipped: int = 0
    places: int = 0
    """Places where the likeliest id was compared."""
    logits: list[float] = field(default_factory=list)
    """Largest difference of a logit, for each text."""
    scores: list[float] = field(default_factory=list)
    """Difference of the score of each segment."""
    crossed: int = 0
    """Segments on the other side of the threshold."""
    rewrite_ms: list[float] = field(default_factory=list)
    theirs_ms: list[float] = field(default_factory=list)
    """Of transformers, on the same texts."""
    detect_ms: list[float] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "identical": sum(self.identical),
            "texts": len(self.identical),
            "flipped": self.flipped,
            "places": self.places,
            "flip_rate": round(self.flipped / max(1, self.places), 5),
            "logit_difference_max": round(max(self.logits), 6),
            "logit_difference_median": round(statistics.median(self.logits), 6),
            "score_difference_max": round(max(self.scores), 4),
            "score_difference_median": round(statistics.median(self.scores), 4),
            "decisions_changed": self.crossed,
            "rewrite_ms": round(statistics.median(self.rewrite_ms), 1),
            "transformers_ms": round(statistics.median(self.theirs_ms), 1),
            f"detect_{TOKENS}_ms": round(statistics.median(self.detect_ms), 1),
        }


def cases(prompt: Prompt, pairs: Sequence[Pair]) -> Iterator[Case]:
    """The marked segments of texts."""
    for pair in pairs:
        found = occurrences(pair.text, pair.phrases, "bias")
        ranges = [(start, end) for start, end, _ in found]
        for segment, marks in marked(pair.text, ranges):
            source = pair.text[segment.start : segment.end]
            request = rewrite_request(prompt, pair.text, segment, marks)
            yield Case(request, prompt.window(source, [(0, len(source))])[0])


def written(model: Any, request: Request) -> tuple[Ids, Tensor]:
    """Greedy ids of `transformers.generate` without the stop id, and the logits `[T, V]` of each.

    No code of ours has a part in it.
    """
    ids = torch.tensor([request.prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.limit,
        do_sample=False,
        eos_token_id=sorted(request.stop),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = found.sequences[0, len(request.prompt) :].tolist()
    logits = torch.cat(found.logits)  # [T, V], that of the stop id included
    return tuple(new[:-1] if new[-1] in request.stop else new), logits


def read(engine: TorchEngine, ids: Ids, first: int) -> Tensor:
    """Logits `[T - first, V]` behind `ids` from place `first` on."""
    model: Llama = engine._model  # noqa: SLF001
    cache = model.new_cache(1, len(ids))
    positions = torch.arange(len(ids)).unsqueeze(0)
    hidden = model.forward(torch.tensor([ids]), positions, cache, len(ids))
    return model.logits(hidden[0, first:])


def score(calibration: Calibration, engine: TorchEngine, window: Window) -> float:
    """Calibrated probability that the first segment of a window is unsafe."""
    logit = float(engine.detect([window])[0].labels[0, UNSAFE])
    return float(1 / (1 + np.exp(-(calibration.scale * logit + calibration.shift))))


def full(prompt: Prompt, found: Sequence[Case]) -> list[Window]:
    """Windows of `TOKENS` tokens of the same texts, one after another."""
    stream = [index for case in found for index in case.request.draft]
    size = TOKENS - len(prompt.opening)
    none = (-1,) * len(prompt.opening)
    return [
        Window((*prompt.opening, *stream[at : at + size]), (*none, *(0,) * size), 1)
        for at in range(0, len(stream) - size + 1, size)
    ]


def timed(spent: list[float], work: Callable[[], T]) -> T:
    """The result of `work`; its CPU time is added to `spent`, in ms."""
    start = time.process_time()
    found = work()
    spent.append((time.process_time() - start) * 1e3)
    return found


def compare(
    model: Any,
    engines: Mapping[str, TorchEngine],
    others: int,
    found: Sequence[Case],
    windows: Sequence[Window],
    judge: Callable[[TorchEngine, Window], float],
    threshold: float,
) -> dict[str, Any]:
    """Figures of transformers and of each engine.

    Args:
        model: the merged model of transformers.
        engines: by precision; the first is the measure of the scores of the others.
        others: segments that all but the first engine are compared on.
        found: the segments.
        windows: see `full`.
        judge: gives the score of a segment.
        threshold: from which score on it is unsafe.
    """
    tallies = {name: Tally() for name in engines}
    theirs_ms: list[float] = []
    for number, case in enumerate(tqdm(found, desc="exactness", unit="segment")):
        expected, truth = timed(theirs_ms, partial(written, model, case.request))
        ids, first = (*case.request.prompt, *expected), len(case.request.prompt) - 1
        window = windows[number % len(windows)]
        measure: float | None = None
        for name, engine in list(engines.items())[: None if number < others else 1]:
            tally = tallies[name]
            tally.theirs_ms.append(theirs_ms[-1])
            [said] = timed(tally.rewrite_ms, partial(engine.generate, [case.request]))
            tally.identical.append(said.ids == expected)
            logits = read(engine, ids, first)[: len(truth)]
            tally.logits.append(float((logits - truth).abs().max()))
            tally.flipped += int((logits.argmax(-1) != truth.argmax(-1)).sum())
            tally.places += len(truth)
            value = judge(engine, case.window)
            measure = value if measure is None else measure
            tally.scores.append(abs(value - measure))
            tally.crossed += (value >= threshold) != (measure >= threshold)
            timed(tally.detect_ms, partial(engine.detect, [window]))
    return {
        "transformers": {"rewrite_ms": round(statistics.median(theirs_ms), 1)},
        "precisions": {name: each.told() for name, each in tallies.items() if each.identical},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load all systems and compare them.

    Raises:
        GuardError: a model is missing, or a precision is not there.
        ValueError: the texts have no marks.
    """
    torch.set_num_threads(1)
    names = list(dict.fromkeys((FIRST, *(args.precision or DEFAULT))))
    runtimes: dict[str, Runtime] = {
        name: load(args.model, base=args.base, device="cpu", engine="torch", precision=name)
        for name in names
    }
    engines = {name: each.engine for name, each in runtimes.items()}
    bundle = find_bundle(args.model)
    base = find_base(bundle.manifest.base, args.base)
    model = load_model(bundle, base, torch.device("cpu"), False)
    source = sets.rewriting("authored", args.authored, args.authored, args.split)
    drawn = report.sample(source.pairs, None, args.seed)
    runtime = runtimes[FIRST]
    found = list(cases(runtime.prompt, drawn))
    windows = full(runtime.prompt, found)
    if not windows:
        raise ValueError(f"{args.authored} has too few texts with marks in the split {args.split}")
    guard = Guard(runtime)
    with torch.inference_mode():
        figures = compare(
            model,
            {name: each for name, each in engines.items() if isinstance(each, TorchEngine)},
            args.others,
            found[: args.limit],
            windows,
            partial(score, runtime.calibration),
            guard.info()["threshold"],
        )
    return {"header": report.header(args, "exactness", guard.info(), source.files), **figures}


def tables(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the Markdown shows."""
    found = content["precisions"]
    theirs = content["transformers"]["rewrite_ms"]
    near = [
        [
            name,
            f"{row['identical']} of {row['texts']}",
            f"{row['flipped']} of {row['places']}",
            f"{row['flip_rate']:.2%}",
            f"{row['logit_difference_median']:.5f}",
            f"{row['logit_difference_max']:.5f}",
        ]
        for name, row in found.items()
    ]
    judged = [
        [
            name,
            f"{row['score_difference_median']:.4f}",
            f"{row['score_difference_max']:.4f}",
            f"{row['decisions_changed']} of {row['texts']}",
        ]
        for name, row in found.items()
    ]
    spent = [[THEIRS, f"{theirs:.0f}", "1.0", "-"]]
    spent += [
        [
            name,
            f"{row['rewrite_ms']:.0f}",
            f"{row['transformers_ms'] / row['rewrite_ms']:.1f}",
            f"{row[f'detect_{TOKENS}_ms']:.0f}",
        ]
        for name, row in found.items()
    ]
    heads = (
        "texts identical",
        "likeliest id is another",
        "share",
        "logits, median of the largest difference",
        "largest",
    )
    return [
        ("Text, against transformers", report.table(["precision", *heads], near)),
        (
            f"Scores, against {FIRST}",
            report.table(["precision", "median difference", "largest", "decisions"], judged),
        ),
        (
            "Milliseconds of one core",
            report.table(
                ["", "rewrite of a segment", "times faster", f"detection, {TOKENS} tokens"], spent
            ),
        ),
    ]


def parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--authored", type=Path, default=Path("train/data"), help="CMD records")
    made.add_argument("--split", choices=("dev", "test"), default="dev")
    made.add_argument("--model", help="folder or Hub id of a bundle (default: the one shipped)")
    made.add_argument("--base", help="folder of the base weights (default: found)")
    made.add_argument(
        "--precision", action="append", help=f"may be given again (default: {', '.join(DEFAULT)})"
    )
    made.add_argument("--limit", type=int, default=300, help="most segments")
    made.add_argument("--others", type=int, default=100, help="of them for other precisions")
    made.add_argument("--seed", type=int, default=0, help="of the sample")
    made.add_argument("--out", type=Path, default=report.RESULTS / "exactness.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; 1 if float32 is not what transformers says."""
    args = parser().parse_args(argv)
    try:
        content = run(args)
    except (GuardError, OSError, ValueError) as error:
        print(f"benchmarks.exactness: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content), "CPU time of one thread."))
    first = content["precisions"][FIRST]
    return int(first["identical"] < first["texts"])


if __name__ == "__main__":
    sys.exit(main())
