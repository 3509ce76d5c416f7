"""Whether an exported model decides as its bundle does, in each precision.

    python -m benchmarks.parity --limit 60 --exports DIR

Authored records of the split, safe and unsafe, are moderated by the torch engine in float32 and
by ONNX Runtime. Of each precision: how many texts get another action, how many are released
otherwise, how far scores move, and how often the next token is another one after the same tokens.
What DIR lacks is exported into it first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import report, sets
from srllm_guard import Guard
from srllm_guard.engines.base import Continuation, Request
from srllm_guard.errors import GuardError
from srllm_guard.export import export
from srllm_guard.export.parity import flipped
from srllm_guard.models.exported import PRECISIONS, is_exported
from srllm_guard.prompt import rewrite_request
from srllm_guard.results import Detection, Moderation
from srllm_guard.runtime import Runtime, load
from srllm_guard.text.segments import Segment


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one runtime made of one text."""

    moderation: Moderation
    written: Continuation | None
    """The rewrite of its unsafe phrases; None where the measure found none."""


@dataclass(slots=True)
class Tally:
    """What was counted for one precision."""

    actions: int = 0
    texts: int = 0
    released: int = 0
    scores: list[float] = field(default_factory=list)
    flips: int = 0
    tokens: int = 0
    ms: float = 0.0

    def add(self, measure: Outcome, other: Outcome) -> None:
        """Compare two outcomes of one text."""
        one, two = measure.moderation, other.moderation
        self.texts += 1
        self.actions += one.action != two.action
        self.released += one.text != two.text
        self.scores.append(abs(one.before.score - two.before.score))
        if measure.written and other.written:
            tokens, flip = flipped(measure.written.ids, other.written.ids)
            self.tokens += tokens
            self.flips += flip

    def told(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "texts": self.texts,
            "actions_changed": self.actions,
            "released_otherwise": self.released,
            "score_difference_max": round(max(self.scores), 4),
            "score_difference_median": round(statistics.median(self.scores), 4),
            "tokens_flipped": self.flips,
            "tokens": self.tokens,
            "flip_rate": round(self.flips / max(1, self.tokens), 5),
            "ms_per_text": round(self.ms / self.texts, 1),
        }


def request(runtime: Runtime, text: str, found: Detection) -> Request | None:
    """What asks for a rewrite of the unsafe phrases of a whole text."""
    marks = [(span.start, span.end) for span in found.spans]
    if not marks:
        return None
    return rewrite_request(runtime.prompt, text, Segment(0, len(text), "prose", 0), marks)


def outcome(guard: Guard, text: str, asked: Request | None) -> Outcome:
    """Moderate one text, and answer one request."""
    written = guard.runtime.engine.generate([asked])[0] if asked else None
    return Outcome(guard.moderate(text), written)


def compare(
    measure: Guard, others: Mapping[str, Guard], texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Figures of each of `others` against `measure`."""
    tallies = {name: Tally() for name in others}
    for text in tqdm(texts, desc="parity", unit="text"):
        asked = request(measure.runtime, text, measure.detect(text))
        right = outcome(measure, text, asked)
        for name, guard in others.items():
            start = time.process_time()
            found = outcome(guard, text, asked)
            tallies[name].ms += (time.process_time() - start) * 1e3
            tallies[name].add(right, found)
    return {name: tally.told() for name, tally in tallies.items()}


def opened(args: argparse.Namespace, precision: str) -> Guard:
    """A guard on the export of a precision, which is made where it is not there.

    Raises:
        GuardError: it cannot be made or loaded.
    """
    folder = args.exports / precision
    if not is_exported(folder):
        export(folder, precision=precision, model=args.model, base=args.base)
    return Guard(load(folder, device=args.device))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load all models and compare them.

    Raises:
        GuardError: a model is missing, or an export is refused.
    """
    source = next(sets.detection(args.authored, args.authored, args.split))
    texts = [case.text for case in report.sample(source.cases, args.limit, args.seed)]
    measure = Guard(
        load(args.model, base=args.base, device="cpu", engine="torch", precision="fp32")
    )
    others = {name: opened(args, name) for name in args.precision or PRECISIONS}
    return {
        "header": report.header(args, "parity", measure.info(), source.files),
        "precisions": compare(measure, others, texts),
    }


def tables(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the Markdown shows."""
    rows = [
        [
            name,
            f"{row['actions_changed']} of {row['texts']}",
            f"{row['released_otherwise']} of {row['texts']}",
            f"{row['score_difference_median']:.4f}",
            f"{row['score_difference_max']:.4f}",
            f"{row['tokens_flipped']} of {row['tokens']} ({row['flip_rate']:.2%})",
            f"{row['ms_per_text']:.0f}",
        ]
        for name, row in content["precisions"].items()
    ]
    heads = (
        "precision",
        "other action",
        "other text released",
        "score, median difference",
        "largest",
        "next token is another",
        "CPU ms a text",
    )
    return [("ONNX Runtime against torch in fp32", report.table(heads, rows))]


def parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--authored", type=Path, default=Path("train/data"), help="CMD records")
    made.add_argument("--split", choices=("dev", "test"), default="dev")
    made.add_argument("--exports", type=Path, required=True, help="folder with one per precision")
    made.add_argument("--model", help="folder or Hub id of a bundle (default: the one shipped)")
    made.add_argument("--base", help="folder of the base weights (default: found)")
    made.add_argument("--device", default="cpu", help="of ONNX Runtime: cpu or cuda (fp16)")
    made.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="may be given again (default: all)"
    )
    made.add_argument("--limit", type=int, help="most texts (default: all)")
    made.add_argument("--seed", type=int, default=0, help="of the sample")
    made.add_argument("--out", type=Path, default=report.RESULTS / "parity.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    args = parser().parse_args(argv)
    try:
        content = run(args)
    except GuardError as error:
        print(error, file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content), note=""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
