"""What readers said of rewrites that a bundle proposed for flagged segments.

One JSON object a line: `record`, the id of the authored record; `source`, the segment; `context`,
what the rewriter was shown before it; `marks`, the ranges of `source` that it was shown as unsafe;
`rewrites`, each with its `text` and its `verdict`, one of `VERDICTS`. `train/data/README.md` says
how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srllm_guard.prompt import Range
from train.schema import SchemaError, json_lines

VERDICTS = ("good", "left", "flipped", "invented", "lost", "clumsy")
"""Good, or what is worst about it: something unsafe is left, something is reversed, invented or
lost, or it is no proper sentence."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One segment, and what readers said of rewrites of it."""

    record: str
    source: str
    context: str
    marks: tuple[Range, ...]
    rewrites: Mapping[str, str]
    """Verdict of each rewrite."""

    @property
    def good(self) -> list[str]:
        """Rewrites that a reader would sign."""
        return [text for text, verdict in self.rewrites.items() if verdict == "good"]

    @property
    def bad(self) -> list[str]:
        """The others."""
        return [text for text, verdict in self.rewrites.items() if verdict != "good"]


def read(folder: Path) -> list[Reading]:
    """All readings of the JSON Lines files in a folder, in order.

    Raises:
        SchemaError: a line is no reading; the message names file and line.
    """
    return [
        _parsed(row, place)
        for path in sorted(folder.glob("*.jsonl"))
        for place, row in json_lines(path)
    ]


def _parsed(row: Any, place: str) -> Reading:
    try:
        rewrites = {each["text"]: each["verdict"] for each in row["rewrites"]}
        marks = tuple((start, end) for start, end in row["marks"])
        record, source, context = row["record"], row["source"], row["context"]
        ends = [0, *(at for mark in marks for at in mark), len(source)]
    except (KeyError, TypeError, ValueError):
        raise SchemaError(f"{place}: no reading; `train.readings` says what it has") from None
    if not all(isinstance(text, str) for text in (record, source, context, *rewrites)):
        raise SchemaError(f"{place}: a text that is no string")
    if not rewrites or not set(rewrites.values()) <= set(VERDICTS):
        raise SchemaError(f"{place}: a rewrite without a verdict of {', '.join(VERDICTS)}")
    if not marks or not all(type(at) is int for at in ends) or ends != sorted(ends):
        raise SchemaError(f"{place}: the marks are not in order within the source")
    return Reading(record, source, context, marks, rewrites)
