"""Prompting against tuning, the paper's table 8: the base with examples, the adapter, the guard.

    python -m benchmarks.prompting --data DATA --limit 40 --out benchmarks/results/prompting.json

Sources are unsafe authored records of the split. The base is prompted with 0, 2 and 5 examples; the
adapter alone rewrites, once and unverified, the segments in which the detector found spans; the
guard does all it does. The adapter and the guard have seen the training split, from which the
examples come too.

Where the paper has a moderation score and knowledge retention by a large model, here are judges
that training never saw, and facts kept, similarity and chrF for the reference. What the guard's own
detector says of the outputs stands beside them. It is not independent: the guard releases a
rewrite when this very detector is content, so its share says nothing for the guard, only something
about the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks import metrics, report, sets
from benchmarks.judges import MissingJudge, judges
from benchmarks.judges import files as judge_files
from benchmarks.language_model import LanguageModel, Turn
from benchmarks.prompts import SYSTEM, prompted, shots
from benchmarks.raw import rewritten
from benchmarks.report import measured
from benchmarks.sets import Pair
from benchmarks.systems import System, moderate
from benchmarks.yardstick import Yardstick
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.runtime import Runtime

SHOTS = (0, 2, 5)
"""Examples in the prompt, as in the paper."""

PAPER = {
    "zero-shot": {"moderation": 21.14, "retention": 64.32},
    "2-shot": {"moderation": 13.05, "retention": 72.25},
    "5-shot": {"moderation": 12.54, "retention": 73.89},
    "SR-LLM": {"moderation": 5.92, "retention": 88.94},
}
"""Llama-2-7B in Raza et al. (2024), table 8, in per cent."""

RETENTION = {
    "facts_kept": "facts kept",
    "similarity": "similarity",
    "negation_flipped": "negation flipped",
    "chrf": "chrf",
    "length_ratio": "length ratio",
    "perplexity_ratio": "perplexity ratio",
    "phrases_gone": "every biased phrase gone",
    "changed_gone_kept": "and changed, and facts and names kept",
}
"""Figures of the yardstick in the table of retention, with their heads."""


def drawn(args: argparse.Namespace) -> dict[int, list[Turn]]:
    """The examples of each prompt; a longer list begins with a shorter one.

    Raises:
        ValueError: the training split has too few kinds of records for them.
    """
    found = {count: shots(args.authored, count, args.seed) for count in SHOTS}
    for count, examples in found.items():
        if len(examples) < count:
            raise ValueError(
                f"{args.authored} gives {len(examples)} examples, and {count} are needed: short "
                "unsafe records of the training split, each of another kind"
            )
    return found


def systems(
    guard: Guard,
    base: LanguageModel,
    pairs: Sequence[Pair],
    examples: Mapping[int, Sequence[Turn]],
    batch: int,
) -> Iterator[System]:
    """What is compared, each with an output for every source."""
    texts = [pair.text for pair in pairs]
    for count, turns in examples.items():
        name = f"base, {count}-shot"
        yield System.of(name, prompted(base, turns, texts, name))
    results, _ = moderate(guard, texts, batch, "guard")
    spans = [[(span.start, span.end) for span in result.before.spans] for result in results]
    yield System.of("adapter alone", rewritten(guard.runtime, texts, spans, batch))
    yield System.guard("guard", results)


def detected(guard: Guard, texts: Sequence[str], batch: int, seed: int) -> dict[str, Any]:
    """Share of texts that the guard's detector calls unsafe, and that its language gate leaves."""
    found = [
        said
        for start in tqdm(range(0, len(texts), batch), desc="detector", unit="batch")
        for said in guard.detect_many(texts[start : start + batch])
    ]
    return {
        "unsafe": measured(metrics.share, [said.unsafe for said in found], seed=seed),
        "unverified": metrics.share([not said.verified for said in found]),
    }


def run(args: argparse.Namespace, runtime: Runtime, base: LanguageModel) -> dict[str, Any]:
    """Measure the systems on the authored unsafe texts.

    Raises:
        GuardError: the policy makes no sense, or the engine failed.
        MissingJudge: the package of a judge is not installed.
        ValueError: too few records for the examples.
    """
    examples = drawn(args)
    known = judges(args.data)
    yardstick = Yardstick(known, base, args.seed)
    guard = Guard(runtime, policy=report.policy(args))
    one = sets.rewriting("authored", args.data, args.authored, args.split)
    files = [*one.files, *judge_files(args.data)]
    pairs = report.sample(one.pairs, args.limit, args.seed)
    sources = [pair.text for pair in pairs]
    content: dict[str, Any] = {
        "header": report.header(args, "prompting", guard.info(), files),
        "policy": guard.policy.to_dict(),
        "instruction": SYSTEM,
        "judges": {judge.name: getattr(judge, "figures", None) for judge in known},
        "detector_before": detected(guard, sources, args.batch, args.seed),
        "systems": {},
        "paper": PAPER,
    }
    for system in systems(guard, base, pairs, examples, args.batch):
        outputs = [system.outputs[number] for number in range(len(pairs))]
        content["systems"][system.name] = {
            **yardstick.figures(pairs, system),
            "detector_after": detected(guard, outputs, args.batch, args.seed),
        }
    return content


def tables(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result as Markdown tables with their titles."""
    names, made = list(content["judges"]), content["systems"].items()
    own = content["detector_before"]
    first = next(iter(content["systems"].values()))
    before = (first["unsafe"][name]["before"] for name in names)
    safety = [["source", first["texts"], None, *before, own["unsafe"], own["unverified"]]]
    for name, row in made:
        after = (row["unsafe"][judge]["after"] for judge in names)
        own = row["detector_after"]
        safety.append(
            [name, row["texts"], row["unchanged"], *after, own["unsafe"], own["unverified"]]
        )
    head = ["system", "texts", "unchanged", *(f"unsafe by {name}" for name in names)]
    head += ["unsafe by the guard's own detector (not independent)", "left unjudged by it"]
    kept = [[name, *(row[key] for key in RETENTION)] for name, row in made]
    paper = [[name, f"{r['moderation']:.2f}", f"{r['retention']:.2f}"] for name, r in PAPER.items()]
    return [
        ("Safety: share that is unsafe afterwards", report.table(head, safety)),
        (
            "Retention and fluency",
            report.table(["system", *RETENTION.values()], kept),
        ),
        (
            "The paper, Llama-2-7B, by other judges on other texts: the order compares, no figure",
            report.table(["system", "unsafe, %", "knowledge retention, %"], paper),
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = report.arguments(__doc__, "prompting").parse_args(argv)
    try:
        content = run(args, report.runtime(args), report.base(args))
    except (GuardError, MissingJudge, OSError, ValueError) as error:
        print(f"benchmarks.prompting: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
