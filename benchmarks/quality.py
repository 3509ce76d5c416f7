"""What the guard makes of unsafe text: is it safe now, and does it still say what it said?

    python -m benchmarks.quality --data DATA --sets paradetox,appdia,sr_bias,authored \
        --limit 100 --out benchmarks/results/quality.json

Outputs of other systems stand beside it with `--column NAME=FILE`, JSON Lines of `text` (the
source) and `output`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import metrics, report, sets
from benchmarks.judges import Embedder, MissingJudge, Profanity
from benchmarks.report import measured
from benchmarks.sets import Pair
from benchmarks.systems import System, column, compared, ladder, moderate
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.results import Moderation
from srllm_guard.runtime import Runtime

EXAMPLES = "examples.md"

WARNING = """\
Unsafe records that we wrote ourselves, drawn by the seed: nobody chose among them, and nothing is
masked. They are offensive. Each shows the source, what was done and why, and what was released.
"""


class Yardstick:
    """Measures systems on one set; each text is judged and embedded once."""

    def __init__(self, seed: int) -> None:
        self._profanity = Profanity()
        self._embedder = Embedder()
        self._seed = seed
        self._unsafe: dict[str, bool] = {}
        self._vectors: dict[str, Any] = {}

    def figures(self, pairs: Sequence[Pair], system: System) -> dict[str, Any]:
        """Figures of a system on the sources that it has an output for."""
        numbers = sorted(system.outputs)
        sources = [pairs[n].text for n in numbers]
        outputs = [system.outputs[n] for n in numbers]
        self._read([*sources, *outputs])
        rows = list(zip((pairs[n] for n in numbers), outputs, strict=True))
        facts = [metrics.kept_facts(pair.text, output) for pair, output in rows]
        gone = [metrics.phrases_gone(out, pair.phrases) for pair, out in rows if pair.phrases]
        near = [
            float(self._vectors[a] @ self._vectors[b])
            for a, b in zip(sources, outputs, strict=True)
        ]
        # A reference measured against itself says nothing.
        chrf = (
            []
            if system.name == "reference"
            else [metrics.chrf(output, pair.references) for pair, output in rows]
        )
        kept, total = zip(*facts, strict=True) if facts else ((), ())
        return {
            "texts": len(rows),
            "unsafe_before": self._share([self._unsafe[text] for text in sources]),
            "unsafe_after": self._share([self._unsafe[text] for text in outputs]),
            "chrf": self._share(chrf),
            "similarity": self._share(near),
            "unchanged": self._share([pair.text == output for pair, output in rows]),
            "facts": int(sum(total)),
            "facts_kept": measured(_recall, kept, total, seed=self._seed),
            "phrases_gone": self._share(gone),
        }

    def _share(self, values: Sequence[bool] | Sequence[float]) -> dict[str, Any] | None:
        return measured(metrics.share, values, seed=self._seed)

    def _read(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._unsafe |= zip(new, self._profanity.unsafe(new).tolist(), strict=True)
        self._vectors |= zip(new, self._embedder.embed(new), strict=True)


def _recall(kept: Any, total: Any) -> float | None:
    return float(kept.sum() / total.sum()) if total.sum() else None


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


def tables(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The result as Markdown tables with their titles."""
    columns = [
        "texts",
        "unsafe_before",
        "unsafe_after",
        "chrf",
        "similarity",
        "unchanged",
        "facts_kept",
        "phrases_gone",
    ]
    head = ["system", *(name.replace("_", " ") for name in columns)]
    made, outcomes = [], []
    for name, one in content["sets"].items():
        rows = [[system, *(row[c] for c in columns)] for system, row in one["systems"].items()]
        made.append((name, report.table(head, rows)))
        steps, time = one["ladder"], one["time"]
        outcomes.append(
            [
                name,
                steps["texts"],
                steps["flagged"],
                *steps["of_flagged"].values(),
                ", ".join(f"{key} {count}" for key, count in steps["result_of"].items()),
                time["detect_ms_per_segment"],
                time["rewrite_ms_per_flagged_segment"],
                time["ladder_ms_per_flagged_segment"],
            ]
        )
    title = ["set", "texts", "flagged", "rewritten", "masked", "blocked", "edits by"]
    times = ["detection, ms a segment", "rewriting, ms a flagged segment", "whole ladder, ms"]
    refused = [
        [name, reason, count]
        for name, one in content["sets"].items()
        for reason, count in one["ladder"]["refused"].items()
    ]
    return [
        ("What became of the texts", report.table([*title, *times], outcomes)),
        *made,
        ("Why attempts were refused", report.table(["set", "reason", "edits"], refused)),
    ]


def run(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Measure the sets that were asked for, and write the examples.

    Raises:
        GuardError: the policy makes no sense.
        MissingJudge: the package of a judge is not installed.
        ValueError: an unknown set, or a column that cannot be read.
        FileNotFoundError: a set is not in the data folder.
    """
    yardstick = Yardstick(args.seed)
    found = [sets.rewriting(n, args.data, args.authored, args.split) for n in args.sets.split(",")]
    policy = report.policy(args)
    guard = Guard(runtime, policy=policy)
    files = [path for one in found for path in one.files]
    content: dict[str, Any] = {
        "header": report.header(args, "quality", guard.info(), files),
        "chrf": metrics.chrf_signature(),
        "policy": policy.to_dict(),
        "sets": {},
    }
    for one in found:
        pairs = report.sample(one.pairs, args.limit, args.seed)
        results, watch = moderate(guard, [pair.text for pair in pairs], args.batch, one.name)
        systems = compared(pairs, results)
        systems += [column(option, pairs) for option in args.column]
        content["sets"][one.name] = {
            "systems": {s.name: yardstick.figures(pairs, s) for s in systems if s.outputs},
            "ladder": ladder(results, args.seed),
            "time": watch.figures(),
        }
    if args.examples:
        own = sets.rewriting("authored", args.data, args.authored, "dev").pairs
        drawn = report.sample(own, args.examples, args.seed)
        shown, _ = moderate(guard, [pair.text for pair in drawn], args.batch, "examples")
        text = examples(list(zip(drawn, shown, strict=True)), content["header"]["command"])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        (args.out.parent / EXAMPLES).write_text(text, encoding="utf-8")
    return content


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
        "--examples", type=int, default=0, help=f"moderations to write into {EXAMPLES}"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        content = run(args, report.runtime(args))
    except (GuardError, MissingJudge, OSError, ValueError) as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 1
    print(report.write(Path(args.out), content, tables(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
