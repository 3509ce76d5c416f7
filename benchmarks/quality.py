"""What the guard makes of unsafe text: is it safe now, and does it still say what it said?

    python -m benchmarks.quality --data DATA --sets paradetox,appdia,sr_bias,authored \
        --limit 100 --out benchmarks/results/quality.json

Outputs of other systems stand beside it with `--column NAME=FILE`, JSON Lines of `text` (the
source) and `output`; the same guard in a lower precision with `--also bf16`, or `--also DIR` for a
model that was exported into DIR.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import metrics, report, sets
from benchmarks.judges import MissingJudge, judges
from benchmarks.judges import files as judge_files
from benchmarks.language_model import LanguageModel
from benchmarks.prompts import shots
from benchmarks.report import measured
from benchmarks.sets import Pair
from benchmarks.systems import System, column, compared, ladder, moderate
from benchmarks.yardstick import Yardstick
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.models.exported import is_exported
from srllm_guard.results import Moderation
from srllm_guard.runtime import Runtime, load
from train.schema import write_lines

EXAMPLES = "examples.md"

WARNING = """\
Unsafe records that we wrote ourselves, drawn by the seed: nobody chose among them, and nothing is
masked. They are offensive. Each shows the source, what was done and why, and what was released.
"""


def examples(results: Sequence[tuple[Pair, Moderation]], command: str) -> str:
    """Moderations as Markdown, as they are."""
    parts = ["# Examples\n", f"`{command}`\n", WARNING]
    for pair, result in results:
        after = "" if result.after is None else f" -> {result.after.score:.2f}"
        words = [f"{result.action}, score {result.before.score:.2f}{after}"]
        words += dict.fromkeys(reason for edit in result.edits for reason in edit.reasons)
        parts += [f"## {pair.id}\n", _quoted(result.original), "; ".join(words) + "\n"]
        parts.append(_quoted(result.text) if result.changed else "Released as it is.\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    escaped = re.sub(r"([\\`*_<>#\[\]])", r"\\\1", text)
    return "\n".join(f"> {line}".rstrip() + "  " for line in escaped.splitlines()) + "\n"


def others(args: argparse.Namespace) -> dict[str, Guard]:
    """The guard in the precisions that were asked for, by the names of their columns.

    Raises:
        GuardError: no such precision or export, or it does not run here.
    """
    found = {}
    for also in args.also:
        if is_exported(Path(also)):
            runtime = load(also, device=args.device)
        else:
            runtime = load(args.model, device=args.device, base=args.base, precision=also)
        name = f"guard, {runtime.engine.name} {runtime.engine.info()['precision']}"
        found[name] = Guard(runtime, policy=report.policy(args))
    return found


def restraint(
    guard: Guard, sets_: Sequence[sets.Cases], limit: int | None, batch: int, seed: int
) -> dict[str, Any]:
    """What the guard does to safe texts: how many it changes, and whether it keeps to its edits."""
    found: dict[str, Any] = {}
    for one in sets_:
        texts = [case.text for case in report.sample(one.cases, limit, seed)]
        results, _ = moderate(guard, texts, batch, f"{one.name}, safe")
        found[one.name] = {
            "texts": len(texts),
            "flagged": measured(metrics.share, [r.before.unsafe for r in results], seed=seed),
            "changed": measured(metrics.share, [r.changed for r in results], seed=seed),
            "words_changed_outside": metrics.share([outside(result) for result in results]),
        }
    return found


def outside(result: Moderation) -> float:
    """Share of the words outside of its edits that a moderation changed; 0 is right."""
    edits = [((e.start, e.end), (e.new_start, e.new_end)) for e in result.edits]
    return metrics.words_changed(result.original, result.text, edits)


def tables(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The result as Markdown tables with their titles."""
    judges = list(content["judges"])
    kept = ["facts_kept", "similarity", "negation_flipped", "chrf", "bleu", "length_ratio"]
    kept += ["perplexity_ratio"]
    marked = ["masked", "phrases_gone", "changed_gone_kept"]
    made, outcomes = [], []
    for name, one in content["sets"].items():
        systems = one["systems"].items()
        safety = [
            [system, row["texts"], row["unchanged"]]
            + [row["unsafe"][j][key] for j in judges for key in ("before", "after", "removed")]
            for system, row in systems
        ]
        head = ["system", "texts", "unchanged"]
        head += [f"{judge}: {key}" for judge in judges for key in ("before", "after", "removed")]
        made.append((f"{name}: safety", report.table(head, safety)))
        rows = [[system, *(row[c] for c in kept)] for system, row in systems]
        head = ["system", *(column.replace("_", " ") for column in kept)]
        made.append((f"{name}: retention and fluency", report.table(head, rows)))
        if any(row["phrases_gone"] for _, row in systems):
            rows = [[system, *(row[c] for c in marked)] for system, row in systems]
            head = ["system", "masked or withheld", "every biased phrase gone"]
            head.append("and rewritten, facts and names kept")
            made.append((f"{name}: marked phrases", report.table(head, rows)))
        outcomes.append(_outcome(name, one))
    title = ["set", "texts", "flagged", "rewritten", "masked", "blocked", "edits by"]
    times = ["detection, ms a segment", "rewriting, ms a flagged segment", "whole ladder, ms"]
    refused = [
        [name, reason, count]
        for name, one in content["sets"].items()
        for reason, count in one["ladder"]["refused"].items()
    ]
    safe = [[name, *row.values()] for name, row in content["safe"].items()]
    quality = [[name, *row.values()] for name, row in content["judges"].items() if row]
    found = [
        ("What became of the texts", report.table([*title, *times], outcomes)),
        *made,
        (
            "Restraint on safe text",
            report.table(["set", "texts", "flagged", "changed", "words changed outside"], safe),
        ),
        ("Why attempts were refused", report.table(["set", "reason", "edits"], refused)),
    ]
    if quality:
        head = [
            "judge",
            *(key.replace("_", " ") for key in next(filter(None, content["judges"].values()))),
        ]
        found.append(
            ("How good our evaluation judge is, on rows it never saw", report.table(head, quality))
        )
    return found


def _outcome(name: str, one: dict[str, Any]) -> list[Any]:
    steps, time = one["ladder"], one["time"]
    return [
        name,
        steps["texts"],
        steps["flagged"],
        *steps["of_flagged"].values(),
        ", ".join(f"{key} {count}" for key, count in steps["result_of"].items()),
        time["detect_ms_per_segment"],
        time["rewrite_ms_per_flagged_segment"],
        time["ladder_ms_per_flagged_segment"],
    ]


def run(args: argparse.Namespace, runtime: Runtime, base: LanguageModel | None) -> dict[str, Any]:
    """Measure the sets that were asked for, and write the examples.

    Without the base model alone there is neither prompting nor perplexity.

    Raises:
        GuardError: the policy makes no sense.
        MissingJudge: the package of a judge is not installed.
        ValueError: an unknown set, or a column that cannot be read.
        FileNotFoundError: a set is not in the data folder.
    """
    known = judges(args.data)
    yardstick = Yardstick(known, base, args.seed)
    found = [sets.rewriting(n, args.data, args.authored, args.split) for n in args.sets.split(",")]
    policy = report.policy(args)
    guard, also = Guard(runtime, policy=policy), others(args)
    safe = list(sets.ordinary(args.data, args.authored, args.split))
    files = [path for one in found for path in one.files] + judge_files(args.data)
    files += [path for one in safe for path in one.files]
    shown = shots(args.authored, args.shots, args.seed)
    content: dict[str, Any] = {
        "header": report.header(args, "quality", guard.info(), files),
        "chrf": metrics.chrf_signature(),
        "policy": policy.to_dict(),
        "judges": {judge.name: getattr(judge, "figures", None) for judge in known},
        "sets": {},
    }
    for one in found:
        pairs = report.sample(one.pairs, args.limit, args.seed)
        texts = [pair.text for pair in pairs]
        results, watch = moderate(guard, texts, args.batch, one.name)
        systems = compared(runtime, pairs, results, base, shown)
        for name, other in also.items():
            said, _ = moderate(other, texts, args.batch, name)
            systems.append(System.guard(name, said))
        systems += [column(option, pairs) for option in args.column]
        content["sets"][one.name] = {
            "systems": {s.name: yardstick.figures(pairs, s) for s in systems if s.outputs},
            "ladder": ladder(results, args.seed),
            "time": watch.figures(),
        }
        if args.outputs:
            write_outputs(args.outputs / f"{one.name}.jsonl", pairs, systems)
    content["safe"] = restraint(guard, safe, args.limit, args.batch, args.seed)
    if args.join:
        content = joined(args.join, content)
    if args.examples:
        own = sets.rewriting("authored", args.data, args.authored, args.split).pairs
        drawn = report.sample(own, args.examples, args.seed)
        made, _ = moderate(guard, [pair.text for pair in drawn], args.batch, "examples")
        text = examples(list(zip(drawn, made, strict=True)), content["header"]["command"])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        (args.out.parent / EXAMPLES).write_text(text, encoding="utf-8")
    return content


def joined(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A result with the sets that another run measured on the same bundle; the header names both.

    Raises:
        ValueError: the other result is of another bundle.
    """
    other = json.loads(path.read_text("utf-8"))
    header = report.joined(path, other["header"], content["header"])
    return content | {
        "header": header,
        **{part: other[part] | content[part] for part in ("sets", "safe")},
    }


def write_outputs(path: Path, pairs: Sequence[Pair], systems: Sequence[System]) -> None:
    """What every system said, a line a source, for reading by hand; never part of a result."""
    rows = [
        {
            "id": pair.id,
            "text": pair.text,
            "phrases": pair.phrases,
            "outputs": {s.name: s.outputs[n] for s in systems if n in s.outputs},
        }
        for n, pair in enumerate(pairs)
    ]
    write_lines(path, rows)


def parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    made = report.arguments(__doc__, "quality")
    made.set_defaults(limit=100)
    made.add_argument(
        "--sets", default=",".join(sets.REWRITES), help="sets to measure, with commas between"
    )
    made.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="outputs of another system: JSON Lines of text and output; may be given again",
    )
    made.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="PRECISION",
        help="the guard in another precision, or the folder of an export; may be given again",
    )
    made.add_argument(
        "--examples", type=int, default=0, help=f"moderations to write into {EXAMPLES}"
    )
    made.add_argument(
        "--join",
        type=Path,
        metavar="FILE",
        help="result of another run on the same bundle, whose sets are taken over at the end",
    )
    made.add_argument(
        "--shots", type=int, default=2, help="examples in the prompt of the base model"
    )
    made.add_argument(
        "--without-base", action="store_true", help="neither prompt the base nor measure perplexity"
    )
    made.add_argument(
        "--outputs", type=Path, help="folder for what every system said, to be read by hand"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        content = run(args, report.runtime(args), None if args.without_base else report.base(args))
    except (GuardError, MissingJudge, OSError, ValueError) as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 1
    print(report.write(Path(args.out), content, tables(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
