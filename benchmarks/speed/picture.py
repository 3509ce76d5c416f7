"""A run as one picture: a sentence, detection by length, documents by length, batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srllm_guard.errors import MissingExtra

Content = Mapping[str, Any]


def draw(path: Path, content: Content) -> None:
    """Write the PNG; what was not measured leaves its panel empty.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(extra="bench", needed_for="drawing plots") from None
    figure = Figure(figsize=(14, 9), layout="constrained")
    FigureCanvasAgg(figure)
    (one, lengths), (documents, batches) = figure.subplots(2, 2)
    _sentence(one, content.get("sentence", {}))
    by_size = content.get("detection", {})
    names = dict.fromkeys(name for row in by_size.values() for name in row)
    medians = {
        name: {size: row[name]["median_ms"] for size, row in by_size.items() if name in row}
        for name in names
    }
    _lines(lengths, medians, "Detection of safe text", "tokens", "median, ms")
    rows: dict[str, dict[str, float]] = {}
    for name, by_words in content.get("document", {}).items():
        rows[name] = {words: row["median_ms"] / 1e3 for words, row in by_words.items()}
        rows[f"{name}, detection alone"] = {
            words: row["detect_ms"] / 1e3 for words, row in by_words.items()
        }
    _lines(documents, rows, "Documents, 1% of sentences unsafe", "words", "seconds")
    rates = {
        name: {size: row["tokens_per_s"] for size, row in by_count.items()}
        for name, by_count in content.get("batches", {}).items()
    }
    _lines(batches, rates, "Batches of sentences", "sentences in a batch", "tokens a second")
    figure.savefig(path, dpi=120)


def _sentence(axes: Any, found: Content) -> None:
    """Bars: the decoding of one sentence by every system, and `Guard.rewrite` by ours."""
    bars = {name: row["median_ms"] for name, row in found.get("decode", {}).items()}
    bars |= {f"{n}, Guard.rewrite": row["median_ms"] for n, row in found.get("guard", {}).items()}
    names = list(bars)
    axes.barh(
        names, list(bars.values()), color=["C1" if "Guard" in name else "C0" for name in names]
    )
    for row, value in enumerate(bars.values()):
        axes.annotate(f" {value:.0f}", (value, row), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.set(title="One unsafe sentence", xlabel="median, ms")
    axes.grid(axis="x", alpha=0.3)


def _lines(axes: Any, rows: Mapping[str, Mapping[str, float]], title: str, x: str, y: str) -> None:
    for name, points in rows.items():
        axes.plot([int(key) for key in points], list(points.values()), marker="o", label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    if rows:
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
