"""Whether detection calls a harmless text unsafe because of the people it names.

    python -m benchmarks.identity --data DATA

Four looks at it. Our own neutral sentences with one group of people after the other; the paper
authors' counterfactual set; Winogender (Rudinger et al., 2018); and ToxiGen's demonstrations
(Hartvigsen et al., 2022) by target group, as in the paper's table 6. Decisions are those of
`Guard.detect`: a text is flagged when one of its segments is. Gaps are in percentage points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics, report
from benchmarks.groups import REFERENCE, TARGETS, TEMPLATES, filled, targets, terms
from benchmarks.report import measured
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.runtime import Runtime
from train.schema import SchemaError, json_lines

if TYPE_CHECKING:  # detection may use this module
    from benchmarks.detection import Judge

ORIGINAL = "Original"
"""Column of the counterfactual set with the sentence that the variants were made from."""

SHOWN = 3
"""Most names that a table tells of those at one end of a gap."""

LEAST = 10
"""Fewest hateful and fewest neutral texts of a group that takes part in a gap."""


def gap(shares: Mapping[str, float]) -> dict[str, Any] | None:
    """The largest difference between shares, in percentage points, and whose they are.

    Returns:
        `points`, and `minimum` and `maximum`, each with its `value` and all `names` that have it;
        None of nothing.
    """
    if not shares:
        return None
    low, high = min(shares.values()), max(shares.values())

    def end(value: float) -> dict[str, Any]:
        return {
            "value": round(value, 4),
            "names": [name for name, share in shares.items() if share == value],
        }

    return {"points": round(100 * (high - low), 2), "minimum": end(low), "maximum": end(high)}


def templates(judge: Judge, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Flagged shares of neutral sentences by the group that they name; every flag is an error.

    Args:
        judge: gives the verdicts.
        limit: most templates, drawn by the seed; None takes all.
        seed: of the draw and of the bootstrap, which resamples templates.

    Returns:
        Shares of all, by kind, by term and by template, and the gaps between terms and kinds.
    """
    chosen = report.sample(TEMPLATES, limit, seed)
    known = terms()
    flags = flagged(judge, [filled(one, t) for one in chosen for t in known], "templates")
    grid = flags.reshape(len(chosen), len(known))  # [templates, terms]
    kinds = [term.kind for term in known]
    by_kind = {kind: grid[:, np.array(kinds) == kind] for kind in dict.fromkeys(kinds)}
    by_term = {term.plural: float(grid[:, n].mean()) for n, term in enumerate(known)}
    counted = {term.plural: by_term[term.plural] for term in known if term.kind != REFERENCE}
    means = {kind: float(part.mean()) for kind, part in by_kind.items() if kind != REFERENCE}
    return {
        "templates": len(chosen),
        "terms": len(known),
        "sentences": len(flags),
        "flagged": measured(metrics.share, grid, seed=seed),
        "gap_between_terms": gap(counted),
        "gap_between_kinds": gap(means),
        "by_kind": {k: measured(metrics.share, part, seed=seed) for k, part in by_kind.items()},
        "by_term": {
            term.plural: {"kind": term.kind, "flagged": round(by_term[term.plural], 4)}
            for term in known
        },
        "by_template": {
            one: round(float(row.mean()), 4) for one, row in zip(chosen, grid, strict=True)
        },
    }


def counterfactual(
    judge: Judge, path: Path, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Decisions on sentences and on the same ones about other people.

    Args:
        judge: gives the verdicts.
        path: JSON Lines of `Original` and the same further columns in every row.
        limit: most rows, drawn by the seed; None takes all.
        seed: of the draw and of the bootstrap.

    Returns:
        Flagged share of each column, the largest gap between them, and the consistency: the share
        of rows in which every variant gets the decision of the original.

    Raises:
        SchemaError: a row lacks a column, or has another one.
    """
    rows: list[dict[str, str]] = []
    for place, row in json_lines(path):
        if ORIGINAL not in row or not all(isinstance(text, str) for text in row.values()):
            raise SchemaError(f'{place}: expected "{ORIGINAL}" and other columns of text')
        if rows and row.keys() != rows[0].keys():
            raise SchemaError(f"{place}: expected the columns of the first row")
        rows.append(row)
    rows = report.sample(rows, limit, seed)
    names = [ORIGINAL, *(name for name in rows[0] if name != ORIGINAL)] if rows else []
    texts = [row[name] for row in rows for name in names]
    return _variants(flagged(judge, texts, "counterfactual"), names, seed)


def winogender(judge: Judge, path: Path, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Decisions on sentences of which only the gender of a pronoun differs.

    Args:
        judge: gives the verdicts.
        path: JSON Lines of `text` and `id`, whose last part but one is male, female or neutral.
        limit: most sentences, drawn by the seed, each with its variants; None takes all.
        seed: of the draw and of the bootstrap.

    Returns:
        As `counterfactual`.

    Raises:
        SchemaError: a sentence lacks a variant.
    """
    names = ["neutral", "female", "male"]
    found: dict[str, dict[str, str]] = {}
    for _, row in json_lines(path):
        sentence, gender, _ = row["id"].rsplit(".", 2)
        found.setdefault(sentence, {})[gender] = row["text"]
    for sentence, variants in found.items():
        if set(variants) != set(names):
            raise SchemaError(f"{path.name}: {sentence} has {sorted(variants)}, expected {names}")
    rows = report.sample(list(found.values()), limit, seed)
    texts = [row[name] for row in rows for name in names]
    return _variants(flagged(judge, texts, "winogender"), names, seed)


def toxigen_groups(
    judge: Judge, path: Path, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Recall on hateful texts and false positives on neutral ones, by the group they speak of.

    Groups are found by `TARGETS`. Texts that occur twice count once.

    Args:
        judge: gives the verdicts.
        path: JSON Lines of `text` and `label`, "hate" or "neutral".
        limit: most texts, drawn by the seed; None takes all.
        seed: of the draw and of the bootstrap.
    """
    rows = [row for _, row in json_lines(path)]
    known = {row["text"]: row["label"] == "hate" for row in rows}
    texts = report.sample(list(known), limit, seed)
    truth = np.array([known[text] for text in texts], bool)
    flags = flagged(judge, texts, "toxigen by group")
    members = [targets(text) for text in texts]

    def told(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        hate, neutral = flags[chosen & truth], flags[chosen & ~truth]
        return {
            "hate": len(hate),
            "recall": measured(metrics.share, hate, seed=seed),
            "neutral": len(neutral),
            "false_positive_rate": measured(metrics.share, neutral, seed=seed),
        }

    groups = {name: told(np.array([name in m for m in members], bool)) for name in TARGETS}
    large = {n: g for n, g in groups.items() if min(g["hate"], g["neutral"]) >= LEAST}
    return {
        "texts": len(texts),
        "repeated": len(rows) - len(known),
        "without_group": sum(not m for m in members),
        "all": told(np.ones(len(texts), bool)),
        "gap_of_recall": gap({n: g["recall"]["value"] for n, g in large.items()}),
        "gap_of_false_positive_rate": gap(
            {n: g["false_positive_rate"]["value"] for n, g in large.items()}
        ),
        "groups": groups,
    }


def flagged(judge: Judge, texts: Sequence[str], name: str) -> NDArray[np.bool_]:
    """Which texts are flagged, `[N]`; the progress bar carries `name`."""
    return np.array([any(draft.flagged) for draft in judge.drafts(texts, name)], bool)


def _variants(flags: NDArray[np.bool_], names: Sequence[str], seed: int) -> dict[str, Any]:
    """Shares and consistency of variants, from flags row after row, each in the order of names."""
    grid = flags.reshape(-1, max(1, len(names)))  # [rows, variants]
    same = grid.all(1) | ~grid.any(1)
    shares = {name: float(grid[:, n].mean()) for n, name in enumerate(names) if len(grid)}
    return {
        "rows": len(grid),
        "consistency": measured(metrics.share, same, seed=seed),
        "gap": gap(shares),
        "flagged": {n: measured(metrics.share, grid[:, k], seed=seed) for k, n in enumerate(names)},
    }


FILES: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "counterfactual": ("counterfactual.jsonl", counterfactual),
    "winogender": ("winogender.jsonl", winogender),
    "toxigen_groups": ("toxigen_demonstrations.jsonl", toxigen_groups),
}
"""Measures on files of `DATA/bench`, by the name that results have."""


def tables(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The result as Markdown tables with their titles; what was not measured has none."""
    gaps, rest = [], []
    if own := content.get("templates"):
        gaps += [["templates, terms", own["gap_between_terms"]]]
        gaps += [["templates, kinds of groups", own["gap_between_kinds"]]]
        rows = [[name, share] for name, share in own["by_kind"].items()]
        rows.append(["all sentences", own["flagged"]])
        rest.append(("Neutral sentences by kind of group", report.table(["kind", "flagged"], rows)))
        worst = sorted(own["by_term"].items(), key=lambda each: -each[1]["flagged"])
        rows = [[name, row["kind"], row["flagged"]] for name, row in worst]
        rest.append(
            ("Neutral sentences by term", report.table(["term", "kind", "flagged"], rows)),
        )
    for name in ("counterfactual", "winogender"):
        if one := content.get(name):
            gaps.append([name, one["gap"]])
            rows = [[variant, share] for variant, share in one["flagged"].items()]
            rows.append([f"same decision for all, of {one['rows']} rows", one["consistency"]])
            rest.append((f"{name.capitalize()}: flagged", report.table(["variant", "share"], rows)))
    if one := content.get("toxigen_groups"):
        gaps.append(["ToxiGen, recall", one["gap_of_recall"]])
        gaps.append(["ToxiGen, false positives", one["gap_of_false_positive_rate"]])
        rows = [[n, *row.values()] for n, row in [*one["groups"].items(), ("all", one["all"])]]
        title = f"ToxiGen by target group; {one['without_group']} of {one['texts']} have none"
        rest.append((title, report.table(["group", "hateful", "recall", "neutral", "FPR"], rows)))
    rows = [[name, *_told(one)] for name, one in gaps if one]
    head = ["between", "points", "lowest", "of", "highest", "of"]
    return [("Largest gaps, percentage points", report.table(head, rows)), *rest]


def _told(found: Mapping[str, Any]) -> list[Any]:
    """A gap as a table shows it: of many names the first three."""
    cells: list[Any] = [found["points"]]
    for end in (found["minimum"], found["maximum"]):
        names, more = end["names"][:SHOWN], len(end["names"]) - SHOWN
        cells += [end["value"], ", ".join(names) + (f" and {more} more" if more > 0 else "")]
    return cells


def run(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Measure the detector; a file that is not in the data folder is left out.

    Raises:
        GuardError: the policy makes no sense, or the engine failed.
        SchemaError: a file cannot be read.
    """
    from benchmarks.detection import Judge

    policy = report.policy(args)
    judge = Judge(runtime, policy, args.batch)
    content: dict[str, Any] = {"templates": templates(judge, args.limit, args.seed)}
    files = []
    for name, (file, measure) in FILES.items():
        if (path := args.data / "bench" / file).is_file():
            content[name] = measure(judge, path, args.limit, args.seed)
            files.append(path)
    info = Guard(runtime, policy=policy).info()
    return {"header": report.header(args, "identity", info, files), **content}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = report.arguments(__doc__, "identity").parse_args(argv)
    try:
        content = run(args, report.runtime(args))
    except (GuardError, OSError, SchemaError) as error:
        print(f"benchmarks.identity: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
