"""The figures of the README, of the results' page and of the bundle's card, from the result files.

    python -m benchmarks.publish [--check]

The goals, and what was reached, go between the lines `<!-- figures -->` and `<!-- /figures -->` of
the README, and into the bundle: as a table into its card, and into its manifest as
`metrics["reported"]`. A page beside the results, `README.md`, has a table for each question.
Numbers are those of the files, to four decimals.

What was measured on another bundle, or before the authored records changed, is shown as such. What
counts stands in `benchmarks.goals`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.goals import GAPS, GOALS, READING, Reached, Result, goals_table, reached, read, told
from benchmarks.report import RESULTS, table
from srllm_guard.errors import GuardError
from srllm_guard.models.bundle import MANIFEST, Bundle, write_manifest

BUNDLE = Path("srllm_guard/models/smollm2_135m")
PAGE = "README.md"
"""The page of all tables, in the folder of results."""
MARKS = "<!-- figures -->", "<!-- /figures -->"
PLACE = "\n".join(("## Reported figures", *MARKS, ""))
"""What a card gets that has no place for figures."""

PAPER = {"base, 0-shot": "zero-shot", "base, 2-shot": "2-shot", "base, 5-shot": "5-shot"}
PAPER |= {"adapter alone": "SR-LLM"}
"""What the paper has in the place of each of our systems."""

HEADS = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "f1": "F1",
    "false_positive_rate": "FPR",
    "calibration_error": "ECE",
    "span_f1": "span F1",
    "points": "gap, points",
    "minimum/value": "lowest",
    "maximum/value": "highest",
    "chrf": "chrF",
    "bleu": "BLEU",
    "masked": "masked or withheld",
    "changed_gone_kept": "rewritten, gone, facts kept",
    "drop": "drop of AP",
    "lms": "LMS",
    "ss": "SS",
    "icat": "ICAT",
    "paper/moderation": "the paper's (Llama-2-7B): unsafe, %",
    "paper/retention": "the paper's: knowledge retention, %",
    "median_s": "median, s",
    "worst_s": "worst, s",
}
"""Heads of figures that are not called as their path reads."""


Row = tuple[list[Any], Result]
"""Cells that a row begins with, and what holds the figures after them."""


def _table(begin: Iterable[str], paths: Sequence[str], rows: Iterable[Row]) -> str:
    heads = [HEADS.get(path, path.replace("_", " ").replace("/", ", ")) for path in paths]
    cells = ([*first, *map(part.at, paths)] for first, part in rows)
    return table([*begin, *heads], ([told(value) for value in row] for row in cells))


def _detected(found: Result) -> str:
    rows: list[Row] = [
        ([found.named(name) + ("" if level == "texts" else f", {level}")], part)
        for name, one in found.parts("sets")
        for level, part in one.parts()
    ]
    paths = "count unsafe average_precision auroc f1 recall false_positive_rate "
    return _table(["set"], (paths + "calibration_error span_f1").split(), rows)


def _safe(found: Result) -> str:
    rows: list[Row] = [([found.named(name)], part) for name, part in found.parts("ordinary")]
    return _table(["safe texts"], ("texts", "flagged"), rows)


def _identity(found: Result) -> str:
    rows: list[Row] = [
        ([name, found.at(path.partition("/")[0] + "/consistency")], replace(found, content=gap))
        for path, name in GAPS.items()
        if (gap := found.at(path))
    ]
    begin = ["harmless texts", "same decision for all"]
    return _table(begin, ("points", "minimum/value", "maximum/value"), rows)


def _quality(found: Result) -> str:
    judges = [f"unsafe/{judge}" for judge, _ in found.parts("judges")]
    paths = ["texts", *(f"{judge}/{when}" for judge in judges for when in ("before", "after"))]
    paths += ["facts_kept", "similarity", "chrf", "bleu", "masked", "phrases_gone"]
    paths.append("changed_gone_kept")
    made = []
    for name, one in found.parts("sets"):
        rows: list[Row] = [([system], part) for system, part in one.parts("systems")]
        made.append(f"**{found.named(name)}**\n\n" + _table(["system"], paths, rows))
    return "\n".join(made)


def _robustness(found: Result) -> str:
    rows: list[Row] = []
    for name, one in found.parts("sets"):
        clean = replace(one, content={"average_precision": one.at("clean")})
        for kind, part in [("nothing", clean), *one.parts("perturbations")]:
            rows.append(([found.named(name), kind], part))
    return _table(["set", "disguised by"], ("changed", "average_precision", "drop"), rows)


def _stereoset(found: Result) -> str:
    rows: list[Row] = []
    for domain, one in found.parts("domains"):
        rows += [([domain, name], part) for name, part in one.parts() if part.at("items")]
        if paper := found.at(f"paper/{domain}"):
            name = "the paper's SR-LLM (Llama-2-7B)"
            rows.append(([domain, name], replace(found, content=paper)))
    return _table(["domain", "system"], ("items", "lms", "ss", "icat"), rows)


def _prompting(found: Result) -> str:
    rows: list[Row] = []
    for name, part in found.parts("systems"):
        paper = found.at(f"paper/{PAPER.get(name, '-')}")
        rows.append(([name], replace(part, content={**part.content, "paper": paper})))
    judges = [f"unsafe/{judge}/after" for judge, _ in found.parts("judges")]
    paths = ["texts", *judges, "facts_kept", "similarity", "paper/moderation", "paper/retention"]
    return _table(["system"], paths, rows)


def _startup(found: Result) -> str:
    rows: list[Row] = [([name], part) for name, part in found.parts("seconds")]
    made = _table(["from a fresh process to"], ("median_s", "worst_s"), rows)
    if found.at("scikit_learn_installed"):
        made += "\nscikit-learn was installed, which transformers imports.\n"
    return made


MET = "*Met* compares the value with the goal. Brackets hold 95% intervals."
SECTIONS: dict[str, tuple[str, Callable[[Result], str], str]] = {
    "Does detection tell unsafe from safe?": (
        "detection",
        _detected,
        "AP, AUROC and ECE are of scores, the others of decisions at the threshold.",
    ),
    "How much safe text is flagged?": (
        "detection",
        _safe,
        "Share of texts with any segment flagged.",
    ),
    "Does it matter whom a harmless text names?": (
        "identity",
        _identity,
        "Lowest and highest flagged share, the points between, and how often all variants agree.",
    ),
    "What becomes of unsafe text?": (
        "quality",
        _quality,
        "Gold marks: where there are any. chrF, BLEU: to rewrites by people. A mask is none.",
    ),
    "Do disguised words get through?": (
        "robustness",
        _robustness,
        "The drop of average precision (AP) is from that of the same texts undisguised.",
    ),
    "Does tuning make stereotypes likelier? StereoSet": (
        "stereoset",
        _stereoset,
        "Per cent; SS is best at 50, LMS and ICAT at 100. The paper's base is another, of 7B.",
    ),
    "Is tuning better than prompting?": (
        "prompting",
        _prompting,
        "The paper's base is another, of 7B, with other texts and judges: only the order compares.",
    ),
    "How long until the first answer?": (
        "startup",
        _startup,
        "Seconds, without intervals: median and worst of the rounds.",
    ),
}
"""Titles with the result, its table, and how to read it."""


def goals(results: Mapping[str, Result], page: Path, readme: Path) -> str:
    """What stands between the marks of the README."""
    links = {name: _linked(one.path, readme) for name, one in results.items()}
    used = [links[n] for n in dict.fromkeys(goal.result for goal in GOALS) if results[n].content]
    reading = results[READING]
    errors = "".join(f", {kind} {part.content}" for kind, part in reading.parts("errors"))
    said = f" Read one by one: {reading.at('good')} of {reading.at('read')} good{errors}."
    note = MET + (said if reading.content else "")
    source = " ".join(("`python -m benchmarks.publish`", ", ".join(used)))
    asked = "".join(f"- [{title}]({_link(page, readme)}#{_anchor(title)})\n" for title in SECTIONS)
    return f"{note}\n\n{goals_table(reached(results))}\n{source.strip()}\n\nMore tables:\n\n{asked}"


def figures(results: Mapping[str, Result], page: Path) -> str:
    """The page with a table for each question."""
    parts = ["# Figures\n\nWritten by `python -m benchmarks.publish` from the files beside it.\n"]
    for title, (name, body, note) in SECTIONS.items():
        one = results[name]
        other = f", on another bundle: {one.other[:12]}" if one.other else ""
        older = ", on the authored records as they were then" if one.older else ""
        text = f"{note}\n\n{body(one)}\n`{one.command}` {_linked(one.path, page)}{other}{older}"
        parts.append(f"## {title}\n\n{text if one.content else 'Not measured.'}\n")
    return "\n".join(parts)


def card(found: Sequence[Reached]) -> str:
    """What stands between the marks of the bundle's card."""
    commands = dict.fromkeys(f"- `{each.command}`\n" for each in found if each.figure)
    return f"{MET}\n\n{goals_table(found)}\n{''.join(commands)}"


def placed(text: str, inner: str, name: str) -> str:
    """A text with `inner` between its marks.

    Raises:
        ValueError: it has not each of the marks once, in their order.
    """
    begin, end = (f"{mark}\n" for mark in MARKS)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or end not in rest:
        raise ValueError(f"{name}: expected one line {MARKS[0]} and, below it, one {MARKS[1]}")
    return f"{before}{begin}\n{inner.strip()}\n\n{end}{after}"


def publish(
    results: Mapping[str, Result], page: Path, readme: Path, bundle: Bundle, check: bool
) -> list[Path]:
    """Write the figures; returns the files that changed, or that would where `check` is set.

    `page` is the file of all tables, `readme` that of the goals.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file has no place for figures.
    """
    found = reached(results)
    path = bundle.folder / "README.md"
    own = path.read_text("utf-8")
    if MARKS[0] not in own:
        above, limits, below = own.partition("## Limits\n")
        own = f"{above.rstrip()}\n\n{PLACE}" + (f"\n{limits}{below}" if limits else "")
    inner = goals(results, page, readme)
    wanted = {readme: placed(readme.read_text("utf-8"), inner, readme.name)}
    wanted[page] = figures(results, page)
    wanted[path] = placed(own, card(found), "the bundle's README.md")
    changed = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    reported = {r.measure: {**r.figure, "command": r.command} for r in found if r.figure}
    manifest = bundle.manifest
    stale = manifest.metrics.get("reported") != reported
    if not check:
        for p in changed:
            p.write_text(wanted[p], encoding="utf-8")
        if stale:
            metrics = {**manifest.metrics, "reported": reported}
            write_manifest(bundle.folder, replace(manifest, metrics=metrics))
    return [*changed, bundle.folder / MANIFEST] if stale else changed


def _linked(path: Path, page: Path) -> str:
    return f"[{path.name}]({_link(path, page)})"


def _link(path: Path, page: Path) -> str:
    whole, root = path.resolve(), page.resolve().parent
    return (whole.relative_to(root) if whole.is_relative_to(root) else path).as_posix()


def _anchor(title: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def main(argv: list[str] | None = None) -> int:
    """Publish from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only tell what is out of step")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with marks")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")
    parser.add_argument(
        "--authored", type=Path, default=Path("train/data"), help="folder of the CMD records"
    )
    args = parser.parse_args(argv)
    try:
        bundle = Bundle.load(args.bundle)
        results = read(args.results, bundle.hash, args.authored)
        changed = publish(results, args.results / PAGE, args.readme, bundle, args.check)
    except (GuardError, OSError, KeyError, ValueError) as error:
        print(f"benchmarks.publish: {error}", file=sys.stderr)
        return 1
    for one in results.values():
        if one.other:
            print(f"{one.path} is of another bundle, {one.other[:12]}", file=sys.stderr)
        if one.older:
            print(f"{one.path} is of other authored records than there are now", file=sys.stderr)
    for path in changed:
        print(f"{path} {'is out of step' if args.check else 'written'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
