"""Results as pictures: calibration, bars with their intervals, precision against recall.

    python -m benchmarks.plots --results benchmarks/results

draws what the JSON files of a folder hold, each as a PNG beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from srllm_guard.errors import GuardError, MissingExtra

Groups = Mapping[str, Mapping[str, Any]]
"""By group, by series: a number, a figure of `report.measured`, or None."""

DOTS_PER_INCH = 120
BAR = 0.24
"""Inches of one bar."""


def reliability(path: Path, rows: Sequence[Sequence[float]], title: str = "Reliability") -> None:
    """Draw what share of texts is unsafe against how sure the detector was, and how many they are.

    Args:
        path: the PNG file.
        rows: mean chance, share unsafe, and count of each bin, as `metrics.reliability` gives them.
        title: stands above.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = _figure(5.5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    chances, shares, counts = zip(*rows, strict=True) if rows else ((), (), ())
    above.plot((0, 1), (0, 1), color="0.6", linestyle="--", label="perfectly calibrated")
    above.plot(chances, shares, marker="o", label="measured")
    above.set(title=_plain(title), ylabel="share unsafe", xlim=(0, 1), ylim=(-0.02, 1.02))
    above.legend(loc="upper left")
    below.bar(chances, counts, width=0.04)
    below.set(xlabel="calibrated score", ylabel="texts")
    figure.savefig(path, dpi=DOTS_PER_INCH)


def bars(path: Path, title: str, groups: Groups, label: str = "share") -> None:
    """Draw horizontal bars: a cluster for each group, in it a bar for each series.

    The first group stands on top. Figures with an interval carry it as whiskers; what is None or
    missing leaves its place empty.

    Args:
        path: the PNG file.
        title: stands above.
        groups: for example systems, with the series "before" and "after".
        label: what the bars are lengths of.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    count = max(1, len(series))
    figure = _figure(8, 1.2 + BAR * len(groups) * (count + 0.6))
    axes = figure.add_subplot()
    for number, name in enumerate(series):
        known = [
            (row, *_range(group[name]))
            for row, group in enumerate(groups.values())
            if group.get(name) is not None
        ]
        if not known:
            continue
        rows, values, lows, highs = zip(*known, strict=True)
        places = [row + 0.8 * ((number + 0.5) / count - 0.5) for row in rows]
        axes.barh(places, values, height=0.8 / count, label=_plain(name))
        axes.hlines(places, lows, highs, color="0.25", linewidth=1.2)
    axes.set_yticks(range(len(groups)), [_plain(name) for name in groups])
    if not any(bar.get_width() for bar in axes.patches):
        axes.set_xlim(0, 1)
    axes.set_ylim(max(1, len(groups)) - 0.5, -0.5)
    axes.set(title=_plain(title), xlabel=_plain(label))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=DOTS_PER_INCH)


def curve(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], title: str = "Detection"
) -> None:
    """Draw precision against recall, a line for each set.

    Args:
        path: the PNG file.
        curves: by set, the lists `recall` and `precision`, of one length and with recall falling,
            as scikit-learn's `precision_recall_curve` gives them.
        title: stands above.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: the lists of a set differ in length.
    """
    figure = _figure(7.5, 5)
    axes = figure.add_subplot()
    for name, points in curves.items():
        recall, precision = points["recall"], points["precision"]
        if len(recall) != len(precision):
            raise ValueError(
                f"{name} has {len(recall)} values of recall and {len(precision)} of precision"
            )
        axes.plot(recall, precision, drawstyle="steps-post", label=_plain(name))
    axes.set(title=_plain(title), xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the results of a folder, as far as they are there, and tell the files written.

    Of `detection.json`, `reliability` (by set, rows) and `curves` (by set, lists) are drawn where
    it has them.

    Raises:
        MissingExtra: matplotlib is not installed.
        FileNotFoundError: there is no such folder.
        ValueError: a file is not JSON.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"no folder {results}")
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, title, groups, label in _bars(results):
        if any(groups.values()):
            made.append(out / f"{name}.png")
            bars(made[-1], title, groups, label)
    detection = _read(results / "detection.json")
    for name, rows in detection.get("reliability", {}).items():
        made.append(out / f"reliability_{_word(name)}.png")
        reliability(made[-1], rows, f"Reliability, {name}")
    if curves := detection.get("curves"):
        made.append(out / "curves.png")
        curve(made[-1], curves)
    return made


def _bars(results: Path) -> Iterator[tuple[str, str, Groups, str]]:
    """Of each picture of bars the name, title, groups, and what they are lengths of."""
    sets = _read(results / "detection.json").get("sets", {})
    ranked = {name: {"AP": one["texts"]["average_precision"]} for name, one in sets.items()}
    yield "detection", "Unsafe against safe texts", ranked, "average precision"
    for name, one in _read(results / "quality.json").get("sets", {}).items():
        systems = one["systems"]
        for judge in dict.fromkeys(j for row in systems.values() for j in row.get("unsafe", ())):
            groups = {
                system: {when: row["unsafe"][judge][when] for when in ("before", "after")}
                for system, row in systems.items()
            }
            yield f"quality_{name}_{_word(judge)}", f"{name}, by {judge}", groups, "share unsafe"
    disguised: dict[str, dict[str, Any]] = {}
    for name, one in _read(results / "robustness.json").get("sets", {}).items():
        disguised.setdefault("clean", {})[name] = one["clean"]
        for kind, row in one["perturbations"].items():
            disguised.setdefault(kind, {})[name] = row["average_precision"]
    yield "robustness", "Disguised words", disguised, "average precision"
    identity = _read(results / "identity.json")
    kinds = identity.get("templates", {}).get("by_kind", {})
    named = {kind: {"flagged": share} for kind, share in kinds.items()}
    yield "identity", "Neutral sentences that name a group", named, "share flagged"
    told = identity.get("toxigen_groups", {}).get("groups", {})
    columns = {"recall": "hateful: recall", "false_positive_rate": "neutral: flagged"}
    by_group = {
        name: {label: row[key] for key, label in columns.items()} for name, row in told.items()
    }
    yield "identity_toxigen", "ToxiGen by target group", by_group, "share flagged"


def _range(figure: Any) -> tuple[float, float, float]:
    """Value and interval of a figure; a number is its own interval."""
    if isinstance(figure, Mapping):
        low, high = figure.get("interval") or (figure["value"], figure["value"])
        return figure["value"], low, high
    return figure, figure, figure


def _read(path: Path) -> dict[str, Any]:
    """A result; {} if it is not there."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return content


def _word(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"\W+", "_", name)


def _plain(text: str) -> str:
    """A text of which matplotlib shows every sign: a dollar begins no formula."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches; of its own, not pyplot's, so there is nothing to close.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(extra="bench", needed_for="drawing plots") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def main(argv: list[str] | None = None) -> int:
    """Draw from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: the same)")
    args = parser.parse_args(argv)
    try:
        made = draw(args.results, args.out or args.results)
    except (GuardError, OSError, ValueError) as error:
        print(f"benchmarks.plots: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
