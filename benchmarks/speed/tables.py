"""A run as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.report import table
from benchmarks.speed.goals import goals_table

Content = Mapping[str, Any]
Titled = tuple[str, str]
"""A table and its title."""

DECODING = {
    "median_ms": "median, ms",
    "p95_ms": "p95, ms",
    "ms_per_token": "ms a token",
    "ms_per_step": "ms a step",
    "tokens_per_step": "tokens a step",
    "acceptance": "acceptance",
    "same_output": "same output as transformers",
}
GUARDED = {
    "median_ms": "median, ms",
    "p95_ms": "p95, ms",
    "model_ms": "of it in the model, ms",
    "rewritten_ms": "median of those rewritten, ms",
    "actions": "actions",
}


def tables(content: Content) -> list[tuple[str, str]]:
    """The tables that a run has figures for, with their titles."""
    made = [("Goals", goals_table(content["goals"]))]
    for name, part in PARTS.items():
        if found := content.get(name):
            made += [(title, text) for title, text in part(found) if text]
    return made


def _skipped(found: Content) -> Iterator[Titled]:
    yield "Skipped", table(["system", "reason"], found.items())


def _ceiling(found: Content) -> Iterator[Titled]:
    """Times that cannot be beaten, by precision."""
    for device, one in found.items():
        tokens = list(next(iter(one["precisions"].values()))["least_ms"])
        head = ["weights in", "GFLOP/s", *(f"least ms of a pass of {n} tokens" for n in tokens)]
        lines = [
            [name, row["gflop_s"], *(row["least_ms"][n] for n in tokens)]
            for name, row in one["precisions"].items()
        ]
        read = f"{one['gb_s']:.1f} GB/s, {one['weights'] / 1e6:.1f} million weights a pass.\n\n"
        yield f"Ceiling, {device}", read + table(head, lines)


def _start(found: Content) -> Iterator[Titled]:
    yield "Start", _columns("process", found, {"median_ms": "median, ms", "p95_ms": "p95, ms"})


def _detection(found: Content) -> Iterator[Titled]:
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = [[name, *(_median_high(row.get(name)) for row in found.values())] for name in names]
    yield "Detection, ms by tokens of safe text: median (p95)", table(["system", *found], lines)


def _sentence(found: Content) -> Iterator[Titled]:
    yield "One sentence, the decoding alone", _columns("system", found["decode"], DECODING)
    yield "One sentence, Guard.rewrite", _columns("system", found["guard"], GUARDED)


def _paragraph(found: Content) -> Iterator[Titled]:
    columns = {**DECODING, "tokens": "tokens"}
    del columns["same_output"]
    title = "Paragraph with 1 of 8 sentences unsafe, Guard.rewrite"
    yield title, _columns("system", found["guard"], GUARDED)
    yield "The same, rewritten as a whole", _columns("system", found["whole"], columns)


def _document(found: Content) -> Iterator[Titled]:
    head = ["system", "words", "seconds", "detection alone, s", "over detection"]
    head += ["ms for 1,000 words", "edits", "action"]
    lines = [
        [
            name,
            words,
            row["median_ms"] / 1e3,
            row["detect_ms"] / 1e3,
            row["over_detection"],
            f"{row['ms_per_1000_words']:.0f}",
            row["edits"],
            row["action"],
        ]
        for name, rows in found.items()
        for words, row in rows.items()
    ]
    yield "Documents, 1% of sentences unsafe", table(head, lines)


def _batches(found: Content) -> Iterator[Titled]:
    yield "Batches of sentences, tokens a second", _grid(found, "tokens_per_s", "{:.0f}")


def _callers(found: Content) -> Iterator[Titled]:
    yield "Concurrent callers, calls a second", _grid(found, "calls_per_s", "{:.1f}")
    yield "Concurrent callers, median of a call, ms", _grid(found, "median_ms", "{:.0f}")
    yield "Concurrent callers, p95 of a call, ms", _grid(found, "p95_ms", "{:.0f}")


def _memory(found: Content) -> Iterator[Titled]:
    yield "Peak memory", _columns("system", found, {"mb": "MB"})


def _columns(head: str, rows: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    lines = [[name, *(_told(row.get(key)) for key in columns)] for name, row in rows.items()]
    return table([head, *columns.values()], lines) if lines else ""


def _grid(found: Content, key: str, form: str) -> str:
    sizes = sorted({size for rows in found.values() for size in rows}, key=int)
    lines = [
        [name, *(form.format(rows[size][key]) if size in rows else None for size in sizes)]
        for name, rows in found.items()
    ]
    return table(["system", *sizes], lines)


def _middleware(found: Content) -> Iterator[Titled]:
    over = found["overhead"]
    columns = {
        "overhead_ms": "over bare detection, ms",
        "median_ms": "over the call without the guard, ms",
        "p95_ms": "p95 of that, ms",
        "bare_ms": "the call without the guard, ms",
    }
    bare = f"Bare detection, the model apart: {over['detect']['median_ms']:.3f} ms.\n\n"
    yield (
        "Wrappers on safe text, the model answering from memory",
        bare + _columns("wrapper", over["wrappers"], columns) if over["wrappers"] else "",
    )
    if over["skipped"]:
        yield "Wrappers that were skipped", table(["wrapper", "reason"], over["skipped"].items())
    if delays := found.get("delays"):
        yield (
            "Streams of safe sentences",
            table(["figure", "value"], [[key, value] for key, value in delays.items()]),
        )


def _median_high(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else f"{row['median_ms']:.1f} ({row['p95_ms']:.1f})"


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return value


PARTS: dict[str, Callable[[Content], Iterator[Titled]]] = {
    "skipped": _skipped,
    "ceiling": _ceiling,
    "start": _start,
    "detection": _detection,
    "sentence": _sentence,
    "paragraph": _paragraph,
    "document": _document,
    "batches": _batches,
    "callers": _callers,
    "memory": _memory,
    "middleware": _middleware,
}
"""The tables of each part of a result."""
